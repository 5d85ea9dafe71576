"""The examples of README.md, docs/, the manual pages and `torkit help`, run against a private network.

They run as they stand there, but for STAND_INS, which take the place of the internet. NOT_RUN has those that
cannot run here, with the reason.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from confined import skip_where_forbidden
from network.private_network import RunningTestnet
from network.servers import HOST, PAGE, BannerServer, TlsServer, WebServer, free_port
from network.torkit_process import Shell, missing, skip_without

from torkit.cli.countries import GEOIP_DIRS
from torkit.cli.teaching import LESSONS
from torkit.public_network import AUTHORITIES

pytestmark = pytest.mark.network

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "public-network-2022"

# Why what begins so does not run here.
NOT_RUN = {
    "make demo": "it starts a network of its own: scripts/demo",
    "torkit testnet": "it starts a network of its own: test_testnet.py",
    "export TORKIT_NETWORK": "the network is that of these tests",
    "ssh ": "it needs an account: test_connect.py logs in at a real sshd",
    "RSYNC_CONNECT_PROG": "it needs a server of rsync's",
    "torkit socks --exit-nodes {de}": "a private network is in no country: test_restrictions.py",
    "torkit run -- git clone": "it needs a repository: test_recipes.py",
    "torkit onion serve": "it goes on until it is ended: test_onion_serve.py",
    "torkit run -- git": "it needs a repository: test_recipes.py",
    "torkit run  ": "it is for somebody who types: test_run.py",
    "torkit run --isolate stream -- wget -r": "it fetches a whole site: test_run.py",
    "torkit status --watch": "it goes on until q: test_service.py",
    "torkit status --json": "it asks a proxy: test_service.py",
    "install ": "it changes this machine",
    "systemctl ": "it asks the systemd of this machine",
    "torkit help": "tests/cli has it",
    "torkit version": "tests/cli has it",
}
CANNOT_CONFINE = skip_where_forbidden().args[0]
ERASE = "\r\x1b[K"  # what takes away a bar
FAILS = {"--at 2022-11-19T14:00Z": 3, "/dev/udp/": 1}  # on purpose, with this status


class Example(NamedTuple):
    """A line of a shell, and what a terminal showed, if the page shows it."""

    line: str
    output: list[str]


class Block(NamedTuple):
    """Examples that follow each other in one shell."""

    name: str
    examples: list[Example]


# identities.md: test_identities.py
PAGES = ("README.md", "docs/tour.md", "docs/recipes.md", "docs/scan.md", "docs/service.md")
# What comes out of a line that has this in it; the first that fits.
TELLS = {
    "/healthz": "circuits work\n",
    "/metrics": "\ntorkit_bootstrap_ratio 1\n",
    "cat ready": '"metrics"',
    ">probe.sh": "",
    "curl": PAGE.decode(),
    "torkit scan report": "  ok  (100.0%)\n",
    "./probe.sh": '"stdout": ' + json.dumps(PAGE.decode()),
    "torkit status": "start     100%, done\n",
}


def page_blocks(page: str) -> Iterator[Block]:
    found = re.findall(r"^```(sh|console)\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    for number, (kind, text) in enumerate(found, 1):
        examples = []
        for line in text.replace("\\\n", "").splitlines():
            if kind == "sh" and line:
                examples.append(Example(line, []))
            elif line.startswith("$ "):
                examples.append(Example(line.removeprefix("$ "), []))
            elif line:
                examples[-1].output.append(line)
        yield Block(f"{page} {number}", examples)


def manual_blocks() -> Iterator[Block]:
    for page in sorted((ROOT / "man").glob("*.1")):
        _, _, section = page.read_text().partition(".SH EXAMPLES\n")
        lines = [line for line in section.partition(".SH ")[0].splitlines() if not line.startswith(".")]
        if lines:
            yield Block(
                page.name, [Example(line.replace("\\-", "-").replace("\\e", "\\"), []) for line in lines]
            )


def all_blocks() -> list[Block]:
    lessons = [Example(lesson.example, []) for lesson in LESSONS.values()]
    pages = [block for page in PAGES for block in page_blocks(page)]
    return [*pages, *manual_blocks(), Block("torkit help", lessons)]


def reason_not_to_run(line: str) -> str | None:
    if line.startswith("torkit run") and CANNOT_CONFINE:
        return "this machine allows no namespaces"
    if line.startswith("systemd-socket-activate") and missing("systemd-socket-activate"):
        return "not installed: systemd-socket-activate"
    return next((reason for beginning, reason in NOT_RUN.items() if line.startswith(beginning)), None)


def shape(line: str) -> str:
    """What stays the same from run to run: words, but neither numbers, names nor how wide the gaps are."""
    line = re.sub(r"\x1b\[[\d;]*m", "", line.rpartition(ERASE)[2])  # a bar that is gone, and colours
    line = re.sub(r"\b(?:auth|exit|middle)\d\b", "RELAY", line)
    line = re.sub(r'"[^"]*"', '"..."', line)
    line = re.sub(r"^\d+ [a-z]{2}$", "0 cc", line)
    return " ".join(re.sub(r"\d+(?:\.\d+)*", "0", line).split())


@pytest.fixture
def shell_of_examples(shell: Shell, tmp_path: Path) -> Shell:
    """One with a data directory of its own, since examples are for people who begin."""
    return shell.with_data_dir(tmp_path / "data")


@pytest.fixture
def stand_ins(
    testnet: RunningTestnet, web_server: WebServer, banner_server: BannerServer, tls_server: TlsServer
) -> list[tuple[str, str]]:
    """Patterns, and what takes the place of each, in this order."""
    relay = testnet.relays[0].fingerprint
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        (r"https://example\.com/", f"http://web.test:{web_server.port}/page"),
        (r"(torkit resolve.*)example\.com.*", r"\1web.test"),
        (
            r"torkit connect --tls example\.com:443",
            f"SSL_CERT_FILE={tls_server.authority} torkit connect --tls web.test:{tls_server.port}",
        ),
        (r"example\.com:443", f"web.test:{banner_server.port}"),  # which ends the connection by itself
        (r"example\.com:80", f"web.test:{web_server.port}"),
        (r"torkit socks(?! --listen)", "torkit socks --listen 127.0.0.1:9150"),
        (r"^torkit socks(?!.*&)", "timeout --preserve-status 4 torkit socks"),  # which has no end of its own
        (r"127\.0\.0\.1:9150", f"{HOST}:{free_port()}"),
        (r"127\.0\.0\.1:9151", f"{HOST}:{free_port()}"),
        (r"(--metrics |127\.0\.0\.1:)9152", rf"\g<1>{free_port()}"),
        (r"--shard 0/2 -- \./probe", "--shard 0/1 -- ./probe"),  # half of three exits may be none
        (r"0011BD24[0-9A-F]{32}|FINGERPRINT", relay),
        (r"0011BD24", relay[:8]),
        (r"--country (?:de|is)", "--country '??'"),
        (r"--from old-consensus --certs certs --at \S+", f"--from old-consensus --certs certs --at {now}"),
    ]


@pytest.fixture(scope="session")
def network_of_2022(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authorities who signed the documents in DATA, at addresses where nobody is."""
    authorities = [re.sub(r" \S+:\d+ (?=\w{40}$)", " 127.0.0.1:1 ", line) for line in AUTHORITIES.split("\n")]
    path = tmp_path_factory.mktemp("2022") / "network.toml"
    lines = [re.sub(r" ipv6=\S+", "", line) for line in authorities if line]
    path.write_text(f"authorities = {json.dumps(lines)}\n")
    return path


def run_block(shell: Shell, directory: Path, lines: list[str], *, on_terminal: bool) -> list[tuple[int, str]]:
    """The status and the output of each line, run one after the other in one shell in `directory`."""
    results = shell.data_dir.with_name("results")
    results.mkdir()
    program = [f"cd {directory}", "set -m -o pipefail"]
    for number, line in enumerate(lines):
        if on_terminal:
            # script starts the shell that SHELL names, and /bin/sh where nobody has set it.
            line = f"SHELL=/bin/bash script -qec {shlex.quote('set -o pipefail; ' + line)} /dev/null"
        program.append(f"{{ {line}\n}} >{results}/{number} 2>&1 </dev/null; echo $? >>{results}/statuses")
        if found := re.search(r"(?:--listen|-l) 127\.0\.0\.1:(\d+).*&", line):
            program.append(f"until (: <>/dev/tcp/127.0.0.1/{found[1]}) 2>/dev/null; do sleep 0.1; done")
    program.append("kill $(jobs -p) 2>/dev/null; wait")
    shell.run("\n".join(program), timeout=80)
    statuses = map(int, (results / "statuses").read_text().split())
    outputs = [(results / str(number)).read_text() for number in range(len(lines))]
    return list(zip(statuses, outputs, strict=True))


@skip_without("curl", "jq", "script", "wget")
@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: block.name)
def test_examples_do_what_the_page_says(
    shell_of_examples: Shell,
    tmp_path: Path,
    network_of_2022: Path,
    stand_ins: list[tuple[str, str]],
    block: Block,
) -> None:
    examples = [one for one in block.examples if reason_not_to_run(one.line) is None]
    if not examples:
        pytest.skip("; ".join({str(reason_not_to_run(one.line)) for one in block.examples}))
    text = "\n".join(one.line for one in examples)
    if "--country" in text and not any(place.joinpath("geoip").exists() for place in GEOIP_DIRS):
        pytest.skip("tor-geoipdb is not installed")
    shell, directory = shell_of_examples, tmp_path
    if "microdesc-consensus" in text:
        if not DATA.exists():
            pytest.skip("the documents of 2022 are not at hand")
        shell, directory = replace(shell, network_file=network_of_2022), DATA
    if "old-consensus" in text:
        assert shell.run("torkit fetch-consensus").returncode == 0
        shutil.copy(shell.data_dir / "consensus-microdesc", tmp_path / "old-consensus")
        shutil.copy(shell.data_dir / "certificates", tmp_path / "certs")
    lines = [one.line for one in examples]
    for pattern, stand_in in stand_ins:
        lines = [re.sub(pattern, stand_in, line) for line in lines]
    is_shown = any(one.output for one in examples)
    results = run_block(shell, directory, lines, on_terminal=is_shown)
    for example, (status, output) in zip(examples, results, strict=True):
        expected = next((status for mark, status in FAILS.items() if mark in example.line), 0)
        assert status == expected, (example.line, output)
        if example.output:
            shown = [shape(line) for line in example.output]
            printed = [shape(line) for line in output.splitlines()]
            assert set(printed) <= set(shown), example.line
            assert printed[-1] == shown[-1], example.line
        elif told := next((told for mark, told in TELLS.items() if mark in example.line), None):
            assert told in output, example.line


def test_whatever_does_not_run_is_an_example() -> None:
    lines = [one.line for block in all_blocks() for one in block.examples]
    for beginning in NOT_RUN:
        assert any(line.startswith(beginning) for line in lines), beginning
    for mark in FAILS:
        assert any(mark in line for line in lines), mark


def run_program(page: str, network: Path, data_dir: Path, stand_ins: list[tuple[str, str]]) -> str:
    """What the first program in Python on a page prints."""
    program, *_ = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    for there, here in stand_ins:
        assert there in program
        program = program.replace(there, here)
    environment = os.environ | {"TORKIT_NETWORK": str(network), "TORKIT_DATA_DIR": str(data_dir)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, timeout=40, check=False
    )
    assert (result.returncode, result.stderr) == (0, b"")
    return result.stdout.decode()


def test_the_program_of_the_readme_prints_a_page(
    testnet: RunningTestnet, tmp_path: Path, web_server: WebServer
) -> None:
    stand_ins = [('"example.com", 80', f'"web.test", {web_server.port}'), ("GET / ", "GET /page ")]
    assert run_program("README.md", testnet.network_file, tmp_path, stand_ins).endswith(PAGE.decode())


def test_the_program_of_the_page_on_scans_looks_at_every_exit_twice(
    shell: Shell, testnet: RunningTestnet, tmp_path: Path, banner_server: BannerServer
) -> None:
    unit = shell.run(f"torkit cache export {tmp_path}").stdout.decode().strip()
    stand_ins = [
        ("directories/9305177131467cbfee2f885abc22a3ec", unit),
        ("0, 8", "0, 1"),
        ("example.com:443", f"web.test:{banner_server.port}"),
        ('"example.com", 22', f'"web.test", {banner_server.port}'),
    ]
    expected = 2 * len(testnet.exits)
    told = run_program("docs/scan.md", testnet.network_file, tmp_path, stand_ins)
    assert told == f"{expected} of {expected} are well\n"
