# Contents: framing constants, the command enums (their only definition), big-endian access, the clock, Outbox.

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from torkit._fast.openssl cimport EVP_CIPHER_CTX

# Specification constants (tor-spec, "Cell packet format").
cdef enum:
    CIRC_ID_LEN = 4               # link protocol 4 and later
    CELL_BODY_LEN = 509
    CELL_LEN = CIRC_ID_LEN + 1 + CELL_BODY_LEN
    VAR_HEADER_LEN = CIRC_ID_LEN + 1 + 2
    VERSIONS_CIRC_ID_LEN = 2      # VERSIONS alone, before a link protocol is agreed

# tor-spec, "Cell packet format".
cpdef enum Command:
    PADDING = 0
    CREATE = 1
    CREATED = 2
    RELAY = 3
    DESTROY = 4
    CREATE_FAST = 5
    CREATED_FAST = 6
    VERSIONS = 7
    NETINFO = 8
    RELAY_EARLY = 9
    CREATE2 = 10
    CREATED2 = 11
    PADDING_NEGOTIATE = 12
    VPADDING = 128
    CERTS = 129
    AUTH_CHALLENGE = 130
    AUTHENTICATE = 131
    AUTHORIZE = 132

# tor-spec, "Relay cells".
cpdef enum RelayCommand:
    BEGIN = 1
    DATA = 2
    END = 3
    CONNECTED = 4
    SENDME = 5
    EXTEND = 6
    EXTENDED = 7
    TRUNCATE = 8
    TRUNCATED = 9
    DROP = 10
    RESOLVE = 11
    RESOLVED = 12
    BEGIN_DIR = 13
    EXTEND2 = 14
    EXTENDED2 = 15
    CONFLUX_LINK = 19
    CONFLUX_LINKED = 20
    CONFLUX_LINKED_ACK = 21
    CONFLUX_SWITCH = 22
    ESTABLISH_INTRO = 32
    ESTABLISH_RENDEZVOUS = 33
    INTRODUCE1 = 34
    INTRODUCE2 = 35
    RENDEZVOUS1 = 36
    RENDEZVOUS2 = 37
    INTRO_ESTABLISHED = 38
    RENDEZVOUS_ESTABLISHED = 39
    INTRODUCE_ACK = 40
    XOFF = 43
    XON = 44

cdef inline uint16_t load16(const uint8_t* p) noexcept nogil:
    return <uint16_t>((p[0] << 8) | p[1])

cdef inline uint32_t load32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]

cdef inline void store16(uint8_t* p, uint16_t value) noexcept nogil:
    p[0] = <uint8_t>(value >> 8)
    p[1] = <uint8_t>value

cdef inline void store32(uint8_t* p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>(value >> 24)
    p[1] = <uint8_t>(value >> 16)
    p[2] = <uint8_t>(value >> 8)
    p[3] = <uint8_t>value

cdef inline bint is_variable_length(uint8_t command) noexcept nogil:
    return command == Command.VERSIONS or command >= 128

# Seconds; its zero means nothing.
cdef inline double monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9

# Growing buffer of sealed cells, handed over whole.
@cython.final
cdef class Outbox:
    cdef uint8_t* cells
    cdef Py_ssize_t capacity
    cdef Py_ssize_t length
    cdef EVP_CIPHER_CTX* padding  # keystream for the padding of relay cells
    cdef bint is_congested        # the relay takes cells more slowly than they are sealed: the last send left some
    cdef int broken               # circuits of this channel that broke off and whose owners have to be told

    cdef uint8_t* reserve(self, Py_ssize_t count) noexcept
    cdef uint8_t* begin_cell(self, uint32_t circ_id, uint8_t command) noexcept
    cdef bint pad(self, uint8_t* start, Py_ssize_t count) noexcept
    cdef void clear(self) noexcept
    cdef bytes take(self)
