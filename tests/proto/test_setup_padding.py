"""The machines that pad circuits to onion services while they are set up: what is said, what may come."""

import pytest

from torkit.directory.netdoc import decode_protocols
from torkit.errors import CircuitError
from torkit.proto.setup_padding import Machine, SetupPadding

# As C tor's client writes them (seen), and as its relays answer.
START = {
    Machine.INTRODUCTION: bytes.fromhex("0002000000000001"),
    Machine.RENDEZVOUS: bytes.fromhex("0002010000000001"),
}
NEGOTIATE, DROP = 41, 10


def negotiated(
    command: int, response: int = 1, machine: int = 0, counter: int = 1, version: int = 0
) -> bytes:
    return bytes([version, command, response, machine]) + counter.to_bytes(4, "big")


STARTED, STOPPED = negotiated(2), negotiated(1)


@pytest.mark.parametrize("machine", Machine)
def test_a_rendezvous_circuit_begins_as_a_request_and_an_introduction_is_answered_as_one(
    machine: Machine,
) -> None:
    padding = [(DROP, b"")] if machine is Machine.RENDEZVOUS else []
    assert SetupPadding(machine).start() == [(NEGOTIATE, START[machine]), *padding]


def test_it_runs_until_the_relay_stops() -> None:
    padding = SetupPadding(Machine.INTRODUCTION)
    padding.start()
    padding.receive(STARTED)
    assert padding.is_running
    padding.receive(STOPPED)
    assert not padding.is_running


def test_a_relay_may_refuse() -> None:
    padding = SetupPadding(Machine.INTRODUCTION)
    padding.receive(negotiated(2, response=2))
    assert not padding.is_running


@pytest.mark.parametrize(
    "body", [negotiated(1, machine=1), negotiated(1, counter=2), negotiated(2, response=2, counter=0)]
)
def test_what_is_for_another_machine_is_passed_over(body: bytes) -> None:
    padding = SetupPadding(Machine.INTRODUCTION)
    padding.receive(body)
    assert padding.is_running


@pytest.mark.parametrize("body", [STARTED, STOPPED])
def test_each_is_said_once(body: bytes) -> None:
    padding = SetupPadding(Machine.INTRODUCTION)
    padding.receive(body)
    with pytest.raises(CircuitError, match="nobody waits for"):
        padding.receive(body)


@pytest.mark.parametrize(
    "body",
    [STARTED[:end] for end in range(8)]
    + [
        negotiated(0),
        negotiated(3),
        negotiated(2, response=0),
        negotiated(2, response=3),
        negotiated(2, version=1),
    ],
)
def test_what_is_malformed_ends_the_circuit(body: bytes) -> None:
    with pytest.raises(CircuitError, match="PADDING_NEGOTIATED"):
        SetupPadding(Machine.INTRODUCTION).receive(body)


def test_only_the_second_relays_answers_are_taken() -> None:
    padding = SetupPadding(Machine.RENDEZVOUS)
    assert padding.takes(1, 42)
    assert not any(padding.takes(*other) for other in ((0, 42), (2, 42), (1, 41), (1, DROP)))


@pytest.mark.parametrize(
    ("protocols", "params", "may_run"),
    [
        ("Padding=2", {}, True),
        ("Padding=1-2", {}, True),
        ("Padding=1", {}, False),
        ("Relay=1-6", {}, False),
        ("Padding=2", {"circpad_padding_disabled": 1}, False),
        ("Padding=2", {"circpad_padding_reduced": 1}, False),
    ],
)
def test_the_relay_and_the_consensus_have_a_say(
    protocols: str, params: dict[str, int], may_run: bool
) -> None:
    assert SetupPadding(Machine.RENDEZVOUS).may_run(decode_protocols(protocols), params) == may_run
