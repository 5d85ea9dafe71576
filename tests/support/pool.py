"""A pool of circuits over scripted relays: one guard, one middle, two exits."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from random import Random
from typing import Any

import network_docs
import trio
import trio.testing
from served import ACCEPT_ALL, doc_of, fresh_relays, relay_of, serve

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory, Relay
from torkit.directory.microdesc import REJECT_ALL, PortPolicy, split_microdescs
from torkit.errors import CircuitClosed, NoPath
from torkit.learnt.build_times import BuildTimes
from torkit.learnt.path_bias import Counts, PathBias
from torkit.learnt.predicted_ports import PredictedPorts
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.build import Builder, Choice
from torkit.net.circuits.guards import GUARD_CHECK, GuardTry
from torkit.net.circuits.pool import Circuits
from torkit.net.circuits.purpose import (
    LOOK_UP,
    AskDirectory,
    ExitByLegs,
    ExitTo,
    ForOnion,
    Need,
    Path,
    Shared,
)
from torkit.net.circuits.shelves import Entry
from torkit.net.circuits.spares import Spares
from torkit.net.current import Current
from torkit.net.link.channels import Channels
from torkit.params import parameter
from torkit.paths.choose import may_go_on
from torkit.proto.padding import Padding
from torkit.testing.directory import encode_microdescs, make_authorities
from torkit.testing.relay import FakeCircuit, FakeRelay, RelayCell, answer_extend2

WEB_ONLY = PortPolicy(True, ((80, 80), (443, 443)))


def purpose_of(port: int | None, *, is_ipv6: bool = False) -> Shared:
    """For a stream to `port`, or for a look-up."""
    return LOOK_UP if port is None else ExitTo(port, is_ipv6=is_ipv6)


@dataclass
class Pool:
    """A pool over one guard, one middle and two exits; `chosen` counts the paths asked for."""

    fakes: list[FakeRelay]
    exits: list[Relay]
    channels: Channels
    nursery: trio.Nursery
    builder: Builder = field(init=False)
    circuits: Circuits = field(init=False)
    spares: Spares = field(init=False)
    current: Current = field(default_factory=lambda: Current(testing=True))
    chosen: list[tuple[int | None, bool, Collection[bytes]]] = field(default_factory=list)
    first_hops: list[tuple[bytes, bool | None]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)  # of the guard
    verdicts: list[bool | None] = field(default_factory=list)  # on guards to come; then all are good

    @property
    def path(self) -> tuple[Relay, Relay, Relay]:
        return (relay_of(self.fakes[0]), relay_of(self.fakes[1]), self.exits[0])

    @property
    def server(self) -> AskDirectory:
        return AskDirectory(self.path[0])

    @property
    def guard(self) -> "Told":
        """A handle of the first relay, for tests that build a circuit by hand."""
        return Told(self, self.path[0].identity)

    def need(
        self,
        isolation: object = "a",
        port: int | None = 80,
        excluded: Collection[bytes] = (),
        *,
        path: Path | None = None,
        is_ipv6: bool = False,
    ) -> Need:
        purpose = purpose_of(port, is_ipv6=is_ipv6)
        return Need(purpose, isolation, self.circuits.identity, path, frozenset(excluded))

    async def acquire(self, *args: Any, give_up_at: float = inf, **options: Any) -> Circuit:
        circuit = await self.circuits.acquire(self.need(*args, **options), give_up_at)
        assert isinstance(circuit, Circuit)
        return circuit

    def take_ready(self, *args: Any, **options: Any) -> Circuit | None:
        circuit = self.circuits.take_ready(self.need(*args, **options))
        assert circuit is None or isinstance(circuit, Circuit)
        return circuit

    async def build(self, path: Path | None = None) -> Entry:
        """A clean circuit, through relays that we choose if no path is given."""
        return await self.circuits.build(LOOK_UP, path=path)

    def note_directory(self, directory: Directory) -> None:
        self.current.use(directory)

    # --- the chooser of its paths ---------------------------------------------------------------

    def choose(self, purpose: Shared | ForOnion, excluded: Collection[bytes]) -> Choice:
        port, is_ipv6 = (purpose.port, purpose.is_ipv6) if isinstance(purpose, ExitTo) else (None, False)
        self.chosen.append((port, is_ipv6, excluded))
        for relay in self.exits:
            policy = relay.policy6 if is_ipv6 else relay.policy
            if relay.identity not in excluded and (port is None or policy.accepts(port)):
                path = (*self.path[:2], relay)
                guard = Told(self, path[0].identity, self.verdicts)
                guard.watch = PathBias({path[0].identity: self.counts}.get).watch(path[0].identity)
                return Choice(path, guard)
        raise NoPath("no exit for that")

    def may_go_on(self, path: Path) -> bool:
        return self.current.known is None or may_go_on(self.current.known, path)

    def choose_leg(self, purpose: ExitByLegs, exit_relay: Relay, others: Collection[Path]) -> Choice:
        raise AssertionError("no exit here can link circuits")

    def given(self, path: Path) -> Choice:
        return Choice(path, Told(self, path[0].identity), is_given=True)


class Told(GuardTry):
    """Keeps what it is told in `pool.first_hops`: whether a guard was reached, None where it was given up."""

    def __init__(self, pool: Pool, identity: bytes, verdicts: list[bool | None] | None = None) -> None:
        self._pool = pool
        self._identity = identity
        self._verdicts = verdicts

    def reached(self) -> None:
        self._pool.first_hops.append((self._identity, True))

    def failed(self) -> None:
        self._pool.first_hops.append((self._identity, False))

    def given_up(self) -> None:
        self._pool.first_hops.append((self._identity, None))

    async def wait_usable(self) -> None:
        while self._verdicts:
            verdict = self._verdicts.pop(0)
            if verdict is None:
                await trio.sleep(GUARD_CHECK)
            elif verdict:
                return
            else:
                raise CircuitClosed("a better guard may be reachable again")


# No circuits to learn from are wanted, and the timeouts are those of the beginning.
learnt_enough = partial(parameter, {"cbtdisabled": 1})


def directory_of(
    pool: "Pool", *left_out: FakeRelay, flags: str = "Exit", policies: Sequence[str] = ("accept 1-65535",) * 4
) -> Directory:
    """One that lists the pool's relays but for some, with these flags and each with its policy."""
    docs = [
        doc_of(fake, f"fake{n}", flags=flags, policy=policy)
        for n, (fake, policy) in enumerate(zip(pool.fakes, policies, strict=True))
        if fake not in left_out
    ]
    microdescs = split_microdescs(encode_microdescs(docs))
    consensus = parse_consensus(network_docs.consensus(docs, make_authorities(1)))
    return Directory(consensus, {digest: text for digest, text, _ in microdescs})


@asynccontextmanager
async def open_pool(
    policies: tuple[PortPolicy, PortPolicy] = (ACCEPT_ALL, ACCEPT_ALL),
    times: BuildTimes | None = None,
    predicted: PredictedPorts | None = None,
) -> AsyncIterator[Pool]:
    fakes = fresh_relays(4)
    async with serve(fakes[0]), trio.open_nursery() as nursery:
        # A padded channel is looked at every 1.5 s, and a patient clock stops there each time.
        channels = Channels(nursery, Random(), padding=Padding.OFF)

        exits = [
            relay_of(fake, policy=policy, policy6=REJECT_ALL)
            for fake, policy in zip(fakes[2:], policies, strict=True)
        ]
        pool = Pool(fakes, exits, channels, nursery)
        times = times or BuildTimes(learnt_enough)
        pool.builder = Builder(channels, pool, pool.current, Random(), nursery, times)
        pool.circuits = Circuits(pool.builder, predicted or PredictedPorts(), Random(), nursery)
        pool.spares = Spares(pool.circuits, times, pool.current, None)
        pool.current.add_reader(pool.circuits.note_directory)
        yield pool
        nursery.cancel_scope.cancel()
    assert [fake.complaints for fake in fakes] == [[]] * 4


def failing_at_first(count: int) -> Callable[[FakeCircuit, int, RelayCell], None]:
    """EXTEND2 answered by DESTROY so many times, and then as it should be."""
    failures: list[int] = []

    def answer(circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        if len(failures) < count:
            failures.append(number)
            circuit.destroy()
        else:
            answer_extend2(circuit, number, cell)

    return answer


async def settle() -> None:
    """Until nothing moves any more."""
    await trio.testing.wait_all_tasks_blocked(0.1)
