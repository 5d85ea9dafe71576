"""One stream: the bytes that arrived and were not yet taken, and how many cells each side may still send.

The circuit makes cells (circuit.pyx). A stream only asks its circuit to seal for it.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport UINT64_MAX
from libc.string cimport memcpy, memmove, strerror
from posix.unistd cimport write

from torkit._fast.cells cimport monotonic
from torkit._fast.memory cimport release, resize

# Implementation limits, bytes.
cdef Py_ssize_t SMALLEST_QUEUE = 4096    # what a first DATA cell allocates
cdef Py_ssize_t KEPT_QUEUE = 131072      # what one read may bring; a larger queue is freed when it has been drained

# A stream SENDME is held back while this much waits for the reader, so that a slow reader stops its
# peer; ten full cells, so that a quick one never does.
cdef Py_ssize_t ACKNOWLEDGE_BELOW = 10 * 498

# Bytes that all streams of this process have sent and received so far.
cdef uint64_t all_sent = 0
cdef uint64_t all_received = 0


def carried():
    """Returns the bytes that all streams of this process have received, and sent, so far."""
    return all_received, all_sent


cdef class Outlet(Entry):
    cdef Py_ssize_t seal_data(self, Stream stream, const uint8_t* data, Py_ssize_t count) except -1:
        raise NotImplementedError

    cdef void seal_stream_sendme(self, Stream stream) noexcept:
        pass

    cdef void break_off(self) noexcept:
        pass

cdef PyObject* first = NULL  # of the streams that have a queue


cdef PyObject* first_with_queue() noexcept:
    """Returns the first stream of the list, borrowed, or NULL."""
    return first


@cython.final
cdef class Stream(Entry):
    """Made by Circuit.open_stream. `owner` is free for the caller's use.

    While `sink` is a non-blocking descriptor, the bytes of a read are written there at its end. Readable tells of
    them only where the descriptor did not take all.
    """

    def __cinit__(self):
        self.sink = -1
        self.received_max = UINT64_MAX

    def __dealloc__(self):
        self.drop_queue()

    @property
    def queued(self):
        """Bytes received and not yet taken."""
        return self.tail - self.head

    @property
    def is_open(self):
        """Whether the stream is connected, and neither side has ended it."""
        return self.state == StreamState.OPEN

    @property
    def has_ended(self):
        """Whether the peer sent END or RESOLVED, or the circuit is gone. Queued bytes can still be taken."""
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
        """Seal as much of `data` as the windows allow. Returns how many bytes were sealed.

        Unless all were, a Writable event follows when there is room again. Raises nothing for a
        stream or circuit that has ended: it accepts nothing.
        """
        return self.put_from(&data[0], data.shape[0]) if data.shape[0] else 0

    cdef Py_ssize_t put_from(self, const uint8_t* data, Py_ssize_t count) except -1:
        global all_sent
        cdef Py_ssize_t sealed = self.circuit.seal_data(self, data, count)
        self.sent += sealed
        all_sent += sealed
        return sealed

    def write_to(self, int descriptor):
        """Write what is queued to a non-blocking descriptor. Returns whether it took all. Raises OSError where it fails.

        May seal a stream-level SENDME.
        """
        self.sink = descriptor
        cdef bint is_done = self.drain()
        cdef int number = errno
        self.sink = -1
        if not is_done and number != EAGAIN:
            raise OSError(number, strerror(number).decode())
        return is_done

    def note_xoff_sent(self, uint64_t under_way):
        """Note that we have sent XOFF: with more than `under_way` further bytes the circuit ends."""
        self.received_max = self.received + under_way

    def note_xon_sent(self):
        """Note that we have sent XON: any number of bytes may come."""
        self.received_max = UINT64_MAX

    def pause(self):
        """Note that the peer sent XOFF: put() accepts nothing until resume()."""
        self.is_xoff = True

    def resume(self, Py_ssize_t rate=0):
        """Note that the peer sent XON. The core feeds at most this rate, in bytes a second; 0 means no limit."""
        self.is_xoff = False
        self.rate = rate
        self.next_feed_at = 0

    cdef Py_ssize_t feed_from(self, const uint8_t* data, Py_ssize_t count) except -1:
        """As put_from, within the peer's rate: at once at most what it allows in a second (as C tor)."""
        cdef double now
        cdef Py_ssize_t sealed, allowed
        if self.rate == 0:
            self.waits_for_rate = False
            return self.put_from(data, count)
        now = monotonic()
        self.waits_for_rate = now < self.next_feed_at
        if self.waits_for_rate:
            return 0
        allowed = min(count, self.rate)
        sealed = self.put_from(data, allowed)
        self.waits_for_rate = sealed == allowed < count
        self.next_feed_at = max(self.next_feed_at, now) + <double>sealed / self.rate
        return sealed

    cdef bint drain(self) noexcept:
        """Write queued bytes to the sink. Returns whether all were. A failure is the caller's to find out."""
        cdef Py_ssize_t written
        while self.head < self.tail:
            written = write(self.sink, self.queue + self.head, self.tail - self.head)
            if written >= 0:
                self.taken(written)
            elif errno != EINTR:
                return False
        return True

    cdef void taken(self, Py_ssize_t count) noexcept:
        """Forget the first `count` bytes of the queue, and let the peer send more."""
        self.head += count
        if self.head == self.tail:
            self.head = self.tail = 0
            if self.capacity > KEPT_QUEUE:
                self.drop_queue()
        self.acknowledge()

    cdef bint push(self, const uint8_t* data, Py_ssize_t count) noexcept:
        """Queue received bytes. The circuit bounds how many wait. False without memory."""
        global all_received
        cdef Py_ssize_t waiting = self.tail - self.head
        cdef Py_ssize_t capacity
        cdef bint is_first
        if self.tail + count > self.capacity:
            if waiting + count <= self.capacity:
                memmove(self.queue, self.queue + self.head, waiting)
            else:
                capacity = max(SMALLEST_QUEUE, 2 * self.capacity, waiting + count)
                is_first = self.queue == NULL
                if not resize(&self.queue, &self.capacity, capacity):
                    return False
                if is_first:
                    self.enlist()
                memmove(self.queue, self.queue + self.head, waiting)
            self.head = 0
            self.tail = waiting
        if count:  # a first DATA cell may be empty, and find no queue
            memcpy(self.queue + self.tail, data, count)
        self.tail += count
        self.received += count
        all_received += count
        return True

    cdef void acknowledge(self) noexcept:
        """Let the peer send more once the reader has caught up."""
        if self.state != StreamState.OPEN or not self.has_windows or self.tail - self.head > ACKNOWLEDGE_BELOW:
            return
        while self.deliver_window <= STREAM_WINDOW_START - STREAM_WINDOW_INCREMENT:
            self.deliver_window += STREAM_WINDOW_INCREMENT
            self.circuit.seal_stream_sendme(self)

    cdef void drop_queue(self) noexcept:
        self.head = self.tail = 0
        if self.queue != NULL:
            release(&self.queue, &self.capacity)
            self.delist()

    cdef void enlist(self) noexcept:
        """Join the list of streams with a queue."""
        global first
        self.previous = NULL
        self.next = first
        if first != NULL:
            (<Stream>first).previous = <PyObject*>self
        first = <PyObject*>self

    cdef void delist(self) noexcept:
        global first
        if self.previous != NULL:
            (<Stream>self.previous).next = self.next
        else:
            first = self.next
        if self.next != NULL:
            (<Stream>self.next).previous = self.previous
