# The libcrypto and libssl functions used, declared once.

from libc.stdint cimport uint8_t

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_CIPHER
    ctypedef struct EVP_CIPHER_CTX
    ctypedef struct EVP_MD
    ctypedef struct EVP_MD_CTX
    ctypedef struct ENGINE

    const EVP_CIPHER* EVP_aes_128_ctr()
    EVP_CIPHER_CTX* EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX* ctx)
    int EVP_EncryptInit_ex(EVP_CIPHER_CTX* ctx, const EVP_CIPHER* cipher, ENGINE* impl,
                           const uint8_t* key, const uint8_t* iv)
    const EVP_CIPHER* EVP_aes_128_ecb()
    int EVP_CIPHER_CTX_set_padding(EVP_CIPHER_CTX* ctx, int pad)
    int EVP_CipherInit_ex(EVP_CIPHER_CTX* ctx, const EVP_CIPHER* cipher, ENGINE* impl,
                          const uint8_t* key, const uint8_t* iv, int enc)
    int EVP_CipherUpdate(EVP_CIPHER_CTX* ctx, uint8_t* out, int* outl, const uint8_t* data, int inl)
    int EVP_EncryptUpdate(EVP_CIPHER_CTX* ctx, uint8_t* out, int* outl, const uint8_t* data, int inl)

    const EVP_MD* EVP_sha1()
    EVP_MD_CTX* EVP_MD_CTX_new()
    void EVP_MD_CTX_free(EVP_MD_CTX* ctx)
    int EVP_MD_CTX_copy_ex(EVP_MD_CTX* out, const EVP_MD_CTX* data)
    int EVP_DigestInit_ex(EVP_MD_CTX* ctx, const EVP_MD* kind, ENGINE* impl)
    int EVP_DigestUpdate(EVP_MD_CTX* ctx, const void* data, size_t count)
    int EVP_DigestFinal_ex(EVP_MD_CTX* ctx, uint8_t* md, unsigned int* size)

cdef extern from "openssl/crypto.h" nogil:
    int CRYPTO_memcmp(const void* a, const void* b, size_t length)
    void OPENSSL_cleanse(void* p, size_t length)

cdef extern from "openssl/rand.h" nogil:
    int RAND_bytes(uint8_t* buf, int num)

cdef extern from "openssl/err.h" nogil:
    unsigned long ERR_get_error()
    void ERR_clear_error()
    const char* ERR_reason_error_string(unsigned long e)

cdef extern from "openssl/bio.h" nogil:
    ctypedef struct BIO
    ctypedef struct BIO_METHOD

    const BIO_METHOD* BIO_s_mem()
    BIO* BIO_new(const BIO_METHOD* kind)
    int BIO_write_ex(BIO* b, const void* data, size_t dlen, size_t* written)
    int BIO_read_ex(BIO* b, void* data, size_t dlen, size_t* readbytes)
    size_t BIO_ctrl_pending(BIO* b)
    long BIO_set_mem_eof_return(BIO* b, int v)

cdef extern from "openssl/ssl.h" nogil:
    ctypedef struct SSL
    ctypedef struct SSL_CTX
    ctypedef struct SSL_METHOD
    ctypedef struct X509

    int TLS1_2_VERSION
    int SSL_VERIFY_NONE
    int SSL_SESS_CACHE_OFF
    int SSL_MODE_RELEASE_BUFFERS
    unsigned long SSL_OP_NO_RENEGOTIATION, SSL_OP_NO_COMPRESSION, SSL_OP_TLSEXT_PADDING
    int SSL_ERROR_WANT_READ, SSL_ERROR_ZERO_RETURN, SSL_ERROR_SYSCALL

    const SSL_METHOD* TLS_client_method()
    SSL_CTX* SSL_CTX_new(const SSL_METHOD* method)
    void SSL_CTX_free(SSL_CTX* ctx)
    int SSL_CTX_set_min_proto_version(SSL_CTX* ctx, int version)
    int SSL_CTX_set_cipher_list(SSL_CTX* ctx, const char* names)
    int SSL_CTX_set_ciphersuites(SSL_CTX* ctx, const char* names)
    int SSL_CTX_set1_groups_list(SSL_CTX* ctx, const char* names)
    void SSL_CTX_set_verify(SSL_CTX* ctx, int mode, void* callback)
    long SSL_CTX_set_session_cache_mode(SSL_CTX* ctx, long mode)
    long SSL_CTX_set_mode(SSL_CTX* ctx, long mode)
    unsigned long SSL_CTX_set_options(SSL_CTX* ctx, unsigned long options)
    SSL* SSL_new(SSL_CTX* ctx)
    void SSL_free(SSL* ssl)
    void SSL_set_bio(SSL* ssl, BIO* rbio, BIO* wbio)
    long SSL_set_tlsext_host_name(SSL* ssl, const char* name)
    void SSL_set_connect_state(SSL* ssl)
    int SSL_do_handshake(SSL* ssl)
    int SSL_read_ex(SSL* ssl, void* buf, size_t num, size_t* readbytes)
    int SSL_write_ex(SSL* ssl, const void* buf, size_t num, size_t* written)
    int SSL_get_error(const SSL* ssl, int ret)
    X509* SSL_get1_peer_certificate(const SSL* ssl)

cdef extern from "openssl/x509.h" nogil:
    int i2d_X509(X509* x, unsigned char** out)
    void X509_free(X509* a)

cdef extern from "openssl/crypto.h" nogil:
    unsigned long OpenSSL_version_num()
