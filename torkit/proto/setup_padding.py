"""Padding that has circuits to onion services begin as circuits to exits do: the client's two machines.

padding-spec, "Padding Machines", as C tor 0.4.9's clients have them. Whoever watches our line, and the guard,
would else know a circuit to an introduction point by its few cells and short life, and one to a rendezvous
point by the lack of an answer before long. The second relay of such a circuit, which is a vanguard, pads:

    introduction    INTRODUCE1, NEGOTIATE ->    <- NEGOTIATED, 7 to 9 DROP, NEGOTIATED to stop
                    as a short download; we send nothing more, and keep the circuit as long as others
    rendezvous      NEGOTIATE, DROP ->          <- NEGOTIATED, DROP
                    as a request and its answer, while the service is waited for

Relays may refuse; they are then not asked again.
"""

import struct
from collections.abc import Mapping
from enum import IntEnum

from torkit._fast.cells import RelayCommand
from torkit.errors import CircuitError
from torkit.params import parameter
from torkit.proto.circuit import Protocols

# Of a circuit's machines the first, and we run one on each.
_COUNTER = 1

_NEGOTIATE = struct.Struct("!BBBBI")  # version, command, machine, 0 (no echo), counter
_NEGOTIATED = struct.Struct("!BBBBI")  # version, command, response, machine, counter


class PaddingMessage(IntEnum):
    """Relay commands. tor-spec, "Relay commands".

    They stand beside RelayCommand, since C has its names in one space with those of Command.
    """

    PADDING_NEGOTIATE = 41
    PADDING_NEGOTIATED = 42


class Machine(IntEnum):
    """Which of the machines, by the numbers that relays know."""

    INTRODUCTION = 0
    RENDEZVOUS = 1


class _Command(IntEnum):
    STOP = 1
    START = 2


class _Response(IntEnum):
    OK = 1
    ERR = 2


class SetupPadding:
    """One machine on one circuit: send what `start` gives, and have what the relay answers received."""

    hop = 1  # the one that pads, from 0

    def __init__(self, machine: Machine) -> None:
        self.is_running = True  # the relay may still pad
        self._machine = machine
        self._due = {_Command.START, _Command.STOP}  # what the relay may still say

    def may_run(self, protocols: Protocols, params: Mapping[str, int]) -> bool:
        """Whether a relay of these `protocols` knows the machine, and the consensus lets us ask for it."""
        is_allowed = not (
            parameter(params, "circpad_padding_disabled") or parameter(params, "circpad_padding_reduced")
        )
        return is_allowed and protocols.supports("Padding", 2)

    def start(self) -> list[tuple[int, bytes]]:
        """What to send to `hop`, at once: (relay command, body)."""
        body = _NEGOTIATE.pack(0, _Command.START, self._machine, 0, _COUNTER)
        negotiate = (int(PaddingMessage.PADDING_NEGOTIATE), body)
        if self._machine is Machine.INTRODUCTION:
            return [negotiate]
        return [negotiate, (int(RelayCommand.DROP), b"")]

    def takes(self, hop: int, command: int) -> bool:
        """Whether a message that comes from `hop`, counted from 0, is for `receive`."""
        return hop == self.hop and command == PaddingMessage.PADDING_NEGOTIATED

    def receive(self, body: bytes) -> None:
        """The body of what it takes. Raises CircuitError for what may not come."""
        try:
            version, number, answer, machine, counter = _NEGOTIATED.unpack_from(body)
            command, response = _Command(number), _Response(answer)
        except (struct.error, ValueError):
            raise CircuitError("PADDING_NEGOTIATED is malformed") from None
        if version != 0 or command not in self._due:
            raise CircuitError("PADDING_NEGOTIATED arrived, which nobody waits for")
        self._due.discard(command)
        # What is not for our machine is passed over, as by C tor.
        if (machine, counter) == (self._machine, _COUNTER):
            self.is_running = command is _Command.START and response is _Response.OK
