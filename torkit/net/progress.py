"""How far the first start has come: its phase, a percentage that never falls, and the obstacle.

The parts that do the work report it. The start is done with the first circuit; later consensuses do not
count. Tags and percentages are those of control-spec, "Phases from the Bootstrap status event". Where this
client makes one phase of two, it has the tag of the later one.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from errno import EADDRNOTAVAIL, EAFNOSUPPORT, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH
from typing import NamedTuple

import trio

from torkit.directory.trust import length_of
from torkit.errors import (
    CertificateNotCurrent,
    ChannelClosed,
    ChannelError,
    ClockSkewed,
    Filtered,
    HandshakeCut,
    NoNetwork,
    OutOfResources,
    StorageError,
    TimedOut,
    TorkitError,
    Unreachable,
)

_NO_NETWORK = frozenset({EADDRNOTAVAIL, EAFNOSUPPORT, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH})


class Phase(Enum):
    """In ascending order. `tag` is for programs; `summary` tells people what is being done."""

    STARTING = "starting", 0, "starting"
    CONN = "conn", 5, "connecting to a directory server"
    HANDSHAKE = "handshake", 14, "shaking hands with a directory server"
    ONEHOP_CREATE = "onehop_create", 20, "opening a circuit to a directory server"
    LOADING_STATUS = "loading_status", 30, "fetching the consensus"
    LOADING_KEYS = "loading_keys", 40, "fetching certificates to verify the consensus"
    REQUESTING_DESCRIPTORS = "requesting_descriptors", 45, "asking for microdescriptors"
    LOADING_DESCRIPTORS = "loading_descriptors", 50, "fetching microdescriptors"
    ENOUGH_DIRINFO = "enough_dirinfo", 75, "choosing relays"
    AP_CONN = "ap_conn", 80, "connecting to the first relay of a circuit"
    AP_HANDSHAKE = "ap_handshake", 89, "shaking hands with the first relay of a circuit"
    CIRCUIT_CREATE = "circuit_create", 95, "building a circuit"
    DONE = "done", 100, "done"

    def __init__(self, tag: str, percent: int, summary: str) -> None:
        self.tag = tag
        self.percent = percent
        self.summary = summary


# The same steps once there is a directory.
_FOR_CIRCUITS = {Phase.CONN: Phase.AP_CONN, Phase.HANDSHAKE: Phase.AP_HANDSHAKE}


class Progress(NamedTuple):
    """One moment of a start.

    `percent` is 0 to 100. `microdescs` says how many are held and how many the consensus lists, once that
    is known. `error` is what made the last attempt fail, until there is progress again.
    """

    phase: Phase = Phase.STARTING
    percent: int = 0
    microdescs: tuple[int, int] | None = None
    error: TorkitError | None = None

    @property
    def is_done(self) -> bool:
        """Returns whether a circuit has been built."""
        return self.phase is Phase.DONE

    @property
    def summary(self) -> str:
        """What is being done, for people."""
        if self.phase is Phase.LOADING_DESCRIPTORS and self.microdescs is not None:
            return "{}: {} of {}".format(self.phase.summary, *self.microdescs)
        return self.phase.summary

    @property
    def blockage(self) -> str | None:
        """The kind of obstacle, a word for programs; None without one."""
        match self.error:
            case None:
                return None
            case ClockSkewed():
                return "clock"
            case NoNetwork():
                return "no_network"
            case Filtered():
                return "filtered"
            case Unreachable():
                return "unreachable"
            case StorageError():
                return "disk"
            case _:
                return "other"


class Tracker:
    """The progress of one client."""

    def __init__(self, on_change: Callable[[Progress], None] = lambda progress: None) -> None:
        """`on_change` is told of each progress."""
        self.now = Progress()
        self._on_change = on_change
        self._has_changed = trio.Event()

    def reach(self, phase: Phase) -> None:
        """Note that this phase has begun. An earlier phase is a repetition, and no news."""
        if self.now.phase.percent >= Phase.ENOUGH_DIRINFO.percent:
            phase = _FOR_CIRCUITS.get(phase, phase)
        if phase.percent > self.now.phase.percent:
            self._change(self.now._replace(phase=phase, percent=phase.percent, error=None))

    def expect_microdescs(self, held: int, listed: int) -> None:
        """Note how many microdescriptors are held of those that the consensus lists."""
        self.reach(Phase.REQUESTING_DESCRIPTORS)
        if self.now.phase is Phase.REQUESTING_DESCRIPTORS:
            self._change(self.now._replace(microdescs=(held, listed)))

    def add_microdescs(self, count: int) -> None:
        """Note that `count` more microdescriptors have come."""
        self.reach(Phase.LOADING_DESCRIPTORS)
        if self.now.phase is Phase.LOADING_DESCRIPTORS and self.now.microdescs is not None:
            held, listed = self.now.microdescs
            held = min(held + count, listed)
            low, high = Phase.LOADING_DESCRIPTORS.percent, Phase.ENOUGH_DIRINFO.percent
            percent = low + (high - low) * held // max(listed, 1)
            self._change(self.now._replace(percent=percent, microdescs=(held, listed), error=None))

    def block(self, error: TorkitError) -> None:
        """Note why an attempt failed."""
        if not self.now.is_done:
            self._change(self.now._replace(error=error))

    def changes(self) -> "Changes":
        """Returns an iterator: the progress now, and whenever it has changed."""
        return Changes(self)

    async def wait_other_than(self, progress: Progress | None) -> Progress:
        """Wait until the progress is not `progress` any more. Returns the new one."""
        await trio.lowlevel.checkpoint()
        while self.now is progress:
            await self._has_changed.wait()
        return self.now

    def _change(self, progress: Progress) -> None:
        self.now = progress
        self._has_changed.set()
        self._has_changed = trio.Event()
        self._on_change(progress)


class Changes:
    """An asynchronous iterator that ends when the progress is done; may be left at any time.

    A slow reader misses progress that was overtaken, never the newest.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._last: Progress | None = None

    def __aiter__(self) -> "Changes":
        return self

    async def __anext__(self) -> Progress:
        if self._last is not None and self._last.is_done:
            raise StopAsyncIteration
        self._last = await self._tracker.wait_other_than(self._last)
        return self._last


def furthest(failures: Sequence[TorkitError]) -> TorkitError:
    """Returns the failure that says most: the last one of those whose attempts got furthest."""
    return max(reversed(failures), key=_distance)


def diagnose(failures: Sequence[TorkitError]) -> TorkitError:
    """Returns the obstacle, if these attempts at different relays, at least one, all failed."""
    for shortage in failures:
        if isinstance(shortage, OutOfResources):
            return shortage
    failure = furthest(failures)
    if (skewed := _clock_skew(failures)) is not None:
        return skewed
    message = str(failure)
    if len(failures) > 1:
        message = f"none of {len(failures)} relays could be reached: {failure}"
    diagnosis: TorkitError
    is_cut_again = sum(isinstance(one, HandshakeCut) for one in failures) > 1  # a relay may be restarting
    match _distance(failure):
        case 0:
            diagnosis = NoNetwork(
                f"this machine seems to be offline: {failure}", hint="connect it to a network"
            )
        case 1 | 2 if not is_cut_again:
            diagnosis = Unreachable(
                message,
                hint="see whether other programs reach the internet; a firewall may block Tor",
            )
        case 2 | 3 if not isinstance(failure, CertificateNotCurrent):
            diagnosis = Filtered(
                f"what answers does not behave as a relay: {failure}",
                hint="open a web page to see whether this network asks for a login; else it may block Tor",
            )
        case _:
            return failure
    diagnosis.__cause__ = failure
    return diagnosis


def _clock_skew(failures: Sequence[TorkitError]) -> ClockSkewed | None:
    """Returns that our clock is wrong, where all relays that answered, at least two, show another time."""
    answers = [failure for failure in failures if _distance(failure) > 2]
    skews = [failure.skew for failure in answers if isinstance(failure, CertificateNotCurrent)]
    if len(skews) < 2 or len(skews) < len(answers):
        return None
    skew = min(skews, key=abs)
    side = "ahead" if skew > 0 else "behind"
    skewed = ClockSkewed(
        f"the clock of this computer is {length_of(abs(skew))} {side} or more,"
        f" by the certificates of {len(skews)} relays",
        skew=skew,
        hint="set the clock and the time zone",
    )
    skewed.__cause__ = answers[-1]
    return skewed


def _distance(failure: TorkitError) -> int:
    """Returns how far it got: 0 not out of this machine, 1 to no answer, 2 and 3 to one, 4 to a relay."""
    match failure:
        case ChannelClosed(__cause__=OSError(errno=number)) if number in _NO_NETWORK:
            return 0
        case HandshakeCut():
            return 2
        case ChannelClosed() | TimedOut():
            return 1
        case ChannelError():
            return 3
        case _:
            return 4
