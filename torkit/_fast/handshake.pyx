"""Circuit handshakes, the client's half: CREATE_FAST, ntor and ntor-v3, and the keys that each leaves.

Those that hs-ntor leaves (hs_ntor.pyx) are here, too.

    client = NtorClient(...)        the first message is computed at once
    client.handshake                bytes for CREATE_FAST, CREATE2 or EXTEND2
    keys = client.finish(reply)     HopKeys, or CircuitError if the reply is not that relay's
    keys.layer(LayerKind.TOR1)      the layer of that hop

A client object serves one hop once; private keys and random bytes come from the caller, fresh each time. What is
computed with them is in arrays that are overwritten at the end of a step, by `wipe`, or at the latest with their
object: no secret becomes an object of Python's, but for `derive` and `kh`.

Notation follows the specifications: b, B the relay's onion key, x, X ours for this handshake, y, Y the relay's.
What a specification hashes in one piece is a struct here: arrays of bytes leave no gaps between them.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from torkit._fast.cells cimport CELL_BODY_LEN
from torkit._fast.ctr cimport CTR_LONG_KEY_LEN, Ctr, ctr_free, ctr_init, ctr_xor
from torkit._fast.factory cimport check_maker, make
from torkit._fast.hashes cimport (
    SHA256_LEN, absorb, absorb_encap, absorb_length, begin, end_hash, hmac_sha256, sha3_256, shake_256, squeeze,
)
from torkit._fast.keys cimport X25519_LEN, X25519PrivateKey
from torkit._fast.onion cimport (
    TOR1_ONION_DIGEST_LEN, TOR1_ONION_KEY_LEN, TOR1_ONION_KEYS_LEN, LayerKind, keys_len, layer_of,
)
from torkit._fast.openssl cimport (
    CRYPTO_memcmp, ERR_clear_error, EVP_MD, OPENSSL_cleanse, SHA1_Final, SHA1_Init, SHA1_Update, SHA_CTX,
)

from torkit.errors import CircuitError, UsageError

# Specification constants, bytes: tor-spec, "Preliminaries", "The "ntor" handshake"; proposal 332, "Instantiation".
cdef enum:
    RSA_IDENTITY_LEN = 20
    ED25519_IDENTITY_LEN = 32
    NTOR_PROTOID_LEN = 24
    NTOR_V3_PROTOID_LEN = 27
    SERVER_LEN = 6
    NTOR_EXPAND_LEN = 35

cdef bytes NTOR_PROTOID = b"ntor-curve25519-sha256-1"
cdef bytes NTOR_EXPAND = NTOR_PROTOID + b":key_expand"
cdef bytes NTOR_EXTRACT = NTOR_PROTOID + b":key_extract"
cdef bytes NTOR_VERIFY = NTOR_PROTOID + b":verify"
cdef bytes NTOR_MAC = NTOR_PROTOID + b":mac"
cdef bytes NTOR_V3_PROTOID = b"ntor3-curve25519-sha3_256-1"
cdef bytes SERVER = b"Server"
cdef bytes HS_NTOR_EXPAND = b"tor-hs-ntor-curve25519-sha3-256-1:hs_key_expand"

# Implementation limit: what a layer of any kind takes, and KH after it.
cdef enum:
    MAX_KEYS_LEN = 256


cdef struct NtorMessage:
    uint8_t[RSA_IDENTITY_LEN] identity
    uint8_t[X25519_LEN] onion_key
    uint8_t[X25519_LEN] x

cdef struct NtorSecretInput:
    uint8_t[X25519_LEN] yx        # EXP(Y,x)
    uint8_t[X25519_LEN] bx        # EXP(B,x)
    NtorMessage message
    uint8_t[X25519_LEN] y
    uint8_t[NTOR_PROTOID_LEN] protoid

cdef struct NtorAuthInput:
    uint8_t[SHA256_LEN] verify
    uint8_t[RSA_IDENTITY_LEN] identity
    uint8_t[X25519_LEN] onion_key
    uint8_t[X25519_LEN] y
    uint8_t[X25519_LEN] x
    uint8_t[NTOR_PROTOID_LEN] protoid
    uint8_t[SERVER_LEN] server

cdef struct NtorExpandInput:
    uint8_t[SHA256_LEN] previous
    uint8_t[NTOR_EXPAND_LEN] info
    uint8_t number

cdef struct NtorV3Message:        # as far as it has one length
    uint8_t[ED25519_IDENTITY_LEN] identity
    uint8_t[X25519_LEN] onion_key
    uint8_t[X25519_LEN] x

cdef struct NtorV3SecretInput:    # ENCAP(VER) follows
    uint8_t[X25519_LEN] yx        # EXP(Y,x)
    uint8_t[X25519_LEN] bx        # EXP(B,x)
    NtorV3Message message
    uint8_t[X25519_LEN] y
    uint8_t[NTOR_V3_PROTOID_LEN] protoid

# Of one step.
cdef struct NtorV3Secrets:
    uint8_t[CTR_LONG_KEY_LEN] enc_key
    uint8_t[SHA256_LEN] mac_key
    uint8_t[SHA256_LEN] verify
    uint8_t[SHA256_LEN] auth


cdef int check_len(str what, bytes value, Py_ssize_t length) except -1:
    if len(value) != length:
        raise UsageError(f"{what} has {len(value)} bytes, not {length}")
    return 0


cdef int check_reply_len(str what, bytes reply, Py_ssize_t length) except -1:
    if len(reply) != length:
        raise CircuitError(f"{what} has {len(reply)} bytes, not {length}")
    return 0


cdef object degenerate(str whose):
    return CircuitError(f"the {whose} is degenerate: a handshake with it would be no secret")


cdef object over():
    return UsageError("the secrets of this handshake have been overwritten")


# ---- The keys ----

@cython.final
cdef class HopKeys:
    """The result of a handshake: a stream of key bytes, and the relay's message.

    Each layer kind takes as much of the stream, from its start, as it needs; a hop has one layer. The
    HASH_LEN bytes after ntor's or ntor-v3's are the nonce that introduction points know as KH.
    `server_message` is the decrypted message of an ntor-v3 reply, and empty for the older handshakes.
    Call `wipe` when all keys have been derived; after that UsageError is raised.
    """

    def __cinit__(self):
        check_maker(self)
        self.server_message = b""

    def __dealloc__(self):
        OPENSSL_cleanse(self.seed, sizeof(self.seed))

    def wipe(self):
        """Overwrite the secret from which the keys are derived."""
        self.kdf = WIPED
        OPENSSL_cleanse(self.seed, sizeof(self.seed))

    def layer(self, LayerKind kind):
        """Returns the layer of this kind that the keys make. Raises UsageError."""
        cdef uint8_t[MAX_KEYS_LEN] keys
        cdef Py_ssize_t length = keys_len(kind)
        try:
            self.expand(keys, length)
            return layer_of(kind, keys)
        finally:
            OPENSSL_cleanse(keys, sizeof(keys))

    def service_layer(self):
        """Returns an onion service's end of the layer TOR1_ONION: it seals with what its client opens by.

        Raises UsageError.
        """
        cdef uint8_t[TOR1_ONION_KEYS_LEN] keys
        try:
            self.expand(keys, TOR1_ONION_KEYS_LEN)
            swap(keys, &keys[TOR1_ONION_DIGEST_LEN], TOR1_ONION_DIGEST_LEN)
            swap(
                &keys[2 * TOR1_ONION_DIGEST_LEN],
                &keys[2 * TOR1_ONION_DIGEST_LEN + TOR1_ONION_KEY_LEN],
                TOR1_ONION_KEY_LEN,
            )
            return layer_of(LayerKind.TOR1_ONION, keys)
        finally:
            OPENSSL_cleanse(keys, sizeof(keys))

    def kh(self, LayerKind kind):
        """Returns KH behind the keys of a layer of this kind, 20 bytes, for the caller to wipe. Raises UsageError."""
        cdef uint8_t[MAX_KEYS_LEN] keys
        cdef Py_ssize_t length = keys_len(kind)
        try:
            self.expand(keys, length + HASH_LEN)
            return keys[length:length + HASH_LEN]
        finally:
            OPENSSL_cleanse(keys, sizeof(keys))

    def derive(self, Py_ssize_t length):
        """Returns the first `length` bytes, for the caller to wipe: for tests. Raises UsageError beyond 256."""
        cdef uint8_t[MAX_KEYS_LEN] keys
        if not 0 <= length <= MAX_KEYS_LEN:
            raise UsageError(f"keys of {MAX_KEYS_LEN} bytes at most can be derived, not {length}")
        try:
            self.expand(keys, length)
            return keys[:length]
        finally:
            OPENSSL_cleanse(keys, sizeof(keys))

    cdef int expand(self, uint8_t* keys, Py_ssize_t length) except -1:
        """Write the first `length` bytes, at most MAX_KEYS_LEN."""
        if self.kdf == KDF_TOR:
            expand_tor(self.seed, keys, length)
        elif self.kdf == KDF_RFC5869:
            expand_rfc5869(self.seed, keys, length)
        elif self.kdf == KDF_NTOR_V3:
            expand_ntor_v3(self.seed, keys, length)
        elif self.kdf == KDF_HS_NTOR:
            expand_hs_ntor(self.seed, keys, length)
        else:
            raise UsageError("the keys have been overwritten")
        return 0


cdef HopKeys make_keys():
    make()
    return HopKeys.__new__(HopKeys)


cdef void swap(uint8_t* one, uint8_t* other, Py_ssize_t length) noexcept:
    cdef Py_ssize_t i
    for i in range(length):
        one[i], other[i] = other[i], one[i]


cdef int expand_hs_ntor(const uint8_t* key_seed, uint8_t* keys, Py_ssize_t length) except -1:
    """rend-spec-v3, "Key expansion"."""
    begin(shake_256)
    absorb(key_seed, SHA256_LEN)
    absorb(start_of(HS_NTOR_EXPAND), PyBytes_GET_SIZE(HS_NTOR_EXPAND))
    return squeeze(keys, length)


# ---- CREATE_FAST ----

@cython.final
cdef class FastClient:
    """tor-spec, "CREATE_FAST/CREATED_FAST cells": no public keys, for a first hop that TLS authenticated.

    `x` is HASH_LEN fresh random bytes.
    """

    cdef readonly bytes handshake
    cdef bint is_over

    def __cinit__(self, bytes x not None):
        check_len("X", x, HASH_LEN)
        self.handshake = x

    def finish(self, bytes reply not None):
        """`reply` is Y | KH. Raises CircuitError; UsageError after `wipe`."""
        check_reply_len("CREATED_FAST", reply, 2 * HASH_LEN)
        if self.is_over:
            raise over()
        cdef HopKeys keys = make_keys()
        memcpy(keys.seed, start_of(self.handshake), HASH_LEN)
        memcpy(&keys.seed[HASH_LEN], start_of(reply), HASH_LEN)
        cdef uint8_t[HASH_LEN] kh
        kdf_tor_block(keys.seed, 0, kh)
        cdef bint is_right = CRYPTO_memcmp(kh, start_of(reply) + HASH_LEN, HASH_LEN) == 0
        OPENSSL_cleanse(kh, sizeof(kh))
        if not is_right:
            raise CircuitError("the CREATE_FAST handshake failed: KH is wrong")
        keys.kdf = KDF_TOR
        return keys

    def wipe(self):
        """Overwrite X, which is the caller's object, once it has been sent and answered."""
        self.is_over = True
        OPENSSL_cleanse(start_of(self.handshake), HASH_LEN)


cdef void kdf_tor_block(const uint8_t* secret, uint8_t number, uint8_t* block) noexcept:
    """Block `number` of KDF-TOR, HASH_LEN bytes. Without EVP, as in digest.pyx: nothing is allocated, nothing fails."""
    cdef SHA_CTX ctx
    SHA1_Init(&ctx)
    SHA1_Update(&ctx, secret, 2 * HASH_LEN)
    SHA1_Update(&ctx, &number, 1)
    SHA1_Final(block, &ctx)
    OPENSSL_cleanse(&ctx, sizeof(ctx))


cdef void expand_tor(const uint8_t* secret, uint8_t* keys, Py_ssize_t length) noexcept:
    """tor-spec, "KDF-TOR": what comes behind KH."""
    cdef uint8_t[HASH_LEN] block
    cdef Py_ssize_t at = 0
    cdef uint8_t number = 1
    while at < length:
        kdf_tor_block(secret, number, block)
        memcpy(keys + at, block, min(length - at, <Py_ssize_t>HASH_LEN))
        at += HASH_LEN
        number += 1
    OPENSSL_cleanse(block, sizeof(block))


# ---- ntor ----

@cython.final
cdef class NtorClient:
    """tor-spec, "The "ntor" handshake".

    `rsa_identity` is 20 bytes; `onion_key`, B, and `private_key`, x, are 32 bytes each. Raises CircuitError if
    the relay published a degenerate onion key.
    """

    cdef readonly bytes handshake
    cdef X25519PrivateKey x
    cdef NtorSecretInput known

    def __cinit__(
        self, *, bytes rsa_identity not None, bytes onion_key not None, bytes private_key not None
    ):
        check_len("RSA identity", rsa_identity, RSA_IDENTITY_LEN)
        check_len("onion key", onion_key, X25519_LEN)
        check_len("private key", private_key, X25519_LEN)
        cdef NtorSecretInput* known = &self.known
        self.x = X25519PrivateKey(private_key)
        self.x.write_public_key(known.message.x)
        memcpy(known.message.identity, start_of(rsa_identity), RSA_IDENTITY_LEN)
        memcpy(known.message.onion_key, start_of(onion_key), X25519_LEN)
        memcpy(known.protoid, start_of(NTOR_PROTOID), NTOR_PROTOID_LEN)
        if not self.x.agree(known.message.onion_key, known.bx):
            raise degenerate("onion key")
        self.handshake = PyBytes_FromStringAndSize(<const char*>&known.message, sizeof(known.message))

    def __dealloc__(self):
        OPENSSL_cleanse(&self.known, sizeof(self.known))

    def finish(self, bytes reply not None):
        """`reply` is Y | AUTH. Raises CircuitError; UsageError after `wipe`."""
        check_reply_len("the ntor reply", reply, X25519_LEN + SHA256_LEN)
        if self.x is None:
            raise over()
        cdef HopKeys keys = make_keys()
        cdef NtorSecretInput* known = &self.known
        memcpy(known.y, start_of(reply), X25519_LEN)
        if not self.x.agree(known.y, known.yx):
            raise degenerate("key of the relay")
        cdef NtorAuthInput auth_input
        ntor_h(NTOR_VERIFY, known, sizeof(known[0]), auth_input.verify)
        memcpy(auth_input.identity, known.message.identity, RSA_IDENTITY_LEN)
        memcpy(auth_input.onion_key, known.message.onion_key, X25519_LEN)
        memcpy(auth_input.y, known.y, X25519_LEN)
        memcpy(auth_input.x, known.message.x, X25519_LEN)
        memcpy(auth_input.protoid, known.protoid, NTOR_PROTOID_LEN)
        memcpy(auth_input.server, start_of(SERVER), SERVER_LEN)
        cdef uint8_t[SHA256_LEN] auth
        ntor_h(NTOR_MAC, &auth_input, sizeof(auth_input), auth)
        ntor_h(NTOR_EXTRACT, known, sizeof(known[0]), keys.seed)
        cdef bint is_right = CRYPTO_memcmp(auth, start_of(reply) + X25519_LEN, SHA256_LEN) == 0
        OPENSSL_cleanse(known.yx, sizeof(known.yx))
        OPENSSL_cleanse(&auth_input, sizeof(auth_input))
        OPENSSL_cleanse(auth, sizeof(auth))
        if not is_right:
            raise CircuitError("the ntor handshake failed: AUTH is wrong")
        keys.kdf = KDF_RFC5869
        return keys

    def wipe(self):
        """Overwrite what is secret of this handshake. It cannot be finished any more."""
        self.x = None
        OPENSSL_cleanse(&self.known, sizeof(self.known))


cdef void ntor_h(bytes tweak, const void* message, size_t length, uint8_t* digest) noexcept:
    """H(x, t), with all of t."""
    hmac_sha256(start_of(tweak), PyBytes_GET_SIZE(tweak), message, length, digest)


cdef void expand_rfc5869(const uint8_t* key_seed, uint8_t* keys, Py_ssize_t length) noexcept:
    """tor-spec, "KDF-RFC5869": the expansion half of HKDF-SHA256."""
    cdef NtorExpandInput message
    cdef uint8_t[SHA256_LEN] block
    cdef Py_ssize_t at = 0
    memcpy(message.info, start_of(NTOR_EXPAND), NTOR_EXPAND_LEN)
    message.number = 1
    while at < length:
        if at == 0:
            hmac_sha256(key_seed, SHA256_LEN, message.info, NTOR_EXPAND_LEN + 1, block)
        else:
            hmac_sha256(key_seed, SHA256_LEN, &message, sizeof(message), block)
        memcpy(keys + at, block, min(length - at, <Py_ssize_t>SHA256_LEN))
        memcpy(message.previous, block, SHA256_LEN)
        at += SHA256_LEN
        message.number += 1
    OPENSSL_cleanse(&message, sizeof(message))
    OPENSSL_cleanse(block, sizeof(block))


# ---- ntor-v3 ----

@cython.final
cdef class NtorV3Client:
    """Proposal 332: ntor over SHA3 and the Ed25519 identity, with a message each way.

    `ed25519_identity`, `onion_key`, B, and `private_key`, x, are 32 bytes each. `message`, for a circuit, is what
    `CircuitRequest.encode` gives; it has no forward secrecy. Raises CircuitError if the relay published a
    degenerate onion key.
    """

    cdef readonly bytes handshake
    cdef X25519PrivateKey x
    cdef NtorV3SecretInput known
    cdef bytes verification
    cdef uint8_t[SHA256_LEN] mac  # the end of `handshake`

    def __cinit__(
        self,
        *,
        bytes ed25519_identity not None,
        bytes onion_key not None,
        bytes private_key not None,
        bytes message not None,
        bytes verification not None=b"circuit extend",
    ):
        check_len("Ed25519 identity", ed25519_identity, ED25519_IDENTITY_LEN)
        check_len("onion key", onion_key, X25519_LEN)
        check_len("private key", private_key, X25519_LEN)
        if len(message) > CELL_BODY_LEN:
            raise UsageError(f"a message of {len(message)} bytes fits no cell")
        cdef NtorV3SecretInput* known = &self.known
        self.verification = verification
        self.x = X25519PrivateKey(private_key)
        self.x.write_public_key(known.message.x)
        memcpy(known.message.identity, start_of(ed25519_identity), ED25519_IDENTITY_LEN)
        memcpy(known.message.onion_key, start_of(onion_key), X25519_LEN)
        memcpy(known.protoid, start_of(NTOR_V3_PROTOID), NTOR_V3_PROTOID_LEN)
        if not self.x.agree(known.message.onion_key, known.bx):
            raise degenerate("onion key")
        cdef NtorV3Secrets secrets
        try:
            self.handshake = self.seal(message, &secrets)
        finally:
            OPENSSL_cleanse(&secrets, sizeof(secrets))

    def __dealloc__(self):
        OPENSSL_cleanse(&self.known, sizeof(self.known))

    cdef bytes seal(self, bytes message, NtorV3Secrets* secrets):
        """Returns what we send: who we are and whom we mean, `message` encrypted, and a MAC over all."""
        cdef NtorV3SecretInput* known = &self.known
        cdef bytes handshake = PyBytes_FromStringAndSize(NULL, sizeof(known.message) + len(message) + SHA256_LEN)
        cdef uint8_t* encrypted = start_of(handshake) + sizeof(known.message)
        cdef uint8_t* mac = encrypted + len(message)
        memcpy(start_of(handshake), &known.message, sizeof(known.message))
        memcpy(encrypted, start_of(message), len(message))
        begin_ntor_v3(shake_256, b":kdf_phase1")
        absorb(known.bx, X25519_LEN)
        absorb(known.message.identity, ED25519_IDENTITY_LEN)
        absorb(known.message.x, X25519_LEN)
        absorb(known.message.onion_key, X25519_LEN)
        absorb(known.protoid, NTOR_V3_PROTOID_LEN)
        absorb_encap(start_of(self.verification), len(self.verification))
        squeeze(secrets.enc_key, CTR_LONG_KEY_LEN + SHA256_LEN)  # and mac_key
        crypt(secrets.enc_key, encrypted, len(message))
        begin_ntor_v3(sha3_256, b":msg_mac")
        absorb_encap(secrets.mac_key, SHA256_LEN)
        absorb(start_of(handshake), mac - start_of(handshake))
        end_hash(mac)
        memcpy(self.mac, mac, SHA256_LEN)
        return handshake

    def finish(self, bytes reply not None):
        """`reply` is Y | AUTH | the relay's message, encrypted. Raises CircuitError; UsageError after `wipe`."""
        cdef NtorV3Secrets secrets
        if len(reply) < X25519_LEN + SHA256_LEN:
            raise CircuitError(
                f"the ntor-v3 reply is truncated: {X25519_LEN + SHA256_LEN} bytes expected, {len(reply)} seen"
            )
        if len(reply) > CELL_BODY_LEN:
            raise CircuitError(f"the ntor-v3 reply has {len(reply)} bytes, which fit no cell")
        if self.x is None:
            raise over()
        try:
            return self.open(reply, &secrets)
        finally:
            OPENSSL_cleanse(self.known.yx, sizeof(self.known.yx))
            OPENSSL_cleanse(&secrets, sizeof(secrets))

    cdef HopKeys open(self, bytes reply, NtorV3Secrets* secrets):
        cdef HopKeys keys = make_keys()
        cdef NtorV3SecretInput* known = &self.known
        cdef const uint8_t* auth = start_of(reply) + X25519_LEN
        cdef const uint8_t* encrypted = auth + SHA256_LEN
        cdef Py_ssize_t length = len(reply) - X25519_LEN - SHA256_LEN
        memcpy(known.y, start_of(reply), X25519_LEN)
        if not self.x.agree(known.y, known.yx):
            raise degenerate("key of the relay")
        self.hash_secret_input(b":verify", secrets.verify)
        begin_ntor_v3(sha3_256, b":auth_final")
        absorb(secrets.verify, SHA256_LEN)
        absorb(known.message.identity, ED25519_IDENTITY_LEN)
        absorb(known.message.onion_key, X25519_LEN)
        absorb(known.y, X25519_LEN)
        absorb(known.message.x, X25519_LEN)
        absorb(self.mac, SHA256_LEN)
        absorb_encap(encrypted, length)
        absorb(known.protoid, NTOR_V3_PROTOID_LEN)
        absorb(start_of(SERVER), SERVER_LEN)
        end_hash(secrets.auth)
        if CRYPTO_memcmp(secrets.auth, auth, SHA256_LEN) != 0:
            raise CircuitError("the ntor-v3 handshake failed: AUTH is wrong")
        self.hash_secret_input(b":key_seed", keys.seed)
        begin_ntor_v3(shake_256, b":kdf_final")
        absorb(keys.seed, SHA256_LEN)
        squeeze(secrets.enc_key, CTR_LONG_KEY_LEN)
        cdef bytes message = PyBytes_FromStringAndSize(NULL, length)  # a copy of one byte would be an object of everybody's
        memcpy(start_of(message), encrypted, length)
        crypt(secrets.enc_key, start_of(message), length)
        keys.server_message = message
        keys.kdf = KDF_NTOR_V3
        return keys

    cdef int hash_secret_input(self, bytes tweak, uint8_t* digest) except -1:
        begin_ntor_v3(sha3_256, tweak)
        absorb(&self.known, sizeof(self.known))
        absorb_encap(start_of(self.verification), len(self.verification))
        end_hash(digest)
        return 0

    def wipe(self):
        """Overwrite what is secret of this handshake. It cannot be finished any more."""
        self.x = None
        OPENSSL_cleanse(&self.known, sizeof(self.known))


cdef int expand_ntor_v3(const uint8_t* key_seed, uint8_t* keys, Py_ssize_t length) except -1:
    """What KDF gives behind the key of the relay's message."""
    cdef uint8_t[CTR_LONG_KEY_LEN + MAX_KEYS_LEN] material
    try:
        begin_ntor_v3(shake_256, b":kdf_final")
        absorb(key_seed, SHA256_LEN)
        squeeze(material, CTR_LONG_KEY_LEN + length)
        memcpy(keys, &material[CTR_LONG_KEY_LEN], length)
    finally:
        OPENSSL_cleanse(material, sizeof(material))
    return 0


cdef int crypt(const uint8_t* key, uint8_t* data, Py_ssize_t length) except -1:
    """ENC and DEC of proposal 332, in place: each key is used once, so the counter starts at 0."""
    cdef Ctr cipher
    cdef bint is_done = (
        ctr_init(&cipher, key, CTR_LONG_KEY_LEN, False) == 1
        and ctr_xor(&cipher, data, <int>length) == 1
    )
    ctr_free(&cipher)
    if not is_done:
        ERR_clear_error()
        raise MemoryError("libcrypto could not set up AES-256-CTR")
    return 0


cdef void begin_ntor_v3(const EVP_MD* kind, bytes tweak) noexcept:
    """Begin H(s, t) or KDF(s, t) with t = PROTOID | `tweak`: s is then absorbed. MAC(k, s, t) is H(ENCAP(k) | s, t)."""
    begin(kind)
    absorb_length(NTOR_V3_PROTOID_LEN + PyBytes_GET_SIZE(tweak))
    absorb(start_of(NTOR_V3_PROTOID), NTOR_V3_PROTOID_LEN)
    absorb(start_of(tweak), PyBytes_GET_SIZE(tweak))
