"""Onion services that we run.

    service.py       one service: its editions, and what becomes of whoever is introduced to it
    edition.py       one descriptor, with the introduction points that it names
    point.py         one introduction point, kept
    upload.py        a descriptor given to the directories that are responsible for it
    meeting.py       one client, met at the rendezvous point that it has chosen
    forward.py       streams carried to servers of this machine
    listener.py      the same streams for a program of ours

What is said and signed is torkit.hs's; circuits are made by net/onion/stems.py, as for clients.
"""
