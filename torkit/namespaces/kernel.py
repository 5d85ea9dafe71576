"""System calls that Python does not have. Each raises OSError."""

import ctypes
import os
from collections.abc import Sequence

CLONE_NEWNS = 0x0002_0000  # <linux/sched.h>
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000

MS_NOSUID = 2  # <linux/mount.h>
MS_NODEV = 4
MS_BIND = 4096
MS_REC = 16384
MNT_DETACH = 2

PR_CAPBSET_READ = 23  # <linux/prctl.h>
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2  # <linux/seccomp.h>

# <linux/capability.h>. Root inside may still handle files and users, as a package manager needs.
# Nothing about networks, mounts, devices or other processes.
CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "NET_BIND_SERVICE": 10,
    "SYS_CHROOT": 18,
    "SETFCAP": 31,
}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(status: int) -> None:
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def unshare(flags: int) -> None:
    """Move this process into new namespaces. unshare(2)."""
    _check(_libc.unshare(flags))


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)"""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode())
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()))


def unmount(target: str) -> None:
    """Take a mount away from its place; files of it that are mounted elsewhere stay. umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH))


def _prctl(option: int, argument: int) -> int:
    zero = ctypes.c_ulong(0)
    return int(_libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero))


def give_up_capabilities() -> None:
    """Let no program that this process becomes have more than CAPABILITIES, and those only as root."""
    number = 0
    while (is_held := _prctl(PR_CAPBSET_READ, number)) >= 0:
        if is_held and number not in CAPABILITIES.values():
            _check(_prctl(PR_CAPBSET_DROP, number))
        number += 1
    forbid_new_privileges()


def forbid_new_privileges() -> None:
    """Let this process, and all that it becomes or starts, never have more rights than now. prctl(2)."""
    _check(_prctl(PR_SET_NO_NEW_PRIVS, 1))


def call(number: int, *arguments: int | ctypes.Structure | None) -> int:
    """Make the system call of this number; a structure is passed by its address. syscall(2)."""
    given = (
        ctypes.byref(one) if isinstance(one, ctypes.Structure) else ctypes.c_long(one or 0)
        for one in arguments
    )
    status = int(_libc.syscall(ctypes.c_long(number), *given))
    _check(status)
    return status


class _Instruction(ctypes.Structure):
    """struct sock_filter of <linux/filter.h>."""

    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("operand", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    """struct sock_fprog of <linux/filter.h>."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def filter_calls(steps: Sequence[tuple[int, int, int, int]]) -> None:
    """Have a program of BPF judge each call of this process and of all that it becomes or starts. seccomp(2).

    Needs `forbid_new_privileges` before. Threads that run already are not judged.
    """
    instructions = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    program = _Program(len(steps), instructions)
    _check(_libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(program), 0, 0))
