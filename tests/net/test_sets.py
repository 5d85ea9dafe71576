"""How many sets of linked circuits are begun, when, and how often their legs. The builder is a stand-in."""

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from torkit.errors import CircuitClosed, NoPath, NotPossible, TorkitError
from torkit.learnt.path_bias import UNWATCHED
from torkit.learnt.predicted_ports import PredictedPorts
from torkit.net.circuits.purpose import ExitByLegs
from torkit.net.circuits.sets import PATH_RETRY, SET_RETRY, Sets
from torkit.net.circuits.turns import Turns
from torkit.params import default_param


class Builder:
    """Fails every leg with `error`, or waits for ever where there is none."""

    def __init__(self, error: TorkitError | None) -> None:
        self.error = error
        self.launched: list[Any] = []

    def choose(self, purpose: ExitByLegs) -> Any:
        self.launched.append(None)
        return SimpleNamespace(path=("guard", "middle", "exit"), guard=SimpleNamespace(watch=None))

    def choose_leg(self, purpose: ExitByLegs, exit_relay: Any, others: list[Any]) -> Any:
        self.launched.append((exit_relay, others))
        return SimpleNamespace(path=("guard2", "middle2", "exit"), guard=SimpleNamespace(watch=None))

    async def build(self, choice: Any, purpose: ExitByLegs) -> Any:
        assert choice.guard.watch is UNWATCHED
        await trio.lowlevel.checkpoint()
        if self.error is None:
            await trio.sleep_forever()
        raise self.error


class Circuits:
    def __init__(self) -> None:
        self.turns = Turns()
        self.predicted = PredictedPorts()
        self.clean: list[Any] = []
        self.linked_count = 0
        self.is_short = trio.Event()

    def put_up(self, *_: object) -> None:
        raise AssertionError("nothing was linked")


def sets_of(builder: Any, circuits: Any, nursery: trio.Nursery, share: float = 1.0) -> Sets:
    directory = SimpleNamespace(memo=lambda *_: share)
    current: Any = SimpleNamespace(known=directory, param=default_param)
    return Sets(circuits, builder, current, nursery)


def expect(circuits: Circuits, port: int = 443) -> None:
    circuits.predicted.note(port, now=trio.current_time(), rng=Random(1))


async def test_three_sets_are_begun_at_once_and_no_more(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        circuits, builder = Circuits(), Builder(None)
        sets = sets_of(builder, circuits, nursery)
        expect(circuits)
        sets.keep()
        sets.keep()
        await trio.testing.wait_all_tasks_blocked()
        assert len(builder.launched) == 3 * 2
        assert builder.launched.count(None) == 3  # the first leg of a set decides which exit
        assert ("exit", [("guard", "middle", "exit")]) in builder.launched
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("reason", ["no port", "no exit", "enough", "many"])
async def test_no_set_is_begun(reason: str, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        circuits, builder = Circuits(), Builder(None)
        sets = sets_of(builder, circuits, nursery, share=0.0 if reason == "no exit" else 1.0)
        if reason != "no port":
            expect(circuits)
        if reason == "enough":
            circuits.clean = [SimpleNamespace(is_linked=True)] * 3
        if reason == "many":
            circuits.linked_count = 10
        sets.keep()
        await trio.testing.wait_all_tasks_blocked()
        assert builder.launched == []


async def test_a_set_is_given_up_after_some_legs(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        builder = Builder(CircuitClosed("a relay closed the circuit"))
        sets = sets_of(builder, Circuits(), nursery)
        with pytest.raises(CircuitClosed):
            await sets.build(ExitByLegs(443))
        assert len(builder.launched) == 2 + 3


async def test_no_set_is_built_against_the_consensus() -> None:
    async with trio.open_nursery() as nursery:
        builder = Builder(CircuitClosed("a relay closed the circuit"))
        sets = sets_of(builder, Circuits(), nursery)
        sets._current.param = lambda name: 0 if name == "cfx_enabled" else default_param(name)  # type: ignore[method-assign]  # a stand-in's
        with pytest.raises(NotPossible):
            await sets.build(ExitByLegs(443))
        assert builder.launched == []


async def test_where_there_is_no_path_no_further_leg_is_tried(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        builder = Builder(NoPath("no exit"))
        sets = sets_of(builder, Circuits(), nursery)
        with pytest.raises(NoPath):
            await sets.build(ExitByLegs(443))
        assert len(builder.launched) == 2


async def test_where_there_is_no_second_path_nothing_is_built(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with one guard allowed: else a first leg would be built again and again, for nothing."""
    builder = Builder(None)

    def refuse(*_: object) -> None:
        raise NoPath("no second guard")

    monkeypatch.setattr(builder, "choose_leg", refuse)
    monkeypatch.setattr(builder, "build", refuse)
    async with trio.open_nursery() as nursery:
        circuits = Circuits()
        sets = sets_of(builder, circuits, nursery)
        expect(circuits)
        sets.keep()
        await circuits.is_short.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert len(builder.launched) == 3  # chosen, one for each set
        assert sets.keep() == trio.current_time() + PATH_RETRY


async def test_after_a_set_that_failed_there_is_a_rest(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        circuits, builder = Circuits(), Builder(CircuitClosed("a relay closed the circuit"))
        sets = sets_of(builder, circuits, nursery)
        expect(circuits)
        sets.keep()
        await circuits.is_short.wait()
        await trio.testing.wait_all_tasks_blocked()
        count = len(builder.launched)
        assert sets.keep() == trio.current_time() + SET_RETRY
        await trio.sleep(SET_RETRY)
        sets.keep()
        await trio.testing.wait_all_tasks_blocked()
        assert len(builder.launched) > count
