"""A system that has no memory left: Python goes on with the ballast, and a proxy takes on nothing new."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from network.torkit_process import Proxy, running_proxy
from served import ServedNetwork, serve_network
from served_shell import shell_on

from torkit.testing.relay import FakeStream

MANY = 250  # clients at once: without ballast, some forty are too many
PAGE = b"a page"

CHILD = """
import resource
import sys
from torkit._fast import ballast

MIB = 1 << 20
HELD, CUSHION = [], []

def take(size):
    before = len(HELD)
    try:
        while True:
            HELD.append(bytearray(size))
    except MemoryError:
        CUSHION.clear()  # to go on with
        return (len(HELD) - before) * size // MIB

def limit(more):
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more + 2 * MIB, resource.RLIM_INFINITY))
    CUSHION.append(bytearray(2 * MIB))

size = int(sys.argv[1])
assert ballast.is_kept()  # none is asked for
limit(2 * MIB)
assert take(size) <= 4
limit(40 * MIB)
assert ballast.keep(32 * MIB)
limit(2 * MIB)
assert ballast.is_kept()
taken = take(size)
assert 24 <= taken <= 40, taken
assert not ballast.is_kept()
limit(7 * MIB)
assert ballast.is_kept()  # an eighth of it
taken = take(size)
assert 3 <= taken <= 10, taken
assert not ballast.is_kept()
limit(40 * MIB)
assert ballast.is_kept()
"""


@pytest.mark.parametrize("size", [1 << 20, 300])
def test_python_has_the_ballast_where_the_system_has_nothing(size: int) -> None:
    """Large blocks are malloc's, small objects are in arenas."""
    child = [sys.executable, "-c", CHILD, str(size)]
    ended = subprocess.run(child, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@contextmanager
def no_memory(proxy: Proxy) -> Iterator[None]:
    """The process gets no page more than it has."""
    before = resource.prlimit(proxy.pid, resource.RLIMIT_AS)
    pages = int(Path(f"/proc/{proxy.pid}/statm").read_text().split()[0])
    resource.prlimit(proxy.pid, resource.RLIMIT_AS, (pages * resource.getpagesize(), before[1]))
    try:
        yield
    finally:
        resource.prlimit(proxy.pid, resource.RLIMIT_AS, before)


async def ask(proxy: Proxy, identity: int) -> bytes:
    """A page for an identity of its own, by a circuit of its own."""
    user = b"%d" % identity
    async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
        await stream.send_all(b"\x05\x01\x02\x01" + bytes([len(user)]) + user + b"\x01x")
        await stream.send_all(b"\x05\x01\0\x03\x08web.test\0\x50")
        received = b""
        while data := await stream.receive_some():
            received += data
        return received


def serve_page(network: ServedNetwork) -> None:
    def on_begin(stream: FakeStream) -> None:
        stream.connected()
        stream.write(PAGE)
        stream.finish()

    for relay in network.relays.values():
        relay.on_begin = on_begin


async def test_a_proxy_without_memory_serves_a_crowd_and_whoever_comes_later(tmp_path: Path) -> None:
    """Each of the crowd was accepted while there was nothing to serve it with: Python or trio crashed."""
    answers: list[bytes] = []
    async with serve_network(exits=3, guards=3) as network:
        serve_page(network)
        running = running_proxy(shell_on(network, tmp_path), tmp_path / "proxy")
        proxy = await trio.to_thread.run_sync(running.__enter__)
        try:
            assert (await ask(proxy, MANY)).endswith(PAGE)

            async def note(identity: int) -> None:
                answers.append(await ask(proxy, identity))

            with no_memory(proxy):
                async with trio.open_nursery() as nursery:
                    for identity in range(MANY):
                        nursery.start_soon(note, identity)
            assert (await ask(proxy, MANY + 1)).endswith(PAGE)
        finally:
            await trio.to_thread.run_sync(running.__exit__, None, None, None)
    assert sum(answer.endswith(PAGE) for answer in answers) == MANY
