"""hs-ntor: a service's half of the handshake with a client that was introduced to it.

    point = PointHandshake(...)              for as long as we use the introduction point
    plaintext = point.open(request)          the client's words, or CircuitError if they are not for us
    answer = point.answer(request, y)        for RENDEZVOUS1, with the keys of the layer

Notation: b, B our key of one introduction point, X the client's, y, Y ours for one meeting.
rend-spec-v3, "Introduction handshake encryption requirements" and "The hs-ntor handshake". (The client's:
hs/handshake.py.)
"""

import hmac
from typing import NamedTuple

from torkit._fast.keys import X25519PrivateKey, aes_256_ctr
from torkit._fast.onion import TOR1_ONION_DIGEST_LEN, TOR1_ONION_KEY_LEN, TOR1_ONION_KEYS_LEN
from torkit.errors import CircuitError
from torkit.hs.handshake import PROTOID, Secrets, expand, kdf, mac
from torkit.hs.keys import KEY_LEN
from torkit.hs.service_messages import Request


class MeetingAnswer(NamedTuple):
    """`reply` is Y and AUTH, 32 bytes each, for the client. `keys` are the service's for a TOR1_ONION layer:
    we seal with the client's keys for opening. The caller wipes them."""

    reply: bytes
    keys: bytes


class PointHandshake:
    """Holds the secret of one introduction point."""

    def __init__(self, *, auth_key: bytes, private_key: bytes, subcredential: bytes) -> None:
        """The point's `auth_key`, b, and the `subcredential` of its descriptor: 32 bytes each."""
        self._b = X25519PrivateKey(private_key)
        self.public_key = self._b.public_key
        self._auth_key = auth_key
        self._subcredential = subcredential

    def open(self, request: Request) -> bytes:
        """Returns the plaintext of the request. Raises CircuitError if it is not for this service."""
        with Secrets() as keep:
            xb = keep(_exchange(self._b, request.client_key))
            known = (self._auth_key, request.client_key, self.public_key, PROTOID)
            tweaks = (PROTOID, b":hs_key_extract", PROTOID, b":hs_key_expand", self._subcredential)
            keys = keep(kdf(keep(b"".join((xb, *known, *tweaks))), 2 * KEY_LEN))
            said = request.header + request.client_key + request.sealed
            if not hmac.compare_digest(mac(keep(keys[KEY_LEN:]), said), request.mac):
                raise CircuitError("INTRODUCE2 was not made for this service: its MAC is wrong")
            return aes_256_ctr(keep(keys[:KEY_LEN]), request.sealed)

    def answer(self, request: Request, private_key: bytes) -> MeetingAnswer:
        """Returns our half, with `private_key`, y, 32 fresh random bytes. Raises CircuitError."""
        y = X25519PrivateKey(private_key)
        with Secrets() as keep:
            xy = keep(_exchange(y, request.client_key))
            xb = keep(_exchange(self._b, request.client_key))
            known = (self._auth_key, self.public_key, request.client_key, y.public_key, PROTOID)
            secret_input = keep(b"".join((xy, xb, *known)))
            verify = keep(mac(secret_input, PROTOID + b":hs_verify"))
            named = (self._auth_key, self.public_key, y.public_key, request.client_key, PROTOID, b"Server")
            auth = mac(keep(b"".join((verify, *named))), PROTOID + b":hs_mac")
            seed = keep(mac(secret_input, PROTOID + b":hs_key_extract"))
            keys = keep(expand(seed, TOR1_ONION_KEYS_LEN))
            return MeetingAnswer(y.public_key + auth, swap_directions(keys))


def swap_directions(keys: bytes) -> bytes:
    """Returns the keys of TOR1_ONION, Df, Db, Kf, Kb, in the order of the other end: Db, Df, Kb, Kf."""
    digests, ciphers = 2 * TOR1_ONION_DIGEST_LEN, 2 * TOR1_ONION_KEY_LEN
    view = memoryview(keys)
    return b"".join(
        (
            view[TOR1_ONION_DIGEST_LEN:digests],
            view[:TOR1_ONION_DIGEST_LEN],
            view[digests + TOR1_ONION_KEY_LEN : digests + ciphers],
            view[digests : digests + TOR1_ONION_KEY_LEN],
        )
    )


def _exchange(private_key: X25519PrivateKey, public_key: bytes) -> bytes:
    try:
        return private_key.exchange(public_key)
    except ValueError:
        raise CircuitError("the client's key is degenerate: a handshake with it would be no secret") from None
