"""Full exit policies: the first rule that matches, and patterns that are none."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torkit.directory.exit_policy import ExitPolicy, PolicyRule, decode_rule


def policy(*lines: str) -> ExitPolicy:
    return ExitPolicy(decode_rule(*line.split(" ")) for line in lines)


USUAL = policy(
    "reject 0.0.0.0/8:*",
    "reject 10.0.0.0/255.0.0.0:*",
    "accept 192.0.2.64/26:80-90",
    "reject 192.0.2.0/24:*",
    "reject [2001:db8::]/32:*",
    "accept *:443",
    "accept 198.51.100.7:1-65535",
    "accept *:0",
    "reject *:*",
)


@pytest.mark.parametrize(
    ("address", "port", "accepted"),
    [
        ("203.0.113.1", 443, True),
        ("203.0.113.1", 444, False),
        ("0.1.2.3", 443, False),
        ("9.255.255.255", 443, True),
        ("10.0.0.0", 443, False),
        ("10.255.255.255", 443, False),
        ("11.0.0.0", 443, True),
        ("192.0.2.63", 80, False),
        ("192.0.2.64", 79, False),
        ("192.0.2.64", 80, True),
        ("192.0.2.127", 90, True),
        ("192.0.2.127", 91, False),
        ("192.0.2.128", 80, False),
        ("192.0.2.100", 443, False),
        ("192.0.3.0", 443, True),
        ("198.51.100.7", 1, True),
        ("198.51.100.7", 65535, True),
        ("198.51.100.8", 65535, False),
        ("198.51.100.7", 0, False),
        ("198.51.100.7", 65536, False),
        ("198.51.100.7", -1, False),
        ("2001:db8::1", 443, False),
        ("2001:db9::1", 443, True),
        ("2001:db9::1", 22, False),
    ],
)
def test_the_first_rule_that_matches_decides(address: str, port: int, accepted: bool) -> None:
    assert USUAL.accepts(address, port) is accepted


def test_where_no_rule_matches_the_address_is_accepted() -> None:
    assert policy("reject *:25").accepts("203.0.113.1", 26)
    assert not policy("reject *:25").accepts("203.0.113.1", 25)


def test_a_rule_of_one_family_says_nothing_of_the_other() -> None:
    everything = policy("accept 0.0.0.0/0:*", "reject *:*")
    assert everything.accepts("203.0.113.1", 80)
    assert not everything.accepts("2001:db8::1", 80)


def test_what_is_no_address_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="address"):
        USUAL.accepts("example.com", 443)


@pytest.mark.parametrize(
    ("lines", "rejects"),
    [
        (("reject *:*",), True),
        (("reject 10.0.0.0/8:*", "reject *:1-65535"), True),
        (("accept *:0", "reject *:*"), True),
        (("reject *:0-65535",), True),
        (("accept 192.0.2.1:80", "reject *:*"), False),
        (("reject *:2-65535",), False),
        (("reject *:1-65534",), False),
        (("reject 0.0.0.0/0:*",), False),  # no word of IPv6
        (("reject *:*", "accept *:*"), True),
        ((), False),
    ],
)
def test_a_policy_that_rejects_all_is_known(lines: tuple[str, ...], rejects: bool) -> None:
    assert policy(*lines).rejects_all is rejects


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        ":",
        "*",
        "*:",
        ":80",
        "**:80",
        "*/8:80",
        "*:80:80",
        "*: 80",
        "*:*-80",
        "*:80-",
        "*:-80",
        "*:80-79",
        "*:65536",
        "*:1-65536",
        "*:\u00b2",
        "*:" + "9" * 10_000,
        "1.2.3:80",
        "1.2.3.4.5:80",
        "1.2.3.256:80",
        "01.2.3.4:80",
        "1.2.3.4/:80",
        "1.2.3.4/33:80",
        "1.2.3.4/-1:80",
        "1.2.3.4/255.0.255.0:80",
        "1.2.3.4/0.0.0.255:80",
        "1.2.3.4/255.0.0:80",
        "2001:db8::1:80",
        "[2001:db8::1:80",
        "[2001:db8::g]:80",
        "[::1%lo]:80",
        "[::1]/129:80",
        "[::1]/255.0.0.0:80",
        "[1.2.3.4]:80",
        "private:*",
        "example.com:80",
        "1.2.3.4\u0661:80",
    ],
)
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"expected|is not"):
        decode_rule("accept", pattern)


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(1, 65535), st.integers(1, 65535))
def test_a_rule_is_spelled_as_it_is_read(address: int, bits: int, low: int, high: int) -> None:
    low, high = sorted((low, high))
    mask = IPv4Address((2**32 - 1) << (32 - bits) & (2**32 - 1))
    rule = decode_rule("reject", f"{IPv4Address(address)}/{mask}:{low}-{high}")
    assert decode_rule(*str(rule).split(" ")) == rule
    assert rule == PolicyRule(False, rule.network, low, high)
    assert rule.network is not None
    assert rule.network.prefixlen == bits


@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_a_value_error(pattern: str) -> None:
    try:
        decode_rule("accept", pattern)
    except ValueError:
        return
    assert ":" in pattern
