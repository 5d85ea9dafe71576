"""`torkit relay`: everything known of one relay, and which one a name means."""

import json

import pytest
from cli.shelf import Shelf, some_relays

from torkit.testing.directory.consensus import PROTOCOLS
from torkit.testing.encoding import bare64


def test_everything_known_is_one_json_line(shelf: Shelf) -> None:
    source = shelf.fill_cache(some_relays()[:3])
    status, out, err = shelf("relay", "alpha", *source, *shelf.geoip, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {
        "nickname": "Alpha",
        "fingerprint": "01" * 20,
        "address": "10.0.0.1",
        "or_port": 9001,
        "ipv6": None,
        "flags": ["Exit", "Fast", "HSDir", "Running", "Stable", "V2Dir", "Valid"],
        "bandwidth": 100,
        "version": "Tor 0.4.9.11",
        "protocols": PROTOCOLS,
        "country": "aa",
        "ipv6_country": None,
        "probability": {"guard": 0.0, "middle": 0.0, "exit": pytest.approx(100 / 1100)},
        "digest": json.loads(out)["digest"],
        "ed25519": bare64(b"\2" * 32),
        "ntor_onion_key": bare64(b"\1" * 32),
        "exit_policy": "accept 80,443",
        "exit_policy6": "reject 1-65535",
        "family_ids": [],
        "family": [
            {"fingerprint": "02" * 20, "nickname": "beta", "is_mutual": True},
            {"fingerprint": "03" * 20, "nickname": "gamma", "is_mutual": True},
            {"fingerprint": "04" * 20, "nickname": "delta", "is_mutual": None},
            {"fingerprint": "AB" * 20, "nickname": None, "is_mutual": None},
        ],
        "consensus": {"flavor": "microdesc", "valid_after": "2027-01-15T07:30:00Z"},
    }


def test_one_sided_family_is_told_from_an_unknown_one(shelf: Shelf) -> None:
    source = shelf.fill_cache(some_relays())
    family = json.loads(shelf("relay", "Alpha", *source, "--json")[1])["family"]
    assert {one["nickname"]: one["is_mutual"] for one in family} == {
        "beta": True,
        "gamma": True,
        "delta": False,
        None: None,
    }
    text = shelf("relay", "Alpha", *source)[1]
    assert f"family          ${'02' * 20}~beta\n" in text
    assert f"family          ${'04' * 20}~delta  does not name it back\n" in text


def test_text_has_a_line_for_each_field(shelf: Shelf) -> None:
    status, out, err = shelf("relay", "$" + "02" * 20, *shelf.fill_cache(some_relays()), *shelf.geoip6)
    assert (status, err) == (0, "")
    fields = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert fields["nickname"] == "beta"
    assert fields["ipv6"] == "[2001:db8::2]:9001"
    assert fields["ipv6_country"] == "cc"
    assert fields["probability"] == "guard 93.3333 %  middle 15.3846 %  exit 0.0000 %"
    assert fields["family_ids"] == "-"


@pytest.mark.parametrize(("flavor", "policy"), [("microdesc", None), ("ns", "accept 80,443")])
def test_without_a_microdescriptor_the_rest_is_printed_and_that_is_said(
    shelf: Shelf, flavor: str, policy: str | None
) -> None:
    status, out, err = shelf("relay", "Alpha", *shelf.source(flavor), "--json")
    assert status == 0
    assert "its microdescriptor is not at hand" in err
    fields = json.loads(out)
    assert (fields["nickname"], fields["exit_policy"]) == ("Alpha", policy)
    assert fields["ed25519"] is fields["family"] is fields["exit_policy6"] is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nobody", "no relay 'nobody' in the consensus"),
        ("alph", "no relay 'alph' in the consensus"),
        ("AB" * 20, "no relay 'ABAB"),
        ("", "no relay '' in the consensus"),
        ("*", "no relay '*' in the consensus"),
        (
            "twin",
            f"2 relays are called 'twin'\ntorkit: hint: name it by its fingerprint: {'05' * 20}, {'EE' * 20}",
        ),
    ],
)
def test_name_must_mean_one_relay(shelf: Shelf, name: str, reason: str) -> None:
    status, out, err = shelf("relay", name, *shelf.source())
    assert (status, out) == (2, "")
    assert reason in err
