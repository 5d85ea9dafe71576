"""A client in a process of its own, for test_secrets.py: makes and closes a circuit, and tells its secrets.

Those that its relay does not know are noted without a copy, and told masked: whoever looks for them finds
torkit's copies only.
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
import torkit.proto.circuit
from torkit._fast.handshake import FastClient, HopKeys, NtorClient, NtorV3Client
from torkit._fast.keys import wipe
from torkit._fast.onion import TOR1_ONION_KEYS_LEN, Layer
from torkit.directory.netdoc import decode_protocols
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.link.channel import Channel
from torkit.proto.cells import CURVE25519_KEY_LEN
from torkit.proto.circuit import HopHandshake, NewHop
from torkit.proto.flow import PathKind
from torkit.testing.relay import FakeRelay

MASK = 0xAA

noted: list[tuple[str, list[int]]] = []
kept: list[Any] = []


def note(what: str, secret: bytes, start: int = 0, end: int | None = None) -> None:
    noted.append((what, [secret[i] ^ MASK for i in range(start, len(secret) if end is None else end)]))


def noting(what: str, function: Callable[..., bytes]) -> Callable[..., bytes]:
    def call(*args: Any) -> bytes:
        result = function(*args)
        note(what, result)
        return result

    return call


def watch_secrets(ending: list[Circuit]) -> None:
    """Note the secrets. The circuits of `ending` end when the layer of a hop is made, and not yet theirs."""
    urandom = os.urandom

    class EndingHandshake(HopHandshake):
        def finish(self, reply: bytes, *, keeps_kh: bool = False) -> NewHop:
            hop = super().finish(reply, keeps_kh=keeps_kh)
            for circuit in ending:
                circuit.close()
            return hop

    def make_layer(kind: Any, keys: bytes) -> Any:
        for start in range(0, len(keys) - 15, 16):
            note(f"keys of the layer from {start}", keys, start, start + 16)
        return Layer(kind, keys)

    def random(count: int) -> bytes:
        result = urandom(count)
        if count == CURVE25519_KEY_LEN:
            note("private key", result)
        return result

    vars(torkit.net.circuit.circuit).update(Layer=make_layer, HopHandshake=EndingHandshake)
    os.urandom = random


class KeptHandshake:
    """What is made in a handshake stays referenced, so that only `wipe` overwrites its secrets."""

    def __init__(self, client: FastClient | NtorClient | NtorV3Client) -> None:
        self._client = client
        self.handshake = client.handshake
        kept.append(client)

    def finish(self, reply: bytes) -> HopKeys:
        keys = self._client.finish(reply)
        kept.append(keys)
        return keys

    def wipe(self) -> None:
        self._client.wipe()


def keep_handshakes() -> None:
    for module, make in (
        (torkit.proto.circuit, NtorClient),
        (torkit.proto.circuit, NtorV3Client),
        (torkit.net.circuit.circuit, FastClient),
    ):
        vars(module)[make.__name__] = lambda *args, make=make, **given: KeptHandshake(make(*args, **given))


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
    if not served["collect"]:
        keep_handshakes()
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
