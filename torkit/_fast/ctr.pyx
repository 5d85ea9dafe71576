"""AES-CTR from counter 0, for cells of 509 bytes that follow one another without a gap.

So nearly every cell begins and ends within a block. These two cost libcrypto's EVP as much as all blocks between.
AES-256, of which a circuit has one layer at most, is libcrypto's all the same: beside SHA3-256, which always goes
with it, it costs little. tor-spec, "Relay cells".
"""

cimport cython
from libc.stdint cimport uint32_t
from libc.string cimport memset

from torkit._fast.aes_ni cimport (
    aes_ni_encrypt, aes_ni_expand, aes_ni_is_supported, aes_ni_xor_key_stream, xor_bytes,
)
from torkit._fast.cells cimport store32
from torkit._fast.openssl cimport (
    EVP_aes_128_ctr, EVP_aes_256_ctr, EVP_CIPHER, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_EncryptInit_ex, EVP_EncryptUpdate,
    OPENSSL_cleanse,
)

from torkit.errors import UsageError


cdef int ctr_init(Ctr* ctr, const uint8_t* key, size_t key_len, bint portable) noexcept nogil:
    cdef uint8_t[CTR_BLOCK_LEN] iv
    cdef const EVP_CIPHER* kind = EVP_aes_128_ctr() if key_len == CTR_KEY_LEN else EVP_aes_256_ctr()
    memset(ctr, 0, sizeof(Ctr))
    if not portable and key_len == CTR_KEY_LEN and aes_ni_is_supported():
        aes_ni_expand(key, ctr.round_keys)
        return 1
    memset(iv, 0, sizeof(iv))
    ctr.cipher = EVP_CIPHER_CTX_new()
    return 1 if ctr.cipher != NULL and EVP_EncryptInit_ex(ctr.cipher, kind, NULL, key, iv) == 1 else -1


cdef int ctr_xor(Ctr* ctr, uint8_t* data, int length) noexcept nogil:
    """XOR the next `length` bytes of the key stream into `data`."""
    cdef uint8_t[CTR_BLOCK_LEN] counter
    cdef int count = min(length, ctr.left)
    if ctr.cipher != NULL:
        return 1 if EVP_EncryptUpdate(ctr.cipher, data, &count, data, length) == 1 else -1
    xor_bytes(data, ctr.last + CTR_BLOCK_LEN - ctr.left, count)
    ctr.left -= count
    data += count
    length -= count
    if length:
        put_counter(ctr.made, counter)
        aes_ni_xor_key_stream(ctr.round_keys, counter, data, length)
        ctr.made += (length + CTR_BLOCK_LEN - 1) >> 4
        ctr.left = -length & (CTR_BLOCK_LEN - 1)
        if ctr.left:
            put_counter(ctr.made - 1, ctr.last)
            aes_ni_encrypt(ctr.round_keys, ctr.last)
    return 1


cdef inline void put_counter(uint64_t number, uint8_t* block) noexcept nogil:
    """Write the counter block of one block of the key stream."""
    memset(block, 0, CTR_BLOCK_LEN)
    store32(block + 8, <uint32_t>(number >> 32))
    store32(block + 12, <uint32_t>number)


cdef void ctr_free(Ctr* ctr) noexcept nogil:
    EVP_CIPHER_CTX_free(ctr.cipher)  # cleanses its keys; NULL is fine
    OPENSSL_cleanse(ctr, sizeof(Ctr))


# ---- As Python sees it ----

@cython.final
cdef class CtrStream:
    """The key stream of one direction of one hop, for tests.

    `key` is 16 or 32 bytes, or UsageError is raised. `portable` keeps away from the processor's instructions
    for AES.
    """

    def __cinit__(self, const uint8_t[::1] key not None, *, bint portable=False):
        if key.shape[0] != CTR_KEY_LEN and key.shape[0] != CTR_LONG_KEY_LEN:
            raise UsageError(f"AES takes a key of {CTR_KEY_LEN} or {CTR_LONG_KEY_LEN} bytes, not {key.shape[0]}")
        if ctr_init(&self.ctr, &key[0], key.shape[0], portable) < 0:
            raise MemoryError("libcrypto could not set up AES-CTR")

    def __dealloc__(self):
        ctr_free(&self.ctr)

    def xor(self, uint8_t[::1] data not None):
        """XOR the next bytes of the key stream into `data`, in place."""
        if data.shape[0] and ctr_xor(&self.ctr, &data[0], data.shape[0]) < 0:
            raise MemoryError("libcrypto could not run AES-CTR")
