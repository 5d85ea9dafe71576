# distutils: libraries = crypto
"""Bare libcrypto: the least that three tor1 layers take, however they are organised.

For each cell of a buffer, in place: three AES-128-CTR `EVP_EncryptUpdate` over its body of 509 bytes, one
SHA-1 `EVP_DigestUpdate` over the same bytes, `EVP_MD_CTX_copy_ex` and `EVP_DigestFinal_ex` of the copy, as the
running digest of every relay cell requires. Nothing else: no framing, no look at a header, no queue, no
padding, no acknowledgement. Contexts are made once.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memset

from torkit._fast.cells cimport CELL_BODY_LEN, CELL_LEN
from torkit._fast.openssl cimport (
    EVP_aes_128_ctr, EVP_CIPHER_CTX, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_DigestFinal_ex,
    EVP_DigestInit_ex, EVP_DigestUpdate, EVP_EncryptInit_ex, EVP_EncryptUpdate, EVP_MD, EVP_MD_CTX,
    EVP_MD_CTX_copy_ex, EVP_MD_CTX_free, EVP_MD_CTX_new,
)

cdef extern from "<openssl/evp.h>" nogil:
    const EVP_MD* EVP_sha1()  # the core has SHA-1 by its own functions, and does not declare this

cdef enum:
    LAYERS = 3
    SHA1_LEN = 20


cdef class Floor:
    cdef EVP_CIPHER_CTX* ciphers[LAYERS]
    cdef EVP_MD_CTX* running
    cdef EVP_MD_CTX* copied

    def __cinit__(self):
        cdef uint8_t[16] key
        cdef int i
        self.running = EVP_MD_CTX_new()
        self.copied = EVP_MD_CTX_new()
        if self.running == NULL or self.copied == NULL or EVP_DigestInit_ex(self.running, EVP_sha1(), NULL) != 1:
            raise MemoryError
        for i in range(LAYERS):
            memset(key, i, sizeof(key))
            self.ciphers[i] = EVP_CIPHER_CTX_new()
            if self.ciphers[i] == NULL or EVP_EncryptInit_ex(
                    self.ciphers[i], EVP_aes_128_ctr(), NULL, key, key) != 1:
                raise MemoryError

    def __dealloc__(self):
        cdef int i
        for i in range(LAYERS):
            EVP_CIPHER_CTX_free(self.ciphers[i])
        EVP_MD_CTX_free(self.running)
        EVP_MD_CTX_free(self.copied)

    def run(self, uint8_t[::1] cells not None):
        """Work once on every whole cell of the buffer."""
        cdef uint8_t[SHA1_LEN] digest
        cdef Py_ssize_t count = cells.shape[0] // CELL_LEN
        cdef uint8_t* body = NULL
        cdef Py_ssize_t i
        cdef int layer, length
        cdef int status = 1
        with nogil:
            for i in range(count):
                body = &cells[i * CELL_LEN + CELL_LEN - CELL_BODY_LEN]
                for layer in range(LAYERS):
                    status &= EVP_EncryptUpdate(self.ciphers[layer], body, &length, body, CELL_BODY_LEN)
                status &= EVP_DigestUpdate(self.running, body, CELL_BODY_LEN)
                status &= EVP_MD_CTX_copy_ex(self.copied, self.running)
                status &= EVP_DigestFinal_ex(self.copied, digest, NULL)
        if status != 1:
            raise MemoryError("libcrypto failed")
