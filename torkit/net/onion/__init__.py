"""Onion services, as a client: finding one, meeting it, and keeping the circuits that have joined.

    services.py      which joined circuit a stream takes, or which meeting it waits for
    meeting.py       introduction and rendezvous, until one circuit has joined with the service's
    descriptors.py   fetches and keeps what services publish
    stems.py         the circuits that all of this goes through, by way of the vanguards
    reserve.py       the beginnings of some, built ahead

What is said on them, and what a descriptor must prove, is torkit.hs's.
"""
