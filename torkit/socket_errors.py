"""torkit's errors as those of sockets, for programs that are written against Python's `socket`."""

import errno
import socket

from torkit.errors import (
    EndReason,
    InternalError,
    NotPossible,
    OnionServiceError,
    OnionStep,
    StreamClosed,
    TimedOut,
    TorkitError,
    UsageError,
)

# What a program is told that asks its own kernel for the same.
_BY_END = {
    EndReason.RESOLVEFAILED: socket.EAI_NONAME,
    EndReason.CONNECTREFUSED: errno.ECONNREFUSED,
    EndReason.DONE: errno.ECONNREFUSED,  # ended before it began
    EndReason.CONNRESET: errno.ECONNRESET,
    EndReason.TIMEOUT: errno.ETIMEDOUT,
    EndReason.NOROUTE: errno.EHOSTUNREACH,
    EndReason.EXITPOLICY: errno.EACCES,
}
_BY_STEP = {
    OnionStep.ADDRESS: socket.EAI_NONAME,
    OnionStep.NOT_FOUND: errno.EHOSTUNREACH,
    OnionStep.NO_KEY: errno.EACCES,
    OnionStep.WRONG_KEY: errno.EACCES,
    OnionStep.INTRODUCTION_TIMEOUT: errno.ETIMEDOUT,
}


def os_error(error: TorkitError) -> OSError:
    """Returns the OSError that says what `error` says, which is its `__cause__`.

    Such as ConnectionRefusedError, ConnectionResetError, TimeoutError, and socket.gaierror where there is no
    such name; by its `errno`, EINVAL for what can never be connected to, EACCES where a policy or a key does
    not allow it, ENETUNREACH where there is no way into the network now.
    """
    match error:
        case StreamClosed():
            number = _BY_END.get(error.reason, errno.ECONNABORTED)
        case OnionServiceError():
            number = _BY_STEP.get(error.step, errno.EHOSTUNREACH)
        case TimedOut():
            number = errno.ETIMEDOUT
        case NotPossible():
            number = errno.ENETUNREACH
        case UsageError():
            number = errno.EINVAL
        case InternalError():
            number = errno.EIO
        case _:
            number = errno.ECONNABORTED
    made: OSError
    if number == socket.EAI_NONAME:
        made = socket.gaierror(number, error.with_hint)
    else:
        made = OSError(number, error.with_hint)  # the subclass that belongs to the number
    made.__cause__ = error
    return made


def origin(error: BaseException) -> BaseException:
    """Returns the error of torkit's that `error` goes back to, else `error` itself."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, TorkitError):
        found = found.__cause__ or found.__context__
    return found or error
