"""Circuits for requests: their purposes, how they are built, who shares them, which are built ahead.

purpose     what a circuit is for, what its path needs, which requests may join it
build       one circuit, hop by hop, within the timeouts that were learnt
turns       how many are built at once, and whose is next
shelves     the circuits at hand, found by isolation
pool        hands them out, builds what is missing, ends what has served
spares      built ahead for the ports that are expected
sets        two circuits to one exit, linked to carry streams together (conflux)
words       what is logged of each
paths       chooses relays by purpose, and a guard with them
guards      keeps the guards: what became of each, what of them is saved
request     one stream or look-up, tried on one circuit after another
"""
