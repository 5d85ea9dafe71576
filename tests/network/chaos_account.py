"""For the soak of chaos: what a proxy knows of a client that got no answer, and whether relays have told it.

Of several DESTROY cells for one idle connection a relay sends the first. The others wait until a relay cell
goes the same way (C tor 0.4.9, circuitmux_append_destroy_cell). So a circuit may be dead without a word to
its client, whose streams then wait as long as their programs do.
"""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trio

ACCOUNT_WITHIN = 30.0  # seconds; the proxy may have much else to do
LAST_LINES = 400  # of the proxy's log
STATUS = b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n"

# A part of the proxy's program: on SIGUSR2 it writes down which client waits on which circuits.
TELLING = """
def tell(*_):
    import gc, json, trio
    from torkit.net.proxy.client import Client
    told = []
    for one in gc.get_objects():
        if not isinstance(one, Client) or one._stream is None or one._socket.fileno() < 0:
            continue
        stream, circuit = one._stream, one._stream.circuit
        told.append({
            "port": one._socket.getpeername()[1],
            "client": repr(one),
            "circuit": repr(circuit),
            "is_open": not stream.has_ended and circuit.error is None,
            "bytes": [stream.sent, stream.received, stream.queued],
            "legs": [
                {
                    "path": leg.names(lambda relay: relay.nickname),
                    "age": trio.current_time() - leg.began_at,
                    "is_watched": bool(leg._channel._link and leg._channel._link.is_watched),
                    "is_congested": leg._channel.is_congested,
                    "silent_for": time.monotonic() - leg._channel._core.last_active,
                }
                for leg in getattr(circuit, "legs", (circuit,))
            ],
        })
    path = os.environ["CHAOS_ACCOUNT"]
    with open(path + ".new", "w") as file:
        json.dump(told, file)
    os.replace(path + ".new", path)
signal.signal(signal.SIGUSR2, tell)
"""


class Killed(NamedTuple):
    """A relay, and when it was killed, on trio's clock."""

    relay: str
    at: float


async def ask_proxy(pid: int, directory: Path, port: int) -> dict[str, Any]:
    """What the proxy knows of its client at `port`, what it says of itself, and the end of its log."""
    account = directory / "account.json"
    account.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR2)
    clients: list[dict[str, Any]] = []
    with trio.move_on_after(ACCOUNT_WITHIN):
        while not account.exists():
            await trio.sleep(0.05)
        clients = json.loads(account.read_text())
    log = (directory / "stderr").read_text(errors="replace").splitlines()
    return {
        "port": port,
        "client": next((one for one in clients if one["port"] == port), None),
        "status": await _ask_status(directory / "disk" / "status.sock"),
        "log": log[-LAST_LINES:],
    }


async def _ask_status(path: Path) -> Any:
    answer = b""
    with trio.move_on_after(ACCOUNT_WITHIN):
        try:
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(STATUS)
                while more := await stream.receive_some():
                    answer += more
        except (OSError, trio.BrokenResourceError) as error:
            return str(error)
    try:
        return json.loads(answer.partition(b"\r\n\r\n")[2])
    except ValueError:
        return answer.decode(errors="replace")


def find_untold(client: dict[str, Any] | None, killed: Sequence[Killed]) -> str:
    """Which relay of a client's circuits was killed after they were made, where the proxy has not been told.

    Returns "" where there is none, or where the proxy knows that the stream has ended.
    """
    if client is None or not client["is_open"]:
        return ""
    now = trio.current_time()
    for leg in client["legs"]:
        for relay, at in killed:
            if relay in leg["path"] and at > now - leg["age"]:
                return (
                    f"{relay} was killed {now - at:.0f} s ago, and no other relay of {leg['path']} has told"
                )
    return ""
