# distutils: libraries = crypto
"""The loops that bench_cgo.py times: a call from Python per 1,000 cells, not per cell."""

from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free

from torkit._fast.cells cimport CELL_BODY_LEN, CELL_LEN, Command
from torkit._fast.cgo cimport (
    AES_NI_KEY_LEN, CGO_SEED_LEN, CGO_TAG_LEN, CgoState, cgo_client_backward, cgo_client_forward,
    cgo_client_originate, cgo_free, cgo_init, polyval_key,
)

cdef extern from "aes_ni.h" nogil:
    void aes_ni_expand(const uint8_t* key, uint8_t* expanded)
    void aes_ni_expand_inverse(const uint8_t* key, uint8_t* expanded)

cdef extern from "polyval.h" nogil:
    void polyval_set_key(int native, polyval_key* key, const uint8_t* h)
    void polyval_add(int native, const polyval_key* key, uint8_t* state, const uint8_t* blocks, size_t count)

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_CIPHER
    ctypedef struct EVP_CIPHER_CTX
    ctypedef struct ENGINE
    const EVP_CIPHER* EVP_aes_128_ecb()
    EVP_CIPHER_CTX* EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX* ctx)
    int EVP_EncryptInit_ex(EVP_CIPHER_CTX* ctx, const EVP_CIPHER* cipher, ENGINE* impl,
                           const uint8_t* key, const uint8_t* iv)
    int EVP_EncryptUpdate(EVP_CIPHER_CTX* ctx, uint8_t* out, int* outl, const uint8_t* data, int inl)

cdef enum:
    READ_CELLS = 64               # they lie one after the other, as in one large read
    BLOCKS = 32                   # of 16 bytes, as AES sees a cell, and POLYVAL
    UPDATE_BLOCKS = 5             # of key stream, for the next keys


cdef class Loops:
    """One hop's state, and cells. Each method works on `cells` of them."""

    cdef CgoState state
    cdef uint8_t* cells
    cdef polyval_key hash_key
    cdef EVP_CIPHER_CTX* aes

    def __cinit__(self, bint portable):
        cdef uint8_t[CGO_SEED_LEN] seed
        cdef int i
        for i in range(CGO_SEED_LEN):
            seed[i] = <uint8_t>(7 * i + 1)
        self.cells = <uint8_t*>calloc(READ_CELLS, CELL_LEN)
        self.aes = EVP_CIPHER_CTX_new()
        if self.cells == NULL or self.aes == NULL or cgo_init(&self.state, seed, False, portable) < 0:
            raise MemoryError
        if EVP_EncryptInit_ex(self.aes, EVP_aes_128_ecb(), NULL, seed, NULL) != 1:
            raise MemoryError
        polyval_set_key(self.state.is_native, &self.hash_key, seed)

    def __dealloc__(self):
        cgo_free(&self.state)
        EVP_CIPHER_CTX_free(self.aes)
        free(self.cells)

    def forward(self, int cells):
        cdef int i
        with nogil:
            for i in range(cells):
                cgo_client_forward(&self.state, Command.RELAY, self.body(i))

    def backward(self, int cells):
        """For other hops: none is recognized."""
        cdef uint8_t[CGO_TAG_LEN] tag
        cdef int i
        with nogil:
            for i in range(cells):
                cgo_client_backward(&self.state, Command.RELAY, self.body(i), tag)

    def originate(self, int cells):
        cdef uint8_t[CGO_TAG_LEN] tag
        cdef int i
        with nogil:
            for i in range(cells):
                cgo_client_originate(&self.state, Command.RELAY, self.body(i), tag)

    def layer_floor(self, int cells):
        """libcrypto's AES in its quickest mode, and POLYVAL, over the same bytes."""
        cdef uint8_t[16] hashed = [0] * 16
        cdef int i, length
        with nogil:
            for i in range(cells):
                EVP_EncryptUpdate(self.aes, self.body(i), &length, self.body(i), BLOCKS * 16)
                polyval_add(self.state.is_native, &self.hash_key, hashed, self.body(i), BLOCKS)

    def originate_floor(self, int cells):
        """The same, and what new keys for the next cell take: a little key stream, and expansion."""
        cdef uint8_t[AES_NI_KEY_LEN] round_keys
        cdef uint8_t[16] hashed = [0] * 16
        cdef int i, length
        with nogil:
            for i in range(cells):
                EVP_EncryptUpdate(self.aes, self.body(i), &length, self.body(i), (BLOCKS + UPDATE_BLOCKS) * 16)
                polyval_add(self.state.is_native, &self.hash_key, hashed, self.body(i), BLOCKS)
                if self.state.is_native:
                    aes_ni_expand(self.body(i), round_keys)
                    aes_ni_expand_inverse(self.body(i), round_keys)
                else:
                    EVP_EncryptInit_ex(self.aes, NULL, NULL, self.body(i), NULL)
                    EVP_EncryptInit_ex(self.aes, NULL, NULL, self.body(i), NULL)
                polyval_set_key(self.state.is_native, &self.hash_key, self.body(i))

    cdef inline uint8_t* body(self, int cell) noexcept nogil:
        return self.cells + cell % (READ_CELLS - 1) * CELL_LEN + CELL_LEN - CELL_BODY_LEN
