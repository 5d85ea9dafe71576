"""stdin, stdout and stderr as parents leave them: closed, non-blocking, or one connection."""

import io
import os
import stat
import sys
from typing import Any

STDOUT = 1


def open_standard_descriptors() -> None:
    """Give what the parent closed to the null device, before a connection gets its number.

    Reading a closed stdin gives an end. Writing to a closed stdout is an error, so that no byte is lost in
    silence, and errors themselves may be lost: nobody wants to see them. Where output is non-blocking, it
    waits for room: Python would drop what finds none.
    """
    modes = (("stdin", os.O_RDONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY))
    for descriptor, (name, mode) in enumerate(modes):
        try:
            is_blocking = os.get_blocking(descriptor)
        except OSError:
            os.open(os.devnull, mode)
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r"))
            continue
        if descriptor and not is_blocking:
            file: Any = getattr(sys, name)
            setattr(
                sys,
                name,
                io.TextIOWrapper(
                    io.BufferedWriter(_PatientFile(descriptor, "w", closefd=False)),
                    encoding=file.encoding,
                    errors=file.errors,
                    line_buffering=file.line_buffering,
                ),
            )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files are written as they are


class _PatientFile(io.FileIO):
    """Waits until some of what is written has found room."""

    def write(self, data: Any) -> int:
        from torkit.net.descriptors import write_some

        return write_some(self.fileno(), data)


def deliver_output() -> None:
    """Stay until stdout, if it is a connection, has delivered all. Raises OSError."""
    if stat.S_ISSOCK(os.fstat(STDOUT).st_mode):
        from torkit.net.descriptors import wait_until_delivered

        wait_until_delivered(STDOUT)


def drop_unwritten_output() -> None:
    """Keep the interpreter from trying again, at its end, to write what could not be written."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
