"""The hashes that handshakes need, of secrets: what was hashed is overwritten at once.

HMAC-SHA256 of one piece; SHA3-256 and SHAKE-256 of one message at a time, in pieces.
"""

from libc.string cimport memset

from torkit._fast.cells cimport store32
from torkit._fast.openssl cimport (
    ERR_clear_error, EVP_DigestFinal_ex, EVP_DigestFinalXOF, EVP_DigestInit_ex, EVP_DigestUpdate, EVP_MD_CTX,
    EVP_MD_CTX_new, EVP_MD_CTX_reset, EVP_MD_fetch, OPENSSL_cleanse, SHA256_CTX, SHA256_Final, SHA256_Init,
    SHA256_Update,
)

cdef enum:
    SHA256_BLOCK_LEN = 64


cdef void hmac_sha256(
    const uint8_t* key, size_t key_len, const void* message, size_t length, uint8_t* digest
) noexcept:
    """RFC 2104, "Definition of HMAC", of a key that is no longer than a block.

    By libcrypto's SHA-256 without EVP, as SHA-1 in digest.pyx: nothing is allocated, so nothing fails, and it takes
    0.3 us where libcrypto's HMAC takes 2.3. A hop with ntor has six.
    """
    cdef uint8_t[SHA256_BLOCK_LEN] inner
    cdef uint8_t[SHA256_BLOCK_LEN] outer
    cdef SHA256_CTX ctx
    cdef size_t i
    memset(inner, 0x36, sizeof(inner))
    memset(outer, 0x5C, sizeof(outer))
    for i in range(key_len):
        inner[i] ^= key[i]
        outer[i] ^= key[i]
    SHA256_Init(&ctx)
    SHA256_Update(&ctx, inner, sizeof(inner))
    SHA256_Update(&ctx, message, length)
    SHA256_Final(digest, &ctx)
    SHA256_Init(&ctx)
    SHA256_Update(&ctx, outer, sizeof(outer))
    SHA256_Update(&ctx, digest, SHA256_LEN)
    SHA256_Final(digest, &ctx)
    OPENSSL_cleanse(inner, sizeof(inner))
    OPENSSL_cleanse(outer, sizeof(outer))
    OPENSSL_cleanse(&ctx, sizeof(ctx))


# ---- SHA3-256 and SHAKE-256, of one message at a time, under the GIL ----

# Fetched once: libcrypto would look for them each time, which takes half as long as the hash.
sha3_256 = EVP_MD_fetch(NULL, b"SHA3-256", NULL)
shake_256 = EVP_MD_fetch(NULL, b"SHAKE-256", NULL)
cdef EVP_MD_CTX* sponge = EVP_MD_CTX_new()
cdef bint is_sound = False  # whether libcrypto has done all that it was asked since the message began
if sha3_256 == NULL or shake_256 == NULL or sponge == NULL:
    raise MemoryError


cdef void begin(const EVP_MD* kind) noexcept:
    """Begin a message for one of these two: it is then absorbed piece by piece, and ends in the same call of Python."""
    global is_sound
    is_sound = EVP_DigestInit_ex(sponge, kind, NULL) == 1


cdef void absorb(const void* data, size_t length) noexcept:
    global is_sound
    is_sound = is_sound and EVP_DigestUpdate(sponge, data, length) == 1


cdef void absorb_length(size_t length) noexcept:
    """A length of less than 4 GiB, as 64 bits."""
    cdef uint8_t[8] encoded
    memset(encoded, 0, 4)
    store32(&encoded[4], <uint32_t>length)
    absorb(encoded, sizeof(encoded))


cdef void absorb_encap(const uint8_t* data, size_t length) noexcept:
    """`data` behind its length: ENCAP(s) of proposal 332."""
    absorb_length(length)
    absorb(data, length)


cdef int end_hash(uint8_t* digest) except -1:
    """Write SHA3-256 of all that was absorbed, and forget it."""
    return end(is_sound and EVP_DigestFinal_ex(sponge, digest, NULL) == 1)


cdef int squeeze(uint8_t* output, size_t length) except -1:
    """Write `length` bytes of SHAKE-256 of all that was absorbed, and forget it."""
    return end(is_sound and EVP_DigestFinalXOF(sponge, output, length) == 1)


cdef int end(bint is_done) except -1:
    EVP_MD_CTX_reset(sponge)  # cleanses its state
    if not is_done:
        ERR_clear_error()
        raise MemoryError("libcrypto could not run SHA3-256 or SHAKE-256")
    return 0
