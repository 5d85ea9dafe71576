"""The command line: global options, what the commands share, and the one place where errors become statuses.

stdout carries data; everything else is a line on stderr that begins with `torkit:`. Each command is a file
of this package, and is imported only when it is the one that runs; what is heavy, trio above all, is
imported inside the functions that need it, so that `torkit --version` costs little more than Typer does.
"""

import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache, lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from torkit.cli import progress
from torkit.cli.lean_trio import import_trio
from torkit.cli.standard import deliver_output, drop_unwritten_output, open_standard_descriptors
from torkit.cli.teaching import LESSONS, epilog, overview
from torkit.cli.voice import say, speak_for_loggers, speak_for_python
from torkit.errors import (
    EndReason,
    InternalError,
    NoDirectory,
    NoGuard,
    NoPath,
    NotPossible,
    StorageError,
    StreamClosed,
    TimedOut,
    TorkitError,
    UsageError,
    trace,
)

if TYPE_CHECKING:
    from torkit.client import Tor
    from torkit.directory.directory import CountryOf, Relay
    from torkit.files import FileIdentity
    from torkit.path import Constraints
    from torkit.proto.padding import Padding

# Exit statuses, as in torkit(1). 128 and a signal's number says that the signal ended us.
OK = 0
FAILED = 1
WRONG_USAGE = 2
NO_BOOTSTRAP = 3
NOT_RESOLVED = 4
REFUSED = 5
TIMED_OUT = 6
INTERNAL = 7
INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE


# Implementation limits. Seconds until the garbage collector is switched on: until then next to nothing is
# garbage. And how many objects are made, and not freed, before it looks for cycles: every task switch makes
# some, and by default it looks hundreds of times a second.
START_TIME = 2.0
GC_THRESHOLD = 50_000
MIN_ANONYMOUS_LEN = 3  # relays of a path; over fewer, one relay knows both ends or whom to ask for the other
MAX_COUNTRIES = 20_000  # relays whose country is remembered from one consensus to the next


class Options(NamedTuple):
    """The global options, for every command."""

    network: Path | None
    data_dir: Path | None
    cgo: str
    verbosity: int
    allow_debugging: bool = False


# What the user may restrict in the paths of a command.
EntryNodes = Annotated[
    str | None,
    typer.Option(
        "--entry-nodes",
        metavar="NAMES",
        help="Begin at these only: fingerprints, nicknames, or {de} for a country.",
    ),
]
ExitNodes = Annotated[
    str | None, typer.Option("--exit-nodes", metavar="NAMES", help="Leave Tor only through these.")
]
ExcludeNodes = Annotated[
    str | None, typer.Option("--exclude-nodes", metavar="NAMES", help="Never use these.")
]

PaddingName = Annotated[
    str,
    typer.Option(
        "--padding",
        metavar="auto|reduced|off",
        help="How much link padding; auto is what C tor's clients do.",
    ),
]


class _Commands(TyperGroup):
    """The commands, each imported when it is asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(LESSONS)  # type: ignore[assignment]  # their names, for near misses

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except typer.TyperException as error:
            # Typer's parser leaves some of its errors without the command that they are of.
            if getattr(error, "ctx", self) is None and ctx.invoked_subcommand in LESSONS:
                command = self.get_command(ctx, ctx.invoked_subcommand)
                error.ctx = typer.Context(command, parent=ctx, info_name=ctx.invoked_subcommand)  # type: ignore[attr-defined]
            raise

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(LESSONS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        if cmd_name not in LESSONS:
            return None
        name = "run_program" if cmd_name == "run" else cmd_name.replace("-", "_")  # `run` is a function here
        command = typer.main.get_command(import_module(f"torkit.cli.{name}").app)
        command.epilog = epilog(cmd_name)
        return command

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        super().format_help_text(ctx, formatter)
        formatter.write(overview())

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Nothing more: `overview` has said it, before the options."""


def command_app(**settings: Any) -> typer.Typer:
    """A Typer app as all commands have it: no shell completion, no rich (a tenth of a second each run)."""
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


app = command_app(cls=_Commands, no_args_is_help=True)


def print_version() -> None:
    from importlib.metadata import version

    print(f"torkit {version('torkit')}")


def _show_version(wanted: bool) -> None:
    if wanted:
        print_version()
        raise typer.Exit


@app.callback()
def torkit(
    context: typer.Context,
    network: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", envvar="TORKIT_NETWORK", help="The network file; else the public network."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", envvar="TORKIT_DATA_DIR", help="Where cache and state are kept."),
    ] = None,
    cgo: Annotated[
        str,
        typer.Option(
            metavar="exit|all|off",
            help="Which hops are asked for Counter Galois Onion; exit is what C tor's clients do.",
        ),
    ] = "exit",
    verbosity: Annotated[
        int,
        typer.Option("--verbose", "-v", count=True, help="Say on stderr what happens; twice, in detail."),
    ] = 0,
    allow_debugging: Annotated[
        bool,
        typer.Option("--allow-debugging", help="Let debuggers attach and cores be left."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """A Tor client for shells: a SOCKS proxy, a pipe, and the steps between them."""
    context.obj = Options(network, data_dir, cgo, verbosity, allow_debugging)


def main() -> NoReturn:
    """The `torkit` program."""
    open_standard_descriptors()
    speak_for_python()
    sys.exit(run_command_line(sys.argv[1:]))


def run_command_line(arguments: list[str]) -> int:
    """Run one command line; returns its exit status."""
    try:
        try:
            command = typer.main.get_command(app)
            with command.make_context("torkit", arguments) as context:
                command.invoke(context)
        except typer.Exit as error:
            if error.exit_code != OK:
                raise
        sys.stdout.flush()
        deliver_output()
    except BaseException as error:
        drop_unwritten_output()
        failure = cause(error)
        if isinstance(failure, TorkitError):  # a signal does not wait, and output that has failed need not
            with suppress(OSError):
                deliver_output()
        return report(failure)
    return OK


def exit_status(error: TorkitError) -> int:
    """The exit status that tells a script what kind of failure `error` is."""
    match error:
        case UsageError():
            return WRONG_USAGE
        case NoDirectory() | NoGuard():
            return NO_BOOTSTRAP
        case StreamClosed(reason=EndReason.RESOLVEFAILED):
            return NOT_RESOLVED
        case StreamClosed(reason=EndReason.CONNECTREFUSED | EndReason.EXITPOLICY) | NoPath():
            return REFUSED
        case StreamClosed(reason=EndReason.TIMEOUT) | TimedOut():
            return TIMED_OUT
        case InternalError():
            return INTERNAL
        case _:
            return FAILED


def report(error: BaseException) -> int:
    """Say what happened in one line, and what can be done, or where a fault of ours was; the exit status."""
    match error:
        case typer.Exit():
            return error.exit_code
        case KeyboardInterrupt():
            return INTERRUPTED
        case BrokenPipeError():
            return BROKEN_PIPE  # quietly: the reader has what it wanted
        case TorkitError():
            say(str(error))
            if error.hint:
                say(f"hint: {error.hint}")
            return exit_status(error)
        case typer.TyperException():
            message = error.format_message()
            if "\n" in message:  # the whole help text, for a line without a command
                print(message, file=sys.stderr)
            else:
                context = getattr(error, "ctx", None)
                say(message[:1].lower() + message[1:].rstrip("."))
                say(f"hint: {context.command_path if context else 'torkit'} --help")
            return error.exit_code
        case OSError():
            say(f"{error.filename or 'stdin or stdout'}: {error.strerror}")
            return FAILED
        case _:
            fault = InternalError.ending("the command", error)
            say(str(fault))
            say(trace(fault))
            return exit_status(fault)


def cause(error: BaseException) -> BaseException:
    """The one error to report: ours, else a declared one, if several tasks failed at once."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [cause(inner) for inner in error.exceptions]
    for one in causes:
        if isinstance(one, InternalError):
            return one
    return next((one for one in causes if isinstance(one, TorkitError)), causes[0])


def run(
    command: Callable[[], Awaitable[None]], options: Options, *, on_sigterm: int = 128 + signal.SIGTERM
) -> None:
    """Run a command's asynchronous part; a signal cancels it, so that streams end and files are whole.

    Raises typer.Exit with 128 and the signal's number, or `on_sigterm`.
    """
    import gc

    import_trio()
    import trio

    speak_for_loggers(options.verbosity)
    # What the parent had ignored stays so: nohup's SIGHUP, SIGINT of a job in the background.
    ending = [
        signal.SIGTERM,
        *(s for s in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN),
    ]
    received: list[int] = []

    async def cancel_on_signal(scope: trio.CancelScope, task_status: "trio.TaskStatus[None]") -> None:
        with trio.open_signal_receiver(*ending) as signals:
            task_status.started()
            received.append(await anext(signals))
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

    trio.run(run_command)
    if received:
        [number] = received
        raise typer.Exit(on_sigterm if number == signal.SIGTERM else 128 + number)


@asynccontextmanager
async def open_client(
    options: Options,
    *,
    is_service: bool = False,
    spare_circuits: int = 0,
    consensus: bytes | None = None,
    as_json: bool = False,
    restrictions: "Constraints | None" = None,
    padding: "Padding | None" = None,
    max_memory: int | None = None,
) -> "AsyncIterator[Tor]":
    """The client that the global options describe; how far it has come is shown, perhaps `as_json`."""
    import trio

    from torkit.client import open_tor
    from torkit.config import data_dir, load_network
    from torkit.proto.circuit import Cgo
    from torkit.proto.padding import Padding

    try:
        cgo = Cgo(options.cgo)
    except ValueError:
        raise UsageError(f"--cgo takes exit, all or off, not {options.cgo!r}") from None
    protect_keys(options)
    if options.network is None:
        network = load_network(None)
    else:  # in a thread: signals end the wait for a pipe that nobody writes to
        network = await trio.to_thread.run_sync(load_network, options.network, abandon_on_cancel=True)
    async with (
        open_tor(
            network=network,
            data_dir=data_dir(network, options.data_dir),
            cgo=cgo,
            padding=padding or Padding.AUTO,
            spare_circuits=spare_circuits,
            consensus=consensus,
            restrictions=restrictions,
            country_of=country_lookup(restrictions),
            max_memory=max_memory,
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


def parse_padding(text: str) -> "Padding":
    """What `--padding` names. Says what less than by default costs. Raises UsageError."""
    from torkit.proto.padding import Padding

    try:
        padding = Padding(text)
    except ValueError:
        raise UsageError(f"--padding takes auto, reduced or off, not {text!r}") from None
    if padding is not Padding.AUTO:
        how_well = "to the second" if padding is Padding.OFF else "better"
        say(f"--padding {text}: who records your network's traffic can see {how_well} when you used Tor")
    return padding


def restrictions(
    *, entry_nodes: str | None, exit_nodes: str | None, exclude_nodes: str | None, path: str | None
) -> "Constraints | None":
    """What these options ask of every path, if anything. Says what each costs. Raises UsageError."""
    options = [
        ("--entry-nodes", entry_nodes, "whoever uses guards that few others use can be recognized by them"),
        ("--exit-nodes", exit_nodes, "whoever always leaves by the same few relays can be recognized there"),
        ("--exclude-nodes", exclude_nodes, "paths that never use some relays can be told from other paths"),
    ]
    for option, names, cost in options:
        if names is not None:
            if path is not None:
                raise UsageError(f"--path names every relay, {option} has no use beside it")
            say(f"{option}: {cost}")
    entries, exits, exclude = (_relay_names(option, names) for option, names, _ in options)
    if not (entries or exits or exclude):
        return None
    from torkit.path import Constraints

    return Constraints(entries=entries, exits=exits, exclude=exclude)


def _relay_names(option: str, text: str | None) -> frozenset[str]:
    """What `torkit.path.places_of` takes."""
    names = frozenset() if text is None else frozenset(name.strip() for name in text.split(","))
    for name in names:
        if not re.fullmatch(r"\$?[0-9A-Fa-f]{40}|[0-9A-Za-z]{1,19}|\{(?:[0-9A-Za-z]{2}|\?\?)\}", name):
            raise UsageError(
                f"{option}: {name!r} is neither a fingerprint nor a nickname nor a country like {{de}}"
            )
    return names


def country_lookup(restrictions: "Constraints | None") -> "CountryOf | None":
    """What tells countries, if any are named. Raises UsageError where nothing does, or one is unknown."""
    from torkit.path import country_in

    if restrictions is None:
        return None
    names = restrictions.entries | restrictions.exits | restrictions.exclude
    named = sorted(country for name in names if (country := country_in(name)) is not None)
    if not named:
        return None
    from torkit.cli.documents import Countries

    countries = Countries()
    countries.require_known(named)
    return lru_cache(MAX_COUNTRIES)(countries.of)


def seconds(value: str | float) -> float:
    """The value of an option that takes a time. Raises typer.BadParameter."""
    with suppress(ValueError):
        if (number := float(value)) >= 0:
            return number
    raise typer.BadParameter("expected a number of seconds from 0")


async def read_path(tor: "Tor", text: str) -> "tuple[Relay, ...]":
    """As `parse_path`; `-` stands for the first line of stdin. What follows it there is a stream's data."""
    line = await next_line(0) if text == "-" else text
    if line is None:
        raise UsageError("expected a path on stdin and saw nothing")
    return parse_path(tor, line)


def parse_path(tor: "Tor", text: str) -> "tuple[Relay, ...]":
    """The relays that `--path` names: a JSON line, or fingerprints or nicknames with commas."""
    from torkit.path import path_from_json

    if not text.lstrip().startswith("{"):
        _say_what_a_path_costs()
        text = json.dumps({"path": [{"fingerprint": _fingerprint(tor, name)} for name in text.split(",")]})
    path = path_from_json(text, tor.directory)
    if len(path) < MIN_ANONYMOUS_LEN:
        count = "one relay" if len(path) == 1 else f"{len(path)} relays"
        say(f"--path: no anonymity over {count}: who runs one of them sees both who asks and where it goes")
    return path


@cache
def _say_what_a_path_costs() -> None:
    """Once. A JSON line says nothing: `torkit choose-path` has drawn it as the client draws its own."""
    say("--path: relays that somebody named are not drawn by chance, and can be guessed from one another")


def _fingerprint(tor: "Tor", name: str) -> str:
    from torkit.cli.documents import find_relay

    index = find_relay(tor.directory, name.strip())
    return tor.directory.consensus.relays.identities[index].hex().upper()


async def next_line(descriptor: int) -> str | None:
    """As `read_line`, in a thread: whoever waits here for a line can still be told to stop."""
    import trio

    return await trio.to_thread.run_sync(read_line, descriptor, abandon_on_cancel=True)


def read_line(descriptor: int) -> str | None:
    """One line without its end, byte by byte, so that nothing after it is taken; None at the end of file."""
    from torkit.net.descriptors import read_some
    from torkit.path import MAX_PATH_LINE

    line = bytearray()
    while byte := read_some(descriptor, 1):
        if byte == b"\n":
            return line.decode(errors="replace")
        line += byte
        if len(line) > MAX_PATH_LINE:
            raise UsageError(f"expected a path on stdin and saw a line over {MAX_PATH_LINE} bytes")
    return line.decode(errors="replace") or None


def write_file(path: Path, data: bytes) -> "FileIdentity | None":
    """`torkit.files.write_output`, with the system's errors as StorageError."""
    from torkit.files import write_output

    try:
        return write_output(path, data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
