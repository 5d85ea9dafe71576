"""Running digests: what they are after each cell is told, and they go on.

SHA-1 is libcrypto's without EVP, which keeps 80 bytes more for each, and a circuit has four: its functions are
deprecated, and C tor calls them as well. SHA3-256, of which a circuit has one pair at most, is EVP's.
tor-spec, "Relay cells".
"""

from libc.string cimport memset

from torkit._fast.openssl cimport (
    EVP_DigestFinal_ex, EVP_DigestInit_ex, EVP_DigestUpdate, EVP_MD_CTX_copy_ex, EVP_MD_CTX_free, EVP_MD_CTX_new,
    EVP_MD_CTX_reset, EVP_sha3_256, OPENSSL_cleanse, SHA1_Final, SHA1_Init, SHA1_Update,
)

# Shared by all digests, which use them within one cell, and hold the GIL. Emptied whenever a digest is freed: a copy
# tells as much as its original.
cdef Digest scratch  # finals are taken from copies
cdef Digest saved    # the way back when a cell was not for this hop
memset(&scratch, 0, sizeof(Digest))
memset(&saved, 0, sizeof(Digest))
scratch.sha3 = EVP_MD_CTX_new()
saved.sha3 = EVP_MD_CTX_new()
if scratch.sha3 == NULL or saved.sha3 == NULL:
    raise MemoryError


cdef int digest_init(Digest* digest, bint is_sha3, const uint8_t* seed, size_t length) noexcept nogil:
    memset(digest, 0, sizeof(Digest))
    if not is_sha3:
        return 1 if SHA1_Init(&digest.sha1) == 1 and SHA1_Update(&digest.sha1, seed, length) == 1 else -1
    digest.sha3 = EVP_MD_CTX_new()
    if (digest.sha3 == NULL or EVP_DigestInit_ex(digest.sha3, EVP_sha3_256(), NULL) != 1
            or EVP_DigestUpdate(digest.sha3, seed, length) != 1):
        return -1
    return 1


cdef int digest_take(Digest* digest, const uint8_t* data, size_t length, uint8_t* final) noexcept nogil:
    """Take in a cell; `final` gets what the digest is then."""
    if digest.sha3 == NULL:
        if SHA1_Update(&digest.sha1, data, length) != 1:
            return -1
        scratch.sha1 = digest.sha1
        return 1 if SHA1_Final(final, &scratch.sha1) == 1 else -1
    if (EVP_DigestUpdate(digest.sha3, data, length) != 1 or EVP_MD_CTX_copy_ex(scratch.sha3, digest.sha3) != 1
            or EVP_DigestFinal_ex(scratch.sha3, final, NULL) != 1):
        return -1
    return 1


cdef void digest_free(Digest* digest) noexcept nogil:
    EVP_MD_CTX_free(digest.sha3)  # cleanses its state; NULL is fine
    OPENSSL_cleanse(digest, sizeof(Digest))
    empty(&scratch)
    empty(&saved)


cdef inline void empty(Digest* copy) noexcept nogil:
    EVP_MD_CTX_reset(copy.sha3)
    OPENSSL_cleanse(&copy.sha1, sizeof(copy.sha1))


cdef int digest_save(const Digest* digest) noexcept nogil:
    if digest.sha3 == NULL:
        saved.sha1 = digest.sha1
        return 1
    return 1 if EVP_MD_CTX_copy_ex(saved.sha3, digest.sha3) == 1 else -1


cdef int digest_restore(Digest* digest) noexcept nogil:
    if digest.sha3 == NULL:
        digest.sha1 = saved.sha1
        return 1
    return 1 if EVP_MD_CTX_copy_ex(digest.sha3, saved.sha3) == 1 else -1
