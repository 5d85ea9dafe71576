"""Faults on command at a scripted relay, in memory: every verb at each of the three levels."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fast.talk import CGO, CONGESTION_CONTROL, WINDOWS, Talk, failure_of

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.circuit import Circuit
from torkit._fast.events import ControlCell
from torkit._fast.stream import Stream
from torkit.testing.relay import FakeStream, Fault, encode_cell, encode_versions, fresh

PAGE = Path(__file__).parents[1] / "docs" / "testing.md"


class Told:
    """A circuit with a stream; the exit says one, two, three on it."""

    def __init__(self, kind: str = WINDOWS) -> None:
        self.talk = Talk(hops=[kind] * 3)
        self.guard, self.middle, self.exit = self.talk.relays
        self.circuit: Circuit = self.talk.circuit()
        self.stream: Stream = self.talk.stream(self.circuit)
        self.far: FakeStream = self.talk.far_stream(self.circuit, self.stream)

    def tell(self) -> bytes:
        for word in (b"one", b"two", b"three"):
            self.far.data(word)
        self.talk.exchange()
        return self.stream.take()


@pytest.mark.parametrize("kind", [WINDOWS, CONGESTION_CONTROL, CGO], ids=["windows", "congestion", "CGO"])
@pytest.mark.parametrize(
    ("verb", "heard"),
    [
        (lambda second: second.drop(), b"onethree"),
        (lambda second: second.delay(5), b"onethree"),
        (lambda second: second.duplicate(), b"onetwotwothree"),
        (lambda second: second.flood(4), b"onetwotwotwotwothree"),
        (lambda second: second.swap(), b"onethreetwo"),
        (lambda second: second.cut(), b"onetthree"),
        (lambda second: second.cut(2), b"onetwthree"),
        (lambda second: second.cut(0), b"onethree"),
        (lambda second: second.corrupt(), b"one\x74\xf7\x6fthree"),
        (lambda second: second.corrupt(23), b"onetwnthree"),
        (lambda second: second.lie(bytes.upper), b"oneTWOthree"),
        (lambda second: second.stall(), b"one"),
    ],
)
def test_a_message_that_goes_wrong(kind: str, verb: Callable[[Fault], Fault], heard: bytes) -> None:
    told = Told(kind)
    fault = verb(told.exit.sending(RelayCommand.DATA, nth=2))
    assert told.tell() == heard
    assert fault.count == 1
    assert told.talk.complaints == []


def test_what_is_late_comes_when_its_time_has_come() -> None:
    told = Told()
    told.exit.sending(RelayCommand.DATA, nth=2).delay(5)
    assert told.tell() == b"onethree"
    ((seconds, call),) = told.talk.link.delayed
    assert seconds == 5
    call()
    told.talk.exchange()
    assert told.stream.take() == b"two"


def test_a_lie_ends_where_its_cell_does() -> None:
    told = Told()
    told.exit.sending(RelayCommand.DATA, nth=2).lie(lambda body: body * 1000)
    assert told.tell() == b"one" + (b"two" * 1000)[:498] + b"three"
    told.guard.sending(Command.RELAY).lie(lambda body: body + b"beyond")
    assert told.tell() == b"onetwothree"


def test_a_step_on_every_message_or_on_one_circuit() -> None:
    told = Told()
    other = told.talk.circuit()
    told.exit.sending(RelayCommand.DATA, nth=None, circuit=told.talk.far_end(other)).drop()
    assert told.tell() == b"onetwothree"
    told.exit.sending(RelayCommand.DATA, nth=None).drop()
    assert told.tell() == b""


def test_what_a_relay_hears_may_go_wrong_too() -> None:
    told = Told()
    fault = told.exit.receiving(RelayCommand.DATA, nth=2).swap()
    for word in (b"one", b"two", b"three"):
        told.stream.put(word)
        told.talk.exchange()
    assert (bytes(told.far.received), fault.count) == (b"onethreetwo", 1)


def test_a_hop_that_has_fallen_silent_is_silent_on_that_circuit_alone() -> None:
    told = Told()
    other = told.talk.circuit()
    stream = told.talk.stream(other)
    told.exit.sending(RelayCommand.DATA).stall()
    assert told.tell() == b""
    told.far.end()
    told.talk.exchange()
    assert not told.stream.has_ended
    told.talk.far_stream(other, stream).data(b"still here")
    told.talk.exchange()
    assert stream.take() == b"still here"


def test_a_connection_that_has_fallen_silent_is_read_cell_by_cell_when_it_hears_again() -> None:
    told = Told()
    told.guard.receiving(Command.RELAY_EARLY).stall()
    told.stream.put(b"x" * 5000)
    for at in range(0, len(data := told.talk.core.data_to_send()), 300):
        told.talk.link.receive(data[at : at + 300])
    assert told.far.received == b""
    told.guard.faults.clear()
    other = told.talk.circuit()
    assert told.talk.stream(other).is_open


def test_destroy_in_the_place_of_a_message() -> None:
    told = Told()
    told.exit.sending(RelayCommand.DATA, nth=2).destroy(9)
    for word in (b"one", b"two", b"three"):
        told.far.data(word)
    (destroyed,) = [event for event in told.talk.exchange() if isinstance(event, ControlCell)]
    assert (destroyed.circ_id, destroyed.command, destroyed.body[0]) == (told.circuit.id, Command.DESTROY, 9)
    assert told.stream.take() == b"one"


@pytest.mark.parametrize(
    "verb",
    [
        lambda second: second.drop(),
        lambda second: second.duplicate(),
        lambda second: second.swap(),
        lambda second: second.corrupt(),
        lambda second: second.cut(),
    ],
)
def test_a_sealed_cell_that_goes_wrong_ends_its_circuit(verb: Callable[[Fault], Fault]) -> None:
    told = Told()
    fault = verb(told.guard.sending(Command.RELAY, nth=2))
    for word in (b"one", b"two", b"three", b"four"):
        told.far.data(word)
    events = told.talk.exchange()
    assert failure_of(events)
    assert fault.count == 1


def test_an_answer_to_a_handshake_that_an_impostor_guesses() -> None:
    talk = Talk(1)
    (impostor,) = fresh(talk.relays)
    fault = talk.relays[0].sending(Command.CREATED2).impersonate(impostor)
    with pytest.raises(Exception, match="handshake"):
        talk.circuit()
    assert fault.count == 1


@pytest.mark.parametrize(
    "verb", [lambda rest: rest.drop(), lambda rest: rest.corrupt(), lambda rest: rest.swap()]
)
def test_bytes_that_go_wrong_break_the_framing_or_a_cell(verb: Callable[[Fault], Fault]) -> None:
    told = Told()
    fault = verb(told.guard.sending(byte=told.talk.link.sent_count + 300))
    for word in (b"one", b"two", b"three", b"four"):
        told.far.data(word)
    told.talk.exchange()
    assert fault.count == 1
    assert told.stream.take() != b"onetwothreefour"


def test_a_connection_that_ends_at_a_byte_says_nothing_behind_it() -> None:
    relay = fresh(Talk(1).relays)[0]
    relay.sending(byte=100).close(abrupt=True)
    link = relay.link()
    assert len(link.receive(encode_versions([4, 5]))) == 100
    assert link.closed
    assert link.abrupt
    assert link.receive(encode_cell(0, Command.NETINFO)) == b""


def test_a_cell_of_the_link_that_never_comes() -> None:
    relay = fresh(Talk(1).relays)[0]
    relay.sending(Command.VERSIONS).drop()
    relay.sending(Command.AUTH_CHALLENGE).duplicate()
    answer = relay.link().receive(encode_versions([4, 5]))
    assert answer[4] == Command.CERTS
    rest = answer[7 + int.from_bytes(answer[5:7], "big") :]
    assert [rest[4], rest[7 + 36 + 4]] == [Command.AUTH_CHALLENGE] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        lambda relay: relay.sending(),
        lambda relay: relay.sending(Command.CERTS, byte=3),
        lambda relay: relay.sending(Command.CERTS, nth=0),
        lambda relay: relay.sending(Command.CERTS).drop().drop(),
        lambda relay: relay.sending(Command.NETINFO).impersonate(relay),
    ],
)
def test_a_story_that_makes_no_sense_is_refused(wrong: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        wrong(fresh(Talk(1).relays)[0])


def test_without_what_it_computes_with_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['cryptography'] = None; import torkit.testing.relay"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "pip install 'torkit[testing]'" in ended.stderr


def test_the_examples_of_the_page_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), {})
