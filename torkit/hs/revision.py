"""Revision counters of descriptors, by which a directory tells a newer descriptor from an older one.

The counter is an order-preserving encryption of the time. So a service that starts anew, even in another
program, counts on without stored state, and its clock stays secret.
rend-spec-v3, "Revision counter generation using an encrypted time". (As C tor 0.4.9, crypto_ope.c.)
"""

import hashlib

from torkit._fast.keys import aes_256_ctr, wipe
from torkit.hs.keys import SecretKey

# Specification constants.
KEY_PREFIX = b"rev-counter-generation\0"
MAX_SECONDS = 1 << 18  # more than two runs of the public network, 172,800 (as C tor)


def revision_counter(blinded: SecretKey, seconds: int) -> int:
    """Returns the counter for the service with this blinded key, `seconds` after a run began, from 0.

    `Stand.run_began` (hs/calendar.py) is the beginning of that run.
    """
    key = hashlib.sha3_256(KEY_PREFIX + blinded.expanded).digest()
    count = min(max(seconds, 0) + 1, MAX_SECONDS)
    stream = aes_256_ctr(key, bytes(2 * count))
    wipe(key)
    return sum(stream[::2]) + 256 * sum(stream[1::2]) + count
