"""`torkit ping`: how long each hop of a circuit, a round trip on it, and a stream take.

    hop      the handshake with each relay, when the circuit is built: once
    circuit  from BEGIN, for an address in 0.0.0.0/8, until the exit has refused, as its policy does at once;
             nothing leaves it. C tor's clients ask that too where they doubt a circuit (path-spec, "Measuring
             path usage success rates").
    stream   from BEGIN until the exit has connected to HOST:PORT, if one is named; the connection then ends

A relay in the middle is asked nothing: it answers handshakes only.
"""

import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.client_options import ClientSettings, client_settings, with_options
from torkit.cli.failures import exit_status
from torkit.cli.options import Options, command_app, seconds
from torkit.cli.paths import parse_path
from torkit.cli.progress import erase
from torkit.cli.running import open_client, run
from torkit.cli.table import labelled, terminal_width
from torkit.cli.teaching import LESSONS
from torkit.cli.voice import say
from torkit.errors import StreamClosed, TimedOut, TorkitError, UsageError
from torkit.targets import parse_target

if TYPE_CHECKING:
    from torkit.client import Tor
    from torkit.net.circuit.circuit import Circuit

app = command_app()

# Implementation limits: the network is everybody's.
MAX_COUNT = 1_000  # round trips
MIN_INTERVAL = 0.2  # seconds between them
ANSWER_TIMEOUT = 10.0  # seconds; as the first attempt of a stream

BIN_COUNT = 10  # rows of a histogram

Destination = tuple[str, int]


@app.command(help=LESSONS["ping"].summary)
@with_options("settings", client_settings)
def ping(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(metavar="[HOST:PORT]", show_default=False, help="Measure streams to there, too."),
    ] = None,
    count: Annotated[
        int, typer.Option("-c", "--count", min=1, max=MAX_COUNT, metavar="N", help="How many round trips.")
    ] = 10,
    interval: Annotated[
        float, typer.Option("-i", parser=seconds, metavar="S", help="Seconds between them, 0.2 at least.")
    ] = 1.0,
    path: Annotated[
        str | None, typer.Option(metavar="PATH", help="The relays: a JSON line, or names with commas.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines on a terminal, too.")] = False,
    *,
    settings: ClientSettings,
) -> None:
    options: Options = context.obj
    destination = None if target is None else parse_target(target)
    if interval < MIN_INTERVAL:
        raise UsageError(f"-i: {MIN_INTERVAL:g} s is the least: the network is everybody's")
    if path == "-":
        raise UsageError("ping takes a path as an option, not from stdin")
    for_people = sys.stdout.isatty() and not as_json
    failures: list[TorkitError] = []

    async def command() -> None:
        from torkit.proto.destination import check_destination

        async with open_client(options, settings=settings) as tor:
            if destination is not None:
                check_destination(destination[0], allow_internal=tor.network.testing)  # before a long start
            await tor.wait_ready()
            circuit = await build(tor, path, destination)
            erase()
            report = Report(for_people)
            report.show_hops(circuit)
            try:
                failures.extend(await measure(circuit, destination, count, interval, report))
            finally:
                circuit.close()
                report.finish()

    run(command, options)
    if failures:
        raise typer.Exit(exit_status(failures[-1]))


async def build(tor: "Tor", path: str | None, destination: Destination | None) -> "Circuit":
    """Returns a circuit of its own, whose exit allows the destination's port."""
    from torkit.paths.choose import check_exit
    from torkit.paths.constraints import Constraints

    port = None if destination is None else destination[1]
    relays = tor.choose_path(Constraints(port=port)) if path is None else parse_path(tor, path)
    check_exit(relays[-1], port)
    return await tor.build_circuit(relays)


class Report:
    """Tells what was measured: JSON lines at once, and for people lines, and histograms at the end."""

    def __init__(self, for_people: bool) -> None:
        self._for_people = for_people
        self._measured: dict[str, list[float]] = {}
        self._lost: dict[str, int] = {}

    def show_hops(self, circuit: "Circuit") -> None:
        for number, (relay, hop) in enumerate(zip(circuit.path, circuit.hops, strict=True), 1):
            if self._for_people:
                print(f"hop {number}  {relay.nickname:<19}  {1000 * hop.seconds:8.1f} ms", flush=True)
            else:
                names = {"nickname": relay.nickname, "fingerprint": relay.identity.hex().upper()}
                self._print("hop", number, names | {"seconds": round(hop.seconds, 6)})

    def note(self, kind: str, number: int, outcome: float | TorkitError) -> None:
        """One round trip: its seconds, or why there was none."""
        if isinstance(outcome, TorkitError):
            self._lost[kind] = self._lost.get(kind, 0) + 1
            if self._for_people:
                say(f"{kind} {number}: {outcome}")
            else:
                self._print(kind, number, {"error": str(outcome)})
        else:
            self._measured.setdefault(kind, []).append(outcome)
            if not self._for_people:
                self._print(kind, number, {"seconds": round(outcome, 6)})

    def _print(self, kind: str, number: int, more: dict[str, object]) -> None:
        print(json.dumps({"kind": kind, "number": number, **more}), flush=True)

    def finish(self) -> None:
        if self._for_people:
            for kind, values in self._measured.items():
                told = labelled(
                    "", summary(kind, values, self._lost.get(kind, 0)), terminal_width(sys.stdout)
                )
                print("\n".join(["", told, *histogram(values)]))


def summary(kind: str, values: Sequence[float], lost: int) -> str:
    ordered = sorted(values)
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    told = ", ".join(
        f"{name} {1000 * value:.1f} ms"
        for name, value in (("least", ordered[0]), ("median", median), ("most", ordered[-1]))
    )
    return f"{kind}: {len(values)} round trips, {lost} lost, {told}"


def histogram(values: Sequence[float], width: int | None = None) -> list[str]:
    """Lines with a bar for each range of milliseconds, of equal ranges from the least to the most."""
    least, most = min(values), max(values)
    bin_count = min(BIN_COUNT, len(set(values)))
    step = (most - least) / bin_count or 1.0
    counts = [0] * bin_count
    for value in values:
        counts[min(int((value - least) / step), bin_count - 1)] += 1
    room = (width or terminal_width(sys.stdout)) - len("12345.0 - 12345.0 ms  ") - len(" 1000")
    return [
        f"{1000 * (least + number * step):7.1f} - {1000 * (least + (number + 1) * step):7.1f} ms  "
        f"{'#' * ceil(room * some / max(counts))} {some}".replace("ms   ", "ms  ")
        for number, some in enumerate(counts)
    ]


async def measure(
    circuit: "Circuit", destination: Destination | None, count: int, interval: float, report: Report
) -> list[TorkitError]:
    """Make `count` round trips of each kind, one after another. Returns why some were lost.

    Raises what ends the circuit.
    """
    import trio

    from torkit.net.circuit.asking import ask_exit

    failures: list[TorkitError] = []
    kinds: dict[str, Callable[[], Awaitable[None]]] = {"circuit": lambda: ask_exit(circuit)}
    if destination is not None:
        kinds["stream"] = lambda: open_stream(circuit, *destination)
    for number in range(1, count + 1):
        if number > 1:
            await trio.sleep(interval)
        for kind, make in kinds.items():
            started = trio.current_time()
            outcome: float | TorkitError
            try:
                with trio.fail_after(ANSWER_TIMEOUT):
                    await make()
                outcome = trio.current_time() - started
            except trio.TooSlowError:
                outcome = TimedOut(f"no answer within {ANSWER_TIMEOUT:g} s")
            except StreamClosed as error:
                if circuit.error is not None:
                    raise
                outcome = error
            report.note(kind, number, outcome)
            if isinstance(outcome, TorkitError):
                failures.append(outcome)
    return failures


async def open_stream(circuit: "Circuit", host: str, port: int) -> None:
    """Have the exit connect. Raises StreamClosed."""
    stream = circuit.begin(host, port)
    try:
        await stream.wait_connected()
    finally:
        stream.close()
