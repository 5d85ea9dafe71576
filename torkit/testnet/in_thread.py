"""A private network kept open by a trio run in another thread, for tests and programs of every kind."""

import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from torkit.testnet.model import Options, Relay
from torkit.testnet.network import Testnet, run_testnet

T = TypeVar("T")


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
    with kept_open(run_testnet(directory, options), "testnet") as (net, token):
        yield RunningTestnet(net, token)


@contextmanager
def kept_open(
    context: AbstractAsyncContextManager[T], name: str
) -> Iterator[tuple[T, trio.lowlevel.TrioToken]]:
    """The value of `context`, and the token of the trio run that keeps it open in a thread of this name.

    Raises as `context` does when it is entered.
    """
    ready: queue.SimpleQueue[tuple[T, trio.lowlevel.TrioToken] | BaseException] = queue.SimpleQueue()
    finished = trio.Event()

    async def keep() -> None:
        async with context as value:
            ready.put((value, trio.lowlevel.current_trio_token()))
            await finished.wait()

    def run() -> None:
        try:
            trio.run(keep)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    opened = ready.get()
    if isinstance(opened, BaseException):
        raise opened
    try:
        yield opened
    finally:
        opened[1].run_sync_soon(finished.set)
        thread.join()
