"""The relay's half of the onion layers."""

import hashlib
import os
import struct

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from torkit.testing.relay import reference
from torkit.testing.relay.cells import (
    CELL_BODY_LEN,
    OTHER_COMMANDS,
    RELAY_BODY_LEN,
    RELAY_HEADER_LEN,
    STREAM_COMMANDS,
    RelayCell,
)


def aes_ctr(key: bytes, iv: bytes = bytes(16)) -> CipherContext:
    """AES in counter mode: `update` encrypts, or decrypts. `key` has 16 or 32 bytes."""
    return Cipher(AES(key), CTR(iv)).encryptor()


class Tor1Layer:
    """AES-128-CTR and running SHA-1 digests of one hop. tor-spec, "Routing relay cells", "Relay cells".

    CgoLayer has the same four methods. `command` is the cell's: RELAY or RELAY_EARLY.
    """

    KEY_MATERIAL_LEN = 72
    DATA_LEN_MAX = RELAY_BODY_LEN
    DIGEST = "sha1"
    DIGEST_LEN, KEY_LEN = 20, 16
    TAG_LEN = 20

    def __init__(self, key_material: bytes) -> None:
        """`key_material` is Df | Db | Kf | Kb."""
        keys = 2 * self.DIGEST_LEN
        self._forward_digest = hashlib.new(self.DIGEST, key_material[: self.DIGEST_LEN])
        self._backward_digest = hashlib.new(self.DIGEST, key_material[self.DIGEST_LEN : keys])
        self._forward_cipher = aes_ctr(key_material[keys : keys + self.KEY_LEN])
        self._backward_cipher = aes_ctr(key_material[keys + self.KEY_LEN : keys + 2 * self.KEY_LEN])

    def open_forward(self, command: int, body: bytes) -> tuple[bytes, bytes | None]:
        """Take off this hop's layer: the bytes, and the SENDME tag if the cell is for this hop."""
        body = self._forward_cipher.update(body)
        if body[1:3] != b"\0\0":
            return body, None
        digest = self._forward_digest.copy()
        digest.update(body[:5] + bytes(4) + body[9:])
        if digest.digest()[:4] != body[5:9]:
            return body, None
        self._forward_digest = digest
        return body, digest.digest()[: self.TAG_LEN]

    def decode(self, body: bytes, *, early: bool) -> RelayCell:
        command, _, stream_id, _, length = struct.unpack_from(">BHHIH", body)
        if length > RELAY_BODY_LEN:
            raise ValueError(f"a relay cell announces {length} bytes")
        padding = body[RELAY_HEADER_LEN + length :]
        if any(padding[:4]):
            raise ValueError("the first four bytes of padding are not zero")
        return RelayCell(
            command, stream_id, body[RELAY_HEADER_LEN : RELAY_HEADER_LEN + length], early, padding
        )

    def originate(
        self,
        command: int,
        cell: RelayCell,
        *,
        recognized: int = 0,
        length: int | None = None,
        wrong_digest: bool = False,
    ) -> tuple[bytes, bytes]:
        """Encode and seal a cell of this hop's own: the body as it leaves the hop, and the SENDME tag."""
        length = len(cell.body) if length is None else length
        head = struct.pack(">BHHIH", cell.command, recognized, cell.stream_id, 0, length)
        body = _pad(head + cell.body)
        self._backward_digest.update(body)
        tag = self._backward_digest.digest()[: self.TAG_LEN]
        digest = bytes(byte ^ 0xFF for byte in tag[:4]) if wrong_digest else tag[:4]
        return self.encrypt_backward(command, body[:5] + digest + body[9:]), tag

    def encrypt_backward(self, command: int, body: bytes) -> bytes:
        """Add this hop's layer to a cell on its way to the client."""
        return self._backward_cipher.update(body)


class OnionServiceLayer(Tor1Layer):
    """AES-256-CTR and running SHA3-256 digests, between a client and an onion service. rend-spec-v3."""

    KEY_MATERIAL_LEN = 128
    DIGEST = "sha3_256"
    DIGEST_LEN, KEY_LEN = 32, 32


class CgoLayer:
    """Counter Galois Onion and relay-cell format v1 of one hop. Proposals 359 and 340."""

    TAG_LEN = 16
    KEY_MATERIAL_LEN = 160
    DATA_LEN_MAX = CELL_BODY_LEN - 16 - 5

    def __init__(self, key_material: bytes) -> None:
        self._layer: reference.Layer = reference.CgoLayer(key_material)

    def open_forward(self, command: int, body: bytes) -> tuple[bytes, bytes | None]:
        return self._layer.relay_forward(command, body)

    def decode(self, body: bytes, *, early: bool) -> RelayCell:
        command, length = struct.unpack_from(">BH", body, self.TAG_LEN)
        at, stream_id = self.TAG_LEN + 3, 0
        if command in STREAM_COMMANDS:
            stream_id = int.from_bytes(body[at : at + 2], "big")
            at += 2
            if stream_id == 0:
                raise ValueError(f"relay command {command} without a stream id")
        elif command not in OTHER_COMMANDS:
            raise ValueError(f"unknown relay command {command}")
        if at + length > CELL_BODY_LEN:
            raise ValueError(f"a relay cell announces {length} bytes")
        padding = body[at + length :]
        if any(padding[:4]):
            raise ValueError("the first four bytes of padding are not zero")
        return RelayCell(command, stream_id, body[at : at + length], early, padding)

    def originate(
        self,
        command: int,
        cell: RelayCell,
        *,
        recognized: int = 0,
        length: int | None = None,
        wrong_digest: bool = False,
    ) -> tuple[bytes, bytes]:
        """`wrong_digest` spoils the tag; `recognized` does not exist here."""
        if recognized:
            raise ValueError("format v1 has no field 'recognized'")
        length = len(cell.body) if length is None else length
        head = struct.pack(">BH", cell.command, length)
        if cell.command in STREAM_COMMANDS:
            head += struct.pack(">H", cell.stream_id)
        elif cell.stream_id:
            raise ValueError(f"in format v1, relay command {cell.command} has no stream id")
        body, tag = self._layer.relay_originate(command, _pad(bytes(self.TAG_LEN) + head + cell.body))
        return (bytes([body[0] ^ 0xFF]) + body[1:] if wrong_digest else body), tag

    def encrypt_backward(self, command: int, body: bytes) -> bytes:
        return self._layer.relay_backward(command, body)


def _pad(body: bytes) -> bytes:
    """Four zero bytes, then random ones. tor-spec, "Relay cells"."""
    room = CELL_BODY_LEN - len(body)
    return body + bytes(min(4, room)) + os.urandom(max(0, room - 4))
