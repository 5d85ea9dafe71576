"""Framing constants, the command enums, and the buffer that outgoing cells are sealed in.

The framing loop for incoming cells stands in channel.pyx.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_INCREF, Py_DECREF, Py_XDECREF
from libc.string cimport memset

from torkit._fast.openssl cimport (
    EVP_aes_128_ctr, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_EncryptInit_ex, EVP_EncryptUpdate,
    OPENSSL_cleanse, RAND_bytes,
)

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject** string, Py_ssize_t newsize) except -1

# Implementation limit, bytes: the least that is allocated; one full TLS record.
cdef Py_ssize_t SMALLEST_CHUNK = 16384

# Implementation limit, bytes: the most that stays allocated; what one read from a client is sealed into.
cdef Py_ssize_t KEPT_CHUNK = 131072

# Specification constant (tor-spec, "Relay cells"): bytes of zeros between message and random padding.
cdef Py_ssize_t ZERO_PADDING_LEN = 4


@cython.final
cdef class Outbox:
    """Sealed cells waiting for TLS. `take` hands the bytes over without a copy.

    What may wait here is bounded by the circuits' package windows and one acknowledgement per
    `sendme_inc` received cells.
    """

    def __cinit__(self):
        cdef uint8_t[32] seed
        self.padding = EVP_CIPHER_CTX_new()
        if self.padding == NULL:
            raise MemoryError
        cdef bint is_ready = (
            RAND_bytes(seed, sizeof(seed)) == 1
            and EVP_EncryptInit_ex(self.padding, EVP_aes_128_ctr(), NULL, seed, seed + 16) == 1
        )
        OPENSSL_cleanse(seed, sizeof(seed))
        if not is_ready:
            raise MemoryError("libcrypto has no randomness")

    def __dealloc__(self):
        EVP_CIPHER_CTX_free(self.padding)
        Py_XDECREF(self.chunk)

    cdef uint8_t* reserve(self, Py_ssize_t count) except NULL:
        """Append `count` bytes to be written by the caller; valid until the next reserve or take."""
        cdef Py_ssize_t capacity
        if self.length + count > self.capacity:
            capacity = max(SMALLEST_CHUNK, 2 * self.capacity, self.length + count)
            if self.chunk == NULL:
                fresh = PyBytes_FromStringAndSize(NULL, capacity)
                Py_INCREF(fresh)
                self.chunk = <PyObject*>fresh
            else:
                # Allowed while nobody else holds the object, and nobody does before take().
                _PyBytes_Resize(&self.chunk, capacity)
            self.capacity = capacity
        cdef uint8_t* room = <uint8_t*>PyBytes_AS_STRING(<object>self.chunk) + self.length
        self.length += count
        return room

    cdef uint8_t* begin_cell(self, uint32_t circ_id, uint8_t command) except NULL:
        """Append a fixed-length cell's header; the caller fills the CELL_BODY_LEN bytes returned."""
        cdef uint8_t* cell = self.reserve(CELL_LEN)
        store32(cell, circ_id)
        cell[CIRC_ID_LEN] = command
        return cell + CIRC_ID_LEN + 1

    cdef int pad(self, uint8_t* start, Py_ssize_t count) except -1:
        """Fill the rest of a relay cell: four zero bytes, then random ones."""
        cdef int length
        memset(start, 0, count)
        if count <= ZERO_PADDING_LEN:
            return 0
        start += ZERO_PADDING_LEN
        if EVP_EncryptUpdate(self.padding, start, &length, start, <int>(count - ZERO_PADDING_LEN)) != 1:
            raise MemoryError("libcrypto could not make padding")
        return 0

    cdef const uint8_t* data(self) noexcept:
        """Everything since the last take or clear, `length` bytes; NULL before the first."""
        return <const uint8_t*>PyBytes_AS_STRING(<object>self.chunk) if self.chunk != NULL else NULL

    cdef void clear(self) noexcept:
        """Forget it; room for an ordinary burst is kept."""
        self.length = 0
        if self.capacity > KEPT_CHUNK:
            Py_XDECREF(self.chunk)
            self.chunk = NULL
            self.capacity = 0

    cdef bytes take(self):
        """Everything since the last take."""
        if self.length == 0:
            return b""
        if self.length < self.capacity:
            _PyBytes_Resize(&self.chunk, self.length)
        taken = <bytes>self.chunk
        Py_DECREF(taken)
        self.chunk = NULL
        self.length = self.capacity = 0
        return taken
