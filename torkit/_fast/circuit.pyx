"""One circuit: opens arriving relay cells down to its streams, seals departing ones through its hops.

Bulk data touches no Python here. A message other than DATA or SENDME becomes a Message event. proto/ knows the
handshakes, and what messages mean.

Flow of DATA cells (tor-spec, "Flow control"), both ways alike: the receiver acknowledges every
`increment` cells of a hop with a circuit-level SENDME that carries a tag of the last of them, which only
somebody who decrypted it can know; the sender keeps at most `window` unacknowledged. We acknowledge on
arrival, so a slow reader never holds its neighbours back: its own stream is held by the stream's
window, and that window bounds its queue. Where a hop has congestion control, its window is moved at every
SENDME (vegas.pyx), and its streams are held by XON and XOFF instead of windows.

A hop's kind of layer decides the format of its relay cells: v0 with both kinds of tor1, v1 with CGO.
"""

cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from torkit._fast.cells cimport CELL_BODY_LEN, Command, RelayCommand, load16, monotonic, store16
from torkit._fast.cgo cimport CGO_TAG_LEN
from torkit._fast.events cimport CircuitFailed, Message, Writable
from torkit._fast.factory cimport check_maker, make
from torkit._fast.onion cimport LayerKind
from torkit._fast.openssl cimport CRYPTO_memcmp
from torkit._fast.stream cimport STREAM_WINDOW_INCREMENT, STREAM_WINDOW_START, StreamState
from torkit._fast.tunnel cimport MAX_STREAMS, Relayed, is_for_streams, name_of
from torkit._fast.vegas cimport Vegas

from torkit.errors import CircuitClosed, CircuitError, DestroyReason, UsageError

# Implementation limit: streams on a circuit of our onion service before those that are long over are looked for.
cdef Py_ssize_t SWEEP_FROM = 64

# Specification constants (tor-spec, "SENDME cell format").
cdef enum:
    SENDME_VERSION = 1
    SENDME_HEADER_LEN = 3         # version, length of the tag


@cython.final
cdef class Hop:
    def __cinit__(self):
        check_maker(self)

    def __dealloc__(self):
        free(self.tags)

    cdef bint count_data(self) noexcept:
        """Count a DATA cell that has arrived. Returns whether a SENDME is due for it and those before it."""
        self.unacknowledged += 1
        if self.unacknowledged < self.increment:
            return False
        self.unacknowledged = 0
        return True

    cdef bint push_tag(self, const uint8_t* tag) noexcept:
        """Remember the tag of the cell just sealed, which will cause a SENDME. False without memory."""
        cdef Tag* grown
        cdef int i
        if self.tag_count == self.tags_len:
            grown = <Tag*>calloc(2 * self.tags_len + 8, sizeof(Tag))
            if grown == NULL:
                return False
            for i in range(self.tag_count):
                grown[i] = self.tags[(self.first_tag + i) % self.tags_len]
            free(self.tags)
            self.tags = grown
            self.tags_len = 2 * self.tags_len + 8
            self.first_tag = 0
        cdef Tag* entry = &self.tags[(self.first_tag + self.tag_count) % self.tags_len]
        memcpy(entry.bytes, tag, self.layer.tag_len)
        if self.vegas is not None:
            entry.sealed_at = self.vegas.clock.now()
        self.tag_count += 1
        return True


@cython.final
cdef class Circuit(Tunnel):
    """Made by Channel.open_circuit. Hops are numbered from 0, the guard. `owner` is the caller's."""

    def __cinit__(self, uint32_t circ_id, Outbox outbox not None, uint16_t first_stream_id,
                  int relay_early_count):
        self.id = circ_id
        self.outbox = outbox
        self.hops = []
        self.next_stream_id = first_stream_id
        self.relay_early_left = relay_early_count
        self.client_hop = -1
        self.sweep_at = SWEEP_FROM

    @property
    def hop_count(self):
        return len(self.hops)

    def add_hop(self, Layer layer not None, int window=CIRCUIT_WINDOW_START, Vegas vegas=None):
        """Extend by one hop whose handshake has succeeded.

        `window`, in DATA cells, is for fixed windows; with congestion control `vegas` has the window, and
        what was negotiated for one SENDME. CGO requires congestion control: stream SENDMEs cannot be
        expressed in its cells.
        """
        cdef int64_t increment = CIRCUIT_WINDOW_INCREMENT if vegas is None else vegas.increment
        cdef int64_t first = window if vegas is None else vegas.window
        if len(self.hops) == MAX_HOPS:
            raise UsageError(f"a circuit has at most {MAX_HOPS} hops")
        if increment < 1 or first < increment:
            raise UsageError(f"a window of {first} cells cannot be acknowledged {increment} at a time")
        if layer.kind == LayerKind.CGO and vegas is None:
            raise UsageError("a CGO hop needs congestion control")
        if layer.is_shared:
            raise UsageError("the keys of one hop are for one hop")
        make()
        cdef Hop hop = Hop.__new__(Hop)
        layer.is_shared = True
        hop.layer = layer
        hop.vegas = vegas
        hop.fixed_window = window
        hop.increment = <int>increment
        self.hops.append(hop)
        if self.is_over:  # since the handshake was answered
            layer.wipe()

    def vegas(self, int hop):
        """Returns the congestion control of a hop; None where its windows are fixed."""
        if not 0 <= hop < len(self.hops):
            raise UsageError(f"no hop {hop} on a circuit of {len(self.hops)}")
        return (<Hop>self.hops[hop]).vegas

    def let_in(self, int hop):
        """Let the client behind `hop` open streams by BEGIN: we are the onion service that it has joined with.

        Each is told by a Message with BEGIN; its stream takes DATA from then on, and `put` takes what we send,
        once the caller has answered with CONNECTED.
        """
        if not 0 <= hop < len(self.hops):
            raise UsageError(f"no hop {hop} on a circuit of {len(self.hops)}")
        self.client_hop = hop

    cdef int seal_message(self, int hop, uint8_t command, uint16_t stream_id, const uint8_t[::1] body) except -1:
        cdef uint8_t[TAG_LEN_MAX] tag
        if not 0 <= hop < len(self.hops):
            raise UsageError(f"no hop {hop} on a circuit of {len(self.hops)}")
        cdef Py_ssize_t room = data_len_max((<Hop>self.hops[hop]).layer.kind)
        if body.shape[0] > room:
            raise UsageError(f"a relay message holds {room} bytes, not {body.shape[0]}")
        if command == RelayCommand.DATA:
            raise UsageError("DATA is sent by Stream.put")
        if command == RelayCommand.EXTEND2 and self.relay_early_left == 0:
            raise UsageError("no RELAY_EARLY cell is left to extend this circuit with")
        if not self.is_over:
            self.originate(hop, command, stream_id, &body[0] if body.shape[0] else NULL, body.shape[0], tag)
        return 0

    cdef bint has_windows(self, int hop) except -1:
        if not 0 <= hop < len(self.hops):
            raise UsageError(f"no hop {hop} on a circuit of {len(self.hops)}")
        return (<Hop>self.hops[hop]).vegas is None

    def end(self):
        """End the circuit and every stream. Queued bytes stay."""
        self.finish()

    def acknowledged(self, int hop):
        """Returns how many DATA cells of `hop` our circuit SENDMEs have acknowledged."""
        if not 0 <= hop < len(self.hops):
            raise UsageError(f"no hop {hop} on a circuit of {len(self.hops)}")
        return (<Hop>self.hops[hop]).acknowledged

    cdef void finish(self) noexcept:
        """As `end`. It allocates nothing, so that it always succeeds. No layer is used from here on."""
        self.is_over = True
        self.end_streams()
        for hop in self.hops:
            (<Hop>hop).layer.wipe()
        cdef Tunnel tunnel = self.tunnel
        self.tunnel = None
        if tunnel is not None:
            tunnel.lose(self)

    cdef void break_for(self, Breakage reason) noexcept:
        if not self.is_over:
            self.finish()
            self.broken = reason
            self.outbox.broken += 1

    cdef int tell(self, list events) except -1:
        """Tell the owner of a circuit that broke off. After a MemoryError it can be called again."""
        cdef str why = "memory ran out while the circuit was served"
        if self.broken == Breakage.OVER_LIMIT:
            why = "the circuit held the most memory when the limit was passed"
        events.append(CircuitFailed(self, CircuitClosed(why, reason=DestroyReason.RESOURCELIMIT)))
        self.forget_breakage()
        return 0

    cdef void forget_breakage(self) noexcept:
        """Note that the owner has been told, or has closed the circuit by itself."""
        self.outbox.broken -= self.broken != Breakage.NOT_BROKEN
        self.broken = Breakage.NOT_BROKEN

    # --- arriving -----------------------------------------------------------------------------

    cdef int receive(self, uint8_t command, uint8_t* body, uint64_t read_serial, list events) except -1:
        """Open one relay cell in place and act on it. Bad cells end the circuit by an event."""
        cdef uint8_t[TAG_LEN_MAX] tag
        cdef Py_ssize_t hop_count = len(self.hops)
        cdef Py_ssize_t i
        cdef int recognized = 0
        cdef Hop hop = None
        if self.is_over:
            return 0
        if command == Command.RELAY_EARLY:
            return self.fail(events, "a RELAY_EARLY cell arrived, which only clients send")
        for i in range(hop_count):
            hop = <Hop>self.hops[i]
            recognized = hop.layer.backward(command, body, i == hop_count - 1, tag)
            if recognized != 0:
                break
        if recognized < 0:
            self.break_off()
            return 0
        if recognized != 1:
            return self.fail(events, f"a relay cell was recognized by none of the {hop_count} hops")

        cdef Relayed message
        memset(&message, 0, sizeof(message))
        cdef str problem = decode(hop.layer.kind, body, &message)
        if problem is not None:
            return self.fail(events, problem)
        if self.tunnel is not None:
            return self.tunnel.arrive(self, <int>i, &message, tag, read_serial, events)
        if message.stream_id == 0:
            if message.command == RelayCommand.SENDME:
                return self.receive_circuit_sendme(hop, message.data, message.length, events)
            return self.deliver_message(<int>i, message.command, 0, None, message.data[:message.length], events)
        if message.command == RelayCommand.BEGIN and i == self.client_hop:
            return self.receive_begin(&message, events)
        cdef Stream stream = <Stream>self.streams.find(message.stream_id)
        if stream is None and i == self.client_hop and message.command != RelayCommand.RESOLVE:
            # Perhaps of a stream that we ended, and forgot to have room.
            if message.command == RelayCommand.DATA and hop.count_data():
                self.acknowledge(<int>i, hop, tag)
            return self.count_idle(events)
        if stream is None:
            return self.fail(events, f"{name_of(message.command)} arrived for a stream that is not open")
        if stream.hop != i:
            return self.fail(events, f"{name_of(message.command)} arrived from hop {i + 1} for a stream of "
                                     f"hop {stream.hop + 1}")
        if message.command == RelayCommand.DATA:
            if hop.count_data():
                self.acknowledge(<int>i, hop, tag)
            return self.deliver_data(stream, message.data, message.length, read_serial, events)
        if message.command == RelayCommand.SENDME:
            return self.receive_stream_sendme(stream, events)
        return self.deliver_message(<int>i, message.command, message.stream_id, stream,
                                    message.data[:message.length], events)

    cdef void acknowledge(self, int hop_index, Hop hop, const uint8_t* tag) noexcept:
        """Send the SENDME for as many DATA cells of a hop as one acknowledges; `tag` is the last one's."""
        cdef uint8_t[TAG_LEN_MAX] ignored
        cdef uint8_t[SENDME_HEADER_LEN + TAG_LEN_MAX] body
        hop.acknowledged += hop.increment
        body[0] = SENDME_VERSION
        store16(body + 1, hop.layer.tag_len)
        memcpy(body + SENDME_HEADER_LEN, tag, hop.layer.tag_len)
        self.originate(hop_index, RelayCommand.SENDME, 0, body, SENDME_HEADER_LEN + hop.layer.tag_len, ignored)

    cdef int receive_begin(self, Relayed* message, list events) except -1:
        """A client of our onion service opens a stream. Its DATA may follow in the same read."""
        cdef Stream stream = <Stream>self.streams.find(message.stream_id)
        if stream is not None:
            if stream.state != StreamState.HALF_OPEN:
                return self.fail(events, "BEGIN arrived for a stream that is open")
            self.streams.remove(message.stream_id)  # the client has our END: nothing more comes for the old one
        elif self.streams.used >= self.sweep_at:
            self.sweep()
        if not self.has_room:
            return self.fail(events, "the client opens more streams than a circuit has room for")
        stream = self.add_stream(self.client_hop, message.stream_id, False)
        stream.state = StreamState.OPEN
        events.append(Message(self, self.client_hop, message.command, message.stream_id, stream,
                              message.data[:message.length]))
        return 0

    cdef int sweep(self) except -1:
        """Forget streams that we ended long ago, or all that we ended where there are many: no END answers ours."""
        cdef double now = monotonic()
        cdef bint has_many = self.streams.used >= MAX_STREAMS // 2
        cdef Stream stream
        for entry in self.streams.entries():
            stream = <Stream>entry
            if stream.state == StreamState.HALF_OPEN and (has_many or stream.data_is_due_until < now):
                self.streams.remove(stream.id)
        self.sweep_at = max(SWEEP_FROM, 2 * self.streams.used)
        return 0

    cdef int receive_stream_sendme(self, Stream stream, list events) except -1:
        if not stream.has_windows:
            return self.fail(events, "a stream SENDME arrived under congestion control")
        if stream.package_window + STREAM_WINDOW_INCREMENT > STREAM_WINDOW_START:
            return self.fail(events, "a stream SENDME acknowledges more than was sent")
        stream.package_window += STREAM_WINDOW_INCREMENT
        if stream.is_blocked:
            stream.is_blocked = False
            events.append(Writable(stream))
        return 0

    cdef int receive_circuit_sendme(self, Hop hop, const uint8_t* body, Py_ssize_t length, list events) except -1:
        cdef int tag_len = hop.layer.tag_len
        if hop.tag_count == 0:
            return self.fail(events, "a circuit SENDME acknowledges more than was sent")
        if length < SENDME_HEADER_LEN or body[0] != SENDME_VERSION:
            return self.fail(events, "a circuit SENDME is not authenticated (version 1 is required)")
        if load16(body + 1) != tag_len:
            return self.fail(events, f"a circuit SENDME has a tag of {load16(body + 1)} bytes, not {tag_len}")
        if length < SENDME_HEADER_LEN + tag_len:
            return self.fail(events, f"a circuit SENDME has {length - SENDME_HEADER_LEN} bytes of a tag of {tag_len}")
        cdef Tag* expected = &hop.tags[hop.first_tag]
        if CRYPTO_memcmp(expected.bytes, body + SENDME_HEADER_LEN, tag_len) != 0:
            return self.fail(events, "a circuit SENDME carries a wrong tag")
        hop.first_tag = (hop.first_tag + 1) % hop.tags_len
        hop.tag_count -= 1
        if hop.vegas is not None:
            hop.vegas.acknowledge(hop.vegas.clock.now() - expected.sealed_at, hop.in_flight, self.outbox.is_congested)
        hop.in_flight -= hop.increment
        return self.unblock(events) if self.tunnel is None else self.tunnel.unblock(events)

    cdef int fail(self, list events, str reason) except -1:
        events.append(CircuitFailed(self, CircuitError(reason)))
        self.finish()
        return 0

    # --- departing ----------------------------------------------------------------------------

    cdef Py_ssize_t seal_data(self, Stream stream, const uint8_t* data, Py_ssize_t count) except -1:
        """Stream.put: seal as many DATA cells as the windows allow. Returns how many bytes they hold.

        Without memory the circuit breaks off.
        """
        cdef Py_ssize_t sealed
        if self.is_over or stream.is_xoff or stream.is_resolve or (
                stream.state != StreamState.OPEN and stream.state != StreamState.CONNECTING):
            return 0
        sealed = self.seal_run(stream.hop, <Hop>self.hops[stream.hop], stream, data, count)
        if sealed < count and not stream.is_blocked and not self.is_over:
            stream.is_blocked = True
            if stream.package_window > 0:
                self.wait_for_window(stream)
        return sealed

    cdef Py_ssize_t seal_run(self, int hop_index, Hop hop, Stream stream, const uint8_t* data,
                             Py_ssize_t count) except -1:
        """Seal as many DATA cells as windows allow, one after the other. Returns how many bytes they hold."""
        cdef uint8_t[TAG_LEN_MAX] tag
        cdef Py_ssize_t sealed = 0
        cdef Py_ssize_t room = data_len_max(hop.layer.kind)
        cdef Py_ssize_t piece
        while sealed < count and hop.has_room() and (stream.package_window > 0 or not stream.has_windows):
            piece = min(count - sealed, room)
            if not self.originate(hop_index, RelayCommand.DATA, stream.id, data + sealed, piece, tag):
                return sealed
            sealed += piece
            stream.package_window -= stream.has_windows
            hop.in_flight += 1
            if hop.in_flight % hop.increment == 0 and not hop.push_tag(tag):
                self.break_off()
                return sealed
        return sealed

    cdef void seal_stream_sendme(self, Stream stream) noexcept:
        cdef uint8_t[TAG_LEN_MAX] tag
        if not self.is_over:
            self.originate(stream.hop, RelayCommand.SENDME, stream.id, NULL, 0, tag)

    cdef bint originate(self, int hop_index, uint8_t command, uint16_t stream_id, const uint8_t* data,
                        Py_ssize_t count, uint8_t* tag) noexcept:
        """Seal one relay cell for a hop into the outbox. `count` was checked by the caller.

        Without memory nothing is left of the cell in the outbox, and the circuit breaks off, since its layers
        have moved on.
        """
        cdef uint8_t cell_command = Command.RELAY
        # The first cells to any hop but the guard are RELAY_EARLY (as the largest crowd sends them), not only
        # the EXTEND2 ones that must be, so that the guard cannot count a circuit's extensions.
        if self.relay_early_left > 0 and (hop_index > 0 or command == RelayCommand.EXTEND2):
            cell_command = Command.RELAY_EARLY
            self.relay_early_left -= 1
        cdef Layer layer = (<Hop>self.hops[hop_index]).layer
        cdef Py_ssize_t sealed_before = self.outbox.length
        cdef uint8_t* body = self.outbox.begin_cell(self.id, cell_command)
        if body == NULL:
            self.break_off()
            return False
        cdef Py_ssize_t header_len = encode_header(layer.kind, body, command, stream_id, <uint16_t>count)
        if count:
            memcpy(body + header_len, data, count)
        cdef int status = 1
        cdef int i
        if header_len + count < CELL_BODY_LEN:
            status = self.outbox.pad(body + header_len + count, CELL_BODY_LEN - header_len - count)
        if status == 1:
            status = layer.originate(cell_command, body, tag)
        for i in range(hop_index - 1, -1, -1):
            if status == 1:
                status = (<Hop>self.hops[i]).layer.forward(cell_command, body)
        if status != 1:
            self.outbox.length = sealed_before
            self.break_off()
        return status == 1


# --- the two formats of relay cells --------------------------------------------------------------

cdef Py_ssize_t data_len_max(LayerKind kind) noexcept nogil:
    """Returns how many bytes a message with a stream id can hold."""
    return CELL_BODY_LEN - (V1_HEADER_LEN if kind == LayerKind.CGO else V0_HEADER_LEN)


cdef Py_ssize_t encode_header(LayerKind kind, uint8_t* body, uint8_t command, uint16_t stream_id,
                              uint16_t length) noexcept nogil:
    """Write everything before the data, with the fields of the layer zero. Returns its length."""
    if kind == LayerKind.CGO:
        memset(body, 0, V1_STREAM_AT)
        body[CGO_TAG_LEN] = command
        store16(body + CGO_TAG_LEN + 1, length)
        if not is_for_streams(command):
            return V1_STREAM_AT
        store16(body + V1_STREAM_AT, stream_id)
        return V1_HEADER_LEN
    memset(body, 0, V0_HEADER_LEN)
    body[0] = command
    store16(body + 3, stream_id)
    store16(body + 9, length)
    return V0_HEADER_LEN


cdef str decode(LayerKind kind, uint8_t* body, Relayed* message):
    """Find the message in an opened cell. Returns what is wrong with it, or None."""
    cdef Py_ssize_t header_len = V0_HEADER_LEN
    if kind == LayerKind.CGO:
        message.command = body[CGO_TAG_LEN]
        message.length = load16(body + CGO_TAG_LEN + 1)
        message.stream_id = 0
        header_len = V1_STREAM_AT
        if is_for_streams(message.command):
            message.stream_id = load16(body + V1_STREAM_AT)
            header_len = V1_HEADER_LEN
        elif not is_known(message.command):
            return f"a relay cell has the unknown command {message.command}"
    else:
        message.command = body[0]
        message.stream_id = load16(body + 3)
        message.length = load16(body + 9)
    message.data = body + header_len
    if message.length > CELL_BODY_LEN - header_len:
        return f"a relay message claims {message.length} bytes of at most {CELL_BODY_LEN - header_len}"
    return None


cdef bint is_known(uint8_t command) noexcept nogil:
    return (RelayCommand.BEGIN <= command <= RelayCommand.EXTENDED2
            or RelayCommand.CONFLUX_LINK <= command <= RelayCommand.CONFLUX_SWITCH
            or RelayCommand.ESTABLISH_INTRO <= command <= RelayCommand.XON)

