# Contents: the clock guard, round-trip times and the window of TOR_VEGAS.

cimport cython
from libc.stdint cimport int64_t

from torkit._fast.cells cimport monotonic

@cython.final
cdef class ClockGuard:
    cdef readonly bint is_stalled
    cdef public double set_to     # seconds: the time, where a test says so; 0 for the system's

    cpdef bint accepts(self, int64_t rtt, int64_t baseline) noexcept

    # Seconds, monotonic.
    cdef inline double now(self) noexcept:
        return self.set_to or monotonic()

@cython.final
cdef class RoundTripTime:
    cdef readonly int64_t ewma    # usec, as all three
    cdef readonly int64_t minimum
    cdef readonly int64_t maximum

    cdef void take(self, int64_t rtt, int64_t n, int64_t reset_pct) noexcept

# Parameters, as proto/flow.py names them. Each is at most INT32_MAX, so that no product overflows.
@cython.final
cdef class Params:
    cdef int64_t cwnd_max, cwnd_inc, cwnd_inc_pct_ss, cwnd_inc_rate
    cdef int64_t ewma_cwnd_pct, ewma_max, ewma_ss, rtt_reset_pct
    cdef int64_t ss_max, ss_cap, cwnd_full_gap, cwnd_full_minpct
    cdef bint cwnd_full_per_cwnd
    cdef int64_t alpha, beta, gamma, delta

@cython.final
cdef class Vegas:
    cdef readonly int64_t increment   # cells, as all windows
    cdef readonly int64_t minimum
    cdef readonly int64_t window
    cdef readonly bint in_slow_start
    cdef readonly bint is_full
    cdef readonly bint is_blocked
    cdef readonly RoundTripTime rtt
    cdef ClockGuard clock             # also of the times that `rtt` is made of
    cdef int64_t sendmes_to_update
    cdef int64_t sendmes_to_window

    cdef Params params                # of all circuits of this kind

    cpdef void acknowledge(self, double rtt, int64_t in_flight, bint blocked) noexcept
    cdef void update_rtt(self, int64_t rtt) noexcept
    cdef void update_blocked(self, bint blocked) noexcept
    cdef void update_window(self, int64_t in_flight) noexcept
    cdef void slow_start(self, int64_t bdp, int64_t queue_use) noexcept
    cdef void steady_state(self, int64_t bdp, int64_t queue_use) noexcept
    cdef int64_t rfc3742_increment(self) noexcept
    cdef int64_t ewma_count(self) noexcept
    cdef int64_t update_interval(self) noexcept
    cdef int64_t sendmes_per_window(self) noexcept
