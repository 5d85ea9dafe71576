"""One link to a relay: frames bytes that were read, hands relay cells to their circuits, collects cells to send.

No sockets, TLS, time or handshakes here. The caller reads TLS plaintext into a buffer of its own, calls
receive_data, acts on the events, and sends what data_to_send returns.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memcpy, memset

from torkit._fast.budget cimport IDLE_CELLS_BRIM, IDLE_CELLS_RATE, fill
from torkit._fast.cells cimport (
    CELL_BODY_LEN, CELL_LEN, CIRC_ID_LEN, Command, VAR_HEADER_LEN, VERSIONS_CIRC_ID_LEN,
    is_variable_length, load16, load32, monotonic, store16, store32,
)
from torkit._fast.circuit cimport Circuit
from torkit._fast.events cimport ChannelFailed, ControlCell, Readable
from torkit._fast.factory cimport make
from torkit._fast.stream cimport Stream

from torkit.errors import ChannelError, UsageError

# Implementation limit, bytes: VERSIONS, CERTS and AUTH_CHALLENGE of real relays take under 3 KiB.
cdef Py_ssize_t VAR_BODY_LEN_MAX = 16384

# The number of the present read, counted over all channels: two of them may serve one stream.
cdef uint64_t read_serial = 0


@cython.final
cdef class Channel:
    """The cells of one connection, from the first VERSIONS on."""

    def __cinit__(self):
        self.outbox = Outbox()
        self.circuits = IdTable()
        self.partial = bytearray()
        self.idle_cells.left = IDLE_CELLS_BRIM
        self.idle_cells.filled_at = monotonic()

    @property
    def circuit_count(self):
        return self.circuits.used

    def open_circuit(self, uint32_t circ_id, uint16_t first_stream_id, int relay_early_count):
        """Returns a circuit without hops. `circ_id` has to have its top bit set and not to be in use.

        `first_stream_id` is random; `relay_early_count` is how many cells may go as RELAY_EARLY.
        tor-spec, "CREATE and CREATED cells" and "Relay cells".
        """
        if not circ_id & 0x80000000:
            raise UsageError("the initiator's circuit ids have their top bit set")
        if self.circuits.find(circ_id) is not None:
            raise UsageError("the circuit id is in use")
        make()
        circuit = Circuit(circ_id, self.outbox, first_stream_id, relay_early_count)
        self.circuits.add(circuit)
        return circuit

    def close_circuit(self, Circuit circuit not None):
        """Forget a circuit; cells that still arrive for it are dropped. The caller sends DESTROY.

        Closing twice is fine. Raises UsageError for a circuit of another channel.
        """
        if circuit.outbox is not self.outbox:
            raise UsageError("the circuit is another channel's")
        circuit.end()
        circuit.forget_breakage()
        if self.circuits.find(circuit.id) is circuit:  # its id may be another's by now
            self.circuits.remove(circuit.id)

    def send_control(self, uint32_t circ_id, uint8_t command, const uint8_t[::1] body not None):
        """Queue a cell that is not a relay cell. Fixed-length bodies are filled up with zeros.

        Raises UsageError for a body that does not fit, and MemoryError, having queued nothing.
        """
        cdef Py_ssize_t count = body.shape[0]
        cdef uint8_t* cell
        cdef Py_ssize_t header_len
        if is_variable_length(command):
            if count > VAR_BODY_LEN_MAX:
                raise UsageError(f"a cell body of {count} bytes is too long")
            header_len = VAR_HEADER_LEN
            if command == Command.VERSIONS:
                header_len -= CIRC_ID_LEN - VERSIONS_CIRC_ID_LEN
            cell = self.outbox.reserve(header_len + count)
            if cell == NULL:
                raise MemoryError
            if command == Command.VERSIONS:
                store16(cell, 0)
            else:
                store32(cell, circ_id)
            cell[header_len - 3] = command
            store16(cell + header_len - 2, <uint16_t>count)
            if count:
                memcpy(cell + header_len, &body[0], count)
            return
        if count > CELL_BODY_LEN:
            raise UsageError(f"a cell body holds {CELL_BODY_LEN} bytes, not {count}")
        cell = self.outbox.begin_cell(circ_id, command)
        if cell == NULL:
            raise MemoryError
        memset(cell, 0, CELL_BODY_LEN)
        if count:
            memcpy(cell, &body[0], count)

    def data_to_send(self):
        """Returns every cell sealed since the last call, whole cells only; b"" if there are none."""
        data = self.outbox.take()
        if data:
            self.last_active = monotonic()
        return data

    def receive_data(self, uint8_t[::1] buffer not None, Py_ssize_t nbytes):
        """Act on `nbytes` of link plaintext at the start of `buffer`, decrypting in place.

        Returns the events in order. Any split of the bytes over calls gives the same events but for
        how often Readable repeats. Never raises for a peer's faults; after ChannelFailed it reads
        nothing more. A cell for which memory is too short ends its circuit. Where the channel itself
        lacks memory, MemoryError is raised, and nothing more is read.
        """
        if not 0 <= nbytes <= buffer.shape[0]:
            raise UsageError(f"{nbytes} bytes of a buffer of {buffer.shape[0]}")
        return self.receive_read(&buffer[0], nbytes) if nbytes else []

    cdef list receive_read(self, uint8_t* data, Py_ssize_t nbytes):
        global read_serial
        cdef list events
        if self.has_failed:
            return []
        read_serial += 1
        self.last_active = monotonic()
        fill(&self.idle_cells, self.last_active, IDLE_CELLS_RATE, 0, IDLE_CELLS_BRIM)
        try:
            events = []
            self.receive_bytes(data, nbytes, events)
            if self.outbox.broken:
                self.tell_broken(events)
            return deliver(events) if events else events
        except MemoryError:
            self.has_failed = True  # a part of a cell may be lost
            raise

    cdef int receive_bytes(self, uint8_t* data, Py_ssize_t nbytes, list events) except -1:
        cdef Py_ssize_t used = 0
        if self.partial:
            used = self.complete_partial(data, nbytes, events)
        if self.partial or self.has_failed:
            return 0
        used += self.receive(data + used, nbytes - used, events)
        if used < nbytes and not self.has_failed:
            self.partial += data[used:nbytes]
        return 0

    cdef int tell_broken(self, list events) except -1:
        """Returns CircuitFailed for each circuit that broke off. After a MemoryError it can be called again."""
        for entry in self.circuits.slots:
            if entry is not None and (<Circuit>entry).broken:
                (<Circuit>entry).tell(events)
        return 0

    cdef Py_ssize_t complete_partial(self, uint8_t* data, Py_ssize_t count, list events) except -1:
        """Slow road, once per read: the cell that began in an earlier read. Returns the bytes used."""
        cdef Py_ssize_t used = 0
        cdef Py_ssize_t wanted, length, taken
        cdef uint8_t* cell
        while True:
            cell = <uint8_t*>PyByteArray_AS_STRING(self.partial)
            length = self.cell_length(cell, len(self.partial))
            if length < 0 or length > VAR_HEADER_LEN + VAR_BODY_LEN_MAX or len(self.partial) == length:
                whole = self.partial
                self.partial = bytearray()
                self.receive(<uint8_t*>PyByteArray_AS_STRING(whole), len(whole), events)
                return used
            wanted = length - len(self.partial) if length > 0 else 1
            taken = min(wanted, count - used)
            if taken == 0:
                return used
            self.partial += data[used:used + taken]
            used += taken

    cdef Py_ssize_t receive(self, uint8_t* data, Py_ssize_t count, list events) except -1:
        """Act on every whole cell; returns the bytes used."""
        cdef Py_ssize_t used = 0
        while True:
            try:
                self.receive_cells(data, count, &used, events)
                return used
            except MemoryError:
                if not self.break_off_for(data + used):
                    raise
                used += CELL_LEN

    cdef int receive_cells(self, uint8_t* data, Py_ssize_t count, Py_ssize_t* used, list events) except -1:
        """The loop of `receive`. Where it raises MemoryError, the cell at `used` is half acted on."""
        cdef Py_ssize_t length
        while not self.has_failed:
            length = self.cell_length(data + used[0], count - used[0])
            if length < 0 or length > VAR_HEADER_LEN + VAR_BODY_LEN_MAX:
                self.has_failed = True
                events.append(ChannelFailed(ChannelError(
                    "a fixed-length cell came before VERSIONS" if length < 0 else f"a cell of {length} bytes arrived")))
                break
            if length == 0 or length > count - used[0]:
                break
            self.receive_cell(data + used[0], length, events)
            used[0] += length
        return 0

    cdef bint break_off_for(self, const uint8_t* cell) noexcept:
        """Memory was too short for this cell: end its circuit. False where it is not a circuit's."""
        cdef Circuit circuit
        if not self.is_versioned or (cell[CIRC_ID_LEN] != Command.RELAY and cell[CIRC_ID_LEN] != Command.RELAY_EARLY):
            return False
        circuit = <Circuit>self.circuits.find(load32(cell))
        if circuit is not None:
            circuit.break_off()
        return True

    cdef Py_ssize_t cell_length(self, const uint8_t* data, Py_ssize_t count) noexcept nogil:
        """Returns the length of the cell at `data`; 0 if more bytes are needed to know; -1 if it may not be here."""
        cdef Py_ssize_t id_len = CIRC_ID_LEN if self.is_versioned else VERSIONS_CIRC_ID_LEN
        if count <= id_len:
            return 0
        if not is_variable_length(data[id_len]):
            # Before VERSIONS a fixed-length cell has no agreed length.
            return CELL_LEN if self.is_versioned else -1
        if count < id_len + 3:
            return 0
        return id_len + 3 + load16(data + id_len + 1)

    cdef int receive_cell(self, uint8_t* cell, Py_ssize_t length, list events) except -1:
        cdef Py_ssize_t id_len = CIRC_ID_LEN if self.is_versioned else VERSIONS_CIRC_ID_LEN
        cdef uint32_t circ_id = load32(cell) if self.is_versioned else 0
        cdef uint8_t command = cell[id_len]
        cdef Circuit circuit
        if command == Command.RELAY or command == Command.RELAY_EARLY:
            circuit = <Circuit>self.circuits.find(circ_id)
            # A circuit that we have just closed may still have cells under way.
            if circuit is not None:
                circuit.receive(command, cell + id_len + 1, read_serial, events)
            return 0
        if command == Command.PADDING or command == Command.VPADDING:
            return self.count_idle(events)
        if command == Command.VERSIONS:
            self.is_versioned = True
        elif command == Command.DESTROY:
            circuit = <Circuit>self.circuits.find(circ_id)
            if circuit is None:
                return self.count_idle(events)
            circuit.end()
        elif not self.is_answer(circ_id, command):
            self.count_idle(events)
            if self.has_failed:
                return 0
        cdef Py_ssize_t header_len = id_len + (3 if is_variable_length(command) else 1)
        events.append(ControlCell(circ_id, command, cell[header_len:length]))
        return 0

    cdef bint is_answer(self, uint32_t circ_id, uint8_t command):
        """Returns whether a cell may answer a circuit of ours: a second one for it ends the circuit."""
        return command in (Command.CREATED, Command.CREATED_FAST, Command.CREATED2) and (
            self.circuits.find(circ_id) is not None)

    cdef int count_idle(self, list events) except -1:
        """Count a cell that moves no data. A peer that goes on sending such cells loses the channel."""
        self.idle_cells.left -= 1
        if self.idle_cells.left < 0 and not self.has_failed:
            self.has_failed = True
            events.append(ChannelFailed(ChannelError("the relay keeps sending cells that serve nothing")))
        return 0


cdef list deliver(list events):
    """Write the streams' bytes to their sinks. Returns the events, without Readables that a sink has taken whole."""
    cdef Stream stream
    cdef list left = []
    for event in events:
        if type(event) is Readable:
            stream = <Stream>(<Readable>event).stream
            if stream.sink >= 0 and stream.drain():
                continue
        left.append(event)
    return left
