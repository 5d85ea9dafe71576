"""Random faults at random steps of two circuits of one channel, in memory: what the core makes of them.

It never raises; what a stream gives is the beginning of what its exit has sealed for it; a fault of one
circuit leaves the other alone, unless it is the channel's.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from fast.talk import CGO, CONGESTION_CONTROL, WINDOWS, Talk
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.circuit import Circuit
from torkit._fast.events import ChannelFailed, CircuitFailed, ControlCell, Event
from torkit._fast.stream import Stream
from torkit.testing.relay import FakeCircuit, Fault

VERBS: list[Callable[[Fault], Fault]] = [
    lambda step: step.drop(),
    lambda step: step.delay(1),
    lambda step: step.duplicate(),
    lambda step: step.flood(30),
    lambda step: step.swap(),
    lambda step: step.cut(),
    lambda step: step.cut(0),
    lambda step: step.corrupt(),
    lambda step: step.corrupt(0),
    lambda step: step.lie(lambda body: body + b"\xff" * 3),
    lambda step: step.lie(lambda body: b"\xff" * len(body)),
    lambda step: step.stall(),
]
MESSAGES = [RelayCommand.CONNECTED, RelayCommand.DATA, RelayCommand.SENDME, RelayCommand.END]
HEARD = [RelayCommand.BEGIN, RelayCommand.DATA, RelayCommand.SENDME]
DATA = bytes(range(256)) * 210  # a SENDME's worth
FEW = DATA[:5000]  # of the oracle's CGO, which is slow


class Wrong(NamedTuple):
    """One fault: where, at which of the steps that come, and how."""

    where: str  # says, hears, seals, bytes
    step: int
    nth: int
    verb: int


class Story:
    def __init__(self, kind: str, chunk: int) -> None:
        self.talk = Talk(hops=[kind] * 3)
        self.chunk = chunk
        self.data = FEW if kind == CGO else DATA
        self.circuit = self.talk.circuit()
        self.other = self.talk.circuit()
        self.far = self.talk.far_end(self.circuit)
        self.bystander = self.talk.stream(self.other)
        self.sealed: dict[int, bytes] = {}  # by stream id
        self.is_over = self.is_cut = False  # the circuit; the channel
        self.talk.relays[2].on_sent = self._note_sent
        self.talk.relays[2].on_begin = lambda stream: stream.connected()
        self.talk.relays[2].on_data = lambda stream, data: stream.write(data)

    def _note_sent(self, circuit: FakeCircuit, hop: int, command: int, stream_id: int, body: bytes) -> None:
        if circuit is self.far and command == RelayCommand.DATA:
            self.sealed[stream_id] = self.sealed.get(stream_id, b"") + body

    def add(self, wrong: Wrong) -> None:
        guard, _, exit_relay = self.talk.relays
        verb = VERBS[wrong.verb % len(VERBS)]
        match wrong.where:
            case "says":
                step = MESSAGES[wrong.step % len(MESSAGES)]
                verb(exit_relay.sending(step, nth=wrong.nth, circuit=self.far))
            case "hears":
                step = HEARD[wrong.step % len(HEARD)]
                verb(exit_relay.receiving(step, nth=wrong.nth, circuit=self.far))
            case "seals":
                verb(guard.sending(Command.RELAY, nth=wrong.nth, circuit=self.far))
            case "bytes":
                verb(guard.sending(byte=self.talk.link.sent_count + wrong.step * 997 + wrong.nth))

    def exchange(self) -> None:
        while not self.is_cut:
            sent = self.talk.core.data_to_send()
            received = self.talk.link.receive(sent) if sent else self.talk.link.take()
            if not sent and not received:
                return
            self._note(self.talk.feed(received, chunk=self.chunk))

    def _note(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, ChannelFailed):
                self.is_cut = True
            elif isinstance(event, CircuitFailed):
                self._close(event.circuit)
            elif isinstance(event, ControlCell) and event.command == Command.DESTROY:
                self._close(self.circuit if event.circ_id == self.circuit.id else self.other)

    def _close(self, circuit: Circuit) -> None:
        assert circuit is self.circuit or self.is_of_the_channel
        self.talk.core.close_circuit(circuit)
        self.is_over = True

    is_of_the_channel = False

    def live(self, count: int) -> None:
        """Streams one after the other: each uploads, has it back, and ends."""
        for _ in range(count):
            if self.is_over or self.is_cut:
                return
            stream = self.circuit.open_stream(self.circuit.hop_count - 1)
            self.circuit.send(stream.hop, RelayCommand.BEGIN, stream.id, b"web.test:80\0")
            self.exchange()
            self._carry(stream)

    def _carry(self, stream: Stream) -> None:
        got, waiting = b"", self.data
        while not self.is_over and not self.is_cut and stream.is_open:
            count = stream.put(waiting)
            waiting = waiting[count:]
            self.exchange()
            data = stream.take()
            got += data
            if not data and not count:
                break
        got += stream.take()
        assert self.sealed.get(stream.id, b"").startswith(got)
        if not self.is_over and not self.is_cut and not stream.has_ended:
            self.circuit.close_stream(stream, b"\6", 1.0)
            self.exchange()

    def end(self) -> None:
        """Who had no part in it goes on, and everything can be closed."""
        if not self.is_cut and not self.is_of_the_channel:
            self.talk.far_stream(self.other, self.bystander).write(b"still here")
            self.exchange()
            assert self.bystander.take() == b"still here"
        for circuit in (self.circuit, self.other):
            self.talk.core.close_circuit(circuit)
        assert self.talk.core.circuit_count == 0


WRONG = st.builds(
    Wrong,
    where=st.sampled_from(["says", "hears", "seals", "bytes"]),
    step=st.integers(0, 200),
    nth=st.integers(1, 250),
    verb=st.integers(0, len(VERBS) - 1),
)


@settings(max_examples=10, deadline=None)
@given(
    kind=st.sampled_from([WINDOWS, CONGESTION_CONTROL, CGO]),
    wrongs=st.lists(WRONG, min_size=1, max_size=3),
    chunk=st.sampled_from([101, 514, 4096, 1 << 20]),
)
def test_whatever_goes_wrong_data_is_what_was_sent_and_others_go_on(
    kind: str, wrongs: list[Wrong], chunk: int
) -> None:
    live(kind, wrongs, chunk, 2)


@pytest.mark.parametrize("kind", [WINDOWS, CONGESTION_CONTROL, CGO], ids=["windows", "congestion", "CGO"])
@pytest.mark.parametrize("where", ["says", "hears", "seals", "bytes"])
def test_each_verb_at_an_early_step(kind: str, where: str) -> None:
    for verb in range(len(VERBS)):
        for step in range(4) if where in ("says", "hears") and kind != CGO else [1]:
            live(kind, [Wrong(where, step, 1, verb)], 1 << 20, 1)


def live(kind: str, wrongs: list[Wrong], chunk: int, count: int) -> None:
    story = Story(kind, chunk)
    story.is_of_the_channel = any(wrong.where == "bytes" for wrong in wrongs)
    for wrong in wrongs:
        story.add(wrong)
    story.live(count)
    for relay in story.talk.relays:
        relay.faults.clear()
    story.end()
