"""The places of `--listen`, at which a proxy listens, opened."""

import os
import re
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from torkit.cli.handed import handed_over
from torkit.cli.identities import check_identities, parse_isolation, parse_rotate
from torkit.cli.voice import say
from torkit.errors import TorkitError, UsageError
from torkit.targets import format_address, parse_local

if TYPE_CHECKING:
    from collections.abc import Callable

    from torkit.net.proxy import Isolate, Isolation, Rotate
    from torkit.net.proxy.shared import Listener
    from torkit.proto.automap import Automap
    from torkit.proto.first_byte import AnyProtocol

HOW_TO_LISTEN = (
    "write it like 127.0.0.1:9150, [::1]:9150, 9150 alone, unix:PATH, auth:9151, dns:5353, trans:9040, "
    "or systemd"
)

BACKLOG = 1024  # connections that wait to be accepted

HINTS = {
    EADDRINUSE: "another program uses this port; --listen 0 picks a free one",
    EADDRNOTAVAIL: "no network of this computer has this address; --listen 9150 is for this computer alone",
    EACCES: "ports below 1024 are the system's; --listen 9150 is free to use",
}


class Place(NamedTuple):
    """One place to listen. `kind` is `proxy`, `auth`, `trans`, `dns` (UDP) or `unix`: its host is a path."""

    kind: str
    host: str
    port: int = 0
    isolation: "Isolation | None" = None  # where it has one of its own
    descriptor: int | None = None  # where it is open already

    @property
    def name(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.host}"
        address = format_address(self.host, self.port)
        return address if self.kind == "proxy" else f"{self.kind}:{address}"

    def at(self, sock: socket.socket) -> "Place":
        """Returns the same with the port that the system has chosen."""
        return self if self.kind == "unix" else self._replace(port=sock.getsockname()[1])


def parse_place(text: str, option: str = "--listen") -> Place:
    """Returns the place that `--listen`, or another option, names. Raises UsageError."""
    kind, colon, rest = text.partition(":")
    if colon and kind == "unix":
        if not rest:
            raise UsageError(f"{option}: unix: wants a path", hint=HOW_TO_LISTEN)
        return Place("unix", rest)
    if colon and kind in ("auth", "dns", "trans"):
        return Place(kind, *parse_local(option, rest, HOW_TO_LISTEN))
    return Place("proxy", *parse_local(option, text, HOW_TO_LISTEN))


def parse_own_isolation(
    text: str, isolate: "frozenset[Isolate] | None", rotate: "Rotate | None"
) -> "Isolation":
    """What `,isolate=WHAT+WHAT,rotate=10m` behind a place asks for; the rest is as it is for all.

    Such a listener shares circuits with no other. Raises UsageError.
    """
    from torkit.net.proxy import Isolate, Isolation

    options = dict(option.split("=", 1) for option in text.split(",")[1:])
    if isolate is None or "isolate" in options:
        own = options.get("isolate")
        isolate = parse_isolation(own and f"{own}+{Isolate.LISTENER.value}", "+")
    if rotate is None or "rotate" in options:
        rotate = parse_rotate(options.get("rotate"))
    check_identities(isolate, rotate)
    return Isolation(isolate | {Isolate.LISTENER}, rotate)


def parse_places(
    texts: Sequence[str],
    *,
    allow_remote: bool,
    isolate: "frozenset[Isolate] | None" = None,
    rotate: "Rotate | None" = None,
) -> list[Place]:
    """Returns the places of all `--listen`. `isolate` and `rotate` are for places without their own.

    Warns of other machines, where those are allowed. Raises UsageError.
    """
    places = []
    for text in texts:
        where, own = _split(text)
        isolation = parse_own_isolation(own, isolate, rotate) if own else None
        places += [place._replace(isolation=isolation) for place in _places_at(where)]
    for place in places:
        if place.kind == "unix" or ip_address(place.host).is_loopback:
            continue
        if not allow_remote:
            raise UsageError(
                f"--listen: {place.host} is not a loopback address",
                hint="--allow-remote lets other machines use this proxy",
            )
        say(f"{place.host} is not a loopback address: other machines may use this proxy, and see what passes")
    return places


def _places_at(where: str) -> list[Place]:
    """Returns one place, or those that a service manager has opened."""
    kind, _, name = where.partition(":")
    if kind != "systemd":
        return [parse_place(where)]
    handed = handed_over(name, os.environ)
    return [Place(one.kind, one.host, one.port, descriptor=one.descriptor) for one in handed]


def _split(text: str) -> tuple[str, str]:
    """Returns a place, and the options behind it with their commas."""
    match = re.search(r"(?:,(?:isolate|rotate)=[^,=]*)+\Z", text)
    return (text, "") if match is None else (text[: match.start()], match[0])


@contextmanager
def listening(place: Place) -> Iterator[socket.socket]:
    """A socket that listens there; closed at the end, and our Unix socket removed. Raises TorkitError."""
    if place.descriptor is not None:
        with socket.socket(fileno=place.descriptor) as sock:
            yield sock
        return
    try:
        sock = _open_unix(place.host) if place.kind == "unix" else _open(place)
    except OSError as error:
        raise TorkitError(
            f"cannot listen on {place.name}: {error.strerror or error}",
            hint=None if place.kind == "unix" else HINTS.get(error.errno or 0),
        ) from error
    made = os.stat(place.host) if place.kind == "unix" else None
    try:
        with sock:
            yield sock
    finally:
        if made is not None:
            with suppress(OSError):
                if os.path.samestat(made, os.lstat(place.host)):
                    os.unlink(place.host)


def listeners_of(
    opened: "Sequence[tuple[Place, socket.socket]]", check: "Callable[[str], str]", automap: "Automap | None"
) -> "list[Listener]":
    """Returns the listeners of these sockets. `check` and `automap` are those of DnsListener."""
    import trio

    from torkit.net.proxy.dns import DnsListener
    from torkit.net.proxy.listener import StreamListener
    from torkit.net.proxy.transparent import transparent_listener
    from torkit.proto.first_byte import AnyProtocol

    listeners: list[Listener] = []
    for place, sock in opened:
        if place.kind == "dns":
            listeners.append(DnsListener(sock, check, automap, place.isolation))
            continue
        to_trio = trio.socket.from_stdlib_socket(sock)
        is_lent = place.descriptor is not None
        if place.kind == "trans":
            assert automap is not None
            listeners.append(transparent_listener(to_trio, automap, place.isolation, lent=is_lent))
        else:
            any_protocol = partial(AnyProtocol, asks_credentials=place.kind == "auth")
            make_door = partial(_make_door, any_protocol)
            listeners.append(StreamListener(to_trio, make_door, place.isolation, lent=is_lent))
    return listeners


def _make_door(any_protocol: "Callable[[], AnyProtocol]", _: socket.socket) -> "AnyProtocol":
    return any_protocol()


def _open(place: Place) -> socket.socket:
    family = socket.AF_INET6 if ip_address(place.host).version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM if place.kind == "dns" else socket.SOCK_STREAM)
    try:
        if place.kind != "dns":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((place.host, place.port))
        if place.kind != "dns":
            sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _open_unix(path: str) -> socket.socket:
    """Open a socket for this user alone. It replaces a socket that nobody listens at, and nothing else."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
    sock = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o177)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock
