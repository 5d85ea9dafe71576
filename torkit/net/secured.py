"""TLS end to end, inside a stream: the destination proves its name; no exit can read or change what passes.

Who sees the ClientHello, the exit among them, learns the host's name (SNI), unless it is an address, and that
this is OpenSSL as Python uses it, no browser: no ALPN, no session that is resumed.
"""

import ssl
import sys
from typing import Any

import trio

from torkit.errors import EndReason, NotProven, PeerError, StreamClosed, TimedOut, TorkitError
from torkit.net.circuit.stream import Stream

# Implementation limits, in seconds.
HANDSHAKE_TIMEOUT = 60.0
END_TIMEOUT = 1.0  # until the peer has answered that it knows of our end

NO_END = "the destination has not said that this is all (close_notify): what came may be cut short"

_DER = 2  # _ssl.ENCODING_DER, a number of OpenSSL's BIO functions in Python

# X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH: OpenSSL's words for these name the host.
_OTHER_NAME = (62, 64)
_NO_ISSUER = (2, 18, 19, 20, 21)  # X509_V_ERR_*: no authority that this machine trusts


class Secured(trio.abc.Stream):
    """A stream whose peer has proved who it is; made by `secure`.

    Raises as the stream beneath does, PeerError for what fails TLS's checks, and StreamClosed for an end that
    the peer has not announced: an exit can end a stream, but cannot forge an announcement.
    """

    def __init__(self, tls: "trio.SSLStream[trio.abc.Stream]") -> None:
        self._tls = tls

    @property
    def version(self) -> str:
        """The version as OpenSSL names it, such as TLSv1.3."""
        return str(self._tls.version())

    @property
    def chain(self) -> list[bytes]:
        """The certificates that the peer has sent, in DER, its own first; checked or not."""
        tls: Any = self._tls._ssl_object
        if sys.version_info >= (3, 13):
            return list(tls.get_unverified_chain())
        # Python 3.11 and 3.12 have this under a private name, which will not change any more.
        return [one.public_bytes(_DER) for one in tls._sslobj.get_unverified_chain()]

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            return await self._tls.receive_some(max_bytes)
        except trio.BrokenResourceError as error:
            raise _told(error, NO_END) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._tls.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._tls.wait_send_all_might_not_block()

    async def say_end(self) -> None:
        """Tell the peer that nothing more comes (close_notify). The stream beneath stays open."""
        with trio.move_on_after(END_TIMEOUT):
            try:
                await self._tls.unwrap()
            except (trio.BrokenResourceError, trio.ClosedResourceError, TorkitError):
                return

    async def aclose(self) -> None:
        await self._tls.transport_stream.aclose()


def default_context() -> ssl.SSLContext:
    """Returns a context for TLS 1.2 or later. Checks names, by authorities of the system or SSL_CERT_FILE."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks both by default
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    return context


def unchecked_context() -> ssl.SSLContext:
    """Returns a context that checks nothing, to look at certificates only: send and believe nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def secure(stream: trio.abc.Stream, host: str, context: ssl.SSLContext | None = None) -> Secured:
    """Returns TLS over `stream`, after the handshake. `stream` belongs to it, and is closed on failure.

    Raises NotProven where the peer has not proved to be `host`, a name or an address; PeerError where it
    speaks no TLS that we do; StreamClosed where it ends, TimedOut.
    """
    tls = trio.SSLStream(stream, context or default_context(), server_hostname=host.rstrip("."))
    try:
        with trio.fail_after(HANDSHAKE_TIMEOUT):
            await tls.do_handshake()
    except BaseException as error:
        with trio.CancelScope(shield=True):
            await stream.aclose()
        if isinstance(error, trio.TooSlowError):
            raise TimedOut(f"TLS was not agreed upon within {HANDSHAKE_TIMEOUT:g} s") from None
        if isinstance(error, trio.BrokenResourceError):
            raise _told(error, "the destination ended the connection while TLS was agreed upon") from error
        raise
    return Secured(tls)


async def shake_hands(stream: Stream, context: ssl.SSLContext | None, host: str) -> "trio.SSLStream[Stream]":
    """Returns a TLS stream over `stream`, which is closed where the handshake fails. Has no deadline.

    `context` is Python's default one where it is None. Raises ssl.SSLError, and as `stream` does.
    """
    try:
        tls = trio.SSLStream(stream, context or ssl.create_default_context(), server_hostname=host)
        await tls.do_handshake()
    except BaseException as error:
        stream.close()
        if isinstance(error, trio.BrokenResourceError) and isinstance(error.__cause__, ssl.SSLError):
            raise error.__cause__ from None
        raise
    return tls


def _told(error: trio.BrokenResourceError, at_end: str) -> TorkitError:
    """Returns the error in our words, without the destination's name. `at_end` is the message for an end."""
    cause = error.__cause__
    if isinstance(error, TorkitError):
        return error
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in _OTHER_NAME:
            return NotProven("the destination's certificate is for another name")
        hint = None
        if cause.verify_code in _NO_ISSUER:
            hint = "if it should be trusted, install ca-certificates, or name its authority by SSL_CERT_FILE"
        return NotProven(f"the destination has not proved who it is: {cause.verify_message}", hint=hint)
    if isinstance(cause, ssl.SSLEOFError):
        return StreamClosed(at_end, reason=EndReason.MISC)
    if isinstance(cause, ssl.SSLError):
        words = (cause.reason or "unknown reason").replace("_", " ").lower()
        return PeerError(f"TLS with the destination failed: {words}")
    return StreamClosed(at_end, reason=EndReason.MISC)
