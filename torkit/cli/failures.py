"""Failures, in words and as exit statuses."""

import signal

import typer

from torkit.cli.voice import say
from torkit.errors import (
    EndReason,
    InternalError,
    NoDirectory,
    NoGuard,
    NoPath,
    NoProxy,
    NotProven,
    OnionServiceError,
    OnionStep,
    StreamClosed,
    TimedOut,
    TorkitError,
    UsageError,
    trace,
)

# Exit statuses, as in torkit(1). 128 and a signal's number says that the signal ended us.
OK = 0
FAILED = 1
WRONG_USAGE = 2
NO_BOOTSTRAP = 3
NOT_RESOLVED = 4
REFUSED = 5
TIMED_OUT = 6
INTERNAL = 7
NOT_PROVEN = 8
INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE


def exit_status(error: TorkitError) -> int:
    """Returns the exit status that tells a script what kind of failure `error` is."""
    match error:
        case UsageError() | OnionServiceError(step=OnionStep.ADDRESS):
            return WRONG_USAGE
        case NoDirectory() | NoGuard() | NoProxy():
            return NO_BOOTSTRAP
        case StreamClosed(reason=EndReason.RESOLVEFAILED) | OnionServiceError(step=OnionStep.NOT_FOUND):
            return NOT_RESOLVED
        case OnionServiceError(step=OnionStep.NO_KEY | OnionStep.WRONG_KEY):
            return REFUSED
        case StreamClosed(reason=EndReason.CONNECTREFUSED | EndReason.EXITPOLICY) | NoPath():
            return REFUSED
        case StreamClosed(reason=EndReason.TIMEOUT) | TimedOut():
            return TIMED_OUT
        case OnionServiceError(step=OnionStep.RENDEZVOUS | OnionStep.INTRODUCTION_TIMEOUT):
            return TIMED_OUT
        case InternalError():
            return INTERNAL
        case NotProven():
            return NOT_PROVEN
        case _:
            return FAILED


def report(error: BaseException) -> int:
    """Say what happened in one line, and what can be done, or where a fault of ours was; the exit status."""
    match error:
        case typer.Exit():
            return error.exit_code
        case KeyboardInterrupt():
            return INTERRUPTED
        case BrokenPipeError():
            return BROKEN_PIPE  # quietly: the reader has what it wanted
        case TorkitError():
            say(str(error))
            if error.hint:
                say(f"hint: {error.hint}")
            return exit_status(error)
        case typer.TyperException():
            message = error.format_message()
            if "\n" in message:  # the whole help text, for a line without a command
                from torkit.net.descriptors import stderr

                stderr.say(message)
            else:
                context = getattr(error, "ctx", None)
                say(message[:1].lower() + message[1:].rstrip("."))
                say(f"hint: {context.command_path if context else 'torkit'} --help")
            return error.exit_code
        case OSError():
            say(f"{error.filename or 'stdin or stdout'}: {error.strerror}")
            return FAILED
        case _:
            fault = InternalError.ending("the command", error)
            say(str(fault))
            say(trace(fault))
            return exit_status(fault)


def cause_of(error: BaseException) -> BaseException:
    """Returns the one error to report: ours, else a declared one, if several tasks failed at once."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [cause_of(inner) for inner in error.exceptions]
    for cause in causes:
        if isinstance(cause, InternalError):
            return cause
    return next((cause for cause in causes if isinstance(cause, TorkitError)), causes[0])
