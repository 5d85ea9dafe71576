"""Circuits that have joined with a circuit of an onion service.

Each is for one service and one isolation. It takes new streams until ten minutes after the last one began (as
C tor), and is closed when no stream is left.
"""

from collections.abc import Hashable
from random import Random
from typing import NamedTuple

import trio

from torkit._fast.keys import X25519PrivateKey
from torkit.errors import TorkitError, UsageError
from torkit.hs.address import parse_address
from torkit.hs.client_auth import ClientKey
from torkit.hs.descriptor import Descriptor
from torkit.hs.introduction import Points
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuits.pool import WORN_GRACE, Circuits
from torkit.net.circuits.shelves import MAX_DIRTINESS
from torkit.net.current import Current
from torkit.net.onion.client_keys import ClientKeys
from torkit.net.onion.descriptors import Descriptors
from torkit.net.onion.meeting import Meeting
from torkit.net.onion.stems import Stems
from torkit.net.onion.work import Worker
from torkit.paths.choose import may_go_on


class Key(NamedTuple):
    """Equal for requests that may share a circuit.

    `identity` is the number of this client's identity, as `Need.identity`; `service` is the identity key of
    the service, 32 bytes.
    """

    identity: int
    isolation: Hashable
    service: bytes


class OnionServices:
    """Has the circuits that have joined: `find` looks for one, `acquire` waits for one."""

    def __init__(
        self,
        stems: Stems,
        circuits: Circuits,
        current: Current,
        keys: ClientKeys,
        worker: Worker,
        rng: Random,
        nursery: trio.Nursery,
    ) -> None:
        """`circuits` counts identities; `keys` are our client keys. Circuits expire in tasks of `nursery`."""
        self.keys = keys
        self.journal = circuits.journal
        self._stems = stems
        self._circuits = circuits
        self._current = current
        self._descriptors = Descriptors(current, stems.to_directory, rng)
        self._rng = rng
        self._nursery = nursery
        self._points = Points()
        self._worker = worker
        self._joined: dict[Key, _Entry] = {}
        nursery.start_soon(stems.keep)
        self._meetings: dict[Key, _Pending] = {}

    @property
    def stems(self) -> Stems:
        """The maker of its circuits, which services of ours share."""
        return self._stems

    @property
    def descriptors(self) -> Descriptors:
        """Returns what fetches and keeps descriptors."""
        return self._descriptors

    @property
    def identity(self) -> int:
        """How many identities this client has had."""
        return self._circuits.identity

    async def descriptor(self, address: str, client_key: ClientKey | None) -> Descriptor:
        """Returns the descriptor of the service at `address`, opened with this client key or one of `keys`.

        Raises UsageError where the client key is another service's, and as `Descriptors.get`.
        """
        service = parse_address(address)
        if client_key is None:
            return await self._descriptors.get(service, await self.keys.find(service))
        if client_key.identity != service:
            raise UsageError("the client key is for another onion service")
        return await self._descriptors.get(service, X25519PrivateKey(client_key.secret))

    def find(self, key: Key) -> Circuit | None:
        """Returns the circuit that has joined for `key`, or None. One stream will begin on it."""
        self._circuits.look_at_clock(trio.current_time())
        entry = self._entry(key)
        if entry is None:
            return None
        entry.used_at = trio.current_time()
        return entry.circuit

    async def acquire(self, key: Key, give_up_at: float) -> "Met":
        """Wait for the circuit of `key`; calls with equal keys share one meeting. Raises as `Meeting.run`."""
        worked = 0.0
        while (circuit := self.find(key)) is None:
            if (meeting := self._meetings.get(key)) is None:
                return await self._meet(key, give_up_at)
            await meeting.is_over.wait()
            worked += meeting.worked
            if meeting.error is not None:
                raise meeting.error.anew()
        return Met(circuit, worked)

    def forget(self) -> None:
        """Forget descriptors, failed points and circuits that were let go, for a new identity."""
        self._points.forget()
        self._descriptors.forget()
        self._stems.renew()

    def close(self) -> None:
        for entry in list(self._joined.values()):
            entry.circuit.watch.note_used()  # no guard is blamed for requests under way (as C tor)
            entry.circuit.close("the client ends")
        self._stems.close()

    def _entry(self, key: Key) -> "_Entry | None":
        entry = self._joined.get(key)
        if entry is None or entry.circuit.error is not None or not entry.circuit.has_room:
            return None
        is_fresh = trio.current_time() - entry.used_at < MAX_DIRTINESS and entry.age == self._circuits.age
        return entry if is_fresh and may_go_on(self._current.directory, entry.circuit.path) else None

    async def _meet(self, key: Key, give_up_at: float) -> "Met":
        age = self._circuits.age
        pending = self._meetings[key] = _Pending()
        try:
            meeting = Meeting(
                key.service,
                key.isolation,
                await self.keys.find(key.service),
                stems=self._stems,
                descriptors=self._descriptors,
                points=self._points,
                rng=self._rng,
                worker=self._worker,
                testing=self._current.testing,
            )
            entry = _Entry(await meeting.run(give_up_at), age)
            pending.worked = meeting.worked
        except TorkitError as error:
            pending.error = error
            raise
        finally:
            del self._meetings[key]
            pending.is_over.set()
            if self._stems.reserve is not None:
                self._stems.reserve.expect()
        self._joined[key] = entry
        self._nursery.start_soon(self._expire, key, entry)
        return Met(entry.circuit, meeting.worked)

    async def _expire(self, key: Key, entry: "_Entry") -> None:
        """Close a circuit that takes no new streams, when it has had none at two looks in a row.

        A DESTROY at once would overtake cells of the last upload that relays still hold.
        """
        has_ended = trio.Event()
        entry.circuit.on_end = lambda _: has_ended.set()
        was_idle = False
        while entry.circuit.error is None:
            is_idle = entry.circuit.stream_count == 0 and self._entry(key) is not entry
            if is_idle and was_idle:
                entry.circuit.close()
                break
            was_idle = is_idle
            with trio.move_on_after(WORN_GRACE):
                await has_ended.wait()
        if self._joined.get(key) is entry:
            del self._joined[key]


class Met(NamedTuple):
    """A circuit that has joined, and the seconds of the wait that went into proofs of work."""

    circuit: Circuit
    worked: float


class _Pending:
    """A meeting under way."""

    def __init__(self) -> None:
        self.is_over = trio.Event()
        self.error: TorkitError | None = None  # what made it fail
        self.worked = 0.0


class _Entry:
    """A circuit that has joined. `age` is that of the pool when it was begun."""

    def __init__(self, circuit: Circuit, age: int) -> None:
        self.circuit = circuit
        self.age = age
        self.used_at = trio.current_time()
