"""Chooses relays: pure functions of a directory, of a request, and of randomness.

constraints  what a path is for, what the user asks of it, which relays a name means
choose       the relays of a path
guards       the first relay: a small sample, kept for months
vanguards    the first relays of circuits for onion services
text         paths as lines of JSON
"""
