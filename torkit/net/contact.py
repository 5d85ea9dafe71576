"""Relays as far as a connection needs them, whatever document names them."""

from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple, Protocol, TypeGuard

from torkit.directory.directory import Relay
from torkit.proto.cells import IPAddress

# Implementation limit: addresses that are remembered as read, since circuits are extended to the same relays.
MAX_ADDRESSES = 256


class Contact(Protocol):
    """A relay as far as a connection needs it: from a directory, a fallback, or an authority."""

    @property
    def identity(self) -> bytes: ...
    @property
    def ed25519_identity(self) -> bytes | None: ...
    @property
    def address(self) -> str: ...
    @property
    def or_port(self) -> int: ...
    @property
    def ipv6(self) -> tuple[str, int] | None: ...


class DirectoryServer(NamedTuple):
    """A fallback or an authority, known by its RSA identity alone."""

    identity: bytes
    address: str
    or_port: int
    ipv6: tuple[str, int] | None
    ed25519_identity: None = None


def is_known(contact: Contact) -> TypeGuard[Relay]:
    """Returns whether we hold the keys of a relay, as all handshakes but CREATE_FAST need."""
    return isinstance(contact, Relay)


def name_of(contact: Contact) -> str:
    """Returns a relay's name for messages: its nickname, or its fingerprint where that is unknown."""
    return str(getattr(contact, "nickname", contact.identity.hex().upper()))


def or_addresses(contact: Contact) -> list[tuple[IPAddress, int]]:
    """Returns the addresses at which a relay listens, IPv4 first."""
    return [first_address(contact)] + ([(_read(contact.ipv6[0]), contact.ipv6[1])] if contact.ipv6 else [])


def first_address(contact: Contact) -> tuple[IPAddress, int]:
    """Returns the first of `or_addresses`."""
    return _read(contact.address), contact.or_port


@lru_cache(MAX_ADDRESSES)
def _read(address: str) -> IPAddress:
    return ip_address(address)
