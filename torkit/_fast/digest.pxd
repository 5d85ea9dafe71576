# Contents: the running digest of one direction of one hop, as tor1 layers use it.

from libc.stdint cimport uint8_t

from torkit._fast.openssl cimport EVP_MD_CTX, SHA_CTX

cdef enum:
    DIGEST_FINAL_LEN = 32         # bytes: SHA3-256's; SHA-1's are the first 20

cdef struct Digest:
    SHA_CTX sha1
    EVP_MD_CTX* sha3              # SHA3-256, as onion services use it; else NULL

# `seed` is what is digested first. Pair every init, even a failed one, with a free. The answer is 1, or -1 where
# libcrypto failed: then the state must not be used again.
cdef int digest_init(Digest* digest, bint is_sha3, const uint8_t* seed, size_t length) noexcept nogil
cdef int digest_take(Digest* digest, const uint8_t* data, size_t length, uint8_t* final) noexcept nogil
cdef void digest_free(Digest* digest) noexcept nogil

# The state as it was, for one digest at a time.
cdef int digest_save(const Digest* digest) noexcept nogil
cdef int digest_restore(Digest* digest) noexcept nogil
