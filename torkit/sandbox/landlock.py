"""Which files a process may open, by Landlock: landlock(7), <linux/landlock.h>.

What is handled and not allowed is refused, to all threads that are started later, whatever the user may do.
Files that are open already stay so.
"""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from ctypes import Structure, c_int32, c_uint64, sizeof
from errno import EBADFD
from pathlib import Path

from torkit.namespaces.kernel import call

# The same numbers on every machine.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1

# Rights to files and directories.
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
REMOVE_FILE, MAKE_REG, TRUNCATE = 1 << 5, 1 << 8, 1 << 14
OF_FILES = WRITE_FILE | READ_FILE | TRUNCATE

READ = READ_FILE | READ_DIR
CHANGE = READ | WRITE_FILE | TRUNCATE | MAKE_REG | REMOVE_FILE

# Versions of the kernel's interface, and what each brought.
LEAST = 3  # TRUNCATE: with less, whoever may read a file may cut it off
WITH_NETWORK = 4  # binding TCP
WITH_DEVICES = 5  # ioctl(2)
WITH_SCOPES = 6  # abstract Unix sockets and signals

FILES_OF_LEAST = (1 << 15) - 1  # all rights to files of version LEAST
IOCTL_DEV = 1 << 15
BIND_TCP = 1
ABSTRACT_UNIX_SOCKET, SIGNAL = 1, 2


class _Ruleset(Structure):
    """struct landlock_ruleset_attr"""

    _fields_ = (("files", c_uint64), ("network", c_uint64), ("scopes", c_uint64))


class _PathBeneath(Structure):
    """struct landlock_path_beneath_attr"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", c_uint64), ("directory", c_int32))


def version() -> int:
    """Returns the version of the kernel's interface. Raises OSError where there is none."""
    return call(CREATE_RULESET, None, 0, CREATE_RULESET_VERSION)


def restrict(readable: Iterable[Path], changeable: Iterable[Path]) -> None:
    """Leave this thread, and those that it starts, these files and what is in these directories.

    Paths that are not there count for nothing. It may bind no TCP socket, and neither signal nor connect to a
    process of before, as far as the kernel's version is able to. Needs `forbid_new_privileges` before, and
    version LEAST. Raises OSError.
    """
    number = version()
    handled = _Ruleset(
        FILES_OF_LEAST | (IOCTL_DEV if number >= WITH_DEVICES else 0),
        BIND_TCP if number >= WITH_NETWORK else 0,
        ABSTRACT_UNIX_SOCKET | SIGNAL if number >= WITH_SCOPES else 0,
    )
    rules = call(CREATE_RULESET, handled, sizeof(handled), 0)
    try:
        for rights, paths in ((READ, readable), (CHANGE, changeable)):
            for path in paths:
                _allow(rules, path, rights)
        call(RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: Path, rights: int) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        handle = os.open(path, os.O_PATH)
        try:
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                rights &= OF_FILES
            call(ADD_RULE, rules, RULE_PATH_BENEATH, _PathBeneath(rights, handle), 0)
        except OSError as error:
            if error.errno != EBADFD:  # a pipe, say: of no file system, and never refused
                raise
        finally:
            os.close(handle)
