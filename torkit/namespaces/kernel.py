"""System calls that Python does not have. Each raises OSError."""

import ctypes
import errno
import os

CLONE_NEWNS = 0x0002_0000  # <linux/sched.h>
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000

MS_NOSUID = 2  # <linux/mount.h>
MS_NODEV = 4
MS_BIND = 4096
MNT_DETACH = 2

PR_CAPBSET_READ = 23  # <linux/prctl.h>
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2  # <linux/seccomp.h>
SECCOMP_RET_ALLOW = 0x7FFF_0000
SECCOMP_RET_ERRNO = 0x0005_0000

# <linux/capability.h>. What root inside may still do: have files and users, as a package manager needs.
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

# Sockets between virtual machines and their host belong to no network namespace. Calls of io_uring's pass by
# every filter of calls, so there are none; programs know kernels without it.
AF_VSOCK = 40
IO_URING_SETUP = 425  # on every machine
X32 = 0x4000_0000  # set in the numbers of x86_64's second kind of calls

# By machine: its name in a filter, <linux/audit.h>, and the number of socket(2).
SOCKET_CALLS = {"x86_64": (0xC000_003E, 41), "aarch64": (0xC000_00B7, 198), "riscv64": (0xC000_00F3, 198)}

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
    _check(_prctl(PR_SET_NO_NEW_PRIVS, 1))


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


def forbid_vsock() -> None:
    """Refuse AF_VSOCK and io_uring to this process and all that it becomes or starts. seccomp(2).

    Where the machine is none of SOCKET_CALLS, nothing is refused. Needs `give_up_capabilities` before.
    """
    machine = os.uname().machine
    if machine not in SOCKET_CALLS:
        return
    architecture, socket_call = SOCKET_CALLS[machine]
    load, equal, mask, give = 0x20, 0x15, 0x54, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_ALU|AND|K, BPF_RET|K
    steps = [
        (load, 0, 0, 4),  # struct seccomp_data: the machine
        (equal, 0, 6, architecture),
        (load, 0, 0, 0),  # the number of the call
        (mask, 0, 0, ~X32 & 0xFFFF_FFFF),
        (equal, 4, 0, IO_URING_SETUP),
        (equal, 0, 2, socket_call),
        (load, 0, 0, 16),  # its first argument, in the lower half
        (equal, 2, 0, AF_VSOCK),
        (give, 0, 0, SECCOMP_RET_ALLOW),
        (give, 0, 0, SECCOMP_RET_ERRNO | errno.ENOSYS),
        (give, 0, 0, SECCOMP_RET_ERRNO | errno.EAFNOSUPPORT),
    ]
    instructions = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    program = _Program(len(steps), instructions)
    _check(_libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(program), 0, 0))
