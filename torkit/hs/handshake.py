"""hs-ntor: a client's half of the handshake with an onion service, which no relay in between can read.

    client = ServiceHandshake(...)        a secret is shared with the service's key at once
    client.seal(header, plaintext)        the end of INTRODUCE1, for the service; `header` is authenticated
    keys = client.finish(meeting)         ServiceKeys, or CircuitError if RENDEZVOUS2 is not that service's

Notation: b, B the service's key of one introduction point, x, X ours for one attempt, y, Y the service's.
rend-spec-v3, "Introduction handshake encryption requirements" and "The hs-ntor handshake".
"""

import hashlib
import hmac
from collections.abc import Callable

from torkit._fast.keys import X25519PrivateKey, aes_256_ctr, wipe
from torkit.errors import CircuitError
from torkit.hs.keys import KEY_LEN
from torkit.hs.messages import Meeting

# Specification constant.
PROTOID = b"tor-hs-ntor-curve25519-sha3-256-1"


class Secrets:
    """The secrets of one step, overwritten at its end. `keep` returns its argument."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []

    def __enter__(self) -> Callable[[bytes], bytes]:
        return self.keep

    def __exit__(self, *_: object) -> None:
        for secret in self._kept:
            wipe(secret)

    def keep(self, secret: bytes) -> bytes:
        self._kept.append(secret)
        return secret


class ServiceKeys:
    """The result of the handshake: a stream of key bytes. Call `wipe` when all keys have been derived."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed

    def derive(self, length: int) -> bytes:
        """Returns the first `length` bytes, for the caller to wipe."""
        return expand(self._seed, length)

    def wipe(self) -> None:
        """Overwrite the secret from which the keys are derived."""
        wipe(self._seed)


class ServiceHandshake:
    """Serves one introduction. Call `wipe` when that is over, however it ends."""

    def __init__(self, *, auth_key: bytes, enc_key: bytes, subcredential: bytes, private_key: bytes) -> None:
        """The introduction point's `auth_key` and `enc_key`, the `subcredential` and x: 32 bytes each.

        Raises CircuitError where `enc_key` is degenerate.
        """
        self._x = X25519PrivateKey(private_key)
        self.public_key = self._x.public_key
        self._auth_key = auth_key
        self._enc_key = enc_key
        self._subcredential = subcredential
        self._bx = self._exchange(enc_key)

    def seal(self, header: bytes, plaintext: bytes) -> bytes:
        """Returns the rest of INTRODUCE1 behind `header`: X, `plaintext` encrypted, and a MAC over all."""
        with Secrets() as keep:
            known = (self._auth_key, self.public_key, self._enc_key, PROTOID)
            tweaks = (PROTOID, b":hs_key_extract", PROTOID, b":hs_key_expand", self._subcredential)
            keys = keep(kdf(keep(b"".join((self._bx, *known, *tweaks))), 2 * KEY_LEN))
            encrypted = aes_256_ctr(keep(keys[:KEY_LEN]), plaintext)
            tag = mac(keep(keys[KEY_LEN:]), header + self.public_key + encrypted)
        return self.public_key + encrypted + tag

    def finish(self, meeting: Meeting) -> ServiceKeys:
        """Returns the keys, by the service's half of the handshake. Raises CircuitError."""
        with Secrets() as keep:
            yx = keep(self._exchange(meeting.public_key))
            known = (self._auth_key, self._enc_key, self.public_key, meeting.public_key, PROTOID)
            secret_input = keep(b"".join((yx, self._bx, *known)))
            verify = keep(mac(secret_input, PROTOID + b":hs_verify"))
            named = (self._auth_key, self._enc_key, meeting.public_key, self.public_key, PROTOID, b"Server")
            auth = mac(keep(b"".join((verify, *named))), PROTOID + b":hs_mac")
            if not hmac.compare_digest(auth, meeting.auth):
                raise CircuitError("the handshake with the onion service failed: AUTH is wrong")
            return ServiceKeys(mac(secret_input, PROTOID + b":hs_key_extract"))

    def wipe(self) -> None:
        """Overwrite the secrets. The handshake cannot be finished any more."""
        wipe(self._bx)
        del self._x

    def _exchange(self, public_key: bytes) -> bytes:
        try:
            return self._x.exchange(public_key)
        except ValueError:
            raise CircuitError(
                "the onion service's key is degenerate: a handshake with it would be no secret"
            ) from None


def expand(seed: bytes, length: int) -> bytes:
    """The keys of the layer, from NTOR_KEY_SEED; for the caller to wipe."""
    with Secrets() as keep:
        return kdf(keep(b"".join((seed, PROTOID, b":hs_key_expand"))), length)


def kdf(message: bytes, length: int) -> bytes:
    """KDF(x, n): SHAKE-256."""
    return hashlib.shake_256(message).digest(length)


def mac(key: bytes, message: bytes) -> bytes:
    """MAC(k, m): SHA3-256 of the key's length, the key and the message."""
    with Secrets() as keep:
        return hashlib.sha3_256(keep(b"".join((len(key).to_bytes(8, "big"), key, message)))).digest()
