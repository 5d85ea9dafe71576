"""System calls by which a program would pass by its network namespace: each fails.

A network namespace holds sockets of the families that know of it. Others do not: those between virtual
machines and their host, of modems, of Bluetooth. io_uring makes sockets past every filter of calls, and
request_key(2) has the kernel start a program of the host, which may look up names. Programs know kernels
without any of these.
"""

import errno
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, AF_NETLINK, AF_UNIX
from typing import NamedTuple

from torkit.namespaces.kernel import filter_calls

FAMILIES = (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK)

IO_URING_SETUP = 425  # on every machine
X32 = 0x4000_0000  # set in the numbers of x86_64's second kind of calls


class Calls(NamedTuple):
    """The numbers of one kind of calls: <asm/unistd.h>."""

    architecture: int  # <linux/audit.h>
    socket: int
    request_key: int
    socketcall: int | None = None  # makes sockets, too; its arguments are where no filter can read


# The kinds of calls of one machine stand together: a program can choose among them.
KINDS = {
    "x86_64": Calls(0xC000_003E, 41, 249),
    "i386": Calls(0x4000_0003, 359, 287, 102),
    "aarch64": Calls(0xC000_00B7, 198, 218),
    "arm": Calls(0x4000_0028, 281, 310),
    "riscv64": Calls(0xC000_00F3, 198, 218),
    "riscv32": Calls(0x4000_00F3, 198, 218),
}
SYS_SOCKET = 1  # what socketcall(2) is to do

Step = tuple[int, int, int, int]

LOAD, AND, EQUAL, GIVE = 0x20, 0x54, 0x15, 0x06  # BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_JMP|JEQ|K, BPF_RET|K

# Offsets in struct seccomp_data of <linux/seccomp.h>
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # of the argument the lower half

ALLOW: Step = (GIVE, 0, 0, 0x7FFF_0000)  # SECCOMP_RET_ALLOW


def forbid_calls() -> None:
    """Forbid calls to this process and all that it becomes or starts. Machines not in KINDS get no filter."""
    filter_calls([(LOAD, 0, 0, ARCHITECTURE), *_all_kinds(), ALLOW])


def _all_kinds() -> Iterator[Step]:
    for calls in KINDS.values():
        yield from _when(calls.architecture, *_one_kind(calls))


def _one_kind(calls: Calls) -> Iterator[Step]:
    yield (LOAD, 0, 0, NUMBER)
    yield (AND, 0, 0, ~X32 & 0xFFFF_FFFF)
    for number in (IO_URING_SETUP, calls.request_key):
        yield from _when(number, _fail(errno.ENOSYS))
    unknown = _fail(errno.EAFNOSUPPORT)
    first_argument = (LOAD, 0, 0, FIRST_ARGUMENT)
    if calls.socketcall is not None:
        yield from _when(calls.socketcall, first_argument, *_when(SYS_SOCKET, unknown), ALLOW)
    served = [step for family in FAMILIES for step in _when(family, ALLOW)]
    yield from _when(calls.socket, first_argument, *served, unknown)
    yield ALLOW


def _when(value: int, *steps: Step) -> Iterator[Step]:
    """`steps` where the value at hand is `value`; else what comes behind them."""
    yield (EQUAL, 0, len(steps), value)
    yield from steps


def _fail(number: int) -> Step:
    return (GIVE, 0, 0, 0x0005_0000 | number)  # SECCOMP_RET_ERRNO
