"""The loop cannot die in silence: what an exception ends, and who is told."""

import os
import socket
from pathlib import Path
from typing import NoReturn

import pytest
import trio
import trio.testing
from served import build, connect, far_end, fresh_relays, open_stream, serve, serve_channel, serve_network

from torkit._fast import channel as core_channel
from torkit._fast.cells import Command, RelayCommand
from torkit._fast.sources import LocalEvent
from torkit.client import open_tor
from torkit.errors import InternalError, StreamClosed
from torkit.net.link.pump import LocalOwner, Pump
from torkit.proto.padding import Padding
from torkit.testing.relay import encode_cell


def run_out_of_memory(*_: object) -> None:
    raise MemoryError


def break_pump() -> None:
    """Have the core's next look at its sockets fail: that fault belongs to no socket."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, Pump.current()._core.descriptor)
    os.close(nothing)


class Passes(trio.abc.Instrument):
    """Counts how often trio has looked for something to do."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def expect_rest() -> None:
    """Nothing keeps trio awake."""
    passes = Passes()
    trio.lowlevel.add_instrument(passes)
    await trio.sleep(0.2)
    trio.lowlevel.remove_instrument(passes)
    assert passes.count < 50


async def test_an_exception_while_a_link_is_read_ends_that_link_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = fresh_relays(2)
    async with serve(bad), serve(good), trio.open_nursery() as nursery:
        channels = [await connect(bad), await connect(good)]
        for channel in channels:
            nursery.start_soon(channel.run)
        ended = await build(channels[0], [bad])
        circuit = await build(channels[1], [good])
        with monkeypatch.context() as patch:
            patch.setattr(core_channel, "ChannelError", run_out_of_memory)
            bad.links[0].push(encode_cell(0, Command.VPADDING, bytes(20_000)))  # longer than any may be
            await channels[0]._has_ended.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(channels[0].error, InternalError)
        assert "MemoryError" in str(ended.error)
        assert "internal error (MemoryError) ended the connection to a relay" in caplog.text
        await open_stream(circuit, good)  # the other goes on
        again = await connect(bad)
        nursery.start_soon(again.run)
        await build(again, [bad])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("handler", ["on_message", "on_control_cell"])
async def test_an_exception_in_a_handler_of_a_circuit_ends_that_circuit_only(
    handler: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ended the whole connection, with the circuits of everybody."""

    def fail(*_: object) -> NoReturn:
        raise ValueError("web.test")

    (relay,) = fresh_relays(1)
    async with serve_channel(relay) as channel:
        good = await build(channel, [relay])
        stream, far = await open_stream(good, relay)
        bad = await build(channel, [relay])
        monkeypatch.setattr(bad, handler, fail)
        if handler == "on_message":
            far_end(relay).send(0, RelayCommand.TRUNCATED, 0, b"\0")
        else:
            far_end(relay).destroy()
        far.data(b"still here")
        assert await stream.receive_some() == b"still here"
        assert isinstance(bad.error, InternalError)
        assert channel.error is None
    assert "an internal error (ValueError) ended a circuit" in caplog.text
    assert "web.test" not in caplog.text


async def test_an_exception_while_a_client_is_fed_ends_that_client_only() -> None:
    """Its descriptor was closed by somebody else, so the system refuses to watch it for more."""
    faults: list[InternalError] = []

    class Client:
        def on_local(self, event: LocalEvent) -> None:
            raise AssertionError

        def on_fault(self, error: InternalError) -> None:
            faults.append(error)

    (relay,) = fresh_relays(1)
    relay.on_data = lambda *_: None
    async with serve(relay), trio.open_nursery() as nursery:
        channel = await connect(relay)
        nursery.start_soon(channel.run)
        circuit = await build(channel, [relay])
        stream, _ = await open_stream(circuit, relay)
        near, far = socket.socketpair()
        near.setblocking(False)
        source = Pump.current().add_local(near.fileno(), Client())
        Pump.current().watch_reading(source, False)
        stream.be_fed(source, b"")
        near.close()
        with trio.fail_after(10):
            while not faults:
                source.resume()
                await trio.sleep(0.01)
        assert not source.is_watched
        assert "OSError" in str(faults[0])
        await open_stream(circuit, relay)
        far.close()
        nursery.cancel_scope.cancel()


class Bad:
    """An owner with two faults of ours."""

    def on_local(self, event: LocalEvent) -> None:
        raise ValueError("web.test")

    def on_fault(self, error: InternalError) -> None:
        raise OSError("web.test")


async def test_an_owner_whose_end_fails_too_is_let_go_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = trio.Event()

    class Good:
        def on_local(self, event: LocalEvent) -> None:
            pump.remove(source)
            told.set()

        def on_fault(self, error: InternalError) -> None:
            raise AssertionError

    pump = Pump.current()
    pairs = [socket.socketpair() for _ in range(2)]
    bad = pump.add_local(pairs[0][0].fileno(), Bad())
    source = pump.add_local(pairs[1][0].fileno(), Good())
    pairs[0][1].send(b"x")
    with trio.fail_after(10):
        while bad.is_watched:
            await trio.sleep(0.01)
        pairs[1][1].send(b"x")
        await told.wait()
    await expect_rest()
    assert "without a word to its users" in caplog.text
    assert "web.test" not in caplog.text
    for pair in pairs:
        for end in pair:
            end.close()


async def test_an_exception_that_belongs_to_nobody_fails_every_owner_loudly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults: list[InternalError] = []

    class Client:
        def on_local(self, event: LocalEvent) -> None:
            raise AssertionError

        def on_fault(self, error: InternalError) -> None:
            faults.append(error)

    owners: list[LocalOwner] = [Client(), Bad(), Client()]
    (relay,) = fresh_relays(1)
    pairs = [socket.socketpair() for _ in owners]
    async with serve(relay), trio.open_nursery() as nursery:
        channel = await connect(relay)
        nursery.start_soon(channel.run)
        circuit = await build(channel, [relay])
        stream, _ = await open_stream(circuit, relay)
        pump = Pump.current()
        for (near, _), owner in zip(pairs, owners, strict=True):
            pump.add_local(near.fileno(), owner)
        break_pump()
        with trio.fail_after(10):
            with pytest.raises(StreamClosed):
                await stream.receive_some()
            with pytest.raises(InternalError, match="ended every connection"):
                await pump.wait_fault()
        assert isinstance(channel.error, InternalError)
        assert len(faults) == 2  # who raises keeps nobody from being told
        assert "ended every connection" in caplog.text
        with pytest.raises(InternalError):
            pump.add_local(pairs[0][0].fileno(), owners[0])
        await expect_rest()
        late = await connect(relay)
        with pytest.raises(InternalError):
            await late.run()
        nursery.cancel_scope.cancel()
    for pair in pairs:
        for end in pair:
            end.close()


async def test_a_client_whose_loop_has_failed_raises_what_it_was(tmp_path: Path) -> None:
    async def use_client() -> None:
        async with open_tor(network=network.config, data_dir=tmp_path, padding=Padding.OFF) as tor:
            await tor.wait_ready()
            stream = await tor.connect("web.test", 80)
            break_pump()
            await stream.receive_some()

    async with serve_network(guards=1, exits=1) as network:
        with pytest.raises(InternalError, match="ended every connection"):
            await use_client()
