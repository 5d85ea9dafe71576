"""Server descriptors and extra-info: recorded, and made with one thing wrong that is signed all the same."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import network_docs as nd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit.directory.extra_info import check_extra_info, parse_extra_info, split_extra_infos
from torkit.directory.netdoc import decode_protocols, encode_time
from torkit.directory.server_descriptor import (
    MAX_FAMILY_CERTS,
    ed25519_from_curve25519,
    parse_server_descriptor,
    split_server_descriptors,
)
from torkit.errors import DocumentError
from torkit.testing.directory import Router
from torkit.testing.directory.authority import HOUR, rsa_der, rsa_key, sign
from torkit.testing.directory.consensus import PROTOCOLS
from torkit.testing.ed25519 import ExpandedKey
from torkit.testing.encoding import armor, bare64
from torkit.testing.relay import make_ed_certificate

VECTORS = json.loads((Path(__file__).parent / "vectors" / "descriptors.json").read_text())["relays"]
ROUTER, OTHER = nd.router(1), nd.router(2)
ITEMS = ROUTER.items()
DESCRIPTOR = ROUTER.descriptor()
EXTRA_INFO = ROUTER.extra_info()
MASTER = ROUTER.ed25519_identity
LATER = ROUTER.published + 720 * HOUR


def lines(text: bytes) -> int:
    return text.count(b"\n")


# --- Good ones -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS)
def test_what_tor_signs_holds(vector: dict[str, str]) -> None:
    descriptor = parse_server_descriptor(vector["server_descriptor"].encode())
    extra_info = parse_extra_info(vector["extra_info"].encode())
    check_extra_info(extra_info, descriptor)
    assert descriptor.platform == "Tor 0.4.9.11 on Linux"
    assert descriptor.identity == extra_info.identity
    assert [str(rule) for rule in descriptor.policy] == [
        "accept 192.0.2.0/24:80-443",
        "reject 192.0.2.0/24:*",
        "accept *:443",
        "reject *:*",
    ]
    assert descriptor.family_ids == {"ed25519:0YoEAaxdUoMmRn5fbT+x1SRVo+Hcw1rpPxNijnpd+yU"}


@pytest.mark.parametrize("vector", VECTORS)
def test_no_bit_of_what_tor_signs_may_change(vector: dict[str, str]) -> None:
    text = vector["server_descriptor"].encode()
    for at in range(0, len(text), 7):
        changed = text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
        with suppress(DocumentError):
            parse_server_descriptor(changed)
            # Base64 has bits that mean nothing, at the end of each key and signature.
            assert changed[at : at + 1].isalnum()


def test_a_descriptor_is_read() -> None:
    descriptor = parse_server_descriptor(DESCRIPTOR)
    assert descriptor.nickname == "relay1"
    assert descriptor.identity == ROUTER.identity
    assert descriptor.ed25519_identity == MASTER
    assert (descriptor.address, descriptor.or_port, descriptor.dir_port) == ("192.0.2.7", 9001, 9030)
    assert descriptor.ipv6 == ("2001:db8::7", 9001)
    assert descriptor.published == ROUTER.published
    assert descriptor.expires == LATER // 3600 * 3600
    assert descriptor.uptime == 12345
    assert not descriptor.is_hibernating
    assert not descriptor.is_overloaded
    assert (descriptor.bandwidth_average, descriptor.bandwidth_burst, descriptor.bandwidth_observed) == (
        1_000_000,
        2_000_000,
        500_000,
    )
    assert descriptor.ntor_onion_key == ROUTER.ntor.public_key().public_bytes_raw()
    assert descriptor.protocols == decode_protocols(PROTOCOLS)
    assert descriptor.policy.accepts("198.51.100.1", 443)
    assert not descriptor.policy.accepts("192.0.2.1", 443)
    assert str(descriptor.policy6) == "accept 80,443"
    assert descriptor.family == {f"${ROUTER.identity.hex().upper()}"}
    family = ROUTER.family.public_key().public_bytes_raw()
    assert descriptor.family_ids == {f"ed25519:{bare64(family)}"}
    assert descriptor.contact == "tests@example.invalid"
    assert descriptor.is_tunnelled_dir_server
    assert descriptor.text == DESCRIPTOR


def test_what_may_lack_may_lack() -> None:
    optional = {
        *("platform", "fingerprint", "uptime", "extra-info-digest", "onion-key", "onion-key-crosscert"),
        *("family", "family-cert", "contact", "or-address", "ipv6-policy", "tunnelled-dir-server"),
    }
    items = {name: item for name, item in ITEMS.items() if name not in optional}
    descriptor = parse_server_descriptor(ROUTER.sign(items))
    absent = (descriptor.platform, descriptor.contact, descriptor.uptime, descriptor.ipv6)
    assert absent == (None,) * 4
    assert (descriptor.extra_info_digest, descriptor.extra_info_digest256) == (None, None)
    assert descriptor.family == descriptor.family_ids == frozenset()
    assert descriptor.policy6.rejects_all
    assert not descriptor.is_tunnelled_dir_server


def test_unknown_items_and_blank_lines_at_the_end_are_passed_over() -> None:
    text = ROUTER.descriptor(uptime="uptime 1 2 3\nx-new thing\n" + armor("NEW", b"object"))
    assert parse_server_descriptor(text + b"\n\n").uptime == 1


@pytest.mark.parametrize("number", range(1, 9))
def test_either_sign_of_an_ntor_key_serves(number: int) -> None:
    router = nd.router(number)
    key, sign = router.ntor.public_key().public_bytes_raw(), sign_bit_of(router)
    items = router.items()
    parse_server_descriptor(router.sign(items))
    crosscert = items["ntor-onion-key-crosscert"]
    wrong = crosscert.replace(f"crosscert {sign}", f"crosscert {1 - sign}")
    with pytest.raises(DocumentError, match="ntor-onion-key-crosscert"):
        parse_server_descriptor(router.sign(items | {"ntor-onion-key-crosscert": wrong}))
    assert ed25519_from_curve25519(key, sign) != ed25519_from_curve25519(key, 1 - sign)


def test_concatenations_are_split() -> None:
    texts = [DESCRIPTOR, OTHER.descriptor() + b"\n", VECTORS[0]["server_descriptor"].encode()]
    assert list(split_server_descriptors(b"".join(texts))) == texts
    extras = [EXTRA_INFO, OTHER.extra_info()]
    assert list(split_extra_infos(b"".join(extras))) == extras
    starts = (b"", b"\n", b"x", b"@type server-descriptor 1.0\n", b"x\n" + DESCRIPTOR, EXTRA_INFO)
    for bad in (*starts, DESCRIPTOR[:-1], DESCRIPTOR + b"\0\n"):
        with pytest.raises(DocumentError):
            list(split_server_descriptors(bad))


@pytest.mark.parametrize(
    "annotations",
    [
        b"@type server-descriptor 1.0\n",
        b'@downloaded-at 2026-11-29 10:00:00\n@source "127.0.0.1"\n',
        b"@\n" * 9,
    ],
    ids=["archive", "cache", "many"],
)
def test_descriptors_as_archives_and_caches_keep_them_are_read(annotations: bytes) -> None:
    """What stands before a document is outside of what is signed, and of its digests."""
    texts = [DESCRIPTOR, OTHER.descriptor()]
    assert list(split_server_descriptors(b"".join(annotations + text for text in texts))) == texts
    read = parse_server_descriptor(annotations + DESCRIPTOR)
    assert (read.text, read.digest) == (DESCRIPTOR, parse_server_descriptor(DESCRIPTOR).digest)
    extras = [EXTRA_INFO, OTHER.extra_info()]
    assert list(split_extra_infos(b"".join(annotations + text for text in extras))) == extras
    assert parse_extra_info(annotations + EXTRA_INFO) == parse_extra_info(EXTRA_INFO)
    with pytest.raises(DocumentError):
        parse_server_descriptor(DESCRIPTOR + annotations)


# --- Bad ones, signed by those who may -----------------------------------------------------------------


def cert(kind: int, key: bytes = MASTER, *, signer: Router = ROUTER, name: bool = True) -> bytes:
    family = signer.family.public_key().public_bytes_raw() if name else None
    return make_ed_certificate(kind, 1, key, signer=signer.family, expires=LATER, names=family)


def identity_item(kind: int, *, name: bool = True, signer: Router = ROUTER, named: Router = ROUTER) -> str:
    key = ROUTER.signing.public_key().public_bytes_raw()
    master = named.ed25519_identity if name else None
    body = make_ed_certificate(kind, 1, key, signer=signer.master, expires=LATER, names=master)
    return "identity-ed25519\n" + armor("ED25519 CERT", body)


def ntor_item(kind: int, key: bytes, *, signer: Router = ROUTER) -> str:
    secret = ExpandedKey.from_x25519(signer.ntor)
    body = make_ed_certificate(kind, 1, key, signer=secret, expires=LATER)
    return f"ntor-onion-key-crosscert {sign_bit_of(ROUTER)}\n" + armor("ED25519 CERT", body)


def sign_bit_of(router: Router) -> int:
    """The sign of the ntor key's Ed25519 form."""
    return ExpandedKey.from_x25519(router.ntor).public[31] >> 7


def onion_item(signed: bytes, *, number: int = 2001) -> str:
    return "onion-key-crosscert\n" + armor("CROSSCERT", sign(rsa_key(number), signed))


def family_item(body: bytes) -> str:
    return "family-cert\n" + armor("FAMILY CERT", body)


def key_item(name: str, *, bits: int = 1024) -> str:
    return f"{name}\n" + armor("RSA PUBLIC KEY", rsa_der(rsa_key(3000 + bits, bits)))


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("router", "router relay1 192.0.2.7 9001 0\n"),
        ("router", "router relay-1 192.0.2.7 9001 0 0\n"),
        ("router", "router relay1 example.com 9001 0 0\n"),
        ("router", "router relay1 192.0.2.7 0 0 0\n"),
        ("router", "router relay1 192.0.2.7 65536 0 0\n"),
        ("router", "router relay1 192.0.2.7 9001 0 65536\n"),
        ("identity-ed25519", ""),
        ("identity-ed25519", "identity-ed25519\n"),
        ("identity-ed25519", "identity-ed25519\n" + armor("ED25519 CERT", b"x")),
        ("identity-ed25519", identity_item(4).replace("ED25519 CERT", "CROSSCERT")),
        ("identity-ed25519", identity_item(5)),
        ("identity-ed25519", identity_item(4, name=False)),
        ("identity-ed25519", identity_item(4, signer=OTHER)),
        ("identity-ed25519", identity_item(4, named=OTHER)),
        ("identity-ed25519", identity_item(4, signer=OTHER, named=OTHER)),
        ("identity-ed25519", "x-new\n" + identity_item(4)),
        ("master-key-ed25519", ""),
        ("master-key-ed25519", f"master-key-ed25519 {bare64(OTHER.ed25519_identity)}\n"),
        ("master-key-ed25519", "master-key-ed25519 AAAA\n"),
        ("proto", ""),
        ("proto", "proto Link=\u00b2\n"),
        ("published", "published 2026-13-01 00:00:00\n"),
        ("published", 2 * ITEMS["published"]),
        ("fingerprint", f"fingerprint {OTHER.identity.hex(' ', 2)}\n"),
        ("fingerprint", "fingerprint\n"),
        ("uptime", "uptime -1\n"),
        ("uptime", "uptime soon\n"),
        ("uptime", "hibernating yes\n"),
        ("bandwidth", "bandwidth 1 2\n"),
        ("bandwidth", f"bandwidth 1 2 {2**31}\n"),
        ("bandwidth", f"bandwidth 1 2 {'9' * 100_000}\n"),
        ("extra-info-digest", "extra-info-digest 00\n"),
        ("extra-info-digest", f"extra-info-digest {'0' * 40} AAAA\n"),
        ("onion-key", ""),
        ("onion-key", key_item("onion-key")),
        ("onion-key", key_item("onion-key", bits=2048)),
        ("onion-key-crosscert", ""),
        ("onion-key-crosscert", onion_item(ROUTER.identity)),
        ("onion-key-crosscert", onion_item(OTHER.identity + MASTER)),
        ("onion-key-crosscert", onion_item(ROUTER.identity + OTHER.ed25519_identity)),
        ("onion-key-crosscert", onion_item(ROUTER.identity + MASTER, number=1001)),
        ("onion-key-crosscert", "onion-key-crosscert\n" + armor("CROSSCERT", b"x")),
        ("signing-key", ""),
        ("signing-key", key_item("signing-key")),
        ("signing-key", key_item("signing-key", bits=2048)),
        ("ntor-onion-key", ""),
        ("ntor-onion-key", f"ntor-onion-key {bare64(bytes(32))}\n"),
        ("ntor-onion-key", f"ntor-onion-key {bare64((2**255 - 20).to_bytes(32, 'little'))}\n"),  # u = -1
        ("ntor-onion-key-crosscert", ""),
        ("ntor-onion-key-crosscert", ITEMS["ntor-onion-key-crosscert"].replace("crosscert ", "crosscert 2")),
        ("ntor-onion-key-crosscert", ntor_item(0x0A, OTHER.ed25519_identity)),
        ("ntor-onion-key-crosscert", ntor_item(0x0B, MASTER)),
        ("ntor-onion-key-crosscert", ntor_item(0x0A, MASTER, signer=OTHER)),
        ("family-cert", family_item(cert(0x0C, OTHER.ed25519_identity))),
        ("family-cert", family_item(cert(0x04))),
        ("family-cert", family_item(cert(0x0C, name=False))),
        ("family-cert", family_item(cert(0x0C)[:-1] + b"\0")),
        ("family-cert", family_item(b"")),
        ("family-cert", "family-cert\n"),
        ("family-cert", ITEMS["family-cert"] * (MAX_FAMILY_CERTS + 1)),
        ("policy", ""),
        ("policy", "accept\n"),
        ("policy", "accept *\n"),
        ("policy", "reject 192.0.2.0/33:*\n"),
        ("ipv6-policy", "ipv6-policy accept 0\n"),
        ("ipv6-policy", "ipv6-policy accept 443,80\n"),
        ("contact", "contact \x00\n"),
        ("contact", "contact " + "x" * 200_000 + "\n"),
        ("contact", "router relay1 192.0.2.7 9001 0 0\n"),
        ("contact", "router-signature\n"),
    ],
)
def test_what_a_relay_signs_must_be_right(name: str, item: str) -> None:
    assert name in ITEMS
    assert item != ITEMS[name]
    with pytest.raises(DocumentError):
        parse_server_descriptor(ROUTER.sign(ITEMS | {name: item}))


def test_other_text_may_follow_the_identities_that_an_onion_key_signs() -> None:
    item = onion_item(ROUTER.identity + MASTER + b"and more")
    parse_server_descriptor(ROUTER.sign(ITEMS | {"onion-key-crosscert": item}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\nrouter-signature\n", b"\nx-between\nrouter-signature\n"),
        (b"\nrouter-sig-ed25519 ", b"\nrouter-sig-ed25519\t"),
        (b"\nrouter-sig-ed25519 ", b"\nrouter-sig-ed25519 x"),
        (b"\nuptime 1", b"\nuptime 2"),
        (b"-----END SIGNATURE-----\n", b"-----END SIGNATURE-----\nuptime 1\n"),
    ],
)
def test_changes_after_signing_are_refused(old: bytes, new: bytes) -> None:
    assert old in DESCRIPTOR
    with pytest.raises(DocumentError):
        parse_server_descriptor(DESCRIPTOR.replace(old, new))


def test_each_of_both_signatures_is_needed() -> None:
    other = OTHER.sign(ITEMS)  # both by other keys than the items name
    ed25519_item = DESCRIPTOR[DESCRIPTOR.index(b"router-sig") : DESCRIPTOR.index(b"router-signature")]
    other_item = other[other.index(b"router-sig") : other.index(b"router-signature")]
    assert lines(ed25519_item) == lines(other_item) == 1
    with pytest.raises(DocumentError, match="router-sig-ed25519"):
        parse_server_descriptor(other)
    with pytest.raises(DocumentError, match="router-signature"):
        parse_server_descriptor(other.replace(other_item, ed25519_item))


def test_nothing_may_stand_between_the_signatures() -> None:
    end = DESCRIPTOR.index(b"router-signature\n")
    signed = DESCRIPTOR[:end] + b"x-between\nrouter-signature\n"
    signature = sign(ROUTER.identity_key, hashlib.sha1(signed).digest())
    with pytest.raises(DocumentError, match="right before router-signature"):
        parse_server_descriptor(signed + armor("SIGNATURE", signature).encode())


def test_keys_of_a_relay_have_1024_bits() -> None:
    for name in ("identity_key", "onion_key"):
        router = nd.router(3)
        setattr(router, name, rsa_key(5048, 2048))
        with pytest.raises(DocumentError, match="2048 bits; 1024 expected"):
            parse_server_descriptor(router.descriptor())


def test_every_truncation_is_refused() -> None:
    for text, parse in ((DESCRIPTOR, parse_server_descriptor), (EXTRA_INFO, parse_extra_info)):
        for length in range(len(text)):
            with pytest.raises(DocumentError):
                parse(text[:length])


# --- Extra-info ----------------------------------------------------------------------------------------


def test_extra_info_is_read() -> None:
    extra_info = parse_extra_info(EXTRA_INFO)
    assert extra_info.nickname == "relay1"
    assert extra_info.identity == ROUTER.identity
    assert extra_info.histories == {
        "write-history": (ROUTER.published, 900, (10, 20, 30_000_000_000)),
        "read-history": (ROUTER.published, 900, ()),
    }
    check_extra_info(extra_info, parse_server_descriptor(DESCRIPTOR))


@pytest.mark.parametrize(
    "changes",
    [
        {"extra_info": "extra-info relay1\n"},
        {"extra_info": "extra-info relay1 00\n"},
        {"identity_ed25519": ""},
        {"identity_ed25519": identity_item(4, signer=OTHER)},
        {"published": "published tomorrow noon\n"},
        {"write_history": "write-history 2026-01-01 00:00:00\n"},
        {"write_history": "write-history 2026-01-01 00:00:00 (x s) 1\n"},
        {"write_history": "write-history 2026-01-01 00:00:00 (900 s) 1,,2\n"},
        {"write_history": "write-history 2026-01-01 00:00:00 (900 s) 1,-2\n"},
        {"write_history": f"write-history 2026-01-01 00:00:00 (900 s) {'1,' * 5000}1\n"},
        {"write_history": f"write-history 2026-01-01 00:00:00 (900 s) {'9' * 40_000}\n"},
    ],
)
def test_extra_info_must_be_right(changes: dict[str, str]) -> None:
    with pytest.raises(DocumentError):
        parse_extra_info(ROUTER.extra_info(**changes))


def test_extra_info_must_be_what_the_descriptor_names() -> None:
    descriptor = parse_server_descriptor(DESCRIPTOR)
    with pytest.raises(DocumentError, match="not the document"):
        check_extra_info(parse_extra_info(ROUTER.extra_info(padding_counts="")), descriptor)
    with pytest.raises(DocumentError, match="not the document"):
        check_extra_info(parse_extra_info(OTHER.extra_info()), descriptor)
    # The SHA-1 leaves the RSA signature out, the SHA-256 does not.
    without = DESCRIPTOR.split(b"extra-info-digest ")[1].split()[:2]
    short = ROUTER.descriptor(extra_info_digest=f"extra-info-digest {without[0].decode()}\n")
    end = EXTRA_INFO.index(b"-----BEGIN SIGNATURE")
    forged = EXTRA_INFO[:end] + armor("SIGNATURE", sign(OTHER.identity_key, bytes(20))).encode()
    with pytest.raises(DocumentError, match="not the text"):
        check_extra_info(parse_extra_info(forged), descriptor)
    with pytest.raises(DocumentError, match="router-signature"):
        check_extra_info(parse_extra_info(forged), parse_server_descriptor(short))


def test_extra_info_must_be_of_the_same_relay_and_time() -> None:
    for change in (
        {"extra_info": f"extra-info relay1 {OTHER.identity.hex()}\n"},
        {"published": f"published {encode_time(ROUTER.published - 1)}\n"},
    ):
        extra = ROUTER.extra_info(**change)
        parsed = parse_extra_info(extra)
        item = f"extra-info-digest {parsed.digest.hex()}\n"
        with pytest.raises(DocumentError, match="another relay or time"):
            check_extra_info(parsed, parse_server_descriptor(ROUTER.descriptor(extra_info_digest=item)))


# --- Random bytes --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, len(DESCRIPTOR)), st.integers(0, 400))
def test_random_bytes_are_refused_or_read(data: bytes, at: int, length: int) -> None:
    for text, parse in ((DESCRIPTOR, parse_server_descriptor), (EXTRA_INFO, parse_extra_info)):
        with suppress(DocumentError):
            parse(text[:at] + data + text[at + length :])
