# Contents: the AES-CTR key stream of one direction of one hop, as tor1 layers use it.

cimport cython
from libc.stdint cimport uint8_t, uint64_t

from torkit._fast.aes_ni cimport AES_NI_KEY_LEN
from torkit._fast.openssl cimport EVP_CIPHER_CTX

cdef enum:
    CTR_KEY_LEN = 16
    CTR_LONG_KEY_LEN = 32         # AES-256, as onion services use it
    CTR_BLOCK_LEN = 16

cdef struct Ctr:
    uint8_t[AES_NI_KEY_LEN] round_keys
    uint64_t made                 # blocks of the key stream
    uint8_t[CTR_BLOCK_LEN] last   # the latest of them
    int left                      # bytes of it that are not yet used
    EVP_CIPHER_CTX* cipher        # portable, or AES-256: the same in libcrypto; else NULL

# `key` is CTR_KEY_LEN or CTR_LONG_KEY_LEN bytes; the counter starts at 0. Pair every init, even a failed one, with a free.
# The answer is 1, or -1 where libcrypto failed: then neither data nor state may be used again.
cdef int ctr_init(Ctr* ctr, const uint8_t* key, size_t key_len, bint portable) noexcept nogil
cdef int ctr_xor(Ctr* ctr, uint8_t* data, int length) noexcept nogil
cdef void ctr_free(Ctr* ctr) noexcept nogil

@cython.final
cdef class CtrStream:
    cdef Ctr ctr
