"""Introduction points as a client sees them: which relay each is, and which of them have failed."""

from collections.abc import Iterable
from enum import Enum
from ipaddress import IPv4Address

from torkit.directory.directory import Relay
from torkit.directory.microdesc import REJECT_ALL
from torkit.directory.netdoc import decode_protocols
from torkit.errors import CircuitError
from torkit.hs.descriptor import IntroductionPoint
from torkit.proto.cells import ED25519_IDENTITY_LEN, RSA_IDENTITY_LEN
from torkit.proto.destination import is_internal
from torkit.proto.messages import LinkSpecifierType

FAILURE_MEMORY = 120.0  # seconds for which a failure is remembered (as C tor)

# Implementation limits: how often a point may be unreachable or silent before it is passed over, and points
# remembered. (C tor: five times unreachable, but there a relay on the way may be the reason, for which Stems
# tries another way first; and once silent, but an extension that takes too long does not count there.)
MAX_FAILED = 2
MAX_FAILURES = 1000

_NAME = "an introduction point"
_NO_PROTOCOLS = decode_protocols("")
_LENGTHS = {LinkSpecifierType.LEGACY_ID: RSA_IDENTITY_LEN, LinkSpecifierType.ED25519_ID: ED25519_IDENTITY_LEN}


def relay_of(point: IntroductionPoint, *, allow_internal: bool) -> Relay:
    """Returns the relay of an introduction point, by what its service says of it, not by the consensus.

    It has no protocols, so the handshake with it is plain ntor. Raises CircuitError for a relay that cannot
    be connected to. Internal addresses are for private networks only, with `allow_internal`.
    """
    return relay_at(_NAME, point.link_specifiers, point.onion_key, allow_internal=allow_internal)


def relay_at(
    name: str, link_specifiers: Iterable[tuple[int, bytes]], onion_key: bytes, *, allow_internal: bool
) -> Relay:
    """Returns a relay by what somebody says of it, as `relay_of`. `name` stands for it in errors."""
    found: dict[int, bytes] = {}
    for kind, value in link_specifiers:
        found.setdefault(kind, value)
    for kind, length in _LENGTHS.items():
        if len(found.get(kind, b"")) != length:
            raise CircuitError(f"{name} lacks an identity")
    if len(found.get(LinkSpecifierType.IPV4, b"")) != 6:
        raise CircuitError(f"{name} has no IPv4 address")
    raw = found[LinkSpecifierType.IPV4]
    address, port = IPv4Address(raw[:4]), int.from_bytes(raw[4:], "big")
    if not port or (is_internal(address) and not allow_internal):
        raise CircuitError(f"{name} has an address that is none on the internet")
    return Relay(
        nickname=name,
        identity=found[LinkSpecifierType.LEGACY_ID],
        ed25519_identity=found[LinkSpecifierType.ED25519_ID],
        ntor_onion_key=onion_key,
        address=str(address),
        or_port=port,
        ipv6=None,
        flags=frozenset(),
        bandwidth=0,
        version=None,
        protocols=_NO_PROTOCOLS,
        family=frozenset(),
        family_ids=frozenset(),
        policy=REJECT_ALL,
        policy6=REJECT_ALL,
        networks=frozenset(),
    )


class PointFailure(Enum):
    """Why an introduction failed."""

    REFUSED = "refused"  # the point said so, or broke a rule
    TIMED_OUT = "timed out"  # the point was silent
    UNANSWERED = "unanswered"  # the point has passed it on, and the service did not come
    UNREACHABLE = "unreachable"  # the circuit to the point could not be made, or ended


_SILENCE = (PointFailure.TIMED_OUT, PointFailure.UNANSWERED)


class Points:
    """Remembers which introduction points of all services have failed. Time is an argument, in seconds."""

    def __init__(self) -> None:
        self._failures: dict[bytes, tuple[float, PointFailure, int]] = {}  # by auth-key: when, why, how often

    def note(self, point: IntroductionPoint, failure: PointFailure, now: float) -> None:
        """Note that an introduction by way of `point` has failed."""
        _, _, count = self._failures.pop(point.auth_key, (now, failure, 0))
        self._failures[point.auth_key] = (now, failure, count + 1)
        if len(self._failures) > MAX_FAILURES:
            del self._failures[next(iter(self._failures))]

    def usable(self, points: Iterable[IntroductionPoint], now: float) -> list[IntroductionPoint]:
        """Returns the `points` that may be tried, those behind which a service was silent among them."""
        self._failures = {
            key: entry for key, entry in self._failures.items() if now - entry[0] < FAILURE_MEMORY
        }
        return [point for point in points if not self._has_failed(point)]

    def may_come_back(self, points: Iterable[IntroductionPoint]) -> bool:
        """Returns whether any of `points` has failed, and not by silence."""
        entries = [self._failures.get(point.auth_key) for point in points]
        return any(entry is not None and entry[1] not in _SILENCE for entry in entries)

    def forgive(self, points: Iterable[IntroductionPoint]) -> None:
        """Allow the points that have failed, and not by silence, to be tried again."""
        for point in points:
            if self.may_come_back([point]):
                del self._failures[point.auth_key]

    def unanswered_count(self, point: IntroductionPoint) -> int:
        """Returns how many introductions by way of `point` have failed without an answer."""
        _, failure, count = self._failures.get(point.auth_key, (0.0, PointFailure.REFUSED, 0))
        return 0 if failure is PointFailure.REFUSED else count

    def have_timed_out(self, points: Iterable[IntroductionPoint]) -> bool:
        """Returns whether every one of `points` was silent when last tried."""
        entries = [self._failures.get(point.auth_key) for point in points]
        return bool(entries) and all(
            entry is not None and entry[1] is PointFailure.TIMED_OUT for entry in entries
        )

    def forget(self) -> None:
        """Forget all failures, for a new identity."""
        self._failures.clear()

    def _has_failed(self, point: IntroductionPoint) -> bool:
        entry = self._failures.get(point.auth_key)
        if entry is None or entry[1] is PointFailure.UNANSWERED:
            return False
        return entry[1] is PointFailure.REFUSED or entry[2] >= MAX_FAILED
