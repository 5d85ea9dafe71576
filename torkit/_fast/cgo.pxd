# Contents: Counter Galois Onion, one direction of one hop: its state and what each side does to a cell.

cimport cython
from libc.stdint cimport uint8_t

from torkit._fast.aes_ni cimport AES_NI_KEY_LEN
from torkit._fast.openssl cimport EVP_CIPHER_CTX

cdef extern from "polyval.h" nogil:
    struct polyval_key:
        pass

# Specification constants (proposal 359).
cdef enum:
    CGO_TAG_LEN = 16              # of the slot at the head of each body, of the nonce and of SENDME tags
    CGO_KEY_LEN = 16              # of each of the four keys
    CGO_SEED_LEN = 4 * CGO_KEY_LEN + CGO_TAG_LEN

cdef struct CgoState:
    bint is_relay                 # relays encrypt, clients decrypt: never the other way round
    bint is_native                # AES and POLYVAL by the processor's instructions, or portably
    uint8_t[CGO_TAG_LEN] nonce    # N: marks the next cell that begins or ends at this hop
    uint8_t[CGO_TAG_LEN] tprime   # T': ties every cell to the one before it
    polyval_key et_hash           # K_ET, its second half
    uint8_t[CGO_KEY_LEN] prf_hash           # K_PRF, its second half
    uint8_t[AES_NI_KEY_LEN] et_round_keys   # native: the AES halves of K_ET and K_PRF, expanded
    uint8_t[AES_NI_KEY_LEN] prf_round_keys
    EVP_CIPHER_CTX* et_cipher     # portable: the same in libcrypto
    EVP_CIPHER_CTX* prf_cipher

# `seed` is CGO_SEED_LEN bytes: K_ET | K_PRF | N. Pair every init, even a failed one, with a free.
cdef int cgo_init(CgoState* state, const uint8_t* seed, bint is_relay, bint portable) noexcept nogil
cdef void cgo_free(CgoState* state) noexcept nogil

# `command` is the cell's, `body` its CELL_BODY_LEN bytes, in place. A cell that begins here has its first
# CGO_TAG_LEN bytes free for the tag. The answer is 1 for done or recognized, 0 for not recognized,
# -1 where libcrypto failed: then the body must not be used, nor the state again.
cdef int cgo_client_originate(CgoState* state, uint8_t command, uint8_t* body, uint8_t* tag) noexcept nogil
cdef int cgo_client_forward(CgoState* state, uint8_t command, uint8_t* body) noexcept nogil
cdef int cgo_client_backward(CgoState* state, uint8_t command, uint8_t* body, uint8_t* tag) noexcept nogil

cdef int cgo_relay_forward(CgoState* state, uint8_t command, uint8_t* body, uint8_t* tag) noexcept nogil
cdef int cgo_relay_backward(CgoState* state, uint8_t command, uint8_t* body) noexcept nogil
cdef int cgo_relay_originate(CgoState* state, uint8_t command, uint8_t* body, uint8_t* tag) noexcept nogil

@cython.final
cdef class CgoLayer:
    cdef CgoState state
