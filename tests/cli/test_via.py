"""`--via`: what it takes, what it excludes, and that nothing goes on without the proxy."""

import socket
from pathlib import Path

import pytest
from cli.shelf import Shelf

from torkit.cli.failures import NO_BOOTSTRAP, WRONG_USAGE
from torkit.cli.via import Proxy, parse_via
from torkit.errors import UsageError
from torkit.proto.socks_client import Credentials

ME = Credentials(b"me", b"a:b@c")


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("127.0.0.1:9150", Proxy(("127.0.0.1", 9150))),
        ("9150", Proxy(("127.0.0.1", 9150))),
        ("localhost:9150", Proxy(("127.0.0.1", 9150))),
        ("[::1]:9150", Proxy(("::1", 9150))),
        ("unix:/run/a@b", Proxy("/run/a@b")),
        ("me:a:b@c@127.0.0.1:9150", Proxy(("127.0.0.1", 9150), ME)),
        ("me:a:b@c@unix:/run/a@b", Proxy("/run/a@b", ME)),
        ("me@9150", Proxy(("127.0.0.1", 9150), Credentials(b"me", b""))),
        ("m\udcff:\udcfe@9150", Proxy(("127.0.0.1", 9150), Credentials(b"m\xff", b"\xfe"))),  # no UTF-8
    ],
)
def test_ways_to_name_a_proxy(text: str, proxy: Proxy) -> None:
    assert parse_via(text, allow_remote=False) == proxy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "0",
        "127.0.0.1",
        "proxy.test:9150",
        "socks5://127.0.0.1:9150",
        "@9150",
        f"{'x' * 256}@9150",
    ],
)
def test_what_names_none(text: str) -> None:
    with pytest.raises(UsageError, match="--via"):
        parse_via(text, allow_remote=False)


def test_another_machine_is_refused_or_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="not encrypted") as caught:
        parse_via("192.0.2.1:9150", allow_remote=False)
    assert "--allow-remote" in str(caught.value.hint)
    assert parse_via("192.0.2.1:9150", allow_remote=True) == Proxy(("192.0.2.1", 9150))
    assert "another machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        *("--path=a,b,c", "--entry-nodes=a", "--exit-nodes=a", "--exclude-nodes=a"),
        *("--padding=off", "--max-memory=64M"),
    ],
)
@pytest.mark.parametrize("command", ["connect", "resolve"])
def test_options_that_are_the_proxys_are_refused(shelf: Shelf, command: str, option: str) -> None:
    status, _, err = shelf(command, "--via", "9150", option, "web.test:80")
    assert status == WRONG_USAGE
    assert f"{option.partition('=')[0]} has no use beside --via" in err


def test_a_permission_without_a_proxy_is_refused(shelf: Shelf) -> None:
    assert shelf("connect", "--allow-remote", "web.test:80")[0] == WRONG_USAGE


@pytest.mark.parametrize("command", [["connect", "-z", "web.test:80"], ["resolve", "web.test"]])
def test_without_the_proxy_nothing_goes_on(shelf: Shelf, command: list[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for place in (str(port), f"unix:{tmp_path}/nothing"):
        status, out, err = shelf(command[0], "--via", place, *command[1:])
        assert (status, out) == (NO_BOOTSTRAP, "")
        assert "no proxy can be reached" in err
        assert not (shelf.path / "data").exists()


@pytest.mark.parametrize("target", ["localhost:80", "10.0.0.1:22", "web.exit:80"])
def test_what_no_exit_can_reach_is_refused_before_the_proxy_is_asked(shelf: Shelf, target: str) -> None:
    status, _, err = shelf("connect", "--via", "1", target)
    assert status == WRONG_USAGE
    assert "no proxy" not in err
