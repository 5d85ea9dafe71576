# Contents: the token bucket that bounds what a peer may have us do for nothing.
#
# What costs us work is taken out; time and good behaviour put in, up to a brim. Who takes more than there is has
# gone beyond what any honest peer does, and is closed.

# Implementation limits: cells that serve nothing, which somebody may send at once, and those a second beside. Honest
# relays pad once in 1.5 s; so many unknown cells cost Python some 10 ms.
cdef enum:
    IDLE_CELLS_BRIM = 4096
    IDLE_CELLS_RATE = 256

cdef struct Bucket:
    double left
    double filled_at              # seconds, CLOCK_MONOTONIC

cdef inline void fill(Bucket* bucket, double now, double rate, double earned, double brim) noexcept nogil:
    """Put in what the time since the last call is worth at `rate` a second, and what was `earned`."""
    bucket.left = min(brim, bucket.left + rate * (now - bucket.filled_at) + earned)
    bucket.filled_at = now
