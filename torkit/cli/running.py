"""Runs the asynchronous part of a command: signals, the garbage collector, a client."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from torkit.cli import progress
from torkit.cli.client_options import DEFAULT, ClientSettings
from torkit.cli.options import Options, country_lookup
from torkit.cli.voice import say, speak_for_loggers
from torkit.errors import NotPossible, UsageError

if TYPE_CHECKING:
    from torkit.client import Tor
    from torkit.config import Network

# Implementation limits. Seconds until the garbage collector is switched on: until then next to nothing is
# garbage. And how many objects are made, and not freed, before it looks for cycles: every task switch makes
# some, and by default it looks hundreds of times a second.
START_TIME = 2.0
GC_THRESHOLD = 50_000


def run(
    command: Callable[[], Awaitable[None]],
    options: Options,
    *,
    on_sigterm: int = 128 + signal.SIGTERM,
    on_hangup: Callable[[], bool] | None = None,
) -> None:
    """Run a command's asynchronous part; a signal cancels it, so that streams end and files are whole.

    `on_hangup` is called at a SIGHUP, which cancels nothing where that returns True. Raises typer.Exit with
    128 and the signal's number, or `on_sigterm`.
    """
    import gc

    import trio

    from torkit.net.descriptors import stderr

    speak_for_loggers(options.verbosity)
    # Signals that the parent ignored stay ignored: nohup's SIGHUP, SIGINT of a job in the background.
    ending = [
        signal.SIGTERM,
        *(s for s in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN),
    ]
    received: list[int] = []

    async def cancel_on_signal(scope: trio.CancelScope, task_status: "trio.TaskStatus[None]") -> None:
        with trio.open_signal_receiver(*ending) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP and on_hangup is not None and on_hangup():
                    continue
                received.append(number)
                break
        # A second signal finds the handlers as they were, and ends us without ceremony.
        scope.cancel()

    async def collect_garbage() -> None:
        await trio.sleep(START_TIME)
        gc.freeze()  # what a start makes stays: imports, and the directory
        gc.set_threshold(GC_THRESHOLD)
        gc.enable()

    async def run_command() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(cancel_on_signal, nursery.cancel_scope)
            nursery.start_soon(collect_garbage)
            await command()
            nursery.cancel_scope.cancel()

    with stderr.never_waiting():
        trio.run(run_command)
    if received:
        [number] = received
        raise typer.Exit(on_sigterm if number == signal.SIGTERM else 128 + number)


@asynccontextmanager
async def open_client(
    options: Options,
    *,
    network: "Network | None" = None,
    is_service: bool = False,
    spare_circuits: int = 0,
    consensus: bytes | None = None,
    as_json: bool = False,
    shared_cache: Path | None = None,
    settings: ClientSettings = DEFAULT,
) -> "AsyncIterator[Tor]":
    """The client that the global options describe; how far it has come is shown, perhaps `as_json`.

    `network` is theirs where it has been read already.
    """
    import trio

    from torkit.client import open_tor
    from torkit.config import data_dir
    from torkit.net.memory import own_process
    from torkit.paths.constraints import VanguardMode
    from torkit.proto.circuit import Cgo
    from torkit.proto.padding import Padding

    try:
        cgo = Cgo(options.cgo)
    except ValueError:
        raise UsageError(f"--cgo takes exit, all or off, not {options.cgo!r}") from None
    protect_keys(options)
    if is_service:
        own_process()
    network = network or await read_network(options)
    async with (
        open_tor(
            network=network,
            data_dir=data_dir(network, options.data_dir),
            cgo=cgo,
            padding=settings.padding or Padding.AUTO,
            spare_circuits=spare_circuits,
            conflux=settings.conflux,
            consensus=consensus,
            restrictions=settings.restrictions,
            country_of=country_lookup(settings.restrictions, settings.geoip),
            max_memory=settings.max_memory,
            pow_max_effort=settings.pow_max_effort,
            vanguards=settings.vanguards or VanguardMode.LITE,
            shared_cache=shared_cache,
        ) as tor,
        trio.open_nursery() as nursery,
    ):
        tells_early = is_service or options.verbosity > 0
        nursery.start_soon(partial(progress.show, tor, is_service=tells_early, as_json=as_json))
        try:
            yield tor
        finally:
            progress.erase()
            nursery.cancel_scope.cancel()


async def read_network(options: Options) -> "Network":
    """Returns the network that the global options name. Raises UsageError."""
    from torkit.config import load_network
    from torkit.net.shortage import run_in_thread

    if options.network is None:
        return load_network(None)
    # In a thread: signals end the wait for a pipe that nobody writes to.
    return await run_in_thread(load_network, options.network, abandon_on_cancel=True)


def protect_keys(options: Options) -> None:
    """Keep the keys of circuits from other programs, unless told otherwise. Raises NotPossible."""
    from torkit._fast.process import forbid_inspection

    if options.allow_debugging:
        say("--allow-debugging: other programs of this user can read the keys of circuits from memory")
        return
    try:
        forbid_inspection()
    except OSError as error:
        raise NotPossible(
            f"the system does not keep debuggers away: {error.strerror}",
            hint="--allow-debugging goes on without",
        ) from error
