"""TLS over a non-blocking socket: one call decrypts everything at hand, one sends everything that is sealed.

Python's ssl needs a call, and some microseconds, for each record, and relays write records of 4 KiB. It cannot
send the ClientHello of C tor's clients, either.
The caller waits for the socket and closes it; nothing here blocks.

A peer cannot keep us busy without sending data. libssl handles records without data as long as they come, in one
call that holds the interpreter. So its callback counts every record and every message of a handshake, and stops
libssl when the peer is beyond its budget.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memcpy, strerror

from torkit._fast.budget cimport fill
from torkit._fast.cells cimport CELL_LEN, monotonic
from torkit._fast.memory cimport release, resize

from torkit.errors import ChannelClosed, ChannelError

cdef extern from "<sys/socket.h>" nogil:
    int MSG_NOSIGNAL
    Py_ssize_t recv(int descriptor, void* data, size_t count, int flags)
    Py_ssize_t send(int descriptor, const void* data, size_t count, int flags)

cdef enum:
    RECORD_MAX = 16384            # bytes of data in one record. (RFC 8446, 5.1)
    # Implementation limit, bytes: what one system call reads ahead of libssl. A busy relay's burst; a larger buffer
    # gains nothing measurable, and its memory stays resident.
    READ_LEN = 131072 - RECORD_MAX

# Read ahead by one call of `receive_into`, which takes everything. Only the holder of the interpreter's lock reads.
cdef uint8_t[READ_LEN] read_ahead

# Implementation limits: how many records, and messages of a handshake, a peer may send at once (BRIM), and how
# many more each second (RATE). EARNING_LEN bytes of data allow one record more, so records of one cell, 514 bytes,
# never use the budget up. A message costs up to 35 us, a record without data 1 us: either brim is some 4 ms of
# work. Honest relays send some ten messages of a handshake, and later at most one KeyUpdate in gigabytes.
cdef double RECORDS_BRIM = 4096
cdef double RECORDS_RATE = 256
cdef double EARNING_LEN = 128
cdef double MESSAGES_BRIM = 64
cdef double MESSAGES_RATE = 1

# Implementation limit: records of one read that takes them from the socket one by one.
cdef int READ_RECORDS = 256

# Records end at multiples of these in the bytes of one `send`: an observer of the line sees the lengths of records.
# (C tor holds bytes to send in chunks of CHUNK_LEN, and writes 32 cells at most at a time.)
cdef size_t CHUNK_LEN = 4048
cdef size_t WRITE_LEN = 32 * CELL_LEN

# The offers of C tor 0.4.9's clients, in their order: tests/network/test_client_hello.py compares.
cdef bytes CIPHERSUITES = b"TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"
cdef bytes CIPHERS = b":".join([
    b"ECDHE-ECDSA-AES128-GCM-SHA256",
    b"ECDHE-RSA-AES128-GCM-SHA256",
    b"ECDHE-ECDSA-CHACHA20-POLY1305",
    b"ECDHE-RSA-CHACHA20-POLY1305",
    b"ECDHE-ECDSA-AES256-GCM-SHA384",
    b"ECDHE-RSA-AES256-GCM-SHA384",
    b"ECDHE-ECDSA-AES256-SHA",
    b"ECDHE-ECDSA-AES128-SHA",
    b"ECDHE-RSA-AES128-SHA",
    b"ECDHE-RSA-AES256-SHA",
    b"AES128-GCM-SHA256",
    b"AES256-GCM-SHA384",
    b"AES128-SHA",
    b"AES256-SHA",
])
cdef bytes GROUPS = b"P-256:X25519:P-224"
cdef bytes GROUPS_SINCE_3_5 = b"?*X25519MLKEM768 / ?SecP256r1MLKEM768 / *P-256:?X25519:P-224"

cdef SSL_CTX* context = NULL
cdef BIO_METHOD* of_incoming = NULL
cdef BIO_METHOD* into_outgoing = NULL


cdef void clear_errors() noexcept:
    """Clear this thread's queue of errors, in which libssl would find those of others. Looking first is cheaper."""
    if ERR_peek_error():
        ERR_clear_error()


cdef SSL_CTX* the_context() except NULL:
    """Returns a context that verifies nothing: the CERTS cell ties the certificate to the relay (proto/certs.py)."""
    global context
    if context == NULL:
        fresh = SSL_CTX_new(TLS_client_method())
        if fresh == NULL:
            raise MemoryError
        groups = GROUPS_SINCE_3_5 if OpenSSL_version_num() >= 0x30500000 else GROUPS
        if not (
            SSL_CTX_set_min_proto_version(fresh, TLS1_2_VERSION)
            and SSL_CTX_set_cipher_list(fresh, CIPHERS)
            and SSL_CTX_set_ciphersuites(fresh, CIPHERSUITES)
            and SSL_CTX_set1_groups_list(fresh, groups)
        ):
            SSL_CTX_free(fresh)
            raise ChannelError("this OpenSSL lacks what TLS to relays needs")
        SSL_CTX_set_session_cache_mode(fresh, SSL_SESS_CACHE_OFF)
        SSL_CTX_set_options(fresh, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_TLSEXT_PADDING)
        # An end without close_notify is an end: cells and circuits tell cuts by themselves.
        SSL_CTX_set_options(fresh, SSL_OP_IGNORE_UNEXPECTED_EOF)
        # SSL_read returns after a record without data.
        SSL_CTX_clear_mode(fresh, SSL_MODE_AUTO_RETRY)
        SSL_CTX_set_verify(fresh, SSL_VERIFY_NONE, NULL)
        context = fresh
    return context


cdef void count_record(int is_sent, int version, int kind, const void* data, size_t length, SSL* ssl,
                       void* argument) noexcept nogil:
    """libssl's message callback: it gets the header of each record, and each message of a handshake."""
    cdef Budget* budget = <Budget*>argument
    if is_sent:
        return
    if kind == SSL3_RT_HEADER:
        budget.records.left -= 1
    elif kind == SSL3_RT_HANDSHAKE:
        budget.messages.left -= 1
        budget.last_message = (<const uint8_t*>data)[0]
    if is_over(budget):
        SSL_set_shutdown(ssl, SSL_RECEIVED_SHUTDOWN)  # libssl drops its buffer, and returns


cdef int make_methods() except -1:
    """Make the methods of a BIO that reads from an `Incoming`, and of one that appends to an `Outgoing`.

    libssl's own read-ahead moves its whole buffer for each record: a third of a download's CPU.
    libssl's own memory BIO clears its memory when it grows and at each reset: 0.2 s for each GiB sent.
    """
    global of_incoming, into_outgoing
    if of_incoming == NULL:
        fresh = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "incoming")
        if fresh == NULL:
            raise MemoryError
        BIO_meth_set_read(fresh, take)
        BIO_meth_set_ctrl(fresh, control_incoming)
        of_incoming = fresh
    if into_outgoing == NULL:
        fresh = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "outgoing")
        if fresh == NULL:
            raise MemoryError
        BIO_meth_set_write(fresh, append)
        BIO_meth_set_ctrl(fresh, control_outgoing)
        into_outgoing = fresh
    return 0


cdef int take(BIO* bio, char* data, int count) noexcept:
    """Give libssl bytes that were read ahead, else bytes of the socket. Returns how many."""
    cdef Incoming* incoming = <Incoming*>BIO_get_data(bio)
    cdef Py_ssize_t got
    BIO_clear_retry_flags(bio)
    if incoming.length == 0:
        if incoming.has_read:  # what has come since waits for the next call, as the other links do
            BIO_set_retry_read(bio)
            return -1
        if incoming.reads_ahead:
            got = receive_from(incoming, read_ahead, READ_LEN)
        else:
            got = receive_from(incoming, <uint8_t*>data, count)
        if got < 0 and errno == EAGAIN:
            BIO_set_retry_read(bio)
        if got <= 0 or not incoming.reads_ahead:
            return got
        incoming.has_read = True
        incoming.data = read_ahead
        incoming.length = got
    count = min(<Py_ssize_t>count, incoming.length)
    memcpy(data, incoming.data, count)
    incoming.data += count
    incoming.length -= count
    return count


cdef Py_ssize_t receive_from(Incoming* incoming, uint8_t* data, size_t count) noexcept:
    """Returns as recv() does."""
    cdef Py_ssize_t got = recv(incoming.descriptor, data, count, 0)
    while got < 0 and errno == EINTR:
        got = recv(incoming.descriptor, data, count, 0)
    incoming.has_ended = got == 0
    return got


cdef long control_incoming(BIO* bio, int what, long number, void* value) noexcept:
    return what == BIO_CTRL_EOF and (<Incoming*>BIO_get_data(bio)).has_ended


cdef int append(BIO* bio, const char* data, int count) noexcept:
    cdef Outgoing* outgoing = <Outgoing*>BIO_get_data(bio)
    cdef Py_ssize_t wanted = outgoing.length + count
    if wanted > outgoing.capacity and not resize(
            &outgoing.data, &outgoing.capacity, max(wanted, 2 * outgoing.capacity)):
        return -1
    memcpy(outgoing.data + outgoing.length, data, count)
    outgoing.length = wanted
    return count


cdef long control_outgoing(BIO* bio, int what, long number, void* value) noexcept:
    return what == BIO_CTRL_FLUSH  # nothing is to be flushed, and libssl needs no other control


cdef bint is_over(const Budget* budget) noexcept nogil:
    return budget.records.left < 0 or budget.messages.left < 0


@cython.final
cdef class Tls:
    """The client's end. Raises ChannelError where the peer breaks TLS, ChannelClosed where the socket fails."""

    def __cinit__(self, int descriptor, bytes server_name not None):
        self.incoming.descriptor = descriptor
        self.ssl = SSL_new(the_context())
        make_methods()
        cdef BIO* incoming = BIO_new(of_incoming)
        cdef BIO* outgoing = BIO_new(into_outgoing)
        if self.ssl == NULL or incoming == NULL or outgoing == NULL:
            BIO_free(incoming)
            BIO_free(outgoing)
            raise MemoryError
        BIO_set_data(incoming, &self.incoming)
        BIO_set_data(outgoing, &self.outgoing)
        SSL_set_bio(self.ssl, incoming, outgoing)
        if SSL_set_tlsext_host_name(self.ssl, PyBytes_AS_STRING(server_name)) != 1:
            raise MemoryError
        SSL_set_connect_state(self.ssl)
        self.budget.records.left = RECORDS_BRIM
        self.budget.messages.left = MESSAGES_BRIM
        self.budget.records.filled_at = self.budget.messages.filled_at = monotonic()
        SSL_set_msg_callback(self.ssl, count_record)
        SSL_set_msg_callback_arg(self.ssl, &self.budget)

    def __dealloc__(self):
        SSL_free(self.ssl)
        release(&self.outgoing.data, &self.outgoing.capacity)

    def do_handshake(self):
        """Go on with the handshake. Returns whether it is done. Its messages to the peer wait for `send`."""
        self.check_open()
        self.incoming.reads_ahead = False
        clear_errors()
        cdef int result = SSL_do_handshake(self.ssl)
        self.settle(monotonic(), 0)
        if result == 1:
            return True
        if self.fail(result, "the TLS handshake with the relay failed"):
            raise ChannelClosed("the relay closed the connection during the TLS handshake")
        return False

    def peer_certificate(self):
        """Returns the peer's certificate, DER; b"" if it sent none."""
        cdef X509* certificate = SSL_get1_peer_certificate(self.ssl)
        if certificate == NULL:
            return b""
        cdef int length = i2d_X509(certificate, NULL)
        encoded = PyBytes_FromStringAndSize(NULL, length)
        cdef unsigned char* out = <unsigned char*>PyBytes_AS_STRING(encoded)
        i2d_X509(certificate, &out)
        X509_free(certificate)
        return encoded

    def receive(self, uint8_t[::1] buffer not None):
        """Decrypt what is at hand into `buffer`. Returns the number of bytes: 0 for none, and after the end."""
        return self.receive_into(&buffer[0], buffer.shape[0]) if buffer.shape[0] else 0

    cdef Py_ssize_t receive_into(self, uint8_t* buffer, size_t room) except -1:
        cdef Incoming* incoming = &self.incoming
        cdef size_t count = 0
        cdef size_t got = 0
        cdef int records = 0
        cdef int result
        self.check_open()
        if self.failure is not None:
            raise self.failure
        incoming.has_read = False
        # Into so much room goes everything that is read, with a record of which libssl has the first part already.
        incoming.reads_ahead = room >= READ_LEN + RECORD_MAX
        try:
            while not self.has_ended and count < room and (records < READ_RECORDS or incoming.length):
                clear_errors()
                result = SSL_read_ex(self.ssl, &buffer[count], room - count, &got)
                if result == 1:
                    count += got
                    records += 1
                    if incoming.has_read and not incoming.length and not SSL_pending(self.ssl):
                        break
                else:
                    self.check_budget()
                    self.has_ended = self.fail(result, "TLS from the relay is broken")
                    if not incoming.length:
                        break
            self.settle(monotonic(), count)
            self.has_more = not self.has_ended and SSL_pending(self.ssl) > 0
        except (ChannelClosed, ChannelError) as error:
            if not count:
                raise
            self.failure = error  # the next call raises it: the bytes before it are good
        finally:
            incoming.reads_ahead = incoming.has_read = False
            incoming.length = 0  # none but where the connection is at its end
        return count

    cdef Py_ssize_t waiting(self) noexcept:
        """Returns how many bytes are left to send, those of TLS itself included, as the answer to a KeyUpdate."""
        return self.outgoing.length - self.outgoing.sent

    cdef void forget(self) noexcept:
        """Drop the bytes that wait to be sent: the connection ends, or the memory is needed."""
        release(&self.outgoing.data, &self.outgoing.capacity)
        self.outgoing.length = self.outgoing.sent = 0

    def send(self, const uint8_t[::1] data not None):
        """Encrypt `data` and send what the socket takes. Returns whether it has taken everything."""
        return self.send_from(&data[0] if data.shape[0] else NULL, data.shape[0])

    cdef bint send_from(self, const uint8_t* data, size_t length) except -1:
        cdef size_t done = 0
        cdef size_t written
        cdef int result
        self.check_open()
        while done < length:
            clear_errors()
            result = SSL_write_ex(self.ssl, data + done, min(length - done, record_room(done)), &written)
            if result != 1:
                self.fail(result, "TLS to the relay is broken")
                raise ChannelError("TLS to the relay is broken")
            done += written
        cdef Outgoing* outgoing = &self.outgoing
        cdef Py_ssize_t taken
        while outgoing.sent < outgoing.length:
            taken = send(self.incoming.descriptor, outgoing.data + outgoing.sent, outgoing.length - outgoing.sent, MSG_NOSIGNAL)
            if taken >= 0:
                outgoing.sent += taken
            elif errno == EAGAIN:
                self.is_blocked = True
                return False
            elif errno != EINTR:
                raise ChannelClosed(f"the connection to the relay broke: {strerror(errno).decode()}")
        outgoing.length = outgoing.sent = 0
        self.is_blocked = False
        return True

    def close(self):
        """Touch the socket no more: its number may soon be another's."""
        self.incoming.descriptor = -1

    cdef int check_open(self) except -1:
        if self.incoming.descriptor < 0:
            raise ChannelClosed("the connection to the relay was closed here")
        return 0

    cdef int settle(self, double now, size_t count) except -1:
        """After a call of libssl that has read `count` bytes: raise if the peer is beyond its budget, else refill it."""
        self.check_budget()
        fill(&self.budget.records, now, RECORDS_RATE, count / EARNING_LEN, RECORDS_BRIM)
        fill(&self.budget.messages, now, MESSAGES_RATE, 0, MESSAGES_BRIM)
        return 0

    cdef int check_budget(self) except -1:
        if self.budget.messages.left < 0:
            raise ChannelError(f"the relay keeps sending {name_of(self.budget.last_message)} messages of TLS")
        if self.budget.records.left < 0:
            raise ChannelError("the relay keeps sending TLS records with next to no data")
        return 0

    cdef int fail(self, int result, str during) except -1:
        """Returns 0 if a failed call of libssl waits for the socket, 1 at the end of the connection. Else raises."""
        cdef int number = errno
        cdef int kind = SSL_get_error(self.ssl, result)
        if kind == SSL_ERROR_WANT_READ:
            return 0
        if kind == SSL_ERROR_ZERO_RETURN:
            return 1
        if kind == SSL_ERROR_SYSCALL:
            raise ChannelClosed(f"the connection to the relay broke: {strerror(number).decode()}")
        cdef const char* reason = ERR_reason_error_string(ERR_peek_error())
        clear_errors()  # Python's ssl, in the same thread, would find them
        raise ChannelError(f"{during}: {reason.decode() if reason != NULL else 'unknown'}")


cdef size_t record_room(size_t done) noexcept:
    """Returns how many bytes the next record may hold."""
    return min(CHUNK_LEN - done % CHUNK_LEN, WRITE_LEN - done % WRITE_LEN)


cdef str name_of(int message):
    """Returns the name of a message that may come after the handshake; "handshake" for any other."""
    if message == SSL3_MT_KEY_UPDATE:
        return "KeyUpdate"
    if message == SSL3_MT_NEWSESSION_TICKET:
        return "NewSessionTicket"
    if message == SSL3_MT_HELLO_REQUEST:
        return "HelloRequest"
    return "handshake"
