"""Onion services of torkit.blocking and torkit.aio: the sockets of their clients."""

import asyncio
import socket
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from onion_network import OnionNetwork, onion_relays
from waiting import until

from torkit import aio, blocking
from torkit._fast.cells import RelayCommand
from torkit.errors import EndReason
from torkit.testing.onion import FarClient


def heard(far: FarClient) -> list[tuple[int, bytes]]:
    """What the client was told, by command."""
    return [(cell.command, cell.body) for _, cell in far.circuit.control_cells]


async def test_a_blocking_service_hands_out_sockets(tmp_path: Path) -> None:
    in_thread = trio.to_thread.run_sync
    async with onion_relays() as network:
        open_tor = partial(blocking.open_tor, network=network.config, data_dir=tmp_path, spare_circuits=0)
        tor = await in_thread(open_tor)
        try:
            net = OnionNetwork(network.relays, tor._tor)
            service = await in_thread(tor.serve_onion, [80])
            await in_thread(service.wait_published, 30)
            with pytest.raises(TimeoutError):
                await in_thread(service.accept, 0.01)
            far = await net.meet(net.descriptor(service.address))
            theirs = far.begin(80, b"asked")
            with await in_thread(service.accept, 30) as sock:
                assert await in_thread(sock.recv, 100) == b"asked"
                await in_thread(sock.sendall, b"answered")
                await until(lambda: theirs.received == b"answered")
            await until(lambda: (RelayCommand.END, bytes([EndReason.DONE])) in heard(far))
            service.close()
            await until(lambda: far.circuit.circ_id not in far.circuit.link.circuits)
            with pytest.raises(OSError, match="closed"):
                await in_thread(service.accept)
            with pytest.raises(OSError, match="one port at least"):
                await in_thread(tor.serve_onion, [])
        finally:
            await in_thread(tor.close)


async def test_a_service_for_asyncio_hands_out_sockets(tmp_path: Path) -> None:
    opened, ended = threading.Event(), threading.Event()
    told: dict[str, Any] = {}
    async with onion_relays() as network:
        net = OnionNetwork(network.relays)

        async def serve() -> None:
            async with (
                aio.open_tor(network=network.config, data_dir=tmp_path, spare_circuits=0) as tor,
                tor.serve_onion([80]) as service,
            ):
                await service.wait_published()
                told["tor"], told["address"] = tor._tor, service.address
                opened.set()
                sock = await service.accept()
                assert isinstance(sock, socket.socket)
                reader, writer = await asyncio.open_connection(sock=sock)
                assert await reader.readexactly(5) == b"asked"
                writer.write(b"answered")
                await writer.drain()
                await asyncio.to_thread(ended.wait, 30)
                writer.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: asyncio.run(serve()))
            try:
                await until(opened.is_set)
                net.tor = told["tor"]
                far = await net.meet(net.descriptor(told["address"]))
                theirs = far.begin(80, b"asked")
                await until(lambda: theirs.received == b"answered")
            finally:
                ended.set()
