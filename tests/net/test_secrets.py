"""Key material in a process's memory: none is left once its circuit has been closed.

The relay of a handshake computes the same secrets as its client, in this process, where they are noted.
"""

import hashlib
import hmac
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hs.making import VECTORS
from served import CONGESTION_CONTROL, PLAIN, fresh_relays, serve

from torkit.testing.onion import handshake as onion_handshake
from torkit.testing.relay import FULL, handshakes

CHILD = Path(__file__).with_name("secrets_child.py")
MASK = 0xAA
PIECE_LEN = 16  # bytes that are looked for at once: the shortest key
STEP = 4  # bytes: keys begin at multiples of it

# Arguments of what is sent, and so no secret: MACs and AUTH of ntor, ntor-v3 and hs-ntor.
PUBLIC = (b":mac", b":msg_mac", b":auth_final", b":hs_mac")
KH_LEN = 20  # of CREATED_FAST, which is sent as well


def memory_of(pid: int) -> list[bytes]:
    """What the process may write to."""
    blocks = []
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, permissions, *_ = line.split()
            if "rw" in permissions and "[v" not in line:
                start, end = (int(number, 16) for number in span.split("-"))
                memory.seek(start)
                blocks.append(memory.read(end - start))
    return blocks


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """What the relay computes from now on that is no one else's business."""
    secrets: list[tuple[str, bytes]] = []

    def noting(what: str, function: Callable[..., bytes], start: int = 0) -> Callable[..., bytes]:
        def call(*args: Any) -> bytes:
            result = function(*args)
            if not any(tweak in arg for tweak in PUBLIC for arg in args if isinstance(arg, bytes)):
                secrets.append((what, result[start:]))
            return result

        return call

    def hashing(what: str, hash_of: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def begin(message: bytes) -> Any:
            note = noting(what, lambda _, *length: hash_of(message).digest(*length))
            return SimpleNamespace(digest=lambda *length: note(message, *length))

        return begin

    for name, start in (("_exchange", 0), ("kdf_rfc5869", 0), ("kdf_tor", KH_LEN)):
        monkeypatch.setattr(handshakes, name, noting(name, getattr(handshakes, name), start))
    hmacs = SimpleNamespace(digest=noting("HMAC", hmac.digest), compare_digest=hmac.compare_digest)
    monkeypatch.setattr(handshakes, "hmac", hmacs)
    hashes = {name: hashing(name, getattr(hashlib, name)) for name in ("sha3_256", "shake_256")}
    monkeypatch.setattr(handshakes, "hashlib", SimpleNamespace(sha1=hashlib.sha1, **hashes))
    monkeypatch.setattr(onion_handshake, "hashlib", SimpleNamespace(**hashes))
    return secrets


def compute_meeting(known: dict[str, Any], noted: list[tuple[str, bytes]]) -> None:
    """Compute what both ends of the published hs-ntor share, which is then noted."""
    given = {name: bytes.fromhex(known[name]) for name in ("x", "X", "B", "auth_key", "subcredential")}
    x, y = X25519PrivateKey.from_private_bytes(given["x"]), bytes.fromhex(known["handshake_info"])[:32]
    bx, xy = (x.exchange(X25519PublicKey.from_public_bytes(key)) for key in (given["B"], y))
    noted += [("EXP(B,x)", bx), ("EXP(Y,x)", xy)]
    common = given["auth_key"], given["X"], given["B"]
    onion_handshake._introduce_keys(bx, *common, given["subcredential"])
    onion_handshake._finish(xy + bx, given["auth_key"], given["B"], given["X"], y)


@pytest.mark.parametrize("collect", [True, False], ids=["collected", "referenced"])
@pytest.mark.parametrize(
    ("protocols", "meeting"),
    [("", None), (PLAIN, None), (CONGESTION_CONTROL, None), (FULL, None), (PLAIN, VECTORS["hs_ntor"])],
    ids=["CREATE_FAST", "ntor", "ntor-v3", "CGO", "onion service"],
)
async def test_no_secret_is_left_in_memory_when_its_circuit_has_ended(
    protocols: str, meeting: dict[str, Any] | None, collect: bool, noted: list[tuple[str, bytes]]
) -> None:
    await look_for_secrets(protocols, meeting, noted, collect=collect, ends_early=False)


@pytest.mark.parametrize("protocols", [PLAIN, FULL], ids=["ntor", "CGO"])
async def test_no_key_is_left_in_memory_where_a_circuit_ends_before_it_has_its_hop(
    protocols: str, noted: list[tuple[str, bytes]]
) -> None:
    """As where the answer to its handshake and its DESTROY come in one read."""
    await look_for_secrets(protocols, None, noted, collect=False, ends_early=True)


async def look_for_secrets(
    protocols: str,
    meeting: dict[str, Any] | None,
    noted: list[tuple[str, bytes]],
    *,
    collect: bool,
    ends_early: bool,
) -> None:
    (relay,) = fresh_relays(1)
    relay.protocols = protocols or PLAIN
    async with serve(relay):
        served = {
            "host": relay.address[0],
            "port": relay.address[1],
            "rsa": relay.rsa_identity.hex(),
            "ed25519": relay.ed_identity.hex(),
            "onion_key": relay.ntor_onion_key.hex(),
            "protocols": protocols,
            "meeting": meeting,
            "collect": collect,
            "ends_early": ends_early,
        }
        command = [sys.executable, str(CHILD), json.dumps(served)]
        child = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(CHILD.parents[1] / "support")},
        )
        assert child.stdout is not None
        try:
            told = b""
            with trio.fail_after(60):
                while not told.endswith(b"\n"):
                    piece = await child.stdout.receive_some()
                    assert piece
                    told += piece
            blocks = memory_of(child.pid)
        finally:
            child.kill()
            await child.wait()
            assert child.stdin is not None
            await child.stdin.aclose()
            await child.stdout.aclose()
    if meeting is not None:
        compute_meeting(meeting, noted)
    assert noted
    noted += [(what, bytes(byte ^ MASK for byte in masked)) for what, masked in json.loads(told)]
    found: Counter[str] = Counter()
    for what, secret in noted:
        for start in range(0, len(secret) - PIECE_LEN + 1, STEP):
            needle = secret[start : start + PIECE_LEN]
            found[f"{what} from {start}"] += sum(block.count(needle) for block in blocks)
    assert found
    assert +found == Counter()
