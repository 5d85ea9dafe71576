"""Every exception torkit raises, and the reasons peers give. Imports nothing from torkit.

    TorkitError                    .retry  NOW | LATER | NEVER      .hint  for a person, or None
      UsageError (ValueError)      we were called wrongly
      PeerError                    a peer broke the specification
        ChannelError                 the whole connection to a relay is void
          CertificateNotCurrent  .skew   by our clock
        CircuitError                 one circuit is void
        DocumentError  .line         a directory document, or one entry of it, is void
      Closed                       a peer said stop
        ChannelClosed
          HandshakeCut                 before a relay had proved who it is
        CircuitClosed  .reason  .hop
        StreamClosed   .reason  .address
      NotPossible                  nothing fits; the message says what excluded the candidates
        NoPath
        NoGuard
        NoDirectory                  too old, too few signatures, nobody answers
          ClockSkewed  .skew           our clock is wrong, several relays say
          NoNetwork                    this machine is offline
          Unreachable                  no relay that we know answers
          Filtered                     what answers is no relay: a login page, a censor
          NothingNewer                 a directory serves, but no newer consensus than ours
          NotServed                    a directory serves, but does not have the document
        NoProxy                      the proxy that was to be used cannot be
      OnionServiceError  .step     an onion service could not be reached; where that failed
      NotProven                    a destination has not proved who it is
      TimedOut                     a deadline passed; the message says waiting for what
      OutOfResources               this machine is short of descriptors, memory or threads
      StorageError                 the data directory cannot be read or written
      InternalError                a fault of torkit's own

An exception is chosen by whose fault it is and what the caller can do next. Messages say what was
expected and what was seen; never keys, never the user's destination.
"""

from collections.abc import Iterator
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Self


class Retry(Enum):
    """When the same call may succeed: at once on another circuit, later, or never."""

    NOW = "now"
    LATER = "later"
    NEVER = "never"


class DestroyReason(IntEnum):
    """Why a circuit was closed. tor-spec, "Tearing down circuits"."""

    NONE = 0
    PROTOCOL = 1
    INTERNAL = 2
    REQUESTED = 3
    HIBERNATING = 4
    RESOURCELIMIT = 5
    CONNECTFAILED = 6
    OR_IDENTITY = 7
    CHANNEL_CLOSED = 8
    FINISHED = 9
    TIMEOUT = 10
    DESTROYED = 11
    NOSUCHSERVICE = 12

    @classmethod
    def _missing_(cls, value: object) -> "DestroyReason":
        return cls.NONE  # a reason newer than we are says nothing to us

    @property
    def sentence(self) -> str:
        """What it means, for a person."""
        return _SENTENCES_OF_DESTROY[self]


# A reason from a relay beyond the guard reads the same as one from the guard itself: so "it".
_SENTENCES_OF_DESTROY = {
    DestroyReason.NONE: "it does not say why",
    DestroyReason.PROTOCOL: "it says that we broke the protocol",
    DestroyReason.INTERNAL: "it failed",
    DestroyReason.REQUESTED: "we asked for it",
    DestroyReason.HIBERNATING: "it takes no traffic now",
    DestroyReason.RESOURCELIMIT: "it has no resources left",
    DestroyReason.CONNECTFAILED: "the next relay could not be connected to",
    DestroyReason.OR_IDENTITY: "the next relay was another than we named",
    DestroyReason.CHANNEL_CLOSED: "the connection between two relays ended",
    DestroyReason.FINISHED: "the circuit was too old",
    DestroyReason.TIMEOUT: "the circuit was not built in time",
    DestroyReason.DESTROYED: "the next relay closed it",
    DestroyReason.NOSUCHSERVICE: "there is no such onion service",
}


class EndReason(IntEnum):
    """Why a stream was closed. tor-spec, "Closing streams"."""

    MISC = 1
    RESOLVEFAILED = 2
    CONNECTREFUSED = 3
    EXITPOLICY = 4
    DESTROY = 5
    DONE = 6
    TIMEOUT = 7
    NOROUTE = 8
    HIBERNATING = 9
    INTERNAL = 10
    RESOURCELIMIT = 11
    CONNRESET = 12
    TORPROTOCOL = 13
    NOTDIRECTORY = 14

    @classmethod
    def _missing_(cls, value: object) -> "EndReason":
        return cls.MISC

    @property
    def sentence(self) -> str:
        """What it means, for a person, where an exit says so."""
        return self.sentence_of("the exit")

    def sentence_of(self, whom: str) -> str:
        """Returns the same where `whom` says so, such as "the onion service"."""
        return _SENTENCES_OF_END[self].format(whom=whom)


_SENTENCES_OF_END = {
    EndReason.MISC: "{whom} could not go on with the destination, and does not say why",
    EndReason.RESOLVEFAILED: "{whom} found no such name",
    EndReason.CONNECTREFUSED: "the destination refused the connection",
    EndReason.EXITPOLICY: "{whom}'s policy does not allow this destination",
    EndReason.DESTROY: "{whom} closed the circuit",
    EndReason.DONE: "the destination ended the connection",
    EndReason.TIMEOUT: "the destination did not answer {whom} in time",
    EndReason.NOROUTE: "{whom} found no way to the destination",
    EndReason.HIBERNATING: "{whom} takes no streams now",
    EndReason.INTERNAL: "{whom} failed",
    EndReason.RESOURCELIMIT: "{whom} has no resources left",
    EndReason.CONNRESET: "the destination reset the connection",
    EndReason.TORPROTOCOL: "{whom} says that we broke the protocol",
    EndReason.NOTDIRECTORY: "the relay serves no directory",
}

# What a circuit or one exit is to blame for. All else is the target's answer, or several exits' about it: a
# program that asks again at once is told the same.
_OF_ONE_EXIT = {
    EndReason.DESTROY,
    EndReason.HIBERNATING,
    EndReason.INTERNAL,
    EndReason.RESOURCELIMIT,
    EndReason.TORPROTOCOL,
    EndReason.NOTDIRECTORY,
}


class OnionStep(Enum):
    """Where reaching an onion service failed. The values are SOCKS's extended codes (proposal 304)."""

    NOT_FOUND = 0xF0  # no directory has the descriptor
    DESCRIPTOR = 0xF1  # the descriptor fails a check
    INTRODUCTION = 0xF2  # no introduction point serves
    RENDEZVOUS = 0xF3  # the service did not come to the rendezvous point
    NO_KEY = 0xF4  # the service wants a client key, and we have none
    WRONG_KEY = 0xF5  # it does not know our client key
    ADDRESS = 0xF6  # the name is no onion address
    INTRODUCTION_TIMEOUT = 0xF7  # every introduction point was silent

    @property
    def sentence(self) -> str:
        """What it means, for a person."""
        return _SENTENCES_OF_STEP[self]


_SENTENCES_OF_STEP = {
    OnionStep.NOT_FOUND: "no directory has the onion service's descriptor",
    OnionStep.DESCRIPTOR: "the onion service's descriptor fails its checks",
    OnionStep.INTRODUCTION: "no introduction point of the onion service serves",
    OnionStep.RENDEZVOUS: "the onion service did not come to the rendezvous point",
    OnionStep.NO_KEY: "the onion service is for clients that it knows",
    OnionStep.WRONG_KEY: "the onion service does not know our client key",
    OnionStep.ADDRESS: "the name is no onion address",
    OnionStep.INTRODUCTION_TIMEOUT: "no introduction point of the onion service has answered",
}
_HINTS_OF_STEP = {
    OnionStep.NOT_FOUND: "is the service running? It may have been down for more than three hours",
    OnionStep.RENDEZVOUS: "it may just have ended, or be overloaded",
    OnionStep.NO_KEY: "ask its operator for a key; `torkit onion keygen` makes a pair",
}


class TorkitError(Exception):
    """The root. `hint` is one line for a person who can act on it."""

    retry = Retry.NEVER

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def with_hint(self) -> str:
        """The message and the hint, as one line."""
        return str(self) if self.hint is None else f"{self}; {self.hint}"

    def anew(self) -> Self:
        """Returns another exception that says the same, to be raised by whoever keeps this one.

        The traceback of one that was raised holds calls. Where these hold its keeper, all of them would wait
        for a collection of garbage.
        """
        other = type(self).__new__(type(self), *self.args)
        vars(other).update(vars(self))
        other.__cause__ = self.__cause__
        return other

    def name(self, relay: str) -> None:
        """Begin the message with the name of the relay that it is about, once."""
        if not str(self).startswith(f"{relay}: "):
            self.args = (f"{relay}: {self}",)


class UsageError(TorkitError, ValueError):
    """We were called with something that can never work."""


class PeerError(TorkitError):
    """A peer broke the specification; what it sent is not used."""

    retry = Retry.NOW


class ChannelError(PeerError):
    """The connection to a relay is void, with every circuit on it."""


class CertificateNotCurrent(ChannelError):
    """A relay's certificate has expired, or is not valid yet. Our clock may be wrong.

    `skew` is then its least error in seconds: negative where our clock is behind.
    """

    def __init__(self, message: str, *, skew: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.skew = skew


class CircuitError(PeerError):
    """One circuit is void; its neighbours on the channel are not."""


class DocumentError(PeerError):
    """A directory document is void. `line` counts from 1 where it is known."""

    retry = Retry.LATER

    def __init__(self, message: str, *, line: int | None = None, hint: str | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}", hint=hint)
        self.line = line


class Closed(TorkitError):
    """A peer, or this end, said stop; nobody broke a rule."""

    retry = Retry.NOW


class ChannelClosed(Closed):
    """The connection to a relay ended or could not be made."""


class HandshakeCut(ChannelClosed):
    """A connection was made, and ended before the relay had proved who it is."""


class CircuitClosed(Closed):
    """A circuit ended. `hop`, counted from 1, is gone or could not be added, where that is known."""

    def __init__(
        self, message: str, *, reason: DestroyReason = DestroyReason.NONE, hop: int | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.hop = hop


class StreamClosed(Closed):
    """A stream ended with `reason`, other than in good order after all its data.

    With EXITPOLICY, `address` is what the exit found the target to be, if it says so.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: EndReason,
        address: IPv4Address | IPv6Address | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.address = address
        self.retry = Retry.NOW if reason in _OF_ONE_EXIT else Retry.LATER


class NotPossible(TorkitError):
    """Nothing fits what was asked."""

    retry = Retry.LATER


class NoPath(NotPossible):
    """No relays fit the constraints of a path."""


class NoGuard(NotPossible):
    """No guard can be used now."""


class NoDirectory(NotPossible):
    """There is no directory that may be used: too old, too few signatures, nobody answers."""


class ClockSkewed(NoDirectory):
    """No consensus is valid by our clock, and one is valid by the clocks of several relays.

    `skew` is our clock minus theirs, in seconds: negative where our clock is behind.
    """

    def __init__(self, message: str, *, skew: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.skew = skew


class NoNetwork(NoDirectory):
    """This machine has no route to any relay."""


class Unreachable(NoDirectory):
    """No relay that we may ask can be connected to."""


class Filtered(NoDirectory):
    """Connections are answered, but not by relays: the network wants a login, or blocks Tor."""


class NotServed(NoDirectory):
    """A directory has answered that it does not have the document."""


class NothingNewer(NoDirectory):
    """A directory has answered; it has no live consensus that is newer than ours."""


class NoProxy(NotPossible):
    """The proxy that somebody has named cannot be used; nothing is tried without it."""


class OnionServiceError(TorkitError):
    """An onion service could not be reached; `step` says where that failed."""

    def __init__(self, message: str, *, step: OnionStep, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.step = step
        if step not in (OnionStep.ADDRESS, OnionStep.NO_KEY, OnionStep.WRONG_KEY):
            self.retry = Retry.LATER

    @classmethod
    def at(cls, step: OnionStep, why: str = "") -> "OnionServiceError":
        """Returns the error that says in the usual words where it failed, and perhaps `why`."""
        return cls(step.sentence + why, step=step, hint=_HINTS_OF_STEP.get(step))


class NotProven(TorkitError):
    """A destination has not proved who it is: its certificate is for another, or untrusted. Nothing was sent.

    The exit may have answered in its place: another exit may lead to the destination.
    """

    retry = Retry.NOW


class TimedOut(TorkitError):
    """A deadline passed."""

    retry = Retry.NOW


class OutOfResources(TorkitError):
    """This machine is short of descriptors, memory or threads: no relay is to blame."""

    retry = Retry.LATER


class StorageError(TorkitError):
    """The data directory cannot be read or written."""


class InternalError(TorkitError):
    """A fault of torkit's own, or a shortage of memory. `__cause__` is what was raised.

    The message names the kind of exception only: its text may name a destination.
    """

    @classmethod
    def ending(cls, what: str, cause: BaseException) -> "InternalError":
        """Returns the error that says that `cause` has ended `what`."""
        error = cls(f"an internal error ({type(cause).__name__}) ended {what}")
        error.__cause__ = cause
        return error


def code_of(error: BaseException) -> str:
    """Returns one of a few words for what went wrong, such as `connectrefused` or `timed_out`, for counting.

    It names neither a relay nor a destination.
    """
    match error:
        case StreamClosed():
            return error.reason.name.lower()
        case CircuitClosed() if error.reason is not DestroyReason.NONE:
            return error.reason.name.lower()
        case OnionServiceError():
            return f"onion_{error.step.name.lower()}"
        case TorkitError():
            kind = next(one for one in type(error).__mro__ if one.__module__ == __name__)
            return "".join(f"_{c.lower()}" if c.isupper() else c for c in kind.__name__).lstrip("_")
        case _:
            return "given_up"


def trace(error: BaseException) -> str:
    """Returns the tracebacks of `error`, its causes and its parts, the earliest first.

    It has no text of an exception: that may name a destination.
    """
    return "\n".join(_trace(error, set()))


def _trace(error: BaseException, told: set[int]) -> Iterator[str]:
    """Each exception once, since who takes one out of a group and raises it makes a circle of the two."""
    from traceback import format_tb

    told.add(id(error))
    for inner in (error.__cause__ or error.__context__, *getattr(error, "exceptions", ())):
        if inner is not None and id(inner) not in told:
            yield from _trace(inner, told)
    if error.__traceback__ is not None:
        yield f"{type(error).__name__} at"
        yield from map(str.rstrip, format_tb(error.__traceback__))
