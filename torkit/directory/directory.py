"""The network as a client sees it: a consensus joined with the microdescriptors held for it.

Everything is looked up in columns; a `Relay` is made when somebody asks for that relay, and kept.
Who may be trusted, fetched or chosen is decided elsewhere.
"""

from array import array
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from torkit.directory.consensus import Consensus
from torkit.directory.geoip import UNKNOWN
from torkit.directory.microdesc import REJECT_ALL, PortPolicy, exit_policies, parse_microdesc
from torkit.directory.netdoc import DIGEST_LEN, Protocols
from torkit.errors import DocumentError, UsageError

# Specification constants.


# The country of an address in its usual text, as `geoip.country_of` names it; None where nothing says.
CountryOf = Callable[[str], str | None]


class Position(Enum):
    """A place in a path. The value is its letter in the names of the bandwidth weights."""

    GUARD = "g"
    MIDDLE = "m"
    EXIT = "e"


# The flags without which a relay is not drawn for a position.
POSITION_FLAGS = {
    Position.GUARD: frozenset({"Fast", "Guard", "Running", "Stable", "V2Dir", "Valid"}),
    Position.MIDDLE: frozenset({"Fast", "Running", "Valid"}),
    Position.EXIT: frozenset({"Exit", "Fast", "Running", "Valid"}),
}


class Relay(NamedTuple):
    """One relay, all that is known of it.

    `identity` is 20 bytes, the keys 32; `ed25519_identity` is None where the authorities do not
    agree on it. `networks` holds its /16 and, with an IPv6 address, its /32: what no two relays of
    a path share. `bandwidth` is the consensus weight.
    """

    nickname: str
    identity: bytes
    ed25519_identity: bytes | None
    ntor_onion_key: bytes
    address: str
    or_port: int
    ipv6: tuple[str, int] | None
    flags: frozenset[str]
    bandwidth: int
    version: str | None
    protocols: Protocols
    family: frozenset[str]
    family_ids: frozenset[str]
    policy: PortPolicy
    policy6: PortPolicy
    networks: frozenset[bytes]

    @property
    def fingerprint(self) -> str:
        """The identity as 40 uppercase hexadecimal digits."""
        return self.identity.hex().upper()

    def __str__(self) -> str:
        return f"${self.fingerprint}~{self.nickname}"


class Directory:
    """A consensus and its microdescriptors, for as long as both are the newest.

    Made anew when either changes, which is cheap: nothing is joined before it is looked at.
    `microdescs` maps digests to exact texts. Raises nothing for a microdescriptor that cannot be
    read: its relay is as if missing. Without `country_of`, no relay can be asked for by its country.
    """

    def __init__(
        self,
        consensus: Consensus,
        microdescs: Mapping[bytes, bytes],
        country_of: CountryOf | None = None,
    ) -> None:
        self.consensus = consensus
        self._microdescs = microdescs
        self._country_of = country_of
        self._relays: dict[int, Relay | None] = {}
        self._memos: dict[tuple[Any, ...], Any] = {}

    def __len__(self) -> int:
        return len(self.consensus.relays)

    def with_consensus(self, consensus: Consensus) -> "Directory":
        """The same microdescriptors under another consensus."""
        return Directory(consensus, self._microdescs, self._country_of)

    # Single relays.

    def relay_at(self, index: int) -> Relay | None:
        """The relay at this place in the consensus; None without a usable microdescriptor."""
        try:
            return self._relays[index]
        except KeyError:
            relay = self._relays[index] = self._join(index)
            return relay

    def relay(self, identity: bytes) -> Relay | None:
        """The relay with this identity, 20 bytes."""
        index = self.consensus.relays.index_of(identity)
        return None if index is None else self.relay_at(index)

    def indexes_of(self, name: str) -> list[int]:
        """The places of what a person calls `name`: a fingerprint, with or without `$`, or a nickname."""
        digits = name.removeprefix("$").partition("~")[0]
        if len(digits) == 2 * DIGEST_LEN:
            try:
                index = self.consensus.relays.index_of(bytes.fromhex(digits))
            except ValueError:
                return []
            return [] if index is None else [index]
        return self.consensus.relays.indexes_of_nickname(name)

    def indexes_in(self, country: str) -> list[int]:
        """The places of the relays in a country, by its code; of `geoip.UNKNOWN`, those in none known.

        A relay is where its IPv4 address is, as for C tor. Raises UsageError where nothing tells countries,
        and what looking them up raises.
        """
        return self._indexes_by_country.get(country.lower(), [])

    @cached_property
    def _indexes_by_country(self) -> dict[str, list[int]]:
        if self._country_of is None:
            raise UsageError("relays are asked for by country, and nothing says where they are")
        indexes: dict[str, list[int]] = {}
        for index, status in enumerate(self.consensus.relays):
            indexes.setdefault(self._country_of(status.address) or UNKNOWN, []).append(index)
        return indexes

    def _join(self, index: int) -> Relay | None:
        digest = self.consensus.relays.digests[index]
        text = self._microdescs.get(digest) if digest else None
        if text is None:
            return None
        try:
            microdesc = parse_microdesc(text)
        except DocumentError:
            return None
        status = self.consensus.relays[index]
        ipv6 = status.ipv6 or microdesc.ipv6
        networks = [IPv4Address(status.address).packed[:2]]
        if ipv6:
            networks.append(IPv6Address(ipv6[0]).packed[:4])
        return Relay(
            nickname=status.nickname,
            identity=status.identity,
            ed25519_identity=None if "NoEdConsensus" in status.flags else microdesc.ed25519_identity,
            ntor_onion_key=microdesc.ntor_onion_key,
            address=status.address,
            or_port=status.or_port,
            ipv6=ipv6,
            flags=status.flags,
            bandwidth=status.bandwidth,
            version=status.version,
            protocols=status.protocols,
            family=microdesc.family,
            family_ids=microdesc.family_ids,
            policy=microdesc.policy,
            policy6=microdesc.policy6,
            networks=frozenset(networks),
        )

    # All relays at once.

    @cached_property
    def missing(self) -> tuple[bytes, ...]:
        """The digests of the microdescriptors that the consensus lists and we do not hold."""
        held = self._microdescs
        return tuple(digest for digest in self.consensus.relays.digests if digest and digest not in held)

    def has_microdesc(self, index: int) -> bool:
        """Returns whether the microdescriptor of the relay at this place is held."""
        return self.consensus.relays.digests[index] in self._microdescs

    def lacks(self, index: int) -> bool:
        """Returns whether the relay at this place has a microdescriptor, and it is not held."""
        return bool(self.consensus.relays.digests[index]) and not self.has_microdesc(index)

    def indexes_with_family_ids(self) -> list[int]:
        """The places of the relays that are certified members of a family, as far as it is known."""
        digests = self.consensus.relays.digests
        return [
            i for i, one in enumerate(digests) if one and b"\nfamily-ids " in self._microdescs.get(one, b"")
        ]

    def exit_policies_at(self, index: int) -> tuple[PortPolicy, PortPolicy]:
        """The IPv4 and IPv6 policies of the relay at this place, without making it an object."""
        digest = self.consensus.relays.digests[index]
        text = self._microdescs.get(digest) if digest else None
        try:
            return exit_policies(text) if text else (REJECT_ALL, REJECT_ALL)
        except DocumentError:
            return REJECT_ALL, REJECT_ALL

    def weights(self, position: Position) -> "array[float]":
        """Each relay's bandwidth, weighted for a position. path-spec, "Path selection and constraints"."""
        relays = self.consensus.relays
        factors = {flags: self._weight_factor(position, flags) for flags in set(relays.flags)}
        pairs = zip(relays.bandwidths, relays.flags, strict=True)
        return array("d", (bandwidth * factors[flags] for bandwidth, flags in pairs))

    def _weight_factor(self, position: Position, flags: frozenset[str]) -> float:
        weights = self.consensus.bandwidth_weights
        names = [f"W{position.value}{kind}" for kind in "gmed"] + ["Wgb", "Wmb", "Web", "Wdb"]
        names = [name for name in names if name != "Wge"]  # there is none: guards have the Guard flag
        if any(weights.get(name, -1) < 0 for name in names):
            return 1.0  # "setting the weights to the default value"
        is_guard, is_exit = "Guard" in flags, "Exit" in flags and "BadExit" not in flags
        kind = "d" if is_guard and is_exit else "g" if is_guard else "e" if is_exit else "m"
        scale = self.consensus.param("bwweightscale")
        factor = weights.get(f"W{position.value}{kind}", 0) / scale
        return factor * weights[f"W{kind}b"] / scale if "V2Dir" in flags else factor

    def probability(self, position: Position, index: int) -> float:
        """How likely a draw for this position takes the relay at this place, by flags and weights alone.

        Exit policies, which only microdescriptors tell, and what else is in a path are not looked at.
        """
        fits = {flags: _fits(position, flags) for flags in set(self.consensus.relays.flags)}
        candidates = [i for i, flags in enumerate(self.consensus.relays.flags) if fits[flags]]
        if not fits[self.consensus.relays.flags[index]]:
            return 0.0
        weights = self.weights(position)
        total = sum(weights[i] for i in candidates)
        return weights[index] / total if total else 1 / len(candidates)

    def usable_fraction(self) -> float:
        """Which part of all bandwidth-weighted paths can be built with the microdescriptors held.

        path-spec, "We don't build circuits until we have enough directory info".
        """
        flags = self.consensus.relays.flags
        everyone = range(len(self))
        guards = [i for i in everyone if "Guard" in flags[i]]
        exits = [i for i in everyone if "Exit" in flags[i] and not self._is_known_to_reject_all(i)]
        middle = self._held_fraction(Position.MIDDLE, list(everyone))
        has_exits = any("Exit" in one for one in flags)
        exit_fraction = self._held_fraction(Position.EXIT, exits) if has_exits else middle
        return self._held_fraction(Position.GUARD, guards) * middle * exit_fraction

    def is_usable(self) -> bool:
        """Returns whether circuits for traffic may be built. Less could be a view that somebody chose."""
        return self.usable_fraction() >= self.consensus.param("min_paths_for_circs_pct") / 100

    def _is_known_to_reject_all(self, index: int) -> bool:
        return self.has_microdesc(index) and all(one.rejects_all for one in self.exit_policies_at(index))

    def _held_fraction(self, position: Position, indexes: list[int]) -> float:
        weights = self.weights(position)
        if not any(weights[i] for i in indexes):
            weights = array("d", [1.0]) * len(self)
        total = sum(weights[i] for i in indexes)
        return sum(weights[i] for i in indexes if self.has_microdesc(i)) / total if total else 0.0

    def memo(self, key: tuple[Any, ...], make: Callable[[], Any], limit: int) -> Any:
        """What `make` returned for `key`, kept as long as this directory; at most `limit` such values."""
        if key not in self._memos:
            if len(self._memos) >= limit:
                self._memos.clear()
            self._memos[key] = make()
        return self._memos[key]


def _fits(position: Position, flags: frozenset[str]) -> bool:
    if position is not Position.MIDDLE and "MiddleOnly" in flags:
        return False
    if position is Position.EXIT and "BadExit" in flags:
        return False
    return POSITION_FLAGS[position] <= flags


def supports(relay: Relay, protocol: str, version: int) -> bool:
    """Returns whether a relay lists exactly this subprotocol version, as in `supports(relay, "Relay", 4)`."""
    return relay.protocols.supports(protocol, version)
