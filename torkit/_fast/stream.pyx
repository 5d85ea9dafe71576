"""One stream: what arrived and was not yet taken, and how many cells each side may still send.

Which bytes a cell is made of is the circuit's business (circuit.pyx); a stream only asks its circuit
to seal for it.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove, strerror
from posix.unistd cimport write

# Implementation limits, bytes.
cdef Py_ssize_t SMALLEST_QUEUE = 4096    # what a first DATA cell allocates
cdef Py_ssize_t KEPT_QUEUE = 131072      # what one read may bring; a larger queue is freed when it has been drained

# A stream SENDME is held back while this much waits for the reader, so that a slow reader stops its
# peer; ten full cells, so that a quick one never does.
cdef Py_ssize_t ACKNOWLEDGE_BELOW = 10 * 498


cdef class Outlet(Entry):
    cdef Py_ssize_t seal_data(self, Stream stream, const uint8_t* data, Py_ssize_t count) except -1:
        raise NotImplementedError

    cdef int seal_stream_sendme(self, Stream stream) except -1:
        raise NotImplementedError


@cython.final
cdef class Stream(Entry):
    """Made by Circuit.open_stream. `owner` is free for the caller's use.

    While `sink` is a non-blocking descriptor, what a read brought is written there at its end, and
    Readable tells of it only where the descriptor did not take all.
    """

    def __cinit__(self):
        self.sink = -1

    def __dealloc__(self):
        free(self.queue)

    @property
    def queued(self):
        """Bytes received and not yet taken."""
        return self.tail - self.head

    @property
    def is_open(self):
        """Connected, and neither side has ended it."""
        return self.state == StreamState.OPEN

    @property
    def has_ended(self):
        """The peer sent END or RESOLVED, or the circuit is gone. Queued bytes can still be taken."""
        return self.state == StreamState.ENDED

    def take(self, Py_ssize_t max_bytes=-1):
        """Remove and return up to `max_bytes` received bytes, all by default; b"" if there are none.

        May seal a stream-level SENDME: flush the channel afterwards.
        """
        cdef Py_ssize_t count = self.tail - self.head
        if 0 <= max_bytes < count:
            count = max_bytes
        if count == 0:
            return b""
        taken = PyBytes_FromStringAndSize(<const char*>self.queue + self.head, count)
        self.taken(count)
        return taken

    def put(self, const uint8_t[::1] data not None):
        """Seal as much of `data` as the windows allow; returns how many bytes that was.

        If it was not all, a Writable event follows when there is room again. Raises nothing for a
        stream or circuit that has ended: it accepts nothing.
        """
        return self.put_from(&data[0], data.shape[0]) if data.shape[0] else 0

    cdef Py_ssize_t put_from(self, const uint8_t* data, Py_ssize_t count) except -1:
        cdef Py_ssize_t sealed = self.circuit.seal_data(self, data, count)
        self.sent += sealed
        return sealed

    def write_to(self, int descriptor):
        """Write what is queued to a non-blocking descriptor; whether it took all. Raises OSError where it fails.

        May seal a stream-level SENDME.
        """
        self.sink = descriptor
        cdef bint is_done = self.drain()
        cdef int number = errno
        self.sink = -1
        if not is_done and number != EAGAIN:
            raise OSError(number, strerror(number).decode())
        return is_done

    def pause(self):
        """The peer sent XOFF: put() accepts nothing until resume()."""
        self.is_xoff = True

    def resume(self):
        """The peer sent XON."""
        self.is_xoff = False

    cdef bint drain(self) except -1:
        """Write what is queued to the sink; whether that is all. What fails is the caller's to find out."""
        cdef Py_ssize_t written
        while self.head < self.tail:
            written = write(self.sink, self.queue + self.head, self.tail - self.head)
            if written >= 0:
                self.taken(written)
            elif errno != EINTR:
                return False
        return True

    cdef int taken(self, Py_ssize_t count) except -1:
        """Forget the first `count` bytes of the queue, and let the peer send more."""
        self.head += count
        if self.head == self.tail:
            self.head = self.tail = 0
            if self.capacity > KEPT_QUEUE:
                self.drop_queue()
        return self.acknowledge()

    cdef int push(self, const uint8_t* data, Py_ssize_t count) except -1:
        """Queue received bytes. The circuit bounds how many wait."""
        cdef Py_ssize_t waiting = self.tail - self.head
        cdef Py_ssize_t capacity
        cdef uint8_t* queue
        if self.tail + count > self.capacity:
            if waiting + count <= self.capacity:
                memmove(self.queue, self.queue + self.head, waiting)
            else:
                capacity = max(SMALLEST_QUEUE, 2 * self.capacity, waiting + count)
                queue = <uint8_t*>realloc(self.queue, capacity)
                if queue == NULL:
                    raise MemoryError
                self.queue = queue
                self.capacity = capacity
                memmove(queue, queue + self.head, waiting)
            self.head = 0
            self.tail = waiting
        memcpy(self.queue + self.tail, data, count)
        self.tail += count
        self.received += count
        return 0

    cdef int acknowledge(self) except -1:
        """Let the peer send more once the reader has caught up."""
        if self.state != StreamState.OPEN or not self.has_windows or self.tail - self.head > ACKNOWLEDGE_BELOW:
            return 0
        while self.deliver_window <= STREAM_WINDOW_START - STREAM_WINDOW_INCREMENT:
            self.deliver_window += STREAM_WINDOW_INCREMENT
            self.circuit.seal_stream_sendme(self)
        return 0

    cdef void drop_queue(self) noexcept:
        free(self.queue)
        self.queue = NULL
        self.capacity = self.head = self.tail = 0
