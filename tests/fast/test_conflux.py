"""Linked circuits in the core: two channels, two scripted legs, and an exit that sends where a test says."""

import itertools
import struct
from collections.abc import Iterator

import pytest
from fast.pair import LAST, Pair
from fast.talk import CGO, CONGESTION_CONTROL, WINDOWS, Talk, failure_of

from torkit._fast.cells import RelayCommand
from torkit._fast.circuit import Circuit
from torkit._fast.conflux import LinkedSet, link
from torkit._fast.events import CircuitFailed, Event, Message, Readable, Writable
from torkit.errors import UsageError
from torkit.proto import messages
from torkit.testing.relay import ignore

KINDS = [CONGESTION_CONTROL, CGO]
DATA_LEN = 488  # fits both formats
CELL = 498  # bytes of a full DATA cell in the format of tor1


def merges(first: int, second: int) -> Iterator[tuple[int, ...]]:
    """Every order in which so many cells of two legs can arrive, as leg numbers."""
    for places in itertools.combinations(range(first + second), second):
        yield tuple(int(place in places) for place in range(first + second))


@pytest.mark.parametrize("kind", KINDS)
def test_every_interleaving_of_two_legs_gives_what_one_would(kind: str) -> None:
    pair = Pair(kind)
    for legs in itertools.product((0, 1), repeat=5):
        for merge in merges(legs.count(0), legs.count(1)):
            stream = pair.stream()
            story = [
                (RelayCommand.CONNECTED, b""),
                (RelayCommand.DATA, b"one "),
                (RelayCommand.DATA, b"two "),
                (RelayCommand.XOFF, messages.encode_xoff()),
                (RelayCommand.END, b"\6"),
            ]
            waiting: list[list[list[bytes]]] = [[], []]
            for leg, (command, body) in zip(legs, story, strict=True):
                waiting[leg].append(pair.held(leg, command, stream.id, body))
            events = [event for leg in merge for event in pair.give(leg, waiting[leg].pop(0))]
            told = [event.command for event in events if isinstance(event, Message)]
            assert told == [RelayCommand.CONNECTED, RelayCommand.XOFF, RelayCommand.END]
            assert (stream.take(), stream.has_ended) == (b"one two ", True)
            assert pair.set.queued_bytes == 0
    assert pair.complaints == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_sink", [False, True])
def test_two_channels_with_equally_many_reads_report_one_stream_each(kind: str, with_sink: bool) -> None:
    """The number of a read was the channel's: the second leg's looked like one already reported."""
    pair = Pair(kind)
    stream = pair.connected()
    first = pair.held(0, RelayCommand.DATA, stream.id, b"a")
    second = pair.held(1, RelayCommand.DATA, stream.id, b"b")
    reads = [len(talk.events) for talk in pair.talks]
    assert [type(event) for event in pair.give(1, second)] == []
    assert [type(event) for event in pair.give(0, first)] == [Readable], reads
    assert [type(event) for event in pair.send(1, RelayCommand.DATA, stream.id, b"c")] == [Readable]
    assert stream.take() == b"abc"


@pytest.mark.parametrize("kind", KINDS)
def test_each_leg_acknowledges_what_came_by_it(kind: str) -> None:
    pair = Pair(kind)
    stream = pair.connected()
    increment = pair.far(0).hops[-1].sendme_inc
    gap = pair.held(0, RelayCommand.DATA, stream.id, bytes(DATA_LEN))  # which stays away
    for _ in range(3 * increment):
        pair.send(1, RelayCommand.DATA, stream.id, bytes(DATA_LEN))
    assert [pair.far(leg).hops[-1].sendmes_received for leg in (0, 1)] == [0, 3]
    assert stream.queued == 0
    pair.give(0, gap)
    assert stream.queued == (3 * increment + 1) * DATA_LEN
    assert pair.complaints == []


def test_a_leg_that_runs_far_ahead_is_acknowledged_later() -> None:
    """Else it would go on bringing as much as it can while the other stands still."""
    pair = Pair()
    stream = pair.connected()
    gap = pair.held(0, RelayCommand.DATA, stream.id, b"first")
    count = 0
    while pair.far(1).hops[-1].sendmes_received == count // pair.far(1).hops[-1].sendme_inc:
        pair.send(1, RelayCommand.DATA, stream.id, bytes(DATA_LEN))
        count += 1
    assert 2 << 20 < pair.set.queued_bytes < 3 << 20
    for _ in range(100):
        pair.send(1, RelayCommand.DATA, stream.id, bytes(DATA_LEN))
    pair.give(0, gap)
    assert pair.set.queued_bytes == 0
    assert pair.far(1).hops[-1].sendmes_received == (count + 100) // pair.far(1).hops[-1].sendme_inc
    assert stream.take(5) == b"first"
    assert pair.complaints == []


@pytest.mark.parametrize(("queued_max", "most"), [(1 << 30, 8 << 20), (100_000, 100_000), (0, 0)])
def test_over_the_bound_the_set_ends_once(queued_max: int, most: int) -> None:
    """Ours, or the consensus' where that is less."""
    pair = Pair(queued_max=queued_max)
    stream = pair.connected()
    pair.held(0, RelayCommand.DATA, stream.id, b"never comes")
    events: list[Event] = []
    reached = 0
    for _ in range(most // DATA_LEN + 100):
        reached = max(reached, pair.set.queued_bytes)
        events += pair.send(1, RelayCommand.DATA, stream.id, bytes(DATA_LEN))
        if pair.set.has_ended:
            break
    assert most - 2 * DATA_LEN < reached <= most
    assert "before what comes first" in str(failure_of(events))
    assert stream.has_ended
    assert pair.set.queued_bytes == 0


@pytest.mark.parametrize("length", [4, 5, 498])
def test_a_switch_may_be_as_long_as_old_exits_make_it(length: int) -> None:
    pair = Pair(CONGESTION_CONTROL)
    stream = pair.connected()
    body = struct.pack(">I", 1).ljust(length, b"\0")
    pair.give(1, [pair.far(1).send(LAST + 1, RelayCommand.CONFLUX_SWITCH, 0, body, hold=True)])
    pair.sent[1] = pair.last
    pair.send(1, RelayCommand.DATA, stream.id, b"x")
    assert stream.take() == b"x"


def cell(
    pair: Pair, leg: int, command: int, body: bytes = b"", *, stream: int = 0, hop: int = LAST
) -> list[Event]:
    return pair.give(leg, [pair.far(leg).send(hop + 1, command, stream, body, hold=True)])


SWITCH_0 = struct.pack(">I", 0)


@pytest.mark.parametrize(
    ("command", "body", "hop", "times"),
    [
        (RelayCommand.CONFLUX_SWITCH, b"\0\0\0", LAST, 1),
        (RelayCommand.CONFLUX_SWITCH, SWITCH_0, LAST, 2),
        (RelayCommand.CONFLUX_SWITCH, SWITCH_0, 1, 1),
        (RelayCommand.CONFLUX_LINK, bytes(50), LAST, 1),
        (RelayCommand.CONFLUX_LINKED, bytes(50), LAST, 1),
        (RelayCommand.CONFLUX_LINKED_ACK, b"", LAST, 1),
        (RelayCommand.TRUNCATED, b"\0", 1, 1),
        (RelayCommand.EXTENDED2, b"", LAST, 1),
        (RelayCommand.SENDME, b"", LAST, 1),
        (RelayCommand.DATA, b"", LAST, 1),
    ],
)
def test_what_no_leg_may_bring_ends_both(command: int, body: bytes, hop: int, times: int) -> None:
    pair = Pair()
    stream = pair.connected()
    pair.send(1, RelayCommand.DATA, stream.id, b"used")
    events = [event for _ in range(times) for event in cell(pair, 1, command, body, hop=hop)]
    assert len([event for event in events if isinstance(event, CircuitFailed)]) == 1
    assert pair.set.has_ended
    assert stream.has_ended
    assert stream.take() == b"used"


def test_a_number_that_has_been_ends_the_set() -> None:
    pair = Pair()
    stream = pair.connected()
    pair.send(0, RelayCommand.DATA, stream.id, b"a")
    # Without a SWITCH the second leg is at number 1, which CONNECTED had.
    events = cell(pair, 1, RelayCommand.DATA, b"again", stream=stream.id)
    assert "whose number has been" in str(failure_of(events))


def test_a_number_that_two_legs_give_ends_the_set() -> None:
    pair = Pair()
    stream = pair.connected()
    gap = pair.held(0, RelayCommand.DATA, stream.id, b"a")
    both = pair.held(1, RelayCommand.DATA, stream.id, b"b")
    pair.give(1, both)
    pair.give(0, gap)
    pair.sent[0] = pair.last - 1
    events = cell(pair, 0, RelayCommand.DATA, b"again", stream=stream.id)
    assert "whose number has been" in str(failure_of(events))


def test_streams_that_are_closed_here_may_still_be_sent_to_in_any_order() -> None:
    pair = Pair()
    stream = pair.connected()
    late = pair.held(0, RelayCommand.DATA, stream.id, b"late")
    pair.set.close_stream(stream, b"\1", 60.0)
    assert pair.send(1, RelayCommand.DATA, stream.id, b"later") == []
    assert pair.send(1, RelayCommand.END, stream.id, b"\6") == []
    assert pair.give(0, late) == []
    assert pair.set.stream_count == 0
    assert not pair.set.has_ended


# --- departing -------------------------------------------------------------------------------------


def test_data_waits_for_the_leg_of_least_delay() -> None:
    pair = Pair(rtts=(0.2, 0.1))
    stream = pair.connected()
    pair.far(1).hops[-1].relay.on_sendme_due = ignore
    data = bytes(1000 * DATA_LEN)
    accepted = stream.put(data)
    assert accepted == 124 * CELL  # its window
    pair.exchange()
    assert set(pair.commands()) == {(1, RelayCommand.BEGIN), (1, RelayCommand.DATA)}
    pair.measure(0, 0.05)
    assert stream.put(data) == 124 * CELL
    assert pair.set.carried(pair.legs[0]) == (124, 1, 0.05)
    pair.exchange()
    switches = [(leg, body) for leg, command, _, body in pair.log if command == RelayCommand.CONFLUX_SWITCH]
    assert switches == [(0, struct.pack(">I", 125))]
    assert pair.set.carried(pair.legs[1]) == (125, 0, 0.1)


def test_a_set_that_fills_goes_by_any_leg_with_room() -> None:
    pair = Pair(fills=True)
    stream = pair.connected()
    for talk in pair.talks:
        talk.relays[-1].on_sendme_due = ignore
    assert stream.put(bytes(1000 * DATA_LEN)) == 2 * 124 * CELL
    pair.exchange()
    assert pair.complaints == []


def test_the_numbers_of_what_is_sent_are_told_at_every_switch() -> None:
    pair = Pair()
    stream = pair.connected()
    order: list[tuple[int, bytes]] = []
    for turn in range(40):
        pair.measure(int(turn % 3 == 0), 0.01)
        pair.measure(int(turn % 3 != 0), 0.02)
        data = bytes([turn]) * (1 + turn)
        assert stream.put(data) == len(data)
        pair.exchange()
    received = [0, 0]
    for leg, command, _, body in pair.log:
        if command == RelayCommand.CONFLUX_SWITCH:
            received[leg] += struct.unpack_from(">I", body)[0]
        elif command in (RelayCommand.BEGIN, RelayCommand.DATA):
            received[leg] += 1
            order.append((received[leg], body))
    assert [number for number, _ in order] == list(range(1, 42))
    assert len({leg for leg, command, _, _ in pair.log if command == RelayCommand.DATA}) == 2


def test_what_is_no_data_waits_for_no_window() -> None:
    pair = Pair()
    stream = pair.connected()
    for talk in pair.talks:
        talk.relays[-1].on_sendme_due = ignore
    stream.put(bytes(1000 * DATA_LEN))
    pair.set.close_stream(stream, b"\1", 60.0)
    pair.exchange()
    assert pair.commands()[-1] == (0, RelayCommand.END)


def test_a_sendme_on_either_leg_lets_streams_try_again() -> None:
    linking = (0.1, 0.2)
    pair = Pair(fills=True, rtts=linking)
    stream = pair.connected()
    stream.put(bytes(1000 * DATA_LEN))
    events = pair.exchange()
    assert {type(event) for event in events} == {Writable}
    assert not {pair.set.carried(leg)[2] for leg in pair.legs} & {0, *linking}


# --- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("leg", [0, 1])
def test_a_set_ends_with_a_leg_that_was_used(leg: int) -> None:
    pair = Pair()
    stream = pair.connected()
    pair.send(1, RelayCommand.DATA, stream.id, b"x")
    pair.talks[leg].core.close_circuit(pair.legs[leg])
    assert (pair.set.has_ended, stream.has_ended) == (True, True)
    assert pair.send(1 - leg, RelayCommand.DATA, stream.id, b"lost") == []
    assert stream.take() == b"x"


def test_a_leg_that_has_carried_nothing_ends_alone() -> None:
    pair = Pair()
    stream = pair.connected()
    pair.talks[1].core.close_circuit(pair.legs[1])
    assert not pair.set.has_ended
    assert pair.set.leg_count == 1
    pair.send(0, RelayCommand.DATA, stream.id, b"x")
    assert stream.take() == b"x"
    pair.talks[0].core.close_circuit(pair.legs[0])
    assert pair.set.has_ended


@pytest.mark.parametrize("is_first", [True, False])
def test_a_set_ends_where_a_message_was_lost_with_a_leg(is_first: bool) -> None:
    """The exit had sent it on a leg that had carried nothing. C tor's exit goes on by the other one."""
    pair = Pair()
    stream = pair.connected()
    pair.held(1, RelayCommand.DATA, stream.id, b"lost")
    events = []
    if is_first:
        assert pair.send(0, RelayCommand.DATA, stream.id, b"x") == []  # it waits
    pair.talks[1].core.close_circuit(pair.legs[1])
    if not is_first:
        assert not pair.set.has_ended
        events = pair.send(0, RelayCommand.DATA, stream.id, b"x")
    assert (pair.set.has_ended, stream.has_ended, stream.take()) == (True, True, b"")
    assert len(events) == (not is_first)  # else the end of the leg tells


def test_a_leg_that_was_lost_is_never_chosen() -> None:
    pair = Pair(rtts=(0.3, 0.1))
    pair.talks[1].core.close_circuit(pair.legs[1])
    stream = pair.connected()
    assert stream.put(bytes(1000 * DATA_LEN)) == 124 * CELL
    pair.exchange()
    assert {leg for leg, _ in pair.commands()} == {0}
    assert pair.set.carried(pair.legs[1]) == (0, 0, 0.1)  # as it was lost
    assert cell(pair, 0, RelayCommand.CONFLUX_LINK)  # its owner is told by the leg that is left
    assert (pair.set.has_ended, pair.legs[0].has_ended) == (True, True)


def test_a_leg_that_only_a_switch_has_come_by_was_used() -> None:
    pair = Pair()
    pair.connected()
    cell(pair, 1, RelayCommand.CONFLUX_SWITCH, struct.pack(">I", 1))
    pair.talks[1].core.close_circuit(pair.legs[1])
    assert pair.set.has_ended


def test_who_may_be_a_leg() -> None:
    talk, other = Talk(hops=[CGO] * 3), Talk(hops=[WINDOWS] * 3)
    first, second, short = talk.circuit(), talk.circuit(), talk.circuit(2)
    used, ended, windows = talk.circuit(), talk.circuit(), other.circuit()
    used.open_stream(LAST)
    ended.end()
    empty = talk.core.open_circuit(0x80000001, 1, 8)
    wrong: list[list[Circuit]] = [
        [],
        [first, first],
        [first, short],
        [first, used],
        [first, ended],
        [first, windows],
        [first, empty],
    ]
    for circuits in wrong:
        with pytest.raises(UsageError):
            link(circuits, [0.1] * len(circuits), fills=False)
    with pytest.raises(UsageError):
        link([first, second], [0.1], fills=False)
    linked = link([first, second], [0.1, 0.2], fills=False)
    with pytest.raises(UsageError):
        link([first], [0.1], fills=False)
    with pytest.raises(UsageError):
        linked.open_stream(LAST - 1)
    for command in (RelayCommand.BEGIN_DIR, RelayCommand.EXTEND2, RelayCommand.DROP):
        with pytest.raises(UsageError):
            linked.send(LAST, command, 0, b"")
    with pytest.raises(UsageError):
        linked.carried(short)
    with pytest.raises(TypeError):
        LinkedSet()
