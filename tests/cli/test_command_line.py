"""The program as a shell sees it: statuses, and what is said on stderr. Nothing here needs a network."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from cli.shelf import Shelf

from torkit import targets
from torkit.cli import app as program
from torkit.cli import teaching
from torkit.cli.app import run_command_line
from torkit.cli.failures import INTERNAL, exit_status
from torkit.cli.files import write_file
from torkit.cli.options import command_app
from torkit.cli.paths import read_line
from torkit.errors import (
    ChannelClosed,
    CircuitClosed,
    DocumentError,
    EndReason,
    InternalError,
    NoDirectory,
    NoGuard,
    NoPath,
    StorageError,
    StreamClosed,
    TimedOut,
    TorkitError,
    UsageError,
)

ROOT = Path(__file__).parents[2]


def torkit(*arguments: str, shell: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program, or `shell` with the program as `$@`."""
    command = [sys.executable, "-m", "torkit", *arguments]
    if shell is not None:
        command = ["sh", "-c", shell, "sh", *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)  # what is still buffered at the end is a case of its own
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["connect"], "torkit: missing argument 'HOST:PORT'"),
        (["connect", "web.test"], "torkit: no port in 'web.test'"),
        (["connect", "web.test:http"], "torkit: 'http' is not a port"),
        (["connect", "http://web.test/"], "torkit: 'http://web.test/' is a URL"),
        (["connect", "web.test:65536"], "torkit: '65536' is not a port"),
        (["connect", "web.test:0"], "torkit: port 0 cannot be connected to"),
        (["connect", "::1"], "torkit: '::1' may be an address with or without a port"),
        (["connect", "-w", "nan", "web.test:80"], "expected a number of seconds"),
        (["connect", "-i", "-1", "web.test:80"], "expected a number of seconds"),
        (["connect", "--eof", "never", "web.test:80"], "torkit: invalid value for '--eof'"),
        (["connect", "--nope", "web.test:80"], "torkit: no such option: --nope"),
        (["conect", "web.test:80"], "torkit: no such command 'conect'. Did you mean 'connect'?"),
        (["--network", "/nonexistent/x.toml", "connect", "web.test:80"], "torkit: /nonexistent/x.toml"),
        (["socks", "--listen", "web.test:1"], "torkit: --listen: 'web.test' is not an address"),
        (["socks", "--listen", "socks5://127.0.0.1:9150"], "is a URL"),
        (["socks", "--listen", "unix:"], "torkit: --listen: unix: wants a path"),
        (["socks", "--listen", "192.0.2.1:1"], "torkit: --listen: 192.0.2.1 is not a loopback address"),
        (["socks", "--listen", "::1"], "may be an address with or without a port"),
        (["help", "sock"], "torkit: no such command 'sock'. Did you mean 'socks'?"),
        (["choose-path", "--count", "0"], "torkit: invalid value for '--count'"),
        (["choose-path", "--path", "-"], "torkit: choose-path reads a consensus from stdin"),
        (["connect", "-w"], "torkit: option '-w' requires an argument"),
        (["testnet", "up", "--dir"], "torkit: option '--dir' requires an argument"),
        (["--network"], "torkit: option '--network' requires an argument"),
    ],
)
def test_wrong_usage_is_status_2_and_one_line_of_reason(arguments: list[str], message: str) -> None:
    result = torkit(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr.splitlines()[0]
    assert all(line.startswith("torkit: ") for line in result.stderr.splitlines())


def test_option_without_its_argument_hints_at_the_help_of_its_command() -> None:
    assert torkit("connect", "-w").stderr.splitlines()[1] == "torkit: hint: torkit connect --help"
    assert torkit("--network").stderr.splitlines()[1] == "torkit: hint: torkit --help"


def test_what_a_library_warns_of_is_said_in_the_voice_of_all_else() -> None:
    program = (
        "import sys, warnings; from torkit.cli import app as cli\n"
        "cli.run_command_line = lambda _: warnings.warn('two\\nlines', stacklevel=1)\n"
        "cli.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "torkit: two lines\n")


def test_names_of_files_are_printed_byte_for_byte() -> None:
    program = (
        "import os, sys; from torkit.cli import app as cli\n"
        "cli.run_command_line = lambda _: print(os.fsdecode(b'/tmp/\\xff'))\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-X", "utf8", "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"/tmp/\xff\n", b"")


def in_a_bare_environment(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program with nothing in its environment but `variables`, as nobody's user if it may be."""
    command = [sys.executable, "-m", "torkit", *arguments]
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **variables}
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_default_test_network_is_in_no_place_that_others_may_guess(tmp_path: Path) -> None:
    """Where there is no runtime directory, it was /tmp, after two lines of a library's warning."""
    result = in_a_bare_environment("testnet", "verify", HOME=str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[0].endswith(f" in {tmp_path}/.local/state/torkit/testnet")
    runtime = in_a_bare_environment("testnet", "verify", XDG_RUNTIME_DIR=str(tmp_path))
    assert runtime.stderr.splitlines()[0].endswith(f" in {tmp_path}/torkit/testnet")
    assert all(line.startswith("torkit: ") for line in (result.stderr + runtime.stderr).splitlines())


def test_nothing_asked_shows_the_help() -> None:
    result = torkit()
    assert result.returncode == 2
    assert "fetch-consensus" in result.stderr


@pytest.mark.parametrize("command", teaching.LESSONS)
def test_every_command_has_help_with_an_example_and_a_manual_page(command: str) -> None:
    lesson = teaching.LESSONS[command]
    shown = torkit(command, "--help")
    assert shown.returncode == 0
    assert lesson.summary in shown.stdout
    assert f"Example: {lesson.example}" in shown.stdout
    explained = torkit("help", command).stdout
    if command in ("help", "version"):
        assert explained == shown.stdout
    else:
        assert f"Manual:  torkit help {command}\n" in shown.stdout
        assert explained.startswith(f"NAME\n       torkit-{command} - ")
        assert (ROOT / "man" / f"torkit-{command}.1").exists()


def test_the_program_alone_teaches_every_command_in_whole_sentences() -> None:
    shown = torkit("help")
    assert (shown.returncode, shown.stderr) == (0, "")
    for name, lesson in teaching.LESSONS.items():
        assert f"  {name} " in shown.stdout
        assert lesson.summary in shown.stdout
        assert f"$ {lesson.example}\n" in shown.stdout
    assert torkit().stderr == shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.parametrize("group", ["cache", "onion", "testnet"])
def test_a_group_describes_each_of_its_commands_whole(group: str) -> None:
    lines = torkit(group, "--help").stdout.splitlines()
    commands = lines[lines.index("Commands:") + 1 : lines.index("", lines.index("Commands:"))]
    assert commands
    assert all(line.endswith(".") and not line.endswith("...") for line in commands), lines


def test_version_is_a_command_too() -> None:
    assert torkit("version").stdout == torkit("--version").stdout != ""


def test_light_commands_do_not_import_what_is_heavy() -> None:
    program = (
        "import sys; from torkit.cli.app import run_command_line as run\n"
        "run(['connect', '--help']); run(['connect', 'x']); run(['relays', '--help'])\n"
        "heavy = {'trio', 'torkit._fast.keys', 'rich', 'torkit.client', 'torkit.cli.testnet'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["connect", "localhost:80"], "no exit can reach it"),
        (
            ["socks", "--allow-remote", "--listen", "192.0.2.1:9150"],
            "cannot listen on",
        ),  # TEST-NET-1: nobody has it
    ],
)
def test_no_process_is_started_but_trios_look_for_pthread(
    shelf: Shelf, arguments: list[str], message: str
) -> None:
    """To name threads, trio asks ctypes for libpthread, and ctypes asks ldconfig."""
    program = (
        "import subprocess, sys; from torkit.cli.app import run_command_line as run\n"
        "subprocess._USE_POSIX_SPAWN = False\n"  # with it, newer Pythons tell of a process twice
        "starts = ('subprocess.Popen', 'os.fork', 'os.forkpty', 'os.exec', 'os.posix_spawn', 'os.system')\n"
        "sys.addaudithook(lambda event, values: event in starts and print(values[0]))\n"
        "run(sys.argv[1:])\n"
        "print('trio' in sys.modules)"
    )
    paths = ["--network", str(shelf.path / "network.toml"), "--data-dir", str(shelf.path / "data")]
    result = subprocess.run(
        [sys.executable, "-c", program, *paths, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert message in result.stderr  # what ends it comes once all is imported
    assert result.stdout == "/sbin/ldconfig\nTrue\n"


def test_broken_pipe_is_quiet() -> None:
    result = torkit("--help", shell='("$@"; echo $? >&2) | true')
    assert result.stderr in ("0\n", "141\n")  # the reader may be late to leave


@pytest.mark.parametrize("argument", ["--help", "--version"])
@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("/dev/full", "No space left on device"),
        ("&-", "Bad file descriptor"),
        ("&- <&-", "Bad file descriptor"),
    ],
)
def test_output_that_cannot_be_written_is_reported(argument: str, output: str, reason: str) -> None:
    result = torkit(argument, shell=f'env -u PYTHONUNBUFFERED "$@" >{output}')
    assert result.returncode == 1
    assert result.stderr == f"torkit: stdin or stdout: {reason}\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_do_no_harm(closed: str) -> None:
    writes = closed.startswith("2") or closed == "<&-"
    assert torkit("--help", shell=f'"$@" {closed}').returncode == (0 if writes else 1)
    assert torkit("connect", "x", shell=f'"$@" {closed}').returncode == 2


@pytest.mark.parametrize(("closed", "is_said"), [("<&-", True), (">&-", True), ("2>&-", False)])
def test_closed_standard_descriptors_without_a_null_device_are_one_line(closed: str, is_said: bool) -> None:
    start = "import os; os.devnull = '/no/device'; from torkit.cli.app import main; main()"
    result = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", start, "version"],
        capture_output=True,
        text=True,
    )
    said = "torkit: /no/device: No such file or directory\n" if is_said else ""
    assert (result.returncode, result.stdout, result.stderr) == (1, "", said)


def nobody_reads() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize(("arguments", "status"), [(["version"], 0), (["connect", "x"], 2), ([], 2)])
@pytest.mark.parametrize("opened", [lambda: os.open("/dev/full", os.O_WRONLY), nobody_reads])
def test_what_cannot_be_said_changes_no_status(
    opened: Callable[[], int], arguments: list[str], status: int
) -> None:
    """That of help without a command was 1, after a trace."""
    with open(opened(), "wb") as stderr:
        command = [sys.executable, "-m", "torkit", *arguments]
        assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=stderr).returncode == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError(""), 2),
        (NoDirectory(""), 3),
        (NoGuard(""), 3),
        (StreamClosed("", reason=EndReason.RESOLVEFAILED), 4),
        (StreamClosed("", reason=EndReason.CONNECTREFUSED), 5),
        (StreamClosed("", reason=EndReason.EXITPOLICY), 5),
        (NoPath(""), 5),
        (StreamClosed("", reason=EndReason.TIMEOUT), 6),
        (TimedOut(""), 6),
        (StreamClosed("", reason=EndReason.CONNRESET), 1),
        (CircuitClosed(""), 1),
        (ChannelClosed(""), 1),
        (DocumentError(""), 1),
        (StorageError(""), 1),
        (InternalError(""), 7),
        (TorkitError(""), 1),
    ],
)
def test_errors_have_their_statuses(error: TorkitError, status: int) -> None:
    assert exit_status(error) == status


def run_and_fail(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def command() -> None:
        raise error

    app = command_app()
    app.command()(command)
    monkeypatch.setattr(program, "app", app)
    return run_command_line([])


def test_error_is_said_with_its_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_and_fail(NoDirectory("nobody answers", hint="go online"), monkeypatch) == 3
    assert capsys.readouterr().err == "torkit: nobody answers\ntorkit: hint: go online\n"


def test_declared_error_counts_among_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group = BaseExceptionGroup("", [OSError("x"), BaseExceptionGroup("", [TimedOut("too late")])])
    assert run_and_fail(group, monkeypatch) == 6
    assert capsys.readouterr().err == "torkit: too late\n"


def test_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_and_fail(KeyboardInterrupt(), monkeypatch) == 130
    assert run_and_fail(BrokenPipeError(), monkeypatch) == 141
    assert capsys.readouterr().err == ""


def test_fault_of_ours_is_said_with_where_it_was_and_never_with_a_destination(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def look_up() -> None:
        raise KeyError("web.test")

    fault = ZeroDivisionError("by web.test")
    try:
        look_up()
    except KeyError as cause:
        fault.__cause__ = cause
    assert run_and_fail(fault, monkeypatch) == INTERNAL
    said = capsys.readouterr().err
    assert all(line.startswith("torkit: ") for line in said.splitlines())
    assert said.startswith("torkit: an internal error (ZeroDivisionError) ended the command\n")
    assert "KeyError at" in said
    assert "in look_up" in said
    assert "in command" in said
    assert "by web.test" not in said


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        (("web.test:80",), ("web.test", 80)),
        (("web.test", "80"), ("web.test", 80)),
        (("192.0.2.1:443",), ("192.0.2.1", 443)),
        (("[2001:db8::1]:22",), ("2001:db8::1", 22)),
        (("[2001:db8::1]", "22"), ("2001:db8::1", 22)),
        (("2001:db8::1", "22"), ("2001:db8::1", 22)),
    ],
)
def test_target_is_read_in_every_form(arguments: tuple[str, ...], target: tuple[str, int]) -> None:
    assert targets.parse_target(*arguments) == target
    assert targets.parse_target(targets.format_address(*target)) == target


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("http://web.test/", "web.test:80"),
        ("https://user@web.test/page?x=1", "web.test:443"),
        ("https://web.test:8443", "web.test:8443"),
        ("http://[2001:db8::1]/", "[2001:db8::1]:80"),
        ("gopher://web.test/", "web.test:PORT"),
        ("http://web.test:99999/", "host:port"),
        ("http://[/", "host:port"),
    ],
)
def test_url_is_named_as_one_and_what_it_means_is_hinted(target: str, hint: str) -> None:
    with pytest.raises(UsageError, match="is a URL") as caught:
        targets.parse_target(target)
    assert caught.value.hint == f"write {hint}"


def test_name_of_a_port_is_answered_with_its_number() -> None:
    with pytest.raises(UsageError) as caught:
        targets.parse_target("web.test", "https")
    assert caught.value.hint == "https is port 443"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9150", ("127.0.0.1", 9150)),
        ("0", ("127.0.0.1", 0)),
        ("localhost:9150", ("127.0.0.1", 9150)),
        ("[::1]:9150", ("::1", 9150)),
        ("192.0.2.1:9150", ("192.0.2.1", 9150)),
    ],
)
def test_listening_takes_a_port_alone_and_localhost(text: str, address: tuple[str, int]) -> None:
    assert targets.parse_local("--listen", text, "how") == address


@pytest.mark.parametrize("text", ["", "99999", "::1", "web.test:1", ":9150", "http://127.0.0.1:1"])
def test_place_to_listen_that_is_none_is_hinted_at(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        targets.parse_local("--listen", text, "how")
    assert caught.value.hint == "how"


@pytest.mark.parametrize(
    "arguments",
    [
        ("web.test",),
        (":80",),
        ("",),
        ("web.test:",),
        ("web.test", ""),
        ("web.test:-1",),
        ("web.test:+80",),
        ("web.test: 80",),
        ("web.test:٨٠",),
        ("web.test:000080",),
        ("2001:db8::1:22",),
        ("[]:80",),
    ],
)
def test_bad_target_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        targets.parse_target(*arguments)


def test_line_is_read_without_what_follows() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo")
    os.close(writing)
    try:
        assert read_line(reading) == "one"
        assert os.read(reading, 100) == b"two"
        assert read_line(reading) is None
    finally:
        os.close(reading)


def test_line_without_end_is_refused() -> None:
    with open("/dev/zero", "rb") as zeros, pytest.raises(UsageError, match="over"):
        read_line(zeros.fileno())


def test_file_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with target.open("rb") as old:
        write_file(target, b"new")
        assert old.read() == b"old"  # replaced, not written over
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_file_that_cannot_be_written_is_a_declared_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        write_file(tmp_path / "nowhere" / "out", b"")


def test_device_is_written_to_and_stays(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    write_file(tmp_path / "null", b"x")
    assert (tmp_path / "null").is_symlink()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signal_cancels_the_command_and_is_its_status(number: int, status: int) -> None:
    program = (
        "import sys, trio; from torkit.cli import app as program, options, running\n"
        "async def command():\n"
        "    try:\n"
        "        print('started', flush=True); await trio.sleep_forever()\n"
        "    finally:\n"
        "        print('cleaned up')\n"
        "app = options.command_app()\n"
        "app.command()(lambda: running.run(command, options.Options(None, None, 'exit', 0)))\n"
        "program.app = app\n"
        "program.main()\n"
    )
    command = ["env", "--default-signal", sys.executable, "-c", program]  # whoever runs this may ignore some
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        output, said = process.communicate()
    assert (process.returncode, output, said) == (status, "cleaned up\n", "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_waits_for_a_network_file_can_be_told_to_stop(tmp_path: Path, number: int, status: int) -> None:
    """It is a pipe that nobody writes to: reading it took the client's only thread."""
    os.mkfifo(tmp_path / "network")
    options = ["--network", f"{tmp_path}/network", "--data-dir", f"{tmp_path}/data"]
    command = ["env", "--default-signal", sys.executable, "-m", "torkit", *options, "choose-path"]
    with subprocess.Popen(command, cwd=ROOT) as process, ExitStack() as stack:
        stack.callback(process.kill)

        deadline = time.monotonic() + 20
        while True:
            try:
                stack.callback(os.close, os.open(tmp_path / "network", os.O_WRONLY | os.O_NONBLOCK))
                break
            except OSError:  # nobody reads it yet
                assert time.monotonic() < deadline
                time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(20) == status


def test_ignored_hangup_stays_ignored() -> None:
    program = (
        "import os, signal, trio; from torkit.cli import options, running\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "async def command():\n"
        "    os.kill(os.getpid(), signal.SIGHUP); await trio.lowlevel.checkpoint(); print('still here')\n"
        "running.run(command, options.Options(None, None, 'exit', 0))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "still here\n"
