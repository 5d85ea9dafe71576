"""Asking a relay for directory documents: the requests, the answers, and every answer that is none."""

import gzip
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from fakes import FakeStream, answer_begin_dir, http_response, ignore
from hypothesis import given, settings
from hypothesis import strategies as st
from served import fresh_relays, serve_channel
from trio.testing import MockClock

from torkit._fast.cells import RelayCommand
from torkit.errors import CircuitClosed, DocumentError, EndReason, NoDirectory, StreamClosed, TimedOut
from torkit.net.circuit import Circuit, CircuitSettings
from torkit.net.directory import (
    BODY_LEN_MAX,
    HEAD_LEN_MAX,
    REQUEST_TIMEOUT,
    decode_answer,
    fetch_certificates,
    fetch_consensus,
    fetch_microdescs,
)

BODY = b"network-status-version 3 microdesc\n" * 100


@pytest.fixture
def patient_clock() -> MockClock:
    """Jumps to the next deadline when for a while nothing moved: the sockets' other ends are in here too."""
    return MockClock(autojump_threshold=0.1)


def answer(body: bytes, *headers: str, status: str = "HTTP/1.0 200 OK") -> bytes:
    return "\r\n".join([status, *headers, "", ""]).encode() + body


# --- Answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "good",
    [
        answer(BODY),
        answer(BODY, status="HTTP/1.1 200 OK"),
        answer(BODY, status="HTTP/1.0 200"),
        answer(BODY, f"Content-Length: {len(BODY)}"),
        answer(BODY, "Content-Encoding: identity", "Date: today", "X-Your-Address-Is: 192.0.2.1"),
        answer(zlib.compress(BODY), "Content-Encoding: deflate"),
        answer(gzip.compress(BODY), "CONTENT-ENCODING:gzip"),
        answer(gzip.compress(BODY), "content-encoding: x-gzip"),
        answer(zlib.compress(BODY[:100]) + zlib.compress(BODY[100:]), "Content-Encoding: deflate"),
    ],
)
def test_the_body_is_given_decompressed(good: bytes) -> None:
    assert decode_answer(good) == BODY


def test_an_empty_body_is_empty() -> None:
    assert decode_answer(answer(b"")) == b""
    assert decode_answer(answer(zlib.compress(b""), "Content-Encoding: deflate")) == b""


@pytest.mark.parametrize(
    "status", ["HTTP/1.0 404 Not found", "HTTP/1.0 503 Busy", "HTTP/1.0 304", "HTTP/1.0 201 OK"]
)
def test_another_status_than_200_says_that_there_is_none(status: str) -> None:
    with pytest.raises(NoDirectory, match=status.split()[1]):
        decode_answer(answer(BODY, status=status))


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.0 2000 OK\r\n\r\n",
        b"HTTP/1.0 200 O\x00K\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"network-status-version 3\n",
        answer(b"", "X-Filler: " + "x" * HEAD_LEN_MAX),
    ],
)
def test_what_is_not_http_is_refused(bad: bytes) -> None:
    with pytest.raises(DocumentError, match="not HTTP"):
        decode_answer(bad)


@pytest.mark.parametrize(
    "length", ["0", str(len(BODY) - 1), str(len(BODY) + 1), "-1", "x", "", "9" * 5000, "²"]
)
def test_a_wrong_length_is_refused(length: str) -> None:
    with pytest.raises(DocumentError, match="announced"):
        decode_answer(answer(BODY, f"Content-Length: {length}"))


def test_an_encoding_not_asked_for_is_refused() -> None:
    for encoding in ("x-zstd", "x-tor-lzma", "br", "deflate, gzip"):
        with pytest.raises(DocumentError, match="encoded"):
            decode_answer(answer(BODY, f"Content-Encoding: {encoding}"))


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress])
def test_every_truncation_of_a_compressed_body_is_refused(compress: Callable[[bytes], bytes]) -> None:
    body = compress(BODY)
    for length in range(1, len(body)):
        with pytest.raises(DocumentError):
            decode_answer(answer(body[:length], "Content-Encoding: deflate"))


def test_a_compressed_body_with_one_byte_changed_is_refused() -> None:
    body = zlib.compress(BODY)
    for at in range(len(body)):
        changed = body[:at] + bytes([body[at] ^ 0x55]) + body[at + 1 :]
        with suppress(DocumentError):
            assert decode_answer(answer(changed, "Content-Encoding: deflate")) == BODY


def test_a_bomb_is_refused_before_it_fills_the_memory() -> None:
    squeezed = zlib.compressobj(9)
    bomb = (
        b"".join(squeezed.compress(bytes(1 << 20)) for _ in range(2 * BODY_LEN_MAX >> 20)) + squeezed.flush()
    )
    with pytest.raises(DocumentError, match="decompresses to more"):
        decode_answer(answer(bomb, "Content-Encoding: deflate"))


def test_the_bound_holds_for_all_streams_together() -> None:
    part = zlib.compress(bytes(BODY_LEN_MAX // 4))
    assert len(decode_answer(answer(part * 4, "Content-Encoding: deflate"))) == BODY_LEN_MAX
    with pytest.raises(DocumentError, match="decompresses to more"):
        decode_answer(answer(part * 5, "Content-Encoding: deflate"))


def test_very_many_tiny_streams_are_refused() -> None:
    """Each is quick to read, but what follows it is copied."""
    with pytest.raises(DocumentError, match="streams"):
        decode_answer(answer(zlib.compress(b"") * 100_000, "Content-Encoding: deflate"))


@settings(deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"HTTP/1.0 200 OK\r\n", answer(b"", "Content-Encoding: gzip")]),
)
def test_any_bytes_give_a_body_or_a_declared_error(data: bytes, start: bytes) -> None:
    with suppress(DocumentError, NoDirectory):
        decode_answer(start + data)


# --- Over a circuit ------------------------------------------------------------------------------------


@asynccontextmanager
async def directory_circuit(
    on_begin_dir: Callable[[FakeStream], object] = answer_begin_dir,
    *,
    answers: Callable[[bytes], bytes] | None = None,
) -> AsyncIterator[Circuit]:
    (relay,) = fresh_relays(1)
    relay.directory, relay.on_begin_dir = answers, on_begin_dir
    async with serve_channel(relay) as channel:
        circuit = channel.open_circuit(0, CircuitSettings())
        await circuit.create_fast()
        yield circuit
    assert relay.complaints == []


@pytest.mark.parametrize(
    ("fetch", "path"),
    [
        (fetch_consensus, "/tor/status-vote/current/consensus-microdesc"),
        (
            lambda circuit: fetch_certificates(
                circuit, [(b"\xab" * 20, b"\xcd" * 20), (bytes(20), bytes(20))]
            ),
            f"/tor/keys/fp-sk/{'AB' * 20}-{'CD' * 20}+{'00' * 20}-{'00' * 20}",
        ),
        (
            lambda circuit: fetch_microdescs(circuit, [b"\xff" * 32, bytes(32)]),
            f"/tor/micro/d/{'/' * 42}8-{'A' * 43}",
        ),
    ],
)
async def test_a_request_names_what_is_wanted_and_nothing_of_us(
    fetch: Callable[[Circuit], Awaitable[bytes]], path: str
) -> None:
    requests: list[bytes] = []

    def serve(request: bytes) -> bytes:
        requests.append(request)
        return http_response(BODY)

    async with directory_circuit(answers=serve) as circuit:
        assert await fetch(circuit) == BODY
        assert circuit.stream_count == 0
    lines = requests[0].decode("ascii").split("\r\n")
    assert lines[0] == f"GET {path} HTTP/1.0"
    # As the specification asks of anonymous requests: only what every cache has.
    assert lines[1:] == ["Accept-Encoding: deflate, gzip, identity", "", ""]


async def test_a_large_answer_arrives_whole() -> None:
    body = bytes(range(256)) * 8192  # 2 MiB, some nine stream windows
    async with directory_circuit(answers=lambda _: http_response(body)) as circuit:
        assert await fetch_consensus(circuit) == body


async def test_many_requests_share_one_circuit() -> None:
    async with directory_circuit(answers=lambda request: http_response(request.split()[1])) as circuit:
        bodies: list[bytes] = []

        async def fetch(number: int) -> None:
            bodies.append(await fetch_microdescs(circuit, [bytes([number]) * 32]))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(fetch, number)
        assert len(set(bodies)) == 20


async def test_a_relay_without_a_directory_refuses() -> None:
    async with directory_circuit() as circuit:
        with pytest.raises(StreamClosed) as caught:
            await fetch_consensus(circuit)
        assert caught.value.reason is EndReason.NOTDIRECTORY


async def test_an_answer_broken_off_is_not_taken_for_whole() -> None:
    def break_off(stream: FakeStream) -> None:
        stream.send(RelayCommand.CONNECTED)
        stream.write(answer(BODY))
        stream.finish(EndReason.TIMEOUT)

    async with directory_circuit(break_off) as circuit:
        with pytest.raises(StreamClosed) as caught:
            await fetch_consensus(circuit)
        assert caught.value.reason is EndReason.TIMEOUT


async def test_a_stalled_answer_is_given_up_and_its_stream_ended(patient_clock: MockClock) -> None:
    def stall(stream: FakeStream) -> None:
        stream.send(RelayCommand.CONNECTED)
        stream.write(answer(BODY)[:-1])

    async with directory_circuit(stall) as circuit:
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await fetch_consensus(circuit)
        assert trio.current_time() - started >= REQUEST_TIMEOUT
        assert circuit.stream_count == 0


async def test_a_directory_that_never_connects_is_given_up(patient_clock: MockClock) -> None:
    async with directory_circuit(ignore) as circuit:
        with pytest.raises(TimedOut):
            await fetch_consensus(circuit)


async def test_the_circuits_end_ends_the_request() -> None:
    async with directory_circuit(lambda stream: stream.circuit.destroy()) as circuit:
        with pytest.raises(StreamClosed) as caught:
            await fetch_consensus(circuit)
        assert isinstance(caught.value.__cause__, CircuitClosed)
