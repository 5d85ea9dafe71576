"""Counter Galois Onion: one bit changed on the way to a relay makes noise of that cell and all that follow.

A cell body is X_L, the CGO_TAG_LEN bytes of its tag, and X_R, the rest. The wide-block cipher UIV+
over it, with tweak (T', command):

    encrypt     Y_L = ET(T', command, X_R; X_L)             Y_R = X_R ^ PRF(Y_L, 0)
    decrypt     X_R = Y_R ^ PRF(Y_L, 0)                     X_L = ET^-1(T', command, X_R; Y_L)

    ET(...; x)  = mask ^ AES(mask ^ x)      mask = POLYVAL(T' | command | X_R | zeros)
    PRF(x, t)   = AES-CTR, from block 31 t after the counter POLYVAL(x) with its low six bits cleared

Clients decrypt where relays encrypt, both ways, because only encryption makes noise of everything.
After each cell T' becomes the tag that a relay has after it encrypted and a client before it decrypted.

A cell that begins or ends at this hop carries the nonce N as its inner tag, and after it all keys and
N are replaced by Update: PRF(N, 1). Inbound, N first becomes the cell's outer tag, which makes the
next nonce depend on this cell. The outer tag is also what a SENDME for the cell carries.

Proposal 359; POLYVAL is in polyval.h, AES in aes_ni.h and libcrypto.
"""

cimport cython
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from torkit._fast.aes_ni cimport (
    aes_ni_decrypt, aes_ni_encrypt, aes_ni_expand, aes_ni_expand_inverse, aes_ni_is_supported,
    aes_ni_xor_key_stream, xor_bytes,
)
from torkit._fast.cells cimport CELL_BODY_LEN
from torkit._fast.openssl cimport (
    CRYPTO_memcmp, EVP_aes_128_ecb, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_CIPHER_CTX_set_padding,
    EVP_CipherInit_ex, EVP_CipherUpdate, OPENSSL_cleanse,
)

from torkit.errors import UsageError

cdef extern from "polyval.h" nogil:
    int polyval_is_native()
    void polyval_set_key(int native, polyval_key* key, const uint8_t* h)
    void polyval_dot(int native, const uint8_t* a, const uint8_t* b, uint8_t* out)
    void polyval_add(int native, const polyval_key* key, uint8_t* state, const uint8_t* blocks, size_t count)

cdef enum:
    BLOCK_LEN = 16                # of AES and POLYVAL
    RIGHT_LEN = CELL_BODY_LEN - CGO_TAG_LEN                  # X_R, 493 bytes
    STREAM_BLOCKS = 31            # hold RIGHT_LEN bytes: PRF(x, 0)
    UPDATE_COUNTER = STREAM_BLOCKS                           # where PRF(x, 1) starts
    COUNTER_MASK = 0xC0           # the low six bits are free to count 36 blocks: they never carry
    HASHED_BLOCKS = 30            # whole blocks of command | X_R
    HASHED_TAIL_LEN = 1 + RIGHT_LEN - HASHED_BLOCKS * BLOCK_LEN


cdef int cgo_init(CgoState* state, const uint8_t* seed, bint is_relay, bint portable) noexcept nogil:
    memset(state, 0, sizeof(CgoState))
    state.is_relay = is_relay
    state.is_native = not portable and aes_ni_is_supported() and polyval_is_native()
    if not state.is_native:
        state.et_cipher = EVP_CIPHER_CTX_new()
        state.prf_cipher = EVP_CIPHER_CTX_new()
        if (state.et_cipher == NULL or state.prf_cipher == NULL
                or EVP_CipherInit_ex(state.et_cipher, EVP_aes_128_ecb(), NULL, NULL, NULL, is_relay) != 1
                or EVP_CipherInit_ex(state.prf_cipher, EVP_aes_128_ecb(), NULL, NULL, NULL, 1) != 1
                or EVP_CIPHER_CTX_set_padding(state.et_cipher, 0) != 1):
            return -1
    return set_keys(state, seed)


cdef void cgo_free(CgoState* state) noexcept nogil:
    EVP_CIPHER_CTX_free(state.et_cipher)     # cleanses its keys; NULL is fine
    EVP_CIPHER_CTX_free(state.prf_cipher)
    OPENSSL_cleanse(state, sizeof(CgoState))


# ---- A client's moves ----

cdef int cgo_client_originate(CgoState* state, uint8_t command, uint8_t* body, uint8_t* tag) noexcept nogil:
    """Seal a cell for this hop. `tag` gets what a SENDME for it must carry."""
    memcpy(body, state.nonce, CGO_TAG_LEN)
    if cgo_client_forward(state, command, body) < 0:
        return -1
    memcpy(tag, body, CGO_TAG_LEN)
    return update(state)


cdef int cgo_client_forward(CgoState* state, uint8_t command, uint8_t* body) noexcept nogil:
    """Add this hop's layer to a cell for a later hop."""
    cdef uint8_t[CGO_TAG_LEN] tag_before
    memcpy(tag_before, body, CGO_TAG_LEN)
    if uiv_decrypt(state, command, body) < 0:
        return -1
    memcpy(state.tprime, tag_before, CGO_TAG_LEN)
    return 1


cdef int cgo_client_backward(CgoState* state, uint8_t command, uint8_t* body, uint8_t* tag) noexcept nogil:
    """Take this hop's layer off. If the cell is from this hop, `tag` gets what our SENDME must carry."""
    if cgo_client_forward(state, command, body) < 0:  # decrypts, as a client does both ways
        return -1
    if CRYPTO_memcmp(body, state.nonce, CGO_TAG_LEN) != 0:
        return 0
    memcpy(tag, state.tprime, CGO_TAG_LEN)
    memcpy(state.nonce, state.tprime, CGO_TAG_LEN)
    return update(state)


# ---- A relay's moves ----

cdef int cgo_relay_forward(CgoState* state, uint8_t command, uint8_t* body, uint8_t* tag) noexcept nogil:
    """Take the client's layer off. If the cell is for this relay, `tag` gets what its SENDME must carry."""
    cdef uint8_t[CGO_TAG_LEN] outer_tag
    memcpy(outer_tag, body, CGO_TAG_LEN)
    if cgo_relay_backward(state, command, body) < 0:  # encrypts, as a relay does both ways
        return -1
    if CRYPTO_memcmp(body, state.nonce, CGO_TAG_LEN) != 0:
        return 0
    memcpy(tag, outer_tag, CGO_TAG_LEN)
    return update(state)


cdef int cgo_relay_backward(CgoState* state, uint8_t command, uint8_t* body) noexcept nogil:
    """Add this relay's layer to a cell on its way to the client."""
    if uiv_encrypt(state, command, body) < 0:
        return -1
    memcpy(state.tprime, body, CGO_TAG_LEN)
    return 1


cdef int cgo_relay_originate(CgoState* state, uint8_t command, uint8_t* body, uint8_t* tag) noexcept nogil:
    """Seal a cell of this relay for the client. `tag` gets what a SENDME for it must carry."""
    memcpy(body, state.nonce, CGO_TAG_LEN)
    if cgo_relay_backward(state, command, body) < 0:
        return -1
    memcpy(tag, body, CGO_TAG_LEN)
    memcpy(state.nonce, body, CGO_TAG_LEN)
    return update(state)


# ---- UIV+ ----

cdef int uiv_encrypt(CgoState* state, uint8_t command, uint8_t* body) noexcept nogil:
    if tweakable_cipher(state, command, body) < 0:
        return -1
    return xor_prf(state, body, 0, body + CGO_TAG_LEN, RIGHT_LEN)


cdef int uiv_decrypt(CgoState* state, uint8_t command, uint8_t* body) noexcept nogil:
    if xor_prf(state, body, 0, body + CGO_TAG_LEN, RIGHT_LEN) < 0:
        return -1
    return tweakable_cipher(state, command, body)


cdef int update(CgoState* state) noexcept nogil:
    """Replace all keys and the nonce by PRF(N, 1)."""
    cdef uint8_t[CGO_SEED_LEN] seed
    memset(seed, 0, sizeof(seed))
    cdef int done = xor_prf(state, state.nonce, UPDATE_COUNTER, seed, sizeof(seed))
    if done > 0:
        done = set_keys(state, seed)
    OPENSSL_cleanse(seed, sizeof(seed))
    return done


cdef int tweakable_cipher(CgoState* state, uint8_t command, uint8_t* body) noexcept nogil:
    """ET of the block X_L, in place: enciphered by a relay, deciphered by a client."""
    cdef uint8_t[BLOCK_LEN] block, mask, tail
    cdef int length
    memcpy(block, body, BLOCK_LEN)
    # With the command in the byte before X_R, the blocks to hash lie there ready; X_L is written anew below.
    body[CGO_TAG_LEN - 1] = command
    cdef const uint8_t* hashed = body + CGO_TAG_LEN - 1
    memset(tail, 0, sizeof(tail))
    memcpy(tail, hashed + HASHED_BLOCKS * BLOCK_LEN, HASHED_TAIL_LEN)
    memset(mask, 0, sizeof(mask))
    polyval_add(state.is_native, &state.et_hash, mask, state.tprime, 1)
    polyval_add(state.is_native, &state.et_hash, mask, hashed, HASHED_BLOCKS)
    polyval_add(state.is_native, &state.et_hash, mask, tail, 1)

    xor_bytes(block, mask, BLOCK_LEN)
    if not state.is_native:
        if EVP_CipherUpdate(state.et_cipher, block, &length, block, BLOCK_LEN) != 1:
            return -1
    elif state.is_relay:
        aes_ni_encrypt(state.et_round_keys, block)
    else:
        aes_ni_decrypt(state.et_round_keys, block)
    xor_bytes(block, mask, BLOCK_LEN)
    memcpy(body, block, BLOCK_LEN)
    return 1


cdef int xor_prf(CgoState* state, const uint8_t* x, uint8_t offset, uint8_t* data, int length) noexcept nogil:
    """XOR PRF(x), from block `offset` on, into at most STREAM_BLOCKS blocks of `data`."""
    cdef uint8_t[STREAM_BLOCKS * BLOCK_LEN] stream
    cdef uint8_t[BLOCK_LEN] counter
    cdef int i, blocks = (length + BLOCK_LEN - 1) >> 4
    polyval_dot(state.is_native, x, state.prf_hash, counter)
    counter[BLOCK_LEN - 1] = (counter[BLOCK_LEN - 1] & COUNTER_MASK) + offset
    if state.is_native:
        aes_ni_xor_key_stream(state.prf_round_keys, counter, data, length)
        return 1
    # One call of ECB: giving CTR mode a new counter costs libcrypto as much as the key stream.
    for i in range(blocks):
        memcpy(stream + i * BLOCK_LEN, counter, BLOCK_LEN)
        stream[i * BLOCK_LEN + BLOCK_LEN - 1] += <uint8_t>i
    if EVP_CipherUpdate(state.prf_cipher, stream, &i, stream, blocks * BLOCK_LEN) != 1:
        return -1
    xor_bytes(data, stream, length)
    return 1


cdef int set_keys(CgoState* state, const uint8_t* seed) noexcept nogil:
    cdef const uint8_t* et_key = seed
    cdef const uint8_t* et_hash = et_key + CGO_KEY_LEN
    cdef const uint8_t* prf_key = et_hash + CGO_KEY_LEN
    cdef const uint8_t* prf_hash = prf_key + CGO_KEY_LEN
    polyval_set_key(state.is_native, &state.et_hash, et_hash)
    memcpy(state.prf_hash, prf_hash, CGO_KEY_LEN)
    memcpy(state.nonce, prf_hash + CGO_KEY_LEN, CGO_TAG_LEN)
    if not state.is_native:
        if (EVP_CipherInit_ex(state.et_cipher, NULL, NULL, et_key, NULL, state.is_relay) != 1
                or EVP_CipherInit_ex(state.prf_cipher, NULL, NULL, prf_key, NULL, 1) != 1):
            return -1
    else:
        if state.is_relay:
            aes_ni_expand(et_key, state.et_round_keys)
        else:
            aes_ni_expand_inverse(et_key, state.et_round_keys)
        aes_ni_expand(prf_key, state.prf_round_keys)
    return 1


# ---- As Python sees it ----

@cython.final
cdef class CgoLayer:
    """One direction of one hop, for tests and for whoever plays a relay.

    `seed` is K_ET | K_PRF | N, 80 bytes. `portable` keeps away from the processor's instructions for
    AES and carry-less multiplication. `tprime` is T', 16 bytes, zeros on a new circuit.

    Each method works on `body`, a writable buffer of 509 bytes, in place; `command` is that of the cell.
    Where one returns a tag, it is the 16 bytes that a SENDME for this cell carries.
    All raise UsageError for a wrong length.
    """

    def __cinit__(self, const uint8_t[::1] seed not None, *, bint relay=False, bint portable=False,
                  const uint8_t[::1] tprime=None):
        if seed.shape[0] != CGO_SEED_LEN:
            raise UsageError(f"a cgo layer takes a seed of {CGO_SEED_LEN} bytes, not {seed.shape[0]}")
        if tprime is not None and tprime.shape[0] != CGO_TAG_LEN:
            raise UsageError(f"T' is {CGO_TAG_LEN} bytes, not {tprime.shape[0]}")
        if cgo_init(&self.state, &seed[0], relay, portable) < 0:
            raise MemoryError("libcrypto could not set up AES-128")
        if tprime is not None:
            memcpy(self.state.tprime, &tprime[0], CGO_TAG_LEN)

    def __dealloc__(self):
        cgo_free(&self.state)

    @property
    def is_native(self):
        """Returns whether the processor's own instructions are used."""
        return bool(self.state.is_native)

    def client_originate(self, uint8_t command, uint8_t[::1] body not None):
        """Seal a cell for this hop; its first 16 bytes are overwritten. Returns its tag."""
        cdef uint8_t[CGO_TAG_LEN] tag
        return found(cgo_client_originate(&self.state, command, checked(self, False, body), tag), tag)

    def client_forward(self, uint8_t command, uint8_t[::1] body not None):
        """Add this hop's layer to a cell for a later hop."""
        found(cgo_client_forward(&self.state, command, checked(self, False, body)), NULL)

    def client_backward(self, uint8_t command, uint8_t[::1] body not None):
        """Take this hop's layer off. Returns the tag if the cell is from this hop, else None."""
        cdef uint8_t[CGO_TAG_LEN] tag
        return found(cgo_client_backward(&self.state, command, checked(self, False, body), tag), tag)

    def relay_forward(self, uint8_t command, uint8_t[::1] body not None):
        """Take the client's layer off. Returns the tag if the cell is for this relay, else None."""
        cdef uint8_t[CGO_TAG_LEN] tag
        return found(cgo_relay_forward(&self.state, command, checked(self, True, body), tag), tag)

    def relay_backward(self, uint8_t command, uint8_t[::1] body not None):
        """Add this relay's layer to a cell on its way to the client."""
        found(cgo_relay_backward(&self.state, command, checked(self, True, body)), NULL)

    def relay_originate(self, uint8_t command, uint8_t[::1] body not None):
        """Seal a cell of this relay; its first 16 bytes are overwritten. Returns its tag."""
        cdef uint8_t[CGO_TAG_LEN] tag
        return found(cgo_relay_originate(&self.state, command, checked(self, True, body), tag), tag)


cdef uint8_t* checked(CgoLayer layer, bint relay, uint8_t[::1] body) except NULL:
    """The bytes of `body`, if it has the length of one and `layer` plays this role."""
    if layer.state.is_relay != relay:
        raise UsageError("a client's layer was asked for a relay's move, or the other way round")
    if body.shape[0] != CELL_BODY_LEN:
        raise UsageError(f"a cell body is {CELL_BODY_LEN} bytes, not {body.shape[0]}")
    return &body[0]


cdef object found(int answer, const uint8_t* tag):
    if answer < 0:
        raise MemoryError("libcrypto could not run AES-128")
    return tag[:CGO_TAG_LEN] if answer == 1 and tag != NULL else None
