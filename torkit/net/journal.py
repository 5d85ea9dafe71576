"""Tells events (torkit.events) to any number of listeners. Costs next to nothing without one.

if journal.is_heard:
    journal.tell(CircuitBuilt(...))
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import trio

from torkit.directory.directory import Relay
from torkit.errors import TorkitError, code_of
from torkit.events import Event, EventsLost, ProgressMade, StreamEnded
from torkit.net.descriptors import stderr
from torkit.net.progress import Progress, Tracker

# Implementation limit: events that wait for one reader; the oldest are dropped for more.
MAX_WAITING = 10_000

UNNAMED = "unnamed"  # a relay that a service has chosen, whose name may betray that service

Listener = Callable[[Event], None]


class Journal:
    """Tells the events of one client to its listeners. `progress` is the progress of its start."""

    def __init__(self) -> None:
        self.is_heard = False
        self.progress = Tracker(self._tell_progress)
        self._listeners: list[Listener] = []
        self._circuits = count(1)
        self._streams = count(1)

    def add(self, listener: Listener) -> None:
        """Call `listener` with every event from now on. It must neither wait nor raise."""
        self._listeners.append(listener)
        self.is_heard = True

    def remove(self, listener: Listener) -> None:
        self._listeners.remove(listener)
        self.is_heard = bool(self._listeners)

    def tell(self, event: Event) -> None:
        for listener in list(self._listeners):
            listener(event)

    @contextmanager
    def telling_end(self, stream: int) -> Iterator[None]:
        """Tell StreamEnded if the block raises: there will be no further attempt."""
        try:
            yield
        except BaseException as error:
            if self.is_heard:
                reason = str(error) if isinstance(error, TorkitError) else "given up"
                self.tell(StreamEnded(stream, reason, code_of(error)))
            raise

    def next_circuit(self) -> int:
        """Returns the number of a new circuit."""
        return next(self._circuits)

    def next_stream(self) -> int:
        """Returns the number of a new stream."""
        return next(self._streams)

    def events(self) -> "Events":
        """Returns an iterator over every event from now on."""
        return Events(self)

    def _tell_progress(self, progress: Progress) -> None:
        if self.is_heard:
            problem = None if progress.error is None else str(progress.error)
            self.tell(ProgressMade(progress.percent, progress.phase.tag, progress.summary, problem))


class _Mailbox:
    """The events that one reader has not read yet."""

    def __init__(self) -> None:
        self.waiting: deque[Event] = deque()
        self.lost_count = 0
        self.has_come = trio.Event()

    def put(self, event: Event) -> None:
        if len(self.waiting) == MAX_WAITING:
            self.waiting.popleft()
            self.lost_count += 1
        self.waiting.append(event)
        self.has_come.set()


class Events:
    """An asynchronous iterator that never ends. It may be left at any time, and listens until it is dropped.

    A reader that lags by more than MAX_WAITING events gets an EventsLost in place of the oldest.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._mailbox = _Mailbox()
        journal.add(self._mailbox.put)

    def __aiter__(self) -> "Events":
        return self

    async def __anext__(self) -> Event:
        await trio.lowlevel.checkpoint()
        mailbox = self._mailbox
        while not mailbox.waiting:
            mailbox.has_come = trio.Event()
            await mailbox.has_come.wait()
        if mailbox.lost_count:
            lost, mailbox.lost_count = EventsLost(mailbox.lost_count), 0
            return lost
        return mailbox.waiting.popleft()

    def __del__(self) -> None:
        self._journal.remove(self._mailbox.put)


def trace(event: Event) -> None:
    """A listener that prints on stderr."""
    stderr.say(f"torkit: {event}")


def name_of(relay: Relay) -> str:
    """Returns a relay's name as events write it. control-spec, "LongName"."""
    return f"${relay.fingerprint}~{relay.nickname}"
