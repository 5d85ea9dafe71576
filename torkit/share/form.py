"""An upload as browsers send it, multipart/form-data: its files go to an inbox as they come. RFC 7578."""

import logging
from collections.abc import Callable
from typing import NamedTuple

from python_multipart.multipart import MultipartParser, parse_options_header

from torkit.share.inbox import Arrival, Inbox

# What is wrong with a form is told to whoever has sent it, and nobody else.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

# Implementation limits, of one upload.
MAX_FILES = 1000
MAX_HEADER_LEN = 8192  # bytes of one part's header


class BadForm(Exception):
    """What came is no form with files in it; the message says why, for people."""


class Received(NamedTuple):
    """A file that has been stored as a whole."""

    name: str
    size: int  # bytes


class Form:
    """Takes the body of one request, in pieces. `received` are the files that are whole.

    Methods may block. They raise BadForm, InboxFull and OSError, after which only `discard` may be called.
    """

    def __init__(self, content_type: str, inbox: Inbox, note: Callable[[str], None]) -> None:
        """`note` is told of the name of each file that begins."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise BadForm("this is no form with files in it")
        self._inbox = inbox
        self._note = note
        self.received: list[Received] = []
        self._arrival: Arrival | None = None
        self._is_whole = False
        self._headers: list[tuple[bytearray, bytearray]] = []
        self._header_len = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_begin": self._begin_header,
                "on_header_field": lambda data, start, end: self._read_header(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._read_header(1, data[start:end]),
                "on_headers_finished": self._begin_file,
                "on_part_data": self._read_data,
                "on_part_end": self._end_file,
                "on_end": self._end,
            },
        )

    def write(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except ValueError as error:  # the parser's own errors
            raise BadForm("this is no form as browsers send it") from error

    def finish(self) -> None:
        """Raises BadForm where the form has not come as a whole."""
        if not self._is_whole:
            raise BadForm("the upload was cut")

    def discard(self) -> None:
        """Remove the file that has not come as a whole, if there is one."""
        if self._arrival is not None:
            self._arrival.discard()
            self._arrival = None

    def _begin_part(self) -> None:
        self._headers.clear()
        self._header_len = 0

    def _begin_header(self) -> None:
        self._headers.append((bytearray(), bytearray()))

    def _read_header(self, which: int, data: bytes) -> None:
        self._header_len += len(data) + 1
        if self._header_len > MAX_HEADER_LEN:
            raise BadForm("a name in the form is too long")
        self._headers[-1][which].extend(data)

    def _begin_file(self) -> None:
        """A part without a file's name is another field, and an empty name is a field that was left empty."""
        disposition = next(
            (bytes(value) for field, value in self._headers if field.lower() == b"content-disposition"), b""
        )
        _, options = parse_options_header(disposition)
        name = options.get(b"filename", b"").decode("utf-8", "replace")
        if name:
            if len(self.received) == MAX_FILES:
                raise BadForm(f"a form may bring {MAX_FILES} files")
            self._arrival = self._inbox.begin(name)
            self._note(self._arrival.name)

    def _read_data(self, data: bytes, start: int, end: int) -> None:
        if self._arrival is not None:
            self._arrival.write(data[start:end])

    def _end_file(self) -> None:
        if self._arrival is not None:
            self.received.append(Received(self._arrival.finish(), self._arrival.size))
            self._arrival = None

    def _end(self) -> None:
        self._is_whole = True
