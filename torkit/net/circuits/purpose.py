"""The purposes of circuits: what a path needs, and which requests may join.

A circuit is built for one purpose, and a request has one. Requests share only circuits that streams leave at
an exit; every other circuit belongs to whoever asked for it.
"""

from collections.abc import Hashable
from typing import NamedTuple

from torkit.directory.directory import Relay
from torkit.learnt.predicted_ports import RESOLVE_PORT
from torkit.net.contact import Contact
from torkit.paths.choose import check_exit
from torkit.paths.constraints import LONG_LIVED_PORTS, Constraints

Path = tuple[Relay, ...]


class ExitTo:
    """For streams that an exit lets go to `port`, at IPv6 addresses if `is_ipv6`."""

    __slots__ = ("is_ipv6", "needs_stable", "port")

    label = "GENERAL"
    words = "streams"

    def __init__(self, port: int, *, is_ipv6: bool = False) -> None:
        self.port = port
        self.is_ipv6 = is_ipv6
        self.needs_stable = port in LONG_LIVED_PORTS

    @property
    def expected_port(self) -> int:
        """A port for which circuits are built ahead from now on."""
        return self.port

    def __repr__(self) -> str:
        return f"<ExitTo {self.port}{', IPv6' if self.is_ipv6 else ''}>"

    def may_join(self, built_for: "Shared", exit_relay: Relay) -> bool:
        """Returns whether a circuit `built_for` another purpose, ending at this exit, serves this one."""
        if self.needs_stable and not built_for.needs_stable:
            return False
        return (exit_relay.policy6 if self.is_ipv6 else exit_relay.policy).accepts(self.port)

    def check(self, exit_relay: Relay) -> None:
        """Raises NoPath where the exit of a path that somebody named allows no port at all.

        A summary lists what most addresses can be reached at: who names an exit may know of others. (C tor
        asks the exit, too, where a controller attaches a stream to a circuit.)
        """
        check_exit(exit_relay, None, is_ipv6=self.is_ipv6)

    def constraints(self, avoid: frozenset[str]) -> Constraints:
        """What a path must fulfil. `avoid` names relays not to use behind the guard."""
        return Constraints(port=self.port, ipv6=self.is_ipv6, avoid=avoid)


class ExitByLegs(ExitTo):
    """For a leg of linked circuits, and for their set. Its relays should be Stable (as C tor's)."""

    __slots__ = ()

    label = "CONFLUX_UNLINKED"
    words = "linked circuits"

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.needs_stable = True

    def constraints(self, avoid: frozenset[str]) -> Constraints:
        """What a path must fulfil. `avoid` names relays not to use behind the guard."""
        return super().constraints(avoid)._replace(stable=True, links=True)


class LookUp:
    """For look-ups, which any exit answers. Also for circuits that are built to learn build times."""

    label = "GENERAL"
    words = "streams"
    needs_stable = False
    expected_port = RESOLVE_PORT

    def may_join(self, built_for: "Shared", exit_relay: Relay) -> bool:
        """Any circuit to an exit serves."""
        return True

    def check(self, exit_relay: Relay) -> None:
        """Raises NoPath where the exit of a path that somebody named allows nothing at all."""
        check_exit(exit_relay, None)

    def constraints(self, avoid: frozenset[str]) -> Constraints:
        """What a path must fulfil. `avoid` names relays not to use behind the guard."""
        return Constraints(avoid=avoid)


LOOK_UP = LookUp()


class AskDirectory:
    """For questions to a directory server: one hop."""

    label = "DIR_FETCH"

    def __init__(self, server: Contact) -> None:
        self.server = server


class _ToRelay:
    def __init__(self, target: Relay) -> None:
        self.target: Relay | None = target


class OnionDirectory(_ToRelay):
    """For a question to a directory of onion services. `target`, here and below, will be the last hop."""

    label = "HS_CLIENT_HSDIR"
    words = "an onion service's directory"


class Introduction(_ToRelay):
    """For INTRODUCE1, to an introduction point, which a service has chosen."""

    label = "HS_CLIENT_INTRO"
    words = "an introduction"


class Rendezvous:
    """For ESTABLISH_RENDEZVOUS, to the relay at which we meet a service. We choose it ourselves."""

    label = "HS_CLIENT_REND"
    words = "a rendezvous"
    target: Relay | None = None


class Ahead:
    """For the first of these purposes that needs a circuit."""

    label = "HS_VANGUARDS"
    words = "onion services, ahead"
    target: Relay | None = None


class ServiceDirectory(_ToRelay):
    """For a descriptor of a service of ours, to a directory of onion services."""

    label = "HS_SERVICE_HSDIR"
    words = "our onion service's directory"


class ServiceIntroduction(_ToRelay):
    """For ESTABLISH_INTRO, to a relay at which a service of ours is introduced."""

    label = "HS_SERVICE_INTRO"
    words = "our onion service's introduction point"


class ServiceRendezvous(_ToRelay):
    """For RENDEZVOUS1, to a relay at which a client of a service of ours waits, and which it has chosen."""

    label = "HS_SERVICE_REND"
    words = "a client of our onion service"


Shared = ExitTo | LookUp
# By way of vanguards. Built as far as a target that others have named, which stems.py then adds.
ForOnion = (
    OnionDirectory
    | Introduction
    | Rendezvous
    | Ahead
    | ServiceDirectory
    | ServiceIntroduction
    | ServiceRendezvous
)
Purpose = Shared | AskDirectory | ForOnion


class Need(NamedTuple):
    """What a request needs of a circuit.

    `identity` is the number of the client's identity when the request began, so that the request never shares
    a circuit with requests of later identities. With `path` the circuit goes exactly there; else its exit is
    none of `excluded`, and none of `avoided` while circuits to others are ready or can be built. Only with
    `may_be_linked` may linked circuits serve it.
    """

    purpose: Shared
    isolation: Hashable = None
    identity: int = 0
    path: Path | None = None
    excluded: frozenset[bytes] = frozenset()
    avoided: frozenset[bytes] = frozenset()
    may_be_linked: bool = True

    @property
    def crowd(self) -> Hashable:
        """Equal for requests that take turns as one."""
        return self.identity, self.isolation

    @property
    def key(self) -> Hashable:
        """Equal for requests that may share a circuit."""
        return self.crowd if self.path is None else (self.crowd, tuple(one.identity for one in self.path))
