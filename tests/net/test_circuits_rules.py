"""What holds of every circuit that is given out, whatever requests, failures and directories came before."""

from collections.abc import Hashable
from typing import Any

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from pool import WEB_ONLY, Pool, directory_of, open_pool
from served import ACCEPT_ALL

from torkit.errors import TorkitError
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.shelves import MAX_DIRTINESS

REQUESTS = st.fixed_dictionaries(
    {
        "isolation": st.sampled_from("ab"),
        "port": st.sampled_from([80, 443, 8080, 22, None]),
        "excluded": st.sampled_from([(), (), (0,), (1,)]),
        "with_path": st.sampled_from([False, False, False, True]),
        "waits": st.booleans(),
    }
)
EVENTS = st.one_of(
    REQUESTS,
    REQUESTS,
    REQUESTS,
    st.tuples(st.just("jump"), st.sampled_from([1.0, MAX_DIRTINESS - 1, MAX_DIRTINESS])),
    st.tuples(st.just("renew"), st.none()),
    st.tuples(st.sampled_from(["retire", "destroy", "refuse"]), st.integers(0, 7)),
    st.tuples(
        st.just("list"), st.sets(st.integers(0, 3)).map(lambda gone: gone if len(gone) == 1 else set())
    ),
)


POLICIES = ["accept 1-65535", "accept 1-65535", str(WEB_ONLY), str(ACCEPT_ALL)]  # of the pool's relays


class Rules:
    """Knows of every circuit what may still be done with it."""

    def __init__(self, pool: Pool, clock: trio.testing.MockClock) -> None:
        self.pool = pool
        self.clock = clock
        self.exits = list(pool.exits)
        self.path = (*pool.path[:2], self.exits[1])
        self.gone: set[bytes] = set()
        self.identity = 0
        self.given: list[Circuit] = []
        self.keys: dict[Circuit, Hashable] = {}
        self.first_given: dict[Circuit, float] = {}
        self.retired: set[Circuit] = set()

    async def ask(
        self, isolation: str, port: int | None, excluded: tuple[int, ...], with_path: bool, waits: bool
    ) -> None:
        identities = {self.exits[n].identity for n in excluded}
        path = self.path if with_path else None
        options: dict[str, Any] = {"isolation": isolation, "port": port, "path": path, "excluded": identities}
        try:
            if waits:
                circuit = await self.pool.acquire(**options)
            else:
                taken = self.pool.take_ready(**options)
                if taken is None:
                    return
                circuit = taken
        except TorkitError:
            return
        now = trio.current_time()
        assert circuit.error is None
        assert circuit not in self.retired
        assert self.keys.setdefault(circuit, (self.identity, isolation, path)) == (
            *(self.identity, isolation, path),
        )
        assert now - self.first_given.setdefault(circuit, now) < MAX_DIRTINESS
        if path is None:
            assert circuit.path[-1].identity not in identities
            assert port is None or circuit.path[-1].policy.accepts(port)
            assert self.gone.isdisjoint(relay.identity for relay in circuit.path)
        else:
            assert circuit.path == path
        self.given.append(circuit)

    async def happen(self, what: str, value: Any) -> None:
        if what == "jump":
            await trio.testing.wait_all_tasks_blocked(0.005)
            self.clock.jump(value)
        elif what == "renew":
            self.identity += 1
            self.retired.update(self.given)
            self.pool.circuits.renew()
        elif what == "refuse":
            exit_identity = self.exits[value % 2].identity
            self.retired.update(c for c in self.given if c.path[-1].identity == exit_identity)
            self.pool.circuits.retire_exit(exit_identity, "a test wants it")
        elif what == "list":
            self.gone = {self.pool.fakes[n].rsa_identity for n in value}
            self.retired.update(c for c in self.given if any(r.identity in self.gone for r in c.path))
            is_open = self.gone.isdisjoint(fake.rsa_identity for fake in self.pool.fakes[:2])
            self.pool.exits[:] = [one for one in self.exits if is_open and one.identity not in self.gone]
            left_out = (self.pool.fakes[n] for n in value)
            self.pool.note_directory(directory_of(self.pool, *left_out, policies=POLICIES))
        elif self.given:
            circuit = self.given[value % len(self.given)]
            if what == "retire":
                self.retired.add(circuit)
                self.pool.circuits.retire(circuit, "a test wants it")
            else:
                circuit.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(EVENTS, min_size=5, max_size=40))
def test_no_circuit_is_given_out_against_a_rule(events: list[Any]) -> None:
    clock = trio.testing.MockClock()

    async def main() -> None:
        async with open_pool((WEB_ONLY, ACCEPT_ALL)) as pool:
            pool.nursery.start_soon(pool.spares.keep)
            rules = Rules(pool, clock)
            for event in events:
                if isinstance(event, dict):
                    await rules.ask(**event)
                else:
                    await rules.happen(*event)

    trio.run(main, clock=clock)
