"""A network of 10,000 relays, both flavors and every microdescriptor: what is made is what is read."""

import hashlib
from random import Random

import network_docs as nd
import pytest

from torkit.directory.authorities import parse_certificates
from torkit.directory.consensus import parse_consensus
from torkit.directory.diff import apply_diff
from torkit.directory.directory import Directory
from torkit.directory.microdesc import Microdescs, exit_policies, parse_microdesc
from torkit.directory.trust import verify
from torkit.paths.choose import choose_path
from torkit.paths.constraints import Constraints
from torkit.testing.directory import consensus_diff, encode_microdescs
from torkit.testing.directory.authority import HOUR

AUTHORITIES = nd.authorities(9)
RELAYS = sorted(nd.full_size(), key=lambda one: one.identity)


@pytest.fixture(scope="module", params=["microdesc", "ns"])
def flavor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_each_flavor_verifies_and_says_what_went_in(flavor: str) -> None:
    text = nd.consensus(RELAYS, AUTHORITIES, flavor=flavor)
    consensus = parse_consensus(text)
    certificates = parse_certificates(b"".join(one.certificate() for one in AUTHORITIES))
    trusted = {one.v3ident: one.nickname for one in AUTHORITIES}
    assert verify(consensus, certificates, trusted, nd.NOW) == tuple(trusted.values())
    assert consensus.relays.identities == [one.identity for one in RELAYS]
    assert list(consensus.relays.bandwidths) == [one.bandwidth for one in RELAYS]
    assert consensus.relays.flags == [frozenset(one.flags.split()) for one in RELAYS]
    for doc, status in zip(RELAYS, consensus.relays, strict=True):
        assert (status.nickname, status.identity, status.version) == (doc.nickname, doc.identity, doc.version)
        assert (status.address, status.or_port) == (doc.address, doc.or_port)
        assert (status.ipv6 is None) == (doc.ipv6 is None)
        assert str(status.policy) == ((doc.policy or "reject 1-65535") if flavor == "ns" else "None")
        named = hashlib.sha1(doc.identity) if flavor == "ns" else hashlib.sha256(doc.microdesc())
        assert status.digest == named.digest()


def test_every_microdescriptor_is_found_and_read() -> None:
    consensus = parse_consensus(nd.consensus(RELAYS, AUTHORITIES))
    microdescs = Microdescs()
    wanted = {digest for digest in consensus.relays.digests if digest}
    assert microdescs.add(encode_microdescs(RELAYS), wanted, nd.NOW) == wanted
    assert Microdescs.decode(microdescs.encode()) == microdescs
    for doc, digest in zip(RELAYS, consensus.relays.digests, strict=True):
        assert digest is not None
        microdesc = parse_microdesc(microdescs[digest])
        assert microdesc.ntor_onion_key == doc.ntor_onion_key
        assert str(microdesc.policy) == (doc.policy or "reject 1-65535")
        assert exit_policies(microdescs[digest]) == (microdesc.policy, microdesc.policy6)
    directory = Directory(consensus, microdescs)
    assert directory.is_usable()
    rng = Random(1)
    for _ in range(100):
        assert len({one.identity for one in choose_path(directory, Constraints(port=443), rng)}) == 3


def test_the_next_hour_comes_as_a_diff(flavor: str) -> None:
    base = nd.consensus(RELAYS, AUTHORITIES, flavor=flavor)
    target = nd.consensus(
        nd.an_hour_later(RELAYS), AUTHORITIES, flavor=flavor, valid_after=nd.NOW + HOUR // 2
    )
    diff = consensus_diff(base, target)
    assert len(diff) < len(target) // 4
    assert apply_diff(base, diff) == target
