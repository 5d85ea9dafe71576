"""The directory that one client goes by, what follows from it, and the journal.

net/dir/keeper.py keeps the directory new.
"""

from collections.abc import Callable, Mapping

import trio

from torkit.directory.directory import Directory
from torkit.errors import NoDirectory, TorkitError
from torkit.events import DirectoryChanged
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.journal import Journal
from torkit.params import default_param, parameter
from torkit.proto.circuit import Cgo
from torkit.proto.flow import ClockGuard

# The shortest timeout that is learnt on a private network, in ms: circuits take milliseconds there, and
# seconds when its one machine is busy.
TESTING_MIN_TIMEOUT = 5000


class Current:
    """`known` is None while there is no directory. Callers that need one ask for `directory`."""

    def __init__(self, *, cgo: Cgo = Cgo.EXIT, testing: bool = False) -> None:
        self.known: Directory | None = None
        self.failure: TorkitError | None = None  # why there is no directory, after some time
        self.is_wanted = trio.Event()  # set by `hurry`; the keeper of the directory makes it anew
        self.journal = Journal()
        self._readers: list[Callable[[Directory], None]] = []
        self._cgo = cgo
        self.testing = testing
        self._clock = ClockGuard()
        # While the directory is the same:
        self._settings: CircuitSettings | None = None
        self._values: dict[str, int] = {}  # of parameters, as `param` gives them

    @property
    def directory(self) -> Directory:
        """The newest usable directory. Raises NoDirectory before there is one."""
        if self.known is None:
            raise self.failure or NoDirectory("there is no directory yet")
        return self.known

    def add_reader(self, reader: Callable[[Directory], None]) -> None:
        """Have `reader` called with each directory that is used from now on."""
        self._readers.append(reader)

    def remove_reader(self, reader: Callable[[Directory], None]) -> None:
        """Call it no more."""
        self._readers.remove(reader)

    def use(self, directory: Directory) -> None:
        """Go by this directory from now on."""
        self.known = directory
        self._forget()
        if self.journal.is_heard:
            self.journal.tell(DirectoryChanged(directory.consensus.valid_after, len(directory)))
        for reader in self._readers:
            reader(directory)

    def drop(self) -> None:
        """Go by no directory: the present one is too old."""
        self.known = None
        self._forget()

    def _forget(self) -> None:
        self._settings = None
        self._values.clear()

    def hurry(self) -> None:
        """Have missing documents fetched now, since somebody cannot go on without them."""
        self.is_wanted.set()

    def params(self) -> Mapping[str, int]:
        """Returns the consensus's parameters; an empty mapping while there is no directory."""
        return {} if self.known is None else self.known.consensus.params

    def param(self, name: str) -> int:
        """Returns a consensus parameter; its default while there is no directory."""
        value = self._values.get(name)
        if value is None:
            known = self.known
            value = default_param(name) if known is None else parameter(known.consensus.params, name)
            if self.testing and name == "cbtmintimeout":
                value = max(value, TESTING_MIN_TIMEOUT)
            self._values[name] = value
        return value

    def circuit_settings(self) -> CircuitSettings:
        """Returns the settings of circuits that are built now, which share one object."""
        if self._settings is None:
            self._settings = CircuitSettings(
                self.params(),
                self._cgo,
                self._clock,
                refuse_internal=not self.testing,
                journal=self.journal,
            )
        return self._settings
