# The libcrypto functions used, declared once.

from libc.stdint cimport uint8_t
from libc.time cimport tm

cdef extern from *:
    """
    #define OPENSSL_SUPPRESS_DEPRECATED /* SHA1_*, SHA256_*: digest.pyx and hashes.pyx say why */
    """

cdef extern from "openssl/sha.h" nogil:
    ctypedef struct SHA_CTX:
        pass

    int SHA1_Init(SHA_CTX* ctx)
    int SHA1_Update(SHA_CTX* ctx, const void* data, size_t length)
    int SHA1_Final(uint8_t* md, SHA_CTX* ctx)

    ctypedef struct SHA256_CTX:
        pass

    int SHA256_Init(SHA256_CTX* ctx)
    int SHA256_Update(SHA256_CTX* ctx, const void* data, size_t length)
    int SHA256_Final(uint8_t* md, SHA256_CTX* ctx)

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_CIPHER
    ctypedef struct EVP_CIPHER_CTX
    ctypedef struct EVP_MD
    ctypedef struct EVP_MD_CTX
    ctypedef struct EVP_PKEY
    ctypedef struct EVP_PKEY_CTX
    ctypedef struct ENGINE
    ctypedef struct OSSL_LIB_CTX

    const EVP_CIPHER* EVP_aes_128_ctr()
    const EVP_CIPHER* EVP_aes_256_ctr()
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

    const EVP_MD* EVP_sha3_256()
    EVP_MD* EVP_MD_fetch(OSSL_LIB_CTX* library, const char* algorithm, const char* properties)
    EVP_MD_CTX* EVP_MD_CTX_new()
    void EVP_MD_CTX_free(EVP_MD_CTX* ctx)
    int EVP_MD_CTX_reset(EVP_MD_CTX* ctx)
    int EVP_MD_CTX_copy_ex(EVP_MD_CTX* out, const EVP_MD_CTX* data)
    int EVP_DigestInit_ex(EVP_MD_CTX* ctx, const EVP_MD* kind, ENGINE* impl)
    int EVP_DigestUpdate(EVP_MD_CTX* ctx, const void* data, size_t count)
    int EVP_DigestFinal_ex(EVP_MD_CTX* ctx, uint8_t* md, unsigned int* size)
    int EVP_DigestFinalXOF(EVP_MD_CTX* ctx, uint8_t* md, size_t length)
    int EVP_DigestVerifyInit(EVP_MD_CTX* ctx, EVP_PKEY_CTX** pctx, const EVP_MD* kind, ENGINE* impl,
                             EVP_PKEY* key)
    int EVP_DigestVerify(EVP_MD_CTX* ctx, const uint8_t* signature, size_t signature_length,
                         const uint8_t* data, size_t length)

    int EVP_PKEY_RSA
    int EVP_PKEY_X25519
    int EVP_PKEY_ED25519
    EVP_PKEY* EVP_PKEY_new_raw_private_key(int kind, ENGINE* impl, const uint8_t* key, size_t length)
    EVP_PKEY* EVP_PKEY_new_raw_public_key(int kind, ENGINE* impl, const uint8_t* key, size_t length)
    int EVP_PKEY_set1_encoded_public_key(EVP_PKEY* key, const uint8_t* public_key, size_t length)
    int EVP_PKEY_get_raw_public_key(const EVP_PKEY* key, uint8_t* out, size_t* length)
    EVP_PKEY* d2i_PublicKey(int kind, EVP_PKEY** key, const uint8_t** data, long length)
    int i2d_PublicKey(const EVP_PKEY* key, uint8_t** out)
    int EVP_PKEY_get_bn_param(const EVP_PKEY* key, const char* name, BIGNUM** number)
    int EVP_PKEY_get_bits(const EVP_PKEY* key)
    int EVP_PKEY_get_size(const EVP_PKEY* key)
    void EVP_PKEY_free(EVP_PKEY* key)

    EVP_PKEY_CTX* EVP_PKEY_CTX_new(EVP_PKEY* key, ENGINE* impl)
    void EVP_PKEY_CTX_free(EVP_PKEY_CTX* ctx)
    int EVP_PKEY_derive_init(EVP_PKEY_CTX* ctx)
    int EVP_PKEY_derive_set_peer_ex(EVP_PKEY_CTX* ctx, EVP_PKEY* peer, int validate_peer)
    int EVP_PKEY_derive(EVP_PKEY_CTX* ctx, uint8_t* out, size_t* length)
    int EVP_PKEY_verify_recover_init(EVP_PKEY_CTX* ctx)
    int EVP_PKEY_verify_recover(EVP_PKEY_CTX* ctx, uint8_t* out, size_t* length,
                                const uint8_t* signature, size_t signature_length)

cdef extern from "openssl/rsa.h" nogil:
    int RSA_PKCS1_PADDING
    int EVP_PKEY_CTX_set_rsa_padding(EVP_PKEY_CTX* ctx, int padding)

cdef extern from "openssl/core_names.h" nogil:
    const char* OSSL_PKEY_PARAM_RSA_N
    const char* OSSL_PKEY_PARAM_RSA_E

cdef extern from "openssl/bn.h" nogil:
    ctypedef struct BIGNUM
    int BN_is_odd(const BIGNUM* a)
    int BN_is_one(const BIGNUM* a)
    int BN_cmp(const BIGNUM* a, const BIGNUM* b)
    int BN_num_bits(const BIGNUM* a)
    void BN_free(BIGNUM* a)

cdef extern from "openssl/x509.h" nogil:
    ctypedef struct X509
    ctypedef struct X509_ALGOR
    ctypedef struct X509_NAME
    ctypedef struct X509_PUBKEY
    ctypedef struct ASN1_OBJECT
    ctypedef struct ASN1_TIME

    X509* d2i_X509(X509** certificate, const uint8_t** data, long length)
    int i2d_X509(const X509* certificate, uint8_t** out)
    void X509_free(X509* certificate)
    const X509_NAME* X509_get_subject_name(const X509* certificate)
    const X509_NAME* X509_get_issuer_name(const X509* certificate)
    int X509_NAME_cmp(const X509_NAME* a, const X509_NAME* b)
    const ASN1_TIME* X509_get0_notBefore(const X509* certificate)
    const ASN1_TIME* X509_get0_notAfter(const X509* certificate)
    const X509_PUBKEY* X509_get_X509_PUBKEY(const X509* certificate)
    int X509_PUBKEY_get0_param(ASN1_OBJECT** algorithm, const uint8_t** key, int* length,
                               X509_ALGOR** parameters, const X509_PUBKEY* public_key)
    int X509_get_signature_nid(const X509* certificate)
    int X509_verify(X509* certificate, EVP_PKEY* key)

cdef extern from "openssl/asn1.h" nogil:
    int V_ASN1_UTCTIME
    int ASN1_STRING_type(const ASN1_TIME* time)
    int ASN1_STRING_length(const ASN1_TIME* time)
    int ASN1_TIME_to_tm(const ASN1_TIME* time, tm* out)

cdef extern from "openssl/objects.h" nogil:
    int NID_rsaEncryption
    int NID_sha256WithRSAEncryption
    int NID_sha384WithRSAEncryption
    int NID_sha512WithRSAEncryption
    int OBJ_obj2nid(const ASN1_OBJECT* algorithm)

cdef extern from "openssl/crypto.h" nogil:
    int CRYPTO_memcmp(const void* a, const void* b, size_t length)
    void OPENSSL_cleanse(void* p, size_t length)
    void OPENSSL_free(void* p)

cdef extern from "openssl/err.h" nogil:
    void ERR_clear_error()
    unsigned long ERR_peek_error()
    const char* ERR_reason_error_string(unsigned long code)

cdef extern from "openssl/rand.h" nogil:
    int RAND_bytes(uint8_t* buf, int num)
