"""hs-ntor, both halves: the handshake of a client with an onion service, which no relay between them can read.

    client = HsNtorClient(...)              a secret is shared with the service's key at once
    client.seal(header, plaintext)          the end of INTRODUCE1, for the service; `header` is authenticated
    keys = client.finish(reply)             HopKeys, or CircuitError if RENDEZVOUS2 is not that service's

    point = HsNtorPoint(...)                the service's, for as long as it uses an introduction point
    request = point.open(...)               the client's words, or CircuitError if they are not for that service
    reply, keys = request.answer(y)         for RENDEZVOUS1, and HopKeys

Secrets are kept as in handshake.pyx: in arrays that are overwritten, and in no object of Python's.

Notation: b, B the service's key of one introduction point, x, X the client's for one attempt, y, Y the service's
for one meeting. rend-spec-v3, "Introduction handshake encryption requirements" and "The hs-ntor handshake".
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from torkit._fast.ctr cimport CTR_LONG_KEY_LEN
from torkit._fast.factory cimport check_maker, make
from torkit._fast.handshake cimport KDF_HS_NTOR, HopKeys, check_len, crypt, degenerate, make_keys, over, start_of
from torkit._fast.hashes cimport (
    SHA256_LEN, absorb, absorb_encap, absorb_length, begin, end_hash, sha3_256, shake_256, squeeze,
)
from torkit._fast.keys cimport X25519_LEN, X25519PrivateKey
from torkit._fast.openssl cimport CRYPTO_memcmp, OPENSSL_cleanse

from torkit.errors import CircuitError

# Specification constants, bytes.
cdef enum:
    ED25519_LEN = 32
    SUBCREDENTIAL_LEN = 32
    PROTOID_LEN = 33

cdef bytes PROTOID = b"tor-hs-ntor-curve25519-sha3-256-1"
cdef bytes SERVER = b"Server"
cdef bytes HS_ENC = PROTOID + b":hs_key_extract"
cdef bytes HS_EXPAND = PROTOID + b":hs_key_expand"
cdef bytes HS_VERIFY = PROTOID + b":hs_verify"
cdef bytes HS_MAC = PROTOID + b":hs_mac"


# rend_secret_hs_input; arrays of bytes leave no gaps between them.
cdef struct SecretInput:
    uint8_t[X25519_LEN] xy        # EXP(Y,x)
    uint8_t[X25519_LEN] bx        # EXP(B,x)
    uint8_t[ED25519_LEN] auth_key
    uint8_t[X25519_LEN] b
    uint8_t[X25519_LEN] x
    uint8_t[X25519_LEN] y
    uint8_t[PROTOID_LEN] protoid

cdef struct IntroductionKeys:
    uint8_t[CTR_LONG_KEY_LEN] enc_key
    uint8_t[SHA256_LEN] mac_key
    uint8_t[SHA256_LEN] mac       # of the message

cdef struct AuthInput:
    uint8_t[SHA256_LEN] verify
    uint8_t[ED25519_LEN] auth_key
    uint8_t[X25519_LEN] b
    uint8_t[X25519_LEN] y
    uint8_t[X25519_LEN] x
    uint8_t[PROTOID_LEN] protoid
    uint8_t[6] server


@cython.final
cdef class HsNtorClient:
    """A client's half, for one introduction. Call `wipe` when that is over, however it ends.

    `auth_key`, `enc_key`, B, `subcredential` and `private_key`, x, are 32 bytes each. Raises CircuitError where
    `enc_key` is degenerate.
    """

    cdef X25519PrivateKey x
    cdef SecretInput known
    cdef uint8_t[SUBCREDENTIAL_LEN] subcredential

    def __cinit__(
        self,
        *,
        bytes auth_key not None,
        bytes enc_key not None,
        bytes subcredential not None,
        bytes private_key not None,
    ):
        check_len("encryption key", enc_key, X25519_LEN)
        check_len("private key", private_key, X25519_LEN)
        note_point(&self.known, self.subcredential, auth_key, subcredential)
        memcpy(self.known.b, start_of(enc_key), X25519_LEN)
        self.x = X25519PrivateKey(private_key)
        self.x.write_public_key(self.known.x)
        if not self.x.agree(self.known.b, self.known.bx):
            raise degenerate("onion service's key")

    def __dealloc__(self):
        OPENSSL_cleanse(&self.known, sizeof(self.known))

    @property
    def public_key(self):
        """X, 32 bytes."""
        return self.known.x[:X25519_LEN]

    def seal(self, bytes header not None, bytes plaintext not None):
        """Returns the rest of INTRODUCE1 behind `header`: X, `plaintext` encrypted, and a MAC over all.

        Raises UsageError after `wipe`.
        """
        cdef IntroductionKeys keys
        cdef Py_ssize_t length = len(plaintext)
        cdef bytes message = PyBytes_FromStringAndSize(NULL, X25519_LEN + length + SHA256_LEN)
        cdef uint8_t* encrypted = start_of(message) + X25519_LEN
        if self.x is None:
            raise over()
        memcpy(start_of(message), self.known.x, X25519_LEN)
        memcpy(encrypted, start_of(plaintext), length)
        try:
            derive_introduction_keys(&self.known, self.subcredential, &keys)
            crypt(keys.enc_key, encrypted, length)
            mac_introduction(&keys, header, self.known.x, encrypted, length)
            memcpy(encrypted + length, keys.mac, SHA256_LEN)
        finally:
            OPENSSL_cleanse(&keys, sizeof(keys))
        return message

    def finish(self, bytes reply not None):
        """`reply` is Y | AUTH, from RENDEZVOUS2. Raises CircuitError; UsageError after `wipe`."""
        cdef uint8_t[SHA256_LEN] auth
        cdef bint is_right
        check_len("the service's half", reply, X25519_LEN + SHA256_LEN)
        if self.x is None:
            raise over()
        cdef HopKeys keys = make_keys()
        memcpy(self.known.y, start_of(reply), X25519_LEN)
        try:
            if not self.x.agree(self.known.y, self.known.xy):
                raise degenerate("onion service's key")
            derive_keys(&self.known, keys, auth)
            is_right = CRYPTO_memcmp(auth, start_of(reply) + X25519_LEN, SHA256_LEN) == 0
        finally:
            OPENSSL_cleanse(self.known.xy, X25519_LEN)
            OPENSSL_cleanse(auth, sizeof(auth))
        if not is_right:
            raise CircuitError("the handshake with the onion service failed: AUTH is wrong")
        keys.kdf = KDF_HS_NTOR
        return keys

    def wipe(self):
        """Overwrite the secrets. The handshake cannot be finished any more."""
        self.x = None
        OPENSSL_cleanse(self.known.bx, X25519_LEN)


@cython.final
cdef class HsNtorPoint:
    """A service's half at one introduction point, whose secret it holds.

    `auth_key`, `private_key`, b, and `subcredential`, of the point's descriptor, are 32 bytes each.
    """

    cdef X25519PrivateKey b
    cdef SecretInput known        # as far as clients have it in common
    cdef uint8_t[SUBCREDENTIAL_LEN] subcredential

    def __cinit__(
        self, *, bytes auth_key not None, bytes private_key not None, bytes subcredential not None
    ):
        check_len("private key", private_key, X25519_LEN)
        note_point(&self.known, self.subcredential, auth_key, subcredential)
        self.b = X25519PrivateKey(private_key)
        self.b.write_public_key(self.known.b)

    @property
    def public_key(self):
        """B, 32 bytes."""
        return self.known.b[:X25519_LEN]

    def open(self, bytes header not None, bytes client_key not None, bytes sealed not None, bytes mac not None):
        """Returns an HsNtorRequest of the parts of an INTRODUCE2. Raises CircuitError if it is not for this service."""
        cdef IntroductionKeys keys
        cdef Py_ssize_t length = len(sealed)
        cdef bytes plaintext = PyBytes_FromStringAndSize(NULL, length)
        check_len("the client's key", client_key, X25519_LEN)
        check_len("the MAC", mac, SHA256_LEN)
        make()
        cdef HsNtorRequest request = HsNtorRequest.__new__(HsNtorRequest)
        cdef SecretInput* known = &request.known
        known[0] = self.known
        memcpy(known.x, start_of(client_key), X25519_LEN)
        memcpy(start_of(plaintext), start_of(sealed), length)
        if not self.b.agree(known.x, known.bx):
            raise degenerate("client's key")
        try:
            derive_introduction_keys(known, self.subcredential, &keys)
            mac_introduction(&keys, header, known.x, start_of(sealed), length)
            if CRYPTO_memcmp(keys.mac, start_of(mac), SHA256_LEN) != 0:
                raise CircuitError("INTRODUCE2 was not made for this service: its MAC is wrong")
            crypt(keys.enc_key, start_of(plaintext), length)
        finally:
            OPENSSL_cleanse(&keys, sizeof(keys))
        request.plaintext = plaintext
        request.client_key = client_key
        return request


@cython.final
cdef class HsNtorRequest:
    """A client's half that a service has opened: `plaintext` is its words, `client_key` X, 32 bytes."""

    cdef readonly bytes plaintext
    cdef readonly bytes client_key
    cdef bint is_answered
    cdef SecretInput known

    def __cinit__(self):
        check_maker(self)

    def __dealloc__(self):
        OPENSSL_cleanse(&self.known, sizeof(self.known))

    def answer(self, bytes private_key not None):
        """Returns our half, Y | AUTH, and HopKeys; once, with `private_key`, y, 32 fresh random bytes.

        Raises CircuitError for a degenerate key of the client's, UsageError where it was answered.
        """
        cdef uint8_t[X25519_LEN + SHA256_LEN] reply
        cdef SecretInput* known = &self.known
        check_len("private key", private_key, X25519_LEN)
        if self.is_answered:
            raise over()
        cdef X25519PrivateKey y = X25519PrivateKey(private_key)
        cdef HopKeys keys = make_keys()
        y.write_public_key(known.y)
        memcpy(reply, known.y, X25519_LEN)
        try:
            if not y.agree(known.x, known.xy):
                raise degenerate("client's key")
            derive_keys(known, keys, &reply[X25519_LEN])
        finally:
            self.is_answered = True
            OPENSSL_cleanse(known, sizeof(known[0]))
        keys.kdf = KDF_HS_NTOR
        return reply[:sizeof(reply)], keys


cdef int note_point(
    SecretInput* known, uint8_t* kept_subcredential, bytes auth_key, bytes subcredential
) except -1:
    """Note what both ends know of an introduction point."""
    check_len("authentication key", auth_key, ED25519_LEN)
    check_len("subcredential", subcredential, SUBCREDENTIAL_LEN)
    memcpy(known.auth_key, start_of(auth_key), ED25519_LEN)
    memcpy(known.protoid, start_of(PROTOID), PROTOID_LEN)
    memcpy(kept_subcredential, start_of(subcredential), SUBCREDENTIAL_LEN)
    return 0


cdef void absorb_bytes(bytes data) noexcept:
    absorb(start_of(data), PyBytes_GET_SIZE(data))


cdef int derive_introduction_keys(
    const SecretInput* known, const uint8_t* subcredential, IntroductionKeys* keys
) except -1:
    """ENC_KEY and MAC_KEY."""
    begin(shake_256)
    absorb(known.bx, X25519_LEN)
    absorb(known.auth_key, ED25519_LEN)
    absorb(known.x, X25519_LEN)
    absorb(known.b, X25519_LEN)
    absorb(known.protoid, PROTOID_LEN)
    absorb_bytes(HS_ENC)
    absorb_bytes(HS_EXPAND)
    absorb(subcredential, SUBCREDENTIAL_LEN)
    return squeeze(keys.enc_key, CTR_LONG_KEY_LEN + SHA256_LEN)  # and mac_key


cdef int mac_introduction(
    IntroductionKeys* keys, bytes header, const uint8_t* x, const uint8_t* encrypted, Py_ssize_t length
) except -1:
    """Write MAC(MAC_KEY, all of the message before the MAC)."""
    begin(sha3_256)
    absorb_encap(keys.mac_key, SHA256_LEN)
    absorb_bytes(header)
    absorb(x, X25519_LEN)
    absorb(encrypted, length)
    return end_hash(keys.mac)


cdef int derive_keys(const SecretInput* known, HopKeys keys, uint8_t* auth) except -1:
    """Write NTOR_KEY_SEED, now that both secrets are known, and AUTH_INPUT_MAC."""
    cdef AuthInput auth_input
    memcpy(auth_input.auth_key, known.auth_key, ED25519_LEN)
    memcpy(auth_input.b, known.b, X25519_LEN)
    memcpy(auth_input.y, known.y, X25519_LEN)
    memcpy(auth_input.x, known.x, X25519_LEN)
    memcpy(auth_input.protoid, known.protoid, PROTOID_LEN)
    memcpy(auth_input.server, start_of(SERVER), sizeof(auth_input.server))
    try:
        mac(known, sizeof(known[0]), HS_VERIFY, auth_input.verify)
        mac(&auth_input, sizeof(auth_input), HS_MAC, auth)
        mac(known, sizeof(known[0]), HS_ENC, keys.seed)
    finally:
        OPENSSL_cleanse(&auth_input, sizeof(auth_input))
    return 0


cdef int mac(const void* key, size_t length, bytes message, uint8_t* digest) except -1:
    """MAC(key, message): SHA3-256 of the key's length, the key and the message."""
    begin(sha3_256)
    absorb_length(length)
    absorb(key, length)
    absorb_bytes(message)
    return end_hash(digest)
