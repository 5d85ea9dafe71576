# Contents: HMAC-SHA256; SHA3-256 and SHAKE-256, whose message is absorbed in pieces.

from libc.stdint cimport uint8_t, uint32_t

from torkit._fast.openssl cimport EVP_MD

cdef enum:
    SHA256_LEN = 32               # also SHA3-256

cdef void hmac_sha256(
    const uint8_t* key, size_t key_len, const void* message, size_t length, uint8_t* digest
) noexcept

cdef EVP_MD* sha3_256
cdef EVP_MD* shake_256

# `begin`, then any number of pieces, then `end_hash` or `squeeze`, which raise MemoryError where any of it failed.
cdef void begin(const EVP_MD* kind) noexcept
cdef void absorb(const void* data, size_t length) noexcept
cdef void absorb_length(size_t length) noexcept
cdef void absorb_encap(const uint8_t* data, size_t length) noexcept
cdef int end_hash(uint8_t* digest) except -1
cdef int squeeze(uint8_t* output, size_t length) except -1
