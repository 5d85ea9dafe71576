"""Faults at any step: what a relay says or hears is dropped, said twice, cut short, as a story tells it.

    guard.sending(Command.CREATED2).drop()                      the answer to the first CREATE2 never comes
    exit.sending(RelayCommand.DATA, nth=3).duplicate()          the third message with data comes twice
    exit.receiving(RelayCommand.BEGIN).delay(30)                it hears of the stream half a minute late
    middle.sending(RelayCommand.EXTENDED2).lie(lambda body: body[:-1])
    guard.sending(byte=1500).corrupt()                          a bit of the connection's plaintext flips
    guard.answering("/tor/micro/").cut(500)                     a directory's answer ends early

Each names a step, and a verb says what happens there. Four levels have steps:

    answering("/tor/") the whole HTTP answer of a directory to a request whose path begins so
    RelayCommand      a message of a hop, before its layers are put around it, or after they were taken off
    Command           a cell of a connection: RELAY is one as the guard sends it, sealed
    byte=             the plaintext within TLS, at this offset from the connection's first byte

`nth` counts what matches from now on, on any circuit or on `circuit` alone; None is every one. Where two
faults name one step, the first that was written has it. `fault.count` says how often it has struck.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from torkit._fast.cells import Command, RelayCommand
from torkit.testing.relay.certificates import encode_certs

if TYPE_CHECKING:
    from typing import Self

# The answers to a handshake, and how many bytes of each are a length.
_HANDSHAKES = {
    Command.CREATED_FAST: 0,
    Command.CREATED2: 2,
    RelayCommand.EXTENDED2: 2,
    RelayCommand.RENDEZVOUS2: 0,
}


class Level(Enum):
    """Where something passes."""

    BYTES = "bytes"
    CELL = "cell"
    MESSAGE = "message"
    ANSWER = "answer"


class Connection(Protocol):
    """A link, as faults know it."""

    def close(self, *, abrupt: bool = False) -> None: ...
    def later(self, seconds: float, call: Callable[[], object]) -> None: ...


class Breakable(Protocol):
    """A circuit, as faults know it."""

    def destroy(self, reason: int = ...) -> None: ...


class Identity(Protocol):
    """A relay that somebody claims to be."""

    directory: Callable[[bytes], bytes] | None

    def make_certs(self) -> list[tuple[int, bytes]]: ...


@dataclass(frozen=True)
class Passage:
    """One thing on its way. `go` sends it on, or has it heard, with a body that may be another."""

    is_sent: bool  # by the relay
    level: Level
    command: int | None  # None for bytes
    at: int  # the offset of the first byte, for bytes
    body: bytes
    link: Connection
    circuit: Breakable | None
    lane: object  # what has an order of its own: a link, or a hop of a circuit
    go: Callable[[bytes], object]
    request: bytes = b""  # for answers: what is answered


class Fault:
    """One step, and what happens there. Made by a relay's `sending` and `receiving`; a verb completes it."""

    def __init__(
        self,
        *,
        is_sent: bool,
        step: Command | RelayCommand | str | None,
        nth: int | None,
        byte: int | None,
        circuit: object,
    ) -> None:
        if (step is None) == (byte is None):
            raise ValueError("a step is a command or an offset in bytes")
        if nth is not None and nth < 1:
            raise ValueError("`nth` counts from 1")
        self.count = 0  # how often it has struck
        self.byte = byte
        self._is_sent = is_sent
        self._step = step
        self._nth = nth
        self._circuit = circuit
        self._seen = 0
        self._verb: Callable[[Passage], object] | None = None
        self._held: Passage | None = None  # until the next one of its lane has passed
        self._silent: list[object] = []  # lanes on which nothing passes any more
        self._ended: list[Connection] = []

    def __repr__(self) -> str:
        if isinstance(self._step, str):
            where = f"answering {self._step}"
        else:
            where = "sending " if self._is_sent else "receiving "
            where += f"byte {self.byte}" if self._step is None else self._step.name
        return f"<Fault {where}, struck {self.count} times>"

    # --- verbs ----------------------------------------------------------------------------------------

    def drop(self) -> Self:
        """It is lost."""
        return self._does(lambda _: None)

    def delay(self, seconds: float) -> Self:
        """It comes so much later, by trio's clock; what is behind it does not wait.

        Where no clock runs, it waits in the link's `delayed`.
        """
        return self._does(lambda one: one.link.later(seconds, lambda: one.go(one.body)))

    def duplicate(self) -> Self:
        """It comes twice."""
        return self.flood(2)

    def flood(self, count: int) -> Self:
        """It comes `count` times."""

        def send_all(one: Passage) -> None:
            for _ in range(count):
                one.go(one.body)

        return self._does(send_all)

    def swap(self) -> Self:
        """It comes behind the next one; never, if there is none."""

        def hold(one: Passage) -> None:
            self._held = one

        return self._does(hold)

    def cut(self, length: int | None = None) -> Self:
        """Its first `length` bytes come, by default half of them.

        The rest of a cell of fixed length is zeros. To end within a cell, cut bytes.
        """
        return self.lie(lambda body: body[: len(body) // 2 if length is None else length])

    def corrupt(self, bit: int | None = None) -> Self:
        """One bit is flipped: the first of the byte in the middle, or this one. Nothing becomes a byte."""

        def flip(body: bytes) -> bytes:
            changed = bytearray(body or b"\0")
            at = len(changed) // 2 * 8 if bit is None else bit
            changed[at // 8] ^= 0x80 >> at % 8
            return bytes(changed)

        return self.lie(flip)

    def lie(self, edit: Callable[[bytes], bytes]) -> Self:
        """What `edit` makes of its body comes in its place."""
        return self._does(lambda one: one.go(edit(one.body)))

    def impersonate(self, other: Identity) -> Self:
        """What one says who would pass for `other` without its keys: its certificates, or a guess.

        For CERTS and the answers to handshakes. For the answers of a directory: what that of `other` says.
        """
        if isinstance(self._step, str):
            if (directory := other.directory) is None:
                raise ValueError("the other relay is no directory")
            return self._does(lambda one: one.go(directory(one.request)))
        if self._step is Command.CERTS:
            return self.lie(lambda _: encode_certs(other.make_certs()))
        kept = next((n for one, n in _HANDSHAKES.items() if one is self._step), None)
        if kept is None:
            raise ValueError("only CERTS, answers to handshakes and those of directories say who somebody is")
        return self.lie(lambda body: body[:kept] + os.urandom(len(body) - kept))

    def stall(self) -> Self:
        """Neither it nor anything behind it comes: on the link, from that hop, from that directory."""
        return self._does(lambda one: self._silent.append(one.lane))

    def close(self, *, abrupt: bool = False) -> Self:
        """The connection ends in its place; `abrupt` leaves out TLS's own goodbye."""

        def end(one: Passage) -> None:
            self._ended.append(one.link)
            one.link.close(abrupt=abrupt)

        return self._does(end)

    def destroy(self, reason: int = 1) -> Self:
        """DESTROY comes in its place. Raises ValueError where there is no circuit."""

        def end(one: Passage) -> None:
            if one.circuit is None:
                raise ValueError(f"{self!r} is on no circuit")
            one.circuit.destroy(reason)

        return self._does(end)

    # --- what passes ----------------------------------------------------------------------------------

    def takes(self, one: Passage) -> bool:
        """Whether it has dealt with this one; else that is another's, or goes its way."""
        if self._verb is None or one.is_sent != self._is_sent:
            return False
        if one.link in self._ended or (one.lane in self._silent and one.level is self._level):
            return True
        if self._held is not None and one.level is self._level and one.lane == self._held.lane:
            held, self._held = self._held, None
            one.go(one.body)
            held.go(held.body)
            return True
        if not self._names(one):
            return False
        self._seen += 1
        if self._nth not in (None, self._seen):
            return False
        self.count += 1
        self._verb(one)
        return True

    @property
    def _level(self) -> Level:
        if self._step is None:
            return Level.BYTES
        if isinstance(self._step, str):
            return Level.ANSWER
        return Level.CELL if isinstance(self._step, Command) else Level.MESSAGE

    def _names(self, one: Passage) -> bool:
        if one.level is not self._level or self._circuit not in (None, one.circuit):
            return False
        if isinstance(self._step, str):
            return one.request.partition(b" ")[2].startswith(self._step.encode("ascii"))
        return one.at == self.byte if self._step is None else one.command == self._step

    def _does(self, verb: Callable[[Passage], object]) -> Self:
        if self._verb is not None:
            raise ValueError(f"{self!r} has a verb already")
        self._verb = verb
        return self


def let_pass(faults: Iterable[Fault], one: Passage) -> None:
    """Let one thing pass, unless a fault takes it. Every thing passes here, once at each level."""
    if not any(fault.takes(one) for fault in faults):
        one.go(one.body)


def pieces(faults: Sequence[Fault], start: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """`data`, whose first byte has the offset `start`, cut where faults name a byte: offsets and pieces."""
    named = {fault.byte for fault in faults if fault.byte is not None}
    cuts = [0, *sorted(byte - start for byte in named if start < byte < start + len(data)), len(data)]
    for begin, end in pairwise(cuts):
        yield start + begin, data[begin:end]
