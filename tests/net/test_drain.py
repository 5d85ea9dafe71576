"""A proxy that ends in order: nobody is accepted any more, and who is served is served to the end."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing
from proxied import CONNECT, GREETING, ScriptedTor, proxy_for, receive_all

from torkit.errors import NoPath
from torkit.net.proxy import serve_proxy
from torkit.net.proxy.listener import StreamListener
from torkit.net.proxy.upstream import Upstream
from torkit.proto.first_byte import AnyProtocol


class Ending:
    """Serves, and tells when that is over."""

    def __init__(self) -> None:
        self.has_begun, self.is_over = trio.Event(), trio.Event()

    async def serve(self, listeners: Sequence[trio.SocketListener], *, request: Any, resolve: Any) -> None:
        await serve_proxy(
            [StreamListener(one.socket, lambda _: AnyProtocol()) for one in listeners],
            upstream=Upstream(request, resolve),
            is_ending=self.has_begun,
        )
        self.is_over.set()

    async def begin(self) -> None:
        self.has_begun.set()
        await trio.testing.wait_all_tasks_blocked()


async def test_a_running_stream_goes_on_and_its_end_is_the_end() -> None:
    tor, ending = ScriptedTor(), Ending()
    async with proxy_for(tor, serve=ending.serve) as proxy:
        client, peer = await proxy.open(tor)
        await ending.begin()
        with pytest.raises(OSError, match="connect"):
            await proxy.client()
        await client.send_all(b"ping")
        assert await peer.receive_some() == b"ping"
        assert not ending.is_over.is_set()
        await peer.send_all(b"last words")
        await peer.end()
        assert await receive_all(client) == b"last words"
        await client.aclose()
        with trio.fail_after(10):
            await ending.is_over.wait()


async def test_without_clients_the_end_comes_at_once() -> None:
    ending = Ending()
    async with proxy_for(ScriptedTor(), serve=ending.serve):
        await ending.begin()
        assert ending.is_over.is_set()


async def test_who_has_not_said_what_it_wants_is_not_waited_for() -> None:
    tor, ending = ScriptedTor(), Ending()
    async with proxy_for(tor, serve=ending.serve) as proxy:
        silent, half = await proxy.client(), await proxy.client()
        await half.send_all(GREETING)
        assert await half.receive_some() == b"\x05\x00"
        await ending.begin()
        with trio.fail_after(10):
            await ending.is_over.wait()
        for client in silent, half:
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()


async def test_a_request_that_waits_for_its_circuit_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedTor, "is_ready", False)
    tor, ending, goes_on = ScriptedTor(), Ending(), trio.Event()

    async def answer_late() -> None:
        await goes_on.wait()
        raise NoPath("no exit")

    monkeypatch.setattr(tor, "_answer_as_told", answer_late)
    async with proxy_for(tor, serve=ending.serve) as proxy, trio.open_nursery() as nursery:
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await proxy.ask(GREETING + CONNECT))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await ending.begin()
        assert not ending.is_over.is_set()
        goes_on.set()
        with trio.fail_after(10):
            await ending.is_over.wait()
    assert answers[0].startswith(b"\x05\x00\x05\x02")


async def test_running_streams_end_where_the_end_is_cut_short() -> None:
    tor, ending = ScriptedTor(), Ending()
    async with proxy_for(tor, serve=ending.serve) as proxy:
        client, peer = await proxy.open(tor)
        await ending.begin()
        proxy.scope.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
        await peer.has_ended.wait()
