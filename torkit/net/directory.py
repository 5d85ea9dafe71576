"""Asks one relay for directory documents: HTTP/1.0 over a BEGIN_DIR stream of a circuit's last hop.

What comes back is bytes from a stranger: bounded here, checked in directory/.
"""

import re
from base64 import b64encode
from collections.abc import Iterable

import trio

from torkit.directory.compression import ANONYMISED_ENCODINGS, decompress
from torkit.errors import DocumentError, NoDirectory, TimedOut
from torkit.net.circuit import Circuit

# Implementation limits.
REQUEST_TIMEOUT = 60.0  # seconds without a byte, as long as C tor allows a stalled answer
HEAD_LEN_MAX = 16384  # bytes of status line and headers; real ones take 300
BODY_LEN_MAX = 32 << 20  # bytes, decompressed; the public consensus takes 3.5 million
MICRODESCS_PER_REQUEST = 500  # what one request line of 22 KB names

# Asked for and accepted on every circuit; x-gzip is an old name of gzip that caches may answer with.
_ACCEPTED = (*ANONYMISED_ENCODINGS, "x-gzip")

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([ -~]*))?")


async def fetch_consensus(circuit: Circuit) -> bytes:
    """The microdesc consensus, unverified. Raises NoDirectory, DocumentError or what ended the stream."""
    return await _get(circuit, "/tor/status-vote/current/consensus-microdesc")


async def fetch_certificates(circuit: Circuit, keys: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Authority certificates by (identity, signing key digest), 20 bytes each, one after the other."""
    wanted = "+".join(f"{identity.hex()}-{digest.hex()}".upper() for identity, digest in keys)
    return await _get(circuit, f"/tor/keys/fp-sk/{wanted}")


async def fetch_microdescs(circuit: Circuit, digests: Iterable[bytes]) -> bytes:
    """At most MICRODESCS_PER_REQUEST microdescriptors by SHA-256 digest; those the relay has."""
    wanted = "-".join(b64encode(digest).decode().rstrip("=") for digest in digests)
    return await _get(circuit, f"/tor/micro/d/{wanted}")


async def _get(circuit: Circuit, path: str) -> bytes:
    """dir-spec, "General-use HTTP URLs"."""
    async with circuit.begin_directory() as stream:
        request = f"GET {path} HTTP/1.0\r\nAccept-Encoding: {', '.join(ANONYMISED_ENCODINGS)}\r\n\r\n"
        await stream.send_all(request.encode("ascii"))
        answer = bytearray()
        while True:
            with trio.move_on_after(REQUEST_TIMEOUT) as deadline:
                data = await stream.receive_some()
            if deadline.cancelled_caught:
                raise TimedOut(f"a directory answer stalled for {REQUEST_TIMEOUT:.0f} s")
            if not data:
                return decode_answer(bytes(answer))
            answer += data
            if len(answer) > HEAD_LEN_MAX + BODY_LEN_MAX:
                raise DocumentError(f"a directory answer exceeds {BODY_LEN_MAX} bytes")


def decode_answer(answer: bytes) -> bytes:
    """The body of an HTTP answer, decompressed.

    Raises NoDirectory for a status other than 200, DocumentError for what is not HTTP, is truncated or
    decompresses to more than BODY_LEN_MAX. dir-spec, "Standards compliance".
    """
    head, blank, body = answer.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(status_line)
    if not blank or status is None or len(head) > HEAD_LEN_MAX:
        raise DocumentError("a directory answer is not HTTP")
    if status[1] != b"200":
        raise NoDirectory(
            f"the directory answered {status[1].decode()} {(status[2] or b'').decode()}".rstrip()
        )
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)
    }
    length = headers.get(b"content-length")
    if length is not None and length != b"%d" % len(body):
        raise DocumentError(f"a directory answer of {len(body)} bytes was announced as {length[:20]!r}")
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if encoding not in _ACCEPTED:
        raise DocumentError(f"a directory answer is encoded as {encoding[:20]!r}, which we did not ask for")
    return decompress(body, encoding, BODY_LEN_MAX)
