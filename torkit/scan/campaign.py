"""A scan: for each relay of a shard a circuit through it, a probe on that, and a row.

    run (workers, as many as may be at once)
      -> Plan.path -> Load, Rate -> build_circuit          up to ATTEMPTS, each by other relays
      -> Probe.run, within its timeout                     once
      -> row -> emit

Nothing of a user's client is in it: no guards, no state, no data directory. The directory is frozen: nothing
is fetched, and the network is asked for nothing but circuits.
"""

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import SystemRandom
from typing import Any, NamedTuple

import trio

from torkit.config import Network
from torkit.directory.directory import Relay
from torkit.directory.positions import Position
from torkit.directory.trust import length_of
from torkit.errors import (
    ChannelClosed,
    ChannelError,
    CircuitClosed,
    InternalError,
    NoPath,
    TimedOut,
    TorkitError,
    code_of,
)
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.build import build_circuit
from torkit.net.circuits.purpose import LOOK_UP
from torkit.net.current import Current
from torkit.net.link.channels import Channels
from torkit.net.link.pump import Pump
from torkit.net.memory import limit_memory
from torkit.paths.choose import check_exit
from torkit.proto.destination import parse_address
from torkit.scan.limits import Load, Rate
from torkit.scan.outcome import Outcome, Probe
from torkit.scan.plan import Path, Plan
from torkit.scan.rows import VERSION, Row
from torkit.scan.unit import Unit
from torkit.scan.way import Way

# Implementation limits.
ATTEMPTS = 3  # circuits for one relay: it is not to blame for what others of its path did
BUILD_TIMEOUT = 20.0  # seconds for each
CLOSE_TIMEOUT = 2.0  # seconds that closing waits for what has been sealed to be sent

CONNECT, CHOOSE, PROBE = "connect", "choose", "probe"  # steps, besides hop1, hop2 and hop3

logger = logging.getLogger(__name__)


class Limits(NamedTuple):
    """How gentle: circuits at once, a second, and at once through any relay; seconds for a probe."""

    at_once: int = 16
    rate: float = 5.0
    per_relay: int = 4
    timeout: float = 30.0


GENTLE = Limits()


class Campaign:
    """What all shards have in common."""

    def __init__(
        self,
        unit: Unit,
        probe: Probe,
        network: Network,
        *,
        seed: str = "",
        position: Position = Position.EXIT,
        limits: Limits = GENTLE,
    ) -> None:
        host, port = probe.target or ("", None)
        self.unit = unit
        self.probe = probe
        self.limits = limits
        self.position = position
        self.testing = network.testing
        self.plan = Plan(
            unit,
            seed=seed,
            position=position,
            port=port,
            is_ipv6=":" in host,
            distinct_subnets=network.distinct_subnets,
        )
        self.is_by_ipv6 = parse_address(host) is not None and ":" in host
        self.head: Row = {
            "version": VERSION,
            "digest": unit.digest,
            "seed": seed,
            "position": position.name.lower(),
            "probe": probe.text,
        }

    def cost(self, count: int) -> str:
        """What a scan of `count` relays takes of the network, and tells it, in a sentence."""
        limits = self.limits
        least = length_of(max(round(count / limits.rate), 1))
        first_hops = self.plan.first_hops
        who = f"{first_hops} relays of the network" if first_hops else "each of them"
        return (
            f"{_relays(count)}, a circuit for each: {limits.rate:g} a second, {limits.at_once} at once,"
            f" {limits.per_relay} through any one relay; that takes {least} at least."
            f" Paths do not begin at your guards: {who} will see this machine's address"
        )

    def check_exit(self, relay: Relay) -> None:
        """Raises NoPath where the relay is to be an exit, and its policy does not allow the probe."""
        if self.position is Position.EXIT:
            target = self.probe.target
            check_exit(relay, None if target is None else target[1], is_ipv6=self.is_by_ipv6)


class Summary:
    """What has been done so far."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()  # of rows that are not ok
        self.ok_count = 0
        self.circuits = 0
        self.sent = self.received = 0
        self.began = time.monotonic()

    @property
    def rows(self) -> int:
        return self.ok_count + self.reasons.total()

    def note(self, row: Row) -> None:
        if row["ok"]:
            self.ok_count += 1
        else:
            self.reasons[row["reason"]] += 1
        self.sent += row["sent"]
        self.received += row["received"]

    def __str__(self) -> str:
        seconds = time.monotonic() - self.began
        failed = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())
        failed = f", {self.reasons.total()} not ({failed})" if failed else ""
        return (
            f"{_relays(self.rows)}: {self.ok_count} ok{failed}; {self.circuits} circuits in {seconds:.1f} s,"
            f" {self.rows / max(seconds, 0.001):.1f} relays a second,"
            f" {self.sent} bytes sent and {self.received} received"
        )


def _relays(count: int) -> str:
    return f"{count} relay{'' if count == 1 else 's'}"


Emit = Callable[[Row], None]


@asynccontextmanager
async def open_scan(campaign: Campaign, emit: Emit) -> AsyncIterator["Scan"]:
    """What looks at relays; each row is given to `emit` at once. Closed with its circuits at the end."""
    limit_memory()
    rng = SystemRandom()
    current = Current(testing=campaign.testing)
    current.use(campaign.unit.directory)
    async with trio.open_nursery() as nursery:
        channels = Channels(nursery, rng, params=current.params)
        nursery.start_soon(Pump.current().wait_fault)
        try:
            yield Scan(campaign, emit, channels, current, rng)
        finally:
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await channels.drain()
            nursery.cancel_scope.cancel()


class Scan:
    """Made by `open_scan`. `has_room` is cleared by whoever can take no more rows for now."""

    def __init__(
        self, campaign: Campaign, emit: Emit, channels: Channels, current: Current, rng: SystemRandom
    ) -> None:
        self.summary = Summary()
        self._campaign = campaign
        self._emit = emit
        self._channels = channels
        self._current = current
        self._rng = rng
        self._load = Load(campaign.limits.per_relay)
        self._rate = Rate(campaign.limits.rate)

    async def run(self, places: Sequence[int], wait_room: Callable[[], Any] | None = None) -> None:
        """Look at the relays at these places in the consensus, in this order, as many at once as may be.

        `wait_room` is awaited before each. Nothing but what `emit` and `wait_room` raise ends it.
        """
        left = iter(places)
        async with trio.open_nursery() as nursery:
            for _ in range(min(self._campaign.limits.at_once, len(places))):
                nursery.start_soon(self._work, left, wait_room)

    async def _work(self, left: Iterator[int], wait_room: Callable[[], Any] | None) -> None:
        for place in left:
            if wait_room is not None:
                await wait_room()
            row = await self._look_at(place)
            self.summary.note(row)
            self._emit(row)

    async def _look_at(self, place: int) -> Row:
        look = _Look(self._campaign, place)
        try:
            await self._look(look)
        except TorkitError as error:
            look.fail(error)
        except Exception as error:
            # A probe of somebody's, or a fault of ours: one row tells it, and the others go on.
            logger.debug("a probe has failed", exc_info=error)
            look.fail(InternalError.ending("a probe", error))
            look.row["message"] = f"{type(error).__name__}: {error}"
        return look.finish()

    async def _look(self, look: "_Look") -> None:
        relay = self._campaign.unit.directory.relay_at(look.place)
        if relay is None:
            look.row |= {
                "reason": "no_microdescriptor",
                "message": "its microdescriptor is not in the directory",
            }
            return
        try:
            self._campaign.check_exit(relay)
        except NoPath as error:
            look.row |= {"reason": "exit_policy", "message": str(error)}
            return
        tried: list[Relay] = []
        for attempt in range(ATTEMPTS):
            path = self._campaign.plan.path(relay, attempt, tried)
            tried += path
            async with self._load.hold(path):
                await self._rate.take()
                look.begin(path)
                self.summary.circuits += 1
                try:
                    circuit = await self._build(path, look)
                except TorkitError as error:
                    look.fail(error)
                    continue
                try:
                    await self._probe(circuit, relay, look)
                finally:
                    circuit.close("its probe is over")
            return

    async def _build(self, path: Path, look: "_Look") -> Circuit:
        try:
            with trio.fail_after(BUILD_TIMEOUT):
                return await build_circuit(
                    self._channels,
                    path,
                    self._current.circuit_settings(),
                    self._rng,
                    purpose=LOOK_UP,
                    begin=look.note_begun,
                )
        except trio.TooSlowError:
            raise TimedOut(f"no circuit within {BUILD_TIMEOUT:g} s") from None
        finally:
            look.note_hops()

    async def _probe(self, circuit: Circuit, relay: Relay, look: "_Look") -> None:
        way = Way(circuit, allow_internal=self._campaign.testing)
        look.begin_probe()
        try:
            with trio.fail_after(self._campaign.limits.timeout):
                look.note_outcome(await self._campaign.probe.run(way, relay))
        except trio.TooSlowError:
            raise TimedOut(f"the probe had not ended within {self._campaign.limits.timeout:g} s") from None
        finally:
            look.row["sent"], look.row["received"] = way.bytes


class _Look:
    """The row of one relay, as it comes about."""

    def __init__(self, campaign: Campaign, place: int) -> None:
        relays = campaign.unit.directory.consensus.relays
        self.place = place
        self._began = trio.current_time()
        self._began_at = self._began
        self._circuit: Circuit | None = None
        self._path: Path = ()
        self.row: Row = campaign.head | {
            "fingerprint": relays.identities[place].hex().upper(),
            "nickname": relays[place].nickname,
            "began": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "ok": False,
            "step": CHOOSE,
            "reason": None,
            "message": None,
            "attempts": 0,
            "hops": [],
            "seconds": 0.0,
            "build_seconds": None,
            "probe_seconds": None,
            "sent": 0,
            "received": 0,
            "result": None,
        }

    def begin(self, path: Path) -> None:
        """A circuit through these relays is begun."""
        self._began_at = trio.current_time()
        self._circuit, self._path = None, path
        self.row |= {"attempts": self.row["attempts"] + 1, "step": CONNECT, "hops": []}

    def note_begun(self, circuit: Circuit) -> None:
        """The first relay is connected to."""
        self._circuit = circuit
        self.row["step"] = "hop1"

    def note_hops(self) -> None:
        """As many hops have been made as there are in this attempt."""
        made = () if self._circuit is None else self._circuit.hops
        seconds = [round(hop.seconds, 6) for hop in made]
        self.row["hops"] = [
            {"fingerprint": relay.fingerprint, "nickname": relay.nickname, "seconds": took}
            for relay, took in zip(self._path, [*seconds, None, None, None], strict=False)
        ]
        if self._circuit is not None:
            self.row["step"] = f"hop{min(len(made) + 1, len(self._path))}"
        self.row["build_seconds"] = round(trio.current_time() - self._began_at, 6)

    def begin_probe(self) -> None:
        self._began_at = trio.current_time()
        self.row |= {"step": PROBE, "reason": None, "message": None}

    def note_outcome(self, outcome: Outcome) -> None:
        self.row |= outcome._asdict()
        if outcome.reason is None:
            self.row |= {"ok": True, "step": None}

    def fail(self, error: TorkitError) -> None:
        """This is why, for now: another attempt may follow."""
        reason = code_of(error)
        if isinstance(error, NoPath):
            reason = "no_path"
        elif self.row["step"] == CONNECT and isinstance(error, ChannelClosed | ChannelError):
            reason = "unreachable"
        elif isinstance(error, CircuitClosed) and error.hop is not None:
            self.row["step"] = f"hop{error.hop}"
        self.row |= {"reason": reason, "message": str(error)}

    def finish(self) -> Row:
        now = trio.current_time()
        if self.row["step"] == PROBE or self.row["ok"]:
            self.row["probe_seconds"] = round(now - self._began_at, 6)
        self.row["seconds"] = round(now - self._began, 6)
        return self.row
