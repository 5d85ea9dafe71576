"""The network as a client sees it: a consensus joined with the microdescriptors held for it.

Everything is looked up in columns; a `Relay` is made when somebody asks for that relay, and kept.
Who may be trusted, fetched or chosen is decided elsewhere.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from torkit.directory.consensus import Consensus
from torkit.directory.geoip import UNKNOWN
from torkit.directory.microdesc import REJECT_ALL, PortPolicy, exit_policies, parse_microdesc
from torkit.directory.netdoc import DIGEST_LEN, Protocols
from torkit.directory.positions import Position, flags_refusal
from torkit.directory.steps import Steps, complete
from torkit.errors import DocumentError, UsageError

# Implementation limits.

POLICIES_STEP = 200  # relays whose exit policies are read in one step: 2 ms where each has another


# The country of an address in its usual text, as `geoip.country_of` names it; None where nothing says.
CountryOf = Callable[[str], str | None]


NO_EXIT = (REJECT_ALL, REJECT_ALL)  # the policies of a relay that is none


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
        self._policies: list[tuple[PortPolicy, PortPolicy] | None] = [None] * len(consensus.relays)
        self._weights: dict[Position, array[float]] = {}
        self._memos: dict[tuple[Any, ...], Any] = {}

    def __len__(self) -> int:
        return len(self.consensus.relays)

    def with_consensus(self, consensus: Consensus) -> "Directory":
        """Returns the same microdescriptors under another consensus."""
        return Directory(consensus, self._microdescs, self._country_of)

    def renewed(self) -> "Directory":
        """Returns the same, now that more microdescriptors have come."""
        renewed = Directory(self.consensus, self._microdescs, self._country_of)
        renewed._policies = self._policies
        return renewed

    # Single relays.

    def relay_at(self, index: int) -> Relay | None:
        """Returns the relay at this place in the consensus; None without a usable microdescriptor."""
        try:
            return self._relays[index]
        except KeyError:
            relay = self._relays[index] = self._join(index)
            return relay

    def relay(self, identity: bytes) -> Relay | None:
        """Returns the relay with this identity, 20 bytes."""
        index = self.consensus.relays.index_of(identity)
        return None if index is None else self.relay_at(index)

    def indexes_of(self, name: str) -> list[int]:
        """Returns the places of relays called `name`: a fingerprint, with or without `$`, or a nickname."""
        digits = fingerprint_in(name)
        if len(digits) == 2 * DIGEST_LEN:
            try:
                index = self.consensus.relays.index_of(bytes.fromhex(digits))
            except ValueError:
                return []
            return [] if index is None else [index]
        return self.consensus.relays.indexes_of_nickname(name)

    def indexes_in(self, country: str) -> list[int]:
        """Returns the places of the relays in a country, by its code; `geoip.UNKNOWN` means none known.

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
        text = self.microdesc_at(index)
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
        digests = self.consensus.relays.digests
        return tuple([digest for digest, held in zip(digests, self.held, strict=True) if digest and not held])

    def has_microdesc(self, index: int) -> bool:
        """Returns whether the microdescriptor of the relay at this place is held."""
        return self.consensus.relays.digests[index] in self._microdescs

    def microdesc_at(self, index: int) -> bytes | None:
        """Returns the text of the microdescriptor of the relay at this place; None where it is not held."""
        digest = self.consensus.relays.digests[index]
        return self._microdescs.get(digest) if digest else None

    def lacks(self, index: int) -> bool:
        """Returns whether the relay at this place has a microdescriptor, and it is not held."""
        return bool(self.consensus.relays.digests[index]) and not self.has_microdesc(index)

    def indexes_with_family_ids(self) -> list[int]:
        """Returns the places of the relays that are certified members of a family, as far as it is known."""
        digests = self.consensus.relays.digests
        return [
            i for i, one in enumerate(digests) if one and b"\nfamily-ids " in self._microdescs.get(one, b"")
        ]

    def exit_policies_at(self, index: int) -> tuple[PortPolicy, PortPolicy]:
        """Returns the IPv4 and IPv6 policies of the relay at this place, without making it an object."""
        policies = self._policies[index]
        if policies is None:
            text = self.microdesc_at(index)
            if text is None:
                return NO_EXIT
            try:
                policies = exit_policies(text)
            except DocumentError:
                policies = NO_EXIT
            policies = self._policies[index] = NO_EXIT if policies == NO_EXIT else policies
        return policies

    @cached_property
    def held(self) -> bytes:
        """A byte for each relay: 1 if its microdescriptor is held, else 0."""
        held = self._microdescs
        return bytes([digest in held for digest in self.consensus.relays.digests])

    @cached_property
    def exits(self) -> list[int]:
        """The places of the relays whose policies, as far as they are held, accept something."""
        return [i for i, held in enumerate(self.held) if held and self.exit_policies_at(i) is not NO_EXIT]

    def weights(self, position: Position) -> "array[float]":
        """Returns each relay's bandwidth, weighted for a position.

        path-spec, "Path selection and constraints".
        """
        if position in self._weights:
            return self._weights[position]
        relays = self.consensus.relays
        factors = {flags: self._weight_factor(position, flags) for flags in set(relays.flags)}
        pairs = zip(relays.bandwidths, relays.flags, strict=True)
        weights = array("d", [bandwidth * factors[flags] for bandwidth, flags in pairs])
        self._weights[position] = weights
        return weights

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
        """Returns how likely a draw for this position takes this relay, by flags and weights alone.

        The Exit flag stands for the exit policy, which only a microdescriptor tells. What else is in a path
        is not looked at.
        """

        def may_be_drawn(flags: frozenset[str]) -> bool:
            lets_out = position is not Position.EXIT or "Exit" in flags
            return lets_out and flags_refusal(flags, position) is None

        fits = {flags: may_be_drawn(flags) for flags in set(self.consensus.relays.flags)}
        candidates = [i for i, flags in enumerate(self.consensus.relays.flags) if fits[flags]]
        if not fits[self.consensus.relays.flags[index]]:
            return 0.0
        weights = self.weights(position)
        total = sum(weights[i] for i in candidates)
        return weights[index] / total if total else 1 / len(candidates)

    def usable_fraction(self) -> float:
        """As `usable_fraction_in_steps`, at once."""
        return complete(self.usable_fraction_in_steps())

    def usable_fraction_in_steps(self) -> Steps[float]:
        """Which part of all bandwidth-weighted paths can be built with the microdescriptors held.

        path-spec, "We don't build circuits until we have enough directory info".
        """
        everyone = range(len(self))
        for index, held in enumerate(self.held):
            if held:
                self.exit_policies_at(index)
            if index % POLICIES_STEP == 0:
                yield
        yield
        flags = self.consensus.relays.flags
        guards = [i for i in everyone if "Guard" in flags[i]]
        exits = [i for i in everyone if "Exit" in flags[i] and self._policies[i] is not NO_EXIT]
        yield
        middle = yield from self._held_fraction(Position.MIDDLE, everyone)
        has_exits = any("Exit" in one for one in flags)
        exit_fraction = (yield from self._held_fraction(Position.EXIT, exits)) if has_exits else middle
        guard_fraction = yield from self._held_fraction(Position.GUARD, guards)
        return guard_fraction * middle * exit_fraction

    def is_usable(self) -> bool:
        """As `is_usable_in_steps`, at once."""
        return complete(self.is_usable_in_steps())

    def is_usable_in_steps(self) -> Steps[bool]:
        """Returns whether circuits for traffic may be built. Less could be a view that somebody chose.

        Reads all exit policies: paths are chosen in a moment then.
        """
        fraction = yield from self.usable_fraction_in_steps()
        return fraction >= self.consensus.param("min_paths_for_circs_pct") / 100

    def _held_fraction(self, position: Position, indexes: Sequence[int]) -> Steps[float]:
        weights = self.weights(position)
        yield
        if not any(weights[i] for i in indexes):
            weights = array("d", [1.0]) * len(self)
        total = sum([weights[i] for i in indexes])
        yield
        held = self.held
        return sum([weights[i] for i in indexes if held[i]]) / total if total else 0.0

    def memo(self, key: tuple[Any, ...], make: Callable[[], Any], limit: int) -> Any:
        """Returns the value that `make` has made for `key`.

        At most `limit` are kept, as long as this directory.
        """
        if key not in self._memos:
            if len(self._memos) >= limit:
                self._memos.clear()
            self._memos[key] = make()
        return self._memos[key]


def fingerprint_in(name: str) -> str:
    """Returns the fingerprint in `$FINGERPRINT~nickname`, either end of which may be missing; else `name`."""
    return name.removeprefix("$").partition("~")[0]


def supports(relay: Relay, protocol: str, version: int) -> bool:
    """Returns whether a relay lists exactly this subprotocol version, as in `supports(relay, "Relay", 4)`."""
    return relay.protocols.supports(protocol, version)
