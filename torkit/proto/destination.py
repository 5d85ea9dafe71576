"""Checks what an exit may be asked for: a host name or an address of the internet at large.

Everything else is refused before anything is sent: names that mean something only inside Tor, which an
exit's resolver must never see, and names and addresses that mean a place near whoever looks them up. An
exit would look near itself, and a program that asks for one has most likely been tricked, or was to be
told not to use a proxy for it.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from torkit.errors import UsageError

# Addresses that lead nowhere, or for everybody somewhere else. Multicast is not among them, nor are addresses
# kept for examples. (What C tor calls internal.)
_INTERNAL_IPV4 = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8"),
            *("169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
        ),
    )
)
_INTERNAL_IPV6 = tuple(map(IPv6Network, ("::/127", "fc00::/7", "fe80::/10", "fec0::/10")))

# The last labels of names for this machine (RFC 6761) and for its neighbours (RFC 6762, multicast DNS).
_LOCAL_LABELS = frozenset({"localhost", "local"})

# What is said of them.
INTERNAL = "the destination is on this machine or its own network, where no exit can reach it"
INTERNAL_HINT = "have the program connect to it without a proxy"

# Implementation limits.

MAX_HOST_LEN = 255  # bytes: what SOCKS5's one-byte lengths allow

# Letters, digits, "-" and "_"; no label begins with a sign; one final dot, as in C tor. Nothing here can be
# mistaken for the other fields of a BEGIN. Too long names are refused in messages.py.
_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_-]*\.)*[A-Za-z0-9][A-Za-z0-9_-]*\.?")


def check_destination(host: str, *, allow_internal: bool, allow_onion: bool = False) -> str:
    """Returns `host` as `check_host` does, if an exit may be asked for it. Raises UsageError.

    `allow_internal` is for private networks, where every address is internal: there only the unspecified
    address is refused, which is nowhere.
    """
    address = _parse_host(host)
    if address is None:
        label = _check_name(host, allow_onion=allow_onion)
        if label in _LOCAL_LABELS and not allow_internal:
            raise UsageError(INTERNAL, hint=INTERNAL_HINT)
        return host
    if address.is_unspecified:
        raise UsageError("the unspecified address is no destination")
    if not allow_internal and is_internal(address):
        raise UsageError(INTERNAL, hint=INTERNAL_HINT)
    return str(address)


def is_onion(host: str) -> bool:
    """Returns whether `host` is a name in .onion, which no exit and no resolver may ever see."""
    return _last_label(host) == "onion"


def check_host(host: str, *, allow_onion: bool = False) -> str:
    """Returns `host` as a destination: a name as it is, an address in its usual text without brackets.

    Raises UsageError for a text that is neither, and for names that mean something only inside Tor: in .exit
    always, in .onion unless `allow_onion` says that no exit will be asked for it. Whether it is an onion
    address is not looked at here.
    """
    if (address := _parse_host(host)) is not None:
        return str(address)
    _check_name(host, allow_onion=allow_onion)
    return host


def _parse_host(host: str) -> IPv4Address | IPv6Address | None:
    """Returns the address that `host` spells, perhaps in brackets; None for a name."""
    return parse_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)


def _check_name(host: str, *, allow_onion: bool) -> str:
    """Returns the last label of a name, in lower case. Raises UsageError as `check_host`."""
    if len(host) > MAX_HOST_LEN or not _NAME.fullmatch(host):
        hint = None if host.isascii() else "write the name in its xn-- form"
        raise UsageError("the destination is neither an address nor a host name", hint=hint)
    label = _last_label(host)
    if label == "onion" and not allow_onion:
        raise UsageError(
            "a name in .onion cannot be looked up", hint="have the program connect to it by name"
        )
    if label == "exit":
        raise UsageError("names in .exit are not supported", hint="choose an exit with --path")
    return label


_ADDRESS_CHARS = "0123456789abcdefABCDEF.:"


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Returns the address that `text` spells, or None: an interface (`%eth0`) means nothing to an exit."""
    if text.strip(_ADDRESS_CHARS):  # most names, at a tenth of what it costs to try
        return None
    try:
        return ip_address(text)
    except ValueError:
        return None


def is_internal(address: IPv4Address | IPv6Address) -> bool:
    """Returns whether an address means another host, or none, on every network."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return any(address in network for network in _INTERNAL_IPV6)
        address = address.ipv4_mapped
    return any(address in network for network in _INTERNAL_IPV4)


def _last_label(name: str) -> str:
    return name.rstrip(".").rpartition(".")[2].lower()
