"""The compiled types from Python: none can be made half made, and misuse raises instead of crashing."""

import importlib
import inspect
import pkgutil
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
from fast.talk import Talk

import torkit._fast
from torkit._fast.cells import Outbox, Reader
from torkit._fast.channel import Channel
from torkit._fast.circuit import Circuit
from torkit._fast.idtable import IdTable
from torkit._fast.onion import TOR1_KEYS_LEN, Layer, LayerKind
from torkit._fast.pump import Pump
from torkit._fast.stream import Stream
from torkit._fast.tls import Tls
from torkit._fast.vegas import ClockGuard, RoundTripTime, Vegas
from torkit.errors import ChannelClosed, CircuitError, TorkitError, UsageError

# Types that hold nothing they would need, so that anybody may make one without arguments.
WHOLE = {
    *("Outbox", "IdTable", "Channel", "Pump", "ClockGuard", "RoundTripTime", "Event", "Flushed"),
    *("HashX", "Solver"),
}


def compiled_types() -> Iterator[Any]:
    for module in pkgutil.iter_modules(torkit._fast.__path__):
        members = vars(importlib.import_module(f"torkit._fast.{module.name}"))
        for member in members.values():
            is_own = inspect.isclass(member) and member.__module__ == f"torkit._fast.{module.name}"
            if is_own and not issubclass(member, Enum) and not member.__name__.startswith("__Pyx"):
                yield member


TYPES = sorted(compiled_types(), key=lambda one: one.__name__)


def test_the_types_are_found() -> None:
    assert {Stream, Circuit, Vegas, Outbox, IdTable, ClockGuard, RoundTripTime} <= set(TYPES)


@pytest.mark.parametrize("one", TYPES, ids=lambda one: one.__name__)
def test_no_type_can_be_made_without_what_it_needs(one: Any) -> None:
    """By its name, and by `__new__` alone, which runs no `__init__`."""
    if one.__name__ in WHOLE:
        one()
        return
    with pytest.raises(TypeError):
        one()
    with pytest.raises(TypeError):
        one.__new__(one)


@pytest.mark.parametrize("one", [one for one in TYPES if one.__name__ in WHOLE], ids=lambda one: one.__name__)
def test_methods_without_arguments_never_crash_on_a_new_object(one: Any) -> None:
    whole = one()
    for name in dir(whole):
        if name.startswith("__"):
            continue
        member = getattr(whole, name)
        if callable(member):
            with suppress(TypeError, TorkitError):
                member()


@pytest.mark.parametrize("one", TYPES, ids=lambda one: one.__name__)
def test_none_is_no_argument_that_crashes(one: Any) -> None:
    for count in range(1, 7):
        with suppress(TypeError, ValueError, OverflowError, TorkitError):
            one.__new__(one, *[None] * count)


def test_a_stream_is_closed_by_its_own_circuit_only() -> None:
    talk = Talk()
    one, other = talk.circuit(), talk.circuit()
    stream = talk.stream(one)
    with pytest.raises(UsageError):
        other.close_stream(stream, b"\x06", 1.0)
    assert stream.is_open


def test_a_circuit_is_closed_by_its_own_channel_only() -> None:
    talk = Talk()
    circuit = talk.circuit()
    with pytest.raises(UsageError):
        Channel().close_circuit(circuit)
    assert not circuit.has_ended
    talk.core.close_circuit(circuit)
    talk.core.close_circuit(circuit)


def test_closing_a_circuit_again_leaves_the_one_that_has_its_id_now() -> None:
    channel = Channel()
    first = channel.open_circuit(0x80000001, 1, 8)
    channel.close_circuit(first)
    channel.open_circuit(0x80000001, 1, 8)
    channel.close_circuit(first)
    assert channel.circuit_count == 1


def test_the_keys_of_one_hop_are_for_one_hop() -> None:
    channel = Channel()
    layer = Layer(LayerKind.TOR1, bytes(TOR1_KEYS_LEN))
    circuit = channel.open_circuit(0x80000001, 1, 8)
    circuit.add_hop(layer)
    with pytest.raises(UsageError):
        circuit.add_hop(layer)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda circuit: circuit.acknowledged(7),
        lambda circuit: circuit.acknowledged(-1),
        lambda circuit: circuit.vegas(7),
        lambda circuit: circuit.vegas(-1),
        lambda circuit: circuit.open_stream(7),
        lambda circuit: circuit.send(-1, 2, 0, b""),
    ],
)
def test_a_hop_that_is_not_there_is_refused(misuse: Callable[[Circuit], object]) -> None:
    with pytest.raises(UsageError):
        misuse(Talk().circuit())


def test_a_source_is_removed_by_its_own_pump_only() -> None:
    one, other = Pump(), Pump()
    near, far = socket.socketpair()
    with near, far:
        local = one.add_local(near.fileno(), None)
        with pytest.raises(UsageError):
            other.remove(local)
        assert local.is_watched
        one.remove(local)
        one.remove(local)
        assert not local.is_watched
        local.resume()
        one.watch_reading(local, True)


def test_a_closed_connection_is_used_no_more() -> None:
    near, far = socket.socketpair()
    with near, far:
        tls = Tls(near.fileno(), b"www.example.com")
        tls.close()
        with pytest.raises(ChannelClosed):
            tls.do_handshake()
        with pytest.raises(ChannelClosed):
            tls.send(b"x")
        with pytest.raises(ChannelClosed):
            tls.receive(bytearray(9))
        with pytest.raises(OSError, match="watched"):
            Pump().add_link(tls, Channel(), None)


def test_a_window_needs_all_its_parameters() -> None:
    with pytest.raises((TypeError, AttributeError)):
        Vegas(SimpleNamespace(), increment=31, clock=ClockGuard())


def test_a_reader_reads_no_more_than_there_is_and_nothing_backwards() -> None:
    reader = Reader(b"\1\2\3", "a message", CircuitError)
    assert (reader.take(0), reader.take_int(0), reader.take_int(2), reader.bytes_left) == (b"", 0, 0x102, 1)
    for read in (reader.take, reader.take_int):
        with pytest.raises(CircuitError, match="2 bytes expected at offset 2, 1 seen"):
            read(2)
        with pytest.raises(UsageError, match="-1 bytes cannot be read"):
            read(-1)
    with pytest.raises(UsageError, match="8 bytes at most, not 9"):
        reader.take_int(9)
    with pytest.raises(CircuitError, match="a message has 1 bytes too many"):
        reader.finish()
    assert reader.take(1) == b"\3"
    reader.finish()
    assert Reader(b"\xff" * 8, "a message", CircuitError).take_int(8) == 2**64 - 1
