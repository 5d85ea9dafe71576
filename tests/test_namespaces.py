"""A program in namespaces of its own has no way out but ours: each that there might be is tried."""

import os
import socket
import subprocess
import threading
from contextlib import ExitStack
from errno import EAFNOSUPPORT, ENOSPC, ENOSYS, EPERM
from pathlib import Path

import pytest
from confined import confine, python, skip_where_forbidden
from waiting import wait_until

from torkit.namespaces.calls import IO_URING_SETUP, KINDS
from torkit.namespaces.files import SERVICES, is_kept, with_our_hosts_line
from torkit.namespaces.network import RedirectionError
from torkit.namespaces.obstacles import explain

pytestmark = skip_where_forbidden()

ENDED = {"code": 0}


@pytest.mark.parametrize(
    ("address", "port"), [("192.0.2.1", 80), ("8.8.8.8", 53), ("10.1.2.3", 22), ("2001:db8::1", 443)]
)
def test_a_connection_to_any_address_comes_to_us(address: str, port: int) -> None:
    told = confine(
        python(
            f"""
            import socket
            with socket.create_connection(("{address}", {port}), 5) as sock:
                assert sock.recv(100) == b"welcome"
            """
        )
    )
    assert told == [{"redirected": [address, port], "is_open": True}, ENDED]


def test_a_static_program_cannot_go_another_way(tmp_path: Path) -> None:
    source = tmp_path / "static.c"
    source.write_text(
        """
        #include <arpa/inet.h>
        #include <sys/socket.h>
        #include <unistd.h>
        int main(void) {
            struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(80)};
            char data[8] = "";
            int sock = socket(AF_INET, SOCK_STREAM, 0);
            inet_pton(AF_INET, "192.0.2.7", &to.sin_addr);
            if (connect(sock, (struct sockaddr *)&to, sizeof to)) return 1;
            return read(sock, data, 7) != 7 || data[0] != 'w';
        }
        """
    )
    program = tmp_path / "static"
    if subprocess.run(["cc", "-static", "-o", program, source], check=False, capture_output=True).returncode:
        pytest.skip("no compiler, or no static libc")
    assert confine([str(program)]) == [{"redirected": ["192.0.2.7", 80], "is_open": True}, ENDED]


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.53", "9.9.9.9", "::1", "2001:db8::53"])
def test_a_question_to_any_name_server_comes_to_us(server: str) -> None:
    told = confine(
        python(
            f"""
            import socket
            sock = socket.socket(socket.AF_INET6 if ":" in "{server}" else socket.AF_INET, socket.SOCK_DGRAM)
            sock.settimeout(5)
            sock.connect(("{server}", 53))
            sock.send(b"abc")
            assert sock.recv(100) == b"cba"
            """
        )
    )
    assert told == [{"dns": "abc"}, ENDED]


@pytest.mark.parametrize("database", ["hosts", "ahostsv4", "ahostsv6"])
def test_the_resolver_of_libc_asks_us(database: str) -> None:
    """It asks only where the machine has an address (AI_ADDRCONFIG)."""
    told = confine(["timeout", "1", "getent", database, "web.test"])
    assert "\x03web\x04test" in told[0]["dns"]


def test_a_server_inside_is_reached_inside() -> None:
    told = confine(
        python(
            """
            import socket
            for host in ("127.0.0.5", "10.0.0.1", "::1"):
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                with socket.create_server((host, 0), family=family) as server:
                    socket.create_connection(server.getsockname()[:2], 5).close()
            """
        )
    )
    assert told == [ENDED]


@pytest.mark.parametrize(
    "attempt",
    [
        'send(socket.AF_INET, "192.0.2.1", 443)',
        'send(socket.AF_INET6, "2001:db8::1", 443)',
        'send(socket.AF_INET, "224.0.0.251", 5353)',
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        'connect(socket.SOCK_SEQPACKET, 132, "192.0.2.1")',  # SCTP
    ],
)
def test_all_else_fails_at_once(attempt: str) -> None:
    """And no interface but the loopback has sent anything: the kernel counts."""
    told = confine(
        python(
            f"""
            import socket

            def send(family, address, port):
                sock = socket.socket(family, socket.SOCK_DGRAM)
                sock.settimeout(5)
                sock.connect((address, port))
                sock.send(b"x")
                sock.recv(1)

            def connect(kind, protocol, address):
                sock = socket.socket(socket.AF_INET, kind, protocol)
                sock.settimeout(5)
                sock.connect((address, 443))

            try:
                {attempt}
            except TimeoutError:
                raise SystemExit("it hung")
            except OSError:
                pass
            else:
                raise SystemExit("it went somewhere")
            for line in open("/proc/net/dev").read().splitlines()[2:]:
                name, _, counts = line.partition(":")
                assert name.strip() == "lo" or counts.split()[9] == "0", line  # packets sent
            """
        )
    )
    assert told == [ENDED]


only_with_a_filter = pytest.mark.skipif(os.uname().machine not in KINDS, reason="no filter for this machine")


@only_with_a_filter
@pytest.mark.parametrize("before", [[], ["unshare", "-Ur"], ["sh", "-c", 'exec "$@"', "sh"]])
def test_sockets_that_a_network_namespace_does_not_hold_are_refused(before: list[str]) -> None:
    """Between virtual machines (vsock), of Bluetooth, of modems (qrtr), and whatever else there may be."""
    told = confine(
        [
            *before,
            *python(
                """
                import errno, socket
                served = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}
                for family in {*range(64)} - served:
                    try:
                        socket.socket(family, socket.SOCK_DGRAM)
                    except OSError as error:
                        assert error.errno == errno.EAFNOSUPPORT, (family, error)
                    else:
                        raise SystemExit(f"a socket of {family}")
                """
            ),
        ]
    )
    assert told == [ENDED]


@only_with_a_filter
def test_the_kernel_does_no_bidding_that_leads_out() -> None:
    """io_uring would make sockets past every filter, request_key(2) have a name looked up by the host."""
    numbers = [IO_URING_SETUP, KINDS[os.uname().machine].request_key]
    told = confine(
        python(
            f"""
            import ctypes, errno
            libc = ctypes.CDLL(None, use_errno=True)
            for number in {numbers}:
                assert libc.syscall(number, b"dns_resolver", b"web.test", b"", 0, 0) == -1
                assert ctypes.get_errno() == errno.ENOSYS
            """
        )
    )
    assert told == [ENDED]


# Makes calls for 32 bits, as any program of x86_64 may. Its arguments: a call, the errno expected, and so on.
CALLS_OF_I386 = """
    #include <stdlib.h>
    #include <string.h>
    #include <sys/mman.h>
    static int call(int number, long one, long two, long three) {
        int status;
        __asm__ volatile("int $0x80" : "=a"(status) : "a"(number), "b"(one), "c"(two), "d"(three) : "memory");
        return status < 0 ? -status : 0;
    }
    static int try(const char *name) {
        int family = name[0] == 'v' ? 40 : 2; /* AF_VSOCK, AF_INET */
        int *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
        low[0] = family, low[1] = 1;
        if (strstr(name, "-socketcall")) return call(102, 1, (long)low, 0);
        if (strstr(name, "-socket")) return call(359, family, 1, 0);
        if (!strcmp(name, "io_uring")) return call(425, 1, 0, 0);
        return call(20, 0, 0, 0); /* getpid */
    }
    int main(int count, char **arguments) {
        for (int at = 1; at < count; at += 2)
            if (try(arguments[at]) != atoi(arguments[at + 1])) return at;
        return 0;
    }
    """


@pytest.fixture(scope="module")
def i386(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program that makes calls for 32 bits."""
    if os.uname().machine != "x86_64":
        pytest.skip("not x86_64")
    program = tmp_path_factory.mktemp("i386") / "program"
    command = ["cc", "-w", "-x", "c", "-o", str(program), "-"]
    if subprocess.run(command, input=CALLS_OF_I386.encode(), check=False, capture_output=True).returncode:
        pytest.skip("no compiler")
    if subprocess.run([program, "getpid", "0"], check=False).returncode:
        pytest.skip("a kernel without calls for 32 bits")
    return str(program)


def test_calls_for_32_bits_pass_by_nothing(i386: str) -> None:
    """What socketcall(2) is to make, a filter cannot see."""
    expected = {"getpid": 0, "io_uring": ENOSYS, "inet-socket": 0, "vsock-socket": EAFNOSUPPORT}
    expected |= {"inet-socketcall": EAFNOSUPPORT, "vsock-socketcall": EAFNOSUPPORT}
    assert confine([i386, *(str(one) for pair in expected.items() for one in pair)]) == [ENDED]


def test_a_second_namespace_leads_nowhere() -> None:
    told = confine(
        [
            *("unshare", "-Urn", *python("")[:2]),
            "import socket, fcntl, struct\n"
            "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh14x', b'lo', 1))\n"
            "try: socket.create_connection(('192.0.2.1', 80), 5)\n"
            "except TimeoutError: raise SystemExit('it hung')\n"
            "except OSError: pass\n"
            "else: raise SystemExit('connected')",
        ]
    )
    assert told[-1] == ENDED
    assert told[:-1] == []


def test_the_host_network_cannot_be_entered() -> None:
    told = confine(["nsenter", f"--net=/proc/{os.getpid()}/ns/net", "true"], stderr=subprocess.DEVNULL)
    assert told != [ENDED]


@pytest.mark.parametrize("whose", [os.getpid(), "os.getppid()"], ids=["the host's", "torkit's"])
def test_the_processes_of_the_host_lend_nothing(whose: object) -> None:
    """They belong to the same user: neither their descriptors nor their root are to be had."""
    told = confine(
        python(
            f"""
            import ctypes, os
            libc = ctypes.CDLL(None, use_errno=True)
            pid = {whose}
            for name in ("root/etc", "cwd", "fd/0", "ns/net"):
                try:
                    os.stat(f"/proc/{{pid}}/{{name}}")
                except PermissionError:
                    continue
                raise SystemExit(name)
            assert libc.syscall(438, os.pidfd_open(pid), 1, 0) == -1  # pidfd_getfd(2)
            assert libc.ptrace(16, pid, 0, 0) == -1  # PTRACE_ATTACH
            """
        )
    )
    assert told == [ENDED]


def test_what_covers_a_file_cannot_be_taken_away() -> None:
    line = "umount /etc/resolv.conf || unshare -Urm umount /etc/resolv.conf"
    assert confine(["sh", "-c", line], stderr=subprocess.DEVNULL) != [ENDED]


def test_inherited_descriptors_are_closed() -> None:
    """One of them may be a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        told = confine(
            python(
                f"""
                import os
                assert sorted(map(int, os.listdir("/proc/self/fd")))[:3] == [0, 1, 2]
                try:
                    os.fstat({theirs.fileno()})
                except OSError:
                    pass
                else:
                    raise SystemExit("it is open")
                """
            ),
            pass_fds=[theirs.fileno()],
        )
    assert told == [ENDED]


@pytest.mark.parametrize("place", ["path", "relative", "abstract"])
def test_services_of_the_host_cannot_be_reached(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {"path": f"{tmp_path}/", "relative": "", "abstract": f"\0torkit-test-{os.getpid()}"}[place]
    with ExitStack() as services:
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            service = services.enter_context(socket.socket(socket.AF_UNIX, kind))
            service.bind(f"{before}{int(kind)}")
            if kind != socket.SOCK_DGRAM:
                service.listen()
        told = confine(
            python(
                f"""
                import socket
                for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
                    try:
                        socket.socket(socket.AF_UNIX, kind).connect({before!r} + str(int(kind)))
                    except ConnectionRefusedError:
                        continue
                    raise SystemExit("connected")
                """
            )
        )
    assert told == [ENDED]


def mounting(source: Path, place: Path, flags: str) -> list[str]:
    """A host where `source` is mounted at `place`, too."""
    return ["unshare", flags, "sh", "-c", f'mount --bind {source} {place} && exec "$@"', "sh"]


@pytest.mark.parametrize("what", ["its directory", "a directory above", "itself", "itself, of another host"])
def test_a_service_of_the_host_cannot_be_reached_where_its_socket_is_mounted_too(
    what: str, tmp_path: Path
) -> None:
    """As a container is lent the socket of its engine."""
    folder, elsewhere = tmp_path / "a b" / "c", tmp_path / "else where"
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(folder / "s"))
        service.listen()
        if what.startswith("itself"):
            elsewhere.touch()
            source, path = folder / "s", elsewhere
        else:
            elsewhere.mkdir()
            source = folder if what == "its directory" else folder.parent
            path = elsewhere / (folder / "s").relative_to(source)
        quoted = (Path(f"'{source}'"), Path(f"'{elsewhere}'"))
        told = confine(
            python(
                f"""
                import socket, stat, os
                try:
                    socket.socket(socket.AF_UNIX).connect({str(path)!r})
                except ConnectionRefusedError:
                    raise SystemExit(3)
                """
            ),
            within=mounting(*quoted, "-Urmn" if "host" in what else "-Urm"),
        )
    assert told == [{"code": 3}]


only_who_may_write_to_run = pytest.mark.skipif(not os.access("/run", os.W_OK), reason="it is the system's")


@only_who_may_write_to_run
def test_a_socket_in_run_is_reached_neither_by_its_path_nor_from_a_working_directory_there() -> None:
    path = f"/run/torkit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(path)
        service.listen()
        code = (
            f"import os; raise SystemExit(any(map(os.path.exists, ({path!r}, {os.path.basename(path)!r}))))"
        )
        try:
            assert confine(python(code), cwd="/run") == [ENDED]
        finally:
            os.unlink(path)


@only_who_may_write_to_run
def test_what_is_in_run_later_is_not_there_and_services_never_are(tmp_path: Path) -> None:
    """A daemon that restarts makes its socket anew, which no cover outlives."""
    is_running, is_made, later = (
        tmp_path / "running",
        tmp_path / "made",
        Path(f"/run/torkit-test-{os.getpid()}"),
    )

    def start_late() -> None:
        wait_until(is_running.exists)
        later.mkdir()
        is_made.touch()

    daemon = threading.Thread(target=start_late)
    daemon.start()
    told = confine(
        python(
            f"""
            import os, time
            open({str(is_running)!r}, "x").close()
            while not os.path.exists({str(is_made)!r}):
                time.sleep(0.01)
            assert os.path.isdir("/run/lock")
            assert not os.path.exists({str(later)!r})
            assert not {{*os.listdir("/run")}} & {{*{SERVICES!r}}}
            """
        )
    )
    daemon.join()
    later.rmdir()
    assert told == [ENDED]


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_the_umask_is_the_commands_and_what_covers_files_does_not_heed_it(umask: int) -> None:
    """Under 077 nobody but root could look into /run."""
    told = confine(
        python(
            f"""
            import os, stat
            assert os.umask(0) == {umask}
            assert stat.S_IMODE(os.stat("/run").st_mode) == 0o755
            assert stat.S_IMODE(os.stat("/etc/resolv.conf").st_mode) == 0o444
            """
        ),
        umask=umask,
    )
    assert told == [ENDED]


def test_the_agent_that_holds_keys_can_be_connected_to(tmp_path: Path) -> None:
    path = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(path))
        agent.listen()
        told = confine(
            python(f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"),
            environment={**os.environ, "SSH_AUTH_SOCK": str(path)},
        )
    assert told == [ENDED]


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        *(("/run/user/1/bus", False), ("/run/user/1/wayland-0", True), ("/tmp/.X11-unix/X0", True)),
        *(("/run/user/1/gnupg/S.gpg-agent", True), ("/run/user/1/gnupg/S.dirmngr", False), ("/agent", True)),
    ],
)
def test_agents_and_displays_are_kept(path: str, kept: bool) -> None:
    assert is_kept(path, {"SSH_AUTH_SOCK": "/agent", "XDG_RUNTIME_DIR": "/run/user/1"}) is kept


def test_only_the_hosts_line_of_nsswitch_conf_changes() -> None:
    given = "passwd: files systemd\n hosts: files mdns4_minimal [NOTFOUND=return] resolve dns\nhosts:  x\n"
    assert with_our_hosts_line(given) == "passwd: files systemd\nhosts: files dns\n"


def test_root_is_no_user_of_root_rights() -> None:
    told = confine(
        python(
            """
            status = dict(line.split(":", 1) for line in open("/proc/self/status"))
            assert status["NoNewPrivs"].strip() == "1"
            bounding = int(status["CapBnd"], 16)
            assert not bounding & (1 << 12 | 1 << 13 | 1 << 21)  # NET_ADMIN, NET_RAW, SYS_ADMIN
            """
        )
    )
    assert told == [ENDED]


def test_a_command_that_cannot_be_run_is_told() -> None:
    [told] = confine(["/etc/passwd"])
    assert (told["error"], told["message"]) == ("CannotRun", "/etc/passwd: Permission denied")


def test_where_namespaces_are_forbidden_nothing_runs_and_the_hint_says_how(tmp_path: Path) -> None:
    """A user namespace may forbid those below it."""
    ran = tmp_path / "ran"
    told = subprocess.run(
        [
            *("unshare", "-Ur", "sh", "-c", 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"', "sh"),
            *python(
                f"""
                from torkit.namespaces import Child
                child = Child.start(["touch", {str(ran)!r}], {{}})
                try:
                    child.take_sockets()
                except Exception as error:
                    print(type(error).__name__, error.hint)
                child.wait()
                """
            ),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert told.stdout == "NotPossible as root: sysctl user.max_user_namespaces=15000\n"
    assert not ran.exists()


def test_obstacles_are_named() -> None:
    message, hint = explain("make a network", RedirectionError("nftables is not installed"))
    assert (message, "apt-get install nftables" in hint) == ("nftables is not installed", True)
    message, _ = explain("make namespaces", OSError(EPERM, ""))
    assert message == "the system does not let us make namespaces: Operation not permitted"
    assert explain("make namespaces", OSError(ENOSPC, ""))[1]
