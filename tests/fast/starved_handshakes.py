"""Handshakes in which an allocation fails, each in turn. test_allocations.py runs this; it is no test.

    python -m fast.starved_handshakes MODULE

MODULE is as in starved.py. One allocation fails, since without any more Python cannot raise: then MemoryError
is raised, or libcrypto does without; nothing stays in OpenSSL's queue, and the next handshake leaves the keys
that it should. Prints how many handshakes had a fault.
"""

import ctypes
import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fast.starved import load_allocator

from torkit._fast.handshake import FastClient, HopKeys, NtorClient, NtorV3Client
from torkit._fast.hs_ntor import HsNtorClient, HsNtorPoint
from torkit._fast.onion import LayerKind

TESTS = Path(__file__).parents[1]
VECTORS = TESTS / "proto" / "vectors"
FAST_X, FAST_Y = bytes(range(20)), bytes(range(20, 40))


def vector(name: str) -> dict[str, bytes]:
    figures = json.loads((VECTORS / f"{name}.json").read_text())
    return {key: bytes.fromhex(value) for key, value in figures.items() if key != "source"}


NTOR, NTOR_V3 = vector("ntor"), vector("ntor_v3")
HS_NTOR = json.loads((TESTS / "hs" / "vectors" / "hs.json").read_text())["hs_ntor"]
LAYER_KEYS = b"".join(bytes.fromhex(HS_NTOR["layer_keys"][name]) for name in ("Df", "Db", "Kf", "Kb"))


def make_ntor() -> NtorClient:
    return NtorClient(
        rsa_identity=NTOR["relay_rsa_id"],
        onion_key=NTOR["relay_B_public"],
        private_key=NTOR["client_x_secret"],
    )


def make_ntor_v3() -> NtorV3Client:
    return NtorV3Client(
        ed25519_identity=NTOR_V3["relay_ed25519_id"],
        onion_key=NTOR_V3["relay_B_public"],
        private_key=NTOR_V3["client_x_secret"],
        message=NTOR_V3["client_message"],
        verification=NTOR_V3["verification"],
    )


def hs_ntor(name: str) -> bytes:
    return bytes.fromhex(HS_NTOR[name])


def make_hs_ntor() -> HsNtorClient:
    client = HsNtorClient(
        auth_key=hs_ntor("auth_key"),
        enc_key=hs_ntor("B"),
        subcredential=hs_ntor("subcredential"),
        private_key=hs_ntor("x"),
    )
    header = hs_ntor("introduce_header")
    assert header + client.seal(header, hs_ntor("introduce_plaintext")) == hs_ntor("introduce1_body")
    return client


class Served:
    """The service's half of hs-ntor, which ends as a client's does."""

    def __init__(self) -> None:
        header, body = hs_ntor("introduce_header"), hs_ntor("introduce1_body")
        x, sealed = body[len(header) : len(header) + 32], body[len(header) + 32 : -32]
        point = HsNtorPoint(
            auth_key=hs_ntor("auth_key"), private_key=hs_ntor("b"), subcredential=hs_ntor("subcredential")
        )
        self._request = point.open(header, x, sealed, body[-32:])

    def finish(self, reply: bytes) -> HopKeys:
        ours, keys = self._request.answer(hs_ntor("y"))
        assert ours == reply
        keys.service_layer()
        return keys


# How it is begun, the reply, and the beginning of the keys.
Handshake = tuple[Callable[[], FastClient | NtorClient | NtorV3Client | HsNtorClient | Served], bytes, bytes]
HANDSHAKES: list[Handshake] = [
    (
        lambda: FastClient(FAST_X),
        FAST_Y + hashlib.sha1(FAST_X + FAST_Y + b"\0").digest(),
        hashlib.sha1(FAST_X + FAST_Y + b"\1").digest(),
    ),
    (make_ntor, NTOR["server_handshake"], NTOR["keys"]),
    (make_ntor_v3, NTOR_V3["server_handshake"], NTOR_V3["keys_256"]),
    (make_hs_ntor, hs_ntor("handshake_info"), LAYER_KEYS),
    (Served, hs_ntor("handshake_info"), LAYER_KEYS),
]


def has_failed(handshake: Handshake, kind: LayerKind, allocator: Any, number: int) -> bool:
    """Have allocation `number` of a handshake fail, then make another. False where there were fewer."""
    make, reply, expected = handshake
    keys = None
    allocator.set_fault(number, False)
    allocator.resume()
    try:
        keys = make().finish(reply)
        keys.layer(kind)
        keys.kh(kind)
    except MemoryError:
        keys = None
    finally:
        allocator.pause()
    _, failed = allocator.count()
    allocator.set_fault(-1, False)
    assert LIBCRYPTO.ERR_peek_error() == 0
    assert keys is not None or failed
    for whole in (keys, make().finish(reply)):
        assert whole is None or whole.derive(len(expected)) == expected
    return bool(failed)


def main(path: str) -> None:
    allocator = load_allocator(path)
    faults = 0
    for handshake in HANDSHAKES:
        for kind in LayerKind:
            number = 0
            while has_failed(handshake, kind, allocator, number):
                number += 1
            faults += number
    print(faults)


if __name__ == "__main__":
    loaded = re.search(r"\S*/libcrypto\.so\S*$", Path("/proc/self/maps").read_text(), re.MULTILINE)
    assert loaded is not None
    LIBCRYPTO = ctypes.CDLL(loaded[0])
    main(*sys.argv[1:])
