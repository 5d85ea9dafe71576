"""How many DATA cells may be under way on a circuit, and when a stream's peer must pause. Numbers only.

No cells are counted or sealed here: the compiled core does that, and the arithmetic of once per SENDME too
(_fast/vegas). This module has its parameters, and is asked once per read of a stream's queue and once per XON
or XOFF. Time is the caller's monotonic clock, in seconds.

**Circuits.** The far end acknowledges every `increment` DATA cells with a circuit-level SENDME. We may have
`window` cells sent and not acknowledged:

    fixed windows          the consensus's circwindow, for ever (tor-spec, "Circuit-level flow control")
    congestion control     cwnd, which Vegas moves at every SENDME (proposal 324, [TOR_VEGAS])

Vegas reasons so. The round-trip time RTT is measured on each cell that causes a SENDME. The smallest
smoothed RTT ever seen, RTT_min, is the circuit with empty queues; what the circuit itself can hold is

    BDP = cwnd * RTT_min / RTT_ewma                    the bandwidth-delay product, in cells
    queue_use = cwnd - BDP                             the rest of cwnd lies in somebody's queue

and the window follows the queue:

    slow start      queue_use < gamma: grow by rfc3742_increment at each SENDME, while the window is full
                    else: cwnd = BDP + gamma, and on to steady state
    steady state    once per update interval:
                    queue_use > delta               cwnd = BDP + delta - cwnd_inc
                    queue_use > beta, or blocked    cwnd -= cwnd_inc
                    queue_use < alpha, and full     cwnd += cwnd_inc

"Full" keeps an idle or slow sender from earning a window that it never tested. "Blocked" says that our own
channel is congested. Invariant: max(cc_cwnd_min, increment) <= cwnd, unless cc_cwnd_max is less; below one
increment there would be no SENDME ever again.

**Streams** under congestion control have no windows. Who cannot drain a stream's queue sends XOFF, and XON
with its drain rate once the queue is empty (proposal 324, "Flow Control"). `DrainWatch` decides what we
send, `XoffCheck` judges what we are sent. Rates are in units of 1000 bytes a second; 0 means no limit.

Integer arithmetic in microseconds, multiplying before dividing, as proposal 324 asks, so that every
implementation rounds alike. Where C tor 0.4.9 and the proposal's text differ in a default, the default is
C tor's: it is what the crowd does when the consensus is silent.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from torkit._fast.vegas import ClockGuard as ClockGuard
from torkit._fast.vegas import Vegas as Vegas
from torkit._fast.vegas import n_ewma
from torkit.errors import CircuitError
from torkit.params import INT32_MAX, parameter

# Specification constants. Proposal 324.
RELAY_DATA_LEN_MIN = 488  # bytes of data in a DATA cell of format v1: the unit of cc_xoff_*
RELAY_DATA_LEN_MAX = 498  # and of format v0: the unit of cc_xon_rate
DRAIN_BURST_CELLS = 32  # 4.1.2, [XON_ADVISORY]: a queue above this is not just a burst

# Implementation limits.
XOFF_GRACE_USEC = 5_000  # one burst of cells must not cost an XOFF before its reader had a turn (as C tor)
XOFF_CREDIT_MAX = 10 << 20  # bytes that an XON or XOFF much later can still draw on (as C tor)


class PathKind(Enum):
    """Kinds of paths; the longer one tolerates longer queues. Proposal 324, 6.5.3."""

    EXIT = "exit"
    ONION = "onion"


class CongestionParams(NamedTuple):
    """The parameters of TOR_VEGAS for one kind of path. Counts are cells, `*_pct` per cent."""

    sendme_inc: int
    cwnd_init: int
    cwnd_min: int
    cwnd_max: int
    cwnd_inc: int
    cwnd_inc_pct_ss: int
    cwnd_inc_rate: int
    ewma_cwnd_pct: int
    ewma_max: int
    ewma_ss: int
    rtt_reset_pct: int
    ss_max: int
    ss_cap: int
    cwnd_full_gap: int
    cwnd_full_minpct: int
    cwnd_full_per_cwnd: bool
    alpha: int
    beta: int
    gamma: int
    delta: int

    @classmethod
    def from_params(cls, params: Mapping[str, int], path: PathKind = PathKind.EXIT) -> "CongestionParams":
        """Read the consensus parameters; values out of range are moved to the nearest in range."""

        def get(name: str) -> int:
            return parameter(params, f"cc_{name}")

        return cls(
            sendme_inc=get("sendme_inc"),
            cwnd_init=get("cwnd_init"),
            cwnd_min=get("cwnd_min"),
            cwnd_max=get("cwnd_max"),
            cwnd_inc=get("cwnd_inc"),
            cwnd_inc_pct_ss=get("cwnd_inc_pct_ss"),
            cwnd_inc_rate=get("cwnd_inc_rate"),
            ewma_cwnd_pct=get("ewma_cwnd_pct"),
            ewma_max=get("ewma_max"),
            ewma_ss=get("ewma_ss"),
            rtt_reset_pct=get("rtt_reset_pct"),
            ss_max=get("ss_max"),
            ss_cap=get(f"sscap_{path.value}"),
            cwnd_full_gap=get("cwnd_full_gap"),
            cwnd_full_minpct=get("cwnd_full_minpct"),
            cwnd_full_per_cwnd=bool(get("cwnd_full_per_cwnd")),
            alpha=get(f"vegas_alpha_{path.value}"),
            beta=get(f"vegas_beta_{path.value}"),
            gamma=get(f"vegas_gamma_{path.value}"),
            delta=get(f"vegas_delta_{path.value}"),
        )


def wants_congestion_control(params: Mapping[str, int]) -> bool:
    """Returns whether the consensus asks clients to negotiate. Proposal 324, 10.1, "When to negotiate"."""
    return parameter(params, "cc_alg") != 0


# --- XON and XOFF ----------------------------------------------------------------------------------------


def _usec(seconds: float) -> int:
    return round(seconds * 1_000_000)


class StreamParams(NamedTuple):
    """The parameters of XON and XOFF, in bytes, per cent, and a count of rates. Proposal 324, 6.5.5."""

    xoff_client: int
    xoff_exit: int
    xon_rate: int
    xon_change_pct: int
    xon_ewma_cnt: int

    @classmethod
    def from_params(cls, params: Mapping[str, int]) -> "StreamParams":
        """Read the consensus parameters; values out of range are moved to the nearest in range."""
        return cls(
            xoff_client=parameter(params, "cc_xoff_client") * RELAY_DATA_LEN_MIN,
            xoff_exit=parameter(params, "cc_xoff_exit") * RELAY_DATA_LEN_MIN,
            xon_rate=parameter(params, "cc_xon_rate") * RELAY_DATA_LEN_MAX,
            xon_change_pct=parameter(params, "cc_xon_change_pct"),
            xon_ewma_cnt=parameter(params, "cc_xon_ewma_cnt"),
        )


class Xoff:
    """Send XOFF. There is one of it, which unlike an empty tuple is true."""


XOFF = Xoff()


class Xon(NamedTuple):
    """Send XON with this rate, in units of 1000 bytes a second; 0 where none is known."""

    kbps_ewma: int


class DrainWatch:
    """Decides when the receiver of a stream sends XOFF and XON. Proposal 324, 4.1.1 and 4.1.2.

    Told of the queue after each read of the channel (`queued`) and each read by the application
    (`drained`); answers what to send now, at most one message. The queue itself lives elsewhere.
    """

    def __init__(self, params: StreamParams, clock: ClockGuard) -> None:
        self.xoff_sent = False
        self.rate = 0  # N_EWMA of the drain rate, 1000 bytes a second
        self._params = params
        self._clock = clock
        self._last_rate = 0  # in our last XON
        self._over_since: int | None = None  # usec, since when the queue is over the limit
        self._measuring_since: int | None = None  # usec
        self._drained = 0  # bytes since then
        self._unhindered = 0  # bytes whose queue never lasted, since the last doubling

    @property
    def is_idle(self) -> bool:
        """Whether an emptied queue needs no message: no XOFF holds, no rate was told, nothing is measured."""
        is_watching = self._over_since is not None or self._measuring_since is not None
        return not (self.xoff_sent or self._last_rate or is_watching)

    def queued(self, length: int, now: float) -> Xoff | Xon | None:
        """Note that data arrived and the queue holds `length` bytes. Returns an XOFF to send, or None."""
        at = _usec(now)
        if length <= self._params.xoff_client:
            self._over_since = None
        elif not self.xoff_sent:
            if self._over_since is None:
                self._over_since = at
            elif at > self._over_since + XOFF_GRACE_USEC:
                self._over_since = None
                self.xoff_sent = True
                self.rate = 0  # whatever it was, it was wrong
                return XOFF
        if length > DRAIN_BURST_CELLS * RELAY_DATA_LEN_MIN:
            self._measure(length, at)
        return None

    def drained(self, count: int, length: int, now: float) -> Xon | None:
        """Note that the application took `count` bytes and `length` are left.

        Returns an XON to send, or None.
        """
        self._drained += count
        self._unhindered += count
        if length <= self._params.xoff_client:
            self._over_since = None
        self._measure(length, _usec(now))
        send = length == 0 if self.xoff_sent else self._rate_changed()
        if length == 0:
            self._note_empty(_usec(now))
        if not send:
            return None
        self.xoff_sent = False
        self._last_rate = self.rate
        return Xon(self.rate)

    def _measure(self, length: int, at: int) -> None:
        """Start the stop-watch when data waits. Read it after the bytes of each cc_xon_rate cells."""
        if self._clock.is_stalled:
            self._measuring_since = None
            self._drained = 0
            return
        if self._measuring_since is None:
            if length > 0:
                self._measuring_since = at
                self._drained = 0
            return
        elapsed = at - self._measuring_since
        if self._drained > self._params.xon_rate and elapsed > 0:
            rate = min(max(self._drained * 1000 // elapsed, 1), INT32_MAX)
            self.rate = n_ewma(rate, self.rate, self._params.xon_ewma_cnt)
            self._unhindered = 0
            self._measuring_since = at if length > 0 else None
            self._drained = 0

    def _note_empty(self, at: int) -> None:
        """Guess the rate while nothing waits: twice as much after each cc_xon_rate cells.

        A queue that its reader empties within the grace was a burst, not a reader that lags.
        """
        since, self._measuring_since = self._measuring_since, None
        self._drained = 0
        if since is not None and at > since + XOFF_GRACE_USEC:
            self._unhindered = 0
        elif self._unhindered >= self._params.xon_rate:
            self._unhindered = 0
            if self._last_rate:
                self.rate = min(2 * self.rate, INT32_MAX)

    def _rate_changed(self) -> bool:
        if self._last_rate == 0 or self._clock.is_stalled:
            return False
        percent = self._params.xon_change_pct
        low, high = ((100 + sign * percent) * self._last_rate // 100 for sign in (-1, 1))
        return not low <= self.rate <= high


class XoffCheck:
    """Judges the XON and XOFF of a stream's peer, and keeps what they asked. Proposal 324, 4.1.4.

    Any that an honest peer could not have sent yet, for the bytes it has had from us, is a message from
    somebody else ("DropMark") and closes the circuit. Counting as the proposal does, bytes sent must reach
    `xoff_limit` for each XOFF and min(xoff_limit, xon_rate) for each XON. Each message has its credit
    of bytes, and the credit has an upper limit, so that a long transfer does not pay for a volley at its
    end. C tor halves its counters instead, and so comes to hold honest messages to be early once a slow
    reader has had 10 MiB in stops and starts: harmless where one only reports, as it does, but we close.
    """

    def __init__(self, params: StreamParams, *, peer_is_onion_service: bool = False) -> None:
        self.is_xoff = False
        self.rate: int | None = None  # bytes a second that the peer wants at most
        self._xoff_limit = params.xoff_client if peer_is_onion_service else params.xoff_exit
        self._xon_limit = min(self._xoff_limit, params.xon_rate)
        self._xoff_credit = 0
        self._xon_credit = 0

    def data_sent(self, count: int) -> None:
        """Note `count` bytes of stream data sent."""
        self._xoff_credit = min(self._xoff_credit + count, XOFF_CREDIT_MAX)
        self._xon_credit = min(self._xon_credit + count, XOFF_CREDIT_MAX)

    def xoff(self) -> None:
        """Take an XOFF. Raises CircuitError for one too early, one too many, or one within XOFF."""
        if self.is_xoff:
            raise CircuitError("XOFF while XOFF holds")
        if self._xoff_credit < self._xoff_limit:
            raise CircuitError("XOFF before the data that could have caused it")
        self._xoff_credit -= self._xoff_limit
        self.is_xoff = True

    def xon(self, kbps_ewma: int) -> None:
        """Take an XON with its rate. Raises CircuitError for one too early or one too many."""
        if self._xon_credit < self._xon_limit:
            raise CircuitError("XON before the data that could have caused it")
        self._xon_credit -= self._xon_limit
        self.is_xoff = False
        # "A zero value means that the stream's rate is unlimited"; beyond 2 GB a second so does any other.
        rate = kbps_ewma * 1000
        self.rate = rate if 0 < rate <= INT32_MAX else None
