# Contents: the token bucket that bounds what a peer may have us do for nothing.
#
# What costs us work is taken out; time and good behaviour put in, up to a brim. Who takes more than there is has
# gone beyond what any honest peer does, and is closed.

cdef struct Bucket:
    double left
    double filled_at              # seconds, CLOCK_MONOTONIC

cdef inline void fill(Bucket* bucket, double now, double rate, double earned, double brim) noexcept nogil:
    """Put in what the time since the last call is worth at `rate` a second, and what was `earned`."""
    bucket.left = min(brim, bucket.left + rate * (now - bucket.filled_at) + earned)
    bucket.filled_at = now
