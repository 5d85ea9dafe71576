# Contents: the layer of encryption shared with one hop.

cimport cython
from libc.stdint cimport uint8_t

from torkit._fast.cgo cimport CgoState
from torkit._fast.ctr cimport Ctr
from torkit._fast.digest cimport Digest

cdef enum:
    TAG_LEN_MAX = 20              # of a SENDME tag: 20 bytes for both kinds of tor1

cpdef enum LayerKind:
    TOR1 = 1                      # AES-128-CTR and a running SHA-1: tor-spec, "Relay cells"
    CGO = 2                       # Counter Galois Onion: proposal 359
    TOR1_ONION = 3                # AES-256-CTR and a running SHA3-256, with onion services: rend-spec-v3

# Specification constants (tor-spec, "Setting circuit keys").
cpdef enum:
    TOR1_DIGEST_LEN = 20          # Df, Db
    TOR1_KEY_LEN = 16             # Kf, Kb
    TOR1_KEYS_LEN = 2 * TOR1_DIGEST_LEN + 2 * TOR1_KEY_LEN
    CGO_KEYS_LEN = 2 * 80         # forward, backward
    # rend-spec-v3, "Key expansion": the same four, each of 32 bytes.
    TOR1_ONION_DIGEST_LEN = 32
    TOR1_ONION_KEY_LEN = 32
    TOR1_ONION_KEYS_LEN = 2 * TOR1_ONION_DIGEST_LEN + 2 * TOR1_ONION_KEY_LEN

# One direction of a layer of either kind of tor1.
cdef struct Tor1State:
    Ctr cipher                    # Kf, Kb
    Digest digest                 # Df and every cell sealed for this hop; Db and every cell recognized from it

@cython.final
cdef class Layer:
    cdef LayerKind kind
    cdef int tag_len
    cdef bint is_shared           # with a hop: it has its state in the stream of cells from then on
    # CGO
    cdef CgoState* cgo_forward
    cdef CgoState* cgo_backward
    # TOR1 and TOR1_ONION
    cdef Tor1State* tor1_forward
    cdef Tor1State* tor1_backward

    cdef int set_keys(self, LayerKind kind, const uint8_t* keys) except -1
    cdef int set_tor1(self, const uint8_t* df, int digest_len, int key_len) except -1
    cdef int set_cgo(self, const uint8_t* seeds) except -1
    cdef void wipe(self) noexcept
    cdef int originate(self, uint8_t command, uint8_t* body, uint8_t* tag) noexcept nogil
    cdef int digest_cell(self, Digest* running, const uint8_t* body, uint8_t* tag) noexcept nogil
    cdef int forward(self, uint8_t command, uint8_t* body) noexcept nogil
    cdef int backward(self, uint8_t command, uint8_t* body, bint is_last, uint8_t* tag) noexcept nogil

cdef Layer layer_of(LayerKind kind, const uint8_t* keys)
cdef Py_ssize_t keys_len(LayerKind kind) except -1
