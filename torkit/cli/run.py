"""`torkit run`: a program in a network of its own, whose only way out is Tor."""

import os
import shutil
import signal
from collections.abc import Collection, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli import progress
from torkit.cli.client_options import ClientSettings, client_settings, with_options
from torkit.cli.failures import cause_of, report
from torkit.cli.listen import Place, listeners_of
from torkit.cli.options import ConfluxName, Options, command_app
from torkit.cli.running import run as run_async
from torkit.cli.socks import RESERVED_DESCRIPTORS, allow_descriptors
from torkit.cli.teaching import LESSONS
from torkit.cli.via import Proxy, open_way, proxy_wanted
from torkit.cli.voice import say
from torkit.errors import TorkitError, UsageError
from torkit.namespaces import PROXY_PORT, CannotRun, Child

if TYPE_CHECKING:
    from torkit.client import Tor
    from torkit.namespaces import Sockets

app = command_app()

# Exit status where we fail, and not the command, as env(1) has it.
OWN_FAILURE = 125

# Proxies of the network that the command is not in; ours take their place.
PROXY_VARIABLES = {
    "all_proxy",
    "ftp_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "rsync_proxy",
    "socks_proxy",
}

# The values of `--isolate`, of torkit.net.proxy.Isolate.
ISOLATION = ("dest-addr", "dest-port", "stream")

# Signals that are sent to us and meant for the command.
FORWARDED = (
    *(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT),
)
FROM_THE_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)  # the terminal sends them to the command as well


@app.command(context_settings={"allow_interspersed_args": False}, help=LESSONS["run"].summary)
@with_options("proxy", proxy_wanted)
@with_options("settings", client_settings)
def run(
    context: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[--] [CMD [ARGS]...]", show_default=False, help="Your shell if not said."),
    ] = None,
    isolate: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT,...",
            help="What else than credentials keeps streams of CMD apart: dest-addr, dest-port, stream.",
        ),
    ] = None,
    conflux: ConfluxName = "auto",
    *,
    settings: ClientSettings,
    proxy: Proxy | None,
) -> None:
    options: Options = context.obj
    kept_apart = parse_isolation(isolate)
    command = command or [os.environ.get("SHELL") or "/bin/sh"]
    codes: list[int] = []  # of the command, as os.waitstatus_to_exitcode has them

    async def serve_command() -> None:
        from torkit.net.circuits.spares import SPARE_COUNT

        async with open_way(options, settings, proxy, spare_circuits=SPARE_COUNT) as tor:
            await tor.wait_ready()
            codes.append(await serve(tor, child, sockets, kept_apart))

    try:
        check_command(command[0])
        child = Child.start(command, environment(os.environ))
    except (TorkitError, CannotRun) as error:
        raise typer.Exit(tell(error)) from None
    try:
        import_module("trio")  # while the child makes its network
        sockets = child.take_sockets()
        run_async(serve_command, options)
    except (TorkitError, CannotRun, BaseExceptionGroup) as error:
        code = tell(cause_of(error))
        child.wait()
        raise typer.Exit(code) from None
    end_as(codes[0])


def check_command(name: str) -> None:
    """Before a long start. Raises CannotRun."""
    if shutil.which(name) is None:
        is_there = "/" in name and os.path.exists(name)
        raise CannotRun(f"{name}: {'not executable' if is_there else 'not found'}", 126 if is_there else 127)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Returns the command's environment. Programs that heed proxies find ours, which speaks HTTP, too."""
    kept = {name: value for name, value in given.items() if name.lower() not in PROXY_VARIABLES}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), f"http://127.0.0.1:{PROXY_PORT}")
    proxies["no_proxy"] = "localhost,127.0.0.1,::1"
    return kept | proxies | {name.upper(): value for name, value in proxies.items()}


def parse_isolation(text: str | None) -> set[str]:
    """Returns the names of what is kept apart: credentials, and what `--isolate` names. Raises UsageError."""
    names = {name.strip() for name in (text or "").split(",")} - {""}
    if unknown := sorted(names - set(ISOLATION)):
        raise UsageError(f"--isolate: {unknown[0]!r} is none of {', '.join(ISOLATION)}")
    return {"auth", *names}


async def serve(tor: "Tor", child: Child, sockets: "Sockets", kept_apart: Collection[str]) -> int:
    """Let the child become its command, and be its network until it ends. Returns its exit code."""
    import trio

    from torkit.net.late import load_late
    from torkit.net.memory import own_process
    from torkit.net.proxy import Isolate, serve_proxy
    from torkit.net.proxy.leaks import Leaks
    from torkit.net.proxy.sockdiag import SockDiag
    from torkit.net.proxy.upstream import Upstream
    from torkit.proto.automap import Automap
    from torkit.proto.destination import check_destination

    own_process()
    check = partial(check_destination, allow_internal=tor.network.testing, allow_onion=True)
    opened = [(Place("proxy", "127.0.0.1", PROXY_PORT), sockets.proxy)]
    opened += [(Place("trans", "127.0.0.1"), sock) for sock in sockets.redirected]
    opened += [(Place("dns", "127.0.0.1"), sock) for sock in sockets.dns]
    listeners = listeners_of(opened, check, Automap())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(
                serve_proxy,
                listeners,
                upstream=Upstream(tor.request, tor.resolve),
                max_clients=allow_descriptors() - RESERVED_DESCRIPTORS,
                isolate=[Isolate(name) for name in kept_apart],
                leaks=Leaks(names_only=False, can_ask_elsewhere=False),
                kernel=SockDiag(sockets.kernel),
            )
        )
        nursery.start_soon(load_late)
        progress.stop()
        code = await become_command(child)
        nursery.cancel_scope.cancel()
    return code


async def become_command(child: Child) -> int:
    """Let the child become its command, and stand for it until it ends: what signals us means the command.

    Returns its exit code, or the negative number of the signal that ended it. Raises as `Child.run` does.
    """
    import trio

    heeded = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    with trio.open_signal_receiver(signal.SIGCHLD, *heeded) as signals:
        child.run()
        while (code := look_at(child.pid)) is None:
            number = await anext(signals)
            if number == signal.SIGCHLD or (number in FROM_THE_KEYBOARD and has_terminal()):
                continue
            os.kill(child.pid, number)
    return code


def look_at(pid: int) -> int | None:
    """Returns the exit code of a child that has ended. Where it has been stopped, so are we."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOHANG)
    if found is None:
        return None
    if found.si_code == os.CLD_STOPPED:
        os.kill(os.getpid(), signal.SIGSTOP)
        return look_at(pid)
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def has_terminal() -> bool:
    """Returns whether what is typed at our terminal is for our process group."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


def tell(error: BaseException) -> int:
    """Say what went wrong; returns the exit status."""
    if isinstance(error, CannotRun):
        say(str(error))
        return error.status
    status = report(error)
    return OWN_FAILURE if isinstance(error, TorkitError) else status


def end_as(code: int) -> None:
    """End as the command did. Raises typer.Exit."""
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise typer.Exit(code if code >= 0 else 128 - code)
