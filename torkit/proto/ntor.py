"""What we ask of a relay in the message of an ntor-v3 handshake, and what it answers: extensions."""

from collections.abc import Iterable
from enum import IntEnum
from functools import cache

from torkit._fast.cells import Reader
from torkit.errors import CircuitError, UsageError

# Specification constants.
SUBPROTOCOL_RELAY = 2  # the number of "Relay" in a subprotocol request
RELAY_NEGOTIATES_CGO = 6  # Relay=6, "Counter Galois Onion"


class ExtensionType(IntEnum):
    """EXT_FIELD_TYPE. Proposal 324, "How to negotiate"; proposal 346."""

    CC_REQUEST = 1
    CC_RESPONSE = 2
    SUBPROTOCOL_REQUEST = 3


class CircuitRequest:
    """The wishes of an ntor-v3 handshake. A relay refuses a wish that it does not advertise."""

    def __init__(self, *, congestion_control: bool = False, cgo: bool = False) -> None:
        """`congestion_control` needs FlowCtrl=2, `cgo` Relay=5 and Relay=6."""
        if cgo and not congestion_control:
            raise UsageError("CGO needs congestion control: its cells cannot carry stream SENDMEs")
        self.congestion_control = congestion_control
        self.cgo = cgo

    def encode(self) -> bytes:
        return _encode_request(self.congestion_control, self.cgo)

    def decode_response(self, message: bytes, *, cc_sendme_inc: int) -> int | None:
        """Returns the SENDME increment, in cells, that congestion control uses on this hop; None without it.

        `message` is `HopKeys.server_message`; `cc_sendme_inc` is the consensus parameter. Raises
        CircuitError if the relay grants what we did not ask, withholds what CGO needs, or wants an
        increment more than 1 from the consensus (proposal 324, "Client checks", narrowed as C tor does).
        """
        field = decode_extensions(message).get(ExtensionType.CC_RESPONSE)
        if field is None:
            if self.cgo:
                raise CircuitError("the relay refused congestion control, which CGO needs")
            return None
        if not self.congestion_control:
            raise CircuitError("the relay turned on congestion control, which we did not ask for")
        if len(field) != 1:
            raise CircuitError(f"the congestion control response has {len(field)} bytes, not 1")
        sendme_inc = field[0]
        if sendme_inc == 0 or abs(sendme_inc - cc_sendme_inc) > 1:
            raise CircuitError(
                f"the relay wants a SENDME every {sendme_inc} cells, not every {cc_sendme_inc}"
            )
        return sendme_inc


@cache
def _encode_request(congestion_control: bool, cgo: bool) -> bytes:
    extensions: dict[int, bytes] = {}
    if congestion_control:
        extensions[ExtensionType.CC_REQUEST] = b""
    if cgo:
        extensions[ExtensionType.SUBPROTOCOL_REQUEST] = encode_subprotocol_request(
            [(SUBPROTOCOL_RELAY, RELAY_NEGOTIATES_CGO)]
        )
    return encode_extensions(extensions)


def encode_subprotocol_request(capabilities: Iterable[tuple[int, int]]) -> bytes:
    """(protocol, capability) pairs, sorted and each once, as the relay insists. Proposal 346."""
    return b"".join(bytes(pair) for pair in sorted(set(capabilities)))


def encode_extensions(extensions: dict[int, bytes]) -> bytes:
    """Type to contents, at most 255 bytes each; sorted by type, as the relay insists.

    Proposal 332, "Encoding for use with Tor circuit extension", after a byte with their number.
    """
    fields = [bytes([type_, len(field)]) + field for type_, field in sorted(extensions.items())]
    return bytes([len(fields)]) + b"".join(fields)


def decode_extensions(message: bytes) -> dict[int, bytes]:
    """Type to contents, unknown types too; of a type that comes twice, the first counts.

    Raises CircuitError: "All parties MUST reject messages that are not well-formed".
    """
    reader = Reader(message, "the extension list", CircuitError)
    extensions: dict[int, bytes] = {}
    for _ in range(reader.take_int(1)):
        type_ = reader.take_int(1)
        extensions.setdefault(type_, reader.take(reader.take_int(1)))
    reader.finish()
    return extensions
