"""Decompresses directory answers: bytes from a stranger in, at most `limit` bytes out.

dir-spec, "Standards compliance".
"""

import zlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from torkit.directory.steps import Steps, complete
from torkit.errors import DocumentError

# Specification constants.

# Accept-Encoding on a circuit of one hop, which hides nothing of us (the names and the order are C tor's).
ACCEPT_ENCODING = ("x-tor-lzma", "x-zstd", "deflate", "gzip", "identity")
# What C tor accepts on an anonymised circuit, where it sends no Accept-Encoding at all: a list of codecs
# would tell one client from another. A path that ends in `.z` asks for deflate.
ANONYMISED_ENCODINGS = ("deflate", "gzip", "identity")
LZMA_MEMORY = 16 << 20  # bytes; the "lower maximum memory usage" that makes it x-tor-lzma

# Implementation limits.

MAX_STREAMS = 512  # compressed streams in one answer; each costs a decompressor
ZSTD_WINDOW_LOG = 23  # 8 MiB, what RFC 8878 asks every decoder to have; relays' level 9 uses 4
CHUNK_LEN = 1 << 16  # bytes given at once, as what follows the end of a stream is copied
STEP_LEN = 1 << 17  # bytes taken at once; lzma, the slowest, needs some 2 ms for them
# Content of this many bytes may be no larger than so many times what came. Real documents shrink to a fifth.
# (Both as in C tor.)
MAX_EXPANSION = 25
FREE_LEN = 5 << 20


class _Stream(Protocol):
    """The common part of the decompressors of zlib, lzma and zstd."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: memoryview, max_length: int, /) -> bytes: ...


class _Codec(NamedTuple):
    open: Callable[[], _Stream]
    error: type[Exception]


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """As `decompress_in_steps`, at once."""
    return complete(decompress_in_steps(body, encoding, limit))


def decompress_in_steps(body: bytes, encoding: str, limit: int) -> Steps[bytes]:
    """The content of an answer with this Content-Encoding, at most `limit` bytes.

    Relays may send several streams one after the other: the limit is for their sum. Memory beyond the
    limit is the codec's, 16 MiB at most. Raises DocumentError for an encoding not in ACCEPT_ENCODING
    (x-gzip is gzip), for what is damaged or cut off, and for too much.
    """
    if encoding == "identity":
        if len(body) > limit:
            raise DocumentError(f"a directory answer of {len(body)} bytes; at most {limit} are read")
        return body
    if encoding not in _CODECS:
        raise DocumentError(f"a directory answer is encoded as {encoding[:20]!r}, which we do not know")
    limit = min(limit, max(FREE_LEN, MAX_EXPANSION * len(body)))
    codec = _CODECS[encoding]()
    content = bytearray()
    view = memoryview(body)
    at = 0
    for _ in range(MAX_STREAMS):
        stream = codec.open()
        while not stream.eof:
            # Input whose content had no room stays with lzma and zstd; zlib wants it again.
            needs_input = getattr(stream, "needs_input", True)
            chunk = view[at : at + CHUNK_LEN] if needs_input else view[:0]
            try:
                piece = stream.decompress(chunk, min(STEP_LEN, limit + 1 - len(content)))
            except codec.error as error:
                raise DocumentError(f"a directory answer does not decompress: {error}") from error
            # zstd does not know that it has given all that was kept until it is asked once more.
            if needs_input and not (chunk or piece or stream.eof):
                raise DocumentError("a directory answer is truncated")
            content += piece
            if len(content) > limit:
                raise DocumentError(f"a directory answer decompresses to more than {limit} bytes")
            rest = stream.unused_data if stream.eof else getattr(stream, "unconsumed_tail", b"")
            at += len(chunk) - len(rest)
            yield
        if at == len(body):
            return bytes(content)
    raise DocumentError(f"a directory answer has more than {MAX_STREAMS} compressed streams")


def _zlib() -> _Codec:
    return _Codec(partial(zlib.decompressobj, wbits=47), zlib.error)  # 47: the header of zlib or of gzip


def _zstd() -> _Codec:
    # Imported when first met, as lzma below: most starts decompress nothing.
    try:
        from compression import zstd  # type: ignore[import-not-found]  # new in Python 3.14
    except ImportError:
        from backports import zstd
    options = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
    return _Codec(partial(zstd.ZstdDecompressor, options=options), zstd.ZstdError)


def _lzma() -> _Codec:
    import lzma

    return _Codec(
        partial(lzma.LZMADecompressor, format=lzma.FORMAT_ALONE, memlimit=LZMA_MEMORY), lzma.LZMAError
    )


_CODECS: dict[str, Callable[[], _Codec]] = {
    "deflate": _zlib,
    "gzip": _zlib,
    "x-gzip": _zlib,
    "x-zstd": _zstd,
    "x-tor-lzma": _lzma,
}


def load_codecs() -> None:
    """Import what decompresses, before it is needed."""
    for codec in set(_CODECS.values()):
        codec()
