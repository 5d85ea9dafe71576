"""Compressed answers: every codec, streams in a row, bombs, and what is cut off or damaged."""

import gzip
import lzma
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torkit.directory.compression import (
    ACCEPT_ENCODING,
    ANONYMISED_ENCODINGS,
    FREE_LEN,
    LZMA_MEMORY,
    MAX_EXPANSION,
    MAX_STREAMS,
    STEP_LEN,
    ZSTD_WINDOW_LOG,
    decompress,
    decompress_in_steps,
)
from torkit.errors import DocumentError

try:
    from compression import zstd  # type: ignore[import-not-found]  # new in Python 3.14
except ImportError:
    from backports import zstd

BODY = b"network-status-version 3 microdesc\n" * 100
LIMIT = 1 << 20


def lzma_alone(body: bytes) -> bytes:
    """As tor's relays do it: preset 9 would need more memory than they allow each other."""
    return lzma.compress(body, format=lzma.FORMAT_ALONE, preset=6)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "deflate": zlib.compress,
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "x-zstd": lambda body: zstd.compress(body, 9),
    "x-tor-lzma": lzma_alone,
}
each_codec = pytest.mark.parametrize(("encoding", "compress"), COMPRESS.items())


def test_what_is_asked_for_is_known() -> None:
    assert set(ACCEPT_ENCODING) | {"x-gzip"} == set(COMPRESS) | {"identity"}
    assert set(ANONYMISED_ENCODINGS) < set(ACCEPT_ENCODING)


@each_codec
@pytest.mark.parametrize("body", [b"", b"x", BODY, Random(1).randbytes(300_000)])
def test_the_content_is_given(encoding: str, compress: Callable[[bytes], bytes], body: bytes) -> None:
    assert decompress(compress(body), encoding, LIMIT) == body


@each_codec
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_content_of_whole_steps_is_given(
    encoding: str, compress: Callable[[bytes], bytes], extra: int
) -> None:
    """Of which a codec has kept nothing when it is asked for the rest, though it had said that it might."""
    body = b64encode(Random(4).randbytes(4 * STEP_LEN))[: 4 * STEP_LEN + extra]
    assert decompress(compress(body), encoding, LIMIT) == body


@each_codec
def test_streams_in_a_row_are_one_content(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    rng = Random(2)
    parts = [rng.randbytes(rng.choice((0, 1, 5000, 70_000))) for _ in range(12)]
    assert decompress(b"".join(map(compress, parts)), encoding, LIMIT) == b"".join(parts)


def test_the_header_may_be_of_zlib_or_of_gzip_under_either_name() -> None:
    assert decompress(gzip.compress(BODY) + zlib.compress(BODY), "deflate", LIMIT) == 2 * BODY


@each_codec
def test_the_limit_is_for_all_streams_together(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    quarter = compress(bytes(LIMIT // 4))
    assert len(decompress(quarter * 4, encoding, LIMIT)) == LIMIT
    for more in (quarter, compress(b"\0")):
        with pytest.raises(DocumentError, match="decompresses to more"):
            decompress(quarter * 4 + more, encoding, LIMIT)


def test_identity_has_a_limit_too() -> None:
    assert decompress(BODY, "identity", len(BODY)) == BODY
    with pytest.raises(DocumentError, match="at most"):
        decompress(BODY, "identity", len(BODY) - 1)


@pytest.mark.parametrize("encoding", ["br", "", "deflate, gzip", "x-lzma", "GZIP", "é" * 1000])
def test_an_unknown_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(DocumentError, match="encoded as"):
        decompress(BODY, encoding, LIMIT)


@each_codec
def test_every_truncation_is_refused(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    body = compress(BODY)
    for length in range(len(body)):
        with pytest.raises(DocumentError):
            decompress(body[:length], encoding, LIMIT)
    with pytest.raises(DocumentError):  # a second stream cut off
        decompress(body + body[:-1], encoding, LIMIT)


@each_codec
def test_what_follows_must_be_a_stream(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    with pytest.raises(DocumentError):
        decompress(compress(BODY) + b"network-status", encoding, LIMIT)


@pytest.mark.parametrize("encoding", ["deflate", "gzip"])
def test_one_changed_byte_is_noticed(encoding: str) -> None:
    """zlib and gzip carry a checksum. x-zstd as relays send it and x-tor-lzma do not: digests must tell."""
    body = COMPRESS[encoding](BODY)
    for at in range(len(body)):
        changed = body[:at] + bytes([body[at] ^ 0x55]) + body[at + 1 :]
        with suppress(DocumentError):
            assert decompress(changed, encoding, LIMIT) == BODY


def bomb(encoding: str) -> bytes:
    """64 MiB of zeros."""
    return COMPRESS[encoding](bytes(64 << 20))


@pytest.mark.parametrize("encoding", ["deflate", "gzip", "x-zstd", "x-tor-lzma"])
def test_a_bomb_takes_no_more_memory_than_its_limit(encoding: str) -> None:
    body = bomb(encoding)
    tracemalloc.start()
    try:
        with pytest.raises(DocumentError, match="decompresses to more"):
            decompress(body, encoding, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < LZMA_MEMORY + 4 * LIMIT
    finally:
        tracemalloc.stop()


@each_codec
def test_content_is_no_more_than_so_many_times_what_came(
    encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    at_least = FREE_LEN // MAX_EXPANSION
    for end in (FREE_LEN, FREE_LEN + 1):
        body = compress(Random(4).randbytes(at_least // 2) + bytes(end - at_least // 2))
        assert len(body) < at_least
        if end == FREE_LEN:
            assert len(decompress(body, encoding, 4 * FREE_LEN)) == end
        else:
            with pytest.raises(DocumentError, match="decompresses to more"):
                decompress(body, encoding, 4 * FREE_LEN)
    body = compress(Random(5).randbytes(2 * at_least) + bytes(FREE_LEN))
    assert len(decompress(body, encoding, 4 * FREE_LEN)) > FREE_LEN


@pytest.mark.parametrize("encoding", ["deflate", "gzip", "x-zstd", "x-tor-lzma"])
def test_no_step_takes_more_than_so_many_bytes(encoding: str) -> None:
    steps = decompress_in_steps(COMPRESS[encoding](bytes(FREE_LEN)), encoding, FREE_LEN)
    assert sum(1 for _ in steps) >= FREE_LEN // STEP_LEN


@each_codec
def test_very_many_small_streams_are_refused(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    one = compress(b"")
    assert decompress(one * MAX_STREAMS, encoding, LIMIT) == b""
    with pytest.raises(DocumentError, match="compressed streams"):
        decompress(one * 100_000, encoding, LIMIT)


def test_frames_that_zstd_skips_count_as_streams() -> None:
    with pytest.raises(DocumentError):
        decompress(b"\x50\x2a\x4d\x18\0\0\0\0" * 100_000, "x-zstd", LIMIT)


def test_a_frame_of_zstd_that_wants_a_great_window_is_refused() -> None:
    body = Random(3).randbytes(1000)
    for log, refused in ((ZSTD_WINDOW_LOG, False), (ZSTD_WINDOW_LOG + 1, True), (31, True)):
        # Window_Descriptor: the exponent stands in its upper five bits. RFC 8878, 3.1.1.1.2.
        frame = (
            b"\x28\xb5\x2f\xfd\x00" + bytes([(log - 10) << 3]) + (len(body) << 3 | 1).to_bytes(3, "little")
        )
        if refused:
            with pytest.raises(DocumentError, match="does not decompress"):
                decompress(frame + body, "x-zstd", LIMIT)
        else:
            assert decompress(frame + body, "x-zstd", LIMIT) == body


def test_a_stream_of_lzma_that_wants_a_great_dictionary_is_refused() -> None:
    body = lzma_alone(BODY)
    for size, refused in ((LZMA_MEMORY // 2, False), (LZMA_MEMORY, True), (2**32 - 1, True)):
        changed = body[:1] + size.to_bytes(4, "little") + body[5:]
        if refused:
            with pytest.raises(DocumentError, match="does not decompress"):
                decompress(changed, "x-tor-lzma", LIMIT)
        else:
            assert decompress(changed, "x-tor-lzma", LIMIT) == BODY


def test_the_container_of_xz_is_not_lzma() -> None:
    with pytest.raises(DocumentError):
        decompress(lzma.compress(BODY), "x-tor-lzma", LIMIT)


@settings(deadline=None)
@given(st.sampled_from(sorted(COMPRESS)), st.data())
def test_damage_anywhere_is_content_or_a_declared_error(encoding: str, data: st.DataObject) -> None:
    body = bytearray(COMPRESS[encoding](BODY))
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=4)):
        body[at] = data.draw(st.integers(0, 255))
    with suppress(DocumentError):
        assert len(decompress(bytes(body + data.draw(st.binary(max_size=20))), encoding, LIMIT)) <= LIMIT
