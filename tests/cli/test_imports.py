"""What each command's start imports: an allow-list, since every module costs every start its milliseconds."""

import subprocess
import sys

import pytest

# What every command imports first, and what is not counted: typer's own imports and trio's. Under Python 3.11
# these bring ipaddress along; torkit needs it under every Python.
EVERY_START = "torkit.__main__, torkit.cli.app"
BASE = "typer, trio, ipaddress"

# Command to the modules that a run of it imports, and what these may add to typer's and trio's own imports.
# The client, its proxy and its pipe are imported when a command runs, hence named here.
STARTS = {
    "build_circuit": ("torkit.client", {"json"}),
    "cache": ("torkit.client, torkit.scan.unit", {"json", "shutil"}),
    "choose_path": ("torkit.client", {"dataclasses", "json"}),
    "connect": ("torkit.client, torkit.net.pipe", {"json"}),
    "fetch_consensus": ("torkit.cli.documents", {"dataclasses", "json"}),
    "onion": ("torkit.client", {"json"}),
    "ping": ("torkit.client", {"json"}),
    "relay": ("torkit.cli.documents", {"dataclasses", "json"}),
    "relays": ("torkit.cli.documents", {"dataclasses", "json"}),
    "run": ("torkit.client, torkit.net.proxy", {"json"}),
    "scan": ("torkit.scan.run", {"dataclasses", "h11", "json", "shlex", "shutil", "subprocess", "urllib"}),
    "socks": ("torkit.client, torkit.net.proxy", {"json", "termios"}),
    "status": ("torkit.config", {"json", "termios", "tty"}),
    "testnet": ("torkit.testnet", {"dataclasses", "json", "socketserver"}),
}

# Cython's runtime appears with the first compiled module; names with an underscore belong to others.
OF_THE_CORE = {"cython_runtime"}


def imported_by(modules: str) -> set[str]:
    """The modules that `import modules` brings into a Python of its own."""
    code = f"import sys, {modules}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ended.stdout.split())


@pytest.fixture(scope="module")
def base() -> set[str]:
    return imported_by(BASE)


@pytest.mark.parametrize("command", STARTS)
def test_a_start_imports_no_more_than_is_allowed(command: str, base: set[str]) -> None:
    modules, allowed = STARTS[command]
    added = imported_by(f"{EVERY_START}, torkit.cli.{command}, {modules}") - base
    roots = {name.partition(".")[0] for name in added if not name.startswith("_")}
    assert roots - OF_THE_CORE - {"torkit"} <= allowed


def test_what_connects_to_nobody_needs_no_trio() -> None:
    assert "trio" not in imported_by(EVERY_START)
    for command in "relays", "relay", "fetch_consensus", "status":
        assert "trio" not in imported_by(f"{EVERY_START}, torkit.cli.{command}, torkit.cli.documents")


def test_a_start_with_a_warm_cache_imports_nothing_of_a_fetch() -> None:
    added = imported_by(f"{EVERY_START}, torkit.cli.connect, torkit.client, torkit.net.pipe")
    of_a_fetch = {"net.dir.fetch", "directory.compression", "directory.diff", "directory.http"}
    assert not added & {f"torkit.{name}" for name in of_a_fetch}
