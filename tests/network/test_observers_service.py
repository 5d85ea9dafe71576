"""What the relays of an onion service see of torkit's and of C tor's, as docs/observers.md has it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from network.recording_service import Hosted, c_tor_service, record_service, torkit_service
from network.test_observers import comparing, record_both
from network.torkit_process import skip_without
from setup_padder import NEGOTIATE

from torkit._fast.cells import Command, RelayCommand
from torkit.errors import EndReason
from torkit.proto.messages import LinkSpecifierType
from torkit.testing.relay import NTOR, NTOR_V3, FakeCircuit

pytestmark = [pytest.mark.network, skip_without("tor", "strace")]

REVISION = re.compile(rb"revision-counter \d+")
BASE64 = re.compile(rb"(?m)(?:^|(?<=^signature ))[A-Za-z0-9+/=]{20,}$")

Alike = Callable[[Callable[[Hosted], Any]], Any]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hosted, Hosted]:
    return record_both(record_service, tmp_path_factory, (torkit_service, c_tor_service))


@pytest.fixture
def alike(recordings: tuple[Hosted, Hosted]) -> Alike:
    return comparing(recordings)


def points(hosted: Hosted) -> list[FakeCircuit]:
    return [circuit for circuit, _ in hosted.net.points.values()]


def uploads(hosted: Hosted) -> list[FakeCircuit]:
    return [
        one.circuit
        for one in hosted.seen.messages(RelayCommand.DATA)
        if one.cell.body.startswith(b"POST /tor/hs/3/publish ")
    ]


def way(hosted: Hosted, circuit: FakeCircuit) -> tuple[str, ...]:
    """The kinds of the three relays before the target; who stands in the middle is drawn."""
    names = [hosted.seen.name_of(hop.relay) for hop in circuit.hops[:3]]
    return tuple("middle" if name[:4] in ("midd", "able") else name[:-1] for name in names)


def said(hosted: Hosted, circuit: FakeCircuit) -> list[tuple[int, int, int]]:
    """Hop, command and length of what the service said to relays on a circuit, once it was built."""
    return [
        (one.hop, one.cell.command, len(one.cell.body))
        for one in hosted.seen.hop_cells
        if one.circuit is circuit and one.hop <= 4 and one.cell.command != RelayCommand.EXTEND2
    ]


def hide(found: re.Match[bytes]) -> bytes:
    return b"." * len(found[0])


def test_points_meetings_and_directories_are_behind_guard_and_two_middle_relays(alike: Alike) -> None:
    def observe(hosted: Hosted) -> set[tuple[str, ...]]:
        circuits = [hosted.rendezvous, *points(hosted), *uploads(hosted)]
        return {way(hosted, circuit) for circuit in circuits}

    assert alike(observe) == {("guard", "middle", "middle")}


def test_a_point_is_named_by_both_addresses_and_both_identities(alike: Alike) -> None:
    """In this order. Of the relays here, those for the middle have an IPv6 address."""

    def observe(hosted: Hosted) -> set[tuple[int, ...]]:
        middle = {
            one.rsa_identity for name, one in hosted.seen.relays.items() if name[:4] in ("midd", "able")
        }
        named = [dict(point.link_specifiers) for point in hosted.descriptor.points]
        return {tuple(one) for one in named if one[LinkSpecifierType.LEGACY_ID] in middle}

    kinds = LinkSpecifierType
    assert alike(observe) == {(kinds.IPV4, kinds.LEGACY_ID, kinds.ED25519_ID, kinds.IPV6)}


def test_establish_intro_is_all_that_a_point_is_told(alike: Alike) -> None:
    def observe(hosted: Hosted) -> set[tuple[tuple[int, int, int], ...]]:
        return {tuple(said(hosted, circuit)) for circuit in points(hosted)}

    assert alike(observe) == {((4, RelayCommand.ESTABLISH_INTRO, 134),)}


def test_rendezvous1_is_all_that_a_rendezvous_point_is_told(alike: Alike) -> None:
    assert alike(lambda hosted: said(hosted, hosted.rendezvous)) == [(4, RelayCommand.RENDEZVOUS1, 168)]


def test_a_target_that_can_do_more_gets_ntor_v3_and_a_rendezvous_point_ntor(alike: Alike) -> None:
    """What the rendezvous point can do, the client has not said."""

    def observe(hosted: Hosted) -> bool:
        ends = [circuit.hops[3] for circuit in (*points(hosted), *uploads(hosted))]
        plain = hosted.seen.relays["middle"]
        return all(hop.handshake_type == (NTOR if hop.relay is plain else NTOR_V3) for hop in ends)

    assert alike(observe)
    assert alike(lambda hosted: hosted.rendezvous.hops[3].handshake_type) == NTOR


def test_no_relay_is_asked_for_padding(alike: Alike) -> None:
    def observe(hosted: Hosted) -> int:
        return len(hosted.seen.messages(NEGOTIATE)) + len(hosted.seen.messages(RelayCommand.DROP))

    assert alike(observe) == 0


def test_the_cells_of_a_meeting_are_early_ones_where_the_guard_can_see_that(alike: Alike) -> None:
    def observe(hosted: Hosted) -> list[int]:
        return [one.command for one in hosted.seen.cells_of(hosted.rendezvous)][:5]

    assert alike(observe) == [Command.CREATE2, *[Command.RELAY_EARLY] * 4]


def test_an_upload_has_the_same_head_and_outer_layer(alike: Alike) -> None:
    """To the length of each line; numbers and what is in base64 are hidden."""

    def observe(hosted: Hosted) -> tuple[set[bytes], set[bytes]]:
        heads = {
            re.sub(rb"\d+", b"0", one.cell.body.partition(b"\r\n\r\n")[0])
            for one in hosted.seen.messages(RelayCommand.DATA)
            if one.cell.body.startswith(b"POST /tor/hs/3/publish ")
        }
        texts = [text for _, text in hosted.net.uploads]
        return heads, {BASE64.sub(hide, REVISION.sub(b"revision", text)) for text in texts}

    heads, texts = alike(observe)
    assert heads == {b"POST /tor/hs/0/publish HTTP/0.0\r\nHost: 0.0.0.0:0\r\nContent-Length: 0"}
    (text,) = texts
    assert text.startswith(b"hs-descriptor 3\ndescriptor-lifetime 180\n")


def test_a_stream_is_answered_without_an_address_and_an_unknown_port_by_done(alike: Alike) -> None:
    assert alike(lambda hosted: hosted.answers[:2]) == [
        (RelayCommand.CONNECTED, b""),
        (RelayCommand.END, bytes([EndReason.DONE])),
    ]


def test_relays_have_nothing_to_complain_about(alike: Alike) -> None:
    def observe(hosted: Hosted) -> list[str]:
        return [text for relay in hosted.seen.relays.values() for text in relay.complaints]

    assert alike(observe) == []
