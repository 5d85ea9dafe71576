"""The documents of the public network of 2022-11-19 10:00 UTC, where they are at hand."""

import hashlib
import random
from ipaddress import IPv4Address
from pathlib import Path

import frequencies
import pytest

from torkit.directory.authorities import AuthorityCertificate, parse_certificates
from torkit.directory.consensus import Consensus, parse_consensus
from torkit.directory.directory import Directory
from torkit.directory.geoip import country_of
from torkit.directory.microdesc import Microdescs, exit_policies, parse_microdesc
from torkit.directory.trust import Liveness, check_times, verify
from torkit.errors import DocumentError, NoDirectory
from torkit.paths.choose import choose_path
from torkit.paths.constraints import Constraints

DATA = Path(__file__).parents[3] / "shared" / "data" / "public-network-2022"
NOW = 1668853800  # 2022-11-19 10:30:00 UTC
HOUR = 3600

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the 2022 documents are not at hand")


@pytest.fixture(scope="module")
def certificates() -> tuple[AuthorityCertificate, ...]:
    # Kept with CRLF, which no authority signs.
    return parse_certificates((DATA / "authority-certs").read_bytes().replace(b"\r\n", b"\n"))


@pytest.fixture(scope="module")
def trusted(certificates: tuple[AuthorityCertificate, ...]) -> dict[bytes, str]:
    return {one.identity: one.identity.hex() for one in certificates}


@pytest.fixture(scope="module")
def consensus() -> Consensus:
    return parse_consensus((DATA / "microdesc-consensus").read_bytes())


@pytest.fixture(scope="module")
def microdescs() -> Microdescs:
    return Microdescs.decode((DATA / "microdescs-some").read_bytes())


@pytest.mark.parametrize("flavor", ["microdesc", "ns"])
def test_consensus_verifies_at_its_hour(
    flavor: str, certificates: tuple[AuthorityCertificate, ...], trusted: dict[bytes, str]
) -> None:
    consensus = parse_consensus((DATA / f"{flavor}-consensus").read_bytes())
    assert len(verify(consensus, certificates, trusted, NOW)) == 8
    assert len(consensus.relays) == 6088
    assert consensus.flavor == flavor
    assert [one.identity for one in consensus.relays] == consensus.relays.identities


def test_consensus_is_refused_at_other_hours(
    consensus: Consensus, certificates: tuple[AuthorityCertificate, ...], trusted: dict[bytes, str]
) -> None:
    for hours in range(-48, 0):
        with pytest.raises(NoDirectory, match="from the future"):
            verify(consensus, certificates, trusted, NOW + hours * HOUR)
    for hours in range(3, 48):
        with pytest.raises(NoDirectory, match="expired"):
            verify(consensus, certificates, trusted, NOW + hours * HOUR)
    check_times(consensus, NOW + 26 * HOUR, least=Liveness.REASONABLE)
    with pytest.raises(NoDirectory, match="expired"):
        check_times(consensus, NOW + 27 * HOUR, least=Liveness.REASONABLE)


def test_flipped_bits_are_refused(
    consensus: Consensus, certificates: tuple[AuthorityCertificate, ...], trusted: dict[bytes, str]
) -> None:
    rng = random.Random(3)
    for _ in range(20):
        broken = bytearray(consensus.text)
        broken[rng.randrange(consensus.signed_len)] ^= 1 << rng.randrange(8)
        with pytest.raises((DocumentError, NoDirectory)):
            verify(parse_consensus(bytes(broken)), certificates, trusted, NOW)


def test_microdescs_parse_and_encode_to_the_same_bytes(microdescs: Microdescs) -> None:
    assert len(microdescs) == 1788
    for digest, text in microdescs.items():
        assert hashlib.sha256(text).digest() == digest
        microdesc = parse_microdesc(text)
        assert microdesc.ed25519_identity is not None
        assert exit_policies(text) == (microdesc.policy, microdesc.policy6)
    assert microdescs.encode() == (DATA / "microdescs-some").read_bytes()


def test_weighted_paths_obey_the_rules(consensus: Consensus, microdescs: Microdescs) -> None:
    directory = Directory(consensus, microdescs)
    assert len(directory.missing) == 6088 - 1722
    assert not directory.is_usable()
    rng = random.Random(5)
    for port in (443, 22):
        for _ in range(1500):
            path = choose_path(directory, Constraints(port=port), rng)
            networks = [network for one in path for network in one.networks]
            assert len({one.identity for one in path}) == 3
            assert len(set(networks)) == len(networks)
            for one in path:
                assert {"Running", "Valid", "Fast"} <= one.flags
                assert port != 22 or "Stable" in one.flags
                mutual = [
                    o for o in path if f"${o.fingerprint}" in one.family and f"${one.fingerprint}" in o.family
                ]
                assert all(other is one for other in mutual)
            assert {"Guard", "V2Dir"} <= path[0].flags
            assert "BadExit" not in path[2].flags
            assert path[2].policy.accepts(port)


def test_paths_keep_to_the_countries_asked_for(consensus: Consensus, microdescs: Microdescs) -> None:
    """Countries are made up: one of each two neighbouring /8s is `aa`, but for what is in none."""

    def number(address: str) -> int:
        return int(IPv4Address(address)) >> 24

    geoip = b"".join(
        b"%d,%d,%s\n" % (n << 24, ((n + 1) << 24) - 1, b"AB"[n % 2 : n % 2 + 1] * 2) for n in range(160)
    )
    directory = Directory(consensus, microdescs, lambda address: country_of(geoip, IPv4Address(address)))
    rng = random.Random(13)
    for _ in range(300):
        restrictions = Constraints(port=443, entries=frozenset({"{bb}"}), exits=frozenset({"{aa}"}))
        path = choose_path(directory, restrictions, rng)
        assert (number(path[0].address) % 2, number(path[2].address) % 2) == (1, 0)
        assert max(number(path[0].address), number(path[2].address)) < 160
        for one in choose_path(directory, Constraints(port=443, exclude=frozenset({"{bb}"})), rng):
            assert number(one.address) % 2 == 0
            assert number(one.address) < 160


def test_frequencies_of_paths_follow_the_weights(consensus: Consensus, microdescs: Microdescs) -> None:
    directory = Directory(consensus, microdescs)
    rng = random.Random(11)
    paths = [choose_path(directory, Constraints(port=443), rng) for _ in range(200_000)]
    p_values = frequencies.p_values(directory, paths, lambda one: one.policy.accepts(443))
    assert min(p_values.values()) > 0.001, p_values
