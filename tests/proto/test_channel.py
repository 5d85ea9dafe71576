"""The link handshake: given the relay's cells in some order, then these answers or this error."""

from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proto.test_certs import GOOD, NOW, TLS_DIGEST, Chain, relay_identity

from torkit._fast.cells import Command
from torkit.errors import ChannelError, UsageError
from torkit.proto.channel import LinkHandshake

RELAY_ADDRESS = IPv4Address("192.0.2.1")
OUR_ADDRESS = IPv4Address("198.51.100.7")

OUR_VERSIONS = (Command.VERSIONS, b"\0\3\0\4\0\5")
OUR_NETINFO = (Command.NETINFO, bytes(4) + b"\4\4" + RELAY_ADDRESS.packed + b"\0")


def certs_body(chain: Chain = GOOD) -> bytes:
    body = bytes([len(chain.certs)])
    for cert_type, cert in chain.certs.items():
        body += bytes([cert_type]) + len(cert).to_bytes(2, "big") + cert
    return body


def netinfo_body(*, timestamp: int = int(NOW)) -> bytes:
    body = timestamp.to_bytes(4, "big") + b"\4\4" + OUR_ADDRESS.packed + b"\1\4\4" + RELAY_ADDRESS.packed
    return body.ljust(509, b"\0")


VERSIONS = (Command.VERSIONS, b"\0\3\0\4\0\5")
CERTS = (Command.CERTS, certs_body())
AUTH_CHALLENGE = (Command.AUTH_CHALLENGE, bytes(32) + b"\0\1\0\3")
NETINFO = (Command.NETINFO, netinfo_body())

NAMES = {"VERSIONS": VERSIONS, "CERTS": CERTS, "AUTH_CHALLENGE": AUTH_CHALLENGE, "NETINFO": NETINFO}


def make_handshake(**changes: Any) -> LinkHandshake:
    expected = relay_identity()
    arguments: dict[str, Any] = {
        "expected_rsa": expected.rsa,
        "expected_ed25519": expected.ed25519,
        "peer_address": RELAY_ADDRESS,
        "tls_certificate_digest": TLS_DIGEST,
        "now": NOW,
    }
    return LinkHandshake(**(arguments | changes))


def after(*cells: tuple[int, bytes], **changes: Any) -> LinkHandshake:
    handshake = make_handshake(**changes)
    handshake.start()
    for command, body in cells:
        handshake.receive(command, body)
    return handshake


# --- In good order ---------------------------------------------------------------------------------------


def test_handshake_sends_versions_and_only_after_good_certificates_netinfo() -> None:
    handshake = make_handshake()
    assert handshake.start() == [OUR_VERSIONS]
    assert handshake.receive(*VERSIONS) == []
    assert handshake.link_protocol == 5
    assert handshake.receive(*CERTS) == [OUR_NETINFO]
    assert handshake.receive(*AUTH_CHALLENGE) == []
    assert handshake.result is None
    assert handshake.receive(*NETINFO) == []
    assert handshake.result is not None
    assert handshake.result.link_protocol == 5
    assert handshake.result.peer == relay_identity()
    assert handshake.result.clock_skew == 0
    assert handshake.result.our_address == OUR_ADDRESS


def test_auth_challenge_may_be_left_out() -> None:
    assert after(VERSIONS, CERTS, NETINFO).result is not None


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("0004", 4),
        ("0005", 5),
        ("00040005", 5),
        ("00050004", 5),
        ("000100020003000400050006", 5),
        ("0003000400ff", 4),
    ],
)
def test_highest_link_protocol_in_common_is_chosen(offered: str, chosen: int) -> None:
    assert after((Command.VERSIONS, bytes.fromhex(offered))).link_protocol == chosen


@pytest.mark.parametrize(("timestamp", "skew"), [(int(NOW) + 90, 90), (int(NOW) - 90, -90), (0, None)])
def test_clock_skew_is_the_relays_clock_minus_ours(timestamp: int, skew: float | None) -> None:
    handshake = after(VERSIONS, CERTS, (Command.NETINFO, netinfo_body(timestamp=timestamp)))
    assert handshake.result is not None
    assert handshake.result.clock_skew == skew


def test_vpadding_and_authorize_may_come_before_versions() -> None:
    handshake = after((Command.VPADDING, b"x"), (Command.AUTHORIZE, b"x"), VERSIONS, CERTS, NETINFO)
    assert handshake.result is not None


def test_padding_and_unknown_commands_are_passed_over_after_versions() -> None:
    noise = [
        (Command.PADDING, bytes(509)),
        (Command.VPADDING, b""),
        (Command.AUTHORIZE, b"x"),
        (200, b"x"),
        (60, bytes(509)),
    ]
    cells = [VERSIONS, *noise, CERTS, *noise, AUTH_CHALLENGE, *noise, NETINFO]
    assert after(*cells).result is not None


def test_relay_known_by_rsa_alone_still_proves_its_ed25519_identity() -> None:
    handshake = after(VERSIONS, CERTS, NETINFO, expected_ed25519=None)
    assert handshake.result is not None
    assert handshake.result.peer == relay_identity()


# --- Out of order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("CERTS", "CERTS came before VERSIONS"),
        ("AUTH_CHALLENGE", "AUTH_CHALLENGE came before CERTS"),
        ("NETINFO", "NETINFO came before CERTS"),
        ("VERSIONS NETINFO", "NETINFO came before CERTS"),
        ("VERSIONS AUTH_CHALLENGE", "AUTH_CHALLENGE came before CERTS"),
        ("VERSIONS VERSIONS", "VERSIONS came twice"),
        ("VERSIONS CERTS VERSIONS", "VERSIONS came twice"),
        ("VERSIONS CERTS CERTS", "CERTS came twice"),
        ("VERSIONS CERTS AUTH_CHALLENGE CERTS", "CERTS came twice"),
        ("VERSIONS CERTS AUTH_CHALLENGE AUTH_CHALLENGE", "AUTH_CHALLENGE came twice"),
    ],
)
def test_cell_out_of_order_is_refused(cells: str, message: str) -> None:
    *before, last = [NAMES[name] for name in cells.split()]
    handshake = after(*before)
    with pytest.raises(ChannelError, match=message):
        handshake.receive(*last)


@pytest.mark.parametrize("command", [Command.PADDING, Command.RELAY, 60, 200])
def test_nothing_but_vpadding_and_authorize_comes_before_versions(command: int) -> None:
    with pytest.raises(ChannelError, match="came before VERSIONS"):
        after((command, bytes(509)))


@pytest.mark.parametrize(
    "command",
    [
        Command.RELAY,
        Command.RELAY_EARLY,
        Command.DESTROY,
        Command.CREATE2,
        Command.CREATED2,
        Command.CREATED_FAST,
        Command.PADDING_NEGOTIATE,
        Command.AUTHENTICATE,
    ],
)
@pytest.mark.parametrize("before", [[VERSIONS], [VERSIONS, CERTS]], ids=["before CERTS", "before NETINFO"])
def test_cell_of_no_handshake_is_refused(before: list[tuple[int, bytes]], command: Command) -> None:
    handshake = after(*before)
    with pytest.raises(ChannelError, match=f"{command.name} came during the link handshake"):
        handshake.receive(command, bytes(509))


def test_cells_after_the_handshake_are_not_for_it() -> None:
    handshake = after(VERSIONS, CERTS, NETINFO)
    with pytest.raises(UsageError):
        handshake.receive(Command.PADDING, bytes(509))


# --- Bad cells -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offered", ["", "0003", "000100020003", "00060007", "0000"])
def test_no_link_protocol_in_common_is_refused(offered: str) -> None:
    with pytest.raises(ChannelError, match="no link protocol in common"):
        after((Command.VERSIONS, bytes.fromhex(offered)))


def test_versions_of_odd_length_is_refused() -> None:
    with pytest.raises(ChannelError, match="odd length"):
        after((Command.VERSIONS, b"\0\4\0"))


@pytest.mark.parametrize("expected_ed25519", [relay_identity().ed25519, None], ids=["both", "RSA alone"])
def test_relay_with_another_rsa_identity_is_refused_before_we_send_more(
    expected_ed25519: bytes | None,
) -> None:
    handshake = after(
        VERSIONS, expected_rsa=relay_identity("stranger").rsa, expected_ed25519=expected_ed25519
    )
    with pytest.raises(ChannelError, match=r"RSA identity \w{40}, not \w{40} as expected"):
        handshake.receive(*CERTS)


def test_relay_with_another_ed25519_identity_is_refused_before_we_send_more() -> None:
    handshake = after(VERSIONS, expected_ed25519=relay_identity("stranger").ed25519)
    with pytest.raises(ChannelError, match=r"Ed25519 identity \w{64}, not \w{64} as expected"):
        handshake.receive(*CERTS)


def test_chain_for_another_tls_connection_is_refused() -> None:
    with pytest.raises(ChannelError, match="another TLS certificate"):
        after(VERSIONS, CERTS, tls_certificate_digest=bytes(32))


def test_expired_chain_is_refused() -> None:
    with pytest.raises(ChannelError, match="expired"):
        after(VERSIONS, CERTS, now=NOW + 86400)


def test_truncated_certs_is_refused() -> None:
    with pytest.raises(ChannelError, match="CERTS is truncated"):
        after(VERSIONS, (Command.CERTS, CERTS[1][:-1]))


def test_truncated_netinfo_is_refused() -> None:
    with pytest.raises(ChannelError, match="NETINFO is truncated"):
        after(VERSIONS, CERTS, (Command.NETINFO, bytes(5)))


ANY_CELL = st.one_of(
    st.sampled_from([*NAMES.values()]), st.tuples(st.integers(0, 255), st.binary(max_size=40))
)


@given(st.lists(ANY_CELL, max_size=8))
def test_any_cells_end_in_a_channel_error_or_with_the_relay_proven(cells: list[tuple[int, bytes]]) -> None:
    handshake = make_handshake()
    sent = handshake.start()
    with suppress(ChannelError):
        for command, body in cells:
            sent += handshake.receive(command, body)
            if handshake.result is not None:
                break
    if handshake.result is not None:
        assert handshake.result.peer == relay_identity()
        assert sent == [OUR_VERSIONS, OUR_NETINFO]
