"""The sockets that the pump watches, the bytes that each holds, and the greatest holder where memory is short."""

from enum import Enum, auto

cimport cython
from cpython.ref cimport PyObject
from libc.string cimport memcpy, memmove

from torkit._fast.circuit cimport Circuit
from torkit._fast.factory cimport check_maker
from torkit._fast.memory cimport release, resize
from torkit._fast.stream cimport Stream, first_with_queue
from torkit._fast.tunnel cimport Tunnel


class LocalEvent(Enum):
    """Events of a socket, pipe or file of this machine."""

    READABLE = auto()  # or broken, which reading it tells
    WRITABLE = auto()
    ENDED = auto()  # the core has read all of it
    FAILED = auto()  # the core could not read it: Local.failure
    BROKEN = auto()  # while nothing was to be read; it is watched no more


cdef class Source:
    def __cinit__(self):
        check_maker(self)
        self.descriptor = -1

    @property
    def is_watched(self):
        return self.descriptor >= 0


@cython.final
cdef class Link(Source):
    @property
    def is_congested(self):
        """Whether the relay takes cells more slowly than we seal them."""
        return self.channel.outbox.is_congested


@cython.final
cdef class Local(Source):
    def __dealloc__(self):
        release(&self.unsent, &self.capacity)

    def feed(self, Stream stream, const uint8_t[::1] early=None):
        """Have the core hand `early` and all bytes read here to `stream`; with None, Python reads instead."""
        if self.stream is not None:
            self.stream.feeder = None
        self.stream = stream
        if stream is None:
            return
        stream.feeder = self
        if early is not None and early.shape[0]:
            self.keep(&early[0], early.shape[0])
        self.resume()

    def take_unsent(self):
        """Remove and return bytes that were read and not yet sealed."""
        cdef bytes taken = self.unsent[:self.unsent_len] if self.unsent_len else b""
        self.forget_unsent()
        return taken

    def resume(self):
        """Go on with bytes that were read, and read on: after XON, which is no event of the circuit."""
        if self.due is not None and not self.is_due:
            self.due.append(self)
            self.is_due = True

    cdef int seal(self) except -1:
        """Give the stream as many waiting bytes as its windows and the peer's rate allow."""
        cdef Py_ssize_t count = self.stream.feed_from(self.unsent, self.unsent_len)
        self.unsent_len -= count
        if self.unsent_len:
            memmove(self.unsent, self.unsent + count, self.unsent_len)
        else:
            self.forget_unsent()
        return 0

    cdef void keep(self, const uint8_t* data, Py_ssize_t count) noexcept:
        """Store unsent bytes. Requires that none are stored. Without memory the circuit breaks off."""
        self.forget_unsent()
        if not resize(&self.unsent, &self.capacity, count):
            self.stream.circuit.break_off()
            return
        memcpy(self.unsent, data, count)
        self.unsent_len = count

    cdef void forget_unsent(self) noexcept:
        release(&self.unsent, &self.capacity)
        self.unsent_len = 0


cdef void release_spare(list links) noexcept:
    """Free empty buffers. This may keep the limit without ending a circuit or a link."""
    cdef Link link
    cdef Stream stream
    cdef PyObject* entry = first_with_queue()
    while entry != NULL:
        stream = <Stream>entry
        entry = stream.next
        if stream.head == stream.tail:
            stream.drop_queue()
    for link in links:
        if link.channel.outbox.length == 0:
            release(&link.channel.outbox.cells, &link.channel.outbox.capacity)
        if link.tls.waiting() == 0:
            link.tls.forget()


cdef int add_to_tally(Tunnel tunnel, Py_ssize_t count, list tunnels) except -1:
    """Count the bytes that a tunnel holds; `tunnels` lists the tunnels that hold some."""
    if tunnel.tally == 0:
        tunnels.append(tunnel)
        tunnel.tally = tunnel.held() + 1  # not 0, which stands for a tunnel that is not listed
    tunnel.tally += count
    return 0


cdef object find_greatest(list links, list sources):
    """Returns the tunnel or the link that holds most, or None where all hold nothing."""
    cdef list tunnels = []
    cdef Stream stream
    cdef Tunnel tunnel
    cdef Link link
    cdef object greatest = None
    cdef Py_ssize_t most = 0
    cdef PyObject* entry = first_with_queue()
    try:
        while entry != NULL:
            stream = <Stream>entry
            entry = stream.next
            add_to_tally(<Tunnel>stream.circuit, stream.capacity, tunnels)
        for source in sources:
            if type(source) is Local and (<Local>source).stream is not None and (<Local>source).capacity:
                add_to_tally(<Tunnel>(<Local>source).stream.circuit, (<Local>source).capacity, tunnels)
        for link in links:
            for circuit in link.channel.circuits.slots:
                if circuit is None:
                    continue
                tunnel = (<Circuit>circuit).tunnel
                if tunnel is None:
                    tunnel = <Circuit>circuit
                if tunnel.held() and tunnel.tally == 0:
                    add_to_tally(tunnel, 0, tunnels)
    except MemoryError:
        for tunnel in tunnels:
            tunnel.tally = 0
        raise
    for tunnel in tunnels:
        if tunnel.tally > most:
            most = tunnel.tally
            greatest = tunnel
        tunnel.tally = 0
    for link in links:
        if link.channel.outbox.capacity + link.tls.outgoing.capacity > most:
            most = link.channel.outbox.capacity + link.tls.outgoing.capacity
            greatest = link
    return greatest


cdef void write_off(Tunnel tunnel, list sources) noexcept:
    """End a tunnel for holding most, and free the bytes that wait on its streams."""
    cdef Stream stream
    cdef PyObject* entry
    tunnel.write_off()
    entry = first_with_queue()
    while entry != NULL:
        stream = <Stream>entry
        entry = stream.next
        if stream.circuit is tunnel:
            # The stream may have ended in good order, or its tunnel may be closed: then no event tells of it.
            stream.is_cut = True
            stream.drop_queue()
    for source in sources:
        if type(source) is Local and (<Local>source).stream is not None:
            if (<Local>source).stream.circuit is tunnel:
                (<Local>source).forget_unsent()
