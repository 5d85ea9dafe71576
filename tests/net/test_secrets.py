"""Key material in a process's memory: none is left once its circuit has been closed."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import trio
from hs.making import VECTORS
from served import CONGESTION_CONTROL, PLAIN, fresh_relays, serve

from torkit.testing.relay import FULL

CHILD = Path(__file__).with_name("secrets_child.py")
MASK = 0xAA


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


@pytest.mark.parametrize("collect", [True, False], ids=["collected", "referenced"])
@pytest.mark.parametrize(
    ("protocols", "meeting"),
    [("", None), (PLAIN, None), (CONGESTION_CONTROL, None), (FULL, None), (PLAIN, VECTORS["hs_ntor"])],
    ids=["CREATE_FAST", "ntor", "ntor-v3", "CGO", "onion service"],
)
async def test_no_secret_is_left_in_memory_when_its_circuit_has_ended(
    protocols: str, meeting: dict[str, object] | None, collect: bool
) -> None:
    await look_for_secrets(protocols, meeting, collect=collect, ends_early=False)


@pytest.mark.parametrize("protocols", [PLAIN, FULL], ids=["ntor", "CGO"])
async def test_no_key_is_left_in_memory_where_a_circuit_ends_before_it_has_its_hop(protocols: str) -> None:
    """As where the answer to its handshake and its DESTROY come in one read."""
    await look_for_secrets(protocols, None, collect=False, ends_early=True)


async def look_for_secrets(
    protocols: str, meeting: dict[str, object] | None, *, collect: bool, ends_early: bool
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
    found: Counter[str] = Counter()
    for what, masked in json.loads(told):
        needle = bytes(byte ^ MASK for byte in masked)
        found[what] += sum(block.count(needle) for block in blocks)
    assert found
    assert +found == Counter()
