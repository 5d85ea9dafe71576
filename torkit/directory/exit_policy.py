"""Full exit policies, as server descriptors have them: rules in order, the first that matches decides.

The summaries in consensus and microdescriptors are `PortPolicy`.
dir-spec, "Nonterminals in server descriptors".
"""

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from torkit.directory.netdoc import decode_int

_PATTERN = re.compile(
    r"(?:\*|\[(?P<ip6>[0-9A-Fa-f:.]{2,45})\]|(?P<ip4>[0-9.]{7,15}))(?:/(?P<mask>[0-9.]{1,15}))?:(?P<ports>[^:]+)"
)


class PolicyRule(NamedTuple):
    """One line: whether ports `low` to `high` of `network`, or of every address if None, are accepted."""

    is_accept: bool
    network: IPv4Network | IPv6Network | None
    low: int
    high: int

    def __str__(self) -> str:
        network = "*" if self.network is None else str(self.network)
        if isinstance(self.network, IPv6Network):
            network = f"[{self.network.network_address}]/{self.network.prefixlen}"
        ports = str(self.low) if self.low == self.high else f"{self.low}-{self.high}"
        ports = "*" if (self.low, self.high) == (1, 65535) else ports
        return f"{'accept' if self.is_accept else 'reject'} {network}:{ports}"


class ExitPolicy(tuple[PolicyRule, ...]):
    """A relay's rules, in order."""

    __slots__ = ()

    def accepts(self, address: str, port: int) -> bool:
        """Returns whether a stream to this IPv4 or IPv6 address and port, 1 to 65535, may be tried here.

        Raises ValueError for what is no address.
        """
        target = ip_address(address)
        if not 0 < port < 65536:
            return False
        for rule in self:
            if rule.low <= port <= rule.high and (rule.network is None or target in rule.network):
                return rule.is_accept
        return True  # "if no rule matches, the address will be accepted"

    @property
    def rejects_all(self) -> bool:
        """Returns whether no address is accepted, as the first rule for all addresses and ports tells."""
        for rule in self:
            if rule.is_accept and rule.high:
                return False
            if rule.network is None and rule.low <= 1 and rule.high == 65535:
                return True
        return False


@lru_cache(maxsize=4096)  # most exits reject the same networks and accept the same ports
def decode_rule(keyword: str, pattern: str) -> PolicyRule:
    """`address[/mask]:ports`, where an IPv6 address is in brackets. Raises ValueError.

    Port 0, which "some implementations incorrectly generate", is accepted here and matches nothing.
    """
    match = _PATTERN.fullmatch(pattern)
    if match is None or (pattern[0] == "*" and match["mask"]):
        raise ValueError("an exit pattern address:ports expected")
    network: IPv4Network | IPv6Network | None = None
    if host := match["ip4"] or match["ip6"]:
        bits = 32 if match["ip4"] else 128
        prefix = bits if match["mask"] is None else _decode_mask(match["mask"], bits)
        try:
            network = ip_network(f"{host}/{prefix}", strict=False)
        except ValueError:
            raise ValueError("an IP address in the exit pattern expected") from None
    if match["ports"] == "*":
        return PolicyRule(keyword == "accept", network, 1, 65535)
    first, dash, last = match["ports"].partition("-")
    low = decode_int(first, 0, 65535)
    return PolicyRule(keyword == "accept", network, low, decode_int(last, low, 65535) if dash else low)


def _decode_mask(mask: str, bits: int) -> int:
    """Decode a prefix length, or for IPv4 a mask whose ones all stand before its zeros."""
    if "." not in mask:
        return decode_int(mask, 0, bits)
    try:
        zeros = ~int(IPv4Address(mask)) & 0xFFFFFFFF
    except AddressValueError:
        raise ValueError("a mask in dotted-quad format expected") from None
    if bits != 32 or zeros & (zeros + 1):
        raise ValueError("the mask of an IPv4 prefix expected")
    return 32 - zeros.bit_length()
