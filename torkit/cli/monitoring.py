"""The state of a running proxy, served by `--metrics` and at the socket that `torkit status` asks."""

import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.listen import Place, listening, parse_place
from torkit.cli.options import Options
from torkit.cli.voice import say
from torkit.errors import TorkitError, UsageError

if TYPE_CHECKING:
    import socket

    import trio

    from torkit.client import Tor
    from torkit.net.circuit.circuit import Circuit
    from torkit.net.monitor.pages import Answer, Page
    from torkit.net.monitor.tally import Tally

STATUS_SOCKET = "status.sock"  # in the data directory, for its owner alone
STATUS_PAGE = "/status"

logger = logging.getLogger(__name__)

Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="WHERE",
        help="Serve /metrics for Prometheus, and /healthz, at [ADDRESS:]PORT or unix:PATH.",
    ),
]


def parse_metrics(text: str, *, allow_remote: bool) -> Place:
    """Returns the place of `--metrics`. Warns where other machines may ask. Raises UsageError."""
    place = parse_place(text, option="--metrics")
    if place.kind not in ("proxy", "unix"):
        raise UsageError(f"--metrics: {place.kind}: is a way to be used, not to be looked at")
    if place.kind == "proxy" and not ip_address(place.host).is_loopback:
        if not allow_remote:
            raise UsageError(
                f"--metrics: {place.host} is not a loopback address",
                hint="--allow-remote lets other machines read how much this proxy is used",
            )
        say(f"{place.host} is not a loopback address: other machines may see how much this proxy is used")
    return place


async def serve_metrics(
    tor: "Tor",
    tally: "Tally",
    build: "Callable[[], Awaitable[Circuit]]",
    place: Place,
    sock: "socket.socket",
    is_ending: "trio.Event",
) -> None:
    """Serve both pages until cancelled. `build` is for looking whether circuits can be built.

    A proxy that is ending is not healthy: balancers should send it nobody.
    """
    import trio

    from torkit.net.monitor.exposition import CONTENT_TYPE, exposition
    from torkit.net.monitor.health import Health
    from torkit.net.monitor.pages import Answer, serve_pages

    health = Health(tally, build)

    async def metrics() -> "Answer":
        return Answer(200, exposition(tor.status(), tally), CONTENT_TYPE)

    async def healthz() -> "Answer":
        if is_ending.is_set():
            return Answer(503, b"ending\n")
        if not tor.progress.is_done:
            return Answer(503, f"{tor.progress.summary}\n".encode())
        if await health.is_healthy():
            return Answer(200, b"circuits work\n")
        return Answer(503, b"no circuit can be built\n")

    pages: dict[str, Page] = {"/metrics": metrics, "/healthz": healthz}
    is_remote = place.kind == "proxy" and not ip_address(place.host).is_loopback
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    await serve_pages([listener], pages, any_host=is_remote)


def status_socket(options: Options) -> Path:
    """Returns where a proxy with these options answers `torkit status`. Raises UsageError, StorageError."""
    from torkit.config import data_dir, load_network

    return data_dir(load_network(options.network), options.data_dir) / STATUS_SOCKET


@contextmanager
def status_listener(directory: Path) -> "Iterator[socket.socket | None]":
    """The socket that `torkit status` asks; None where another proxy has it already, or none can be made."""
    with ExitStack() as stack:
        sock = None
        try:
            sock = stack.enter_context(listening(Place("unix", str(directory / STATUS_SOCKET))))
        except TorkitError as error:
            logger.info("torkit status cannot ask this proxy: %s", error)
        yield sock


async def serve_status(tor: "Tor", sock: "socket.socket") -> None:
    """Answer `torkit status` until cancelled."""
    import trio

    from torkit.net.monitor.pages import Answer, serve_pages

    async def page() -> "Answer":
        return Answer(200, json.dumps(tor.status().to_json()).encode(), "application/json")

    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    await serve_pages([listener], {STATUS_PAGE: page})
