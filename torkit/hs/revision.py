"""Revision counters of descriptors, by which a directory tells a newer one from an older one.

C tor's scheme: an order-preserving encryption of the time, so that a service which begins anew, or moves to
another program, counts on without having kept anything, and nobody learns its clock.
rend-spec-v3, "Revision counter generation using an encrypted time"; C tor 0.4.9, crypto_ope.c.
"""

import hashlib

from torkit._fast.keys import aes_256_ctr, wipe
from torkit.hs.keys import SecretKey

# Specification constants.
KEY_PREFIX = b"rev-counter-generation\0"
MAX_SECONDS = 1 << 18  # what C tor encrypts at most; two runs of the public network have 172,800


def revision_counter(blinded: SecretKey, seconds: int) -> int:
    """The counter for the service with this blinded key, so many seconds after a run began, from 0.

    The run is that of the shared random value by which the descriptor is placed. (hs/calendar.py)
    """
    key = hashlib.sha3_256(KEY_PREFIX + blinded.expanded).digest()
    count = min(max(seconds, 0) + 1, MAX_SECONDS)
    stream = aes_256_ctr(key, bytes(2 * count))
    wipe(key)
    return sum(stream[::2]) + 256 * sum(stream[1::2]) + count
