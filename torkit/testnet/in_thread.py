"""A private network kept by a trio run in another thread, for tests and programs of every kind."""

import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from torkit.testnet.model import Options, Relay
from torkit.testnet.network import Testnet, run_testnet


class RunningTestnet:
    """The network as seen from other threads. Calls block: from trio, use `trio.to_thread.run_sync`."""

    def __init__(self, net: Testnet, token: trio.lowlevel.TrioToken) -> None:
        self._net = net
        self._token = token
        self.network_file: Path = net.network_file
        self.directory: Path = net.directory
        self.dns_port: int = net.dns_port

    @property
    def relays(self) -> list[Relay]:
        return self._net.relays

    @property
    def exits(self) -> list[Relay]:
        return self._net.exits

    def relay(self, nickname: str) -> Relay:
        return self._net.relay(nickname)

    def kill_relay(self, nickname: str) -> None:
        self._call(self._net.kill_relay, nickname)

    def start_relay(self, nickname: str) -> None:
        self._call(self._net.start_relay, nickname)

    def start_client(self, *torrc: str) -> tuple[str, int]:
        """Start a C tor client on this network. Returns its SOCKS address.

        It runs until the session ends.
        """
        host, port = self._call(self._net.start_client, torrc)
        return host, port

    def _call(self, function: Callable[..., Awaitable[Any]], *args: object) -> Any:
        return trio.from_thread.run(function, *args, trio_token=self._token)


@contextmanager
def running_testnet(directory: Path, options: Options | None = None) -> Iterator[RunningTestnet]:
    """As `run_testnet`, without trio. Raises as it does."""
    ready: queue.SimpleQueue[RunningTestnet | BaseException] = queue.SimpleQueue()
    finished = trio.Event()

    async def keep() -> None:
        async with run_testnet(directory, options) as net:
            ready.put(RunningTestnet(net, trio.lowlevel.current_trio_token()))
            await finished.wait()

    def run() -> None:
        try:
            trio.run(keep)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=run, name="testnet")
    thread.start()
    net = ready.get()
    if isinstance(net, BaseException):
        raise net
    try:
        yield net
    finally:
        net._token.run_sync_soon(finished.set)
        thread.join()
