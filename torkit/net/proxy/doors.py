"""What a front door is: the protocol that a client speaks to the proxy."""

from typing import Protocol

from torkit.errors import TorkitError
from torkit.proto.request import Request


class FrontDoor(Protocol):
    """One client's conversation: bytes in, one request out, and the bytes that answer it. Connects nowhere.

    Another protocol is another class of this shape, handed to a listener (listener.py).
    """

    @property
    def request(self) -> Request | None:
        """What the client wants, once that is known: before its first byte, where its connection tells."""

    def receive_data(self, data: bytes) -> Request | None:
        """Take the client's next bytes. Returns its request when that is complete.

        Raises TorkitError for what is not served: `data_to_send` then holds the answer, after which the
        connection is closed.
        """

    def data_to_send(self) -> bytes:
        """The bytes queued for the client since the last call."""

    @property
    def trailing_data(self) -> bytes:
        """What the client sent behind its request: the first bytes for the stream."""

    def give_up(self) -> None:
        """The client took too long: queue the refusal that it can read now."""

    def encode_grant(self) -> bytes:
        """Returns the answer to a CONNECT whose stream is connected."""

    def encode_answer(self, host: str) -> bytes:
        """Returns the answer to a look-up. Raises UsageError where the protocol has no room for it."""

    def encode_refusal(self, error: TorkitError) -> bytes:
        """Returns the answer to a request that failed with `error`. Without one, a reset has to tell."""
