# Contents: the keys that a handshake leaves, and what handshakes of other modules share with those of this one.

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t

# Specification constant, bytes: tor-spec, "Preliminaries".
cdef enum:
    HASH_LEN = 20                 # SHA-1

cdef enum Kdf:
    WIPED = 0
    KDF_TOR = 1
    KDF_RFC5869 = 2
    KDF_NTOR_V3 = 3
    KDF_HS_NTOR = 4

@cython.final
cdef class HopKeys:
    cdef Kdf kdf
    cdef uint8_t[2 * HASH_LEN] seed  # the longest, of CREATE_FAST; 32 bytes of the others
    cdef readonly bytes server_message

    cdef int expand(self, uint8_t* keys, Py_ssize_t length) except -1

# Keys whose `seed` and `kdf` are to be filled in.
cdef HopKeys make_keys()

cdef inline uint8_t* start_of(bytes data) noexcept:
    return <uint8_t*>PyBytes_AS_STRING(data)

cdef int check_len(str what, bytes value, Py_ssize_t length) except -1
cdef object degenerate(str whose)
cdef object over()
cdef int crypt(const uint8_t* key, uint8_t* data, Py_ssize_t length) except -1
