"""torkit.blocking: real sockets out of a client in a thread, over scripted relays."""

import errno
import fcntl
import hashlib
import http.client
import os
import select
import signal
import smtplib
import socket
import socketserver
import subprocess
import sys
import termios
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3.connection
from doors import HOST, RunningNetwork, tls_contexts
from network.servers import PAGE, SinkServer, TargetServer
from waiting import wait_until

from torkit import blocking
from torkit.errors import EndReason, NoDirectory, StreamClosed, TorkitError, UsageError
from torkit.net import door
from torkit.socket_errors import os_error
from torkit.testing.relay import FakeStream, ignore

GET = b"GET /page HTTP/1.0\r\n\r\n"
MUCH = 500_000  # bytes, more than fits into the socket of a program, and no XOFF for what is left


def read_all(sock: socket.socket) -> bytes:
    with sock.makefile("rb") as file:
        return file.read()


def receive_into(received: bytearray, sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        received += data


def sent_and(then: Callable[[FakeStream], object]) -> Callable[[FakeStream], object]:
    """An exit that says MUCH, and `then` acts."""

    def begin(stream: FakeStream) -> None:
        stream.connected("192.0.2.1")
        stream.write(b"x" * MUCH)
        then(stream)

    return begin


def test_a_connection_is_a_real_socket(tor: blocking.Tor) -> None:
    with tor.connect("web.test", 80) as sock:
        assert isinstance(sock, socket.socket)
        assert sock.gettimeout() is None
        sock.sendall(GET)
        assert select.select([sock], [], [], 10)[0] == [sock]
        assert read_all(sock).endswith(PAGE)
        assert sock.recv(1) == b""


def test_bursts_wait_in_the_kernel_for_a_program_that_reads_late(
    tor: blocking.Tor, network: RunningNetwork
) -> None:
    """While it has room for them, no Python runs for them."""
    length = 300_000

    def burst(stream: FakeStream) -> None:
        stream.connected("192.0.2.1")
        stream.write(bytes(length))

    network.exits["burst.test"] = burst
    with tor.connect("burst.test", 80) as sock:
        wait_until(lambda: unread(sock) == length)


def unread(sock: socket.socket) -> int:
    """How many bytes the kernel holds for a program to read."""
    count = array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


def test_bytes_arrive_whole_in_both_directions(tor: blocking.Tor, sink: SinkServer) -> None:
    sink.gate.set()
    data = os.urandom(1 << 20)
    with tor.connect("echo.test", 80) as sock:
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        received = bytearray()
        while len(received) < len(data):
            received += sock.recv(1 << 16)
        sender.join()
        assert bytes(received) == data
    with tor.connect("sink.test", 80) as sock:
        sock.sendall(data)  # and is closed at once: nothing of it may be lost
    assert sink.uploads.get(timeout=30) == (len(data), hashlib.sha256(data).hexdigest())


def test_isolation_is_by_value_and_by_object(tor: blocking.Tor, network: RunningNetwork) -> None:
    def circuit(client: blocking.Tor, isolation: object = None) -> int:
        client.connect("echo.test", 80, isolation=isolation).close()
        return network.circuits[-1]

    other = tor.isolated()
    one = circuit(tor, "one")
    assert circuit(tor, "one") == one
    apart = circuit(other, "one")
    assert len({one, apart, circuit(tor, "two"), circuit(tor)}) == 4
    assert circuit(other, "one") == apart
    tor.new_identity()
    assert circuit(tor, "one") != one


# --- libraries that take a socket, or make one --------------------------------------------------------------


def test_http_client_connects_through_it(tor: blocking.Tor) -> None:
    connection = http.client.HTTPConnection("web.test", 80, timeout=30)
    connection._create_connection = tor.create_connection  # type: ignore[attr-defined]  # as docs/library.md
    connection.request("GET", "/page")
    assert connection.getresponse().read() == PAGE
    connection.close()


def test_urllib3_connects_through_it(tor: blocking.Tor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection(urllib3.connection.HTTPConnection):
        def _new_conn(self) -> socket.socket:
            sock = tor.create_connection((self.host, self.port), self.timeout)
            for option in self.socket_options or ():
                sock.setsockopt(*option)
            return sock

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "ConnectionCls", Connection)
    with urllib3.PoolManager() as pool:
        assert pool.request("GET", "http://web.test/page").data == PAGE


@contextmanager
def serving(handle: Callable[[Any], None]) -> Iterator[int]:
    class Server(TargetServer):
        class handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                handle(self.request)

    with Server() as server:
        yield server.port


def test_ssl_wraps_it(tor: blocking.Tor, network: RunningNetwork, tmp_path: Path) -> None:
    server_context, context = tls_contexts(tmp_path)

    def answer(sock: socket.socket) -> None:
        with server_context.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(tls.recv(100).upper())
            tls.unwrap()

    with serving(answer) as port:
        network.servers["web.test:443"] = port
        plain = tor.create_connection(("web.test", 443), 30)
        with context.wrap_socket(plain, server_hostname="web.test") as tls:
            tls.sendall(b"hello")
            assert read_all(tls) == b"HELLO"


def test_smtplib_connects_through_it(tor: blocking.Tor, network: RunningNetwork) -> None:
    class Mail(smtplib.SMTP):
        def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
            return tor.create_connection((host, port), timeout)

    def answer(sock: socket.socket) -> None:
        sock.sendall(b"220 ready\r\n")
        for line in sock.makefile("rb"):
            sock.sendall(b"221 bye\r\n" if line.upper().startswith(b"QUIT") else b"250 yes\r\n")

    with serving(answer) as port:
        network.servers["mail.test"] = port
        with Mail("mail.test", 80, local_hostname="localhost", timeout=30) as mail:
            assert mail.noop() == (250, b"yes")


def test_paramiko_takes_it(tor: blocking.Tor, network: RunningNetwork) -> None:
    paramiko = pytest.importorskip("paramiko")

    def answer(sock: socket.socket) -> None:
        transport = paramiko.Transport(sock)
        transport.add_server_key(paramiko.ECDSAKey.generate())
        transport.start_server(server=paramiko.ServerInterface())
        transport.join(30)

    with serving(answer) as port:
        network.servers["ssh.test"] = port
        client = paramiko.Transport(tor.connect("ssh.test", 80, timeout=30))
        client.start_client(timeout=30)
        assert client.get_remote_server_key().get_name().startswith("ecdsa")
        client.close()


def test_a_source_address_is_refused(tor: blocking.Tor) -> None:
    with pytest.raises(UsageError, match="no source address"):
        tor.create_connection(("web.test", 80), 5, ("127.0.0.1", 0))


# --- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (EndReason.CONNECTREFUSED, ConnectionRefusedError),
        (EndReason.TIMEOUT, TimeoutError),
        (EndReason.CONNRESET, ConnectionResetError),
        (EndReason.RESOLVEFAILED, socket.gaierror),
    ],
)
def test_a_refusal_is_the_error_of_sockets(
    tor: blocking.Tor, network: RunningNetwork, reason: EndReason, kind: type[OSError]
) -> None:
    network.exits["no.test"] = lambda stream: stream.end(reason)
    with pytest.raises(kind) as caught:
        tor.connect("no.test", 80)
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, StreamClosed)
    assert caught.value.__cause__.reason is reason
    assert "no.test" not in str(caught.value)


def test_every_error_of_torkit_is_one_of_sockets() -> None:
    def classes(root: type[TorkitError]) -> Iterator[type[TorkitError]]:
        yield root
        for one in root.__subclasses__():
            yield from classes(one)

    assert os_error(UsageError("x")).errno == errno.EINVAL
    assert os_error(NoDirectory("x")).errno == errno.ENETUNREACH
    for kind in set(classes(TorkitError)):
        error = kind.__new__(kind)
        TorkitError.__init__(error, "why", hint="what to do")
        error.__dict__.update(reason=EndReason.EXITPOLICY, step=None)
        made = os_error(error)
        assert made.__cause__ is error
        assert str(made).endswith("why; what to do")


def test_a_name_that_no_exit_can_reach_is_refused(tor: blocking.Tor) -> None:
    with pytest.raises(OSError, match="host") as caught:
        tor.connect("not a name", 80)
    assert isinstance(caught.value.__cause__, UsageError)
    with pytest.raises(socket.gaierror):
        tor.connect("no-address.onion", 80)


def test_a_time_out_ends_the_attempt_and_holds_for_the_socket(
    tor: blocking.Tor, network: RunningNetwork
) -> None:
    network.exits["mute.test"] = ignore
    count = network.ended.count("mute.test")
    with pytest.raises(TimeoutError):
        tor.connect("mute.test", 80, timeout=0.3)
    wait_until(lambda: network.ended.count("mute.test") == count + 1)
    with tor.create_connection(("silent.test", 80), 0.2) as sock:
        assert sock.gettimeout() == 0.2
        with pytest.raises(TimeoutError):
            sock.recv(1)
    with tor.create_connection(("silent.test", 80), None) as sock:
        assert sock.gettimeout() is None


def test_what_arrived_is_read_before_a_reset(tor: blocking.Tor, network: RunningNetwork) -> None:
    network.exits["cut.test"] = sent_and(lambda stream: stream.finish(EndReason.CONNRESET))
    with tor.connect("cut.test", 80, timeout=30) as sock:
        received = bytearray()
        with pytest.raises(ConnectionResetError):
            receive_into(received, sock)
        assert len(received) == MUCH


def test_what_arrived_is_read_before_the_end(tor: blocking.Tor, network: RunningNetwork) -> None:
    """Also where the program has sent something that nobody takes any more."""
    network.exits["whole.test"] = sent_and(lambda stream: stream.finish())
    with tor.connect("whole.test", 80, timeout=30) as sock:
        wait_until(lambda: any(passage._stream.has_ended for passage in tor._thread._door.passages))
        sock.sendall(b"who reads this?")
        assert len(read_all(sock)) == MUCH


def test_a_circuit_that_fails_resets_the_socket(tor: blocking.Tor, network: RunningNetwork) -> None:
    network.exits["lost.test"] = sent_and(lambda stream: stream.circuit.destroy())
    with (
        tor.connect("lost.test", 80, isolation=object(), timeout=30) as sock,
        pytest.raises(ConnectionResetError),
    ):
        receive_into(bytearray(), sock)


def test_a_socket_that_is_closed_ends_its_stream(tor: blocking.Tor, network: RunningNetwork) -> None:
    network.servers["gone.test"] = network.servers["silent.test"]
    count = network.ended.count("gone.test")
    tor.connect("gone.test", 80).close()
    wait_until(lambda: network.ended.count("gone.test") == count + 1)
    with tor.connect("gone.test", 80) as sock:
        sock.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: network.ended.count("gone.test") == count + 2)


def test_half_closed_and_then_closed(
    network: RunningNetwork, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "KEEPALIVE_INTERVAL", 0.05)
    network.servers["half.test"] = network.servers["silent.test"]
    with blocking.open_tor(network=network.file, data_dir=data_dir) as tor:
        sock = tor.connect("half.test", 80)
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
        assert "half.test" not in network.ended
        sock.close()
        wait_until(lambda: "half.test" in network.ended)


# --- the client's own end -----------------------------------------------------------------------------------


def test_a_closed_client_says_so(network: RunningNetwork, data_dir: Path) -> None:
    with blocking.open_tor(network=network.file, data_dir=data_dir) as tor:
        echo = tor.connect("echo.test", 80)
        echo.sendall(b"before")
        wait_until(lambda: select.select([echo], [], [], 0)[0])
        network.exits["mute.test"] = ignore
        failures: list[BaseException] = []

        def wait() -> None:
            try:
                tor.connect("mute.test", 80)
            except OSError as error:
                failures.append(error)

        count = network.begun.count(("mute.test", 80))
        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_until(lambda: network.begun.count(("mute.test", 80)) > count)
    waiting.join(10)
    assert isinstance(failures[0].__cause__, UsageError)
    tor.close()
    with echo:
        assert echo.recv(100) == b"before"
        with pytest.raises(ConnectionResetError):
            echo.recv(1)
    with pytest.raises(OSError, match="closed"):
        tor.connect("web.test", 80)
    with pytest.raises(OSError, match="closed"):
        tor.new_identity()


def test_errors_of_opening_are_those_of_open_tor(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        blocking.open_tor(network=tmp_path / "nowhere.toml")


def test_several_clients_in_one_process(tor: blocking.Tor, network: RunningNetwork, data_dir: Path) -> None:
    with blocking.open_tor(network=network.file, data_dir=data_dir) as other:
        socks = [client.connect("echo.test", 80, timeout=30) for client in (tor, other, tor, other)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%d" % number)
        assert [sock.recv(10) for sock in socks] == [b"0", b"1", b"2", b"3"]
    with socks[1], socks[3], pytest.raises(ConnectionResetError):
        socks[1].recv(1)
    with socks[0], socks[2]:
        socks[0].sendall(b"still there")
        assert socks[0].recv(100) == b"still there"


def test_an_interrupted_call_leaves_nothing_behind(tor: blocking.Tor, network: RunningNetwork) -> None:
    network.exits["mute.test"] = ignore
    ended, begun = network.ended.count("mute.test"), network.begun.count(("mute.test", 80))

    def interrupt() -> None:
        wait_until(lambda: network.begun.count(("mute.test", 80)) > begun)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        tor.connect("mute.test", 80)
    wait_until(lambda: network.ended.count("mute.test") == ended + 1)


CHILD = """
import os, sys
from torkit import blocking

tor = blocking.open_tor()
sock = tor.connect("echo.test", 80, timeout=30)
if sys.argv[1] == "fork":
    if os.fork() == 0:
        for call in lambda: tor.connect("echo.test", 80), tor.new_identity:
            try:
                call()
            except OSError as error:
                assert "parent" in str(error), error
            else:
                sys.exit(1)
        tor.close()                                    # which closes nothing of the parent's
        sock.sendall(b"child")                         # a socket is shared, as every one
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    assert sock.recv(10) == b"child"
    sock.sendall(b"parent")
    assert sock.recv(10) == b"parent"
    child = os.fork()
    if child == 0:                                     # a child that stays must hide no end from the parent
        sys.stdin.read(1)
        os._exit(0)
    tor.close()
    sock.settimeout(20)
    try:
        assert sock.recv(1) == b"", "data"
    except ConnectionResetError:
        pass
    os.write(int(sys.argv[2]), b"x")
    os.wait()
print("done")
"""


@pytest.mark.parametrize("what", ["fork", "exit"])
def test_a_child_process_and_the_end_of_the_interpreter(
    network: RunningNetwork, data_dir: Path, what: str
) -> None:
    """With a socket that is open, and a client that nobody closes."""
    network.exits.pop("echo.test", None)
    environment = os.environ | {"TORKIT_NETWORK": str(network.file), "TORKIT_DATA_DIR": str(data_dir)}
    ours, theirs = os.pipe()
    with open(theirs, "wb") as end, open(ours, "rb") as start:
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-c", CHILD, what, str(theirs)],
            env=environment,
            stdin=start,
            pass_fds=[theirs],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert end
    assert (ended.returncode, ended.stdout) == (0, b"done\n"), ended.stderr
    assert b"Traceback" not in ended.stderr
    assert (data_dir / "state.json").exists()


def test_nobody_is_asked_for_a_name(tor: blocking.Tor, names_asked_for: list[object]) -> None:
    """What the fixture that watches all these tests would see."""
    with pytest.raises(socket.gaierror):
        socket.create_connection(("web.test", 80))
    assert names_asked_for.pop() == ("getaddrinfo", "web.test")
    assert socket.getaddrinfo(HOST, 80)
