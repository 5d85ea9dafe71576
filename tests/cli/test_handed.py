"""Sockets that a service manager hands over: which kind each is, and what is refused."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from torkit.cli import handed
from torkit.cli.handed import handed_over
from torkit.cli.listen import listening, parse_places
from torkit.errors import UsageError


@pytest.fixture(autouse=True)
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """Six that are handed over, with descriptors in a row."""
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "proxy"))
    unix.listen()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    made = [
        *(socket.create_server(("127.0.0.1", 0)) for _ in range(3)),
        socket.create_server(("::1", 0), family=socket.AF_INET6),
        *(unix, udp),
    ]
    first = 200
    for number, sock in enumerate(made):
        os.dup2(sock.fileno(), first + number)
    monkeypatch.setattr(handed, "FIRST", first)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", str(len(made)))
    monkeypatch.setenv("LISTEN_FDNAMES", "a:trans:auth:b:c:d")
    yield made
    for number, sock in enumerate(made):
        sock.close()
        with suppress(OSError):
            os.close(first + number)


def test_each_is_of_the_kind_that_it_or_its_name_says(sockets: list[socket.socket], tmp_path: Path) -> None:
    places = parse_places(["systemd"], allow_remote=False)
    kinds = ["proxy", "trans", "auth", "proxy", "unix", "dns"]
    assert [place.kind for place in places] == kinds
    ports = [sock.getsockname()[1] for sock in sockets if sock.family != socket.AF_UNIX]
    assert [place.port for place in places if place.kind != "unix"] == ports
    assert places[4].name == f"unix:{tmp_path}/proxy"
    assert not any(os.get_inheritable(200 + number) for number in range(len(sockets)))


def test_some_may_be_named_and_have_an_isolation_of_their_own() -> None:
    [plain, rotating] = parse_places(["systemd:a", "systemd:b,rotate=10m"], allow_remote=False)
    assert (plain.host, plain.isolation) == ("127.0.0.1", None)
    assert rotating.host == "::1"
    assert rotating.isolation is not None


def test_a_unix_socket_of_somebody_elses_stays(tmp_path: Path) -> None:
    [place] = parse_places(["systemd:c"], allow_remote=False)
    with listening(place) as sock:
        assert sock.getsockname() == f"{tmp_path}/proxy"
    assert (tmp_path / "proxy").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"LISTEN_PID": "1"}, "no service manager"),
        ({"LISTEN_PID": ""}, "no service manager"),
        ({"LISTEN_FDS": "0"}, "not a number"),
        ({"LISTEN_FDS": "-1"}, "not a number"),
        ({"LISTEN_FDS": "65"}, "not a number"),
        ({"LISTEN_FDS": "7"}, "is no socket"),
        ({"LISTEN_FDNAMES": "a"}, "handed over as 'b'"),
        ({"LISTEN_FDNAMES": "::::b"}, None),
    ],
)
def test_what_is_not_handed_over_is_told(changed: dict[str, str], said: str | None) -> None:
    environment = {**os.environ, **changed}
    if said is None:
        assert [one.kind for one in handed_over("b", environment)] == ["unix"]
        return
    with pytest.raises(UsageError, match=said):
        handed_over("" if "FDS" in str(changed) and "NAMES" not in str(changed) else "b", environment)


def test_sockets_that_do_not_listen_are_refused(sockets: list[socket.socket]) -> None:
    with socket.socket() as idle:
        os.dup2(idle.fileno(), 200)
        with pytest.raises(UsageError, match="listens for proxy"):
            handed_over("a", os.environ)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        os.dup2(datagrams.fileno(), 200)
        with pytest.raises(UsageError, match="listens for dns"):
            handed_over("a", os.environ)
    with (Path(__file__)).open() as file:
        os.dup2(file.fileno(), 200)
        with pytest.raises(UsageError, match="no socket"):
            handed_over("a", os.environ)


def test_one_that_other_machines_reach_has_to_be_allowed() -> None:
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        os.dup2(everywhere.fileno(), 200)
        with pytest.raises(UsageError, match="not a loopback"):
            parse_places(["systemd:a"], allow_remote=False)
        assert parse_places(["systemd:a"], allow_remote=True)[0].host == "0.0.0.0"


def test_a_client_that_came_before_the_proxy_was_started_is_heard(tmp_path: Path) -> None:
    """The manager listens; the proxy is started with the first client, which waits for the network."""
    starter = (
        "import os, sys\n"
        "os.dup2(int(sys.argv[1]), 3)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'torkit', *sys.argv[2:]])\n"
    )
    (tmp_path / "network.toml").write_text(
        f'authorities = ["a orport=1 v3ident={"AB" * 20} 127.0.0.1:1 {"CD" * 20}"]\ntesting = true\n'
    )
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        options = ["--network", f"{tmp_path}/network.toml", "--data-dir", f"{tmp_path}/data"]
        arguments = [*options, "socks", "--listen", "systemd", "--json"]
        with subprocess.Popen(
            [sys.executable, "-c", starter, str(server.fileno()), *arguments],
            pass_fds=[server.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
    assert json.loads(line)["progress"] == 0
