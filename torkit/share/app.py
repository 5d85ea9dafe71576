"""Answers to requests: Starlette's, with what every answer says added, and what it would betray taken away.

An answer is cut, so that nobody takes it for whole, where a file ends too early or a visitor leaves.
"""

import errno
import hashlib
import hmac
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import ExitStack, aclosing
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response, StreamingResponse

from torkit.errors import InternalError, OutOfResources
from torkit.net.shortage import run_in_thread
from torkit.share import pages
from torkit.share.archive import zip_of
from torkit.share.form import BadForm, Form
from torkit.share.inbox import Inbox, InboxFull
from torkit.share.transfers import Pieces, Transfer, Transfers
from torkit.share.tree import Found, Tree
from torkit.sizes import to_size

# ASGI's, as Starlette has them.
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = Callable[[Scope, Receive, Send], Awaitable[None]]

# Implementation limits.
MAX_REQUESTS = 64  # answered at once
MAX_UPLOADS = 8  # at once, among them
IDLE_TIMEOUT = 60.0  # seconds that an upload may bring nothing
DRAIN_TIMEOUT = 3.0  # seconds for which an upload that is refused is read: a browser that sends hears nothing
FORM_ALLOWANCE = 1 << 20  # bytes of a form that are no file

HEADERS = [
    (b"content-security-policy", pages.POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
# When a file was changed is nobody's business; its ETag says whether it was.
UNTOLD = {b"last-modified"}

logger = logging.getLogger(__name__)


class Refused(Exception):
    """A request that gets a page with a reason instead."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Cut(Exception):
    """An answer that must not look whole."""


class Site:
    """An ASGI application. `whole` is set once something has been fetched, or received, as a whole.

    Then nothing more is answered until `go_on`, if this is to be `once`.
    """

    methods: tuple[str, ...] = ("GET", "HEAD")

    def __init__(self, transfers: Transfers, *, once: bool) -> None:
        self.transfers = transfers
        self.whole = trio.Event()
        self._once = once
        self._count = 0

    def go_on(self) -> None:
        """Answer again, after `whole`."""
        self.whole = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await self._answer(scope, receive, _with_headers(send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._count += 1
        try:
            try:
                answer = await self._choose(Request(scope, receive))
            except (Refused, OSError, OutOfResources) as error:
                answer = self._sorry(error)
            await answer(scope, receive, send)
        except (Cut, ClientDisconnect, OSError) as error:
            logger.info("an answer was cut: %s", error)
            raise
        except Exception as error:
            logger.warning("%s", InternalError.ending("a request", error))
            raise
        finally:
            self._count -= 1

    async def _choose(self, request: Request) -> Answer:
        if self._count > MAX_REQUESTS:
            raise Refused(503, "Too many are here at once. Please come again in a while.")
        if request.scope["http_version"] not in ("1.0", "1.1"):
            raise Refused(505, "This page speaks HTTP/1.1.")
        if self._once and self.whole.is_set():
            raise Refused(410, "This was here once, and is not any more.")
        if request.method not in self.methods:
            raise Refused(405, "This is not possible here.")
        path: bytes = request.scope["raw_path"]
        if not path.startswith(b"/"):
            raise Refused(404, "There is nothing of this name.")
        *names, last = [os.fsdecode(name) for name in unquote_to_bytes(path[1:]).split(b"/")]
        return await self.choose(request, [*names, last] if last else names, is_directory=not last)

    def _sorry(self, error: Exception) -> Answer:
        """The page for a request that cannot be answered."""
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, Refused):
            status, text = error.status, str(error)
        elif number in (errno.EACCES, errno.EPERM):
            status, text = 403, "This cannot be read."
        elif number in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            status, text = 404, "There is nothing of this name."
        else:
            self.transfers.tell(f"a request fails: {getattr(error, 'strerror', None) or error}")
            status, text = 503, "This is not possible now."
        return _page(pages.sorry("Sorry", text), status)

    async def choose(self, request: Request, names: list[str], *, is_directory: bool) -> Answer:
        """The answer to one request for what is at `names`. Raises Refused, OSError."""
        raise NotImplementedError


# --- what is shared ---------------------------------------------------------------------------------------


class Downloads(Site):
    """A tree, as pages, as files, and as one zip file."""

    def __init__(self, tree: Tree, transfers: Transfers, *, once: bool) -> None:
        super().__init__(transfers, once=once)
        self._tree = tree
        self._secret = os.urandom(32)  # or an ETag would tell when a file was changed
        self._fetched: dict[tuple[str, ...], tuple[str, Pieces]] = {}

    async def choose(self, request: Request, names: list[str], *, is_directory: bool) -> Answer:
        if not is_directory:
            found = await run_in_thread(self._tree.open, names)
            if not found.is_directory:
                return _FileAnswer(self, tuple(names), found)
            os.close(found.handle)
            # Below what has been asked for, so on this site.
            moved: Answer = RedirectResponse("./" + quote(os.fsencode(names[-1]), safe="") + "/")
            return moved
        entries = await run_in_thread(self._tree.entries, names)
        if (
            self._tree.is_directory
            and not names
            and request.scope["query_string"] == pages.ZIP_QUERY.encode()
        ):
            return self._zip
        has_zip = self._tree.is_directory and not names
        return _page(pages.listing(self._tree.name, names, entries, has_zip=has_zip))

    def etag(self, status: os.stat_result) -> str:
        identity = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}".encode()
        return f'"{hmac.new(self._secret, identity, hashlib.sha256).hexdigest()[:32]}"'

    def note_sent(self, path: tuple[str, ...], found: Found, start: int, end: int) -> None:
        """Note bytes of one file, from `start` up to `end`. Whoever lacks some asks for them again."""
        if self._once:
            version = self.etag(found.status)
            if path not in self._fetched or self._fetched[path][0] != version:
                self._fetched[path] = version, Pieces()
            self._fetched[path][1].add(start, end)

    async def check_whole(self, path: tuple[str, ...], found: Found) -> None:
        """Set `whole` if everything has been sent, now that what somebody asked for of one file has been."""
        if not self._once or not self._fetched[path][1].is_whole(found.status.st_size):
            return
        if not self._tree.is_directory or await run_in_thread(self._has_all):
            self.whole.set()

    def _has_all(self) -> bool:
        nothing = Pieces()
        return all(
            self._fetched.get(path, ("", nothing))[1].is_whole(size) for path, size in self._tree.walk()
        )

    async def _zip(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = f"{pages.to_text(self._tree.name)}.zip"
        headers = {"content-disposition": f"attachment; filename*=utf-8''{quote(name)}"}
        with self.transfers.under_way(name, None) as transfer:

            async def pieces() -> AsyncGenerator[bytes]:
                async with aclosing(zip_of(self._tree)) as made:
                    async for piece in made:
                        yield piece
                        transfer.done += len(piece)

            if scope["method"] == "HEAD":
                await Response(headers=headers, media_type="application/zip")(scope, receive, send)
                return
            async with aclosing(pieces()) as body:
                response = StreamingResponse(body, headers=headers, media_type="application/zip")
                await response(scope, _hear_nothing, send)
            self.transfers.tell(f"{transfer}, sent")
        if self._once:
            self.whole.set()


class _FileAnswer:
    """A file, or one range of it, by Starlette's FileResponse; ends its transfer with it."""

    def __init__(self, site: Downloads, path: tuple[str, ...], found: Found) -> None:
        self._site = site
        self._path = path
        self._found = found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with ExitStack() as stack:
                await self._send(scope, receive, _Sending(self, scope, send, stack))
        finally:
            os.close(self._found.handle)

    async def _send(self, scope: Scope, receive: Receive, sending: "_Sending") -> None:
        etag = self._site.etag(self._found.status)
        # The descriptor's own name: the file is the one that was looked at, whatever has its path by now.
        response = FileResponse(
            f"/proc/self/fd/{self._found.handle}",
            # An If-Range that guesses when the file was changed must not be told that it is right.
            headers={"etag": etag, "last-modified": etag},
            media_type="application/octet-stream",
            filename=pages.to_text(self._path[-1]),
            stat_result=self._found.status,
        )
        try:
            await response(_with_one_range(scope), _hear_nothing, sending)
        finally:
            if sending.transfer is not None:
                end = sending.start + sending.transfer.done
                self._site.note_sent(self._path, self._found, sending.start, end)
        if sending.transfer is not None:
            self._site.transfers.tell(f"{sending.transfer}, sent")
            await self._site.check_whole(self._path, self._found)

    def begin(self, stack: ExitStack, total: int) -> Transfer:
        name = pages.to_text("/".join(self._path))
        return stack.enter_context(self._site.transfers.under_way(name, total))


class _Sending:
    """Passes on what FileResponse sends: as many bytes as it has announced, whatever becomes of the file."""

    def __init__(self, answer: _FileAnswer, scope: Scope, send: Send, stack: ExitStack) -> None:
        self._answer = answer
        self._has_body = scope["method"] == "GET"
        self._send = send
        self._stack = stack
        self._left = 0
        self.start = 0  # where in the file it begins
        self.transfer: Transfer | None = None  # None where no part of the file is sent
        self.is_done = False

    async def __call__(self, message: Message) -> None:
        if self.is_done:
            return
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            if self._has_body and message["status"] in (200, 206):
                self._left = int(headers[b"content-length"])
                if message["status"] == 206:  # bytes 0-499/1234
                    self.start = int(headers[b"content-range"].split()[1].split(b"-")[0])
                self.transfer = self._answer.begin(self._stack, self._left)
        elif self.transfer is not None:
            body = message.get("body", b"")[: self._left]
            if len(body) < self._left and not message.get("more_body"):
                raise Cut("a file has become shorter while it was sent")
            self._left -= len(body)
            await self._send({**message, "body": body, "more_body": self._left > 0})
            self.transfer.done += len(body)
            self.is_done = self._left == 0
            return
        else:
            self.is_done = not message.get("more_body")
        await self._send(message)


async def _hear_nothing() -> Message:
    """What is given to Starlette, which otherwise cancels what Hypercorn has to do at the end of an answer.

    Where a visitor leaves, all is cancelled by server.py.
    """
    await trio.sleep_forever()


def _with_one_range(scope: Scope) -> Scope:
    """Without a Range that asks for several, which a server need not heed. RFC 9110, 14.2."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"range" or b"," not in value]
    return {**scope, "headers": headers}


# --- what is received ------------------------------------------------------------------------------------


class Uploads(Site):
    """A form, and what it sends."""

    methods = ("GET", "HEAD", "POST")

    def __init__(self, inbox: Inbox, transfers: Transfers, *, once: bool) -> None:
        super().__init__(transfers, once=once)
        self._inbox = inbox
        self._upload_count = 0

    async def choose(self, request: Request, names: list[str], *, is_directory: bool) -> Answer:
        if names:
            raise Refused(404, "There is nothing of this name.")
        if request.method != "POST":
            return _page(pages.upload(self._inbox.left))
        if self._upload_count >= MAX_UPLOADS:
            raise Refused(503, "Too many send files at once. Please come again in a while.")
        self._upload_count += 1
        try:
            async with aclosing(request.stream()) as body:
                return await self._receive(request, body)
        finally:
            self._upload_count -= 1

    async def _receive(self, request: Request, body: AsyncGenerator[bytes]) -> Answer:
        told = request.headers.get("content-length", "")
        length = int(told) if told.isascii() and told.isdigit() else None
        try:
            if length is not None and length > self._inbox.left + FORM_ALLOWANCE:
                raise InboxFull("there is no room for so much")
            with self.transfers.under_way("an upload", length) as transfer:
                form = Form(request.headers.get("content-type", ""), self._inbox, transfer.rename)
                try:
                    await self._read(form, body, transfer)
                finally:
                    form.discard()
        except (BadForm, InboxFull, OSError) as error:
            with trio.move_on_after(DRAIN_TIMEOUT):
                async for _ in body:
                    pass
            raise self._refusal(error) from error
        for one in form.received:
            self.transfers.tell(f"{pages.to_text(one.name)}: {to_size(one.size)}, received")
        if not form.received:
            raise Refused(400, "No file was chosen.")
        if self._once:
            self.whole.set()
        return _page(pages.thanks(form.received))

    def _refusal(self, error: Exception) -> Refused:
        """What a visitor is told of an upload that failed."""
        if isinstance(error, BadForm):
            return Refused(400, f"{str(error).capitalize()}.")
        if isinstance(error, InboxFull):
            return Refused(413, f"{str(error).capitalize()}.")
        self.transfers.tell(f"an upload cannot be stored: {getattr(error, 'strerror', None) or error}")
        return Refused(507, "This cannot be stored now.")

    async def _read(self, form: Form, body: AsyncGenerator[bytes], transfer: Transfer) -> None:
        while True:
            with trio.move_on_after(IDLE_TIMEOUT) as waiting:
                data = await anext(body, None)
            if waiting.cancelled_caught:
                raise Refused(408, "Nothing came for a minute.")
            if data is None:
                form.finish()
                return
            await run_in_thread(form.write, data)
            transfer.done += len(data)


# --- of all answers --------------------------------------------------------------------------------------


def _page(text: str, status: int = 200) -> Answer:
    page: Answer = HTMLResponse(text, status, {"cache-control": "no-store"})
    return page


def _with_headers(send: Send) -> Send:
    """Adds HEADERS to what is sent, and leaves out UNTOLD."""

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            told = [(name, value) for name, value in message["headers"] if name.lower() not in UNTOLD]
            message = {**message, "headers": [*told, *HEADERS]}
        await send(message)

    return send_more
