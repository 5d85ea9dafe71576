"""`torkit connect`: stdin and stdout on one stream."""

from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.client_options import ClientSettings, client_settings, with_options
from torkit.cli.options import Options, command_app, seconds
from torkit.cli.paths import read_path
from torkit.cli.running import run
from torkit.cli.via import Proxy, open_way, proxy_wanted
from torkit.cli.voice import say
from torkit.errors import TimedOut, UsageError
from torkit.targets import parse_target

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torkit.client import Tor
    from torkit.directory.directory import Relay
    from torkit.net.progress import Progress

app = command_app()


class AtEof(Enum):
    WAIT = "wait"
    END = "end"


@app.command()
@with_options("proxy", proxy_wanted)
@with_options("settings", client_settings)
def connect(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Or HOST PORT, or [ADDRESS]:PORT.")],
    port: Annotated[str | None, typer.Argument(metavar="PORT", show_default=False)] = None,
    path: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="The relays: a JSON line, names with commas, or - for stdin's first line."
        ),
    ] = None,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Speak TLS with HOST, which has to prove its name."),
    ] = False,
    zero: Annotated[bool, typer.Option("-z", help="Only see whether the connection can be made.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr when connected.")] = False,
    wait: Annotated[
        float,
        typer.Option(
            "-w",
            parser=seconds,
            metavar="S",
            show_default=False,
            help="Seconds until connected, from the start of the command.",
        ),
    ] = inf,
    idle_timeout: Annotated[
        float,
        typer.Option(
            "-i", parser=seconds, metavar="S", show_default=False, help="Fail after S seconds without a byte."
        ),
    ] = inf,
    eof: Annotated[AtEof, typer.Option(help="At the end of stdin: wait for the peer, or end.")] = AtEof.WAIT,
    end: Annotated[bool, typer.Option("-N", help="The same as --eof end.")] = False,
    eof_timeout: Annotated[
        float,
        typer.Option(
            "--eof-timeout",
            "-q",
            parser=seconds,
            metavar="S",
            show_default=False,
            help="End S idle seconds after stdin.",
        ),
    ] = inf,
    *,
    settings: ClientSettings,
    proxy: Proxy | None,
) -> None:
    """Connect stdin and stdout to HOST:PORT through Tor."""
    options: Options = context.obj
    destination = parse_target(target, port)
    if destination[1] == 0:
        raise UsageError("port 0 cannot be connected to")
    if end or eof is AtEof.END:
        eof_timeout = 0

    async def command() -> None:
        async with open_way(options, settings, proxy) as tor:
            check(destination[0], allow_internal=tor.network.testing)  # before a long start
            await carry(
                tor,
                destination,
                path=path,
                tls=tls,
                zero=zero,
                verbose=verbose or options.verbosity > 0,
                wait=wait,
                eof_timeout=eof_timeout,
                idle_timeout=idle_timeout,
            )

    run(command, options)


def check(host: str, *, allow_internal: bool) -> None:
    """Raises UsageError for what cannot be reached, OnionServiceError for what is no onion address."""
    from torkit.proto.destination import check_destination, is_onion

    if is_onion(check_destination(host, allow_internal=allow_internal, allow_onion=True)):
        from torkit.hs.address import parse_address

        parse_address(host)


async def carry(
    tor: "Tor",
    destination: tuple[str, int],
    *,
    path: str | None,
    tls: bool,
    zero: bool,
    verbose: bool,
    wait: float,
    eof_timeout: float,
    idle_timeout: float,
) -> None:
    """Connect within `wait` seconds, the start and `tls` included, then carry bytes unless `zero`."""
    import trio

    from torkit.net.pipe import pipe

    if tls:
        from torkit.net.secured import secure

    try:
        with trio.fail_after(wait):
            await tor.wait_ready()
            relays = None if path is None else await read_path(tor, path)
            stream = await tor.connect(*destination, path=relays)
            secured = await secure(stream, destination[0]) if tls else None
    except trio.TooSlowError:
        raise too_late(wait, tor.progress) from None
    async with stream:
        if verbose:
            how = "" if secured is None else f", by {secured.version}"
            say(f"connected through {words_of(stream.paths)}{how}")  # not where to: this may go to a log
        has_ended = zero or await pipe(secured or stream, eof_timeout=eof_timeout, idle_timeout=idle_timeout)
        if secured is not None:
            await secured.say_end()
        if not has_ended:
            await tor.settle(stream)


def words_of(paths: "Iterable[Iterable[Relay]]") -> str:
    """Returns the nicknames on each path; without a path, the connection is a proxy's."""
    return " and through ".join(", ".join(relay.nickname for relay in path) for path in paths) or "the proxy"


def too_late(seconds: float, progress: "Progress") -> TimedOut:
    """Returns the error that names what took too long: the connection, or a step of the start before it."""
    message = f"no connection within {seconds:g} s"
    if not progress.is_done:
        message += f", at {progress.percent}%: {progress.summary}"
    if progress.error is None:
        return TimedOut(message)
    return TimedOut(f"{message}; {progress.error}", hint=progress.error.hint)
