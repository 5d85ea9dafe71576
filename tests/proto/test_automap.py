"""Addresses that stand for names."""

from ipaddress import ip_address

import pytest

from torkit.proto.automap import IPV4, Automap, is_made_up


def test_a_name_has_two_addresses_that_tell_it_again() -> None:
    automap = Automap()
    for name in ("one.test", "two.test"):
        for address in automap.addresses_of(name):
            assert automap.name_of(address) == name
    assert [str(address) for address in automap.addresses_of("one.test")] == [
        "198.18.0.1",
        "fd74:6f72:6b00::1",
    ]


def test_case_and_a_final_dot_make_no_other_name() -> None:
    automap = Automap()
    assert automap.addresses_of("Web.Test.") == automap.addresses_of("web.test")


@pytest.mark.parametrize(
    "text", ["198.18.0.2", "198.19.255.255", "198.17.255.255", "192.0.2.1", "2001:db8::1"]
)
def test_other_addresses_tell_no_name(text: str) -> None:
    automap = Automap()
    automap.addresses_of("web.test")
    assert automap.name_of(ip_address(text)) is None


def test_what_is_made_up_is_known_by_its_network() -> None:
    assert is_made_up(ip_address("198.19.255.255"))
    assert is_made_up(ip_address("fd74:6f72:6b00::1"))
    assert not is_made_up(ip_address("198.20.0.0"))
    assert not is_made_up(ip_address("fd74:6f72:6b01::1"))


def test_the_name_used_longest_ago_is_forgotten_and_its_address_is_not_given_again() -> None:
    automap = Automap(max_names=2)
    one, _ = automap.addresses_of("one.test")
    two, _ = automap.addresses_of("two.test")
    assert automap.name_of(one) == "one.test"  # used
    three, _ = automap.addresses_of("three.test")
    assert automap.name_of(two) is None
    assert automap.name_of(one) == "one.test"
    again, _ = automap.addresses_of("two.test")
    assert len({one, two, three, again}) == 4


def test_addresses_begin_again_when_all_were_given_but_leave_out_those_in_use() -> None:
    automap = Automap(max_names=2)
    kept = automap.addresses_of("kept.test")
    last = IPV4.num_addresses - 2
    for number in range(last + 5):
        address, _ = automap.addresses_of(f"n{number}.test")
        assert automap.addresses_of("kept.test") == kept
        assert address not in (IPV4.network_address, IPV4.broadcast_address, kept[0])
