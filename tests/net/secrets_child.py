"""A client in a process of its own, for test_secrets.py: makes and closes a circuit, and tells its secrets.

They are noted without a copy, and told masked: whoever looks for them finds torkit's copies only.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from random import Random
from typing import Any

import trio
from served import relay_of

import torkit.net.circuit.circuit
from torkit._fast.keys import wipe
from torkit._fast.onion import TOR1_ONION_KEYS_LEN, Layer
from torkit.directory.netdoc import decode_protocols
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.link.channel import Channel
from torkit.proto import ntor
from torkit.proto.cells import HASH_LEN
from torkit.proto.flow import PathKind
from torkit.testing.relay import FakeRelay

MASK = 0xAA

# Arguments of what is sent, and so no secret: MACs and AUTH of ntor and ntor-v3, the length of KH.
PUBLIC = {b":mac", b":msg_mac", b":auth_final", HASH_LEN}
noted: list[tuple[str, list[int]]] = []


def note(what: str, secret: bytes, start: int = 0, end: int | None = None) -> None:
    noted.append((what, [secret[i] ^ MASK for i in range(start, len(secret) if end is None else end)]))


def noting(what: str, function: Callable[..., bytes]) -> Callable[..., bytes]:
    def call(*args: Any) -> bytes:
        result = function(*args)
        if not PUBLIC & set(args):
            note(what, result)
        return result

    return call


def watch_secrets(ending: list[Circuit]) -> None:
    """Note the secrets. The circuits of `ending` end just before a layer is made for them."""
    urandom = os.urandom

    def make_layer(kind: Any, keys: bytes) -> Any:
        for circuit in ending:
            circuit.close()
        for start in range(0, len(keys) - 15, 16):
            note(f"keys of the layer from {start}", keys, start, start + 16)
        return Layer(kind, keys)

    def random(count: int) -> bytes:
        result = urandom(count)
        if count == ntor.CURVE25519_KEY_LEN:
            note("private key", result)
        return result

    vars(torkit.net.circuit.circuit)["Layer"] = make_layer
    os.urandom = random
    for name in ("_exchange", "_ntor_h", "_kdf_rfc5869", "_v3_h", "_v3_kdf", "_kdf_tor"):
        setattr(ntor, name, noting(name, getattr(ntor, name)))


def meet(circuit: Circuit, served: dict[str, str]) -> None:
    """Join with an onion service whose half of the handshake is published, as is x."""
    from torkit.hs import handshake
    from torkit.hs.messages import decode_rendezvous2, introduce_header

    given = {
        name: bytes.fromhex(served[name]) for name in ("auth_key", "B", "subcredential", "handshake_info")
    }
    header = introduce_header(given["auth_key"])
    mac = handshake.mac

    def noting_mac(key: bytes, message: bytes) -> bytes:
        result = mac(key, message)
        if not message.startswith(header) and not message.endswith(b":hs_mac"):  # those two are sent
            note("mac", result)
        return result

    vars(handshake).update(mac=noting_mac, kdf=noting("kdf", handshake.kdf))
    private_key = bytes.fromhex(served["x"])
    note("x of hs-ntor", private_key)
    ours = handshake.ServiceHandshake(
        auth_key=given["auth_key"],
        enc_key=given["B"],
        subcredential=given["subcredential"],
        private_key=private_key,
    )
    wipe(private_key)
    note("EXP(B,x)", ours._bx)
    ours.seal(header, bytes(200))
    keys = ours.finish(decode_rendezvous2(given["handshake_info"]))
    circuit.join(keys.derive(TOR1_ONION_KEYS_LEN), None, PathKind.ONION)
    keys.wipe()
    ours.wipe()


async def main(served: dict[str, Any]) -> None:
    fake = FakeRelay.__new__(FakeRelay)
    fake.rsa_identity, fake.ed_identity = bytes.fromhex(served["rsa"]), bytes.fromhex(served["ed25519"])
    fake.ntor_onion_key = bytes.fromhex(served["onion_key"])
    fake.address = (served["host"], served["port"])
    ending: list[Circuit] = []
    watch_secrets(ending)
    async with trio.open_nursery() as nursery:
        channel = await Channel.connect(
            *fake.address, rsa=fake.rsa_identity, ed25519=fake.ed_identity, rng=Random()
        )
        nursery.start_soon(channel.run)
        circuit = channel.open_circuit(8, CircuitSettings())
        if served["ends_early"]:
            ending.append(circuit)
        if served["protocols"]:
            await circuit.create(
                relay_of(fake, protocols=decode_protocols(served["protocols"])), is_last=True
            )
        else:
            await circuit.create_fast()
        if served["meeting"]:
            meet(circuit, served["meeting"])
        circuit.close()
        await channel.drain()
        ending.clear()
        if served["collect"]:
            del circuit
            gc.collect()
        print(json.dumps(noted), flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        nursery.cancel_scope.cancel()


trio.run(main, json.loads(sys.argv[1]))
