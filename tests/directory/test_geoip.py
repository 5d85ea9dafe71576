"""Countries of addresses: every edge of a range, and files that are none."""

import contextlib
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit.directory.geoip import MAX_GEOIP_LEN, UNKNOWN, country_of, has_country
from torkit.errors import DocumentError

GEOIP = b"# from somewhere\n# in 2026\n\n16,31,AU\n32,32,us\n# between\n40,49,??\n50,4294967295,DE\n"
GEOIP6 = b"# six\n2001:db8::,2001:db8:0:ffff:ffff:ffff:ffff:ffff,NL\n2001:db8:2::,2001:db8:2::ff,SE\n"
INSTALLED = Path("/usr/share/tor/geoip")


@pytest.mark.parametrize(
    ("address", "country"),
    [
        (0, "??"),
        (15, "??"),
        (16, "au"),
        (31, "au"),
        (32, "us"),
        (33, "??"),
        (39, "??"),
        (40, "??"),
        (50, "de"),
        (2**32 - 1, "de"),
    ],
)
def test_address_is_in_the_range_that_holds_it(address: int, country: str) -> None:
    assert country_of(GEOIP, IPv4Address(address)) == country
    assert country_of(GEOIP[:-1], IPv4Address(address)) == country
    assert country_of(GEOIP.replace(b"\n", b"\r\n"), IPv4Address(address)) == country
    assert country_of(GEOIP + b"# the end", IPv4Address(address)) == country


@pytest.mark.parametrize(
    ("address", "country"),
    [
        ("::", "??"),
        ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "??"),
        ("2001:db8::", "nl"),
        ("2001:db8:0:ffff:ffff:ffff:ffff:ffff", "nl"),
        ("2001:db8:1::", "??"),
        ("2001:db8:2::ff", "se"),
        ("2001:db8:2::100", "??"),
    ],
)
def test_ipv6_address_is_in_the_range_that_holds_it(address: str, country: str) -> None:
    assert country_of(GEOIP6, IPv6Address(address)) == country


def test_every_address_of_a_small_world_agrees_with_a_plain_search() -> None:
    rng = Random(7)
    edges = sorted(rng.sample(range(600), 60))
    ranges = [
        (first, last, rng.choice(["aa", "bb", "cc"]))
        for first, last in zip(edges[::2], edges[1::2], strict=True)
    ]
    lines = [f"{first},{last},{code}\n" for first, last, code in ranges]
    text = "".join("# comment\n" * rng.randrange(3) + line for line in lines).encode()
    for address in range(600):
        expected = next((code for first, last, code in ranges if first <= address <= last), UNKNOWN)
        assert country_of(text, IPv4Address(address)) == expected


@pytest.mark.parametrize("text", [b"", b"\n", b"#", b"# nothing here\n# at all\n" * 1000])
def test_file_without_ranges_knows_nothing(text: bytes) -> None:
    assert country_of(text, IPv4Address("192.0.2.1")) == UNKNOWN


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"16,31", "FIRST,LAST,CC expected"),
        (b"16,31,AUS", "FIRST,LAST,CC expected"),
        (b"16,31,\0\0", "FIRST,LAST,CC expected"),
        (b"16, 31,AU", "FIRST,LAST,CC expected"),
        (b"\xff", "FIRST,LAST,CC expected"),
        (b"1" * 1_000_000, "FIRST,LAST,CC expected"),
        (b"16,1f,AU", "not a range"),
        (b"16,4294967296,AU", "must ascend"),
        (b"31,16,AU", "must ascend"),
        (b"2001::,2002::,AU", "not a range"),
    ],
)
def test_malformed_line_is_refused_with_its_number(line: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason) as caught:
        country_of(b"# one\n\n" + line + b"\n", IPv4Address(20))
    assert caught.value.line == 3


def test_ranges_out_of_order_or_overlapping_are_refused() -> None:
    descending = b"".join(b"%d,%d,AA\n" % (first, first + 5) for first in range(1000, 0, -10))
    overlapping = b"".join(b"%d,%d,AA\n" % (first, first + 500) for first in range(0, 1000, 10))
    for text in (descending, overlapping):
        for address in range(10, 1000, 10):
            with pytest.raises(DocumentError, match="must ascend"):
                country_of(text, IPv4Address(address))


@pytest.mark.parametrize("country", ["au", "US", "de", "??"])
def test_country_that_is_in_the_file_is_found(country: str) -> None:
    assert has_country(GEOIP, country)
    assert has_country(GEOIP[:-1].replace(b"\n", b"\r\n"), country)


@pytest.mark.parametrize("country", ["zz", "31", "d", ".e", "in", ""])
def test_country_that_is_not_in_the_file_is_not_found(country: str) -> None:
    assert not has_country(GEOIP, country)


def test_file_for_the_other_version_is_refused() -> None:
    with pytest.raises(DocumentError, match="line 2: "):
        country_of(GEOIP6[:60], IPv4Address(16))
    with pytest.raises(DocumentError, match="not a range"):
        country_of(GEOIP, IPv6Address("2001:db8::1"))


def test_size_is_bounded() -> None:
    with pytest.raises(DocumentError, match="at most"):
        country_of(b"#" * (MAX_GEOIP_LEN + 1), IPv4Address(1))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(GEOIP)), st.integers(0, 2**32 - 1))
def test_random_damage_raises_only_declared_errors(junk: bytes, at: int, address: int) -> None:
    for text in (junk, GEOIP[:at] + junk + GEOIP[at:]):
        with contextlib.suppress(DocumentError):
            assert len(country_of(text, IPv4Address(address))) == 2


@pytest.mark.skipif(not INSTALLED.exists(), reason="not installed: tor-geoipdb")
def test_installed_file_is_read() -> None:
    text = INSTALLED.read_bytes()
    assert country_of(text, IPv4Address("127.0.0.1")) == UNKNOWN
    rows = [line for line in text.splitlines() if not line.startswith(b"#")]
    for row in Random(1).sample(rows, 300):
        first, last, code = row.decode().split(",")
        assert country_of(text, IPv4Address(int(first))) == country_of(text, IPv4Address(int(last)))
        assert country_of(text, IPv4Address(int(first))) == code.lower()
