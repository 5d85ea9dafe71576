"""Framing constants, the command enums, the buffer that outgoing cells are sealed in, and what reads bodies.

The framing loop for incoming cells stands in channel.pyx.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from torkit._fast.memory cimport release, resize
from torkit._fast.openssl cimport (
    EVP_aes_128_ctr, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_EncryptInit_ex, EVP_EncryptUpdate,
    OPENSSL_cleanse, RAND_bytes,
)

from torkit.errors import UsageError

# Implementation limit, bytes: the smallest allocation, one full TLS record.
cdef Py_ssize_t SMALLEST_CHUNK = 16384

# Implementation limit, bytes: the most that stays allocated, the cells of one read from a client.
cdef Py_ssize_t KEPT_CHUNK = 131072

# Specification constant (tor-spec, "Relay cells"): bytes of zeros between message and random padding.
cdef Py_ssize_t ZERO_PADDING_LEN = 4


@cython.final
cdef class Outbox:
    """Sealed cells waiting for TLS.

    The package windows of the circuits, and one acknowledgement per `sendme_inc` received cells, bound how many
    cells wait here.
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
        release(&self.cells, &self.capacity)

    cdef uint8_t* reserve(self, Py_ssize_t count) noexcept:
        """Append `count` bytes to be written by the caller; valid until the next reserve, clear or take.

        NULL without memory: then nothing has changed.
        """
        cdef Py_ssize_t needed = self.length + count
        if needed > self.capacity:
            if not resize(&self.cells, &self.capacity, max(SMALLEST_CHUNK, 2 * self.capacity, needed)):
                return NULL
        cdef uint8_t* room = self.cells + self.length
        self.length = needed
        return room

    cdef uint8_t* begin_cell(self, uint32_t circ_id, uint8_t command) noexcept:
        """Append a fixed-length cell's header; the caller fills the CELL_BODY_LEN bytes returned. NULL as above."""
        cdef uint8_t* cell = self.reserve(CELL_LEN)
        if cell == NULL:
            return NULL
        store32(cell, circ_id)
        cell[CIRC_ID_LEN] = command
        return cell + CIRC_ID_LEN + 1

    cdef bint pad(self, uint8_t* start, Py_ssize_t count) noexcept:
        """Fill the rest of a relay cell: four zero bytes, then random ones. False where libcrypto fails."""
        cdef int length
        memset(start, 0, count)
        if count <= ZERO_PADDING_LEN:
            return True
        start += ZERO_PADDING_LEN
        return EVP_EncryptUpdate(self.padding, start, &length, start, <int>(count - ZERO_PADDING_LEN)) == 1

    cdef void clear(self) noexcept:
        """Forget the cells; room for an ordinary burst is kept."""
        self.length = 0
        if self.capacity > KEPT_CHUNK:
            release(&self.cells, &self.capacity)

    cdef bytes take(self):
        """Returns everything since the last take."""
        if self.length == 0:
            return b""
        taken = PyBytes_FromStringAndSize(<const char*>self.cells, self.length)
        self.clear()
        return taken


@cython.final
cdef class Reader:
    """Reads a body from the front. A read past its end raises `error`, which names `what`."""

    cdef bytes body
    cdef str what
    cdef object error
    cdef Py_ssize_t offset

    def __cinit__(self, bytes body not None, str what not None, error not None):
        self.body = body
        self.what = what
        self.error = error

    @property
    def bytes_left(self):
        return PyBytes_GET_SIZE(self.body) - self.offset

    cdef const uint8_t* advance(self, Py_ssize_t length) except NULL:
        """Returns where the next `length` bytes are, which are then behind us."""
        cdef Py_ssize_t left = PyBytes_GET_SIZE(self.body) - self.offset
        if length < 0:
            raise UsageError(f"{length} bytes cannot be read")
        if length > left:
            raise self.error(
                f"{self.what} is truncated: {length} bytes expected at offset {self.offset}, {left} seen"
            )
        cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(self.body) + self.offset
        self.offset += length
        return start

    def take(self, Py_ssize_t length):
        """Returns the next `length` bytes."""
        cdef const uint8_t* start = self.advance(length)
        return PyBytes_FromStringAndSize(<const char*>start, length)

    def take_int(self, Py_ssize_t length):
        """Returns the next `length` bytes, 8 at most, as a number, the most significant one first."""
        if length > 8:
            raise UsageError(f"a number has 8 bytes at most, not {length}")
        cdef const uint8_t* start = self.advance(length)
        cdef uint64_t number = 0
        cdef Py_ssize_t i
        for i in range(length):
            number = number << 8 | start[i]
        return number

    def finish(self):
        """Check that nothing follows, for formats that allow no padding."""
        if self.offset != PyBytes_GET_SIZE(self.body):
            raise self.error(f"{self.what} has {self.bytes_left} bytes too many")
