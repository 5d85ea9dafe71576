"""`torkit status`: what a running proxy is doing."""

import json
import os
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from torkit.cli.monitoring import STATUS_PAGE, status_socket
from torkit.cli.options import Options, command_app
from torkit.cli.table import Table, terminal_width
from torkit.errors import NotPossible, PeerError
from torkit.sizes import to_size

app = command_app()

# Implementation limits.
INTERVAL = 1.0  # seconds between two looks of --watch
ANSWER_TIMEOUT = 10.0  # seconds
MAX_ANSWER_LEN = 64 << 20  # bytes; a circuit takes some 150

LINES_ELSEWHERE = 24  # of a terminal that does not say how many it has
COLUMNS = {"id": 6, "purpose": 15, "state": 8, "age": 7, "streams": 7, "path": 62}
REACHABLE = {"yes": "reachable", "no": "down", "maybe": "not tried"}

# Escape sequences, ECMA-48 and xterm's.
FULL_SCREEN, LEAVE_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, ERASE_LINE, ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"

Moment = dict[str, Any]  # as Status.to_json


@app.command()
def status(
    context: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again each second: on the whole terminal, or as JSON lines.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line for each look.")] = False,
) -> None:
    """Show what a running proxy is doing.

    It is asked at a socket in its data directory.
    """
    options: Options = context.obj
    path = status_socket(options)
    if watch and sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not as_json:
        watch_on_terminal(path)
    elif watch:
        while True:
            print(json.dumps(ask(path)), flush=True)
            time.sleep(INTERVAL)
    else:
        moment = ask(path)
        width = terminal_width(sys.stdout) if sys.stdout.isatty() else 10_000
        print(json.dumps(moment) if as_json else "\n".join(to_lines(moment, width)))


def ask(path: Path) -> Moment:
    """Returns the answer of the proxy at this socket.

    Raises NotPossible without one, PeerError for nonsense.
    """
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(ANSWER_TIMEOUT)
            client.connect(str(path))
            client.sendall(f"GET {STATUS_PAGE} HTTP/1.0\r\n\r\n".encode())
            answer = bytearray()
            while (data := client.recv(1 << 16)) and len(answer) <= MAX_ANSWER_LEN:
                answer += data
    except OSError as error:
        raise NotPossible(
            f"no proxy answers at {path}: {error.strerror or error}",
            hint="torkit socks with the same --data-dir and --network does",
        ) from error
    head, end, body = bytes(answer).partition(b"\r\n\r\n")
    try:
        if not end or head.split()[1] != b"200":
            raise ValueError
        moment: Moment = json.loads(body)
    except (ValueError, IndexError) as error:
        raise PeerError(f"what answers at {path} is no proxy of this version") from error
    return moment


def to_lines(
    moment: Moment, width: int, before: Moment | None = None, seconds: float = INTERVAL
) -> list[str]:
    """Returns a moment for people. With the one `before`, how much it was in each of the `seconds` since."""
    until = ""
    if moment["valid_until"] is not None:
        until = time.strftime(" until %H:%M:%S UTC", time.gmtime(moment["valid_until"]))
    traffic = []
    for direction in ("received", "sent"):
        rate = ""
        if before is not None:
            rate = f" ({to_size((moment[direction] - before[direction]) / seconds)}/s)"
        traffic.append(f"{direction} {to_size(moment[direction])}{rate}")
    guards = [
        f"{one['nickname'] or one['fingerprint']} {REACHABLE[one['reachable']]}" for one in moment["guards"]
    ]
    states = Counter(one["state"] for one in moment["circuits"])
    circuits = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    lines = [
        f"start     {moment['progress']}%, {moment['summary']}",
        f"network   {moment['relays']} relays{until}, {moment['connections']} connections",
        f"guards    {', '.join(guards) or 'none'}",
        f"streams   {moment['streams']}; {', '.join(traffic)}",
        f"circuits  {len(moment['circuits'])}{circuits and f': {circuits}'}",
    ]
    lines = [line[:width] for line in lines]
    if moment["circuits"]:
        table = Table(COLUMNS, width)
        lines += ["", table.header.upper()]
        busiest = sorted(moment["circuits"], key=lambda one: (-one["streams"], -one["circuit"]))
        lines += [
            table.row(
                (
                    str(one["circuit"]),
                    one["purpose"],
                    one["state"],
                    to_age(one["age"]),
                    str(one["streams"]),
                    ", ".join(one["path"]),
                )
            )
            for one in busiest
        ]
    return lines


def to_age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes = int(seconds) // 60
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h {minutes % 60}m"


# --- the whole terminal ---------------------------------------------------------------------------------


def watch_on_terminal(path: Path) -> None:
    """Draw a moment each second, and when the terminal changes its size, until q. Raises as `ask`."""
    moment, looked_at = ask(path), time.monotonic()  # before the screen is taken
    before, seconds = None, INTERVAL
    with whole_screen() as ends:
        while True:
            size = os.get_terminal_size(sys.stdout.fileno())
            lines = to_lines(moment, size.columns or 80, before, seconds)[: (size.lines or LINES_ELSEWHERE)]
            drawn = f"{ERASE_LINE}\r\n".join(lines)
            sys.stdout.write(f"{HOME}{drawn}{ERASE_LINE}{ERASE_BELOW}")
            sys.stdout.flush()
            left = looked_at + INTERVAL - time.monotonic()
            if left > 0 and has_event(ends, left):
                if is_left(ends):
                    return
                continue
            now = time.monotonic()
            before, seconds = moment, now - looked_at
            moment, looked_at = ask(path), now


def has_event(ends: list[int], seconds: float) -> bool:
    """Wait for a key, a signal, or so long."""
    return bool(select.select(ends, [], [], seconds)[0])


def is_left(ends: list[int]) -> bool:
    """Read what has come. Returns whether somebody wants to leave."""
    for descriptor in select.select(ends, [], [], 0)[0]:
        data = os.read(descriptor, 100)
        if descriptor != ends[0] and (not data or b"q" in data.lower()):
            return True
    return False


@contextmanager
def whole_screen() -> Iterator[list[int]]:
    """The terminal without echo, and its other screen; as it was at the end, however that comes.

    Gives a descriptor that is readable after a change of size, and the keyboard where stdin is one.
    """
    keyboards = [sys.stdin.fileno()] if sys.stdin.isatty() else []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = [termios.tcgetattr(keyboard) for keyboard in keyboards]
    handlers = {signal.SIGWINCH: _do_nothing, signal.SIGTERM: _leave, signal.SIGHUP: _leave}
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        for keyboard in keyboards:
            tty.setcbreak(keyboard)
        sys.stdout.write(FULL_SCREEN)
        yield [reader, *keyboards]
    finally:
        sys.stdout.write(LEAVE_SCREEN)
        sys.stdout.flush()
        for keyboard, settings in zip(keyboards, before, strict=True):
            termios.tcsetattr(keyboard, termios.TCSADRAIN, settings)
        signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)


def _do_nothing(number: int, frame: object) -> None:
    """The pipe of `whole_screen` tells."""


def _leave(number: int, frame: object) -> None:
    raise typer.Exit(128 + number)
