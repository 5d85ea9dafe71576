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

from torkit.namespaces.bpf import (
    ALLOW,
    LOAD_ARCHITECTURE,
    LOAD_NUMBER,
    Step,
    fail,
    keep,
    load_argument,
    when,
)
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


def forbid_calls() -> None:
    """Forbid calls to this process and all that it becomes or starts. Machines not in KINDS get no filter."""
    filter_calls([LOAD_ARCHITECTURE, *_all_kinds(), ALLOW])


def _all_kinds() -> Iterator[Step]:
    for calls in KINDS.values():
        yield from when(calls.architecture, *_one_kind(calls))


def _one_kind(calls: Calls) -> Iterator[Step]:
    yield LOAD_NUMBER
    yield keep(~X32 & 0xFFFF_FFFF)
    for number in (IO_URING_SETUP, calls.request_key):
        yield from when(number, fail(errno.ENOSYS))
    unknown = fail(errno.EAFNOSUPPORT)
    first_argument = load_argument(0)
    if calls.socketcall is not None:
        yield from when(calls.socketcall, first_argument, *when(SYS_SOCKET, unknown), ALLOW)
    served = [step for family in FAMILIES for step in when(family, ALLOW)]
    yield from when(calls.socket, first_argument, *served, unknown)
    yield ALLOW
