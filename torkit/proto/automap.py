"""Addresses made up for names, so that a program which insists on an address still has Tor look up the name.

A program asks our DNS server for a name, gets an address that nobody has, and connects to it; the connection
arrives here, and its address tells the name again. (C tor: AutomapHostsOnResolve, VirtualAddrNetwork.)
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

# Kept for measuring devices (RFC 2544): on no network, and no program takes an address there for one of its
# own machine. C tor's 127.192.0.0/10 is refused by programs that fear requests to their own machine.
IPV4 = IPv4Network("198.18.0.0/15")

# Of the unique local addresses (RFC 4193): "tork" in ASCII. C tor's fe80::/10 needs an interface's name.
IPV6 = IPv6Network("fd74:6f72:6b00::/48")

# Implementation limit: names remembered. A name that has been used longest ago is forgotten first, and its
# address is made up for another only after all others have had their turn.
MAX_NAMES = 16_384


class Automap:
    """The names of one run. Each has one IPv4 and one IPv6 address, of the same place in its network."""

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._max_names = max_names
        self._names: dict[int, str] = {}  # by place, the one used longest ago first
        self._places: dict[str, int] = {}
        self._last = 0  # place given; the network's own address, place 0, is never

    def addresses_of(self, name: str) -> tuple[IPv4Address, IPv6Address]:
        """Returns the addresses of `name`, which differs from no other by case or a final dot."""
        name = name.rstrip(".").lower()
        place = self._places.get(name)
        if place is None:
            place = self._next_place()
            self._places[name] = place
        self._use(place, name)
        if len(self._names) > self._max_names:
            oldest = next(iter(self._names))
            del self._places[self._names.pop(oldest)]
        return IPV4[place], IPV6[place]

    def name_of(self, address: IPv4Address | IPv6Address) -> str | None:
        """Returns the name that `address` was made up for; None if none is remembered."""
        if not is_made_up(address):
            return None
        network = IPV4 if address.version == 4 else IPV6
        place = int(address) - int(network.network_address)
        name = self._names.get(place)
        if name is not None:
            self._use(place, name)
        return name

    def _use(self, place: int, name: str) -> None:
        self._names.pop(place, None)
        self._names[place] = name

    def _next_place(self) -> int:
        place = self._last
        while True:
            place = place % (IPV4.num_addresses - 2) + 1
            if place not in self._names:
                self._last = place
                return place


def is_made_up(address: IPv4Address | IPv6Address) -> bool:
    """Returns whether `address` means nothing but the name that it was made up for."""
    return address in (IPV4 if address.version == 4 else IPV6)
