"""`--via`: a proxy that runs already, instead of a client of one's own."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast

import typer

from torkit.cli.client_options import ClientSettings
from torkit.cli.options import Options
from torkit.cli.running import open_client, read_network
from torkit.cli.voice import say
from torkit.errors import UsageError
from torkit.targets import parse_local

if TYPE_CHECKING:
    from torkit.client import Tor
    from torkit.proto.socks_client import Credentials

HOW_TO_NAME = "write it like 127.0.0.1:9150, user:password@127.0.0.1:9150 or unix:PATH"

ViaPlace = Annotated[
    str | None,
    typer.Option(
        "--via",
        metavar="PROXY",
        help="A proxy that runs already, such as torkit socks: [USER:PASSWORD@]ADDRESS:PORT or unix:PATH.",
    ),
]
AllowRemote = Annotated[
    bool,
    typer.Option(
        "--allow-remote", help="Let --via name another machine: what goes there is not encrypted by torkit."
    ),
]


class Proxy(NamedTuple):
    """The proxy of `--via`. `place` is an IP address and a port, or the path of a Unix socket."""

    place: tuple[str, int] | str
    credentials: "Credentials | None" = None


def proxy_wanted(
    via: ViaPlace = None,
    allow_remote: AllowRemote = False,
    *,
    path: str | None = None,
    entry_nodes: str | None = None,
    exit_nodes: str | None = None,
    exclude_nodes: str | None = None,
    padding: str = "auto",
    max_memory: str | None = None,
    pow_max_effort: str | None = None,
    vanguards: str = "lite",
) -> Proxy | None:
    """Raises UsageError, also for options that are the proxy's affair."""
    if via is None:
        if allow_remote:
            raise UsageError("--allow-remote is for --via, and has no use without it")
        return None
    of_the_proxy = {
        "--path": path,
        "--entry-nodes": entry_nodes,
        "--exit-nodes": exit_nodes,
        "--exclude-nodes": exclude_nodes,
        "--padding": None if padding == "auto" else padding,
        "--max-memory": max_memory,
        "--pow-max-effort": pow_max_effort,
        "--vanguards": None if vanguards == "lite" else vanguards,
    }
    for option, value in of_the_proxy.items():
        if value is not None:
            raise UsageError(f"{option} has no use beside --via", hint="give it to the proxy")
    return parse_via(via, allow_remote=allow_remote)


def parse_via(text: str, *, allow_remote: bool) -> Proxy:
    """Returns the proxy of `--via`. Warns where it is on another machine. Raises UsageError."""
    from torkit.proto.socks_client import MAX_CREDENTIAL_LEN, Credentials

    before, at, path = text.rpartition("@unix:")
    if at:
        where = f"unix:{path}"
    elif text.startswith("unix:"):
        where = text
    else:
        before, at, where = text.rpartition("@")
    credentials = None
    if at:
        user, _, password = before.partition(":")
        credentials = Credentials(os.fsencode(user), os.fsencode(password))
        if not user or max(map(len, credentials)) > MAX_CREDENTIAL_LEN:
            raise UsageError(f"--via: a user has 1 to {MAX_CREDENTIAL_LEN} bytes, a password as many at most")
    if where.startswith("unix:"):
        if where == "unix:":
            raise UsageError("--via: unix: wants a path", hint=HOW_TO_NAME)
        return Proxy(where.removeprefix("unix:"), credentials)
    host, port = parse_local("--via", where, HOW_TO_NAME)
    if port == 0:
        raise UsageError("--via: port 0 cannot be connected to")
    if not ip_address(host).is_loopback:
        if not allow_remote:
            raise UsageError(
                f"--via: {host} is another machine, and what goes to a proxy is not encrypted",
                hint="have it come through ssh -L or a VPN; --allow-remote goes on without",
            )
        say(f"--via: {host} is another machine: whoever is in between sees where you go, and what is sent")
    return Proxy((host, port), credentials)


@asynccontextmanager
async def open_way(
    options: Options, settings: ClientSettings, proxy: Proxy | None, *, spare_circuits: int = 0
) -> "AsyncIterator[Tor]":
    """The proxy if one is named, else a client of our own as `open_client` makes it.

    A proxy has what connect, resolve and run use of a client, but no paths: network, progress, wait_ready,
    request, connect, resolve and settle.
    """
    if proxy is None:
        async with open_client(options, settings=settings, spare_circuits=spare_circuits) as tor:
            yield tor
    else:
        from torkit.net.via import Via

        yield cast("Tor", Via(*proxy, network=await read_network(options)))
