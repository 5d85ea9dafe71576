"""Addresses, keys, periods and the ring, against what C tor 0.4.9.11 made (vectors/hs.json, from a private
network)."""

import base64
import hashlib
from typing import Any

import pytest
from hs.making import VECTORS, services

from torkit.errors import OnionServiceError, OnionStep, UsageError
from torkit.hs.address import encode_address, parse_address
from torkit.hs.calendar import Calendar, TimePeriod, disaster_random, length_when_testing
from torkit.hs.client_auth import (
    ClientKey,
    decode_client_key,
    encode_authorized_client,
    encode_client_key,
)
from torkit.hs.keys import blind, blinding_factor, is_identity_key, subcredential
from torkit.hs.ring import Ring, relay_index, service_index

ADDRESS = VECTORS["cases"][0]["services"][0]["address"]
IDENTITY = bytes.fromhex(VECTORS["cases"][0]["services"][0]["identity_public_key"])

# The eight points of small order have these x coordinates among theirs; y = -1 is the one of order 2.
ORDER_2 = (2**255 - 20).to_bytes(32, "little")
NEUTRAL = b"\x01" + bytes(31)


def calendar_of(network: dict[str, Any]) -> Calendar:
    values = (network["srv_current"], network["srv_previous"])
    current, previous = (bytes.fromhex(value) if value else None for value in values)
    interval = network["voting_interval_s"]
    return Calendar(network["valid_after"], interval, length_when_testing(interval), current, previous)


def test_addresses_and_keys_are_those_of_c_tor() -> None:
    for network, service in services():
        identity = parse_address(service["address"])
        period = TimePeriod(network["time_period"], network["period_length_min"])
        assert identity.hex() == service["identity_public_key"]
        assert encode_address(identity) == service["address"]
        assert blinding_factor(identity, period).hex() == service["blinding_factor_clamped"]
        blinded = blind(identity, period)
        assert blinded.hex() == service["blinded_public_key"]
        assert subcredential(identity, blinded).hex() == service["subcredential"]


def test_an_address_may_have_names_before_it_capitals_and_a_final_dot() -> None:
    for name in (f"www.{ADDRESS}", f"a.b.{ADDRESS}", ADDRESS.upper(), f"{ADDRESS}."):
        assert parse_address(name) == IDENTITY


@pytest.mark.parametrize(
    "name",
    [
        "example.com",
        "onion",
        ".onion",
        "expyuzz4wqqyqhjn.onion",  # version 2
        ADDRESS[1:],
        "a" + ADDRESS,
        ("b" if ADDRESS[0] == "a" else "a") + ADDRESS[1:],  # the checksum
        ADDRESS[:5] + "1" + ADDRESS[6:],  # base32 has no 1
        ADDRESS[:5] + "\u00e9" + ADDRESS[6:],
        f"{ADDRESS}.com",
        f"{ADDRESS[:-6]}-onion",
    ],
)
def test_what_is_no_address_is_refused_as_one(name: str) -> None:
    with pytest.raises(OnionServiceError) as caught:
        parse_address(name)
    assert caught.value.step is OnionStep.ADDRESS


def address_of(identity: bytes, version: int = 3) -> str:
    """An address made by hand, whatever its key and version."""
    checksum = hashlib.sha3_256(b".onion checksum" + identity + bytes([version])).digest()[:2]
    return base64.b32encode(identity + checksum + bytes([version])).decode().lower() + ".onion"


@pytest.mark.parametrize("identity", [bytes(32), NEUTRAL, ORDER_2, b"\xff" * 32, b"\x02" + bytes(31)])
def test_a_key_that_no_service_may_have_is_refused(identity: bytes) -> None:
    assert not is_identity_key(identity)
    with pytest.raises(OnionServiceError, match="key"):
        parse_address(address_of(identity))


def test_a_key_with_a_torsion_component_is_refused() -> None:
    # A point of order 8 added to the service's key: a second address for the same service, were it taken.
    from nacl.bindings import crypto_core_ed25519_add

    order_8 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
    mixed = crypto_core_ed25519_add(IDENTITY, order_8)
    assert mixed != IDENTITY
    with pytest.raises(OnionServiceError, match="key"):
        parse_address(address_of(mixed))


@pytest.mark.parametrize("at", [0, 31, 32, 33])
def test_an_address_whose_checksum_does_not_hold_is_refused(at: int) -> None:
    raw = bytearray(base64.b32decode(address_of(IDENTITY).removesuffix(".onion").upper()))
    raw[at] ^= 1
    with pytest.raises(OnionServiceError, match="checksum"):
        parse_address(base64.b32encode(raw).decode().lower() + ".onion")


def test_another_version_is_refused_though_its_checksum_holds() -> None:
    with pytest.raises(OnionServiceError, match="version 4"):
        parse_address(address_of(IDENTITY, version=4))


def test_periods_turn_at_noon_on_the_public_network() -> None:
    for vector in VECTORS["time_periods"]:
        calendar = Calendar(vector["unix_time"], 3600, vector["period_length_min"])
        assert calendar.period == TimePeriod(vector["time_period"], 1440)


def test_disaster_values_are_those_of_c_tor() -> None:
    for vector in VECTORS["disaster"]:
        period = TimePeriod(vector["time_period"], vector["period_length_min"])
        assert disaster_random(period).hex() == vector["disaster_srv"]


def test_the_shared_random_value_is_the_one_that_c_tor_used() -> None:
    used = set()
    for case in VECTORS["cases"]:
        network = case["network"]
        calendar = calendar_of(network)
        assert calendar.period.number == network["time_period"]
        assert calendar.shared_random.hex() == network["srv"]
        used.add(network["srv_used"])
    assert used == {"disaster", "current", "previous"}


def test_a_new_value_is_used_from_the_next_period_on() -> None:
    """The public network's day: a value at midnight, a period at noon, both in UTC."""
    midnight = 1460505600
    old, new = b"o" * 32, b"n" * 32
    for hour in range(12):
        assert Calendar(midnight + 3600 * hour, 3600, 1440, new, old).shared_random == old
    for hour in range(12, 24):
        assert Calendar(midnight + 3600 * hour, 3600, 1440, new, old).shared_random == new


def test_directories_are_those_that_c_tor_asks() -> None:
    for network, service in services():
        calendar = calendar_of(network)
        relays = [(bytes.fromhex(relay["ed25519_id"]), relay) for relay in network["hsdirs"]]
        for ed25519, relay in relays:
            assert relay_index(ed25519, calendar.shared_random, calendar.period).hex() == relay["hsdir_index"]
        blinded = bytes.fromhex(service["blinded_public_key"])
        for replica, index in service["hs_index"].items():
            assert service_index(blinded, int(replica), calendar.period).hex() == index
        ring = Ring(
            [(ed25519, relay["rsa_id"]) for ed25519, relay in relays],
            shared_random=calendar.shared_random,
            period=calendar.period,
        )
        fetch = ring.responsible(blinded, replicas=2, spread=3)
        store = ring.responsible(blinded, replicas=2, spread=4)
        assert fetch == service["responsible_for_fetch"]
        assert store == service["responsible_for_store_in_this_ring"]


def test_a_ring_of_few_gives_each_once_and_an_empty_one_nobody() -> None:
    period = TimePeriod(1, 1440)
    few = Ring([(bytes([n]) * 32, n) for n in range(4)], shared_random=bytes(32), period=period)
    assert sorted(few.responsible(b"b" * 32, replicas=2, spread=3)) == [0, 1, 2, 3]
    none = Ring[int]([], shared_random=bytes(32), period=period)
    assert none.responsible(b"b" * 32, replicas=2, spread=3) == []


def test_key_files_are_those_of_c_tor() -> None:
    for _, service in services("auth"):
        made = service["client_authorization"]
        key = decode_client_key(made["auth_private_file"])
        assert key.secret.hex() == made["x25519_secret_key"]
        assert key.identity.hex() == service["identity_public_key"]
        assert encode_client_key(key).rstrip("\n") == made["auth_private_file"]
        public = base64.b32decode(made["x25519_public_key_base32"] + "====")
        assert encode_authorized_client(public).rstrip("\n") == made["auth_file"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x:descriptor:x25519:AA",
        f"{ADDRESS[:-6]}:descriptor:ed25519:{'B' * 51}A",
        f"{ADDRESS[:-6]}:descriptor:x25519:{'B' * 48}",
        f"{ADDRESS[:-6]}:descriptor:x25519:{'A' * 52}",  # a key of zeros
        f"{ADDRESS[:-6]}:descriptor:x25519:{'B' * 51}",
        f"{ADDRESS[:-6]}:descriptor:x25519:{'1' * 52}",
        f"{ADDRESS[:-6]}:descriptor:x25519:{'B' * 52}:more",
        f"{ADDRESS[:-6]}:descriptor:x25519:{'B' * 300}",
    ],
)
def test_a_malformed_key_file_is_refused(text: str) -> None:
    with pytest.raises((UsageError, OnionServiceError)):
        decode_client_key(text)


def test_a_client_key_survives_its_file() -> None:
    key = ClientKey(IDENTITY, b"s" * 32)
    assert decode_client_key(encode_client_key(key)) == key
