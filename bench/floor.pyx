# distutils: libraries = crypto
"""Bare libcrypto: the least that three tor1 layers take, however they are organised.

For each cell of a buffer, in place: three AES-128-CTR `EVP_EncryptUpdate` over its body of 509 bytes, one
SHA-1 `EVP_DigestUpdate` over the same bytes, `EVP_MD_CTX_copy_ex` and `EVP_DigestFinal_ex` of the copy, as the
running digest of every relay cell requires. With `onion`, the layer of an onion service is behind the three: AES-256-CTR
over the same bytes, too, and SHA3-256 in the place of SHA-1. Nothing else: no framing, no look at a header, no queue, no
padding, no acknowledgement. Contexts are made once.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memset

from torkit._fast.cells cimport CELL_BODY_LEN, CELL_LEN
from torkit._fast.openssl cimport (
    EVP_aes_128_ctr, EVP_aes_256_ctr, EVP_CIPHER, EVP_CIPHER_CTX, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new,
    EVP_DigestFinal_ex, EVP_DigestInit_ex, EVP_DigestUpdate, EVP_EncryptInit_ex, EVP_EncryptUpdate, EVP_MD,
    EVP_MD_CTX, EVP_MD_CTX_copy_ex, EVP_MD_CTX_free, EVP_MD_CTX_new, EVP_sha3_256,
)

cdef extern from "<openssl/evp.h>" nogil:
    const EVP_MD* EVP_sha1()  # the core has SHA-1 by its own functions, and does not declare this

cdef enum:
    LAYERS = 3                    # of tor1
    DIGEST_LEN = 32               # SHA3-256's; SHA-1's are the first 20


cdef class Floor:
    cdef EVP_CIPHER_CTX* ciphers[LAYERS + 1]
    cdef int layers
    cdef EVP_MD_CTX* running
    cdef EVP_MD_CTX* copied

    def __cinit__(self, *, bint onion=False):
        cdef uint8_t[32] key
        cdef const EVP_MD* digest = EVP_sha3_256() if onion else EVP_sha1()
        cdef const EVP_CIPHER* cipher
        cdef int i
        self.layers = LAYERS + onion
        self.running = EVP_MD_CTX_new()
        self.copied = EVP_MD_CTX_new()
        if self.running == NULL or self.copied == NULL or EVP_DigestInit_ex(self.running, digest, NULL) != 1:
            raise MemoryError
        for i in range(self.layers):
            memset(key, i, sizeof(key))
            cipher = EVP_aes_128_ctr() if i < LAYERS else EVP_aes_256_ctr()
            self.ciphers[i] = EVP_CIPHER_CTX_new()
            if self.ciphers[i] == NULL or EVP_EncryptInit_ex(self.ciphers[i], cipher, NULL, key, key) != 1:
                raise MemoryError

    def __dealloc__(self):
        cdef int i
        for i in range(self.layers):
            EVP_CIPHER_CTX_free(self.ciphers[i])
        EVP_MD_CTX_free(self.running)
        EVP_MD_CTX_free(self.copied)

    def run(self, uint8_t[::1] cells not None):
        """Work once on every whole cell of the buffer."""
        cdef uint8_t[DIGEST_LEN] digest
        cdef Py_ssize_t count = cells.shape[0] // CELL_LEN
        cdef uint8_t* body = NULL
        cdef Py_ssize_t i
        cdef int layer, length
        cdef int status = 1
        with nogil:
            for i in range(count):
                body = &cells[i * CELL_LEN + CELL_LEN - CELL_BODY_LEN]
                for layer in range(self.layers):
                    status &= EVP_EncryptUpdate(self.ciphers[layer], body, &length, body, CELL_BODY_LEN)
                status &= EVP_DigestUpdate(self.running, body, CELL_BODY_LEN)
                status &= EVP_MD_CTX_copy_ex(self.copied, self.running)
                status &= EVP_DigestFinal_ex(self.copied, digest, NULL)
        if status != 1:
            raise MemoryError("libcrypto failed")
