"""Requests that fail while relays are stopped and killed at random: `torkit socks` beside C tor's client.

    python -m bench.bench_chaos

Status 1 where torkit's share is the larger. Both clients are on one private network and have their turns,
ROUNDS each. In a turn PEOPLE ask for small pages for SECONDS, one request after the other, with another
isolation after every few. Meanwhile a relay that is no authority is stopped or killed every few seconds, and
is back some seconds later, the same ones in both clients' turns. What is under way then has PATIENCE left.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from time import monotonic

import trio

from bench.load import FAILURES, Route, fetch
from bench.processes import Client, allow_many_files, running_far_end, running_torkit, say, start_c_tor
from bench.table import Line, table
from torkit.testnet import Options, Testnet, run_testnet

PEOPLE = 50
SECONDS = 30.0  # of each turn
ROUNDS = 2
PATIENCE = 60.0  # seconds
LENGTH = 4096  # bytes of a page
REQUESTS_PER_ISOLATION = 5
PAUSE = 0.5  # seconds between one's requests
EVERY, GONE = (2.0, 4.0), (3.0, 8.0)  # seconds between faults; how long a relay is away


class Tally:
    """What became of the requests of a client."""

    def __init__(self) -> None:
        self.answered = 0
        self.failed = 0
        self.unfinished = 0

    @property
    def share(self) -> float:
        """How many of a hundred were refused or broke."""
        return 100 * self.failed / max(self.answered + self.failed, 1)


async def measure() -> Line:
    allow_many_files()
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torkit-bench-")))
        say("a network whose relays come and go")
        net = await stack.enter_async_context(run_testnet(scratch / "network", Options(exits=5, middles=6)))
        port = await stack.enter_async_context(running_far_end())
        torkit = await stack.enter_async_context(running_torkit(net, scratch))
        c_tor = await start_c_tor(net, scratch)
        tallies = {torkit: Tally(), c_tor: Tally()}
        for number in range(ROUNDS):
            for client, tally in tallies.items():
                say(f"turn {number} of {client.name}")
                await _turn(net, client, port, tally, number)
    ours, theirs = tallies.values()
    return Line(
        "relays stopped and killed: requests refused",
        "%",
        ours.share,
        theirs.share,
        "C tor",
        ratio=ours.share / theirs.share if theirs.share else float(ours.share > 0),
        bar=1,
        note=f"of {ours.answered + ours.failed} and {theirs.answered + theirs.failed};"
        f" {ours.unfinished} and {theirs.unfinished} had no answer {PATIENCE:.0f} s after the end",
    )


async def _turn(net: Testnet, client: Client, port: int, tally: Tally, number: int) -> None:
    route = Route(client.socks, port)
    ends_at = monotonic() + SECONDS
    under_way = 0

    async def person(who: int) -> None:
        nonlocal under_way
        count = 0
        while monotonic() < ends_at:
            isolation = f"{number}-{who}-{count // REQUESTS_PER_ISOLATION}"
            under_way += 1
            try:
                await fetch(route, LENGTH, isolation)
            except FAILURES:
                tally.failed += 1
            else:
                tally.answered += 1
            under_way -= 1
            count += 1
            await trio.sleep(PAUSE)

    with trio.move_on_after(SECONDS + PATIENCE):
        async with trio.open_nursery() as people:
            people.start_soon(_disturb, net, Random(number))
            for who in range(PEOPLE):
                people.start_soon(person, who)
    tally.unfinished += under_way


def _faults(relays: Sequence[str], rng: Random) -> Iterator[tuple[float, str, bool, float]]:
    """When, in seconds from the start, who is gone; whether it is killed, or stopped; for how long."""
    back_at = dict.fromkeys(relays, 0.0)
    at = 0.0
    while at < SECONDS:
        who = rng.choice([relay for relay in relays if back_at[relay] <= at])
        seconds = rng.uniform(*GONE)
        back_at[who] = at + seconds + 2  # a relay takes a moment to start
        yield at, who, rng.random() < 0.5, seconds
        at += rng.uniform(*EVERY)


async def _disturb(net: Testnet, rng: Random) -> None:
    """Stop or kill one relay after the other. All are back at the end."""

    async def away(at: float, nickname: str, is_killed: bool, seconds: float) -> None:
        await trio.sleep(at)
        pid = net.relay(nickname).pid
        assert pid is not None
        with trio.CancelScope(shield=True):
            if is_killed:
                await net.kill_relay(nickname)
                await trio.sleep(seconds)
                await net.start_relay(nickname)
            else:
                os.kill(pid, signal.SIGSTOP)
                await trio.sleep(seconds)
                os.kill(pid, signal.SIGCONT)

    relays = sorted(relay.nickname for relay in net.relays if not relay.is_authority)
    async with trio.open_nursery() as nursery:
        for fault in _faults(relays, rng):
            nursery.start_soon(away, *fault)


if __name__ == "__main__":
    line = trio.run(measure)
    print(table([line]))
    sys.exit(not line.is_met)
