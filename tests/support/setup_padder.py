"""A relay's half of the machines that pad circuits to onion services while they are set up. padding-spec.

    padder = SetupPadder()
    padder.pad_at(relay)            that relay answers PADDING_NEGOTIATE, whatever else it did with messages

`asked` are the circuits by machine; replace `on_start` to break a rule.
"""

from collections.abc import Callable

from torkit._fast.cells import RelayCommand
from torkit.testing.relay import FakeCircuit, FakeRelay, RelayCell

NEGOTIATE, NEGOTIATED = 41, 42
INTRODUCTION, RENDEZVOUS = 0, 1  # machines
STOP, START = 1, 2
OK, ERR = 1, 2
DROPS = {INTRODUCTION: 9, RENDEZVOUS: 1}  # the most that a relay sends


class SetupPadder:
    def __init__(self) -> None:
        self.asked: dict[int, list[FakeCircuit]] = {INTRODUCTION: [], RENDEZVOUS: []}
        self.dropped: list[tuple[FakeCircuit, int]] = []  # the client's DROP cells: (circuit, hop)
        self.drops = dict(DROPS)
        self.stops = True  # an introduction's padding comes to its end
        self.on_start: Callable[[FakeCircuit, int], object] = self.answer

    def pad_at(self, relay: FakeRelay) -> None:
        other = relay.on_unknown

        def receive(circuit: FakeCircuit, number: int, cell: RelayCell) -> None:
            if cell.command != NEGOTIATE:
                other(circuit, number, cell)
                return
            machine = cell.body[2]
            assert (number, cell.stream_id) == (2, 0)
            assert cell.body == bytes([0, START, machine, 0, 0, 0, 0, 1])
            self.asked[machine].append(circuit)
            self.on_start(circuit, machine)

        relay.on_unknown = receive
        relay.on_drop = lambda circuit, number, _: self.dropped.append((circuit, number))

    def answer(self, circuit: FakeCircuit, machine: int) -> None:
        say(circuit, START, machine)
        for _ in range(self.drops[machine]):
            circuit.send(2, RelayCommand.DROP)
        if machine == INTRODUCTION and self.stops:
            say(circuit, STOP, machine)


def say(circuit: FakeCircuit, command: int, machine: int, response: int = OK, *, hop: int = 2) -> None:
    circuit.send(hop, NEGOTIATED, 0, bytes([0, command, response, machine, 0, 0, 0, 1]))
