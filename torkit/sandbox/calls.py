"""System calls of a proxy that listens: all others fail, as on a kernel that does not have them.

It opens files, but Landlock says which (landlock.py). It starts threads, and no process. It makes connections
by TCP, no socket that listens, none for UDP, none to programs of this machine. It signals itself alone.
"""

import errno
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, AF_NETLINK, IPPROTO_TCP, SOCK_STREAM
from typing import NamedTuple

from torkit.namespaces.bpf import (
    ALLOW,
    LOAD_ARCHITECTURE,
    LOAD_NUMBER,
    Step,
    fail,
    keep,
    load_argument,
    unless,
    when,
)

# Names, with their numbers on x86_64 and on machines that Linux came to later: <asm/unistd.h>.
PLAIN = """
    read 0 63; write 1 64; readv 19 65; writev 20 66; pread64 17 67; pwrite64 18 68; open 2 -;
    openat 257 56; openat2 437 437; close 3 57; close_range 436 436; lseek 8 62; dup 32 23; dup2 33 -;
    dup3 292 24; fcntl 72 25; flock 73 32; fsync 74 82; fdatasync 75 83; ftruncate 77 46; rename 82 -;
    renameat 264 38; renameat2 316 276; unlink 87 -; unlinkat 263 35; stat 4 -; fstat 5 80; lstat 6 -;
    newfstatat 262 79; statx 332 291; readlink 89 -; readlinkat 267 78; access 21 -; faccessat 269 48;
    faccessat2 439 439; getdents64 217 61; getcwd 79 17; umask 95 166; fadvise64 221 223; statfs 137 43;
    fstatfs 138 44; mkdir 83 -; mkdirat 258 34;
    pipe2 293 59; eventfd2 290 19; epoll_create1 291 20; epoll_ctl 233 21; epoll_wait 232 -;
    epoll_pwait 281 22; epoll_pwait2 441 441; poll 7 -; ppoll 271 73; select 23 -; pselect6 270 72;
    timerfd_create 283 85; timerfd_settime 286 86;
    connect 42 203; accept 43 202; accept4 288 242; getsockname 51 204;
    getpeername 52 205; getsockopt 55 209; setsockopt 54 208; sendto 44 206; recvfrom 45 207;
    sendmsg 46 211; recvmsg 47 212; sendmmsg 307 269; recvmmsg 299 243; shutdown 48 210;
    mmap 9 222; munmap 11 215; mremap 25 216; mprotect 10 226; madvise 28 233; brk 12 214;
    mlock 149 228; mlock2 325 284; munlock 150 229; mincore 27 232; membarrier 324 283;
    set_robust_list 273 99; get_robust_list 274 100; rseq 334 293; futex 202 98; futex_wait 455 455;
    futex_wake 454 454; futex_waitv 449 449; set_tid_address 218 96; exit 60 93; exit_group 231 94;
    sched_yield 24 124; sched_getaffinity 204 123; getcpu 309 168; arch_prctl 158 -;
    gettid 186 178; getpid 39 172; getppid 110 173; getuid 102 174; geteuid 107 175; getgid 104 176;
    getegid 108 177; getresuid 118 148; getresgid 120 150; getgroups 115 158;
    rt_sigaction 13 134; rt_sigprocmask 14 135; rt_sigreturn 15 139; rt_sigtimedwait 128 137;
    rt_sigpending 127 136; rt_sigsuspend 130 133; sigaltstack 131 132; restart_syscall 219 128;
    clock_gettime 228 113; clock_getres 229 114; clock_nanosleep 230 115; nanosleep 35 101;
    gettimeofday 96 169; time 201 -; times 100 153; getrusage 98 165; sysinfo 99 179; uname 63 160;
    getrlimit 97 163; getrandom 318 278;
"""

# Calls whose arguments are looked at.
JUDGED = """
    clone 56 220; socket 41 198; kill 62 129; tgkill 234 131; prctl 157 167; prlimit64 302 261;
    ioctl 16 29;
"""


class Machine(NamedTuple):
    """A kind of machine: its number of <linux/audit.h>, and the numbers of its calls."""

    architecture: int
    plain: frozenset[int]
    judged: dict[str, int]


def _numbers(table: str, column: int) -> dict[str, int]:
    rows = (entry.split() for entry in table.split(";") if entry.strip())
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def machine(name: str) -> Machine | None:
    """Returns the kind of machine that uname(1) calls `name`; None where nobody has looked up its numbers."""
    kinds = {"x86_64": (0xC000_003E, 1), "aarch64": (0xC000_00B7, 2), "riscv64": (0xC000_00F3, 2)}
    if name not in kinds:
        return None
    architecture, column = kinds[name]
    return Machine(architecture, frozenset(_numbers(PLAIN, column).values()), _numbers(JUDGED, column))


CLONE_THREAD = 0x0001_0000  # <linux/sched.h>
CLONE_NEW = 0x7E02_0000  # all flags that make namespaces
SOCK_TYPE = 0xF  # the kind of a socket, without the flags that may stand beside it: <linux/net.h>
NETLINK_SOCK_DIAG = 4  # <linux/netlink.h>
PR_SET_DUMPABLE = 4  # <linux/prctl.h>
PR_SET_NAME = 15  # of a thread
PR_SET_VMA = 0x5356_4D41  # the name of a piece of memory: malloc's

# What is asked of descriptors: whether to wait, what has come, what is unsent, whether it is a terminal, and
# how wide. <asm-generic/ioctls.h>. No TIOCSTI, which types at a terminal.
FIOCLEX, FIONCLEX, FIONBIO, FIONREAD, TIOCOUTQ = 0x5451, 0x5450, 0x5421, 0x541B, 0x5411
TCGETS, TCGETS2, TIOCGWINSZ = 0x5401, 0x802C_542A, 0x5413
QUESTIONS = (FIOCLEX, FIONCLEX, FIONBIO, FIONREAD, TIOCOUTQ, TCGETS, TCGETS2, TIOCGWINSZ)


def judge(machine: Machine, pid: int) -> Iterator[Step]:
    """Returns the program for the process `pid`, which has one thread."""
    unknown, forbidden = fail(errno.ENOSYS), fail(errno.EPERM)
    yield LOAD_ARCHITECTURE
    yield from unless(machine.architecture, unknown)  # such as calls for 32 bits
    yield LOAD_NUMBER
    for number in sorted(machine.plain):
        yield from when(number, ALLOW)
    own = (load_argument(0), *when(pid, ALLOW), forbidden)
    families = (*_sockets(AF_INET), *_sockets(AF_INET6), *_netlink(), fail(errno.EAFNOSUPPORT))
    judged = {
        "clone": (load_argument(0), keep(CLONE_NEW | CLONE_THREAD), *when(CLONE_THREAD, ALLOW), forbidden),
        "socket": families,
        "kill": own,
        "tgkill": own,
        "prlimit64": (load_argument(0), *when(0, ALLOW), *own),
        "prctl": (
            load_argument(0),
            *when(PR_SET_NAME, ALLOW),
            *when(PR_SET_VMA, ALLOW),
            *when(PR_SET_DUMPABLE, load_argument(1), *when(0, ALLOW)),
            forbidden,
        ),
        "ioctl": (load_argument(1), *(step for one in QUESTIONS for step in when(one, ALLOW)), forbidden),
    }
    for name, steps in judged.items():
        yield from when(machine.judged[name], *steps)
    yield unknown


def _sockets(family: int) -> Iterator[Step]:
    """Sockets for TCP."""
    tcp = (load_argument(2), *when(0, ALLOW), *when(IPPROTO_TCP, ALLOW), fail(errno.EPERM))
    kind = (load_argument(1), keep(SOCK_TYPE), *when(SOCK_STREAM, *tcp), fail(errno.EPERM))
    yield load_argument(0)
    yield from when(family, *kind)


def _netlink() -> Iterator[Step]:
    """Sockets that ask whether a program has closed its connection (net/proxy/sockdiag.py)."""
    yield load_argument(0)
    protocol = (load_argument(2), *when(NETLINK_SOCK_DIAG, ALLOW), fail(errno.EPERM))
    yield from when(AF_NETLINK, *protocol)
