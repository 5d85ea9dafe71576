"""`torkit socks`: the SOCKS proxy."""

import json
import os
import signal
import socket
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.client_options import ClientSettings, client_settings, with_options
from torkit.cli.ending import GRACE, ExitWithParent, Grace, drain_on_sigterm, end_with_parent
from torkit.cli.failures import OK
from torkit.cli.files import write_file
from torkit.cli.identities import (
    IsolateOption,
    RotateOption,
    check_identities,
    parse_isolation,
    parse_rotate,
)
from torkit.cli.listen import Place, listeners_of, listening, parse_places
from torkit.cli.monitoring import Metrics, parse_metrics, serve_metrics, serve_status, status_listener
from torkit.cli.notify import Manager
from torkit.cli.options import ConfluxName, Options, command_app
from torkit.cli.paths import read_path
from torkit.cli.progress import to_json
from torkit.cli.running import open_client, read_network, run
from torkit.cli.sandbox import SandboxOption, check_ready_file, close_sandbox
from torkit.cli.voice import say
from torkit.errors import NotPossible, StorageError
from torkit.files import is_replaceable, remove_file

if TYPE_CHECKING:
    import trio

    from torkit.client import Tor
    from torkit.directory.directory import Relay
    from torkit.net.circuit.circuit import Circuit
    from torkit.net.proxy import Isolate, Rotate

app = command_app()

MAX_DESCRIPTORS = 16_384  # of which each client takes one
RESERVED_DESCRIPTORS = 64  # for relays, files and the like
MIN_CLIENTS = 32  # with fewer, a browser's page does not load


@app.command()
@with_options("settings", client_settings)
def socks(
    context: typer.Context,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHERE",
            help="[ADDRESS:]PORT, unix:PATH, systemd, or auth:, dns:, trans: before [ADDRESS:]PORT; "
            "127.0.0.1:9150 if not said; port 0 picks a free one. May be repeated; ,isolate=WHAT+WHAT and "
            ",rotate=10m behind it are for that one alone.",
        ),
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Listen at addresses that other machines can reach.")
    ] = False,
    isolate: IsolateOption = None,
    rotate: RotateOption = None,
    safe_socks: Annotated[
        bool,
        typer.Option(
            "--safe-socks", help="Refuse programs that ask for addresses, and may have looked up names."
        ),
    ] = False,
    ready_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Gets one JSON line once a circuit has been built.")
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="The relays for every stream: a JSON line, names with commas, or -."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print progress and the address as JSON lines on stdout.")
    ] = False,
    grace: Grace = GRACE,
    exit_with_parent: ExitWithParent = False,
    metrics: Metrics = None,
    sandbox: SandboxOption = False,
    shared_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the directory of the network in DIR for several proxies: one fetches it, the others "
            "read it. Guards stay in the data directory.",
        ),
    ] = None,
    conflux: ConfluxName = "auto",
    *,
    settings: ClientSettings,
) -> None:
    """Serve SOCKS4a, SOCKS5 and HTTP to programs on this machine."""
    from torkit.config import SHARED_CACHE, data_dir, load_network, make_data_dir

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # before `serve` there is no identity to be changed
    parent = os.getppid()
    options: Options = context.obj
    isolation, rotation = parse_isolation(isolate), parse_rotate(rotate)
    check_identities(isolation, rotation)
    places = parse_places(
        listen or ["127.0.0.1:9150"], allow_remote=allow_remote, isolate=isolation, rotate=rotation
    )
    metrics_place = None if metrics is None else parse_metrics(metrics, allow_remote=allow_remote)
    early_network = None
    if sandbox:
        early_network = load_network(options.network)  # in no thread, which would stay outside
        check_ready_file(ready_file, data_dir(early_network, options.data_dir))
    if ready_file is not None:
        forget_ready_file(ready_file)

    async def command() -> None:
        import trio

        from torkit.net.circuits.spares import SPARE_COUNT

        max_clients = allow_descriptors() - RESERVED_DESCRIPTORS
        if max_clients < MIN_CLIENTS:
            raise NotPossible(
                f"this process may open {max_clients + RESERVED_DESCRIPTORS} files, and a proxy needs"
                f" {MIN_CLIENTS + RESERVED_DESCRIPTORS} at least",
                hint="raise the hard limit of open files (ulimit -Hn, LimitNOFILE=)",
            )
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            if exit_with_parent:
                nursery.start_soon(end_with_parent, parent)
            opened = [(place, stack.enter_context(listening(place))) for place in places]
            told = metrics_place and (metrics_place, stack.enter_context(listening(metrics_place)))
            network = early_network or await read_network(options)
            directory = data_dir(network, options.data_dir)
            status = stack.enter_context(status_listener(directory))
            manager = Manager(os.environ)
            if sandbox:
                manager.hold()
                if shared_cache is not None:
                    make_data_dir(shared_cache, *SHARED_CACHE)
                close_sandbox([directory, *filter(None, [shared_cache])], settings.geoip)
            tor = await stack.enter_async_context(
                open_client(
                    options,
                    network=network,
                    is_service=True,
                    spare_circuits=SPARE_COUNT if path is None else 0,
                    shared_cache=shared_cache,
                    settings=settings,
                )
            )
            if status is not None:
                nursery.start_soon(serve_status, tor, status)
            await serve(
                tor,
                opened,
                path=path,
                isolation=isolation,
                rotate=rotation,
                safe_socks=safe_socks,
                ready_file=ready_file,
                as_json=as_json,
                max_clients=max_clients,
                grace=grace,
                metrics=told,
                manager=manager,
            )
            # As where a signal ends us at once: connections to relays end, and no DESTROY comes before. (As
            # C tor's clients end.)
            nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()

    run(command, options, on_sigterm=OK)


def forget_ready_file(path: Path) -> None:
    """Remove the ready file of an earlier proxy. Raises StorageError where none can be written."""
    if path.is_dir():
        raise StorageError(f"--ready-file: {path} is a directory")
    if not path.parent.is_dir():
        raise StorageError(f"--ready-file: {path.parent} is not a directory")
    if is_replaceable(path):
        path.unlink(missing_ok=True)


def allow_descriptors() -> int:
    """Raise this process's limit of open files as far as the system lets it; the limit then."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(MAX_DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


async def serve(
    tor: "Tor",
    opened: "Sequence[tuple[Place, socket.socket]]",
    *,
    path: str | None,
    isolation: "Collection[Isolate]",
    rotate: "Rotate | None" = None,
    safe_socks: bool = False,
    ready_file: Path | None,
    as_json: bool = False,
    max_clients: int = MAX_DESCRIPTORS,
    grace: float = 0,
    metrics: "tuple[Place, socket.socket] | None" = None,
    manager: Manager | None = None,
) -> None:
    """Serve until cancelled, and say when a circuit has been built, through `path` if there is one.

    From then on, SIGTERM ends it in order, within `grace` seconds if these are not 0: nobody is accepted any
    more, and it returns when the last client has left. Numbers are served at `metrics`, from the start.
    SIGUSR1 brings a new identity. Raises what keeps `path` from carrying anything.
    """
    import trio

    from torkit.net.late import load_late
    from torkit.net.monitor.tally import Tally
    from torkit.net.proxy import NEVER, serve_proxy
    from torkit.net.proxy.leaks import Leaks
    from torkit.net.proxy.upstream import Upstream
    from torkit.paths.choose import check_exit
    from torkit.proto.automap import Automap
    from torkit.proto.destination import check_destination

    is_able, is_ending = trio.Event(), trio.Event()
    relays: tuple[Relay, ...] | None = None

    async def serve_when_ready() -> None:
        nonlocal relays
        await tor.wait_ready()
        relays = None if path is None else await read_path(tor, path)
        if relays is not None:
            check_exit(relays[-1], None)
            (await tor.build_circuit(relays)).close()  # streams have circuits of their own, by isolation
        is_able.set()
        if grace > 0:
            nursery.start_soon(drain_on_sigterm, is_ending, grace, nursery.cancel_scope)
        automap = Automap() if any(place.kind == "trans" for place, _ in opened) else None
        is_mapped = automap is not None  # then no exit is asked for a name that a program looks up
        check = partial(check_destination, allow_internal=tor.network.testing, allow_onion=is_mapped)
        await serve_proxy(
            listeners_of(opened, check, automap),
            upstream=Upstream(partial(tor.request, path=relays), partial(tor.resolve, path=relays)),
            max_clients=max_clients,
            isolate=isolation,
            rotate=rotate or NEVER,
            leaks=Leaks(names_only=safe_socks),
            is_ending=is_ending,
        )
        nursery.cancel_scope.cancel()

    async def build() -> "Circuit":
        return await tor.build_circuit(relays)

    async def renew() -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            async for _ in signals:
                tor.new_identity()
                say("new identity: streams from now on share no circuit with earlier ones")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_when_ready)
        nursery.start_soon(renew)
        if metrics is not None:
            tally = Tally()
            tor.listen(tally.note)
            nursery.start_soon(serve_metrics, tor, tally, build, *metrics, is_ending)
        manager = manager or Manager(os.environ)
        nursery.start_soon(manager.keep_told, is_ending)
        said = ""
        async for progress in tor.progress_changes():
            if as_json and (line := to_json(progress)) != said:  # an attempt may fail as the last one did
                print(line, flush=True)
                said = line
            manager.tell(f"STATUS={progress.percent}%: {progress.summary}")
        await is_able.wait()
        await load_late()
        places = [place.at(sock) for place, sock in opened]
        addresses = [place.name for place in places]
        say(f"socks proxy ready on {', '.join(addresses)}")
        socks = next((place.name for place in places if place.kind in ("proxy", "auth", "unix")), None)
        ready = {"socks": socks, "listeners": addresses, "pid": os.getpid()}
        if metrics is not None:
            place, sock = metrics
            ready["metrics"] = place.at(sock).name
            say(f"metrics at {ready['metrics']}")
        line = json.dumps(ready)
        if as_json:
            print(line, flush=True)
        manager.tell("READY=1", f"STATUS=ready on {', '.join(addresses)}")
        if ready_file is not None:
            nursery.start_soon(keep_ready_file, ready_file, line.encode() + b"\n", is_ending)


async def keep_ready_file(path: Path, line: bytes, is_ending: "trio.Event") -> None:
    """Write the ready file; at the end, remove it unless another proxy's has taken its place."""
    from torkit.net.shortage import run_in_thread

    if not is_replaceable(path):
        # A pipe waits for its reader.
        await run_in_thread(write_file, path, line, abandon_on_cancel=True)
        return
    written = write_file(path, line)
    try:
        await is_ending.wait()
    finally:
        try:
            if written is not None:
                remove_file(path, written)
        except OSError as error:
            say(f"{path} stays: {error.strerror}")
