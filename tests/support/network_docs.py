"""Synthetic networks of N relays, for tests and benches: documents at a time that stands still.

Everything derives from a seed, except that RSA keys, which take long to make, are made once per process.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from torkit.testing.directory import FakeAuthority, RelayDoc, Router, make_authorities, make_consensus
from torkit.testing.directory.authority import HOUR, rsa_key
from torkit.testing.directory.consensus import PROTOCOLS
from torkit.testing.encoding import bare64

NOW = 1_800_000_000  # the time at which everything here is valid


def authorities(count: int = 3) -> list[FakeAuthority]:
    """Those of `make_authorities`, whose certificates hold at NOW."""
    return make_authorities(count, now=NOW)


def consensus(relay_docs: Iterable[RelayDoc], signers: Sequence[FakeAuthority], **how: Any) -> bytes:
    """That of `make_consensus`, valid at NOW."""
    return make_consensus(relay_docs, signers, **{"valid_after": NOW - HOUR // 2, **how})


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


def an_hour_later(relay_docs: Sequence[RelayDoc], seed: int = 1) -> list[RelayDoc]:
    """The same network, some relays gone, some new, and every other bandwidth measured anew."""
    rng = Random(seed)
    kept = [replace(one) for one in relay_docs if rng.random() > 0.01]
    for one in kept:
        if rng.random() < 0.5:
            one.bandwidth = rng.randrange(20, 20_000)
    return kept + relays(len(relay_docs) // 100 + 1, seed=1000 + seed)


def router(number: int) -> Router:
    """A relay with all its keys: number n is the same one throughout a process."""
    rng = Random(number)
    master, signing, family = (Ed25519PrivateKey.from_private_bytes(rng.randbytes(32)) for _ in range(3))
    return Router(
        f"relay{number}",
        rsa_key(1000 + number),
        rsa_key(2000 + number),
        master,
        signing,
        family,
        X25519PrivateKey.from_private_bytes(rng.randbytes(32)),
        published=NOW - HOUR,
        address="192.0.2.7",
        dir_port=9030,
        ipv6="[2001:db8::7]:9001",
        policy="reject 192.0.2.0/24:*\naccept *:80-443\nreject *:*\n",
        policy6="accept 80,443",
    )
