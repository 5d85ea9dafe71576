"""What the relays of an onion service see of torkit and of C tor's client, as docs/observers.md has it."""

from collections.abc import Callable
from typing import Any

import pytest
from network.recording_onion import STEMS, Onion, record_onion
from network.test_observers import comparing, record_both
from network.torkit_process import skip_without
from setup_padder import NEGOTIATE

from torkit._fast.cells import RelayCommand
from torkit.testing.relay import NTOR, FakeCircuit

pytestmark = [pytest.mark.network, skip_without("tor", "strace")]

Alike = Callable[[Callable[[Onion], Any]], Any]
Said = tuple[int, int, int]  # hop, relay command, length of its body


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Onion, Onion]:
    return record_both(record_onion, tmp_path_factory)


@pytest.fixture
def alike(recordings: tuple[Onion, Onion]) -> Alike:
    return comparing(recordings)


def rendezvous(onion: Onion) -> FakeCircuit:
    """The circuit that has joined."""
    return onion.service.network.cookies[onion.service.introductions[0].cookie].circuit


def introduction(onion: Onion) -> FakeCircuit:
    return onion.service.introductions[0].end.circuit


def said(onion: Onion, circuit: FakeCircuit) -> list[Said]:
    """What the client said to relays on a circuit, once it was built; what the service gets is left out."""
    relays = len(circuit.hops) - (circuit.hops[-1].relay is onion.service.relay)
    return [
        (one.hop, one.cell.command, len(one.cell.body))
        for one in onion.seen.hop_cells
        if one.circuit is circuit and one.hop <= relays and one.cell.command != RelayCommand.EXTEND2
    ]


def places(onion: Onion, circuit: FakeCircuit) -> list[str]:
    """The kinds of relays on a path; who stands in the middle is drawn."""
    names = [onion.seen.name_of(hop.relay) for hop in circuit.hops if hop.relay is not onion.service.relay]
    return ["middle" if name[:4] in ("midd", "able") else name[:-1] for name in names]


def test_one_introduction_and_one_cookie_are_enough_for_two_requests(alike: Alike) -> None:
    def observe(onion: Onion) -> tuple[int, int, int]:
        return len(onion.service.introductions), len(onion.service.network.cookies), len(onion.streams)

    assert alike(observe) == (1, 1, 2)


def test_what_is_built_ahead_is_what_a_service_is_met_by(alike: Alike) -> None:
    """Nobody had asked for a service when three stems were there: the rendezvous circuit is one of them."""

    def observe(onion: Onion) -> bool:
        made = [circuit for circuit in onion.stems if circuit is rendezvous(onion)]
        return len(onion.stems) >= STEMS and len(made) == 1

    assert alike(observe)


def test_a_rendezvous_point_is_behind_guard_and_vanguard(alike: Alike) -> None:
    assert alike(lambda onion: places(onion, rendezvous(onion))) == ["guard", "middle", "middle"]


def test_an_introduction_point_is_behind_three_relays_and_gets_ntor(alike: Alike) -> None:
    def observe(onion: Onion) -> tuple[list[str], int | None]:
        circuit = introduction(onion)
        return places(onion, circuit), circuit.hops[-1].handshake_type

    assert alike(observe) == (["guard", "middle", "middle", "exit"], NTOR)


def test_what_is_said_to_the_relays_of_a_rendezvous_circuit(alike: Alike) -> None:
    """The cookie, and to the second relay what begins the padding: it looks like a request."""
    assert alike(lambda onion: said(onion, rendezvous(onion))) == [
        (3, RelayCommand.ESTABLISH_RENDEZVOUS, 20),
        (2, NEGOTIATE, 8),
        (2, RelayCommand.DROP, 0),
    ]


def test_what_is_said_on_an_introduction_circuit(alike: Alike) -> None:
    """And it is kept, since its padding had not stopped when the service came."""
    assert alike(lambda onion: (said(onion, introduction(onion)), introduction(onion).closed)) == (
        [(4, RelayCommand.INTRODUCE1, 310), (2, NEGOTIATE, 8)],
        False,
    )


def test_the_second_relay_is_asked_for_both_machines_once(alike: Alike) -> None:
    def observe(onion: Onion) -> tuple[list[int], int]:
        return [len(circuits) for circuits in onion.padder.asked.values()], len(onion.padder.dropped)

    assert alike(observe) == ([1, 1], 1)


def test_congestion_control_is_asked_for_in_the_introduction(alike: Alike) -> None:
    assert alike(lambda onion: onion.service.introductions[0].extensions) == b"\1\1\0"


def test_the_service_is_told_the_rendezvous_points_own_key(alike: Alike) -> None:
    def observe(onion: Onion) -> bool:
        point = rendezvous(onion).hops[2].relay
        return onion.service.introductions[0].onion_key == point.ntor_onion_key

    assert alike(observe) is True


def test_begin_names_a_port_and_nothing_else(alike: Alike) -> None:
    def observe(onion: Onion) -> list[tuple[int, bytes]]:
        begun = [one for one in onion.seen.messages(RelayCommand.BEGIN) if one.circuit is rendezvous(onion)]
        return [(one.hop, one.cell.body) for one in begun]

    assert alike(observe) == [(4, b":80\0")] * 2


def test_relays_have_nothing_to_complain_about(alike: Alike) -> None:
    assert (
        alike(lambda onion: [text for relay in onion.seen.relays.values() for text in relay.complaints]) == []
    )
