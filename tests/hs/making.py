"""Descriptors of the services in vectors/hs.json, right ones and wrong ones.

The expanded secret key of one period of each is known; so a test may change any text of any layer and have it
encrypted and signed as the service would (torkit.testing.onion).
"""

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from torkit.testing.ed25519 import ExpandedKey
from torkit.testing.onion import DescriptorMaker, IntroductionPoint

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "hs.json").read_text())
SALT = bytes(range(16))
SIGNING_SEED = b"\x05" * 32
LINK_SPECIFIERS = ((0, b"\x7f\1\0\1\x23\x29"), (2, b"r" * 20), (3, b"d" * 32))


def services(kind: str | None = None) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of a network and a service, of `kind` or of every kind."""
    return [
        (case["network"], service)
        for case in VECTORS["cases"]
        for service in case["services"]
        if kind in (None, service["kind"])
    ]


class Service(DescriptorMaker):
    """One service in one period."""

    def __init__(self, network: dict[str, Any], service: dict[str, Any]) -> None:
        expanded = bytes.fromhex(service["blinded_secret_key_expanded"])
        super().__init__(
            ExpandedKey(int.from_bytes(expanded[:32], "little"), expanded[32:]),
            bytes.fromhex(service["subcredential"]),
            now=float(network["valid_after"]),
            signing=Ed25519PrivateKey.from_private_bytes(SIGNING_SEED),
            salt=SALT,
        )
        assert self.blinded.hex() == service["blinded_public_key"]

    def some_point(self, enc_key: bytes, **changes: str) -> str:
        """Returns the text of an introduction point with this key; its other keys are any."""
        return self.point(IntroductionPoint(LINK_SPECIFIERS, b"o" * 32, b"a" * 32, enc_key), **changes)
