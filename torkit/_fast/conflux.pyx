"""Linked circuits: one tunnel whose messages come and go by several legs, in one order. Proposal 329.

Eight relay commands are counted: the number of such a message is how many went before it, by whatever leg. Whoever
goes on by another leg first tells there, by SWITCH, how many numbers that leg has not seen. What comes early waits
in a queue of its leg, where numbers only grow, so the next of all is at the head of some queue.

Acknowledgement, congestion control and layers are each leg's own, and act as cells arrive (circuit.pyx). Streams,
their states and their queues see messages only in their order (tunnel.pyx).

A set ends with any of its legs, unless that leg has never carried a counted cell: nothing says what was lost with it.
What the exit has sent on such a leg, and we have not seen, may be lost, too, and C tor's exits do not end the set for
that. Where one leg is left, a number that is missing never comes: then the set ends.

Acknowledging at arrival lets one leg bring any amount while another stands still. So SENDMEs of a leg that runs
far ahead are held back until the gap has closed. The leg that the gap is on is acknowledged as ever, so this ends.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from torkit._fast.cells cimport RelayCommand, load32, store32
from torkit._fast.circuit cimport Circuit, Hop
from torkit._fast.factory cimport check_maker, make
from torkit._fast.memory cimport release, resize
from torkit._fast.onion cimport TAG_LEN_MAX
from torkit._fast.stream cimport Stream, StreamState
from torkit._fast.tunnel cimport Breakage, Relayed, Tunnel, is_for_streams, name_of

from torkit.errors import CircuitError, UsageError

# Specification constants (proposal 329, "Sequencing").
cdef enum:
    SWITCH_LEN = 4
cdef uint64_t SWITCH_MAX = 1 << 31  # numbers that one SWITCH may pass over

# Implementation limit, bytes: an empty queue above it is freed.
cdef Py_ssize_t KEPT_QUEUE = 131072


cdef str LOST = "a message on linked circuits was lost with one of them"


cdef inline Py_ssize_t space_of(Py_ssize_t length) noexcept nogil:
    """Bytes that a waiting message takes, so that the next one is aligned."""
    return <Py_ssize_t>sizeof(Early) + ((length + 7) & ~7)


@cython.final
cdef class Leg:
    def __cinit__(self):
        check_maker(self)

    def __dealloc__(self):
        self.forget()

    cdef Early* first(self) noexcept:
        """Returns the message of least number that waits here, or NULL."""
        return <Early*>(self.queue + self.head) if self.head < self.tail else NULL

    cdef bint push(self, uint64_t number, uint8_t command, uint16_t stream_id, const uint8_t* data,
                   Py_ssize_t length) noexcept:
        """Store a message until its turn. False without memory."""
        cdef Early* early
        cdef Py_ssize_t count = space_of(length)
        if self.tail + count > self.capacity:
            if 2 * self.head <= self.capacity and not resize(
                    &self.queue, &self.capacity, max(4096, 2 * self.capacity, self.tail + count)):
                return False
            memmove(self.queue, self.queue + self.head, self.tail - self.head)
            self.tail -= self.head
            self.head = 0
        early = <Early*>(self.queue + self.tail)
        early.number = number
        early.length = length
        early.stream_id = stream_id
        early.command = command
        if length:
            memcpy(self.queue + self.tail + sizeof(Early), data, length)
        self.tail += count
        return True

    cdef void pop(self) noexcept:
        """Forget the message that `first` gives."""
        self.head += space_of(self.first().length)
        if self.head == self.tail:
            self.head = self.tail = 0
            if self.capacity > KEPT_QUEUE:
                release(&self.queue, &self.capacity)

    cdef bint hold(self, const uint8_t* tag) noexcept:
        """Keep a tag whose SENDME is due, for later. False without memory."""
        cdef int tag_len = self.hop.layer.tag_len
        if self.tags_len + tag_len > self.tags_capacity and not resize(
                &self.tags, &self.tags_capacity, 2 * self.tags_capacity + 8 * tag_len):
            return False
        memcpy(self.tags + self.tags_len, tag, tag_len)
        self.tags_len += tag_len
        return True

    cdef void let_go(self) noexcept:
        """Send the SENDMEs that were held back."""
        cdef int tag_len = self.hop.layer.tag_len
        cdef Py_ssize_t at = 0
        while at < self.tags_len and not self.circuit.is_over:
            self.circuit.acknowledge(len(self.circuit.hops) - 1, self.hop, self.tags + at)
            at += tag_len
        self.tags_len = 0

    cdef void forget(self) noexcept:
        """Free what waits."""
        self.head = self.tail = self.tags_len = 0
        release(&self.queue, &self.capacity)
        release(&self.tags, &self.tags_capacity)

    cdef bint has_been_used(self) noexcept:
        """Returns whether something may be lost with it."""
        return self.sent > 0 or self.received > 0

    cdef double rtt(self) noexcept:
        """Returns its round-trip time, in seconds: by congestion control, once that has measured one."""
        cdef int64_t measured = self.hop.vegas.rtt.ewma
        return measured / 1e6 if measured else self.linking_time


def link(circuits, rtts, bint fills, Py_ssize_t queued_max=QUEUED_MAX):
    """One tunnel over `circuits`, whose last hop has agreed to that on each of them; `rtts` are in seconds.

    Data goes by the leg of least delay, and waits where that one has no room; with `fills` it then goes by another.
    Of what comes early `queued_max` bytes may wait, where that is less than our own limit.
    Raises UsageError for circuits that cannot be legs.
    """
    if len(circuits) != len(rtts) or not circuits:
        raise UsageError("a set has legs, and each a delay")
    make()
    cdef LinkedSet linked = LinkedSet.__new__(LinkedSet)
    linked.fills = fills
    linked.queued_max = min(queued_max, QUEUED_MAX)
    cdef Circuit circuit
    cdef Leg leg
    for circuit, rtt in zip(circuits, rtts):
        if circuit is None or circuit.is_over or circuit.streams.used or circuit.tunnel is not None:
            raise UsageError("a leg is a circuit that is open, without streams, and no other set's")
        if not circuit.hops or (<Hop>circuit.hops[len(circuit.hops) - 1]).vegas is None:
            raise UsageError("the last hop of a leg has congestion control")
        if linked.legs and len(circuit.hops) - 1 != linked.hop or linked.leg_of(circuit) is not None:
            raise UsageError("legs are different circuits of one length")
        make()
        leg = Leg.__new__(Leg)
        leg.circuit = circuit
        leg.hop = <Hop>circuit.hops[len(circuit.hops) - 1]
        leg.linking_time = rtt
        linked.hop = <int>len(circuit.hops) - 1
        linked.legs.append(leg)
    for leg in linked.legs:
        leg.circuit.tunnel = linked
    linked.next_stream_id = (<Leg>linked.legs[0]).circuit.next_stream_id
    return linked


@cython.final
cdef class LinkedSet(Tunnel):
    """Made by `link`. `owner` is the caller's."""

    def __cinit__(self):
        self.legs = []

    @property
    def leg_count(self):
        return self.count_legs()

    @property
    def queued_bytes(self):
        """Bytes that have come early and wait."""
        return self.queued

    def carried(self, Circuit circuit not None):
        """Counted cells that a leg has carried, also one that is lost, and its delay: (sent, received, seconds).

        Raises UsageError for a circuit that is no leg.
        """
        cdef Leg leg
        for leg in self.legs:
            if leg.circuit is circuit:
                return leg.cells_sent, leg.cells_received, leg.rtt()
        raise UsageError("the circuit is no leg of this set")

    def end(self):
        """End the set and every stream. The caller closes the circuits."""
        self.finish()

    cdef Leg leg_of(self, Tunnel circuit):
        """Returns the leg that is this circuit, or None."""
        cdef Leg leg
        for leg in self.legs:
            if leg.circuit is circuit and not leg.is_lost:
                return leg
        return None

    cdef Leg first_leg(self):
        """Returns the first leg that is not lost: there always is one."""
        cdef Leg leg
        for leg in self.legs:
            if not leg.is_lost:
                return leg

    cdef int count_legs(self) noexcept:
        cdef Leg leg
        cdef int count = 0
        for leg in self.legs:
            count += not leg.is_lost
        return count

    cdef bint has_windows(self, int hop) except -1:
        if hop != self.hop:
            raise UsageError(f"streams of linked circuits are their last hop's, not hop {hop}'s")
        return False

    # --- arriving ---------------------------------------------------------------------------------

    cdef int arrive(self, Tunnel circuit, int hop_index, Relayed* message, const uint8_t* tag, uint64_t read_serial,
                    list events) except -1:
        cdef Leg leg = self.leg_of(circuit)
        if self.is_over or leg is None:
            return 0
        if message.command == RelayCommand.DROP and message.stream_id == 0:
            return leg.circuit.count_idle(events)
        if hop_index != self.hop:
            return self.fail(events, f"{name_of(message.command)} arrived from hop {hop_index + 1} of "
                                            "linked circuits")
        if message.command == RelayCommand.SENDME and message.stream_id == 0:
            return leg.circuit.receive_circuit_sendme(leg.hop, message.data, message.length, events)
        if message.command == RelayCommand.CONFLUX_SWITCH and message.stream_id == 0:
            if message.length < SWITCH_LEN or leg.has_switched:
                return self.fail(events, "CONFLUX_SWITCH arrived where none may come")
            leg.received += load32(message.data)
            leg.has_switched = True
            return 0
        if not is_for_streams(message.command) or message.command == RelayCommand.BEGIN_DIR:
            return self.fail(events, f"{name_of(message.command)} arrived on linked circuits")
        return self.arrive_counted(leg, message.command, message.stream_id, message.data, message.length, tag,
                                   read_serial, events)

    cdef int arrive_counted(self, Leg leg, uint8_t command, uint16_t stream_id, const uint8_t* data,
                            Py_ssize_t length, const uint8_t* tag, uint64_t read_serial, list events) except -1:
        cdef Circuit circuit = leg.circuit
        leg.received += 1
        leg.cells_received += 1
        leg.has_switched = False
        if command == RelayCommand.DATA and leg.hop.count_data():
            if self.queued <= HOLD_ABOVE and leg.tags_len == 0 or leg.received == self.delivered + 1:
                leg.let_go()
                circuit.acknowledge(self.hop, leg.hop, tag)
            elif not leg.hold(tag):
                circuit.break_off()
        if self.is_over:
            return 0
        if leg.received <= self.delivered:
            return self.fail(events, "a message arrived on linked circuits whose number has been")
        if leg.received == self.delivered + 1:
            self.delivered += 1
            self.deliver(command, stream_id, data, length, read_serial, events)
            return self.drain(read_serial, events)
        if self.count_legs() == 1:
            return self.fail(events, LOST)
        if not leg.push(leg.received, command, stream_id, data, length):
            circuit.break_off()
            return 0
        self.queued += space_of(length)
        if self.queued > self.queued_max:
            return self.fail(events, "too much has arrived on linked circuits before what comes first")
        return 0

    cdef int deliver(self, uint8_t command, uint16_t stream_id, const uint8_t* data, Py_ssize_t length,
                     uint64_t read_serial, list events) except -1:
        """Deliver a message whose turn it is."""
        cdef Stream stream = <Stream>self.streams.find(stream_id)
        if stream is None:
            return self.fail(events, f"{name_of(command)} arrived for a stream that is not open")
        if command == RelayCommand.DATA:
            return self.deliver_data(stream, data, length, read_serial, events)
        return self.deliver_message(self.hop, command, stream_id, stream, data[:length], events)

    cdef int drain(self, uint64_t read_serial, list events) except -1:
        """Deliver the messages that waited for the one just delivered."""
        cdef Leg leg
        cdef Early* early
        cdef bint has_moved = self.queued > 0
        while has_moved:
            has_moved = False
            for leg in self.legs:
                early = leg.first()
                while early != NULL and early.number == self.delivered + 1:
                    has_moved = True
                    self.delivered += 1
                    self.deliver(early.command, early.stream_id, <uint8_t*>early + sizeof(Early), early.length,
                                 read_serial, events)
                    if self.is_over:
                        return 0
                    self.queued -= space_of(early.length)
                    leg.pop()
                    early = leg.first()
                if early != NULL and early.number <= self.delivered:
                    return self.fail(events, "a message arrived on linked circuits whose number has been")
            if self.queued <= RELEASE_BELOW:
                for leg in self.legs:
                    leg.let_go()
                    if self.is_over:
                        return 0
        return 0

    cdef int fail(self, list events, str reason) except -1:
        """End all legs. The owner is told by the first of them."""
        if self.is_over:
            return 0
        self.finish()
        return self.first_leg().circuit.fail(events, reason)

    # --- departing --------------------------------------------------------------------------------

    cdef Leg choose(self):
        """Returns the leg for the next DATA cell, or None."""
        cdef Leg leg
        cdef Leg best = None
        for leg in self.legs:
            if not leg.is_lost and (best is None or leg.rtt() < best.rtt()) and (not self.fills or leg.hop.has_room()):
                best = leg
        if best is not None and self.current is not None and self.current.sent - best.sent > SWITCH_MAX:
            best = self.current
        return best if best is not None and best.hop.has_room() else None

    cdef bint switch_to(self, Leg leg) except -1:
        """Let the next counted cell go by a leg. False where the set has ended."""
        cdef uint8_t[TAG_LEN_MAX] tag
        cdef uint8_t[SWITCH_LEN] body
        if self.current is not None and self.current is not leg:
            store32(body, <uint32_t>(self.current.sent - leg.sent))
            if not leg.circuit.originate(self.hop, RelayCommand.CONFLUX_SWITCH, 0, body, SWITCH_LEN, tag):
                return False
            leg.sent = self.current.sent
        self.current = leg
        return True

    cdef Py_ssize_t seal_data(self, Stream stream, const uint8_t* data, Py_ssize_t count) except -1:
        """Stream.put: as many DATA cells as the windows of the legs that are chosen allow."""
        cdef Py_ssize_t sealed = 0
        cdef int before
        cdef Leg leg
        if stream.is_xoff or stream.is_resolve or (
                stream.state != StreamState.OPEN and stream.state != StreamState.CONNECTING):
            return 0
        while sealed < count and not self.is_over:
            leg = self.choose()
            if leg is None:
                if not stream.is_blocked:
                    stream.is_blocked = True
                    self.wait_for_window(stream)
                return sealed
            if self.switch_to(leg):
                before = leg.hop.in_flight
                sealed += leg.circuit.seal_run(self.hop, leg.hop, stream, data + sealed, count - sealed)
                leg.sent += leg.hop.in_flight - before
                leg.cells_sent += leg.hop.in_flight - before
        return sealed

    cdef int seal_message(self, int hop, uint8_t command, uint16_t stream_id, const uint8_t[::1] body) except -1:
        cdef Leg leg
        if hop != self.hop or not is_for_streams(command) or command == RelayCommand.BEGIN_DIR:
            raise UsageError(f"{name_of(command)} is not sent to hop {hop} of linked circuits")
        if self.is_over:
            return 0
        leg = self.choose()
        if leg is None:  # messages other than DATA never wait for a window
            leg = self.current if self.current is not None else self.first_leg()
        if self.switch_to(leg):
            leg.circuit.seal_message(hop, command, stream_id, body)
            leg.sent += 1
            leg.cells_sent += 1
        return 0

    # --- the end ----------------------------------------------------------------------------------

    cdef void lose(self, Tunnel circuit) noexcept:
        """It allocates nothing, so that it can always be done: a leg that is lost stays in the list."""
        cdef Leg leg = self.leg_of(circuit)
        if leg is None or self.is_over:
            return
        if leg.has_been_used() or leg is self.current or self.count_legs() == 1:
            self.finish()
        else:
            leg.is_lost = True
            if self.queued and self.count_legs() == 1:
                self.finish()

    cdef void finish(self) noexcept:
        """As `end`. Legs that are still open take nothing more, and wait for their owners to close them."""
        cdef Leg leg
        if self.is_over:
            return
        self.is_over = True
        self.end_streams()
        for leg in self.legs:
            leg.forget()
        self.queued = 0

    cdef void break_for(self, Breakage reason) noexcept:
        cdef Leg leg
        self.finish()
        for leg in self.legs:
            leg.circuit.break_for(reason)

    cdef Py_ssize_t held(self) noexcept:
        cdef Leg leg
        cdef Py_ssize_t count = self.kept
        for leg in self.legs:
            count += leg.capacity + leg.tags_capacity
        return count
