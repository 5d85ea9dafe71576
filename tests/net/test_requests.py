"""One stream or look-up, tried on one circuit after another."""

from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from served import Arrivals, serve_network
from served_tor import exit_of, exits_of, expire, refuse_by_policy, refuse_once, served_tor, until_replaced

from torkit._fast.cells import RelayCommand
from torkit.client import open_tor
from torkit.errors import (
    EndReason,
    NoPath,
    StreamClosed,
    TimedOut,
    UsageError,
)
from torkit.learnt.path_bias import State
from torkit.net.circuit.stream import Stream
from torkit.net.circuits.purpose import ExitTo, Need
from torkit.net.circuits.request import ATTEMPT_TIMEOUTS, MAX_FAILURES, STREAM_TIMEOUT
from torkit.paths.constraints import Constraints
from torkit.proto.padding import Padding
from torkit.testing.relay import (
    FakeCircuit,
    FakeStream,
    answer_begin,
    answer_extend2,
    ignore,
)


async def test_a_stream_refused_for_the_exits_fault_is_tried_at_another(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        refused = refuse_once(network)
        stream = await tor.connect("web.test", 80)
        assert refused[0].hop.relay.rsa_identity != stream.path[-1].identity


@pytest.mark.parametrize("reason", [EndReason.CONNECTREFUSED, EndReason.TIMEOUT, EndReason.CONNRESET])
async def test_a_refusal_by_the_destination_is_not_repeated(tmp_path: Path, reason: EndReason) -> None:
    async with served_tor(tmp_path) as (tor, network):
        begun: list[FakeStream] = []

        def refuse(stream: FakeStream) -> None:
            begun.append(stream)
            stream.end(reason)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = refuse
        with pytest.raises(StreamClosed) as caught:
            await tor.connect("web.test", 80)
        assert caught.value.reason is reason
        assert len(begun) == 1


async def test_when_no_exit_is_left_the_last_refusal_is_told(tmp_path: Path) -> None:
    """It was hidden behind the NoPath that there is no third exit."""
    async with served_tor(tmp_path, exits=2) as (tor, network):
        for exit_relay in exits_of(network):
            exit_relay.on_begin = lambda stream: stream.end(EndReason.RESOLVEFAILED)
        with pytest.raises(StreamClosed) as caught:
            await tor.connect("web.test", 80)
        assert caught.value.reason is EndReason.RESOLVEFAILED


async def test_a_port_that_no_exit_allows_is_no_path(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, _):
        with pytest.raises(NoPath, match="exit policy"):
            await tor.connect("web.test", 25)


async def failed(stream: Stream | None) -> Stream:
    """A stream that was begun, once it has failed."""
    assert stream is not None
    with pytest.raises(StreamClosed):
        await stream.wait_connected()
    return stream


async def test_a_stream_is_begun_at_once_only_where_a_circuit_is_ready(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, _):
        stream = await tor.connect("web.test", 80, isolation="a")
        begun = tor.request("web.test", 443, isolation="a").begin()
        assert begun is not None
        assert begun.circuit is stream.circuit
        await begun.wait_connected()
        assert tor.request("web.test", 25, isolation="a").begin() is None  # no exit allows that port
        tor.new_identity()
        assert tor.request("web.test", 80, isolation="a").begin() is None


async def test_a_first_attempt_that_an_exit_refused_goes_on_at_another(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        await tor.connect("web.test", 80)
        refuse_once(network)
        request = tor.request("web.test", 80)
        begun = await failed(request.begin())
        stream = await request.connect()
        assert stream.path[-1] != begun.path[-1]


async def test_a_first_attempt_that_the_destination_refused_is_not_repeated(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        await tor.connect("web.test", 80)
        asked: list[FakeStream] = []

        def refuse(stream: FakeStream) -> None:
            asked.append(stream)
            stream.end(EndReason.CONNECTREFUSED)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = refuse
        request = tor.request("web.test", 80)
        await failed(request.begin())
        with pytest.raises(StreamClosed) as caught:
            await request.connect()
        assert caught.value.reason is EndReason.CONNECTREFUSED
        assert len(asked) == 1


async def test_a_first_attempt_that_is_not_answered_retires_its_circuit(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        first = await tor.connect("web.test", 80)
        silent = next(fake for fake in exits_of(network) if fake.rsa_identity == first.path[-1].identity)
        silent.on_begin = ignore
        request = tor.request("web.test", 80)
        assert request.begin() is not None
        stream = await request.connect()
        assert stream.path[-1] != first.path[-1]
        again = tor.request("web.test", 80).begin()
        assert again is not None
        assert again.circuit is stream.circuit


async def test_a_look_up_has_no_stream(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, _):
        request = tor.request("web.test", None)
        with pytest.raises(UsageError):
            request.begin()
        with pytest.raises(UsageError):
            await request.connect()


async def test_a_request_goes_on_under_the_identity_that_it_began_with(tmp_path: Path) -> None:
    async with served_tor(tmp_path, exits=3) as (tor, _):
        await tor.connect("web.test", 80)
        request = tor.request("web.test", 80)
        begun = request.begin()
        assert begun is not None
        tor.new_identity()
        after = await tor.connect("web.test", 80)
        begun.circuit.close()
        stream = await request.connect()
        assert stream.circuit not in (begun.circuit, after.circuit)
        again = await tor.connect("web.test", 80)
        assert again.circuit is after.circuit


async def test_a_circuit_destroyed_under_a_stream_is_replaced(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        destroyed: list[FakeStream] = []

        def destroy_once(stream: FakeStream) -> None:
            if destroyed:
                answer_begin(stream)
            else:
                destroyed.append(stream)
                stream.circuit.destroy()

        for exit_relay in exits_of(network):
            exit_relay.on_begin = destroy_once
        assert (await tor.connect("web.test", 80)).circuit.error is None
        assert len(destroyed) == 1


@pytest.mark.parametrize("exits", [1, 2])
@pytest.mark.parametrize(
    "fail", [lambda stream: stream.circuit.destroy(), ignore, lambda stream: stream.end(EndReason.MISC)]
)
async def test_an_exit_is_asked_once_more_where_no_other_can_be_reached(
    tmp_path: Path, patient_clock: trio.testing.MockClock, fail: Callable[[FakeStream], object], exits: int
) -> None:
    """One attempt at it had failed, and the stream waited until it was too old for exits that were dead."""
    async with served_tor(tmp_path, padding=Padding.OFF, exits=exits) as (tor, network):
        alive = exit_of(network, await tor.connect("other.test", 80))
        for relay in network.relays.values():
            relay.known = [one for one in relay.known if one is alive or one not in exits_of(network)]
        tor.new_identity()  # no circuit to the others is left
        failed_once: list[FakeStream] = []

        def fail_once(stream: FakeStream) -> None:
            if failed_once:
                answer_begin(stream)
            else:
                failed_once.append(stream)
                fail(stream)

        alive.on_begin = fail_once
        started = trio.current_time()
        await tor.connect("web.test", 80)
        assert failed_once
        assert trio.current_time() - started < STREAM_TIMEOUT / 2


async def test_an_exit_that_never_answers_is_left_for_another(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with served_tor(tmp_path, padding=Padding.OFF) as (tor, network):
        silent: list[FakeStream] = []

        def silent_once(stream: FakeStream) -> None:
            if silent:
                answer_begin(stream)
            else:
                silent.append(stream)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = silent_once
        started = trio.current_time()
        stream = await tor.connect("web.test", 80)
        assert trio.current_time() - started >= ATTEMPT_TIMEOUTS[0]
        assert stream.path[-1].identity != silent[0].hop.relay.rsa_identity
        again = await tor.connect("web.test", 80)
        assert again.path[-1].identity != silent[0].hop.relay.rsa_identity


async def test_a_stream_tried_again_after_a_new_identity_shares_nothing_with_later_ones(
    tmp_path: Path,
) -> None:
    """It took the new identity for its own."""
    async with served_tor(tmp_path) as (tor, network):
        begun = Arrivals()
        for exit_relay in exits_of(network):
            exit_relay.on_begin = begun
        streams: list[Stream] = []

        async def connect() -> None:
            streams.append(await tor.connect("web.test", 80))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            refused = await begun.next()
            tor.new_identity()
            for exit_relay in exits_of(network):
                exit_relay.on_begin = answer_begin
            refused.end(EndReason.MISC)
        assert (await tor.connect("web.test", 80)).circuit is not streams[0].circuit


async def test_exits_that_never_answer_time_out(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with served_tor(tmp_path, padding=Padding.OFF, exits=3) as (tor, network):
        ended = Arrivals()
        for exit_relay in exits_of(network):
            exit_relay.on_begin, exit_relay.on_end = ignore, ended
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await tor.connect("web.test", 80)
        assert trio.current_time() - started >= sum(ATTEMPT_TIMEOUTS)
        for _ in ATTEMPT_TIMEOUTS:
            await ended.next()


async def test_a_stream_is_tried_until_it_is_too_old(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with served_tor(tmp_path, padding=Padding.OFF, exits=10) as (tor, network):
        begun: list[FakeStream] = []

        def ignore_and_note(stream: FakeStream) -> None:
            if stream.target == ("web.test", 80):  # and no probe
                begun.append(stream)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = ignore_and_note
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await tor.connect("web.test", 80)
        assert STREAM_TIMEOUT <= trio.current_time() - started < STREAM_TIMEOUT + ATTEMPT_TIMEOUTS[-1]
        assert len(begun) == 9  # two of 10 s, seven of 15 s


async def test_a_stream_that_exits_refuse_is_not_tried_for_ever(tmp_path: Path) -> None:
    async with served_tor(tmp_path, exits=MAX_FAILURES + 1) as (tor, network):
        begun: list[FakeStream] = []

        def refuse(stream: FakeStream) -> None:
            begun.append(stream)
            stream.end(EndReason.RESOLVEFAILED)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = refuse
        with pytest.raises(StreamClosed):
            await tor.connect("web.test", 80)
        assert len(begun) == MAX_FAILURES


def answer_error(kind: int) -> Callable[[FakeCircuit, int, int, str], None]:
    """RESOLVED with one error. tor-spec, "Remote hostname lookup"."""

    def answer(circuit: FakeCircuit, number: int, stream_id: int, name: str) -> None:
        body = bytes([kind, 1]) + b"?" + bytes(4)
        circuit.send(number, RelayCommand.RESOLVED, stream_id, body)

    return answer


@pytest.mark.parametrize(("kind", "attempts"), [(0xF0, 2), (0xF1, 1)])
async def test_a_look_up_that_fails_at_an_exit_is_tried_at_another(
    tmp_path: Path, kind: int, attempts: int
) -> None:
    async with served_tor(tmp_path) as (tor, network):
        asked = Arrivals(answer_error(kind))
        for exit_relay in exits_of(network):
            exit_relay.on_resolve = asked
        with pytest.raises(StreamClosed) as caught:
            await tor.resolve("name.test")
        assert caught.value.reason is EndReason.RESOLVEFAILED
        assert len({circuit.hops[2].relay.rsa_identity for circuit, *_ in asked.all()}) == attempts


@pytest.mark.parametrize("reason", [EndReason.MISC, EndReason.NOROUTE, EndReason.RESOLVEFAILED])
async def test_a_circuit_whose_exit_fails_takes_no_further_stream(tmp_path: Path, reason: EndReason) -> None:
    async with served_tor(tmp_path) as (tor, network):
        first = await tor.connect("web.test", 80)
        exit_relay = exit_of(network, first)
        exit_relay.on_begin = lambda stream: stream.end(reason)
        second = await tor.connect("web.test", 80)
        exit_relay.on_begin = answer_begin
        assert first.path[-1] != second.path[-1]
        assert first.circuit.error is None
        exit_of(network, second).on_begin = lambda stream: stream.end(reason)
        third = await tor.connect("web.test", 80)
        assert third.path[-1] == first.path[-1]
        assert third.circuit is not first.circuit


@pytest.mark.parametrize("reason", [EndReason.TORPROTOCOL, EndReason.DESTROY])
async def test_an_end_that_tells_of_broken_cells_ends_its_circuit(tmp_path: Path, reason: EndReason) -> None:
    async with served_tor(tmp_path) as (tor, network):
        first = await tor.connect("web.test", 80)
        exit_relay = exit_of(network, first)
        exit_relay.on_begin = lambda stream: stream.end(reason)
        second = await tor.connect("web.test", 80)
        assert first.circuit.error is not None
        assert first.path[-1] != second.path[-1]
        counts = tor._parts.guards.guards.path_bias_of(first.path[0].identity)
        assert counts is not None
        assert counts.unusable_circuits == 1  # though a stream was answered


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (EndReason.CONNECTREFUSED, State.USE_SUCCEEDED),
        (EndReason.INTERNAL, State.USE_ATTEMPTED),
        (EndReason.MISC, State.USE_ATTEMPTED),
        (EndReason.EXITPOLICY, State.USE_ATTEMPTED),
        (EndReason.TORPROTOCOL, State.COUNTED),
    ],
)
async def test_what_an_exit_answers_says_whether_the_guard_let_the_circuit_work(
    tmp_path: Path, reason: EndReason, state: State
) -> None:
    async with served_tor(tmp_path) as (tor, network):
        for exit_relay in exits_of(network):
            exit_relay.on_begin = lambda stream: stream.end(reason)
        taken = await tor._parts.circuits.acquire(Need(ExitTo(80)))
        assert taken.watch.needs_probe
        with pytest.raises(StreamClosed):
            await tor.connect("web.test", 80)
        assert taken.watch.state is state
        counts = tor._parts.guards.guards.path_bias_of(taken.path[0].identity)
        assert counts is not None
        assert (counts.unusable_circuits > 0) is (state is State.COUNTED)


async def test_streams_that_are_answered_and_those_given_up_are_told_apart(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with served_tor(tmp_path) as (tor, network):
        first = await tor.connect("web.test", 80)
        assert first.circuit.watch.state is State.USE_SUCCEEDED
        exit_of(network, first).on_begin = ignore
        second = await tor.connect("web.test", 80)
        assert first.circuit.watch.needs_probe  # later ones were perhaps held back
        assert second.circuit.watch.state is State.USE_SUCCEEDED


async def test_a_guard_that_fails_too_often_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served_tor(tmp_path) as (tor, _):
        guard = (await tor.connect("web.test", 80)).path[0]
        counts = tor._parts.guards.guards.path_bias_of(guard.identity)
        assert counts is not None
        counts.circ_attempts += 151
        for isolation in range(4):
            await tor.connect("web.test", 80, isolation=isolation)
        message = f"guard {guard.fingerprint} fails extremely often"
        assert [message in record.getMessage() for record in caplog.records].count(True) == 1


async def test_an_exit_that_refused_a_target_is_not_asked_for_it_again(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        first = await tor.connect("other.test", 80)
        exit_relay = exit_of(network, first)
        exit_relay.on_begin = begun = Arrivals(refuse_by_policy)
        second = await tor.connect("Web.test", 80)
        assert second.path[-1] != first.path[-1]
        for _ in range(8):
            await tor.connect("web.test", 80)
        assert len(begun.all()) == 1
        with trio.fail_after(
            10
        ):  # another isolation learns by itself: its choices tell nothing of this one's
            for isolation in count():
                await tor.connect("web.test", 80, isolation=isolation)
                if begun.all():
                    break
        exit_relay.on_begin = answer_begin
        exit_of(network, second).on_begin = refuse_by_policy
        assert (await tor.connect("other.test", 80)).circuit is first.circuit
        exit_of(network, second).on_begin = answer_begin
        tor.new_identity()  # and nobody can tell from the exits which targets were before
        exit_relay.on_begin = begun = Arrivals(answer_begin)
        with trio.fail_after(10):
            for isolation in count():
                await tor.connect("web.test", 80, isolation=isolation)
                if begun.all():
                    break


async def test_exits_that_all_refused_a_target_are_asked_again(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        begun = Arrivals(refuse_by_policy)
        for exit_relay in exits_of(network):
            exit_relay.on_begin = begun
        for _ in range(2):
            with pytest.raises(StreamClosed) as caught:
                await tor.connect("web.test", 80)
            assert caught.value.reason is EndReason.EXITPOLICY
            assert len({stream.hop.relay.rsa_identity for (stream,) in begun.all()}) == 2
        for exit_relay in exits_of(network):
            exit_relay.on_begin = answer_begin
        await tor.connect("web.test", 80)


@pytest.mark.parametrize("reason", [EndReason.EXITPOLICY, EndReason.HIBERNATING, EndReason.RESOURCELIMIT])
async def test_an_exit_that_wants_no_streams_gets_none_before_the_next_consensus(
    tmp_path: Path, patient_clock: trio.testing.MockClock, reason: EndReason
) -> None:
    async with serve_network() as network:
        new = network.service.consensus
        expire(network)
        async with open_tor(network=network.config, data_dir=tmp_path) as tor:
            await tor.wait_ready()
            old = tor.directory
            first = await tor.connect("other.test", 80)
            exit_relay = exit_of(network, first)
            exit_relay.on_begin = begun = Arrivals(lambda stream: stream.end(reason))
            for isolation in range(4):
                await tor.connect("web.test", 443, isolation=isolation)
                await tor.connect("other.test", 80, isolation=isolation)
            assert len(begun.all()) <= 1
            exit_relay.on_begin = begun = Arrivals(answer_begin)
            network.service.consensus = new
            await until_replaced(tor, old)
            with trio.fail_after(600):
                for isolation in count():
                    await tor.connect("web.test", 80, isolation=isolation)
                    if begun.all():
                        break


async def test_exits_that_all_want_no_streams_are_asked_again(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        for exit_relay in exits_of(network):
            exit_relay.on_begin = lambda stream: stream.end(EndReason.RESOURCELIMIT)
        with pytest.raises(StreamClosed):
            await tor.connect("web.test", 80)
        for exit_relay in exits_of(network):
            exit_relay.on_begin = answer_begin
        await tor.connect("web.test", 80)


async def test_refusals_by_policy_are_followed_to_many_exits(tmp_path: Path) -> None:
    async with served_tor(tmp_path, exits=6) as (tor, network):
        begun: list[FakeStream] = []

        def refuse_five(stream: FakeStream) -> None:
            begun.append(stream)
            (refuse_by_policy if len(begun) <= 5 else answer_begin)(stream)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = refuse_five
        await tor.connect("web.test", 80)
        assert len({stream.hop.relay.rsa_identity for stream in begun}) == 6


async def test_a_path_whose_exit_refuses_is_not_tried_again(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        begun = Arrivals(refuse_by_policy)
        for exit_relay in exits_of(network):
            exit_relay.on_begin = begun
        with pytest.raises(StreamClosed):
            await tor.connect("web.test", 80, path=tor.choose_path(Constraints(port=80)))
        assert len(begun.all()) == 1


async def test_a_name_of_a_private_address_is_not_tried_elsewhere(tmp_path: Path) -> None:
    async with serve_network() as network:
        begun = Arrivals(lambda stream: refuse_by_policy(stream, "192.168.0.1"))
        for exit_relay in exits_of(network):
            exit_relay.on_begin = begun
        for testing in (False, True):  # on a private network all are
            config = network.config._replace(testing=testing)
            async with open_tor(network=config, data_dir=tmp_path) as tor:
                await tor.wait_ready()
                with pytest.raises(StreamClosed) as caught:
                    await tor.connect("web.test", 80)
            assert str(caught.value.address) == "192.168.0.1"
            assert len(begun.all()) == (2 if testing else 1)


async def test_only_attempts_that_time_out_lengthen_the_next(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with served_tor(tmp_path, exits=5) as (tor, network):
        begun: list[float] = []

        def refuse_two(stream: FakeStream) -> None:
            begun.append(trio.current_time())
            if len(begun) < 3:
                stream.end(EndReason.MISC)
            elif len(begun) == 5:
                answer_begin(stream)

        for exit_relay in exits_of(network):
            exit_relay.on_begin = refuse_two
        await tor.connect("web.test", 80)
        waits = [after - before for before, after in pairwise(begun[2:])]
        assert waits == pytest.approx(ATTEMPT_TIMEOUTS[:2], abs=1)


async def test_a_stream_waits_for_circuits_until_it_is_too_old(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with served_tor(tmp_path) as (tor, network):
        tor.new_identity()
        for fake in network.relays.values():
            fake.on_extend2 = ignore
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await tor.connect("web.test", 80)
        assert trio.current_time() - started == pytest.approx(STREAM_TIMEOUT, abs=1)


async def test_a_stream_waits_while_circuits_cannot_be_built(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    """It was refused after eight attempts, within a second."""
    async with served_tor(tmp_path, padding=Padding.OFF) as (tor, network):
        tor.new_identity()
        guards = [fake for name, fake in network.relays.items() if name.startswith("guard")]
        for fake in guards:
            fake.on_extend2 = lambda circuit, number, cell: circuit.destroy()
        started = trio.current_time()

        async def recover() -> None:
            await trio.sleep(STREAM_TIMEOUT - 30)
            for fake in guards:
                fake.on_extend2 = answer_extend2

        async with trio.open_nursery() as nursery:
            nursery.start_soon(recover)
            await tor.connect("web.test", 80)
        assert trio.current_time() - started < STREAM_TIMEOUT


async def test_a_connect_given_up_sends_end(tmp_path: Path) -> None:
    async with served_tor(tmp_path) as (tor, network):
        begun, ended = Arrivals(), Arrivals()
        for exit_relay in exits_of(network):
            exit_relay.on_begin, exit_relay.on_end = begun, ended
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tor.connect, "web.test", 80)
            far = await begun.next()
            nursery.cancel_scope.cancel()
        assert (await ended.next())[0] is far
