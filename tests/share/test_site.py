"""torkit.share: pages, files and uploads, by HTTP over the Unix socket that an onion service leads to."""

import io
import os
import socket
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path

import httpx
import pytest
import trio
from waiting import until

pytest.importorskip("hypercorn")
pytest.importorskip("starlette")
pytest.importorskip("python_multipart")

from torkit.share import app as app_module
from torkit.share import server as server_module
from torkit.share.app import Downloads, Site, Uploads
from torkit.share.inbox import Inbox
from torkit.share.server import serving
from torkit.share.transfers import MAX_NEWS, Pieces, Transfers
from torkit.share.tree import Tree

LARGE = 4 << 20  # bytes, more than a socket holds
DATA = os.urandom(LARGE)
EVIL = '<img src=x onerror="alert(1)">&\N{RIGHT-TO-LEFT OVERRIDE}.txt'


@asynccontextmanager
async def client_of(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(site) as path:
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://x.onion", timeout=30) as client:
            yield client


@asynccontextmanager
async def downloads(path: Path, *, once: bool = False) -> AsyncIterator[tuple[httpx.AsyncClient, Downloads]]:
    tree = Tree(path)
    site = Downloads(tree, Transfers(), once=once)
    async with client_of(site) as client:
        yield client, site
    tree.close()


@asynccontextmanager
async def uploads(
    path: Path, max_bytes: int = 1 << 20, *, once: bool = False
) -> AsyncIterator[tuple[httpx.AsyncClient, Uploads]]:
    inbox = Inbox(path, max_bytes)
    site = Uploads(inbox, Transfers(), once=once)
    async with client_of(site) as client:
        yield client, site
    inbox.close()


async def raw(path: Path, request: bytes) -> bytes:
    """What a visitor gets who sends these bytes, and then nothing more."""
    with trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.connect(str(path))
        stream = trio.SocketStream(sock)
        try:
            await stream.send_all(request)
            return b"".join([data async for data in stream])
        except trio.BrokenResourceError:
            return b""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("secret")
    place = tmp_path / "my files"
    (place / "sub dir").mkdir(parents=True)
    (place / "large").write_bytes(DATA)
    (place / EVIL).write_text("evil")
    (place / "sub dir" / "a b.txt").write_text("in sub")
    (place / "out").symlink_to(tmp_path / "secret")
    Path(os.fsdecode(os.fsencode(place) + b"/\xff")).write_text("no utf-8")
    return place


async def test_a_page_names_what_there_is(place: Path) -> None:
    async with downloads(place) as (client, _):
        page = await client.get("/")
        assert page.status_code == 200
        assert '<a href="./large"><bdi>large</bdi></a><td>4.0 MiB' in page.text
        assert '<a href="./sub%20dir/"><bdi>sub dir</bdi>/</a>' in page.text
        assert "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;\N{REPLACEMENT CHARACTER}.txt" in page.text
        assert "<img" not in page.text
        assert "<script" not in page.text
        assert '<a href="./%FF">' in page.text
        assert "out" not in page.text.partition("<h1>")[2]
        assert (await client.get("/%FF")).text == "no utf-8"
        below = await client.get("/sub%20dir/")
        assert '<a href="../">..</a>' in below.text
        assert '<a href="./a%20b.txt">' in below.text
        moved = await client.get("/sub%20dir")
        assert (moved.status_code, moved.headers["location"]) == (307, "./sub%20dir/")


async def test_headers_tell_browsers_to_run_nothing_and_nobody_who_serves(place: Path) -> None:
    async with downloads(place) as (client, _):
        for path in ("/", "/large", "/nothing", "/?zip"):
            answer = await client.get(path)
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert not {"server", "date", "last-modified", "set-cookie"} & set(answer.headers)
        file = await client.get("/" + EVIL.replace("%", "%25").replace("&", "%26"))
        assert file.headers["content-type"] == "application/octet-stream"
        assert file.headers["content-disposition"].startswith("attachment; filename*=utf-8''%3Cimg")


async def test_a_file_comes_whole_or_in_ranges(place: Path) -> None:
    async with downloads(place) as (client, site):
        whole = await client.get("/large")
        assert whole.content == DATA
        assert whole.headers["accept-ranges"] == "bytes"
        etag = whole.headers["etag"]
        for asked, start, end in (
            ("0-0", 0, 1),
            ("100-", 100, LARGE),
            ("-7", LARGE - 7, LARGE),
            ("5-9", 5, 10),
        ):
            part = await client.get("/large", headers={"range": f"bytes={asked}", "if-range": etag})
            assert (part.status_code, part.content) == (206, DATA[start:end])
            assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{LARGE}"
        changed = formatdate((place / "large").stat().st_mtime, usegmt=True)  # which is told to nobody
        for guess in ('"other"', changed):
            other = await client.get("/large", headers={"range": "bytes=1-", "if-range": guess})
            assert (other.status_code, len(other.content)) == (200, LARGE)
        several = await client.get("/large", headers={"range": "bytes=0-1,5-6"})
        assert (several.status_code, len(several.content)) == (200, LARGE)
        beyond = await client.get("/large", headers={"range": f"bytes={LARGE}-"})
        assert beyond.status_code == 416
        head = await client.head("/large")
        assert (head.headers["content-length"], head.content) == (str(LARGE), b"")
        assert list(site.transfers.news)[:2] == [
            "large: 4.0 MiB of 4.0 MiB, sent",
            "large: 1 B of 1 B, sent",
        ]
        assert site.transfers.active == []


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/nothing",
            "/out",
            "/../secret",
            "/%2e%2e/secret",
            "/..%2fsecret",
            "/sub%20dir/../../secret",
            "//",
        ),
        *(
            "/large/",
            "/large/x",
            "/.",
            "//large",
            "/%00",
            "/" + "x" * 300,
            "/" + "a/" * 2000,
            "http://x/large",
        ),
    ],
)
async def test_other_paths_lead_nowhere(place: Path, target: str) -> None:
    site = Downloads(Tree(place), Transfers(), once=False)
    async with serving(site) as path:
        request = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await raw(path, request.encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"secret" not in answer


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * (1 << 20),
        b"GET /" + b"x" * (1 << 17) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000,
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: !\r\nConnection: upgrade\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /?\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /large HTTP/1.1\r\nHost: x\r\nRange: bytes=" + b"9" * 5000 + b"-\r\n\r\n",
        b"GET /large HTTP/1.1\r\nHost: x\r\nRange: bytes=\xb2-\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551616\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01" + b"x" * 500,
        *(bytes([n]) * 3000 for n in (0, 10, 13, 32, 255)),
    ],
)
async def test_a_bad_request_ends_its_connection_and_no_other(
    place: Path, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    tree = Tree(place)
    site = Downloads(tree, Transfers(), once=False)
    async with serving(site) as path:
        with trio.socket.socket(socket.AF_UNIX) as sock:
            await sock.connect(str(path))
            stream = trio.SocketStream(sock)
            try:
                await stream.send_all(request_)
                await stream.send_eof()
                answer = b"".join([data async for data in stream])
            except trio.BrokenResourceError:
                answer = b""
        assert b"Traceback" not in answer
        request = b"GET /sub%20dir/a%20b.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await raw(path, request)).endswith(b"in sub")
    assert caplog.records == []  # or visitors could fill a terminal
    tree.close()


async def test_other_methods_are_refused(place: Path, tmp_path: Path) -> None:
    async with downloads(place) as (client, _):
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
            assert (await client.request(method, "/large")).status_code == 405
    assert (place / "large").read_bytes() == DATA


async def test_all_of_it_comes_as_a_zip_file(place: Path) -> None:
    async with downloads(place) as (client, site):
        answer = await client.get("/?zip")
        assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''my%20files.zip"
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        assert archive.testzip() is None
        assert set(archive.namelist()) == {"large", EVIL, "sub dir/a b.txt", "\N{REPLACEMENT CHARACTER}"}
        assert archive.read("large") == DATA
        assert archive.getinfo("large").date_time == (1980, 1, 1, 0, 0, 0)
        await until(lambda: "my files.zip: 4.0 MiB, sent" in site.transfers.news)
        assert (await client.head("/?zip")).content == b""


async def test_a_file_that_ends_early_is_cut_and_one_that_grows_is_not(place: Path) -> None:
    async with downloads(place) as (client, site):

        async def get_while(path: str, change: Callable[[], None]) -> bytes:
            """What comes, while something changes when a quarter has come."""
            received = b""
            async with client.stream("GET", path) as answer:
                async for piece in answer.aiter_bytes():
                    if len(received) < LARGE // 4 <= len(received) + len(piece):
                        change()
                    received += piece
            return received

        def grow() -> None:
            with (place / "large").open("ab") as file:
                file.write(b"more")

        for path in ("/large", "/?zip"):
            (place / "large").write_bytes(DATA)
            with pytest.raises(httpx.RemoteProtocolError):
                await get_while(path, lambda: os.truncate(place / "large", LARGE // 2))
            await until(lambda: not site.transfers.active)
            assert site.transfers.news.pop().endswith(", then cut")
        (place / "large").write_bytes(DATA)
        assert await get_while("/large", grow) == DATA
        await until(lambda: not site.transfers.active)
        assert list(site.transfers.news) == ["large: 4.0 MiB of 4.0 MiB, sent"]


async def test_a_file_that_is_replaced_meanwhile_comes_as_it_was(place: Path) -> None:
    async with downloads(place) as (client, _), client.stream("GET", "/large") as answer:
        (place / "large").unlink()
        (place / "large").symlink_to("../secret")
        assert b"".join([piece async for piece in answer.aiter_bytes()]) == DATA
        assert (await client.get("/large")).status_code == 404


@pytest.mark.parametrize("target", ["/large", "/?zip"])
async def test_a_visitor_who_leaves_has_not_got_all(place: Path, target: str) -> None:
    tree = Tree(place)
    site = Downloads(tree, Transfers(), once=True)
    async with serving(site) as path:
        with trio.socket.socket(socket.AF_UNIX) as sock:
            await sock.connect(str(path))
            await trio.SocketStream(sock).send_all(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await until(lambda: site.transfers.active and site.transfers.active[0].done)
        await until(lambda: not site.transfers.active)
        assert site.transfers.news.pop().endswith(", then cut")
        assert not site.whole.is_set()
    tree.close()


async def test_connections_that_are_left_take_nothing(place: Path) -> None:
    tree = Tree(place)
    before = len(os.listdir("/proc/self/fd"))
    async with serving(Downloads(tree, Transfers(), once=False)) as path:
        for request in (b"", b"GET /la", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
            for _ in range(50):
                with trio.socket.socket(socket.AF_UNIX) as sock:
                    await sock.connect(str(path))
                    await sock.send(request)
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)  # the listener, and this look
    tree.close()


async def test_a_visitor_who_takes_nothing_is_given_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STALL_TIMEOUT", 0.1)
    tree = Tree(place)
    site = Downloads(tree, Transfers(), once=True)
    async with serving(site) as path:
        with trio.socket.socket(socket.AF_UNIX) as sock:
            await sock.connect(str(path))
            await sock.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: site.transfers.news)
            assert site.transfers.news[0].endswith(", then cut")
    tree.close()


async def test_so_many_at_once_and_no_more(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "MAX_REQUESTS", 1)
    async with downloads(place) as (client, site):
        async with client.stream("GET", "/large"):
            await until(lambda: site.transfers.active)
            assert (await client.get("/")).status_code == 503
        await until(lambda: not site.transfers.active)
        assert (await client.get("/")).status_code == 200


# --- once -----------------------------------------------------------------------------------------------


async def test_one_file_is_fetched_once(place: Path) -> None:
    async with downloads(place / "large", once=True) as (client, site):
        assert (await client.get("/")).status_code == 200
        assert (await client.head("/large")).status_code == 200
        await client.get("/large", headers={"range": f"bytes=0-{LARGE // 2}"})
        assert not site.whole.is_set()
        await client.get("/large", headers={"range": f"bytes={LARGE // 2}-"})
        await until(site.whole.is_set)
        gone = await client.get("/large")
        assert (gone.status_code, "not any more" in gone.text) == (410, True)
        site.go_on()
        assert (await client.get("/large")).content == DATA
        await until(site.whole.is_set)


async def test_a_download_that_was_cut_may_go_on_where_it_was(place: Path) -> None:
    tree = Tree(place / "large")
    site = Downloads(tree, Transfers(), once=True)
    async with serving(site) as path:
        with trio.socket.socket(socket.AF_UNIX) as sock:
            await sock.connect(str(path))
            stream = trio.SocketStream(sock)
            await stream.send_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            got = b""
            while len(got) < LARGE // 2:
                got += await stream.receive_some()
        await until(lambda: not site.transfers.active)
        assert not site.whole.is_set()
        start = len(got.partition(b"\r\n\r\n")[2])
        rest = await raw(
            path, b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: bytes=%d-\r\n\r\n" % start
        )
        assert rest.endswith(DATA[start:])
        await until(site.whole.is_set)
    tree.close()


async def test_a_directory_is_fetched_once_when_all_of_it_is(place: Path) -> None:
    async with downloads(place / "sub dir", once=True) as (client, site):
        (place / "sub dir" / "empty").touch()
        (place / "sub dir" / "two").write_text("2")
        await client.get("/two")
        assert not site.whole.is_set()
        (place / "sub dir" / "two").write_text("22")  # which is another file
        await client.get("/a%20b.txt")
        assert not site.whole.is_set()
        await client.get("/two")
        await until(site.whole.is_set)
        site.go_on()
        await client.get("/?zip")
        await until(site.whole.is_set)


async def test_an_empty_file_can_be_fetched_once(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    async with downloads(tmp_path / "empty", once=True) as (client, site):
        assert (await client.get("/empty")).content == b""
        await until(site.whole.is_set)


def test_pieces_of_a_file_make_it_whole() -> None:
    pieces = Pieces()
    assert pieces.is_whole(0)
    for start, end, is_whole in (
        *((0, 3, False), (5, 10, False), (4, 4, False), (3, 4, False), (2, 6, True), (0, 10, True)),
    ):
        pieces.add(start, end)
        assert pieces.is_whole(10) == is_whole
    assert not pieces.is_whole(11)
    apart = Pieces()
    for start in range(0, 10_000, 2):
        apart.add(start, start + 1)
    apart.add(0, 10_000)
    assert apart.is_whole(10_000)


def test_no_flood_of_visitors_floods_the_terminal() -> None:
    transfers = Transfers()
    for number in range(100):
        transfers.tell(str(number))
    assert (len(transfers.news), transfers.silenced) == (MAX_NEWS, 100 - MAX_NEWS)


# --- uploads --------------------------------------------------------------------------------------------


async def test_files_are_received(tmp_path: Path) -> None:
    async with uploads(tmp_path, 8 << 20) as (client, site):
        form = await client.get("/")
        assert "Up to 8.0 MiB" in form.text
        assert 'enctype="multipart/form-data"' in form.text
        files = [("file", ("large", DATA)), ("file", (EVIL, b"evil"))]
        answer = await client.post("/", files=files)
        assert answer.status_code == 200
        assert "<td><bdi>large</bdi><td>4.0 MiB" in answer.text
        assert "<img" not in answer.text
        assert (tmp_path / "large").read_bytes() == DATA
        assert list(site.transfers.news) == [
            "large: 4.0 MiB, received",
            "<img src=x onerror=%22alert(1)%22>&_.txt: 4 B, received",
        ]
        assert (await client.get("/large")).status_code == 404
        small = await client.post("/large", files={"file": ("a", b"a")})
        assert small.status_code == 404
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("is_announced", [True, False])
async def test_what_is_too_large_is_refused_and_leaves_nothing(tmp_path: Path, is_announced: bool) -> None:
    async with uploads(tmp_path, 1 << 20) as (client, _):
        request = client.build_request("POST", "/", files={"file": ("large", DATA)})
        body = request.read()

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 1 << 16):
                yield body[at : at + (1 << 16)]

        headers = {"content-type": request.headers["content-type"]}
        content = body if is_announced else pieces()
        answer = await client.post("/", content=content, headers=headers)
        assert answer.status_code == 413
        assert "no room" in answer.text
        assert list(tmp_path.iterdir()) == []
        assert (await client.post("/", files={"file": ("small", b"x")})).status_code == 200


async def test_an_upload_that_is_cut_leaves_nothing(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, 1 << 30)
    site = Uploads(inbox, Transfers(), once=True)
    async with serving(site) as path:
        with trio.socket.socket(socket.AF_UNIX) as sock:
            await sock.connect(str(path))
            stream = trio.SocketStream(sock)
            head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n"
            head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            head += '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            await stream.send_all(head.encode() + bytes(100_000))
            await until(lambda: list(tmp_path.iterdir()))
            assert [path.name[:8] for path in tmp_path.iterdir()] == [".torkit-"]
            assert site.transfers.active[0].name == "a"
        await until(lambda: not site.transfers.active)
        assert list(tmp_path.iterdir()) == []
        assert inbox.taken == 0
        assert not site.whole.is_set()
    inbox.close()


async def test_a_silent_upload_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "IDLE_TIMEOUT", 0.1)
    monkeypatch.setattr(app_module, "DRAIN_TIMEOUT", 0.1)
    inbox = Inbox(tmp_path, 1 << 30)
    async with serving(Uploads(inbox, Transfers(), once=False)) as path:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n"
        head += b"Content-Type: multipart/form-data; boundary=b\r\n"
        answer = await raw(path, head + b"\r\n--b\r\n")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert list(tmp_path.iterdir()) == []
    inbox.close()


@pytest.mark.parametrize("kind", ["multipart/form-data", "text/plain", "multipart/form-data; boundary=other"])
async def test_what_is_no_form_is_refused(tmp_path: Path, kind: str) -> None:
    async with uploads(tmp_path) as (client, _):
        answer = await client.post("/", content=b"x" * 1000, headers={"content-type": kind})
        assert answer.status_code == 400
        empty = await client.post("/", files={"file": ("", b"")})
        assert (empty.status_code, "No file" in empty.text) == (400, True)
    assert list(tmp_path.iterdir()) == []


async def test_so_many_upload_at_once_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "MAX_UPLOADS", 0)
    async with uploads(tmp_path) as (client, _):
        assert (await client.post("/", files={"file": ("a", b"a")})).status_code == 503
        assert (await client.get("/")).status_code == 200


async def test_one_upload_may_be_the_only_one(tmp_path: Path) -> None:
    async with uploads(tmp_path, once=True) as (client, site):
        assert (await client.post("/", files={"file": ("", b"")})).status_code == 400
        assert not site.whole.is_set()
        assert (await client.post("/", files={"file": ("a", b"a")})).status_code == 200
        await until(site.whole.is_set)
        assert (await client.post("/", files={"file": ("b", b"b")})).status_code == 410


# --- the socket -----------------------------------------------------------------------------------------


async def test_nobody_else_reaches_the_socket_and_it_goes_with_the_site(place: Path) -> None:
    tree = Tree(place)
    async with serving(Downloads(tree, Transfers(), once=False)) as path:
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.is_socket()
    assert not path.parent.exists()
    tree.close()
