"""Signed synthetic directory documents: a network of test authorities and N relays, for tests and benches.

Everything derives from a seed, except that RSA keys, which take long to make, are made once per process.
"""

import hashlib
from base64 import b64encode
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from torkit.directory.netdoc import encode_time

NOW = 1_800_000_000  # the time at which everything here is valid
HOUR = 3600
PROTOCOLS = (
    "Cons=1-2 Desc=1-4 DirCache=2 FlowCtrl=1-2 HSDir=2 HSIntro=4-5 HSRend=1-2 Link=1-5 LinkAuth=3"
    " Microdesc=1-3 Padding=2 Relay=1-6"
)
WEIGHTS = {
    **dict.fromkeys(("Wgg", "Wgm", "Wmg"), 5000),
    **dict.fromkeys(("Wgd", "Wmd", "Wme"), 0),
    **dict.fromkeys(("Wmm", "Wee", "Wed", "Weg", "Wem", "Wgb", "Wmb", "Web", "Wdb"), 10000),
    **dict.fromkeys(("Wbd", "Wbe", "Wbg", "Wbm"), 10000),
}


@cache
def rsa_key(number: int, bits: int = 1024) -> RSAPrivateKey:
    """The process's key of this number: short, for speed, as no secret hangs on it."""
    return generate_private_key(public_exponent=65537, key_size=bits)


def rsa_der(key: RSAPrivateKey) -> bytes:
    """The public key as PKCS#1 DER, the form whose SHA-1 is its fingerprint."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)


def armor(label: str, data: bytes) -> str:
    """An object: base64 in lines of 64 between BEGIN and END."""
    text = b64encode(data).decode()
    lines = (text[at : at + 64] + "\n" for at in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{''.join(lines)}-----END {label}-----\n"


def bare64(data: bytes) -> str:
    """Base64 without its equals signs."""
    return b64encode(data).decode().rstrip("=")


def sign(key: RSAPrivateKey, digest: bytes) -> bytes:
    """A directory signature: PKCS#1 v1.5 without an algorithm identifier."""
    return key.sign(digest, PKCS1v15(), NoDigestInfo())


@dataclass(frozen=True)
class TestAuthority:
    """An authority's two keys and its certificate."""

    __test__ = False
    nickname: str
    identity_key: RSAPrivateKey
    signing_key: RSAPrivateKey
    published: int = NOW - 24 * HOUR
    expires: int = NOW + 240 * HOUR

    @property
    def v3ident(self) -> bytes:
        return hashlib.sha1(rsa_der(self.identity_key)).digest()

    @property
    def signing_key_digest(self) -> bytes:
        return hashlib.sha1(rsa_der(self.signing_key)).digest()

    def certificate(self) -> bytes:
        """The key certificate, both signatures good."""
        return self.seal_certificate(self.certificate_body())

    def certificate_body(self) -> bytes:
        """The key certificate without its last object, the signature over all that is before."""
        return (
            "dir-key-certificate-version 3\n"
            f"fingerprint {self.v3ident.hex().upper()}\n"
            f"dir-key-published {encode_time(self.published)}\n"
            f"dir-key-expires {encode_time(self.expires)}\n"
            f"dir-identity-key\n{armor('RSA PUBLIC KEY', rsa_der(self.identity_key))}"
            f"dir-signing-key\n{armor('RSA PUBLIC KEY', rsa_der(self.signing_key))}"
            f"dir-key-crosscert\n{armor('ID SIGNATURE', sign(self.signing_key, self.v3ident))}"
            "dir-key-certification\n"
        ).encode()

    def seal_certificate(self, body: bytes) -> bytes:
        """What `certificate_body` made, or what became of it, with a good signature."""
        signature = sign(self.identity_key, hashlib.sha1(body).digest())
        return body + armor("SIGNATURE", signature).encode()

    def signature(self, signed: bytes, algorithm: str = "sha256") -> str:
        """A directory-signature item over the signed part of a consensus."""
        name = "" if algorithm == "sha1" else f" {algorithm}"
        identity, key_digest = self.v3ident.hex().upper(), self.signing_key_digest.hex().upper()
        return f"directory-signature{name} {identity} {key_digest}\n" + armor(
            "SIGNATURE", sign(self.signing_key, hashlib.new(algorithm, signed).digest())
        )


def authorities(count: int = 3) -> list[TestAuthority]:
    """`count` authorities called auth0, auth1, ..."""
    return [TestAuthority(f"auth{n}", rsa_key(2 * n), rsa_key(2 * n + 1)) for n in range(count)]


@dataclass
class RelayDoc:
    """What goes into one relay's consensus entry and microdescriptor."""

    nickname: str
    identity: bytes
    address: str
    or_port: int = 9001
    ipv6: str | None = None
    flags: str = "Fast HSDir Running Stable V2Dir Valid"
    bandwidth: int | None = 1000
    protocols: str = PROTOCOLS
    ntor_onion_key: bytes = b"\1" * 32
    ed25519_identity: bytes | None = b"\2" * 32
    policy: str | None = None
    policy6: str | None = None
    family: str | None = None
    family_ids: str | None = None
    onion_key: bytes | None = None
    version: str = "Tor 0.4.9.11"
    extra: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return self.identity.hex().upper()

    def microdesc(self) -> bytes:
        """The exact text of the microdescriptor."""
        lines = ["onion-key"]
        if self.onion_key is not None:
            lines.append(armor("RSA PUBLIC KEY", self.onion_key)[:-1])
        lines.append(f"ntor-onion-key {bare64(self.ntor_onion_key)}")
        lines += [f"family {self.family}"] if self.family else []
        lines += [f"family-ids {self.family_ids}"] if self.family_ids else []
        lines += [f"p {self.policy}"] if self.policy else []
        lines += [f"p6 {self.policy6}"] if self.policy6 else []
        lines += [f"id ed25519 {bare64(self.ed25519_identity)}"] if self.ed25519_identity else []
        return ("\n".join(lines) + "\n").encode()

    def entry(self, flavor: str = "microdesc") -> str:
        """The consensus entry."""
        digest = bare64(hashlib.sha1(self.identity).digest()) + " " if flavor == "ns" else ""
        lines = [
            f"r {self.nickname} {bare64(self.identity)} {digest}2038-01-01 00:00:00"
            f" {self.address} {self.or_port} 0"
        ]
        lines += [f"a {self.ipv6}"] if self.ipv6 else []
        if flavor == "microdesc":
            lines.append(f"m {bare64(hashlib.sha256(self.microdesc()).digest())}")
        lines += [f"s {' '.join(sorted(self.flags.split()))}", f"v {self.version}", f"pr {self.protocols}"]
        lines += [] if self.bandwidth is None else [f"w Bandwidth={self.bandwidth}"]
        lines += [f"p {self.policy or 'reject 1-65535'}"] if flavor == "ns" else []
        return "\n".join(lines + self.extra) + "\n"


def relays(count: int, seed: int = 1) -> list[RelayDoc]:
    """A network of `count` relays, each in a /16 of its own as long as there are such, a third of them exits.

    Large enough ones have a family of four among every hundred.
    """
    rng = Random(seed)
    made = []
    for number in range(count):
        flags = "Fast HSDir Running Stable V2Dir Valid"
        policy = None
        if number % 3 == 0:
            flags, policy = "Exit " + flags, rng.choice(["accept 80,443", "reject 25,119,135-139"])
        if number % 2 == 0:
            flags = flags.replace("HSDir", "Guard HSDir")
        made.append(
            RelayDoc(
                nickname=f"relay{number}",
                identity=rng.randbytes(20),
                address=f"{11 + number // 256 % 200}.{number % 256}.{number % 251}.{1 + number // 51200}",
                ipv6=f"[2001:{number:x}::1]:9001" if number % 4 == 0 else None,
                flags=flags,
                bandwidth=rng.randrange(20, 20000),
                ntor_onion_key=rng.randbytes(32),
                ed25519_identity=rng.randbytes(32),
                policy=policy,
            )
        )
    for at in range(0, count - 99, 100):
        members = made[at : at + 4]
        for member in members:
            member.family = " ".join(sorted(f"${one.fingerprint}" for one in members))
    return made


FULL_SIZE = 10_000  # relays: a quarter more than the public network has had


@cache
def full_size(count: int = FULL_SIZE) -> list[RelayDoc]:
    """A network with the variety of the public one: old versions, onion keys, many families, few flags alike.

    Documents of it have the sizes of real ones: 330 bytes a consensus entry, 900 a microdescriptor.
    """
    rng = Random(count)
    made = relays(count, seed=count)
    protocols = [PROTOCOLS.replace("FlowCtrl=1-2", f"FlowCtrl={n % 2 + 1}") for n in range(10)]
    for relay in made:
        optional = ("Fast", "HSDir", "Stable", "StaleDesc", "Sybil", "V2Dir")
        kept = [f for f in relay.flags.split() if f not in optional or rng.random() < 0.8]
        relay.flags = " ".join(kept)
        relay.bandwidth = int(rng.lognormvariate(7, 1.5)) + 1
        relay.protocols = rng.choice(protocols)
        relay.version = f"Tor 0.4.{rng.randrange(8, 10)}.{rng.randrange(1, 15)}"
        relay.onion_key = rng.randbytes(140)
        if relay.policy:
            ports = sorted(rng.sample(range(1, 65536), rng.randrange(1, 20)))
            relay.policy = f"{rng.choice(('accept', 'reject'))} {','.join(map(str, ports))}"
            relay.policy6 = rng.choice((None, relay.policy))
    for at in range(0, count - 40, 50):
        members = made[at : at + rng.randrange(2, 40)]
        family = " ".join(sorted(f"${one.fingerprint}" for one in members))
        for member in members:
            member.family, member.family_ids = family, f"ed25519:{bare64(rng.randbytes(32))}"
    return made


def consensus(
    relay_docs: Iterable[RelayDoc],
    signers: Sequence[TestAuthority],
    *,
    flavor: str = "microdesc",
    valid_after: int = NOW - HOUR // 2,
    lifetime: int = 3 * HOUR,
    params: str = "",
    weights: dict[str, int] | None = None,
    algorithm: str | None = None,
) -> bytes:
    """A consensus of these relays, signed by these authorities."""
    times = (valid_after, valid_after + lifetime // 3, valid_after + lifetime)
    named = zip(("valid-after", "fresh-until", "valid-until"), times, strict=True)
    header = (
        f"network-status-version 3{'' if flavor == 'ns' else ' ' + flavor}\n"
        "vote-status consensus\nconsensus-method 35\n"
        + "".join(f"{name} {encode_time(time)}\n" for name, time in named)
        + "voting-delay 300 300\nclient-versions 0.4.9.11\nserver-versions 0.4.9.11\n"
        "known-flags Authority BadExit Exit Fast Guard HSDir MiddleOnly NoEdConsensus Running Stable V2Dir"
        " Valid\n"
        "recommended-client-protocols Cons=2 Link=4-5 Relay=2-4\n"
        "required-client-protocols Cons=2 Link=4 Relay=2\n"
        f"params {params}\n"
        f"shared-rand-previous-value 3 {b64encode(bytes(32)).decode()}\n"
        f"shared-rand-current-value 3 {b64encode(bytes([1] * 32)).decode()}\n"
    )
    sources = "".join(
        f"dir-source {one.nickname} {one.v3ident.hex().upper()} localhost 127.0.0.1 80 9001\n"
        f"contact test\nvote-digest {hashlib.sha1(one.v3ident).hexdigest().upper()}\n"
        for one in signers
    )
    entries = "".join(doc.entry(flavor) for doc in sorted(relay_docs, key=lambda doc: doc.identity))
    given = WEIGHTS if weights is None else weights
    footer = "directory-footer\nbandwidth-weights " + " ".join(f"{k}={v}" for k, v in sorted(given.items()))
    return sign_consensus(
        (header + (sources or "dir-source") + entries + footer + "\n").encode(),
        signers,
        algorithm or ("sha1" if flavor == "ns" else "sha256"),
    )


def sign_consensus(unsigned: bytes, signers: Iterable[TestAuthority], algorithm: str = "sha256") -> bytes:
    """A consensus from its text up to the signatures."""
    signed = unsigned + b"directory-signature "
    return unsigned + "".join(one.signature(signed, algorithm) for one in signers).encode()


def microdescs(relay_docs: Iterable[RelayDoc]) -> bytes:
    """All microdescriptors, one after another, as a cache sends them."""
    return b"".join(doc.microdesc() for doc in relay_docs)


def an_hour_later(relay_docs: Sequence[RelayDoc], seed: int = 1) -> list[RelayDoc]:
    """The same network, some relays gone, some new, and every other bandwidth measured anew."""
    rng = Random(seed)
    kept = [replace(one) for one in relay_docs if rng.random() > 0.01]
    for one in kept:
        if rng.random() < 0.5:
            one.bandwidth = rng.randrange(20, 20_000)
    return kept + relays(len(relay_docs) // 100 + 1, seed=1000 + seed)


def consensus_diff(base: bytes, target: bytes) -> bytes:
    """What a cache sends to a client that has `base`, whose signatures go first as the format demands.

    Lines that stand once in each text are its fixed points, what lies between two of them is replaced
    where it differs: a few lines longer than the shortest diff, and linear.
    """
    old, new = base.split(b"\n")[:-1], target.split(b"\n")[:-1]
    signatures = next(i for i, line in enumerate(old) if line.startswith(b"directory-signature "))
    head = signed_part(base), target
    hashes = " ".join(hashlib.sha3_256(part).hexdigest().upper() for part in head)
    script = [f"network-status-diff-version 1\nhash {hashes}".encode()]
    if signatures + 1 < len(old):
        script.append(b"%d,$d" % (signatures + 1))
        old = old[:signatures]
    fixed = [(-1, -1), *_common_lines(old, new), (len(old), len(new))]
    for (i, j), (old_end, new_end) in reversed(list(pairwise(fixed))):
        start, new_start = i + 1, j + 1
        while start < old_end and new_start < new_end and old[start] == new[new_start]:
            start, new_start = start + 1, new_start + 1
        while start < old_end and new_start < new_end and old[old_end - 1] == new[new_end - 1]:
            old_end, new_end = old_end - 1, new_end - 1
        lines = b"%d" % (start + 1) if old_end == start + 1 else b"%d,%d" % (start + 1, old_end)
        if new_start == new_end:
            script += [lines + b"d"] if start < old_end else []
        else:
            command = lines + b"c" if start < old_end else b"%da" % start
            script += [command, *new[new_start:new_end], b"."]
    return b"\n".join(script) + b"\n"


def signed_part(text: bytes) -> bytes:
    """What the signatures of a consensus are over."""
    return text[: text.index(b"\ndirectory-signature ") + len(b"\ndirectory-signature ")]


_Chain = tuple[int, int, "_Chain | None"]


def _common_lines(old: list[bytes], new: list[bytes]) -> list[tuple[int, int]]:
    """Where lines that each text has once stand in both: as many of them as ascend in both."""
    alone = {line for line, n in Counter(old).items() if n == 1} & {
        line for line, n in Counter(new).items() if n == 1
    }
    places = {line: j for j, line in enumerate(new) if line in alone}
    # The longest ascending sequence: `ends[n]` is the least place at which one of n + 1 lines can end.
    ends: list[int] = []
    chains: list[_Chain] = []
    for i, line in enumerate(old):
        if line in alone:
            n = bisect_left(ends, places[line])
            ends[n : n + 1] = [places[line]]
            chains[n : n + 1] = [(i, places[line], chains[n - 1] if n else None)]
    pairs = []
    chain = chains[-1] if chains else None
    while chain:
        pairs.append(chain[:2])
        chain = chain[2]
    return pairs[::-1]


# Server descriptors and extra-info, as a relay signs them itself.


@dataclass
class Router:
    """A relay with all its keys: number n is the same one throughout a process."""

    number: int
    published: int = NOW - HOUR

    def __post_init__(self) -> None:
        rng = Random(self.number)
        self.identity_key = rsa_key(1000 + self.number)
        self.onion_key = rsa_key(2000 + self.number)
        self.master, self.signing, self.family = (
            Ed25519PrivateKey.from_private_bytes(rng.randbytes(32)) for _ in range(3)
        )
        self.ntor = rng.randbytes(32)

    @property
    def identity(self) -> bytes:
        return hashlib.sha1(rsa_der(self.identity_key)).digest()

    @property
    def ed25519_identity(self) -> bytes:
        return self.master.public_key().public_bytes_raw()

    def items(self) -> dict[str, str]:
        """The items of a server descriptor up to the signatures, in order: to be changed, then signed."""
        expires = self.published + 720 * HOUR
        ntor_key, sign_bit = ntor_public(self.ntor)
        master = self.ed25519_identity
        crosscert = ed25519_cert(0x0A, master, expires, lambda data: sign_with_ntor(self.ntor, data))
        family_cert = ed25519_cert(0x0C, master, expires, self.family.sign, self.family)
        return {
            "router": f"router relay{self.number} 192.0.2.7 9001 0 9030\n",
            **self._identity_item(),
            "master-key-ed25519": f"master-key-ed25519 {bare64(master)}\n",
            "platform": "platform Tor 0.4.9.11 on Linux\n",
            "proto": f"proto {PROTOCOLS}\n",
            "published": f"published {encode_time(self.published)}\n",
            "fingerprint": f"fingerprint {self.identity.hex(' ', 2).upper()}\n",
            "uptime": "uptime 12345\n",
            "bandwidth": "bandwidth 1000000 2000000 500000\n",
            "extra-info-digest": self._extra_info_item(),
            "onion-key": "onion-key\n" + armor("RSA PUBLIC KEY", rsa_der(self.onion_key)),
            "signing-key": "signing-key\n" + armor("RSA PUBLIC KEY", rsa_der(self.identity_key)),
            "onion-key-crosscert": "onion-key-crosscert\n"
            + armor("CROSSCERT", sign(self.onion_key, self.identity + master)),
            "ntor-onion-key-crosscert": f"ntor-onion-key-crosscert {sign_bit}\n"
            + armor("ED25519 CERT", crosscert),
            "family": f"family ${self.identity.hex().upper()}\n",
            "family-cert": "family-cert\n" + armor("FAMILY CERT", family_cert),
            "contact": "contact tests@example.invalid\n",
            "ntor-onion-key": f"ntor-onion-key {bare64(ntor_key)}\n",
            "or-address": "or-address [2001:db8::7]:9001\n",
            "policy": "reject 192.0.2.0/24:*\naccept *:80-443\nreject *:*\n",
            "ipv6-policy": "ipv6-policy accept 80,443\n",
            "tunnelled-dir-server": "tunnelled-dir-server\n",
        }

    def descriptor(self, **changes: str) -> bytes:
        """The signed server descriptor; `changes` replace items, an underscore standing for each hyphen."""
        return self.sign(self.items() | {name.replace("_", "-"): item for name, item in changes.items()})

    def extra_info_items(self) -> dict[str, str]:
        """As `items`, of the extra-info document."""
        return {
            "extra-info": f"extra-info relay{self.number} {self.identity.hex().upper()}\n",
            **self._identity_item(),
            "published": f"published {encode_time(self.published)}\n",
            "write-history": f"write-history {encode_time(self.published)} (900 s) 10,20,30000000000\n",
            "read-history": f"read-history {encode_time(self.published)} (900 s)\n",
            "padding-counts": "padding-counts 2038-01-01 00:00:00 (86400 s) bin-size=10000\n",
        }

    def extra_info(self, **changes: str) -> bytes:
        """The signed extra-info document, as `descriptor`."""
        items = self.extra_info_items()
        return self.sign(items | {name.replace("_", "-"): item for name, item in changes.items()})

    def sign(self, items: dict[str, str]) -> bytes:
        """A document of these items with both signatures."""
        return self.seal(self.body(items))

    def body(self, items: dict[str, str]) -> bytes:
        """A document up to its signatures."""
        return "".join(items.values()).encode()

    def seal(self, body: bytes) -> bytes:
        """What `body` made, or what became of it, with both signatures."""
        body += b"router-sig-ed25519 "
        digest = hashlib.sha256(b"Tor router descriptor signature v1" + body).digest()
        body += bare64(self.signing.sign(digest)).encode() + b"\nrouter-signature\n"
        return body + armor("SIGNATURE", sign(self.identity_key, hashlib.sha1(body).digest())).encode()

    def _identity_item(self) -> dict[str, str]:
        signing_key = self.signing.public_key().public_bytes_raw()
        cert = ed25519_cert(4, signing_key, self.published + 1000 * HOUR, self.master.sign, self.master)
        return {"identity-ed25519": "identity-ed25519\n" + armor("ED25519 CERT", cert)}

    def _extra_info_item(self) -> str:
        text = self.extra_info()
        signed = text[: text.index(b"router-signature\n") + len(b"router-signature\n")]
        digests = hashlib.sha1(signed).hexdigest().upper(), bare64(hashlib.sha256(text).digest())
        return f"extra-info-digest {digests[0]} {digests[1]}\n"


def ed25519_cert(
    cert_type: int,
    certified_key: bytes,
    expires: int,
    sign: Callable[[bytes], bytes],
    signer: Ed25519PrivateKey | None = None,
) -> bytes:
    """An Ed25519 certificate, which names its signer if that is given."""
    extensions = b"\0"
    if signer:
        extensions = b"\1\0\x20\4\0" + signer.public_key().public_bytes_raw()
    head = bytes([1, cert_type]) + (expires // 3600).to_bytes(4, "big") + b"\1"
    return head + certified_key + extensions + sign(head + certified_key + extensions)


# Ed25519 with the scalar of a Curve25519 key, which no library signs with. RFC 8032, 5.1.

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_BASE = (
    15112221349535400772501151409588531511454012693041857206046113283949847762202,
    46316835694926478169428394003475163141307993866256225615783033603165251855960,
)
_Point = tuple[int, int]


def _add(a: _Point, b: _Point) -> _Point:
    product = _D * a[0] * b[0] * a[1] * b[1]
    x = (a[0] * b[1] + a[1] * b[0]) * pow(1 + product, -1, _P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, _P)
    return x % _P, y % _P


def _multiply(scalar: int, point: _Point = _BASE) -> _Point:
    result = (0, 1)
    for bit in f"{scalar:b}":
        result = _add(result, result)
        result = _add(result, point) if bit == "1" else result
    return result


def _encode_point(point: _Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def _scalar(secret: bytes) -> int:
    return int.from_bytes(secret, "little") & (2**254 - 8) | 2**254


@cache
def ntor_public(secret: bytes) -> tuple[bytes, int]:
    """The Curve25519 key of 32 bytes, and the sign of its Ed25519 form."""
    public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    return public, _multiply(_scalar(secret))[0] & 1


@cache
def sign_with_ntor(secret: bytes, data: bytes) -> bytes:
    """An Ed25519 signature by the key that `ntor_public` gives."""
    nonce = int.from_bytes(hashlib.sha512(secret + data).digest(), "little") % _ORDER
    commitment, key = _encode_point(_multiply(nonce)), _encode_point(_multiply(_scalar(secret)))
    challenge = int.from_bytes(hashlib.sha512(commitment + key + data).digest(), "little")
    return commitment + ((nonce + challenge * _scalar(secret)) % _ORDER).to_bytes(32, "little")
