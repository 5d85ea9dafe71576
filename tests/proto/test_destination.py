"""What an exit may be asked for, and what is refused before it is asked."""

from ipaddress import ip_address

import pytest

from torkit.errors import UsageError
from torkit.proto.destination import check_destination, check_host, is_internal, is_onion


@pytest.mark.parametrize(
    ("host", "checked"),
    [
        ("web.test", "web.test"),
        ("web.test.", "web.test."),
        ("my_host-1", "my_host-1"),
        ("xn--bcher-kva.test", "xn--bcher-kva.test"),
        ("onion.test", "onion.test"),
        ("127.0.0.1", "127.0.0.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("[::1]", "::1"),
    ],
)
def test_host_is_accepted(host: str, checked: str) -> None:
    assert check_host(host) == checked


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "web..test",
        ".web.test",
        "-web.test",
        "web test",
        "web.test\n",
        "web.test:80",
        "a\x7f",
        "a" * 256,
        "fe80::1%eth0",
        "[web.test]",
        "web.test/@evil.test",
        "bücher.test",
        "x.onion",
        "X.ONION.",
        "onion",
        "web.test.exit",
    ],
)
def test_host_is_refused(host: str) -> None:
    with pytest.raises(UsageError):
        check_host(host)


@pytest.mark.parametrize("host", ["x.onion", "X.ONION.", "a.b.Onion", "onion"])
def test_a_name_in_onion_is_for_those_who_ask_no_exit(host: str) -> None:
    assert is_onion(host)
    assert check_destination(host, allow_internal=False, allow_onion=True) == host
    for allow_internal in (False, True):
        with pytest.raises(UsageError):
            check_destination(host, allow_internal=allow_internal)


def test_other_names_are_no_onions() -> None:
    assert not any(map(is_onion, ("onion.test", "xonion", "x.onion.test", "127.0.0.1", "::1", "")))


# The first and the last address of each range that C tor calls internal, and their neighbours outside.
INTERNAL = [
    *("0.0.0.1", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255"),
    *("127.0.0.1", "127.255.255.255", "169.254.0.0", "169.254.255.255", "172.16.0.0", "172.31.255.255"),
    *("192.168.0.0", "192.168.255.255", "::1", "fc00::", "fdff:ffff::1", "fe80::1", "febf:ffff::"),
    *("fec0::", "feff:ffff::", "::ffff:10.1.2.3", "::ffff:7f00:1"),
]
OUTSIDE = [
    *(
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
    ),
    *("169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0"),
    *("192.0.2.1", "224.0.0.1", "::2", "fbff:ffff::", "fe00::", "ff00::", "2001:db8::1", "::ffff:192.0.2.1"),
]


@pytest.mark.parametrize("address", INTERNAL)
def test_an_internal_address_is_refused_but_on_a_private_network(address: str) -> None:
    assert is_internal(ip_address(address))
    with pytest.raises(UsageError) as caught:
        check_destination(address, allow_internal=False)
    assert caught.value.hint is not None
    assert address not in str(caught.value)
    assert check_destination(address, allow_internal=True) == str(ip_address(address))


@pytest.mark.parametrize("address", OUTSIDE)
def test_an_address_of_the_internet_may_be_asked_for(address: str) -> None:
    assert check_destination(address, allow_internal=False) == str(ip_address(address))


@pytest.mark.parametrize(
    "name", ["localhost", "LocalHost.", "a.localhost", "local", "printer.local", "x.LOCAL."]
)
def test_a_local_name_is_refused_but_on_a_private_network(name: str) -> None:
    with pytest.raises(UsageError):
        check_destination(name, allow_internal=False)
    assert check_destination(name, allow_internal=True) == name


@pytest.mark.parametrize("name", ["localhost.test", "local.test", "mylocal", "notlocalhost"])
def test_a_name_that_only_looks_local_is_not(name: str) -> None:
    assert check_destination(name, allow_internal=False) == name


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "[::]"])
def test_the_unspecified_address_is_refused_on_every_network(address: str) -> None:
    for allow_internal in (False, True):
        with pytest.raises(UsageError):
            check_destination(address, allow_internal=allow_internal)
