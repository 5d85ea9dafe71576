"""Link padding of one channel: what is negotiated, when PADDING is sent, how long an idle channel is kept.

padding-spec, "Connection-level padding", as C tor 0.4.9's clients do it. Networks keep records of flows, and
begin a new one after 10 s of silence or more. A padded channel is silent for less, so that its record tells
how much passed in half an hour, and not when. Any cell that goes or comes starts a timer anew, of

    low + max(X, X) ms      both X drawn uniformly from 0 up to high - low - 1

and when it runs out, a PADDING cell goes. The relay does the same. Only channels that carry circuits of
several hops are padded, by

    auto       nf_ito_low and nf_ito_high; nothing is negotiated, since relays pad by themselves
    reduced    nf_ito_low_reduced and nf_ito_high_reduced; the relay is told to stop
    off        nothing; the relay is told to stop

Where there is no padding, by choice, by the consensus, or because the link protocol is too old, a PADDING
cell still goes after KEEPALIVE, so that address translators on the way do not forget us.

Nobody tells us of each cell. We look instead, no more than `low` apart: a timer that a cell between two looks
has started cannot have run out before the second, so that one drawn for the last such cell stands for all.

C tor's clients read neither nf_pad_relays nor nf_conntimeout_relays; nf_conntimeout_clients is for circuits.
"""

from collections.abc import Mapping
from enum import Enum, IntEnum
from random import Random

from torkit._fast.cells import Command
from torkit.params import parameter

# Specification constant.
FIRST_LINK_PROTOCOL = 5  # that has padding; tor-spec, "Negotiating versions with VERSIONS cells"

# In seconds (as C tor's clients).
KEEPALIVE = 300.0
IDLE_TIMEOUT = 180  # of a channel without circuits, and
IDLE_TIMEOUT_SPREAD = 90  # up to so many more

# Implementation limit, seconds: no timer is shorter and no looks are closer, whatever the consensus says.
# C tor looks once a second.
SHORTEST = 1.0


class Padding(Enum):
    """How much link padding."""

    AUTO = "auto"
    REDUCED = "reduced"
    OFF = "off"


class Use(IntEnum):
    """The most that a channel has carried."""

    DIRECTORY = 0  # circuits of one hop, if any
    CIRCUITS = 1  # of several
    STREAMS = 2  # on those


class PaddingCommand(IntEnum):
    """The commands of PADDING_NEGOTIATE. tor-spec, "Link padding"."""

    STOP = 1
    START = 2


def encode_padding_negotiate(command: PaddingCommand, ito_low_ms: int = 0, ito_high_ms: int = 0) -> bytes:
    """Returns the body of PADDING_NEGOTIATE, version 0, without the zeros after it. tor-spec, "Link padding".

    The times are START's, up to 65,535; relays raise them to the consensus's.
    """
    return bytes([0, command]) + ito_low_ms.to_bytes(2, "big") + ito_high_ms.to_bytes(2, "big")


def idle_timeout(padding: Padding, rng: Random) -> int:
    """Returns how many seconds a channel outlives its last circuit: 180 to 270, half with less padding."""
    timeout = IDLE_TIMEOUT + rng.randrange(IDLE_TIMEOUT_SPREAD)
    return timeout // 2 if padding is Padding.REDUCED else timeout


class LinkPadding:
    """Decides for one channel. Driven by time: by `look`, first when the channel opens, then as each says."""

    def __init__(self, padding: Padding, *, link_protocol: int, rng: Random) -> None:
        self._padding = padding
        self._is_known = link_protocol >= FIRST_LINK_PROTOCOL
        self._rng = rng
        self._drawn_for: tuple[float, tuple[int, int] | None] | None = None
        self._due_at = 0.0

    def start(self) -> list[tuple[Command, bytes]]:
        """Returns the cells to send when the channel opens, (command, body), with circuit id 0."""
        if self._padding is Padding.AUTO or not self._is_known:
            return []
        return [(Command.PADDING_NEGOTIATE, encode_padding_negotiate(PaddingCommand.STOP))]

    def look(self, now: float, *, active_at: float, use: Use, params: Mapping[str, int]) -> float | None:
        """None if a PADDING cell is to go now, else when to look again. Times in seconds.

        `active_at` is when a cell last went or came; `params` are the consensus's.
        """
        limits = self._range(use, params)
        if self._drawn_for != (active_at, limits):
            self._drawn_for = (active_at, limits)
            timeout = KEEPALIVE if limits is None else max(self._draw(*limits) / 1000, SHORTEST)
            self._due_at = active_at + timeout
        if self._due_at <= now:
            return None
        # Without padding, only more use or another consensus can make anything due earlier.
        interval = KEEPALIVE if limits is None else max(limits[0] / 1000, SHORTEST)
        return min(self._due_at, now + interval)

    def _range(self, use: Use, params: Mapping[str, int]) -> tuple[int, int] | None:
        """Returns the shortest and the longest silence, in ms; None while there is no padding."""
        first_use = Use.CIRCUITS if parameter(params, "nf_pad_before_usage") else Use.STREAMS
        low = parameter(params, "nf_ito_low")
        high = max(low, parameter(params, "nf_ito_high"))
        if not self._is_known or self._padding is Padding.OFF or use < first_use or high == 0:
            return None
        if self._padding is Padding.REDUCED:
            low_reduced = parameter(params, "nf_ito_low_reduced")
            high_reduced = max(low_reduced, parameter(params, "nf_ito_high_reduced"))
            if low_reduced:  # else C tor takes it that there is no such range
                return max(low, low_reduced), max(high, high_reduced)
        return low, high

    def _draw(self, low: int, high: int) -> int:
        """Draw a silence, in ms. padding-spec, "Padding Cell Timeout Distribution Statistics"."""
        if high == low:
            return low
        return low + max(self._rng.randrange(high - low), self._rng.randrange(high - low))
