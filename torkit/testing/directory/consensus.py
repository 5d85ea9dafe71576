"""What a directory says of relays: consensus and microdescriptors. dir-spec, "The consensus"."""

import hashlib
import time
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torkit.testing.directory.authority import HOUR, FakeAuthority
from torkit.testing.encoding import armor, bare64, encode_time
from torkit.testing.relay import FakeRelay

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


@dataclass
class RelayDoc:
    """What goes into one relay's consensus entry and microdescriptor. The fields may be any lie.

    `identity` is the SHA-1 of the RSA key, 20 bytes; the other keys have 32. `ipv6` is "[address]:port";
    policies are those of a microdescriptor, "accept 80,443", of which none rejects everything. `extra` has
    more lines of the entry.
    """

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

    @classmethod
    def of(
        cls,
        relay: FakeRelay,
        nickname: str,
        *,
        flags: str = "",
        policy: str | None = None,
        protocols: str | None = None,
    ) -> "RelayDoc":
        """The truth about a scripted relay. `flags` are added to those that every relay has here.

        `protocols` is its "pr" line, by default what the relay says that it can do.
        """
        return cls(
            nickname=nickname,
            identity=relay.rsa_identity,
            address=relay.address[0],
            or_port=relay.address[1],
            protocols=relay.protocols if protocols is None else protocols,
            flags=f"{flags} Fast HSDir Running Stable V2Dir Valid".strip(),
            ntor_onion_key=relay.ntor_onion_key,
            ed25519_identity=relay.ed_identity,
            policy=policy,
        )

    @property
    def fingerprint(self) -> str:
        """`identity` in hexadecimal digits, upper case."""
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

    def microdesc_digest(self) -> str:
        """What the microdescriptor is asked for by, and the consensus names it by."""
        return bare64(hashlib.sha256(self.microdesc()).digest())

    def entry(self, flavor: str = "microdesc") -> str:
        """The consensus entry."""
        digest = bare64(hashlib.sha1(self.identity).digest()) + " " if flavor == "ns" else ""
        lines = [
            f"r {self.nickname} {bare64(self.identity)} {digest}2038-01-01 00:00:00"
            f" {self.address} {self.or_port} 0"
        ]
        lines += [f"a {self.ipv6}"] if self.ipv6 else []
        lines += [f"m {self.microdesc_digest()}"] if flavor == "microdesc" else []
        lines += [f"s {' '.join(sorted(self.flags.split()))}", f"v {self.version}", f"pr {self.protocols}"]
        lines += [] if self.bandwidth is None else [f"w Bandwidth={self.bandwidth}"]
        lines += [f"p {self.policy or 'reject 1-65535'}"] if flavor == "ns" else []
        return "\n".join(lines + self.extra) + "\n"


def encode_microdescs(relay_docs: Iterable[RelayDoc]) -> bytes:
    """All microdescriptors, one after another, as a cache sends them."""
    return b"".join(doc.microdesc() for doc in relay_docs)


def make_consensus(
    relay_docs: Iterable[RelayDoc],
    signers: Sequence[FakeAuthority],
    *,
    flavor: str = "microdesc",
    valid_after: int | None = None,
    lifetime: int = 3 * HOUR,
    params: str = "",
    weights: dict[str, int] | None = None,
    algorithm: str | None = None,
) -> bytes:
    """A consensus of these relays, signed by these authorities.

    flavor: "microdesc" or "ns".
    valid_after: Unix time, by default half an hour ago; it is fresh for a third of `lifetime`, in seconds.
    params: "name=value name=value", in order.
    weights: of positions in a path, by default WEIGHTS, a network with enough of everything.
    algorithm: of the signatures' digest, by default the flavor's.
    """
    if valid_after is None:
        valid_after = int(time.time()) - HOUR // 2
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


def sign_consensus(unsigned: bytes, signers: Iterable[FakeAuthority], algorithm: str = "sha256") -> bytes:
    """A consensus from its text up to the signatures."""
    signed = unsigned + b"directory-signature "
    return unsigned + "".join(one.signature(signed, algorithm) for one in signers).encode()


def signed_part(text: bytes) -> bytes:
    """What the signatures of a consensus are over."""
    return text[: text.index(b"\ndirectory-signature ") + len(b"\ndirectory-signature ")]
