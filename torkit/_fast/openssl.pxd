# The libcrypto functions used, declared once.

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
