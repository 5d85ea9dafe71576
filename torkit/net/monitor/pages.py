"""A small HTTP server: GET and HEAD of a few pages, an answer to each connection, then its end."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from typing import NamedTuple, NoReturn

import trio

# Implementation limits.
MAX_CONNECTIONS = 16  # connections at once; further ones are closed
MAX_HEAD_LEN = 8192  # bytes of a request's lines
REQUEST_TIMEOUT = 10.0  # seconds for a request to come
ANSWER_TIMEOUT = 30.0  # seconds for an answer to be made and sent
READ_SIZE = 4096

TEXT = "text/plain; charset=utf-8"

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    status: int
    body: bytes
    content_type: str = TEXT


Page = Callable[[], Awaitable[Answer]]


async def serve_pages(
    listeners: Sequence[trio.SocketListener], pages: Mapping[str, Page], *, any_host: bool = False
) -> NoReturn:
    """Serve these pages, by path, until cancelled.

    Without `any_host` a request that names another host than localhost or an address is refused: a web page
    whose name leads to this machine could read the answers otherwise.
    """
    server = _Server(pages, any_host=any_host)
    await trio.serve_listeners(server.serve, list(listeners))


class _Server:
    def __init__(self, pages: Mapping[str, Page], *, any_host: bool) -> None:
        self._pages = pages
        self._any_host = any_host
        self._count = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection. Its failures do not touch others."""
        self._count += 1
        try:
            async with stream:
                if self._count <= MAX_CONNECTIONS:
                    await self._converse(stream)
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass  # the client has left, or is silent
        finally:
            self._count -= 1

    async def _converse(self, stream: trio.SocketStream) -> None:
        import h11

        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_LEN)
        headers: list[tuple[str, str]] = []
        is_head = False
        try:
            with trio.fail_after(REQUEST_TIMEOUT):
                while (event := connection.next_event()) is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(READ_SIZE))
        except h11.RemoteProtocolError as error:
            answer = self._plain(error.error_status_hint)
        else:
            if not isinstance(event, h11.Request):
                return  # the client has closed without a request
            is_head = event.method == b"HEAD"
            with trio.fail_after(ANSWER_TIMEOUT):
                answer = await self._answer(event.method, event.target, dict(event.headers).get(b"host"))
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append(("Allow", "GET, HEAD"))
        headers += [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ]
        data = connection.send(h11.Response(status_code=answer.status, headers=headers)) or b""
        with trio.fail_after(ANSWER_TIMEOUT):
            await stream.send_all(data if is_head else data + answer.body)
            await stream.send_eof()

    async def _answer(self, method: bytes, target: bytes, host: bytes | None) -> Answer:
        page = self._pages.get(target.partition(b"?")[0].decode("latin-1"))
        if not self._any_host and not _is_this_machine(host):
            return self._plain(HTTPStatus.MISDIRECTED_REQUEST)
        if page is None:
            return self._plain(HTTPStatus.NOT_FOUND)
        if method not in (b"GET", b"HEAD"):
            return self._plain(HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            return await page()
        except Exception as error:
            logger.warning("a page could not be made: %s", type(error).__name__)
            return self._plain(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _plain(self, status: int) -> Answer:
        """Returns a status in words; for an unknown page, with the list of pages."""
        text = HTTPStatus(status).phrase
        if status == HTTPStatus.NOT_FOUND:
            text += f"; there are {', '.join(self._pages)}"
        return Answer(status, f"{text}\n".encode())


def _is_this_machine(host: bytes | None) -> bool:
    """Returns whether a Host field holds an address or localhost, or there is none, as in HTTP/1.0."""
    if host is None:
        return True
    name = host.decode("latin-1")
    if not name.endswith("]"):
        name = name.rpartition(":")[0] or name
    try:
        return name.lower() == "localhost" or bool(ip_address(name.strip("[]")))
    except ValueError:
        return False
