"""`--metrics`: where it may be, and what it serves."""

import json
import signal
import socket
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from fake_tor import FakeTor, as_tor

from torkit.cli.listen import Place, listening
from torkit.cli.monitoring import parse_metrics
from torkit.cli.socks import serve
from torkit.errors import UsageError
from torkit.net.progress import Phase, Progress
from torkit.net.proxy import ISOLATION


def test_metrics_are_for_this_machine_unless_others_are_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_metrics("9152", allow_remote=False) == Place("proxy", "127.0.0.1", 9152)
    assert parse_metrics("unix:/run/x", allow_remote=False) == Place("unix", "/run/x")
    with pytest.raises(UsageError, match="not a loopback") as caught:
        parse_metrics("192.0.2.1:9152", allow_remote=False)
    assert "--allow-remote" in (caught.value.hint or "")
    assert capsys.readouterr().err == ""
    assert parse_metrics("192.0.2.1:9152", allow_remote=True).host == "192.0.2.1"
    assert "other machines may see how much" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["dns:53", "auth:9150", "trans:9040", "x", "unix:", "web.test:80"])
def test_other_places_for_metrics_are_refused_by_their_own_name(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--metrics: "):
        parse_metrics(text, allow_remote=False)


async def test_a_start_is_no_health_and_the_place_is_in_the_ready_line(tmp_path: Path) -> None:
    tor = FakeTor(stuck_at=Progress(Phase.CONN, 5))
    ready_file = tmp_path / "ready"
    with listening(Place("proxy", "127.0.0.1", 0)) as sock, listening(Place("proxy", "127.0.0.1", 0)) as told:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(
                    serve,
                    as_tor(tor),
                    [(Place("proxy", "127.0.0.1"), sock)],
                    path=None,
                    isolation=ISOLATION,
                    ready_file=ready_file,
                    metrics=(Place("proxy", "127.0.0.1"), told),
                )
            )
            assert await _get(told, "/healthz") == (503, b"connecting to a directory server\n")
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            tor.stuck_at = None
            metrics = Place("unix", str(tmp_path / "metrics"))
            with listening(metrics) as unix, listening(Place("proxy", "127.0.0.1", 0)) as again:
                nursery.start_soon(
                    partial(
                        serve,
                        as_tor(tor),
                        [(Place("proxy", "127.0.0.1"), again)],
                        path=None,
                        isolation=ISOLATION,
                        ready_file=ready_file,
                        metrics=(metrics, unix),
                    )
                )
                await trio.testing.wait_all_tasks_blocked()
                assert json.loads(ready_file.read_text())["metrics"] == f"unix:{tmp_path}/metrics"
                assert await _get(unix, "/healthz") == (200, b"circuits work\n")
                nursery.cancel_scope.cancel()


async def test_a_proxy_that_is_ending_is_not_healthy(tmp_path: Path) -> None:
    proxy = Place("proxy", "127.0.0.1", 0)
    with listening(proxy) as sock, listening(proxy) as told, socket.socket() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(
                    serve,
                    as_tor(FakeTor(is_silent=True)),
                    [(proxy, sock)],
                    path=None,
                    isolation=ISOLATION,
                    ready_file=None,
                    grace=30,
                    metrics=(proxy, told),
                )
            )
            await trio.testing.wait_all_tasks_blocked()
            client.connect(sock.getsockname())
            client.sendall(b"\x05\x01\x00\x05\x01\x00\x03\x08web.test\x00\x50")
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()
            assert await _get(told, "/healthz") == (503, b"ending\n")
            nursery.cancel_scope.cancel()


async def _get(server: socket.socket, path: str) -> tuple[int, bytes]:
    with trio.socket.socket(server.family) as client, trio.fail_after(10):
        await client.connect(server.getsockname())
        await client.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b""
        while data := await client.recv(4096):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body
