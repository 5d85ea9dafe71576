"""A client in a process of its own, for test_secrets.py: makes and closes a circuit, and tells its secrets.

Those that its relay does not know are noted without a copy, and told masked: whoever looks for them finds
torkit's copies only.
"""

import gc
import json
import os
import sys
from random import Random
from typing import Any

import trio
from served import relay_of

import torkit.net.circuit.circuit
import torkit.proto.circuit
from torkit._fast.handshake import FastClient, HopKeys, NtorClient, NtorV3Client
from torkit._fast.keys import wipe
from torkit._fast.onion import LayerKind
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


def note(what: str, secret: bytes) -> None:
    noted.append((what, [byte ^ MASK for byte in secret]))


def watch_secrets(ending: list[Circuit]) -> None:
    """Note the secrets. The circuits of `ending` end when the layer of a hop is made, and not yet theirs."""
    urandom = os.urandom

    class EndingHandshake(HopHandshake):
        def finish(self, reply: bytes, *, keeps_kh: bool = False) -> NewHop:
            hop = super().finish(reply, keeps_kh=keeps_kh)
            for circuit in ending:
                circuit.close()
            return hop

    def random(count: int) -> bytes:
        result = urandom(count)
        if count == CURVE25519_KEY_LEN:
            note("private key", result)
        return result

    vars(torkit.net.circuit.circuit).update(HopHandshake=EndingHandshake)
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


def meet(circuit: Circuit, served: dict[str, str], *, collect: bool) -> None:
    """Join with an onion service in a handshake that is published; make the service's half, too."""
    from torkit._fast.hs_ntor import HsNtorClient, HsNtorPoint
    from torkit.hs.messages import introduce_header
    from torkit.hs.service_messages import decode_introduce2

    def known(name: str) -> bytes:
        return bytes.fromhex(served[name])

    def secret(name: str) -> bytes:
        made = known(name)
        note(f"{name} of hs-ntor", made)
        return made

    named = {"auth_key": known("auth_key"), "subcredential": known("subcredential")}
    x, b, y = secret("x"), secret("b"), secret("y")
    ours = HsNtorClient(enc_key=known("B"), private_key=x, **named)
    ours.seal(introduce_header(named["auth_key"]), bytes(200))
    keys = ours.finish(known("handshake_info"))
    circuit.join(keys.layer(LayerKind.TOR1_ONION), None, PathKind.ONION)
    request = HsNtorPoint(private_key=b, **named).open(
        *decode_introduce2(known("introduce1_body"), named["auth_key"])
    )
    _, service_keys = request.answer(y)
    service_keys.service_layer()
    for private_key in (x, b, y):
        wipe(private_key)
    keys.wipe()
    service_keys.wipe()
    ours.wipe()
    if not collect:
        kept.extend([ours, keys, request, service_keys])


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
            meet(circuit, served["meeting"], collect=served["collect"])
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
