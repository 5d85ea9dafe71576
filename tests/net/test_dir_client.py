"""Asking a relay for directory documents: the requests, the answers, and every answer that is none."""

import gzip
import lzma
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from hashlib import sha3_256

import network_docs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from served import build, fresh_relays, serve_channel
from trio.testing import MockClock

from torkit._fast.cells import RelayCommand
from torkit.directory.compression import ACCEPT_ENCODING, ANONYMISED_ENCODINGS
from torkit.directory.consensus import parse_consensus
from torkit.directory.http import HEAD_LEN_MAX, Answer
from torkit.directory.http import decode_answer as in_steps
from torkit.directory.steps import complete
from torkit.errors import (
    CircuitClosed,
    DocumentError,
    EndReason,
    NoDirectory,
    NothingNewer,
    StreamClosed,
    TimedOut,
)
from torkit.net.circuit.circuit import Circuit
from torkit.net.circuit.settings import CircuitSettings
from torkit.net.dir.fetch import (
    ANSWER_TIMEOUT,
    HEADERS,
    REQUEST_TIMEOUT,
    fetch_certificates,
    fetch_certificates_of_keys,
    fetch_consensus,
    fetch_microdescs,
)
from torkit.testing.directory.authority import HOUR
from torkit.testing.relay import FakeStream, answer_begin_dir, http_response, ignore

LIMIT = 1 << 20
BODY = b"network-status-version 3 microdesc\n" * 100
SIGNERS = (b"\xfe" * 20, b"\1\2\3" + bytes(17))  # v3 identities


def decode_answer(answer: bytes, limit: int, encodings: Collection[str] = ACCEPT_ENCODING) -> Answer:
    return complete(in_steps(answer, limit, encodings))


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
    assert decode_answer(good, LIMIT).body == BODY


def test_an_empty_body_is_empty() -> None:
    assert decode_answer(answer(b""), LIMIT).body == b""
    assert decode_answer(answer(zlib.compress(b""), "Content-Encoding: deflate"), LIMIT).body == b""


@pytest.mark.parametrize("status", ["HTTP/1.0 404 Not found", "HTTP/1.0 503 Busy", "HTTP/1.0 201 OK"])
def test_another_status_than_200_says_that_there_is_none(status: str) -> None:
    with pytest.raises(NoDirectory, match=status.split()[1]):
        decode_answer(answer(BODY, status=status), LIMIT)


def test_status_304_says_that_there_is_no_newer_one() -> None:
    with pytest.raises(NothingNewer):
        decode_answer(answer(b"", status="HTTP/1.0 304 Not modified"), LIMIT)


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
        decode_answer(bad, LIMIT)


@pytest.mark.parametrize(
    "length", ["0", str(len(BODY) - 1), str(len(BODY) + 1), "-1", "x", "", "9" * 5000, "²"]
)
def test_a_wrong_length_is_refused(length: str) -> None:
    with pytest.raises(DocumentError, match="announced"):
        decode_answer(answer(BODY, f"Content-Length: {length}"), LIMIT)


def test_an_encoding_not_asked_for_is_refused() -> None:
    for encoding in ("br", "deflate, gzip", "x-zstd"):
        with pytest.raises(DocumentError, match="encoded"):
            decode_answer(answer(BODY, f"Content-Encoding: {encoding}"), LIMIT, ANONYMISED_ENCODINGS)


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress])
def test_every_truncation_of_a_compressed_body_is_refused(compress: Callable[[bytes], bytes]) -> None:
    body = compress(BODY)
    for length in range(1, len(body)):
        with pytest.raises(DocumentError):
            decode_answer(answer(body[:length], "Content-Encoding: deflate"), LIMIT)


def test_a_compressed_body_with_one_byte_changed_is_refused() -> None:
    body = zlib.compress(BODY)
    for at in range(len(body)):
        changed = body[:at] + bytes([body[at] ^ 0x55]) + body[at + 1 :]
        with suppress(DocumentError):
            assert decode_answer(answer(changed, "Content-Encoding: deflate"), LIMIT).body == BODY


def test_a_bomb_is_refused_before_it_fills_the_memory() -> None:
    squeezed = zlib.compressobj(9)
    bomb = b"".join(squeezed.compress(bytes(1 << 20)) for _ in range(2 * LIMIT >> 20)) + squeezed.flush()
    with pytest.raises(DocumentError, match="decompresses to more"):
        decode_answer(answer(bomb, "Content-Encoding: deflate"), LIMIT)


def test_the_bound_holds_for_all_streams_together() -> None:
    part = zlib.compress(bytes(LIMIT // 4))
    assert len(decode_answer(answer(part * 4, "Content-Encoding: deflate"), LIMIT).body) == LIMIT
    with pytest.raises(DocumentError, match="decompresses to more"):
        decode_answer(answer(part * 5, "Content-Encoding: deflate"), LIMIT)


def test_very_many_tiny_streams_are_refused() -> None:
    """Each is quick to read, but what follows it is copied."""
    with pytest.raises(DocumentError, match="streams"):
        decode_answer(answer(zlib.compress(b"") * 100_000, "Content-Encoding: deflate"), LIMIT)


@settings(deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"HTTP/1.0 200 OK\r\n", answer(b"", "Content-Encoding: gzip")]),
)
def test_any_bytes_give_a_body_or_a_declared_error(data: bytes, start: bytes) -> None:
    with suppress(DocumentError, NoDirectory):
        decode_answer(start + data, LIMIT)


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


async def fetch_body(circuit: Circuit) -> bytes:
    return (await fetch_consensus(circuit, SIGNERS)).body


@pytest.mark.parametrize(
    ("fetch", "path"),
    [
        (fetch_body, "/tor/status-vote/current/consensus-microdesc/010203+FEFEFE.z"),
        (
            lambda circuit: fetch_certificates(circuit, [b"\xab" * 20, bytes(20)]),
            f"/tor/keys/fp/{'AB' * 20}+{'00' * 20}",
        ),
        (
            lambda circuit: fetch_certificates_of_keys(
                circuit, [(b"\xab" * 20, b"\xcd" * 20), (bytes(20), bytes(20))]
            ),
            f"/tor/keys/fp-sk/{'AB' * 20}-{'CD' * 20}+{'00' * 20}-{'00' * 20}",
        ),
        (
            lambda circuit: fetch_microdescs(circuit, [b"\xff" * 32, bytes(32)]),
            f"/tor/micro/d/{'/' * 42}8-{'A' * 43}.z",
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
        host, port = circuit.last_address
    lines = requests[0].decode("ascii").split("\r\n")
    assert lines[0] == f"GET {path} HTTP/1.0"
    encodings = f"Accept-Encoding: {', '.join(ACCEPT_ENCODING)}"
    assert lines[1:] == [f"Host: {host}:{port}", encodings, "", ""]


@pytest.mark.parametrize(
    ("address", "host"),
    [(("192.0.2.7", 9001), b"192.0.2.7:9001"), (("192.0.2.7", 80), b"192.0.2.7"), (("::7", 9), b"[::7]:9")],
)
async def test_the_host_is_what_we_connected_to(address: tuple[str, int], host: bytes) -> None:
    (relay,) = fresh_relays(1)
    relay.directory = lambda request: http_response(request.split(b"\r\n")[1])
    async with serve_channel(relay) as channel:
        channel.address = address
        circuit = channel.open_circuit(0, CircuitSettings())
        await circuit.create_fast()
        assert await fetch_body(circuit) == b"Host: " + host


async def test_a_consensus_we_hold_is_named_so_that_a_diff_will_do() -> None:
    """dir-spec, "Serving and requesting diffs"."""
    requests: list[bytes] = []

    def serve(request: bytes) -> bytes:
        requests.append(request)
        return http_response(BODY)

    hour = int(time.time()) - int(time.time()) % HOUR
    text = network_docs.consensus(
        network_docs.relays(3), network_docs.authorities(), valid_after=hour, params="x=1"
    )
    held = parse_consensus(text)
    async with directory_circuit(answers=serve) as circuit:
        await fetch_consensus(circuit, SIGNERS, held=held)
        await fetch_consensus(circuit, SIGNERS, held=held._replace(valid_after=hour - 73 * HOUR))
        await fetch_consensus(
            circuit, SIGNERS, held=held._replace(params={"try-diff-for-consensus-newer-than": 0})
        )
    modified = time.strftime("If-Modified-Since: %a, %d %b %Y %H:03:00 GMT", time.gmtime(hour))
    signed = text[: text.index(b"\ndirectory-signature ") + len(b"\ndirectory-signature ")]
    diff_from = f"X-Or-Diff-From-Consensus: {sha3_256(signed).hexdigest().upper()}"
    lines = [request.decode("ascii").split("\r\n")[1:-2] for request in requests]
    assert [line.split(":")[0] for line in lines[0]] == list(HEADERS)
    assert {modified, diff_from} < set(lines[0])
    assert not any(line.startswith("X-Or-Diff") for line in lines[1] + lines[2])


async def test_on_an_anonymised_circuit_nothing_tells_us_from_others() -> None:
    """C tor names no encodings there, and takes none but zlib's."""
    requests: list[bytes] = []
    relays = fresh_relays(2)

    def serve(request: bytes) -> bytes:
        requests.append(request)
        if len(requests) == 1:
            return answer(zlib.compress(BODY), "Content-Encoding: deflate")
        return answer(lzma.compress(BODY, lzma.FORMAT_ALONE), "Content-Encoding: x-tor-lzma")

    relays[1].directory = serve
    async with serve_channel(relays[0]) as channel:
        circuit = await build(channel, relays)
        assert await fetch_body(circuit) == BODY
        with pytest.raises(DocumentError, match="did not ask for"):
            await fetch_body(circuit)
    path, host = b"/tor/status-vote/current/consensus-microdesc/010203+FEFEFE.z", b"%s:%d"
    host %= relays[1].address[0].encode(), relays[1].address[1]
    assert requests == [b"GET %s HTTP/1.0\r\nHost: %s\r\n\r\n" % (path, host)] * 2


async def test_what_a_relay_says_of_the_time_is_read() -> None:
    date = "Date: Sun, 22 Nov 2026 22:00:00 GMT"
    async with directory_circuit(answers=lambda _: answer(BODY, date)) as circuit:
        assert (await fetch_consensus(circuit, SIGNERS)).date == 1795384800


@pytest.mark.parametrize(
    "date", ["", "today", "Sun, 99 Nov 2026 22:00:00 GMT", "Sun, 22 Nov 99999 22:00", "²"]
)
def test_a_date_that_is_none_is_no_date(date: str) -> None:
    assert decode_answer(answer(BODY, f"Date: {date}"), LIMIT).date is None


async def test_who_asks_is_told_when_the_answer_begins() -> None:
    begun: list[bool] = []
    async with directory_circuit(answers=lambda _: http_response(BODY * 100)) as circuit:
        await fetch_consensus(circuit, SIGNERS, begun=lambda: begun.append(True))
    assert begun == [True]


async def test_an_answer_larger_than_its_kind_is_refused() -> None:
    """Five microdescriptors cannot take a megabyte, compressed or not."""
    plain = answer(bytes(1 << 20))
    squeezed = answer(zlib.compress(bytes(1 << 20)), "Content-Encoding: deflate")
    answers = iter((plain, squeezed))
    async with directory_circuit(answers=lambda _: next(answers)) as circuit:
        for _ in range(2):
            with pytest.raises(DocumentError, match=r"more than|exceeds|at most"):
                await fetch_microdescs(circuit, [bytes([n]) * 32 for n in range(5)])


async def test_an_answer_that_drips_is_given_up(patient_clock: MockClock) -> None:
    """Each byte alone came in time."""

    async def drip(stream: FakeStream) -> None:
        stream.send(RelayCommand.CONNECTED)
        for byte in answer(BODY):
            stream.write(bytes([byte]))
            await trio.sleep(REQUEST_TIMEOUT / 2)

    async with trio.open_nursery() as nursery:
        async with directory_circuit(lambda stream: nursery.start_soon(drip, stream)) as circuit:
            started = trio.current_time()
            with pytest.raises(TimedOut, match="not complete"):
                await fetch_consensus(circuit, SIGNERS)
            assert trio.current_time() - started == pytest.approx(ANSWER_TIMEOUT, abs=1)
        nursery.cancel_scope.cancel()


async def test_a_large_answer_arrives_whole() -> None:
    body = bytes(range(256)) * 8192  # 2 MiB, some nine stream windows
    async with directory_circuit(answers=lambda _: http_response(body)) as circuit:
        assert await fetch_body(circuit) == body


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
            await fetch_consensus(circuit, SIGNERS)
        assert caught.value.reason is EndReason.NOTDIRECTORY


async def test_an_answer_broken_off_is_not_taken_for_whole() -> None:
    def break_off(stream: FakeStream) -> None:
        stream.send(RelayCommand.CONNECTED)
        stream.write(answer(BODY))
        stream.finish(EndReason.TIMEOUT)

    async with directory_circuit(break_off) as circuit:
        with pytest.raises(StreamClosed) as caught:
            await fetch_consensus(circuit, SIGNERS)
        assert caught.value.reason is EndReason.TIMEOUT


async def test_a_stalled_answer_is_given_up_and_its_stream_ended(patient_clock: MockClock) -> None:
    def stall(stream: FakeStream) -> None:
        stream.send(RelayCommand.CONNECTED)
        stream.write(answer(BODY)[:-1])

    async with directory_circuit(stall) as circuit:
        started = trio.current_time()
        with pytest.raises(TimedOut):
            await fetch_consensus(circuit, SIGNERS)
        assert trio.current_time() - started >= REQUEST_TIMEOUT
        assert circuit.stream_count == 0


async def test_a_directory_that_never_connects_is_given_up(patient_clock: MockClock) -> None:
    async with directory_circuit(ignore) as circuit:
        with pytest.raises(TimedOut):
            await fetch_consensus(circuit, SIGNERS)


async def test_the_circuits_end_ends_the_request() -> None:
    async with directory_circuit(lambda stream: stream.circuit.destroy()) as circuit:
        with pytest.raises(StreamClosed) as caught:
            await fetch_consensus(circuit, SIGNERS)
        assert isinstance(caught.value.__cause__, CircuitClosed)
