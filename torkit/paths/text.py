"""Paths between commands: one JSON object per line."""

import json
from base64 import b64encode
from collections.abc import Iterable
from typing import Any

from torkit.directory.directory import Directory, Relay
from torkit.directory.netdoc import decode_base64, decode_fingerprint
from torkit.errors import NoPath, UsageError

# Implementation limits.

MAX_PATH_LEN = 8  # relays in a path read from JSON; tor-spec allows eight RELAY_EARLY cells
MAX_PATH_LINE = 1 << 14  # characters of JSON


def path_to_json(path: Iterable[Relay]) -> str:
    """Returns one line, without its newline, of the relays and their addresses, first the guard."""
    hops = []
    for relay in path:
        hop = {"nickname": relay.nickname, "fingerprint": relay.fingerprint}
        if relay.ed25519_identity is not None:
            hop["ed25519"] = _encode_base64(relay.ed25519_identity)
        hops.append(hop | {"address": f"{relay.address}:{relay.or_port}"})
    return json.dumps({"path": hops})


def path_from_json(line: str, directory: Directory) -> tuple[Relay, ...]:
    """Returns the relays that a line of `path_to_json` names, as this directory knows them.

    Of the line only fingerprints count, and Ed25519 identities where given. Addresses and keys are the
    directory's. Raises UsageError for a line of another form, NoPath for a relay that the
    directory lacks or knows under another Ed25519 identity.
    """
    if len(line) > MAX_PATH_LINE:
        raise UsageError(f"a path of {len(line)} characters; at most {MAX_PATH_LINE} are read")
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"a path as one JSON object on a line expected: {error}") from None
    hops = document.get("path") if isinstance(document, dict) else None
    if not isinstance(hops, list) or not 0 < len(hops) <= MAX_PATH_LEN:
        raise UsageError(f'{{"path": [...]}} with 1 to {MAX_PATH_LEN} relays expected')
    path = tuple(_relay_from_hop(hop, number, directory) for number, hop in enumerate(hops, 1))
    if len({relay.identity for relay in path}) != len(path):
        raise UsageError("a path names one relay twice")
    return path


def _relay_from_hop(hop: Any, number: int, directory: Directory) -> Relay:
    fingerprint = hop.get("fingerprint") if isinstance(hop, dict) else None
    if not isinstance(fingerprint, str):
        raise UsageError(f"hop {number} of the path: a fingerprint expected")
    try:
        identity = decode_fingerprint(fingerprint.removeprefix("$"))
        ed25519 = decode_base64(hop["ed25519"], 32) if isinstance(hop.get("ed25519"), str) else None
    except ValueError as error:
        raise UsageError(f"hop {number} of the path: {error}") from None
    relay = directory.relay(identity)
    if relay is None:
        known = directory.consensus.relays.index_of(identity) is not None
        reason = "has no usable microdescriptor yet" if known else "is not in the directory"
        raise NoPath(f"hop {number} of the path: relay {identity.hex().upper()} {reason}")
    if ed25519 is not None and ed25519 != relay.ed25519_identity:
        raise NoPath(f"hop {number} of the path: the directory knows {relay} by another Ed25519 identity")
    return relay


def _encode_base64(key: bytes) -> str:
    return b64encode(key).rstrip(b"=").decode("ascii")
