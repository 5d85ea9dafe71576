"""The layer of relay encryption that we share with one hop.

A cell body is CELL_BODY_LEN bytes, worked on in place. The three moves of a client:

    originate   seal a cell for this hop: the digest, then this hop's encryption
    forward     add this hop's encryption to a cell for a later hop
    backward    take this hop's encryption off an arriving cell; is it from this hop?

Each kind of layer has its branch in the three. tor-spec, "Routing relay cells".
"""

cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from torkit._fast.cells cimport CELL_BODY_LEN
from torkit._fast.cgo cimport (
    CGO_SEED_LEN, CGO_TAG_LEN, cgo_client_backward, cgo_client_forward, cgo_client_originate, cgo_free,
    cgo_init,
)
from torkit._fast.ctr cimport ctr_free, ctr_init, ctr_xor
from torkit._fast.openssl cimport (
    CRYPTO_memcmp, EVP_DigestFinal_ex, EVP_DigestInit_ex, EVP_DigestUpdate, EVP_MD, EVP_MD_CTX_copy_ex,
    EVP_MD_CTX_free, EVP_MD_CTX_new, EVP_MD_CTX_reset, EVP_sha1, EVP_sha3_256,
)

from torkit.errors import UsageError

# Offsets in a tor1 relay cell (tor-spec, "Relay cells").
cdef enum:
    RECOGNIZED_AT = 1
    DIGEST_AT = 5
    DIGEST_LEN = 4

cdef enum:
    FINAL_LEN_MAX = 32            # bytes that a final digest takes: SHA3-256's


# Shared by all layers, which use them within one cell, and hold the GIL. Emptied whenever a layer is wiped: a copy
# tells as much as its original.
cdef EVP_MD_CTX* scratch_digest = EVP_MD_CTX_new()  # finals are taken from copies
cdef EVP_MD_CTX* saved_digest = EVP_MD_CTX_new()    # the way back when a cell was not for this hop
if scratch_digest == NULL or saved_digest == NULL:
    raise MemoryError


cdef EVP_MD_CTX* new_digest(const EVP_MD* kind, const uint8_t* seed, size_t length) except NULL:
    cdef EVP_MD_CTX* ctx = EVP_MD_CTX_new()
    if ctx == NULL:
        raise MemoryError
    if EVP_DigestInit_ex(ctx, kind, NULL) != 1 or EVP_DigestUpdate(ctx, seed, length) != 1:
        EVP_MD_CTX_free(ctx)
        raise MemoryError("libcrypto could not set up a digest")
    return ctx


@cython.final
cdef class Layer:
    """The keys of one hop; they are freed and cleansed with the object.

    `keys` is Df | Db | Kf | Kb for TOR1, TOR1_KEYS_LEN bytes, and for TOR1_ONION, TOR1_ONION_KEYS_LEN bytes;
    forward and backward seed for CGO, CGO_KEYS_LEN bytes. Raises UsageError for another length.
    """

    def __cinit__(self, LayerKind kind, const uint8_t[::1] keys not None):
        cdef Py_ssize_t wanted = TOR1_KEYS_LEN
        if kind == LayerKind.CGO:
            wanted = CGO_KEYS_LEN
        elif kind == LayerKind.TOR1_ONION:
            wanted = TOR1_ONION_KEYS_LEN
        elif kind != LayerKind.TOR1:
            raise UsageError(f"no layer of kind {kind}")
        if keys.shape[0] != wanted:
            raise UsageError(f"a layer of this kind takes {wanted} bytes of keys, not {keys.shape[0]}")
        self.kind = kind
        if kind == LayerKind.CGO:
            self.set_cgo(&keys[0])
        elif kind == LayerKind.TOR1:
            self.set_tor1(&keys[0], EVP_sha1(), TOR1_DIGEST_LEN, TOR1_KEY_LEN)
        else:
            self.set_tor1(&keys[0], EVP_sha3_256(), TOR1_ONION_DIGEST_LEN, TOR1_ONION_KEY_LEN)

    cdef int set_tor1(self, const uint8_t* df, const EVP_MD* digest, int digest_len, int key_len) except -1:
        cdef const uint8_t* db = df + digest_len
        cdef const uint8_t* kf = db + digest_len
        cdef const uint8_t* kb = kf + key_len
        self.tag_len = TAG_LEN_MAX  # of SHA3-256 too, of which that is the beginning
        self.forward_digest = new_digest(digest, df, digest_len)
        self.backward_digest = new_digest(digest, db, digest_len)
        self.forward_cipher = <Ctr*>calloc(1, sizeof(Ctr))
        self.backward_cipher = <Ctr*>calloc(1, sizeof(Ctr))
        if (self.forward_cipher == NULL or self.backward_cipher == NULL
                or ctr_init(self.forward_cipher, kf, key_len, False) != 1
                or ctr_init(self.backward_cipher, kb, key_len, False) != 1):
            raise MemoryError("libcrypto could not set up AES-CTR")
        return 0

    cdef int set_cgo(self, const uint8_t* seeds) except -1:
        self.tag_len = CGO_TAG_LEN
        self.cgo_forward = <CgoState*>calloc(1, sizeof(CgoState))
        self.cgo_backward = <CgoState*>calloc(1, sizeof(CgoState))
        if (self.cgo_forward == NULL or self.cgo_backward == NULL
                or cgo_init(self.cgo_forward, seeds, False, False) != 1
                or cgo_init(self.cgo_backward, seeds + CGO_SEED_LEN, False, False) != 1):
            raise MemoryError("libcrypto could not set up CGO")
        return 0

    def __dealloc__(self):
        self.wipe()
        free(self.cgo_forward)
        free(self.cgo_backward)
        free(self.forward_cipher)
        free(self.backward_cipher)

    cdef void wipe(self) noexcept:
        """Overwrite all keys and states. No cell may be given to the layer any more."""
        # libcrypto cleanses keys and states as it frees them; NULL is fine.
        EVP_MD_CTX_free(self.forward_digest)
        EVP_MD_CTX_free(self.backward_digest)
        EVP_MD_CTX_reset(scratch_digest)
        EVP_MD_CTX_reset(saved_digest)
        self.forward_digest = self.backward_digest = NULL
        if self.cgo_forward != NULL:
            cgo_free(self.cgo_forward)
        if self.cgo_backward != NULL:
            cgo_free(self.cgo_backward)
        if self.forward_cipher != NULL:
            ctr_free(self.forward_cipher)
        if self.backward_cipher != NULL:
            ctr_free(self.backward_cipher)

    # The kernels answer 1 for done or recognized, 0 for not recognized, -1 where libcrypto failed.

    cdef int originate(self, uint8_t command, uint8_t* body, uint8_t* tag) noexcept nogil:
        """Seal `body`, whose tag or digest field is zero; `tag` gets what a SENDME for it must carry."""
        if self.kind == LayerKind.CGO:
            return cgo_client_originate(self.cgo_forward, command, body, tag)
        if self.digest_cell(self.forward_digest, body, tag) != 1:
            return -1
        memcpy(body + DIGEST_AT, tag, DIGEST_LEN)
        return self.forward(command, body)

    cdef int digest_cell(self, EVP_MD_CTX* running, const uint8_t* body, uint8_t* tag) noexcept nogil:
        """Have a running digest take in a cell; `tag` gets the beginning of what it is then. 1, or -1."""
        cdef uint8_t[FINAL_LEN_MAX] final
        if (EVP_DigestUpdate(running, body, CELL_BODY_LEN) != 1
                or EVP_MD_CTX_copy_ex(scratch_digest, running) != 1
                or EVP_DigestFinal_ex(scratch_digest, final, NULL) != 1):
            return -1
        memcpy(tag, final, TAG_LEN_MAX)
        return 1

    cdef int forward(self, uint8_t command, uint8_t* body) noexcept nogil:
        if self.kind == LayerKind.CGO:
            return cgo_client_forward(self.cgo_forward, command, body)
        return ctr_xor(self.forward_cipher, body, CELL_BODY_LEN)

    cdef int backward(self, uint8_t command, uint8_t* body, bint is_last, uint8_t* tag) noexcept nogil:
        """Open one layer. When recognized, `tag` gets what our SENDME for this cell must carry."""
        cdef uint8_t[DIGEST_LEN] digest
        if self.kind == LayerKind.CGO:
            return cgo_client_backward(self.cgo_backward, command, body, tag)
        if ctr_xor(self.backward_cipher, body, CELL_BODY_LEN) != 1:
            return -1
        if body[RECOGNIZED_AT] != 0 or body[RECOGNIZED_AT + 1] != 0:
            return 0
        # Slow road, one foreign cell in 65,536: the running digest must not keep a cell that was not
        # for this hop. At the last hop a mismatch ends the circuit, so nothing needs saving there.
        if not is_last and EVP_MD_CTX_copy_ex(saved_digest, self.backward_digest) != 1:
            return -1
        memcpy(digest, body + DIGEST_AT, DIGEST_LEN)
        memset(body + DIGEST_AT, 0, DIGEST_LEN)
        if self.digest_cell(self.backward_digest, body, tag) != 1:
            return -1
        if CRYPTO_memcmp(digest, tag, DIGEST_LEN) == 0:
            return 1
        memcpy(body + DIGEST_AT, digest, DIGEST_LEN)
        if not is_last and EVP_MD_CTX_copy_ex(self.backward_digest, saved_digest) != 1:
            return -1
        return 0
