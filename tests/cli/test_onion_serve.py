"""`torkit onion serve`, `new` and `address`: what they take, the files of a service, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from onion_network import onion_network
from waiting import until

from torkit.cli.onion_ports import parse_limits, parse_ports
from torkit.cli.onion_serve import serve_one
from torkit.cli.onion_services import MAX_FILE_LEN, read_services
from torkit.errors import StorageError, UsageError
from torkit.hs.address import encode_address, parse_address
from torkit.hs.client_auth import encode_authorized_client
from torkit.hs.keyfiles import HOSTNAME_FILE, KEY_FILE, PUBLIC_FILE
from torkit.hs.service_messages import DosLimits
from torkit.net.hosting.forward import Target
from torkit.net.hosting.keys import load_clients, load_key, make_key


def torkit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torkit", "onion", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_ports_and_what_is_behind_them() -> None:
    assert parse_ports(
        ["80:127.0.0.1:8080", "443:[::1]:8443", "22", "25:2525", "7:unix:/run/s\udcff", "9:localhost:9"]
    ) == {
        80: Target("127.0.0.1", 8080),
        443: Target("::1", 8443),
        22: Target("127.0.0.1", 22),
        25: Target("127.0.0.1", 2525),
        7: Target("/run/s\udcff"),
        9: Target("127.0.0.1", 9),
    }
    assert [str(target) for target in parse_ports(["1:[::1]:2", "3:4", "5:unix:/x"]).values()] == [
        "[::1]:2",
        "127.0.0.1:4",
        "unix:/x",
    ]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":80",
            "0",
            "65536",
            "http:8080",
            "80:",
            "80:0",
            "80:127.0.0.1",
            "80:127.0.0.1:99999",
            "80:unix:",
        ),
        *("80:example.com:80", "80:http://127.0.0.1:80", "80:::1:80", f"80:unix:/{'x' * 107}", "-1:80", "٣"),
    ],
)
def test_what_is_no_port_or_no_server_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ports([text])
    with pytest.raises(UsageError, match="twice"):
        parse_ports(["80:1", "80:2"])


def test_limits_are_a_rate_and_no_smaller_burst() -> None:
    assert parse_limits("25:200") == DosLimits(25, 200)
    for text in ("", "25", "25:", ":200", "0:5", "30:20", "1:2147483648", "-1:5", "1.5:2", "a:b"):
        with pytest.raises(UsageError):
            parse_limits(text)


def test_a_key_is_made_read_and_never_overwritten(tmp_path: Path) -> None:
    here = tmp_path / "service"
    made = torkit("new", str(here))
    assert made.returncode == 0
    assert made.stdout == (here / HOSTNAME_FILE).read_text()
    assert here.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in here.iterdir()} == dict.fromkeys(
        (KEY_FILE, PUBLIC_FILE, HOSTNAME_FILE), 0o600
    )
    before = (here / KEY_FILE).read_bytes()
    again = torkit("new", str(here))
    assert (again.returncode, again.stdout) == (1, "")
    assert "File exists" in again.stderr
    assert (here / KEY_FILE).read_bytes() == before
    for named in (here, here / KEY_FILE):
        assert torkit("address", str(named)).stdout == made.stdout


def test_files_that_do_not_belong_together_or_to_us_alone_are_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    key = make_key(one)
    assert load_key(one).public == key.public
    make_key(other)
    with pytest.raises(StorageError, match="no such file"):
        load_key(tmp_path)
    (one / KEY_FILE).chmod(0o640)
    with pytest.raises(StorageError, match="may be read by others"):
        load_key(one)
    (one / KEY_FILE).chmod(0o600)
    (one / HOSTNAME_FILE).write_bytes((other / HOSTNAME_FILE).read_bytes())
    with pytest.raises(StorageError, match="another service's address"):
        load_key(one)
    (one / PUBLIC_FILE).write_bytes((other / PUBLIC_FILE).read_bytes())
    with pytest.raises(UsageError, match="two services"):
        load_key(one)
    (one / KEY_FILE).write_bytes(b"short")
    with pytest.raises(UsageError, match="96 bytes"):
        load_key(one)
    (one / KEY_FILE).unlink()
    os.mkfifo(one / KEY_FILE)
    with pytest.raises(StorageError, match="not a regular file"):
        load_key(one)
    refused = torkit("serve", "--key", str(one), "80")
    assert refused.returncode == 1
    assert refused.stdout == ""


def test_a_broken_line_for_a_client_opens_the_service_to_nobody(tmp_path: Path) -> None:
    assert load_clients(tmp_path) == []
    clients = tmp_path / "authorized_clients"
    clients.mkdir()
    assert load_clients(tmp_path) == []
    (clients / "one.auth").write_text(encode_authorized_client(b"c" * 32))
    (clients / "note.txt").write_text("not read")
    assert load_clients(tmp_path) == [b"c" * 32]
    (clients / "two.auth").write_text("descriptor:x25519:short")
    with pytest.raises(StorageError, match=r"two\.auth"):
        load_clients(tmp_path)


def test_an_address_is_that_of_its_key(tmp_path: Path) -> None:
    key = make_key(tmp_path / "service")
    assert (tmp_path / "service" / HOSTNAME_FILE).read_text() == encode_address(key.public) + "\n"


# --- Several services in one process ---------------------------------------------------------------------

SERVICES = """
[web]
ports = ["80:127.0.0.1:8080", "443:unix:/run/web"]
key = "keys/web"
pow = true
intro-limit = "25:200"

[chat]
ports = ["5222"]
"""


def test_a_file_names_several_services(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    key = make_key(tmp_path / "keys" / "web")
    file = tmp_path / "services.toml"
    file.write_text(SERVICES)
    web, chat = read_services(file)
    assert (web.name, chat.name) == ("web", "chat")
    assert web.targets == {80: Target("127.0.0.1", 8080), 443: Target("/run/web")}
    assert chat.targets == {5222: Target("127.0.0.1", 5222)}
    assert web.key is not None
    assert web.key.public == key.public  # from where the file is
    assert chat.key is None
    assert web.wishes.limits == DosLimits(25, 200)
    assert (web.wishes.proof_of_work, chat.wishes.proof_of_work) == (True, False)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names 0 services"),
        ("[web", "services.toml"),
        ("web = 80", r"\[web\] is no table"),
        ("[web]", "wants ports"),
        ("[web]\nports = []", "wants ports"),
        ("[web]\nports = [80]", "wants ports"),
        ('[web]\nports = ["x"]', r"\[web\] 'x' begins with no port"),
        ('[web]\nports = ["80"]\npow = 1', "pow is true or false"),
        ('[web]\nports = ["80"]\nkey = 1', "key is a text"),
        ('[web]\nports = ["80"]\nintro-limit = "1"', "intro-limit"),
        ('[web]\nports = ["80"]\nprot = 1', "'prot', which is unknown"),
        ('["\\u001b"]\nports = ["80"]', "cannot be printed"),
        ('[""]\nports = ["80"]', "cannot be printed"),
        ('[web]\nports = ["80"]\nkey = "a\\u0000b"', "no name of a directory"),
        ('[web]\nports = ["80:unix:a\\u0000b"]', "unix: wants a path"),
        (f'[web]\nports = ["80"]\nintro-limit = "{"9" * 5000}:1"', "RATE:BURST"),
        (f"web = {'9' * 5000}", "a number is too long"),
        (f"web = {'[' * 100_000}", "brackets are too deep"),
        ("".join(f'[s{n}]\nports = ["80"]\n' for n in range(65)), "names 65 services"),
        ("#" * (MAX_FILE_LEN + 1), "more than"),
    ],
)
def test_a_file_that_names_no_services_is_refused(text: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "services.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=why):
        read_services(file)


def test_one_key_serves_once_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    file = tmp_path / "services.toml"
    with pytest.raises(StorageError):
        read_services(file)
    one = '[{}]\nports = ["80"]\nkey = "{}"\n'
    file.write_text(one.format("a", "key") + one.format("b", "./key"))
    with pytest.raises(UsageError, match="the same key"):
        read_services(file)
    file.write_text(one.format("a", "nothing"))
    with pytest.raises(StorageError, match="no such file"):
        read_services(file)
    file.write_text(one.format("a", "x" * 5000))
    with pytest.raises(StorageError, match="File name too long"):
        read_services(file)
    for arguments in (["80"], ["--pow"], ["--key", "key"], ["--intro-limit", "1:1"]):
        refused = torkit("serve", "--services", str(file), *arguments)
        assert refused.returncode == 2
        assert "neither ports nor" in refused.stderr
    assert torkit("serve").returncode == 2


async def test_each_service_is_told_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "services.toml"
    file.write_text('[one]\nports = ["80"]\n[two]\nports = ["81"]\n')
    out = ""
    async with onion_network(tmp_path / "data") as (tor, _), trio.open_nursery() as nursery:
        for service in read_services(file):
            nursery.start_soon(serve_one, tor, service)

        def has_told() -> bool:
            nonlocal out
            out += capsys.readouterr().out
            return out.count("\n") == 2

        await until(has_told)
        nursery.cancel_scope.cancel()
    told = dict(line.split("\t") for line in out.splitlines())
    assert told.keys() == {"one", "two"}
    assert all(parse_address(address) for address in told.values())
