"""The state of a client at one moment. It is made when somebody asks, and costs nothing otherwise."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from torkit._fast.stream import carried
from torkit.net.circuit.circuit import Circuit
from torkit.net.progress import Progress

if TYPE_CHECKING:
    from torkit.net.parts import Parts


class CircuitStatus(NamedTuple):
    """One circuit.

    `purpose` is control-spec's. `state` is `building`, `clean` (nobody has used it), `dirty` (in use), `worn`
    (takes no more streams), or `open` where requests do not share it. `age` is in seconds, `path` nicknames.
    """

    circuit: int
    purpose: str
    state: str
    age: float
    path: tuple[str, ...]
    streams: int


class GuardStatus(NamedTuple):
    """One primary guard, the most preferred first.

    `reachable` is `yes`, `no`, or `maybe` where it was not tried; `is_confirmed` once it has carried traffic.
    """

    nickname: str
    fingerprint: str
    reachable: str
    is_confirmed: bool


class Status(NamedTuple):
    """`received` and `sent` are bytes of all streams of this process since its start.

    `valid_until` is the consensus's, in seconds since the epoch, and None while there is no directory.
    """

    progress: Progress
    relays: int
    valid_until: int | None
    connections: int
    circuits: tuple[CircuitStatus, ...]
    guards: tuple[GuardStatus, ...]
    received: int
    sent: int

    @property
    def streams(self) -> int:
        """How many streams are open, or being opened."""
        return sum(circuit.streams for circuit in self.circuits)

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values, under the names that torkit-status(1) lists."""
        return {
            "progress": self.progress.percent,
            "summary": self.progress.summary,
            "relays": self.relays,
            "valid_until": self.valid_until,
            "connections": self.connections,
            "streams": self.streams,
            "received": self.received,
            "sent": self.sent,
            "guards": [guard._asdict() for guard in self.guards],
            "circuits": [circuit._asdict() for circuit in self.circuits],
        }


def look_at(parts: "Parts") -> Status:
    """Returns the state of a client now."""
    directory = parts.current.known
    received, sent = carried()
    channels = parts.channels.running
    circuits = [_circuit_status(parts, one) for channel in channels for one in channel.circuits]
    return Status(
        progress=parts.journal.progress.now,
        relays=0 if directory is None else len(directory),
        valid_until=None if directory is None else directory.consensus.valid_until,
        connections=len(channels),
        circuits=tuple(sorted(circuits)),
        guards=tuple(_guards(parts)),
        received=received,
        sent=sent,
    )


def _circuit_status(parts: "Parts", circuit: Circuit) -> CircuitStatus:
    linked = circuit.linked
    state = parts.circuits.state_of(linked or circuit) or "open"
    # The streams of linked circuits are counted once.
    streams = circuit if linked is None else linked if linked.paths[0] is circuit.path else None
    return CircuitStatus(
        circuit.id,
        circuit.purpose if linked is None else linked.purpose,
        state if circuit.is_built else "building",
        round(trio.current_time() - circuit.began_at, 1),
        circuit.names(lambda relay: relay.nickname),
        0 if streams is None else streams.stream_count,
    )


def _guards(parts: "Parts") -> Iterator[GuardStatus]:
    directory = parts.current.known
    for guard in parts.guards.guards.primary:
        relay = None if directory is None else directory.relay(guard.identity)
        yield GuardStatus(
            nickname="" if relay is None else relay.nickname,
            fingerprint=guard.identity.hex().upper(),
            reachable=guard.reachability.value,
            is_confirmed=guard.confirmed_on is not None,
        )
