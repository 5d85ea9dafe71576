"""What every service of one client uses, and what an operator asks of one."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from torkit.hs.service_messages import DosLimits
from torkit.net.current import Current
from torkit.net.onion.stems import Stems
from torkit.paths.constraints import Constraints
from torkit.proto.flow import wants_congestion_control


class Means(NamedTuple):
    """The client's: `constraints` say which relays the user excludes."""

    stems: Stems
    current: Current
    rng: Random
    constraints: Constraints

    @property
    def sendme_inc(self) -> int | None:
        """What streams are acknowledged by, in cells, where the consensus asks for congestion control."""
        offers = wants_congestion_control(self.current.params())
        return self.current.param("cc_sendme_inc") if offers else None


class Wishes(NamedTuple):
    """An operator's. `clients` are the X25519 keys, 32 bytes each, of those who may come; none is everybody.

    `limits` is what introduction points are asked to hold clients to. With `proof_of_work`, clients are asked
    to work for being met while too many come. `max_streams` is of one client's circuit at once,
    `max_connections` of all streams at once that are carried to servers.
    """

    clients: Sequence[bytes] = ()
    limits: DosLimits | None = None
    proof_of_work: bool = False
    max_streams: int = 1000
    max_connections: int = 8192
