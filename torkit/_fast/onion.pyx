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
from torkit._fast.digest cimport (
    DIGEST_FINAL_LEN, digest_free, digest_init, digest_restore, digest_save, digest_take,
)
from torkit._fast.factory cimport check_maker, make
from torkit._fast.openssl cimport CRYPTO_memcmp, ERR_clear_error

from torkit.errors import UsageError

# Offsets in a tor1 relay cell (tor-spec, "Relay cells").
cdef enum:
    RECOGNIZED_AT = 1
    DIGEST_AT = 5
    DIGEST_LEN = 4


cdef inline void tor1_free(Tor1State* state) noexcept:
    if state != NULL:
        ctr_free(&state.cipher)
        digest_free(&state.digest)


cdef Layer layer_of(LayerKind kind, const uint8_t* keys):
    """Returns a layer made of `keys_len(kind)` bytes."""
    make()
    cdef Layer layer = Layer.__new__(Layer, kind)
    layer.set_keys(kind, keys)
    return layer


cdef Py_ssize_t keys_len(LayerKind kind) except -1:
    """Returns how many bytes of keys a layer takes. Raises UsageError."""
    if kind == LayerKind.TOR1:
        return TOR1_KEYS_LEN
    if kind == LayerKind.CGO:
        return CGO_KEYS_LEN
    if kind == LayerKind.TOR1_ONION:
        return TOR1_ONION_KEYS_LEN
    raise UsageError(f"no layer of kind {kind}")


@cython.final
cdef class Layer:
    """The keys of one hop; they are freed and cleansed with the object.

    `keys` is Df | Db | Kf | Kb for TOR1, TOR1_KEYS_LEN bytes, and for TOR1_ONION, TOR1_ONION_KEYS_LEN bytes;
    forward and backward seed for CGO, CGO_KEYS_LEN bytes. Raises UsageError for another length.
    """

    def __cinit__(self, LayerKind kind, const uint8_t[::1] keys=None):
        if keys is None:
            check_maker(self)
        elif keys.shape[0] != keys_len(kind):
            raise UsageError(f"a layer of this kind takes {keys_len(kind)} bytes of keys, not {keys.shape[0]}")
        else:
            self.set_keys(kind, &keys[0])

    cdef int set_keys(self, LayerKind kind, const uint8_t* keys) except -1:
        self.kind = kind
        if kind == LayerKind.CGO:
            return self.set_cgo(keys)
        if kind == LayerKind.TOR1:
            return self.set_tor1(keys, TOR1_DIGEST_LEN, TOR1_KEY_LEN)
        return self.set_tor1(keys, TOR1_ONION_DIGEST_LEN, TOR1_ONION_KEY_LEN)

    cdef int set_tor1(self, const uint8_t* df, int digest_len, int key_len) except -1:
        cdef const uint8_t* db = df + digest_len
        cdef const uint8_t* kf = db + digest_len
        cdef const uint8_t* kb = kf + key_len
        cdef bint is_sha3 = self.kind == LayerKind.TOR1_ONION
        self.tag_len = TAG_LEN_MAX  # of SHA3-256 too, of which that is the beginning
        self.tor1_forward = <Tor1State*>calloc(1, sizeof(Tor1State))
        self.tor1_backward = <Tor1State*>calloc(1, sizeof(Tor1State))
        if (self.tor1_forward == NULL or self.tor1_backward == NULL
                or digest_init(&self.tor1_forward.digest, is_sha3, df, digest_len) != 1
                or digest_init(&self.tor1_backward.digest, is_sha3, db, digest_len) != 1
                or ctr_init(&self.tor1_forward.cipher, kf, key_len, False) != 1
                or ctr_init(&self.tor1_backward.cipher, kb, key_len, False) != 1):
            ERR_clear_error()
            raise MemoryError("libcrypto could not set up a digest or AES-CTR")
        return 0

    cdef int set_cgo(self, const uint8_t* seeds) except -1:
        self.tag_len = CGO_TAG_LEN
        self.cgo_forward = <CgoState*>calloc(1, sizeof(CgoState))
        self.cgo_backward = <CgoState*>calloc(1, sizeof(CgoState))
        if (self.cgo_forward == NULL or self.cgo_backward == NULL
                or cgo_init(self.cgo_forward, seeds, False, False) != 1
                or cgo_init(self.cgo_backward, seeds + CGO_SEED_LEN, False, False) != 1):
            ERR_clear_error()
            raise MemoryError("libcrypto could not set up CGO")
        return 0

    def __dealloc__(self):
        self.wipe()
        free(self.cgo_forward)
        free(self.cgo_backward)
        free(self.tor1_forward)
        free(self.tor1_backward)

    cdef void wipe(self) noexcept:
        """Overwrite all keys and states. No cell may be given to the layer any more."""
        if self.cgo_forward != NULL:
            cgo_free(self.cgo_forward)
        if self.cgo_backward != NULL:
            cgo_free(self.cgo_backward)
        tor1_free(self.tor1_forward)
        tor1_free(self.tor1_backward)

    # The kernels answer 1 for done or recognized, 0 for not recognized, -1 where libcrypto failed.

    cdef int originate(self, uint8_t command, uint8_t* body, uint8_t* tag) noexcept nogil:
        """Seal `body`, whose tag or digest field is zero; `tag` gets what a SENDME for it must carry."""
        if self.kind == LayerKind.CGO:
            return cgo_client_originate(self.cgo_forward, command, body, tag)
        if self.digest_cell(&self.tor1_forward.digest, body, tag) != 1:
            return -1
        memcpy(body + DIGEST_AT, tag, DIGEST_LEN)
        return self.forward(command, body)

    cdef int digest_cell(self, Digest* running, const uint8_t* body, uint8_t* tag) noexcept nogil:
        """Have a running digest take in a cell; `tag` gets the beginning of what it is then. 1, or -1."""
        cdef uint8_t[DIGEST_FINAL_LEN] final
        if digest_take(running, body, CELL_BODY_LEN, final) != 1:
            return -1
        memcpy(tag, final, TAG_LEN_MAX)
        return 1

    cdef int forward(self, uint8_t command, uint8_t* body) noexcept nogil:
        if self.kind == LayerKind.CGO:
            return cgo_client_forward(self.cgo_forward, command, body)
        return ctr_xor(&self.tor1_forward.cipher, body, CELL_BODY_LEN)

    cdef int backward(self, uint8_t command, uint8_t* body, bint is_last, uint8_t* tag) noexcept nogil:
        """Open one layer. When recognized, `tag` gets what our SENDME for this cell must carry."""
        cdef uint8_t[DIGEST_LEN] digest
        if self.kind == LayerKind.CGO:
            return cgo_client_backward(self.cgo_backward, command, body, tag)
        if ctr_xor(&self.tor1_backward.cipher, body, CELL_BODY_LEN) != 1:
            return -1
        if body[RECOGNIZED_AT] != 0 or body[RECOGNIZED_AT + 1] != 0:
            return 0
        # Slow road, one foreign cell in 65,536: the running digest must not keep a cell that was not
        # for this hop. At the last hop a mismatch ends the circuit, so nothing needs saving there.
        if not is_last and digest_save(&self.tor1_backward.digest) != 1:
            return -1
        memcpy(digest, body + DIGEST_AT, DIGEST_LEN)
        memset(body + DIGEST_AT, 0, DIGEST_LEN)
        if self.digest_cell(&self.tor1_backward.digest, body, tag) != 1:
            return -1
        if CRYPTO_memcmp(digest, tag, DIGEST_LEN) == 0:
            return 1
        memcpy(body + DIGEST_AT, digest, DIGEST_LEN)
        if not is_last and digest_restore(&self.tor1_backward.digest) != 1:
            return -1
        return 0
