"""Onion services, as a client: finding one, meeting it, and keeping the circuits that have joined.

    request.py       one stream to a service, tried until the service answers
    services.py      which joined circuit a stream takes, or which meeting it waits for
    meeting.py       attempts, until one circuit has joined with the service's
    introduction.py  one attempt, through one introduction point
    rendezvous.py    the circuit at which we wait for the service
    work.py          proofs of work, made in a thread
    descriptors.py   fetches and keeps the descriptors that services publish
    client_keys.py   our keys for services that serve only clients they know
    stems.py         builds all these circuits, by way of the vanguards
    reserve.py       builds the first hops of some ahead

torkit.hs has the messages on these circuits, and the checks of a descriptor.
"""
