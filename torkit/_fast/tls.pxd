# Contents: one TLS connection over a non-blocking socket; the libssl functions used, declared once.

cimport cython
from libc.stdint cimport uint8_t

from torkit._fast.budget cimport Bucket

from torkit._fast.openssl cimport (
    ERR_clear_error, ERR_peek_error, ERR_reason_error_string, X509, X509_free, i2d_X509,
)

cdef extern from "openssl/ssl.h" nogil:
    ctypedef struct SSL
    ctypedef struct SSL_CTX
    ctypedef struct SSL_METHOD
    ctypedef struct BIO
    ctypedef struct BIO_METHOD

    int TLS1_2_VERSION
    int SSL_VERIFY_NONE
    int SSL_ERROR_WANT_READ
    int SSL_ERROR_ZERO_RETURN
    int SSL_ERROR_SYSCALL
    int SSL_SESS_CACHE_OFF
    long SSL_MODE_AUTO_RETRY
    int SSL_RECEIVED_SHUTDOWN
    int SSL3_RT_HEADER
    int SSL3_RT_HANDSHAKE
    int SSL3_MT_HELLO_REQUEST
    int SSL3_MT_NEWSESSION_TICKET
    int SSL3_MT_KEY_UPDATE
    unsigned long SSL_OP_IGNORE_UNEXPECTED_EOF
    unsigned long SSL_OP_NO_COMPRESSION
    unsigned long SSL_OP_NO_RENEGOTIATION
    unsigned long SSL_OP_TLSEXT_PADDING

    const SSL_METHOD* TLS_client_method()
    SSL_CTX* SSL_CTX_new(const SSL_METHOD* method)
    int SSL_CTX_set_min_proto_version(SSL_CTX* context, int version)
    void SSL_CTX_free(SSL_CTX* context)
    int SSL_CTX_set_cipher_list(SSL_CTX* context, const char* names)
    int SSL_CTX_set_ciphersuites(SSL_CTX* context, const char* names)
    int SSL_CTX_set1_groups_list(SSL_CTX* context, const char* names)
    long SSL_CTX_set_session_cache_mode(SSL_CTX* context, long mode)
    unsigned long SSL_CTX_set_options(SSL_CTX* context, unsigned long options)
    long SSL_CTX_clear_mode(SSL_CTX* context, long mode)
    void SSL_CTX_set_verify(SSL_CTX* context, int mode, void* callback)

    SSL* SSL_new(SSL_CTX* context)
    void SSL_free(SSL* ssl)
    int SSL_set_tlsext_host_name(SSL* ssl, const char* name)
    void SSL_set_connect_state(SSL* ssl)
    void SSL_set_bio(SSL* ssl, BIO* incoming, BIO* outgoing)
    void SSL_set_msg_callback(SSL* ssl, void (*callback)(
        int is_sent, int version, int kind, const void* data, size_t length, SSL* ssl, void* argument) noexcept nogil)
    void SSL_set_msg_callback_arg(SSL* ssl, void* argument)
    void SSL_set_shutdown(SSL* ssl, int mode)
    int SSL_do_handshake(SSL* ssl)
    int SSL_read_ex(SSL* ssl, void* data, size_t count, size_t* got)
    int SSL_write_ex(SSL* ssl, const void* data, size_t count, size_t* sent)
    int SSL_pending(const SSL* ssl)
    int SSL_get_error(const SSL* ssl, int result)
    X509* SSL_get1_peer_certificate(const SSL* ssl)

    int BIO_TYPE_SOURCE_SINK
    int BIO_CTRL_FLUSH
    int BIO_CTRL_EOF
    BIO* BIO_new(const BIO_METHOD* method)
    void BIO_set_retry_read(BIO* bio)
    void BIO_clear_retry_flags(BIO* bio)
    BIO_METHOD* BIO_meth_new(int kind, const char* name)
    void BIO_set_data(BIO* bio, void* data)
    void* BIO_get_data(BIO* bio)
    void BIO_free(BIO* bio)

cdef extern from "openssl/bio.h":
    int BIO_meth_set_read(BIO_METHOD* method, int (*read)(BIO* bio, char* data, int count) noexcept)
    int BIO_meth_set_write(BIO_METHOD* method, int (*write)(BIO* bio, const char* data, int count) noexcept)
    int BIO_meth_set_ctrl(BIO_METHOD* method, long (*ctrl)(BIO* bio, int what, long number, void* value) noexcept)

cdef extern from "openssl/crypto.h" nogil:
    unsigned long OpenSSL_version_num()

# How much work without data the peer may still cause.
cdef struct Budget:
    Bucket records                # TLS records; bytes of data allow more
    Bucket messages               # of handshakes, also after the handshake
    uint8_t last_message          # the type of the last

# The socket, and ciphertext that was read ahead of libssl.
cdef struct Incoming:
    int descriptor                # of both ways; -1 once it is closed
    bint reads_ahead              # this call reads as much as one system call brings
    bint has_read                 # it has had that system call
    bint has_ended                # the peer sends no more
    const uint8_t* data
    Py_ssize_t length             # 0 between calls

# Ciphertext until the socket takes it.
cdef struct Outgoing:
    uint8_t* data
    Py_ssize_t capacity           # in the account of memory
    Py_ssize_t length
    Py_ssize_t sent

@cython.final
cdef class Tls:
    cdef SSL* ssl
    cdef Incoming incoming
    cdef Outgoing outgoing
    cdef readonly bint has_ended  # the peer has ended the connection, and all its bytes were received
    cdef bint has_more            # the last read has left bytes in libssl
    cdef Budget budget
    cdef bint is_blocked          # the last `send` left something, and the socket has had no room since
    cdef object failure           # for the next read to raise, which has no good bytes before it any more

    cdef Py_ssize_t waiting(self) noexcept
    cdef void forget(self) noexcept
    cdef Py_ssize_t receive_into(self, uint8_t* buffer, size_t room) except -1
    cdef bint send_from(self, const uint8_t* data, size_t length) except -1
    cdef int check_open(self) except -1
    cdef int check_budget(self) except -1
    cdef int settle(self, double now, size_t count) except -1
    cdef int fail(self, int result, str during) except -1
