"""Asks one relay for directory documents: HTTP/1.0 over a BEGIN_DIR stream of a circuit's last hop.

The answer is bytes from a stranger: bounded here, checked in directory/.
"""

import time
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType

import trio

from torkit.directory.authorities import MAX_CERTIFICATES_LEN
from torkit.directory.compression import ACCEPT_ENCODING, ANONYMISED_ENCODINGS
from torkit.directory.consensus import MAX_CONSENSUS_LEN, Preamble
from torkit.directory.diff import signed_digest
from torkit.directory.http import HEAD_LEN_MAX, Answer, decode_answer, encode_date
from torkit.directory.microdesc import MAX_MICRODESC_LEN
from torkit.errors import DocumentError, TimedOut
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.stream import Stream
from torkit.net.dir.steps import in_steps

# Implementation limits.
REQUEST_TIMEOUT = 60.0  # seconds without a byte (as long as C tor allows)
ANSWER_TIMEOUT = 600.0  # seconds for a whole answer: else a byte now and then would hold us for ever
MICRODESCS_PER_REQUEST = 500  # one request line of 22 KB names so many

# How much newer than ours a consensus has to be, in seconds, where its lifetime allows that; how many bytes
# of an authority's identity a request tells; the headers that requests may have, in their order. (As C tor.)
NEWER_BY = 180
PREFIX_LEN = 3
HEADERS = ("Host", "If-Modified-Since", "Accept-Encoding", "X-Or-Diff-From-Consensus")


def _ignore() -> None:
    """Stands for a `begun` that nobody needs."""


async def fetch_consensus(
    circuit: Circuit,
    authorities: Iterable[bytes],
    flavor: str = "microdesc",
    *,
    held: Preamble | None = None,
    begun: Callable[[], None] = _ignore,
) -> Answer:
    """Returns a consensus of this flavor newer than `held`, unverified, or a diff from `held`.

    More than half of `authorities`, v3 identities of 20 bytes, have to have signed it: else the relay answers
    that it has none. `begun` is called when the first bytes have come. Raises NoDirectory, DocumentError or
    what ended the stream. dir-spec, "Serving and requesting diffs".
    """
    headers = {}
    if held is not None:
        newer_by = min(NEWER_BY, (held.fresh_until - held.valid_after) // 2)
        headers["If-Modified-Since"] = encode_date(held.valid_after + newer_by)
        max_age = 3600 * held.param("try-diff-for-consensus-newer-than")
        if held.valid_after >= time.time() - max_age:
            digest = await in_steps(signed_digest(held.text))
            headers["X-Or-Diff-From-Consensus"] = digest.hex().upper()
    name = "consensus" if flavor == "ns" else f"consensus-{flavor}"
    signers = "+".join(sorted(identity[:PREFIX_LEN].hex().upper() for identity in authorities))
    path = f"/tor/status-vote/current/{name}/{signers}.z"
    return await _get(circuit, path, MAX_CONSENSUS_LEN, headers, begun)


async def fetch_certificates(circuit: Circuit, identities: Iterable[bytes]) -> bytes:
    """Returns the newest certificates, one after the other, of authorities by v3 identity, 20 bytes each."""
    wanted = "+".join(identity.hex().upper() for identity in identities)
    return (await _get(circuit, f"/tor/keys/fp/{wanted}", MAX_CERTIFICATES_LEN)).body


async def fetch_certificates_of_keys(circuit: Circuit, keys: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Returns certificates, one after the other, by (identity, signing key digest), 20 bytes each."""
    wanted = "+".join(f"{identity.hex()}-{digest.hex()}".upper() for identity, digest in keys)
    return (await _get(circuit, f"/tor/keys/fp-sk/{wanted}", MAX_CERTIFICATES_LEN)).body


async def fetch_microdescs(
    circuit: Circuit, digests: Collection[bytes], *, begun: Callable[[], None] = _ignore
) -> bytes:
    """Returns the microdescriptors that the relay has, of MICRODESCS_PER_REQUEST SHA-256 digests at most."""
    wanted = "-".join(b64encode(digest).decode().rstrip("=") for digest in digests)
    limit = len(digests) * MAX_MICRODESC_LEN
    return (await _get(circuit, f"/tor/micro/d/{wanted}.z", limit, begun=begun)).body


async def fetch_onion_descriptor(circuit: Circuit, blinded: bytes, limit: int) -> bytes:
    """Returns an onion service's descriptor by its blinded key, 32 bytes: at most `limit` bytes, unverified.

    Raises NotServed where the relay has none. rend-spec-v3, "Downloading and uploading descriptors".
    """
    name = b64encode(blinded).decode().rstrip("=")
    return (await _get(circuit, f"/tor/hs/3/{name}", limit)).body


async def publish_onion_descriptor(circuit: Circuit, text: bytes) -> None:
    """Give a descriptor of ours to a directory. Raises NoDirectory where that refuses it, with its reason.

    rend-spec-v3, "Downloading and uploading descriptors". (The order of headers is C tor's.)
    """
    head = f"POST /tor/hs/3/publish HTTP/1.0\r\nHost: {_host(*circuit.last_address)}\r\n"
    request = f"{head}Content-Length: {len(text)}\r\n\r\n".encode("ascii") + text
    await _exchange(circuit, request, HEAD_LEN_MAX, ANONYMISED_ENCODINGS)


async def _get(
    circuit: Circuit,
    path: str,
    limit: int,
    headers: Mapping[str, str] = MappingProxyType({}),
    begun: Callable[[], None] = _ignore,
) -> Answer:
    """Returns an answer of at most `limit` bytes. (Paths and headers, and their order, are C tor's.)

    dir-spec, "General-use HTTP URLs".
    """
    is_anonymised = len(circuit.path) > 1
    headers = {"Host": _host(*circuit.last_address), **headers}
    if not is_anonymised:
        headers["Accept-Encoding"] = ", ".join(ACCEPT_ENCODING)
    fields = [f"{name}: {headers[name]}" for name in HEADERS if name in headers]
    lines = [f"GET {path} HTTP/1.0", *fields, "", ""]
    encodings = ANONYMISED_ENCODINGS if is_anonymised else ACCEPT_ENCODING
    return await _exchange(circuit, "\r\n".join(lines).encode("ascii"), limit, encodings, begun)


async def _exchange(
    circuit: Circuit,
    request: bytes,
    limit: int,
    encodings: Collection[str],
    begun: Callable[[], None] = _ignore,
) -> Answer:
    """Ask, and read the answer of at most `limit` bytes, in one of `encodings`."""
    answer = bytearray()
    async with circuit.begin_directory() as stream, AsyncExitStack() as kept:
        kept.callback(lambda: circuit.note_kept(-len(answer)))
        try:
            with trio.fail_after(ANSWER_TIMEOUT):
                # At once, so that it goes with BEGIN_DIR in one record (as from C tor's clients).
                await stream.send_all(request[stream.put(request) :])
                while data := await _receive(stream):
                    if not answer:
                        begun()
                    answer += data
                    circuit.note_kept(len(data))
                    if len(answer) > HEAD_LEN_MAX + limit:
                        raise DocumentError(f"a directory answer exceeds {limit} bytes")
        except trio.TooSlowError:
            raise TimedOut(f"a directory answer was not complete after {ANSWER_TIMEOUT:.0f} s") from None
    return await in_steps(decode_answer(bytes(answer), limit, encodings))


def _host(address: str, port: int) -> str:
    """RFC 9110, 7.2."""
    if ":" in address:
        address = f"[{address}]"
    return address if port == 80 else f"{address}:{port}"


async def _receive(stream: Stream) -> bytes:
    with trio.move_on_after(REQUEST_TIMEOUT):
        return await stream.receive_some()
    raise TimedOut(f"a directory answer stalled for {REQUEST_TIMEOUT:.0f} s")
