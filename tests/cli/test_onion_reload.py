"""`torkit onion serve --services`: what a SIGHUP changes, and what it leaves as it is."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from onion_network import onion_network
from waiting import until

from torkit.cli import onion_reload
from torkit.cli.onion_reload import Reload
from torkit.cli.onion_serve import serve_one
from torkit.cli.onion_services import Service, read_services
from torkit.net.hosting.keys import make_key

ROOT = Path(__file__).parents[2]

ONE = '[one]\nports = ["80"]\n'


class Services:
    """In the place of `serve_one`: names, as they begin and end. Those in `held` take their time to end."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ending: list[str] = []
        self.ended: list[str] = []
        self.held: dict[str, trio.Event] = {}

    async def serve(self, service: Service) -> None:
        self.begun.append(service.name)
        try:
            await trio.sleep_forever()
        finally:
            self.ending.append(service.name)
            if service.name in self.held:
                with trio.move_on_after(20, shield=True):
                    await self.held[service.name].wait()
            self.ended.append(service.name)


def sayings(capsys: pytest.CaptureFixture[str]) -> Callable[[str], bool]:
    """Gives whether something has been said, and not asked for before."""
    said = ""

    def has_said(what: str) -> bool:
        nonlocal said
        said += capsys.readouterr().err
        before, found, after = said.partition(what)
        said = after if found else before
        return bool(found)

    return has_said


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onion_reload, "REST", 0)


async def test_services_end_and_begin_while_the_streams_of_another_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One begins with the key of one that ends: directories have to take its descriptor as the newer one."""
    file = tmp_path / "services.toml"
    make_key(tmp_path / "key")
    told: dict[str, str] = {}

    def are_told(*names: str) -> bool:
        for line in capsys.readouterr().out.splitlines():
            name, address = line.split("\t")
            assert name not in told
            told[name] = address
        return told.keys() == set(names)

    [server] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with server, onion_network(tmp_path / "data") as (tor, net), trio.open_nursery() as nursery:
        stays = f'[stays]\nports = ["80:{server.socket.getsockname()[1]}"]\n'
        file.write_text(stays + '[goes]\nports = ["81"]\nkey = "key"\n')
        reload = Reload(file)
        nursery.start_soon(reload.run, read_services(file), partial(serve_one, tor))
        assert reload.note_hangup()  # while they are about to be published
        await until(lambda: are_told("stays", "goes"))
        before = net.descriptor(told["goes"])
        left = await net.meet(before)
        far = await net.meet(net.descriptor(told["stays"]))
        stream = far.begin(80, b"before")
        async with await server.accept() as connection:
            assert await connection.receive_some() == b"before"
            file.write_text(stays + '[comes]\nports = ["82"]\nkey = "key"\n')
            assert reload.note_hangup()
            await until(lambda: are_told("stays", "goes", "comes"))
            stream.write(b"after")
            assert await connection.receive_some() == b"after"
        assert left.circuit.circ_id not in left.circuit.link.circuits
        nursery.cancel_scope.cancel()
    assert told["comes"] == told["goes"] != told["stays"]
    assert net.descriptor(told["comes"]).revision > before.revision


@pytest.mark.usefixtures("no_rest")
async def test_what_is_described_otherwise_begins_anew_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_key(tmp_path / "key")
    make_key(tmp_path / "other")
    file, services, has_said = tmp_path / "services.toml", Services(), sayings(capsys)
    file.write_text(ONE)
    async with trio.open_nursery() as nursery:
        reload = Reload(file)
        nursery.start_soon(reload.run, read_services(file), services.serve)
        for count, line in enumerate(
            ('key = "key"', 'key = "other"', "pow = true", 'intro-limit = "1:2"'), 1
        ):
            file.write_text(f"{ONE}{line}\n")
            reload.note_hangup()
            await until(lambda: has_said("was read again; ended: one; begun: one"))
            file.write_text(f"# as before\n[one]\n{line}\nports = ['80:127.0.0.1:80']\n")
            reload.note_hangup()
            await until(lambda: has_said("was read again; ended: none; begun: none"))
            assert services.begun == ["one"] * (count + 1)
        nursery.cancel_scope.cancel()


async def test_a_service_that_begins_anew_does_so_in_another_second(tmp_path: Path) -> None:
    """Directories refuse a descriptor of the second in which the one before was made."""
    file, services, seconds = tmp_path / "services.toml", Services(), list[int]()

    async def serve(service: Service) -> None:
        seconds.append(int(time.time()))
        try:
            await services.serve(service)
        finally:
            seconds.append(int(time.time()))

    file.write_text(ONE)
    async with trio.open_nursery() as nursery:
        reload = Reload(file)
        nursery.start_soon(reload.run, read_services(file), serve)
        file.write_text(ONE.replace("80", "81"))
        reload.note_hangup()
        await until(lambda: services.begun == ["one", "one"])
        _, ended, begun = seconds
        assert ended < begun
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("no_rest")
async def test_a_hangup_while_services_still_end_is_heeded_afterwards(tmp_path: Path) -> None:
    file, services = tmp_path / "services.toml", Services()
    file.write_text(ONE)
    services.held["one"] = trio.Event()
    async with trio.open_nursery() as nursery:
        reload = Reload(file)
        nursery.start_soon(reload.run, read_services(file), services.serve)
        await until(lambda: services.begun == ["one"])
        file.write_text(ONE.replace("80", "81"))
        reload.note_hangup()
        await until(lambda: services.ending == ["one"])
        file.write_text('[two]\nports = ["80"]\n')
        reload.note_hangup()
        await trio.testing.wait_all_tasks_blocked()
        assert services.begun == ["one"]  # the key may still be in use
        services.held["one"].set()
        await until(lambda: services.begun == ["one", "one", "two"])
        assert services.ended == ["one", "one"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "text", ["", "[one", ONE + "pow = 2\n", ONE + 'key = "nothing"\n', "a = " + "[" * 10_000, None]
)
async def test_a_file_that_cannot_be_used_any_more_ends_nothing(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, services, has_said = tmp_path / "services.toml", Services(), sayings(capsys)
    file.write_text(ONE)
    async with trio.open_nursery() as nursery:
        reload = Reload(file)
        nursery.start_soon(reload.run, read_services(file), services.serve)
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        reload.note_hangup()
        await until(lambda: has_said("; the services go on as they were"))
        file.write_text(ONE)  # mended
        reload.note_hangup()
        await until(lambda: has_said("was read again; ended: none; begun: none"))
        assert (services.begun, services.ended) == (["one"], [])
        nursery.cancel_scope.cancel()


def test_a_terminal_that_has_gone_ends_the_command() -> None:
    """As long as it is there, a hangup only has the file read, which does not exist here."""
    program = (
        "import trio; from pathlib import Path; from torkit.cli import app as program, options, running\n"
        "from torkit.cli.onion_reload import Reload\n"
        "reload = Reload(Path('nothing'))\n"
        "async def command():\n"
        "    print('started', flush=True); await reload.run([], None)\n"
        "app = options.command_app()\n"
        "app.command()(lambda: running.run(\n"
        "    command, options.Options(None, None, 'exit', 0), on_hangup=reload.note_hangup))\n"
        "program.app = app\n"
        "program.main()\n"
    )
    master, slave = pty.openpty()
    command = ["env", "--default-signal", "setsid", "--ctty", sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            os.close(slave)
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == b"started\n"
            process.send_signal(signal.SIGHUP)
            assert select.select([process.stderr], [], [], 20)[0]
            assert process.stderr.readline().endswith(b"; the services go on as they were\n")
            assert process.poll() is None
            os.close(master)
            assert process.wait(20) == 128 + signal.SIGHUP
        finally:
            process.kill()
