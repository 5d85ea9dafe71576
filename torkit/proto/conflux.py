"""Links circuits to one exit: the bodies of the messages, and the judge of the answer. Proposal 329.

The order of messages, and the choice of a leg for each, are the compiled core's (_fast/conflux).
"""

from enum import IntEnum
from hmac import compare_digest

from torkit._fast.cells import Reader
from torkit.errors import CircuitError
from torkit.params import Param

# Specification constants (proposal 329, "Linking circuits").
LINK_VERSION = 1
NONCE_LEN = 32


class Wish(IntEnum):
    """The wish of the sender of LINK or LINKED: how the other end shall choose a leg."""

    NO_OPINION = 0
    MIN_LATENCY = 1
    LOW_MEM_LATENCY = 2
    HIGH_THROUGHPUT = 3
    LOW_MEM_THROUGHPUT = 4

    @property
    def fills(self) -> bool:
        """Returns whether data goes by any leg with room, not only by the one of least delay (as C tor)."""
        return self in (Wish.NO_OPINION, Wish.HIGH_THROUGHPUT)


def encode_link(nonce: bytes, wish: Wish = Wish.HIGH_THROUGHPUT) -> bytes:
    """Returns the body of CONFLUX_LINK for a new set, whose legs have carried nothing yet.

    `nonce` is 32 bytes, the same for all legs of the set, and secret: a circuit that sends it joins the set.
    """
    assert len(nonce) == NONCE_LEN
    return bytes([LINK_VERSION]) + nonce + bytes(8) + bytes(8) + bytes([wish])


def judge_linked(body: bytes, nonce: bytes) -> Wish:
    """Returns the wish of an exit's LINKED. Raises CircuitError if it does not answer our LINK."""
    reader = Reader(body, "CONFLUX_LINKED", CircuitError)
    version = reader.take_int(1)
    if version != LINK_VERSION:
        raise CircuitError(f"CONFLUX_LINKED has version {version}, not {LINK_VERSION}")
    if not compare_digest(reader.take(NONCE_LEN), nonce):
        raise CircuitError("CONFLUX_LINKED is for other circuits")
    if any(reader.take(16)):
        raise CircuitError("CONFLUX_LINKED counts messages of circuits that have carried none")
    number = reader.take_int(1)
    try:
        return Wish(number)
    except ValueError:
        raise CircuitError(f"CONFLUX_LINKED asks for {number}, which is unknown") from None


def prebuilt_count(param: Param, share: float) -> int:
    """Returns how many sets are kept ready. `share` is that of the exits which can link, from 0 to 1.

    Few, where few exits can link: else these would learn much of one client. (As C tor.)
    """
    if not param("cfx_enabled") or share == 0:
        return 0
    return min(param("cfx_max_prebuilt_set"), 1 if 10_000 * share < param("cfx_low_exit_threshold") else 255)
