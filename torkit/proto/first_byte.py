"""One port for SOCKS4, SOCKS5 and HTTP: the first byte tells which."""

from torkit.errors import TorkitError
from torkit.proto.http import Http
from torkit.proto.request import Request
from torkit.proto.socks import Handshake


class AnyProtocol:
    """A front door that becomes the one that its client speaks: SOCKS's unless the first byte is a letter.

    `asks_credentials` is HTTP's; clients of SOCKS5 that have some always give them.
    """

    def __init__(self, *, asks_credentials: bool = False) -> None:
        self._asks_credentials = asks_credentials
        self.chosen: Handshake | Http | None = None

    @property
    def request(self) -> Request | None:
        return None if self.chosen is None else self.chosen.request

    @property
    def trailing_data(self) -> bytes:
        return b"" if self.chosen is None else self.chosen.trailing_data

    def receive_data(self, data: bytes) -> Request | None:
        if self.chosen is None:
            is_http = data[:1].isalpha()
            self.chosen = Http(asks_credentials=self._asks_credentials) if is_http else Handshake()
        return self.chosen.receive_data(data)

    def data_to_send(self) -> bytes:
        return self._door.data_to_send()

    def give_up(self) -> None:
        self._door.give_up()

    def encode_grant(self) -> bytes:
        return self._door.encode_grant()

    def encode_answer(self, host: str) -> bytes:
        return self._door.encode_answer(host)

    def encode_refusal(self, error: TorkitError) -> bytes:
        return self._door.encode_refusal(error)

    @property
    def _door(self) -> Handshake | Http:
        """The front door that was chosen; SOCKS's where no byte has come (C tor answers so)."""
        if self.chosen is None:
            self.chosen = Handshake()
        return self.chosen
