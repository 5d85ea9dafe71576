"""Server descriptors and extra-info, as a relay signs them itself. dir-spec, "Server descriptor format"."""

import hashlib
import os
import time
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from torkit.testing.directory.authority import HOUR, rsa_der, rsa_key, sign
from torkit.testing.directory.consensus import PROTOCOLS
from torkit.testing.ed25519 import ExpandedKey
from torkit.testing.encoding import armor, bare64, encode_time
from torkit.testing.relay import FakeRelay, make_ed_certificate


@dataclass
class Router:
    """A relay with all its keys, RSA ones of 1024 bits, and what else its documents say.

    `policy` has whole lines, `ipv6` is "[address]:port", `policy6` a port list such as "accept 80,443".
    """

    nickname: str
    identity_key: RSAPrivateKey
    onion_key: RSAPrivateKey
    master: Ed25519PrivateKey
    signing: Ed25519PrivateKey
    family: Ed25519PrivateKey
    ntor: X25519PrivateKey
    published: int  # Unix time
    address: str = "127.0.0.1"
    or_port: int = 9001
    dir_port: int = 0
    ipv6: str | None = None
    protocols: str = PROTOCOLS
    policy: str = "reject *:*\n"
    policy6: str | None = None

    @classmethod
    def of(cls, relay: FakeRelay, nickname: str, *, policy: str = "reject *:*\n") -> "Router":
        """A scripted relay's, with its keys and address, published an hour ago."""
        return cls(
            nickname,
            relay.rsa_key,
            rsa_key(-1),  # TAP's, which nobody uses any more
            relay.ed_key,
            relay.ed_signing_key,
            Ed25519PrivateKey.from_private_bytes(os.urandom(32)),
            relay.onion_key,
            int(time.time()) - HOUR,
            *relay.address,
            protocols=relay.protocols,
            policy=policy,
        )

    @property
    def identity(self) -> bytes:
        """The SHA-1 of the RSA key, 20 bytes."""
        return hashlib.sha1(rsa_der(self.identity_key)).digest()

    @property
    def fingerprint(self) -> str:
        """`identity` in hexadecimal digits, upper case."""
        return self.identity.hex().upper()

    @property
    def ed25519_identity(self) -> bytes:
        """The master key, 32 bytes."""
        return self.master.public_key().public_bytes_raw()

    def items(self) -> dict[str, str]:
        """The items of a server descriptor up to the signatures, in order: to be changed, then signed."""
        expires = self.published + 720 * HOUR
        ntor, master = ExpandedKey.from_x25519(self.ntor), self.ed25519_identity
        family = self.family.public_key().public_bytes_raw()
        crosscert = make_ed_certificate(0x0A, 1, master, signer=ntor, expires=expires)
        family_cert = make_ed_certificate(0x0C, 1, master, signer=self.family, expires=expires, names=family)
        items = {
            "router": f"router {self.nickname} {self.address} {self.or_port} 0 {self.dir_port}\n",
            **self._identity_item(),
            "master-key-ed25519": f"master-key-ed25519 {bare64(master)}\n",
            "platform": "platform Tor 0.4.9.11 on Linux\n",
            "proto": f"proto {self.protocols}\n",
            "published": f"published {encode_time(self.published)}\n",
            "fingerprint": f"fingerprint {self.identity.hex(' ', 2).upper()}\n",
            "uptime": "uptime 12345\n",
            "bandwidth": "bandwidth 1000000 2000000 500000\n",
            "extra-info-digest": self._extra_info_item(),
            "onion-key": "onion-key\n" + armor("RSA PUBLIC KEY", rsa_der(self.onion_key)),
            "signing-key": "signing-key\n" + armor("RSA PUBLIC KEY", rsa_der(self.identity_key)),
            "onion-key-crosscert": "onion-key-crosscert\n"
            + armor("CROSSCERT", sign(self.onion_key, self.identity + master)),
            "ntor-onion-key-crosscert": f"ntor-onion-key-crosscert {ntor.public[31] >> 7}\n"
            + armor("ED25519 CERT", crosscert),
            "family": f"family ${self.fingerprint}\n",
            "family-cert": "family-cert\n" + armor("FAMILY CERT", family_cert),
            "contact": "contact tests@example.invalid\n",
            "ntor-onion-key": f"ntor-onion-key {bare64(self.ntor.public_key().public_bytes_raw())}\n",
            "or-address": f"or-address {self.ipv6}\n" if self.ipv6 else "",
            "policy": self.policy,
            "ipv6-policy": f"ipv6-policy {self.policy6}\n" if self.policy6 else "",
            "tunnelled-dir-server": "tunnelled-dir-server\n",
        }
        return {name: item for name, item in items.items() if item}

    def descriptor(self, **changes: str) -> bytes:
        """The signed server descriptor; `changes` replace items, an underscore standing for each hyphen."""
        return self.sign(self.items() | {name.replace("_", "-"): item for name, item in changes.items()})

    def extra_info_items(self) -> dict[str, str]:
        """As `items`, of the extra-info document."""
        return {
            "extra-info": f"extra-info {self.nickname} {self.fingerprint}\n",
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
        expires = self.published + 1000 * HOUR
        cert = make_ed_certificate(
            4, 1, signing_key, signer=self.master, expires=expires, names=self.ed25519_identity
        )
        return {"identity-ed25519": "identity-ed25519\n" + armor("ED25519 CERT", cert)}

    def _extra_info_item(self) -> str:
        text = self.extra_info()
        digests = signed_digest(text).hex().upper(), bare64(hashlib.sha256(text).digest())
        return f"extra-info-digest {digests[0]} {digests[1]}\n"


def signed_digest(text: bytes) -> bytes:
    """By what such a document is asked for: the SHA-1 of what the RSA key has signed, 20 bytes."""
    return hashlib.sha1(text[: text.index(b"router-signature\n") + len(b"router-signature\n")]).digest()
