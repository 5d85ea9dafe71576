"""Whether a network is ready: the directory as the authorities serve it, read only as far as that needs.

The real parser is torkit.directory; this one must not share its mistakes.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import trio

from torkit.errors import NotPossible
from torkit.testnet.model import Relay, authorities_of
from torkit.testnet.services import receive_all


async def spread_descriptors(relays: Sequence[Relay]) -> bool:
    """Hand each authority the descriptors that it lacks. Returns whether every authority knew every relay.

    An authority that starts a moment before the others uploads its own descriptor in vain, once.
    """
    held = [await fetch_descriptors(authority) for authority in authorities_of(relays)]
    union = {fingerprint: text for descriptors in held for fingerprint, text in descriptors.items()}
    for authority, descriptors in zip(authorities_of(relays), held, strict=True):
        for fingerprint in union.keys() - descriptors.keys():
            await ask(authority, "POST", "/tor/", union[fingerprint])
    return all({relay.fingerprint for relay in relays} <= set(descriptors) for descriptors in held)


class Incomplete(NotPossible):
    """The authorities have agreed on a consensus that lacks something, and will for a whole interval."""


async def consensus_is_complete(relays: Sequence[Relay]) -> bool:
    """Returns whether every authority serves a consensus that a majority signed. Raises Incomplete."""
    for authority in authorities_of(relays):
        consensus = await fetch_consensus(authority)
        if consensus is None or consensus.signatures <= len(authorities_of(relays)) // 2:
            return False
        if missing := consensus.missing(relays):
            raise Incomplete(f"the first consensus lacks {missing}")
    return True


async def directory_is_mirrored(relays: Sequence[Relay]) -> bool:
    """Returns whether the other relays have the authorities' consensus and microdescriptors."""
    consensus = await fetch_consensus(authorities_of(relays)[0])
    return consensus is not None and all(
        holds(relay, consensus) for relay in relays if not relay.is_authority
    )


@dataclass(frozen=True)
class Consensus:
    valid_after: datetime
    valid_until: datetime
    flags: dict[str, set[str]]  # by RSA identity, upper case hex
    measured: set[str]  # whose bandwidth every vote had; without, hardly any relay is ever chosen
    microdesc_digests: set[str]  # base64 without padding
    signatures: int

    def missing(self, relays: Sequence[Relay]) -> str:
        """Returns what this consensus lacks of a complete network, for a person; empty if complete."""
        problems = []
        # Fewer measurements than three count for nothing, and no authority measures itself.
        are_measured = len(authorities_of(relays)) > 2
        for relay in relays:
            wanted = {"Running", "Valid", "V2Dir", "Guard", "Stable"} | ({"Exit"} if relay.is_exit else set())
            lacking = wanted - self.flags.get(relay.fingerprint, set())
            if are_measured and not relay.is_authority and relay.fingerprint not in self.measured:
                lacking.add("bandwidth")
            if lacking:
                problems.append(f"{relay.nickname} ({' '.join(sorted(lacking))})")
        return ", ".join(problems)


def read_consensus(text: str) -> Consensus:
    times = dict(re.findall(r"^(valid-after|valid-until) (.+)$", text, re.MULTILINE))
    entries = re.findall(r"^r \S+ (\S+) .*\n(?:a .*\n)*m (\S+)\ns (.*)$", text, re.MULTILINE)
    measured = re.findall(r"^r \S+ (\S+) .*\n(?:(?!r ).*\n)*?w Bandwidth=\d+$", text, re.MULTILINE)
    return Consensus(
        valid_after=datetime.fromisoformat(times["valid-after"]).replace(tzinfo=UTC),
        valid_until=datetime.fromisoformat(times["valid-until"]).replace(tzinfo=UTC),
        flags={_fingerprint(r): set(s.split()) for r, _, s in entries},
        measured=set(map(_fingerprint, measured)),
        microdesc_digests={m for _, m, _ in entries},
        signatures=len(re.findall(r"^directory-signature ", text, re.MULTILINE)),
    )


def _fingerprint(identity: str) -> str:
    return base64.b64decode(identity + "=").hex().upper()


async def fetch_consensus(authority: Relay) -> Consensus | None:
    """Returns the microdesc consensus of `authority`; None until it serves all microdescriptors, too."""
    with suppress(OSError, trio.BrokenResourceError):
        body = await ask(authority, "GET", "/tor/status-vote/current/consensus-microdesc")
        if not body:
            return None
        consensus = read_consensus(body.decode())
        digests = "-".join(sorted(consensus.microdesc_digests))
        served = await ask(authority, "GET", f"/tor/micro/d/{digests}")
        return consensus if consensus.microdesc_digests <= _microdesc_digests(served) else None
    return None


async def fetch_descriptors(authority: Relay) -> dict[str, bytes]:
    """Returns the server descriptors that `authority` has, by RSA identity, upper case hex."""
    try:
        body = await ask(authority, "GET", "/tor/server/all")
    except (OSError, trio.BrokenResourceError):
        return {}
    descriptors = {}
    for found in re.finditer(rb"^router (?:(?!router ).*\n)*", body, re.MULTILINE):
        fingerprint = re.search(rb"^fingerprint ([0-9A-F ]+)$", found[0], re.MULTILINE)
        if fingerprint is not None:
            descriptors[fingerprint[1].decode().replace(" ", "")] = found[0]
    return descriptors


async def ask(authority: Relay, method: str, path: str, body: bytes = b"") -> bytes:
    """Returns the body of a 200 reply from an authority's DirPort; empty for any other."""
    async with await trio.open_tcp_stream(authority.address, authority.dir_port) as stream:
        head = f"{method} {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        await stream.send_all(head.encode() + body)
        status, _, reply = (await receive_all(stream)).partition(b"\r\n\r\n")
    return reply if status.split(b" ", 2)[1:2] == [b"200"] else b""


def _microdesc_digests(documents: bytes) -> set[str]:
    """Returns digests of the microdescriptors in a reply, or in tor's cache file with its `@` lines."""
    starts = re.finditer(rb"^onion-key\n(?:(?!onion-key\n|@).*\n)*", documents, re.MULTILINE)
    return {base64.b64encode(hashlib.sha256(found[0]).digest()).decode().rstrip("=") for found in starts}


def holds(relay: Relay, consensus: Consensus) -> bool:
    """Returns whether `relay` has stored a consensus as new as `consensus`, and its microdescriptors."""
    try:
        stored = read_consensus((relay.data_directory / "cached-microdesc-consensus").read_text())
    except (FileNotFoundError, KeyError):  # tor has none yet, or is just writing it
        return False
    documents = b"\n".join(
        path.read_bytes() for path in relay.data_directory.glob("cached-microdescs*") if path.suffix != ".tmp"
    )
    is_current = stored.valid_after >= consensus.valid_after
    return is_current and consensus.microdesc_digests <= _microdesc_digests(documents)
