"""A client over memory: streams end as torkit's own do, and the test plays the peer."""

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from random import Random
from types import SimpleNamespace
from typing import NamedTuple, cast

import trio
import trio.testing
from network_docs import authorities, consensus, relays

from torkit.client import Tor
from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory, Relay
from torkit.errors import EndReason, StreamClosed
from torkit.events import LegCarried
from torkit.net.circuit.circuit import HopInfo
from torkit.net.journal import Listener
from torkit.net.monitor.status import Status
from torkit.net.progress import Phase, Progress
from torkit.paths.choose import choose_path
from torkit.paths.constraints import Constraints


class StreamBroken(StreamClosed, trio.BrokenResourceError):
    """As torkit.net.circuit.stream raises it."""


@dataclass
class FakeCircuit:
    """A circuit that was built: a tenth of a second for each hop."""

    path: tuple[Relay, ...]
    is_closed: bool = False

    @property
    def hops(self) -> tuple[HopInfo, ...]:
        return (HopInfo("ntor", "tor1", "fixed", 100, 0.1),) * len(self.path)

    def close(self, why: str = "") -> None:
        self.is_closed = True


@dataclass(eq=False)
class FakeSet:
    """Two circuits that were linked, in 0.2 and 0.3 s."""

    legs: tuple[FakeCircuit, FakeCircuit]
    is_closed: bool = False

    def carried(self) -> tuple[LegCarried, ...]:
        return LegCarried(1, 0, 0, 0.2), LegCarried(2, 0, 0, 0.3)

    def close(self, why: str = "") -> None:
        self.is_closed = True


class FakeStream(trio.abc.Stream):
    """One stream. The test reads and writes `peer`, ends it with `end`, and sees our END in `has_ended`."""

    def __init__(self) -> None:
        self._near, self.peer = trio.testing.memory_stream_pair()
        self._reason: EndReason | None = None
        self.has_ended = trio.Event()
        self.circuit = FakeCircuit(())

    @property
    def path(self) -> tuple[Relay, ...]:
        return self.circuit.path

    @property
    def paths(self) -> tuple[tuple[Relay, ...], ...]:
        return (self.path,)

    async def end(self, reason: EndReason = EndReason.DONE) -> None:
        self._reason = reason
        await self.peer.send_eof()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._reason is not None:
            await trio.lowlevel.checkpoint()
            raise StreamBroken(f"the stream ended with {self._reason.name}", reason=self._reason)
        await self._near.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._near.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if data := await self._near.receive_some(max_bytes):
            return data
        assert self._reason is not None
        if self._reason is not EndReason.DONE:
            raise StreamBroken(f"the stream ended with {self._reason.name}", reason=self._reason)
        return b""

    async def aclose(self) -> None:
        self.has_ended.set()
        await self._near.aclose()


@dataclass
class FakeAnswer:
    kind: str
    value: str


class FakeRequest(NamedTuple):
    """One stream that is asked for."""

    connect: Callable[[], Awaitable[FakeStream]]

    def begin(self) -> None:
        """No circuit is ever ready."""


@dataclass
class FakeTor:
    """Records what was asked for; streams arrive in `streams`."""

    failure: Exception | None = None
    is_silent: bool = False
    stuck_at: Progress | None = None  # of a start that comes to no end
    answers: Sequence[FakeAnswer] = ()
    asked: list[tuple[object, ...]] = field(default_factory=list)
    paths: list[tuple[Relay, ...] | None] = field(default_factory=list)  # that streams were to take
    circuits: list[FakeCircuit] = field(default_factory=list)
    sets: list[FakeSet] = field(default_factory=list)
    identities: int = 1

    @property
    def network(self) -> SimpleNamespace:
        """A public one: internal addresses are refused."""
        return SimpleNamespace(testing=False)

    @cached_property
    def directory(self) -> Directory:
        """Nine relays: made once, for the tests that look at it."""
        relay_docs = relays(9)
        microdescs = [relay_doc.microdesc() for relay_doc in relay_docs]
        return Directory(
            parse_consensus(consensus(relay_docs, authorities())),
            {sha256(microdesc).digest(): microdesc for microdesc in microdescs},
        )

    def __post_init__(self) -> None:
        self._opened, self.streams = trio.open_memory_channel[FakeStream](1_000)

    def request(
        self, host: str, port: int, *, isolation: Hashable = None, path: tuple[Relay, ...] | None = None
    ) -> FakeRequest:
        return FakeRequest(partial(self.connect, host, port, isolation=isolation, path=path))

    async def connect(
        self,
        host: str,
        port: int,
        *,
        isolation: Hashable = None,
        path: tuple[Relay, ...] | None = None,
    ) -> FakeStream:
        self.asked.append((host, port, isolation))
        self.paths.append(path)
        await self._answer_as_told()
        stream = FakeStream()
        stream.circuit = FakeCircuit(path or self.choose_path(Constraints(port=port)))
        await self._opened.send(stream)
        return stream

    async def resolve(
        self, host: str, *, isolation: Hashable = None, path: tuple[Relay, ...] | None = None
    ) -> Sequence[FakeAnswer]:
        self.asked.append((host, isolation))
        await self._answer_as_told()
        return self.answers

    def listen(self, listener: Listener) -> None:
        """Nothing happens that could be told."""

    def status(self) -> Status:
        return Status(self.progress, 9, None, 1, (), (), 0, 0)

    def new_identity(self) -> None:
        self.identities += 1

    @property
    def progress(self) -> Progress:
        return self.stuck_at or Progress(Phase.DONE, 100)

    async def wait_ready(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.stuck_at is not None:
            await trio.sleep_forever()

    async def progress_changes(self) -> AsyncIterator[Progress]:
        yield Progress()
        await self.wait_ready()
        yield Progress(Phase.DONE, 100)

    def choose_path(self, constraints: Constraints) -> tuple[Relay, ...]:
        return choose_path(self.directory, constraints, Random(1))

    async def build_circuit(self, path: tuple[Relay, ...] | None = None) -> FakeCircuit:
        await self._answer_as_told()
        self.circuits.append(FakeCircuit(path or self.choose_path(Constraints())))
        return self.circuits[-1]

    async def build_linked_circuit(self) -> FakeSet:
        await self._answer_as_told()
        self.sets.append(FakeSet((FakeCircuit(self.choose_path(Constraints())),) * 2))
        return self.sets[-1]

    async def _answer_as_told(self) -> None:
        if self.is_silent:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure


def as_tor(fake: FakeTor) -> Tor:
    """For what takes a client. test_fakes.py holds that the fake's methods take what the client's do."""
    return cast(Tor, fake)
