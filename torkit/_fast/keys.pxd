# Contents: agreement on secrets by X25519, for what keeps these in memory of its own.

cimport cython
from libc.stdint cimport uint8_t

from torkit._fast.openssl cimport EVP_PKEY, EVP_PKEY_CTX

# Specification constant, bytes.
cdef enum:
    X25519_LEN = 32               # of keys and of what they agree upon; RFC 7748, "The X25519 and X448 Functions"

@cython.final
cdef class X25519PrivateKey:
    cdef EVP_PKEY* key
    cdef EVP_PKEY_CTX* ctx        # its agreements, one after the other

    # All are of X25519_LEN bytes. `agree` returns False for a public key that makes the result all zeros.
    cdef int write_public_key(self, uint8_t* public_key) except -1
    cdef bint agree(self, const uint8_t* public_key, uint8_t* shared) noexcept
