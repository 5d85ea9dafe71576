"""Front doors: the protocols that clients speak to the proxy."""

from typing import Protocol

from torkit.errors import TorkitError
from torkit.proto.request import Request


class FrontDoor(Protocol):
    """One client's conversation: bytes in, one request out, and the bytes that answer it. Connects nowhere.

    Another protocol is another class of this shape, handed to a listener (listener.py).
    """

    @property
    def request(self) -> Request | None:
        """The client's request once it is known: before the first byte, if the connection tells it."""

    def receive_data(self, data: bytes) -> Request | None:
        """Take the client's next bytes. Returns its request when that is complete.

        Raises TorkitError for a request that is not served. `data_to_send` then holds the answer, and the
        connection is closed after it.
        """

    def data_to_send(self) -> bytes:
        """Returns the bytes queued for the client since the last call."""

    @property
    def trailing_data(self) -> bytes:
        """The bytes behind the client's request: the first ones for the stream."""

    def give_up(self) -> None:
        """Queue a refusal for a client that took too long, in a form that it can read at this point."""

    def encode_grant(self) -> bytes:
        """Returns the answer to a CONNECT whose stream is connected."""

    def encode_answer(self, host: str) -> bytes:
        """Returns the answer to a look-up. Raises UsageError where the protocol has no room for it."""

    def encode_refusal(self, error: TorkitError) -> bytes:
        """Returns the answer to a request that failed with `error`. Empty where only a reset can tell."""
