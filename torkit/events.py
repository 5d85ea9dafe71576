"""The events of a client's circuits, streams, guards and directory, as records for listeners.

Circuits and streams are told apart by small numbers, counted from 1. Relays are written
`$FINGERPRINT~nickname`, as in control-spec; but the last one of a circuit for an onion service may tell which
service that is, and is `unnamed`. No record names a destination.
"""

from typing import NamedTuple

CLOSED_HERE = "closed_here"  # the code of what was ended by its user, or for want of one


class CircuitLaunched(NamedTuple):
    """A circuit was begun. `purpose` is one of control-spec's, such as GENERAL or HS_CLIENT_HSDIR."""

    circuit: int
    purpose: str


class CircuitExtended(NamedTuple):
    """A hop of a circuit was made; `hop` counts from 1."""

    circuit: int
    hop: int
    relay: str


class CircuitBuilt(NamedTuple):
    """Every hop of a circuit was made."""

    circuit: int
    path: tuple[str, ...]


class CircuitsLinked(NamedTuple):
    """Circuits to one exit carry the streams of one set from now on, whose number is `circuit`."""

    circuit: int
    legs: tuple[int, ...]
    rtts: tuple[float, ...]  # seconds that linking took, for each leg


class LegCarried(NamedTuple):
    """What one circuit of a set has carried: counted messages, and its last delay in seconds."""

    circuit: int
    sent: int
    received: int
    rtt: float


class SetEnded(NamedTuple):
    """A set of linked circuits has ended; `legs` are those it had not lost before. Each leg ends, too."""

    circuit: int
    reason: str
    legs: tuple[LegCarried, ...]


class CircuitEnded(NamedTuple):
    """A circuit was closed, here or elsewhere, or could not be built. `code`: errors.code_of, CLOSED_HERE."""

    circuit: int
    reason: str
    code: str


class StreamNew(NamedTuple):
    """A stream or a look-up was asked for."""

    stream: int


class StreamAttached(NamedTuple):
    """An exit was asked for the stream, on this circuit."""

    stream: int
    circuit: int


class StreamSucceeded(NamedTuple):
    """The exit has connected the stream, or answered the look-up."""

    stream: int


class StreamFailed(NamedTuple):
    """An attempt has failed. Another one may follow on another circuit, unless the client has left."""

    stream: int
    reason: str
    code: str  # as of CircuitEnded


class StreamEnded(NamedTuple):
    """The last event of a stream or a look-up."""

    stream: int
    reason: str
    code: str  # as of CircuitEnded


class GuardChanged(NamedTuple):
    """`status` is UP, DOWN, or GOOD when its first circuit may carry traffic."""

    guard: str
    status: str


class DirectoryChanged(NamedTuple):
    """Circuits go by another directory. `valid_after` is its consensus's, in seconds since the epoch."""

    valid_after: int
    relay_count: int


class ProgressMade(NamedTuple):
    """The progress of the start. `tag` is control-spec's, `problem` names the obstacle."""

    percent: int
    tag: str
    summary: str
    problem: str | None


class EventsLost(NamedTuple):
    """Tells a listener that was too slow how many events it has lost."""

    lost: int


Event = (
    CircuitLaunched
    | CircuitExtended
    | CircuitBuilt
    | CircuitsLinked
    | SetEnded
    | CircuitEnded
    | StreamNew
    | StreamAttached
    | StreamSucceeded
    | StreamFailed
    | StreamEnded
    | GuardChanged
    | DirectoryChanged
    | ProgressMade
    | EventsLost
)
