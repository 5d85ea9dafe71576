"""What an onion address is to begin with, and what that takes. rend-spec-v3, "Encoding onion addresses"."""

from torkit.errors import UsageError
from torkit.hs.keys import KEY_LEN

# Base32, as addresses have it: 5 bits for each character.
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
BITS = 5

MAX_LEN = KEY_LEN * 8 // BITS  # characters that a key alone decides


class Prefix:
    """The first characters of an address, which are the first bits of an identity key."""

    def __init__(self, text: str) -> None:
        """`text` is what a person wishes. Raises UsageError for what no address begins with."""
        if not text:
            raise UsageError("a prefix has one character at least")
        if wrong := next((char for char in text if char not in ALPHABET), None):
            raise UsageError(
                f"no onion address has {wrong!r} in it",
                hint="addresses are made of the letters a to z and the digits 2 to 7",
            )
        if len(text) > MAX_LEN:
            raise UsageError(f"a prefix has {MAX_LEN} characters at most")
        self.text = text
        self._value = 0
        for char in text:
            self._value = self._value << BITS | ALPHABET.index(char)
        self._len = (len(text) * BITS + 7) // 8
        self._shift = self._len * 8 - len(text) * BITS

    @property
    def mean_tries(self) -> int:
        """How many random keys it takes on average."""
        return 1 << len(self.text) * BITS

    def fits(self, public: bytes) -> bool:
        """Returns whether the address of this identity key begins so."""
        return int.from_bytes(public[: self._len], "big") >> self._shift == self._value
