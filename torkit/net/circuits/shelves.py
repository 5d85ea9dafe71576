"""The circuits at hand, found by isolation without a look at every circuit.

A circuit goes from one shelf to the next, and never back:

    Clean   nobody has used it; the first request gives it its own isolation
    Dirty   requests of an equal isolation may join
    Worn    nobody may join any more; it is closed when its last stream has gone

path-spec, "Attaching streams to circuits".
"""

from collections.abc import Hashable, Iterator
from itertools import chain
from typing import NamedTuple

from torkit.directory.directory import Directory
from torkit.net.circuit.linked import LinkedCircuit
from torkit.net.circuit.tunnel import Tunnel
from torkit.net.circuits.purpose import Need, Shared

# Specification constant, seconds (path-spec, "Clients build circuits on demand"): how long after its first
# stream a circuit takes new ones. It is not drawn at random (as in C tor).
MAX_DIRTINESS = 600.0


class Clean(NamedTuple):
    """Nobody has used the circuit; at `expires_at` it is closed."""

    expires_at: float


class Dirty(NamedTuple):
    """Requests with this `key` may join; the first did at `since`."""

    key: Hashable
    since: float


class Worn:
    """The circuit waits for its last stream to go, and is then closed because of `why`."""

    def __init__(self, why: str) -> None:
        self.why = why
        self.idle_since: float | None = None  # first seen without streams
        self.is_probed = False


class Entry:
    """A circuit to an exit, and its state."""

    __slots__ = ("circuit", "exit", "is_linked", "purpose", "state")

    def __init__(self, circuit: Tunnel, purpose: Shared, expires_at: float) -> None:
        self.circuit = circuit
        self.is_linked = isinstance(circuit, LinkedCircuit)  # a set of circuits
        self.purpose = purpose
        self.exit = circuit.exit  # as the newest directory knows it
        self.state: Clean | Dirty | Worn = Clean(expires_at)

    def serves(self, need: Need, now: float) -> bool:
        """Returns whether a request may have the circuit, if isolation allows it."""
        if self.circuit.error is not None or not self.circuit.has_room:
            return False
        if self.is_linked and not need.may_be_linked:
            return False
        if isinstance(self.state, Dirty) and now - self.state.since >= MAX_DIRTINESS:
            return False
        if need.path is not None:
            return True
        if self.exit.identity in need.excluded or self.exit.identity in need.avoided:
            return False
        return need.purpose.may_join(self.purpose, self.exit)

    def note_directory(self, directory: Directory) -> None:
        self.exit = directory.relay(self.exit.identity) or self.exit


class Shelves:
    """Every circuit that requests share. Times are on trio's clock, and arguments."""

    def __init__(self) -> None:
        # Dicts stand for ordered sets. The orders: of building; of becoming dirty; of becoming worn.
        self._entries: dict[Tunnel, Entry] = {}
        self._clean: dict[Entry, None] = {}
        self._dirty: dict[Entry, None] = {}
        self._worn: dict[Entry, None] = {}
        self.linked_count = 0  # sets of linked circuits, on whatever shelf
        self._by_key: dict[Hashable, tuple[Entry, ...]] = {}  # the last claimed last; seldom more than one

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    @property
    def clean(self) -> list[Entry]:
        """The circuits that nobody has used, oldest first."""
        return list(self._clean)

    @property
    def worn(self) -> list[tuple[Entry, Worn]]:
        """Returns the circuits that only wait for their last stream to go."""
        return [(entry, entry.state) for entry in self._worn if isinstance(entry.state, Worn)]

    def find(self, need: Need, now: float) -> Entry | None:
        """Returns a set of linked circuits, of this isolation or clean; else the circuit last given to this
        isolation; else the youngest clean one.

        An isolation keeps the set that it has, since a session relies on the exit. (Otherwise as C tor.)
        """
        own = self._by_key.get(need.key, ())
        if need.path is None and self.linked_count:
            for entry in chain(reversed(own), self._clean):
                if entry.is_linked and entry.serves(need, now):
                    return entry
        for entry in reversed(own):
            if entry.serves(need, now):
                return entry
        if need.path is None:
            for entry in reversed(self._clean):
                if not entry.is_linked and entry.serves(need, now):
                    return entry
        return None

    def add(self, entry: Entry) -> None:
        """Add a clean circuit."""
        self._entries[entry.circuit] = entry
        self.linked_count += entry.is_linked
        self._clean[entry] = None

    def claim(self, entry: Entry, need: Need, now: float) -> bool:
        """Give a circuit to a request. Returns whether it was clean until now."""
        if not isinstance(entry.state, Clean):
            return False
        key = need.key
        del self._clean[entry]
        entry.state = Dirty(key, now)
        self._dirty[entry] = None
        self._by_key[key] = (*self._by_key.get(key, ()), entry)
        return True

    def entry_of(self, circuit: Tunnel) -> Entry | None:
        return self._entries.get(circuit)

    def retire(self, entry: Entry, why: str) -> None:
        """Let no request join a circuit any more, because of `why`."""
        if not isinstance(entry.state, Worn):
            self._take_down(entry)
            entry.state = Worn(why)
            self._worn[entry] = None

    def retire_old(self, now: float) -> None:
        """Let no request join circuits that have been dirty for MAX_DIRTINESS."""
        while self._dirty:
            oldest = next(iter(self._dirty))
            assert isinstance(oldest.state, Dirty)
            if now - oldest.state.since < MAX_DIRTINESS:
                return
            self.retire(oldest, f"it has served for {MAX_DIRTINESS:g} s")

    def forget(self, entry: Entry) -> None:
        """Note that a circuit has ended."""
        del self._entries[entry.circuit]
        self.linked_count -= entry.is_linked
        self._take_down(entry)

    def _take_down(self, entry: Entry) -> None:
        """Take a circuit off the shelf on which it stands."""
        match entry.state:
            case Clean():
                del self._clean[entry]
            case Worn():
                del self._worn[entry]
            case Dirty(key):
                del self._dirty[entry]
                sharing = tuple(one for one in self._by_key.pop(key) if one is not entry)
                if sharing:
                    self._by_key[key] = sharing
