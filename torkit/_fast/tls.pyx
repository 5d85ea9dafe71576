"""The client's end of TLS to a relay: ciphertext and plaintext in, each in one call; no socket here.

Its ClientHello is that of C tor's clients on the same OpenSSL, which Python's `ssl` cannot be told to send;
and it decrypts all records of a read in one call, where `ssl` returns one.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t

from torkit._fast.openssl cimport (
    BIO,
    BIO_ctrl_pending,
    BIO_new,
    BIO_read_ex,
    BIO_s_mem,
    BIO_set_mem_eof_return,
    BIO_write_ex,
    ERR_clear_error,
    ERR_get_error,
    ERR_reason_error_string,
    OpenSSL_version_num,
    SSL,
    SSL_CTX,
    SSL_CTX_free,
    SSL_CTX_new,
    SSL_CTX_set1_groups_list,
    SSL_CTX_set_cipher_list,
    SSL_CTX_set_ciphersuites,
    SSL_CTX_set_min_proto_version,
    SSL_CTX_set_mode,
    SSL_CTX_set_options,
    SSL_CTX_set_session_cache_mode,
    SSL_CTX_set_verify,
    SSL_do_handshake,
    SSL_ERROR_WANT_READ,
    SSL_ERROR_ZERO_RETURN,
    SSL_free,
    SSL_get1_peer_certificate,
    SSL_get_error,
    SSL_MODE_RELEASE_BUFFERS,
    SSL_new,
    SSL_OP_NO_COMPRESSION,
    SSL_OP_NO_RENEGOTIATION,
    SSL_OP_TLSEXT_PADDING,
    SSL_read_ex,
    SSL_SESS_CACHE_OFF,
    SSL_set_bio,
    SSL_set_connect_state,
    SSL_set_tlsext_host_name,
    SSL_VERIFY_NONE,
    SSL_write_ex,
    TLS1_2_VERSION,
    TLS_client_method,
    X509,
    X509_free,
    i2d_X509,
)

from torkit.errors import ChannelError

# What C tor 0.4.9's clients offer, in their order: tests/network/test_client_hello.py compares.
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


cdef SSL_CTX* new_context() except NULL:
    cdef SSL_CTX* context = SSL_CTX_new(TLS_client_method())
    if context is NULL:
        raise MemoryError
    SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION)
    # TLS proves nothing here: the CERTS cell ties this certificate to the relay's identity.
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL)
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF)
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS)
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_TLSEXT_PADDING)
    cdef bytes groups = GROUPS_SINCE_3_5 if OpenSSL_version_num() >= 0x30500000 else GROUPS
    if not (
        SSL_CTX_set_cipher_list(context, CIPHERS)
        and SSL_CTX_set_ciphersuites(context, CIPHERSUITES)
        and SSL_CTX_set1_groups_list(context, groups)
    ):
        SSL_CTX_free(context)
        raise ChannelError(f"this OpenSSL lacks what TLS to relays needs: {reason()}")
    return context


cdef SSL_CTX* shared_context = NULL  # made once; what it says is the same for every connection


cdef str reason():
    """Why the last call failed."""
    cdef const char* text = ERR_reason_error_string(ERR_get_error())
    ERR_clear_error()
    return "the connection broke off" if text is NULL else text.decode("ascii", "replace")


cdef class TlsClient:
    """One connection. Feed what the socket brings, send what `data_to_send` gives, after every call."""

    cdef SSL* tls
    cdef BIO* incoming
    cdef BIO* outgoing
    cdef readonly bint has_ended

    def __cinit__(self, bytes server_name not None):
        global shared_context
        if shared_context is NULL:
            shared_context = new_context()
        self.tls = SSL_new(shared_context)
        cdef BIO* incoming = BIO_new(BIO_s_mem())
        cdef BIO* outgoing = BIO_new(BIO_s_mem())
        if self.tls is NULL or incoming is NULL or outgoing is NULL:
            raise MemoryError
        SSL_set_bio(self.tls, incoming, outgoing)  # which owns them from now on
        self.incoming, self.outgoing = incoming, outgoing
        BIO_set_mem_eof_return(incoming, -1)  # empty is not the end
        SSL_set_connect_state(self.tls)
        if not SSL_set_tlsext_host_name(self.tls, server_name):
            raise MemoryError

    def __dealloc__(self):
        if self.tls is not NULL:
            SSL_free(self.tls)

    def handshake(self) -> bool:
        """Go on with the handshake; True once it is done. Raises ChannelError."""
        ERR_clear_error()
        cdef int result = SSL_do_handshake(self.tls)
        if result == 1:
            return True
        if SSL_get_error(self.tls, result) != SSL_ERROR_WANT_READ:
            raise ChannelError(f"the TLS handshake with the relay failed: {reason()}")
        return False

    def peer_certificate(self) -> bytes:
        """The relay's TLS certificate, DER. Raises ChannelError where it has shown none."""
        cdef X509* certificate = SSL_get1_peer_certificate(self.tls)
        if certificate is NULL:
            raise ChannelError("the relay showed no TLS certificate")
        cdef int length = i2d_X509(certificate, NULL)
        cdef bytes der = PyBytes_FromStringAndSize(NULL, max(length, 0))
        cdef unsigned char* end = <unsigned char*>PyBytes_AS_STRING(der)
        i2d_X509(certificate, &end)
        X509_free(certificate)
        return der

    def feed(self, const uint8_t[::1] data not None) -> None:
        """Take ciphertext that has come."""
        cdef size_t written
        if data.shape[0] and not BIO_write_ex(self.incoming, &data[0], data.shape[0], &written):
            raise MemoryError

    def read_into(self, uint8_t[::1] buffer not None) -> int:
        """Decrypt what has been fed, as far as `buffer` has room; the number of bytes.

        `has_ended` tells whether the relay has said goodbye. Raises ChannelError for what is not TLS.
        """
        cdef size_t count = 0, got
        cdef int result, error
        ERR_clear_error()
        while count < <size_t>buffer.shape[0] and not self.has_ended:
            result = SSL_read_ex(self.tls, &buffer[count], buffer.shape[0] - count, &got)
            if result == 1:
                count += got
                continue
            error = SSL_get_error(self.tls, result)
            if error == SSL_ERROR_WANT_READ:
                break
            if error != SSL_ERROR_ZERO_RETURN:
                raise ChannelError(f"TLS from the relay is broken: {reason()}")
            self.has_ended = True
        return count

    def write(self, const uint8_t[::1] data not None) -> None:
        """Encrypt all of `data`. Raises ChannelError."""
        cdef size_t written
        if not data.shape[0]:
            return
        ERR_clear_error()
        if not SSL_write_ex(self.tls, &data[0], data.shape[0], &written):
            raise ChannelError(f"TLS to the relay is broken: {reason()}")

    @property
    def has_data_to_send(self) -> bool:
        return BIO_ctrl_pending(self.outgoing) > 0

    def data_to_send(self) -> bytes:
        """All ciphertext since last time."""
        cdef size_t length = BIO_ctrl_pending(self.outgoing), got
        cdef bytes data = PyBytes_FromStringAndSize(NULL, length)
        if length and not BIO_read_ex(self.outgoing, PyBytes_AS_STRING(data), length, &got):
            raise MemoryError
        return data
