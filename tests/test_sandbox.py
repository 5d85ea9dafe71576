"""What a process cannot do inside of the sandbox: each that there might be is tried. And what it can."""

import ctypes
import os
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from errno import EACCES, EAFNOSUPPORT, ENOSYS, EOPNOTSUPP, EPERM
from pathlib import Path

import pytest
from confined import only_with_a_sandbox

from torkit import sandbox
from torkit.errors import NotPossible
from torkit.sandbox import landlock
from torkit.sandbox.calls import JUDGED, PLAIN

MACHINE = os.uname().machine

# `refused` tries something; what it raises is the answer, and a process that goes on has been refused.
PROLOGUE = """
import ctypes, errno, os, select, signal, socket, subprocess, sys, threading
from pathlib import Path
from torkit import sandbox

libc = ctypes.CDLL(None, use_errno=True)
data = Path(sys.argv[1])
parent = os.getppid()

def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

def refused(act, *numbers):
    try:
        act()
    except OSError as error:
        assert error.errno in numbers, (error, numbers)
    else:
        raise SystemExit("it was done")
"""


def run_inside(directory: Path, code: str, before: str = "") -> None:
    """Run Python's `code` in a process of its own, whose sandbox is closed and may change `directory`.

    The line `before` is run before that.
    """
    places = [*sys.path, "/usr/lib", "/lib", "/lib64", sys.base_prefix]
    close = f"{before}\nsandbox.close(readable=map(Path, {places!r}), changeable=[data])\n"
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + close + textwrap.dedent(code), str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file of the same user, outside of the data directory."""
    path = tmp_path / "key"
    path.write_text("a secret")
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "agent"))
        sock.listen()
        yield sock


@only_with_a_sandbox
@pytest.mark.parametrize(
    ("what", "numbers"),
    [
        ("open('/etc/passwd')", [EACCES]),
        ("open(data / '..' / 'key')", [EACCES]),
        ("open(data / 'link')", [EACCES]),
        ("open(f'/proc/{parent}/environ')", [EACCES]),
        ("os.open(data / '..' / 'key', os.O_WRONLY)", [EACCES]),
        ("os.truncate(data / '..' / 'key', 0)", [EACCES, ENOSYS]),
        ("os.unlink(data / '..' / 'key')", [EACCES]),
        ("os.rename(data / '..' / 'key', data / 'key')", [EACCES]),
        ("os.link(data / '..' / 'key', data / 'key')", [EACCES, ENOSYS]),
        ("open(data / '..' / 'new', 'x')", [EACCES]),
        ("os.listdir(data / '..')", [EACCES]),
        ("os.chmod(data / '..' / 'key', 0o777)", [ENOSYS]),
        ("os.symlink('/', data / 'root')", [ENOSYS]),
        ("os.mknod(data / 'null', 0o20666, 0x103)", [EACCES, ENOSYS]),
    ],
)
def test_files_elsewhere_are_neither_read_nor_changed(
    data: Path, outside: Path, what: str, numbers: list[int]
) -> None:
    (data / "link").symlink_to(outside)
    run_inside(data, f"refused(lambda: {what}, *{numbers})")
    assert outside.read_text() == "a secret"
    assert os.listdir(data) == ["link"]


@only_with_a_sandbox
@pytest.mark.parametrize(
    "what",
    [
        *("os.execv('/bin/true', ['true'])", "os.fork()", "os.posix_spawn('/bin/true', ['true'], {})"),
        *("subprocess.run(['true'])", "call('unshare', 0x10000000)", "call('setns', 0, 0)"),
        *("call('mount', b'none', b'/mnt', b'tmpfs', 0, None)", "call('chroot', b'/')"),
        *("call('ptrace', 16, parent, 0, 0)", "call('ptrace', 0, 0, 0, 0)", "os.pidfd_open(parent)"),
        *("call('process_vm_readv', parent, None, 0, None, 0, 0)", "call('bpf', 0, 0, 0)"),
        *("call('io_uring_setup', 1, 0)", "call('keyctl', 0)", "call('perf_event_open', 0, 0, 0, 0, 0)"),
        *("os.setuid(65534)", "os.setsid()", "os.nice(-1)"),
    ],
)
def test_no_program_no_namespace_no_other_process(data: Path, what: str) -> None:
    numbers = {"bpf": 321, "io_uring_setup": 425, "keyctl": 250, "perf_event_open": 298}
    for name, number in numbers.items():  # libc has no function for these
        if f"call('{name}'" in what and MACHINE != "x86_64":
            pytest.skip("numbers of x86_64")
        what = what.replace(f"call('{name}'", f"call('syscall', {number}")
    run_inside(data, f"refused(lambda: {what}, errno.EPERM, errno.ENOSYS)")


@only_with_a_sandbox
@pytest.mark.parametrize("flags", ["0x11", "0x40010f00", "0x10010f00", "0x10f00 | 0x02000000", "0x20000011"])
def test_what_clone_makes_is_a_thread_of_this_process(data: Path, flags: str) -> None:
    """clone3(2), whose flags no filter can see, is not there."""
    number = {"x86_64": 56}.get(MACHINE, 220)
    run_inside(
        data,
        f"""
        refused(lambda: call("syscall", {number}, {flags}, 0, 0, 0, 0), errno.EPERM)
        refused(lambda: call("syscall", 435, 0, 0), errno.ENOSYS)
        """,
    )


@only_with_a_sandbox
@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ("socket.AF_INET, socket.SOCK_DGRAM", EPERM),
        ("socket.AF_INET6, socket.SOCK_DGRAM", EPERM),
        ("socket.AF_INET, socket.SOCK_RAW, 1", EPERM),
        ("socket.AF_INET, socket.SOCK_STREAM, 132", EPERM),
        ("socket.AF_UNIX, socket.SOCK_STREAM", EAFNOSUPPORT),
        ("socket.AF_UNIX, socket.SOCK_DGRAM", EAFNOSUPPORT),
        ("socket.AF_NETLINK, socket.SOCK_RAW, 0", EPERM),
        ("socket.AF_PACKET, socket.SOCK_RAW", EAFNOSUPPORT),
        ("40, socket.SOCK_STREAM", EAFNOSUPPORT),
    ],
    ids=lambda value: str(value),
)
def test_sockets_are_for_connections_by_tcp_alone(data: Path, arguments: str, number: int) -> None:
    run_inside(data, f"refused(lambda: socket.socket({arguments}), {number})")


@only_with_a_sandbox
def test_nothing_listens_anew_and_no_program_of_this_machine_is_reached(
    data: Path, server: socket.socket
) -> None:
    run_inside(
        data,
        f"""
        refused(lambda: socket.socket().bind(("127.0.0.1", 0)), errno.ENOSYS, errno.EACCES)
        refused(lambda: socket.socket().listen(), errno.ENOSYS, errno.EACCES)
        refused(lambda: socket.socketpair(), errno.ENOSYS)
        refused(lambda: socket.socket(socket.AF_UNIX).connect({server.getsockname()!r}), errno.EAFNOSUPPORT)
        """,
    )


@only_with_a_sandbox
def test_it_signals_itself_and_no_other(data: Path) -> None:
    run_inside(
        data,
        """
        for pid in (parent, 1, 0, -1, -os.getpgrp()):
            refused(lambda: os.kill(pid, 0), errno.EPERM)
        os.kill(os.getpid(), 0)
        got = []
        signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
        signal.raise_signal(signal.SIGUSR1)
        assert got == [1]
        """,
    )


@only_with_a_sandbox
def test_limits_and_inspection_stay_as_they_are(data: Path) -> None:
    run_inside(
        data,
        """
        import fcntl, resource
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == hard
        call("prctl", 4, 0, 0, 0, 0)
        refused(lambda: call("prctl", 4, 1, 0, 0, 0), errno.EPERM)  # PR_SET_DUMPABLE
        refused(lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE), errno.EPERM)
        refused(lambda: fcntl.ioctl(0, 0x5412, b"x"), errno.EPERM)  # TIOCSTI types at a terminal
        """,
    )


@only_with_a_sandbox
def test_calls_for_32_bits_are_not_there(data: Path) -> None:
    """getpid(2) of i386, by a piece of machine code."""
    if MACHINE != "x86_64":
        pytest.skip("not x86_64")
    run_inside(
        data,
        """
        import mmap
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes.fromhex("53 b814000000 cd80 5b c3"))  # push rbx; mov eax, 20; int 0x80; pop rbx; ret
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        status = ctypes.CFUNCTYPE(ctypes.c_int)(at)()
        assert status == -errno.ENOSYS, status
        """,
    )


@only_with_a_sandbox
def test_threads_files_modules_and_connections_go_on(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        run_inside(
            data,
            f"""
            from torkit.files import replace_file
            from torkit.directory.cache import Cache
            from torkit.net.proxy.sockdiag import SockDiag
            replace_file(data / "ready", b"1", mode=0o600)
            Cache(data).update_state({{"a": 1}})
            assert Cache(data).load_state() == {{"a": 1}}
            (data / "ready").unlink()
            done = []
            def act():
                refused(lambda: open("/etc/passwd"), errno.EACCES)
                done.append(1)
            thread = threading.Thread(target=act)
            thread.start()
            thread.join()
            assert done == [1]
            import torkit.hs.keys, sqlite3, xml.sax, torkit.client
            near = socket.create_connection(("127.0.0.1", {server.getsockname()[1]}))
            assert SockDiag().is_closed_by_program(near)  # nobody has accepted it
            """,
            before="import trio",  # which asks a program where libc is
        )


@only_with_a_sandbox
def test_a_process_with_a_second_thread_is_not_closed_by_halves(data: Path) -> None:
    code = """
    gate = threading.Event()
    threading.Thread(target=gate.wait).start()
    try:
        sandbox.close(readable=[], changeable=[data])
    except Exception as error:
        print(type(error).__name__, error)
    gate.set()
    open("/etc/passwd").close()
    """
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(code), str(data)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "NotPossible 1 other threads of this process would be outside of the sandbox\n"


@pytest.mark.parametrize(
    ("number", "hint"), [(ENOSYS, "Linux 6.2"), (EOPNOTSUPP, "lsm="), (EPERM, "container")]
)
def test_without_landlock_there_is_no_weaker_sandbox(
    monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    def fail() -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(landlock, "version", fail)
    with pytest.raises(NotPossible, match="no sandbox without Landlock") as caught:
        sandbox.close(readable=[], changeable=[])
    assert hint in str(caught.value.hint)


def test_an_older_landlock_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 2)
    with pytest.raises(NotPossible, match="has version 2, the sandbox needs 3"):
        sandbox.close(readable=[], changeable=[])


def test_a_machine_whose_calls_nobody_has_looked_up_has_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6.2", "", "s390x")))
    with pytest.raises(NotPossible, match="no sandbox for Linux on s390x"):
        sandbox.close(readable=[], changeable=[])


@pytest.mark.parametrize(
    ("column", "header"),
    [(1, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (2, "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_of_calls_are_the_kernels(column: int, header: str) -> None:
    path = Path(header)
    if not path.exists():
        pytest.skip("no headers of the kernel")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", path.read_text(), re.MULTILINE)
    known = {name: int(number) for name, number in found}
    known.setdefault("newfstatat", known.get("fstatat", -1))
    rows = [entry.split() for entry in (PLAIN + JUDGED).split(";") if entry.strip()]
    assert len(rows) == len({row[0] for row in rows})
    for row in rows:
        if row[column] == "-" or (row[0] not in known and int(row[column]) > 449):  # older headers
            continue
        assert known[row[0]] == int(row[column]), row[0]


def test_what_is_passed_to_the_kernel_has_its_layout() -> None:
    assert ctypes.sizeof(landlock._Ruleset) == 24
    assert ctypes.sizeof(landlock._PathBeneath) == 12
