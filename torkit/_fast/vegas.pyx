"""The arithmetic of congestion control, done once per SENDME: TOR_VEGAS and the round-trip times it needs.

Round-trip times are arguments, in microseconds unless noted; 0 stands for "none yet". proto/flow.py has the
parameters and their ranges, circuit.pyx the hops that call. Proposal 324.
"""

cimport cython
from libc.math cimport llrint
from libc.stdint cimport int64_t

from torkit._fast.factory cimport check_maker, make

# Specification constant. 2.1.1, [CLOCK_HEURISTICS].
cdef int64_t DELTA_DISCREPANCY_RATIO_MAX = 5000

# Implementation limit, usec: 35 minutes. Times a window, which is no larger, it fits 64 bits.
cdef double RTT_MAX = 2147483647.0


cpdef int64_t n_ewma(int64_t current, int64_t previous, int64_t n) noexcept:
    """Returns the moving average over `n` values; `previous` is 0 before the first. 2.1.2, [N_EWMA_SMOOTHING]."""
    return current if previous == 0 else (2 * current + (n - 1) * previous) // (n + 1)


@cython.final
cdef class ClockGuard:
    """Tells the time, and whether it can be believed; one for all circuits of a process.

    2.1.1, [CLOCK_HEURISTICS].
    """

    cpdef bint accepts(self, int64_t rtt, int64_t baseline) noexcept:
        """Judge one RTT, usec, beside the smoothed RTT; `baseline` is 0 where there is none to trust yet."""
        if rtt <= 0:
            self.is_stalled = True
            return False
        if baseline == 0:
            return True
        if baseline > rtt * DELTA_DISCREPANCY_RATIO_MAX:
            return not self.is_stalled  # a fast network, unless the clock is known to stand still
        if rtt > baseline * DELTA_DISCREPANCY_RATIO_MAX:
            return False  # a jump, or a peer that slept; it says nothing about the clock from now on
        self.is_stalled = False
        return True


@cython.final
cdef class RoundTripTime:
    """The estimates of one circuit, usec; 0 before the first. 2.1, "RTT measurement".

    `minimum` is of the smoothed values, which evens out what other circuits do; `maximum` of the raw ones:
    half-open streams may speak for so long.
    """

    def update(self, int64_t rtt, *, int64_t n, reset_pct):
        """Take in one accepted RTT, smoothed over `n`.

        `reset_pct`, where the window has sunk to its minimum, says how far the minimum moves to the
        larger of itself and the average: it may have been a lucky one; else it is None. 3.1.2,
        cc_rtt_reset_pct.
        """
        self.take(rtt, n, -1 if reset_pct is None else reset_pct)

    cdef void take(self, int64_t rtt, int64_t n, int64_t reset_pct) noexcept:
        """`update`, with -1 for None."""
        self.ewma = n_ewma(rtt, self.ewma, n)
        self.maximum = max(self.maximum, rtt)
        if self.minimum == 0:
            self.minimum = self.ewma
        elif reset_pct >= 0:
            self.minimum = (
                reset_pct * max(self.ewma, self.minimum) // 100
                + (100 - reset_pct) * min(self.ewma, self.minimum) // 100
            )
        else:
            self.minimum = min(self.minimum, self.ewma)


@cython.final
cdef class Params:
    def __cinit__(self):
        check_maker(self)


# What was read last, and from what: the circuits of a client share it.
cdef object last_given = None
cdef Params last_read = None


cdef Params read_params(params):
    """Returns a CongestionParams of proto/flow.py, read."""
    global last_given, last_read
    cdef Params read
    if params is not last_given:
        make()
        read = Params.__new__(Params)
        read.cwnd_max = params.cwnd_max
        read.cwnd_inc = params.cwnd_inc
        read.cwnd_inc_pct_ss = params.cwnd_inc_pct_ss
        read.cwnd_inc_rate = params.cwnd_inc_rate
        read.ewma_cwnd_pct = params.ewma_cwnd_pct
        read.ewma_max = params.ewma_max
        read.ewma_ss = params.ewma_ss
        read.rtt_reset_pct = params.rtt_reset_pct
        read.ss_max = params.ss_max
        read.ss_cap = params.ss_cap
        read.cwnd_full_gap = params.cwnd_full_gap
        read.cwnd_full_minpct = params.cwnd_full_minpct
        read.cwnd_full_per_cwnd = params.cwnd_full_per_cwnd
        read.alpha = params.alpha
        read.beta = params.beta
        read.gamma = params.gamma
        read.delta = params.delta
        last_read = read
        last_given = params
    return last_read


@cython.final
cdef class Vegas:
    """TOR_VEGAS; driven by `acknowledge`, once per SENDME. Proposal 324, section 3.3.

    `params` is a CongestionParams of proto/flow.py, `increment` what was negotiated with the hop. `window` may
    sink below what is in flight: then nothing is sent until enough is acknowledged.
    """

    def __cinit__(self, params, *, int64_t increment, ClockGuard clock not None):
        self.increment = increment
        # cc_cwnd_min "must never be set below cc_sendme_inc"; nor can what was negotiated be above it.
        self.minimum = max(<int64_t>params.cwnd_min, increment)
        self.params = read_params(params)
        self.window = min(max(<int64_t>params.cwnd_init, self.minimum), self.params.cwnd_max)
        self.in_slow_start = True
        self.rtt = RoundTripTime()
        self.clock = clock
        self.sendmes_to_update = self.update_interval()

    cpdef void acknowledge(self, double rtt, int64_t in_flight, bint blocked) noexcept:
        """The step of the algorithm for one SENDME.

        `rtt` is in seconds, from sending the cell that caused it; `in_flight` counts cells sent and not
        acknowledged before it; `blocked` says that our channel is congested.
        """
        self.sendmes_to_update = max(0, self.sendmes_to_update - 1)
        self.sendmes_to_window = max(0, self.sendmes_to_window - 1)
        cdef int64_t rtt_usec = llrint(min(rtt * 1e6, RTT_MAX))
        if self.clock.accepts(rtt_usec, 0 if self.in_slow_start else self.rtt.ewma):
            self.update_rtt(rtt_usec)
            self.update_blocked(blocked)
            self.update_window(in_flight)

    cdef void update_rtt(self, int64_t rtt) noexcept:
        cdef bint at_minimum = self.window == self.minimum and not self.in_slow_start
        self.rtt.take(rtt, self.ewma_count(), self.params.rtt_reset_pct if at_minimum else -1)

    cdef void update_blocked(self, bint blocked) noexcept:
        """Look at the window now if the channel has blocked or unblocked, before the interval ends (as C tor)."""
        if blocked != self.is_blocked:
            self.is_blocked = blocked
            self.sendmes_to_update = 0

    cdef void update_window(self, int64_t in_flight) noexcept:
        cdef int64_t bdp = self.window * self.rtt.minimum // self.rtt.ewma  # 3.1.2
        cdef int64_t queue_use = max(0, self.window - bdp)
        cdef bint is_full_over

        if in_flight + self.params.cwnd_full_gap * self.increment >= self.window:
            self.is_full = True
        elif 100 * in_flight < self.params.cwnd_full_minpct * self.window:
            self.is_full = False

        if self.in_slow_start:
            self.slow_start(bdp, queue_use)
        elif self.sendmes_to_update == 0:
            self.steady_state(bdp, queue_use)
        self.window = min(max(self.window, self.minimum), self.params.cwnd_max)

        cdef int64_t update_interval = self.update_interval()
        cdef int64_t window_interval = self.sendmes_per_window()
        self.sendmes_to_update = self.sendmes_to_update or update_interval
        self.sendmes_to_window = self.sendmes_to_window or window_interval
        if self.params.cwnd_full_per_cwnd:
            is_full_over = self.sendmes_to_window == window_interval
        else:
            is_full_over = self.sendmes_to_update == update_interval
        if is_full_over:
            self.is_full = False

    cdef void slow_start(self, int64_t bdp, int64_t queue_use) noexcept:
        cdef int64_t increment
        if queue_use >= self.params.gamma or self.is_blocked:
            self.window = bdp + self.params.gamma
            self.in_slow_start = False
        elif self.is_full:
            increment = self.rfc3742_increment()
            self.window += increment
            if increment * self.sendmes_per_window() <= self.params.cwnd_inc * self.params.cwnd_inc_rate:
                self.in_slow_start = False  # steady state grows as fast
        if self.window >= self.params.ss_max:
            self.window = self.params.ss_max
            self.in_slow_start = False

    cdef void steady_state(self, int64_t bdp, int64_t queue_use) noexcept:
        if queue_use > self.params.delta:
            self.window = bdp + self.params.delta - self.params.cwnd_inc
        elif queue_use > self.params.beta or self.is_blocked:
            self.window -= self.params.cwnd_inc
        elif self.is_full and queue_use < self.params.alpha:
            self.window += self.params.cwnd_inc

    cdef int64_t rfc3742_increment(self) noexcept:
        """Returns by how many cells one SENDME of slow start grows the window: rounded, fewer above the cap."""
        if self.window <= self.params.ss_cap:
            return (self.params.cwnd_inc_pct_ss * self.increment + 50) // 100
        return max((self.increment * self.params.ss_cap + self.window) // (2 * self.window), 1)

    cdef int64_t ewma_count(self) noexcept:
        """Returns N of the smoothing. 2.1.2, [N_EWMA_SMOOTHING]."""
        if self.in_slow_start:
            return max(self.params.ewma_ss, 2)
        return max(min(self.update_interval() * self.params.ewma_cwnd_pct // 100, self.params.ewma_max), 2)

    cdef int64_t update_interval(self) noexcept:
        """Returns the SENDMEs from one look at the window to the next: CWND_UPDATE_RATE of 3.3."""
        if self.in_slow_start:
            return 1
        cdef int64_t cells = self.params.cwnd_inc_rate * self.increment
        return (self.window + cells // 2) // cells

    cdef int64_t sendmes_per_window(self) noexcept:
        """Returns the SENDMEs of a whole window, rounded: SENDME_PER_CWND of 3.3."""
        return (self.window + self.increment // 2) // self.increment
