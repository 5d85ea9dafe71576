"""The completions of bash, zsh and fish, in these shells: what they offer is what `--help` lists."""

import importlib.util
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from torkit.cli.app import app, run_command_line
from torkit.cli.manual import as_text, find_page

ROOT = Path(__file__).parents[2]


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location("completions", ROOT / "contrib" / "completions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def paths(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every command, such as "socks" and "onion keygen"; "" is torkit itself."""
    command = command or typer.main.get_command(app)
    yield " ".join(path)
    if hasattr(command, "list_commands"):
        context = typer.Context(command)
        for name in command.list_commands(context):
            yield from paths(command.get_command(context, name), (*path, name))


COMMANDS = list(paths())

# Lines that somebody has begun, and some of what has to be offered; an empty set, where nothing is.
BEGUN = {
    "torkit so": {"socks"},
    "torkit --cgo ex": {"exit"},
    "torkit --cgo all he": {"help"},
    "torkit -v help so": {"socks"},
    "torkit onion key": {"keygen"},
    "torkit onion keygen a.onion se": {"secret.key"},
    "torkit testnet up --dir sub": {"subdir"},
    "torkit socks --padding re": {"reduced"},
    "torkit socks --padding=re": {"reduced"},
    "torkit connect --eof w": {"wait"},
    "torkit relays --from c": {"cache"},
    "torkit relays --from se": {"secret.key"},
    "torkit relays --country de --geoip se": {"secret.key"},
    "torkit run torki": {"torkit-of-the-test"},
    "torkit run -- torki": {"torkit-of-the-test"},
    "torkit version x": set(),
}


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("share")
    load_generator().write_completions(directory)
    return directory


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current directory of the shells: a file, a directory, and a program in it."""
    directory = tmp_path_factory.mktemp("place")
    (directory / "secret.key").touch()
    (directory / "subdir").mkdir()
    program = directory / "subdir" / "torkit-of-the-test"
    program.touch(0o755)
    return directory


def environment(place: Path) -> dict[str, str]:
    return {
        "PATH": f"{place / 'subdir'}:{os.environ['PATH']}",
        "HOME": str(place),
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
    }


def offered_by_bash(share: Path, place: Path, lines: list[str]) -> list[set[str]]:
    script = [f"source {share}/bash-completion/completions/torkit"]
    for line in lines:
        *words, last = line.split(" ")
        *head, tail = re.split("(=)", last)  # a word's end for readline
        script += [
            f"COMP_WORDS=({shlex.join([*words, *head, tail])})",
            "COMP_CWORD=$((${#COMP_WORDS[@]} - 1))",
        ]
        script += ["_torkit", 'echo "${COMPREPLY[@]}"']
    ended = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", "\n".join(script)],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == "", ended.stderr
    return [set(line.split()) for line in ended.stdout.splitlines()]


def offered_by_fish(share: Path, place: Path, lines: list[str]) -> list[set[str]]:
    script = [f"source {share}/fish/vendor_completions.d/torkit.fish"]
    for line in lines:
        script += [f"complete -C {shlex.quote(line)}", "echo --end--"]
    ended = subprocess.run(
        ["fish", "--no-config", "-c", "\n".join(script)],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == "", ended.stderr
    *blocks, _ = ended.stdout.split("--end--\n")
    # What belongs to `--padding=` is shown with it.
    return [
        {offer.partition("\t")[0].rpartition("=")[2].rstrip("/") for offer in block.splitlines()}
        for block in blocks
    ]


ZSH_SETUP = """
PS1= PS2= ZLE_RPROMPT_INDENT=0
fpath=({functions} $fpath)
autoload -Uz compinit && compinit -u -D
zstyle ':completion:*' completer _complete
compadd() {{
    local -a offers
    if [[ ${{@[1,(i)(-|--)]}} == *-(O|A|D)\\ * ]]; then builtin compadd "$@"; return; fi
    builtin compadd -A offers "$@"
    (( $#offers )) && print -rl -- $offers >> {out}
    return 1
}}
finish() {{ BUFFER=; print -r -- --end-- >> {out} }}
zle -N finish && bindkey '^X' finish && bindkey '^I' complete-word
"""


def offered_by_zsh(share: Path, place: Path, lines: list[str]) -> list[set[str]]:
    out, rc = share / "offers", share / "zshrc"
    out.unlink(missing_ok=True)
    rc.write_text(ZSH_SETUP.format(functions=share / "zsh/site-functions", out=out))
    ours, theirs = pty.openpty()
    zsh = subprocess.Popen(
        ["zsh", "-f", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=place,
        env=environment(place),
        start_new_session=True,
    )
    os.close(theirs)
    try:
        os.write(ours, f"source {rc}\n".encode())
        for line in lines:
            os.write(ours, f"{line}\t\x18".encode())
            while not out.exists() or out.read_text().count("--end--\n") <= lines.index(line):
                if select.select([ours], [], [], 0.05)[0]:  # pytest's timeout is the deadline
                    os.read(ours, 4096)  # zsh shows what it does, and waits where nobody reads
        *blocks, _ = out.read_text().split("--end--\n")
    finally:
        zsh.kill()
        zsh.wait()
        os.close(ours)
    return [set(block.splitlines()) for block in blocks]


SHELLS = {"bash": offered_by_bash, "fish": offered_by_fish, "zsh": offered_by_zsh}

OPTIONS = {path: f"torkit {path} --".replace("  ", " ") for path in COMMANDS}
FEW = ("", "socks", "onion keygen", "testnet up")  # for zsh, which takes a third of a second for each
GROUPS = {path: f"torkit {path} ".replace("  ", " ") for path in ("", "cache", "onion", "testnet")}


@pytest.fixture(scope="module", params=SHELLS)
def offered(request: pytest.FixtureRequest, share: Path, place: Path) -> dict[str, set[str]]:
    """What a shell offers for each line."""
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} here")
    paths = FEW if request.param == "zsh" else COMMANDS
    lines = [*(OPTIONS[path] for path in paths), *GROUPS.values(), *BEGUN]
    return dict(zip(lines, SHELLS[request.param](share, place, lines), strict=True))


def options_of(path: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    assert run_command_line([*path.split(), "--help"]) == 0
    listed = re.findall(r"^  (-+\w[\w-]*(?:, -+\w[\w-]*)*)", capsys.readouterr().out, re.MULTILINE)
    return {name for names in listed for name in names.split(", ")}


def test_every_option_is_offered(offered: dict[str, set[str]], capsys: pytest.CaptureFixture[str]) -> None:
    for path, line in OPTIONS.items():
        if line not in offered:
            continue
        expected = {option for option in options_of(path, capsys) if option.startswith("--")}
        assert expected
        assert {offer for offer in offered[line] if offer.startswith("--")} == expected, path


def test_every_option_is_in_what_zsh_reads(share: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (share / "zsh/site-functions/_torkit").read_text()
    for path in COMMANDS:
        function = re.search(
            rf"^_torkit{path and '_'}{path.replace(' ', '_')}\(\) {{\n(.*?)^}}", text, re.M | re.S
        )
        assert function is not None
        assert set(re.findall(r"^ +'\*(-[\w-]+)[+=]?\[", function[1], re.M)) == options_of(path, capsys)


def test_every_command_is_offered(offered: dict[str, set[str]]) -> None:
    assert {path.rpartition(" ")[0] for path in COMMANDS} == set(GROUPS)
    for path, line in GROUPS.items():
        below = {one.rpartition(" ")[2] for one in COMMANDS if one and one.rpartition(" ")[0] == path}
        assert offered[line] == below


def test_what_somebody_has_begun_is_completed(offered: dict[str, set[str]]) -> None:
    for line, expected in BEGUN.items():
        assert offered[line] >= expected if expected else offered[line] == expected, line


def test_every_option_is_in_the_manual(capsys: pytest.CaptureFixture[str]) -> None:
    for path in COMMANDS:
        if path in ("help", "version"):
            continue
        page = find_page(path.partition(" ")[0])
        assert page is not None
        text = as_text(page.read_text())
        missing = {
            option
            for option in options_of(path, capsys)
            if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)
        }
        assert missing - {"-h", "--help"} == set(), path
