"""Two linked circuits over two channels, and an exit that sends its messages by whichever leg a test says.

`Pair(CGO)` makes all of it, `Pair(talks=[one, other])` takes channels that there are.
"""

import struct
from collections.abc import Sequence
from functools import partial

from fast.talk import CONGESTION_CONTROL, Talk

from torkit._fast.cells import RelayCommand
from torkit._fast.conflux import LinkedSet, link
from torkit._fast.events import Event
from torkit._fast.stream import Stream
from torkit.testing.relay import FakeCircuit, RelayCell, ignore

LAST = 2  # index of the exit


class Pair:
    """A set of two legs. `log` has what the exit has received, as (leg, command, stream id, body)."""

    def __init__(
        self,
        kind: str = CONGESTION_CONTROL,
        *,
        fills: bool = False,
        rtts: Sequence[float] = (0.1, 0.2),
        talks: Sequence[Talk] = (),
        queued_max: int = 1 << 30,
    ) -> None:
        self.talks = list(talks) or [Talk(hops=[kind] * 3) for _ in rtts]
        self.legs = [talk.circuit() for talk in self.talks]
        self.set: LinkedSet = link(self.legs, rtts, fills, queued_max)
        self.log: list[tuple[int, int, int, bytes]] = []
        self.sent = [0, 0]  # the exit's, by leg: the number of the last counted message
        self.last = 0
        for index, talk in enumerate(self.talks):
            talk.relays[-1].on_begin = ignore
            talk.relays[-1].on_unknown = ignore
            talk.relays[0].on_relay_cell = partial(self._note, index)
            self.far(index).streams = self.far(0).streams  # one space of ids

    def _note(self, leg: int, circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
        if number == LAST + 1 and cell.command != RelayCommand.EXTEND2:
            self.log.append((leg, cell.command, cell.stream_id, cell.body))

    def far(self, leg: int) -> FakeCircuit:
        return self.talks[leg].far_end(self.legs[leg])

    def measure(self, leg: int, rtt: float) -> None:
        """Have a leg's congestion control measure this, in seconds, as at a SENDME. It is smoothed."""
        vegas = self.legs[leg].vegas(LAST)
        assert vegas is not None
        vegas.acknowledge(rtt, in_flight=0, blocked=False)

    def exchange(self) -> list[Event]:
        return [event for talk in self.talks for event in talk.exchange()]

    def stream(self) -> Stream:
        """One that was begun, and not answered."""
        stream = self.set.open_stream(LAST)
        self.set.send(LAST, RelayCommand.BEGIN, stream.id, b"web.test:80\0")
        self.exchange()
        return stream

    def connected(self) -> Stream:
        stream = self.stream()
        self.send(0, RelayCommand.CONNECTED, stream.id)
        assert stream.is_open
        return stream

    def held(self, leg: int, command: int, stream_id: int, body: bytes = b"") -> list[bytes]:
        """The cells of one counted message by a leg, SWITCH before it where the leg is another."""
        cells = []
        if self.sent[leg] != self.last:
            gap = struct.pack(">I", self.last - self.sent[leg])
            cells.append(self.far(leg).send(LAST + 1, RelayCommand.CONFLUX_SWITCH, 0, gap, hold=True))
        self.last += 1
        self.sent[leg] = self.last
        return [*cells, self.far(leg).send(LAST + 1, command, stream_id, body, hold=True)]

    def send(self, leg: int, command: int, stream_id: int, body: bytes = b"") -> list[Event]:
        return self.give(leg, self.held(leg, command, stream_id, body))

    def give(self, leg: int, cells: Sequence[bytes]) -> list[Event]:
        events = [event for cell in cells for event in self.talks[leg].feed(cell)]
        return events + self.exchange()

    @property
    def complaints(self) -> list[str]:
        return [complaint for talk in self.talks for complaint in talk.complaints]

    def commands(self) -> list[tuple[int, int]]:
        return [(leg, command) for leg, command, _, _ in self.log]
