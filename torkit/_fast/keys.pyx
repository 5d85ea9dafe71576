"""Public keys: signatures and key agreement, by the libcrypto that TLS and layers use.

    X25519PrivateKey    our half of a circuit handshake
    ed25519_verify      certificates and descriptors of relays
    RsaPublicKey        relays' older identity, and authorities' keys
    RsaCertificate      the X.509 certificate in which a relay shows its RSA identity
    aes_256_ctr         what is sealed before there is a layer: messages within ntor-v3, descriptors of onion services

No protocol here: `proto` and `directory` know who signs what, and until when. Bytes from outside are
refused with ValueError, and no failure stays in OpenSSL's queue, where libssl would take it for its own.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.limits cimport INT_MAX
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp, memcpy, memset
from libc.time cimport time_t, tm

from torkit._fast.openssl cimport (
    ASN1_OBJECT, ASN1_STRING_length, ASN1_STRING_type, ASN1_TIME, ASN1_TIME_to_tm, BIGNUM, BN_cmp, BN_free,
    BN_num_bits, BN_is_odd, BN_is_one, ERR_clear_error, EVP_aes_256_ctr, EVP_CIPHER_CTX, EVP_CIPHER_CTX_free,
    EVP_CIPHER_CTX_new, EVP_DigestVerify, EVP_DigestVerifyInit, EVP_EncryptInit_ex, EVP_EncryptUpdate,
    EVP_MD_CTX, EVP_MD_CTX_free, EVP_MD_CTX_new, EVP_PKEY, EVP_PKEY_CTX, EVP_PKEY_CTX_free,
    EVP_PKEY_CTX_new, EVP_PKEY_CTX_set_rsa_padding, EVP_PKEY_derive, EVP_PKEY_derive_init,
    EVP_PKEY_derive_set_peer_ex, EVP_PKEY_ED25519, EVP_PKEY_free, EVP_PKEY_get_bits, EVP_PKEY_get_bn_param,
    EVP_PKEY_get_raw_public_key, EVP_PKEY_get_size, EVP_PKEY_new_raw_private_key,
    EVP_PKEY_new_raw_public_key, EVP_PKEY_RSA, EVP_PKEY_set1_encoded_public_key, EVP_PKEY_verify_recover,
    EVP_PKEY_verify_recover_init, EVP_PKEY_X25519, NID_rsaEncryption, NID_sha256WithRSAEncryption, NID_sha384WithRSAEncryption,
    NID_sha512WithRSAEncryption, OBJ_obj2nid, OPENSSL_cleanse, OPENSSL_free, OSSL_PKEY_PARAM_RSA_E, OSSL_PKEY_PARAM_RSA_N,
    RSA_PKCS1_PADDING, V_ASN1_UTCTIME, X509, X509_free, X509_get0_notAfter, X509_get0_notBefore,
    X509_get_issuer_name, X509_get_signature_nid, X509_get_subject_name, X509_get_X509_PUBKEY,
    X509_NAME_cmp, X509_PUBKEY_get0_param, X509_verify, d2i_PublicKey, d2i_X509, i2d_PublicKey, i2d_X509,
)

from torkit.errors import UsageError

cdef extern from "<time.h>" nogil:
    time_t timegm(tm* when)

# Implementation limit: the longest exponent; that of all relays is 65537. (OpenSSL's for keys of over 3,072 bits.)
cdef enum:
    MAX_EXPONENT_BITS = 64

# Specification constants, bytes.
cdef enum:
    AES_256_KEY_LEN = 32
    AES_BLOCK_LEN = 16
    UTC_TIME_LEN = 13             # YYMMDDHHMMSSZ, the only spelling; RFC 5280, "UTCTime"
    GENERALIZED_TIME_LEN = 15     # YYYYMMDDHHMMSSZ, likewise


cdef inline const uint8_t* start_of(bytes data) noexcept:
    return <const uint8_t*>PyBytes_AS_STRING(data)


def wipe(bytes secret not None):
    """Overwrite `secret`, which must not be used any more: Python does not wipe what it frees.

    A secret of one byte or none stays: Python shares such objects.
    """
    if len(secret) > 1:
        OPENSSL_cleanse(PyBytes_AS_STRING(secret), len(secret))


cdef bint is_canonical(bytes der, uint8_t* encoded, int length) noexcept:
    """Returns whether what was read from `der` is written alike, and nothing was left over; frees `encoded`."""
    cdef bint is_same = length == len(der) and memcmp(encoded, start_of(der), length) == 0
    OPENSSL_free(encoded)
    return is_same


# The public key of whom we agree with is put here each time, under the GIL: a key made for each would cost a tenth more.
cdef EVP_PKEY* peer = EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, NULL, start_of(bytes(X25519_LEN)), X25519_LEN)
if peer == NULL:
    raise MemoryError


@cython.final
cdef class X25519PrivateKey:
    """Made of 32 random bytes; freed and cleansed with the object. Raises ValueError for another length."""

    def __cinit__(self, bytes private_key not None):
        if len(private_key) != X25519_LEN:
            raise ValueError(f"an X25519 private key has {X25519_LEN} bytes, not {len(private_key)}")
        self.key = EVP_PKEY_new_raw_private_key(EVP_PKEY_X25519, NULL, start_of(private_key), X25519_LEN)
        if self.key != NULL:
            self.ctx = EVP_PKEY_CTX_new(self.key, NULL)
        if self.ctx == NULL or EVP_PKEY_derive_init(self.ctx) != 1:
            ERR_clear_error()
            raise MemoryError("libcrypto could not set up X25519")

    def __dealloc__(self):
        EVP_PKEY_CTX_free(self.ctx)  # NULL is fine
        EVP_PKEY_free(self.key)

    cdef int write_public_key(self, uint8_t* public_key) except -1:
        cdef size_t length = X25519_LEN
        if EVP_PKEY_get_raw_public_key(self.key, public_key, &length) != 1:
            ERR_clear_error()
            raise MemoryError
        return 0

    cdef bint agree(self, const uint8_t* public_key, uint8_t* shared) noexcept:
        """RFC 7748, "Diffie-Hellman". `public_key` is not checked before: any 32 bytes are a key. libcrypto refuses a
        result of zeros."""
        cdef size_t length = X25519_LEN
        cdef bint is_done = (
            EVP_PKEY_set1_encoded_public_key(peer, public_key, X25519_LEN) == 1
            and EVP_PKEY_derive_set_peer_ex(self.ctx, peer, False) == 1
            and EVP_PKEY_derive(self.ctx, shared, &length) == 1
        )
        if not is_done:
            ERR_clear_error()
        return is_done

    @property
    def public_key(self):
        """32 bytes."""
        public_key = PyBytes_FromStringAndSize(NULL, X25519_LEN)
        self.write_public_key(<uint8_t*>PyBytes_AS_STRING(public_key))
        return public_key

    def exchange(self, bytes public_key not None):
        """Returns the shared secret, 32 bytes.

        Raises ValueError for a key that is not 32 bytes, or that makes the result all zeros, whatever
        ours is.
        """
        shared = PyBytes_FromStringAndSize(NULL, X25519_LEN)
        if len(public_key) != X25519_LEN or not self.agree(
            start_of(public_key), <uint8_t*>PyBytes_AS_STRING(shared)
        ):
            raise ValueError("an X25519 public key of 32 bytes, and none of small order, expected")
        return shared


def ed25519_verify(bytes public_key not None, bytes signature not None, bytes message not None):
    """Returns whether `signature`, 64 bytes, is that of `public_key`, 32 bytes; False for any that cannot be.

    RFC 8032, without its cofactor.
    """
    cdef EVP_PKEY* key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, start_of(public_key), len(public_key))
    cdef EVP_MD_CTX* ctx = EVP_MD_CTX_new()
    cdef bint holds = (
        key != NULL
        and ctx != NULL
        and EVP_DigestVerifyInit(ctx, NULL, NULL, NULL, key) == 1
        and EVP_DigestVerify(ctx, start_of(signature), len(signature), start_of(message), len(message)) == 1
    )
    EVP_MD_CTX_free(ctx)
    EVP_PKEY_free(key)
    if not holds:
        ERR_clear_error()
    return holds


@cython.final
cdef class RsaPublicKey:
    """Read from its PKCS #1 DER, of which a key has exactly one: other spellings raise ValueError.

    So do numbers that make no RSA. Any size is read: which ones are trusted is the caller's to say.
    """

    cdef EVP_PKEY* key
    cdef readonly bytes der
    cdef readonly int bits        # of the modulus

    def __cinit__(self, bytes der not None):
        cdef const uint8_t* data = start_of(der)
        cdef uint8_t* encoded = NULL
        cdef int length = -1
        self.key = d2i_PublicKey(EVP_PKEY_RSA, NULL, &data, len(der))
        if self.key != NULL:
            length = i2d_PublicKey(self.key, &encoded)
        if not is_canonical(der, encoded, length) or not self.has_usable_numbers():
            ERR_clear_error()
            raise ValueError("an RSA public key in canonical DER expected")
        self.der = der
        self.bits = EVP_PKEY_get_bits(self.key)

    def __dealloc__(self):
        EVP_PKEY_free(self.key)

    cdef bint has_usable_numbers(self):
        """RFC 8017, "RSA Public Key": both odd, and 3 <= e < n. A long e would make each check slow."""
        cdef BIGNUM* n = NULL
        cdef BIGNUM* e = NULL
        cdef bint is_usable = (
            EVP_PKEY_get_bn_param(self.key, OSSL_PKEY_PARAM_RSA_N, &n) == 1
            and EVP_PKEY_get_bn_param(self.key, OSSL_PKEY_PARAM_RSA_E, &e) == 1
            and BN_is_odd(n)
            and BN_is_odd(e)
            and not BN_is_one(e)
            and BN_cmp(e, n) < 0
            and BN_num_bits(e) <= MAX_EXPONENT_BITS
        )
        BN_free(n)
        BN_free(e)
        return is_usable

    def recover(self, bytes signature not None):
        """What `signature` is over, once its PKCS #1 v1.5 padding is off; None where that does not hold.

        Tor signs bare digests, without DigestInfo. A signature of another length than the modulus, or over
        nothing, holds for none.
        """
        cdef size_t length = EVP_PKEY_get_size(self.key)
        if <size_t>len(signature) != length:
            return None
        signed = PyBytes_FromStringAndSize(NULL, length)
        cdef EVP_PKEY_CTX* ctx = EVP_PKEY_CTX_new(self.key, NULL)
        cdef bint holds = (
            ctx != NULL
            and EVP_PKEY_verify_recover_init(ctx) == 1
            and EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PADDING) == 1
            and EVP_PKEY_verify_recover(
                ctx, <uint8_t*>PyBytes_AS_STRING(signed), &length, start_of(signature), len(signature)
            ) == 1
            and length > 0
        )
        EVP_PKEY_CTX_free(ctx)
        if not holds:
            ERR_clear_error()
            return None
        return signed[:length]


@cython.final
cdef class RsaCertificate:
    """An X.509 certificate, from DER. Raises ValueError for what is none, or holds an RSA key that is none.

    Nothing is verified: whose it is, and whether it is valid at some time, is for the caller to ask.
    """

    cdef X509* certificate
    cdef readonly RsaPublicKey key     # None where its key is of another kind
    cdef readonly int64_t not_before   # seconds since the epoch
    cdef readonly int64_t not_after

    def __cinit__(self, bytes der not None):
        cdef const uint8_t* data = start_of(der)
        cdef uint8_t* encoded = NULL
        cdef int length = -1
        self.certificate = d2i_X509(NULL, &data, len(der))
        if self.certificate != NULL:
            # Its signed part is not written anew; what we take from there has one spelling each.
            length = i2d_X509(self.certificate, &encoded)
        if not is_canonical(der, encoded, length):
            ERR_clear_error()
            raise ValueError("an X.509 certificate in DER expected")
        self.not_before = unix_time(X509_get0_notBefore(self.certificate))
        self.not_after = unix_time(X509_get0_notAfter(self.certificate))
        self.key = self.rsa_key()

    def __dealloc__(self):
        X509_free(self.certificate)

    cdef RsaPublicKey rsa_key(self):
        cdef ASN1_OBJECT* algorithm = NULL
        cdef const uint8_t* key = NULL
        cdef int length = 0
        X509_PUBKEY_get0_param(&algorithm, &key, &length, NULL, X509_get_X509_PUBKEY(self.certificate))
        if OBJ_obj2nid(algorithm) != NID_rsaEncryption:
            return None
        return RsaPublicKey(key[:length])

    def is_self_signed(self):
        """Returns whether its own RSA key has signed it, with SHA-256 or a longer one, in its own name."""
        if self.key is None:
            return False
        cdef int algorithm = X509_get_signature_nid(self.certificate)
        cdef bint holds = (
            algorithm in (NID_sha256WithRSAEncryption, NID_sha384WithRSAEncryption, NID_sha512WithRSAEncryption)
            and X509_NAME_cmp(
                X509_get_subject_name(self.certificate), X509_get_issuer_name(self.certificate)
            ) == 0
            and X509_verify(self.certificate, self.key.key) == 1
        )
        if not holds:
            ERR_clear_error()
        return holds


cdef int64_t unix_time(const ASN1_TIME* time) except? -1:
    cdef tm when
    cdef int length = UTC_TIME_LEN if ASN1_STRING_type(time) == V_ASN1_UTCTIME else GENERALIZED_TIME_LEN
    if ASN1_STRING_length(time) != length or ASN1_TIME_to_tm(time, &when) != 1:
        ERR_clear_error()
        raise ValueError("a time in UTC, to the second, expected")
    return timegm(&when)


def aes_256_ctr(bytes key not None, bytes data not None, bytes iv=None):
    """`data` encrypted or decrypted by a key of 32 bytes that serves only this once.

    `iv`, 16 bytes, is where the counter begins; without it at 0.
    """
    if len(key) != AES_256_KEY_LEN or len(data) > INT_MAX or (iv is not None and len(iv) != AES_BLOCK_LEN):
        raise UsageError(
            f"AES-256-CTR takes {AES_256_KEY_LEN} bytes of key, {AES_BLOCK_LEN} of iv, and less than 2 GiB of data"
        )
    cdef uint8_t[AES_BLOCK_LEN] counter
    if iv is None:
        memset(counter, 0, sizeof(counter))
    else:
        memcpy(counter, start_of(iv), sizeof(counter))
    result = PyBytes_FromStringAndSize(NULL, len(data))
    cdef int length = 0
    cdef EVP_CIPHER_CTX* ctx = EVP_CIPHER_CTX_new()
    cdef bint is_done = (
        ctx != NULL
        and EVP_EncryptInit_ex(ctx, EVP_aes_256_ctr(), NULL, start_of(key), counter) == 1
        and EVP_EncryptUpdate(
            ctx, <uint8_t*>PyBytes_AS_STRING(result), &length, start_of(data), <int>len(data)
        ) == 1
    )
    EVP_CIPHER_CTX_free(ctx)
    if not is_done:
        ERR_clear_error()
        raise MemoryError("libcrypto could not set up AES-256-CTR")
    return result
