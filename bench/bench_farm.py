"""Four proxies behind HAProxy, configured as in deploy/.

    PYTHONPATH=tests/support python -m bench.bench_farm

Identities download by HTTP CONNECT, all at once: through HAProxy, which gives each to one of the proxies by
its credentials, and in turns with that by the proxies' own ports, which they are spread over evenly.
"""

import subprocess
import tempfile
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import trio
from haproxy import OWN_PORTS, configured, count_healthy

from bench.bench_identities import made, network
from bench.load import Route, Stream
from bench.processes import POLL_INTERVAL, allow_many_files, let_python_keep_bytecode, running_torkit, say
from bench.table import Line, compare, table
from torkit.testnet.processes import reserved_ports

HOST = "127.0.0.1"
PROXIES = 4
IDENTITIES = 32
LENGTH = 4 << 20  # bytes for each, in a round
ROUNDS = 7
DEADLINE = 120.0  # seconds for a round
BAR = 0.9


class Tunnel(Stream):
    """A stream that HTTP's CONNECT opens."""

    async def handshake(self, route: Route, isolation: str) -> None:
        target = b"%b:%d" % (route.name, route.port)
        credentials = b64encode(f"{isolation}:x".encode())
        await self._stream.send_all(
            b"CONNECT %b HTTP/1.1\r\nHost: %b\r\nProxy-Authorization: Basic %b\r\n\r\n"
            % (target, target, credentials)
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            more = await self._stream.receive_some(1)  # what follows is the far end's
            if not more:
                raise EOFError("the proxy closed the connection")
            answer += more
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise OSError(f"the proxy answered {answer!r}")


async def fetch(route: Route, isolation: str) -> None:
    sock = trio.socket.socket()
    async with Tunnel(sock) as stream:
        await sock.connect(route.socks)
        await stream.handshake(route, isolation)
        await stream.download(LENGTH)


async def rate(routes: Sequence[Route]) -> float:
    """MiB a second of all identities together, spread over these."""
    started = monotonic()
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            for number in range(IDENTITIES):
                nursery.start_soon(fetch, routes[number % len(routes)], f"farm{number}")
    return IDENTITIES * LENGTH / (1 << 20) / (monotonic() - started)


@asynccontextmanager
async def running_haproxy(
    scratch: Path, own: Sequence[int], ports: Sequence[int], pages: Sequence[int]
) -> AsyncIterator[None]:
    """HAProxy, its `own` three ports for HTTP, SOCKS and its page, before proxies with pages of metrics."""
    config = scratch / "haproxy.cfg"
    config.write_text(configured(own, ports, pages))
    process = subprocess.Popen(["haproxy", "-db", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def measure() -> list[Line]:
    allow_many_files()
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torkit-bench-")))
        say("a private network, and four proxies")
        net, port = await stack.enter_async_context(network(scratch))
        with reserved_ports([HOST] * (PROXIES + len(OWN_PORTS))) as ports:
            pages, own = ports[:PROXIES], ports[PROXIES:]
        proxies = [
            await stack.enter_async_context(
                running_torkit(
                    net,
                    made(scratch / f"proxy{number}"),
                    ["--metrics", f"{HOST}:{page}", "--shared-cache", str(scratch / "directory")],
                )
            )
            for number, page in enumerate(pages)
        ]
        direct = [Route(proxy.socks, port) for proxy in proxies]
        await stack.enter_async_context(
            running_haproxy(scratch, own, [proxy.socks[1] for proxy in proxies], pages)
        )
        behind = [Route((HOST, own[0]), port)]
        with trio.fail_after(DEADLINE):
            while await trio.to_thread.run_sync(count_healthy, own[2]) < PROXIES:
                await trio.sleep(POLL_INTERVAL)
        figures: tuple[list[float], list[float]] = ([], [])
        for number in range(ROUNDS + 1):
            for routes, rates in zip((behind, direct), figures, strict=True):
                rates.append(await rate(routes))
            if number == 0:  # which builds the circuits
                for rates in figures:
                    rates.clear()
        what = f"{PROXIES} proxies, {IDENTITIES} identities at once: downloaded"
        return [compare(what, "MiB/s", *figures, "the four alone", bar=BAR, at_least=True)]


if __name__ == "__main__":
    let_python_keep_bytecode()
    print(table(trio.run(measure)))
