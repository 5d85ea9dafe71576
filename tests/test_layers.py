"""Who may import whom: every module's imports against the rules of the design, by file and line.

Imports under TYPE_CHECKING keep the same rules: no exception has been needed.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from house import MAX_LINES, arrows, circles

ROOT = Path(__file__).parents[1]

# What each room may import of torkit besides itself and EVERYBODYS. A room is a folder or a module.
EVERYBODYS = {"torkit.errors", "torkit.params"}
ROOMS = {
    "torkit.errors": set[str](),
    "torkit.params": set[str](),
    "torkit.files": set[str](),
    "torkit._fast": set[str](),
    "torkit.proto": {"_fast"},
    # proto: Ed25519 certificates are the same everywhere. files: of the cache only.
    "torkit.directory": {"_fast", "proto", "files"},
    "torkit.hs": {"_fast", "proto", "directory"},
    "torkit.paths": {"directory", "learnt"},
    "torkit.learnt": set[str](),
    "torkit.public_network": set[str](),
    "torkit.config": {"public_network", "files"},
    "torkit.events": set[str](),
    "torkit.namespaces": set[str](),
    "torkit.sandbox": {"namespaces"},
    "torkit.net": {
        *("events", "_fast", "proto", "files", "directory", "hs", "paths", "learnt"),
    },
    "torkit.opening": {"net", "paths", "directory", "config"},
    # proto: what a user may choose about handshakes. hs: what onion services are asked with.
    "torkit.client": {"opening", "net", "paths", "directory", "config", "proto", "hs"},
    # What a program without trio is handed, and how it is told of errors.
    "torkit.socket_errors": set[str](),
    "torkit.in_thread": {"client", "net", "socket_errors"},
    "torkit.blocking": {"client", "net", "in_thread"},
    "torkit.aio": {"client", "net", "in_thread"},
    # For other libraries, each of which only its own file imports.
    "torkit.httpx": {"aio", "blocking", "client", "net", "socket_errors"},
    "torkit.requests": {"blocking", "socket_errors"},
    "torkit.aiohttp": {"aio", "socket_errors"},
    "torkit.pytest": {"blocking", "client", "in_thread", "net", "testnet"},
    "torkit.testnet": {"files"},
    # The second opinion: it takes the numbers of commands from cells, and nobody imports it.
    "torkit.testing": {"_fast"},
    "torkit.targets": set[str](),
    "torkit.sizes": set[str](),
    # net: threads, where the system may be short of them.
    "torkit.share": {"net", "sizes"},
    # A client of its own, of net's parts: without guards and state. proto: whom an exit may be asked for.
    "torkit.scan": {"net", "paths", "directory", "config", "proto", "targets", "files"},
    # proto: what a user may choose about handshakes.
    "torkit.cli": {
        *("client", "net", "paths", "directory", "testnet", "config", "proto", "files", "_fast", "hs"),
        *("namespaces", "sandbox", "scan", "share", "sizes", "targets"),
    },
    "torkit.__main__": {"cli"},
    "torkit": {"aio", "blocking", "client", "config", "directory", "events", "net", "paths"},
}

# The rooms of net, and which of the others each may import. All may import the files beside them.
NET_ROOMS = {
    "circuit": set[str](),
    "link": {"circuit"},
    "circuits": {"circuit", "link"},
    "dir": {"circuit", "link", "circuits"},
    "monitor": {"circuit"},
    "onion": {"circuit", "circuits", "dir"},
    "hosting": {"circuit", "link", "circuits", "dir", "onion"},
    "proxy": {"circuit", "link", "circuits"},
}

# Who may import what from elsewhere.
SHELL = {
    *("torkit.net", "torkit.opening", "torkit.client", "torkit.in_thread", "torkit.testnet"),
    *("torkit.cli", "torkit.scan", "torkit.share"),
}
OUTSIDE = {
    "trio": SHELL | {"torkit.httpx", "torkit.pytest", "torkit.testing.relay.tls"},
    "httpx": {"torkit.httpx"},
    "httpcore": {"torkit.httpx"},
    "requests": {"torkit.requests"},
    "urllib3": {"torkit.requests"},
    "aiohttp": {"torkit.aiohttp"},
    "pytest": {"torkit.pytest"},
    "typer": {"torkit.cli"},
    "backports": {"torkit.directory.compression"},
    "h11": {
        *("torkit.proto.http", "torkit.net.proxy.forward", "torkit.net.monitor.pages"),
        "torkit.scan.probes",
    },
    "matplotlib": {"torkit.scan.plots"},
    "hypercorn": {"torkit.share.server"},
    "starlette": {"torkit.share.app"},
    "python_multipart": {"torkit.share.form"},
    "nacl": {"torkit.hs.keys"},
    "cryptography": {"torkit.testing"},  # of tests only: it brings another OpenSSL, and costs a start 30 ms
}

TOUCHES_THE_SYSTEM = SHELL | {
    *("torkit.directory.cache", "torkit.config", "torkit.files", "torkit.namespaces", "torkit.sandbox"),
    *("torkit.socket_errors", "torkit.blocking", "torkit.aio"),
    *("torkit.httpx", "torkit.requests", "torkit.aiohttp", "torkit.pytest", "torkit.testing"),
}
OPERATING_SYSTEM = {
    *("asyncio", "ctypes", "fcntl", "glob", "io", "mmap", "multiprocessing", "os", "pathlib", "resource"),
    *("secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl", "subprocess"),
    *("sys", "tempfile", "termios", "threading", "tty"),
}
HARMLESS = {"sys": {"intern"}}  # names that touch nothing

# Where time and randomness are arguments, and nothing is logged.
PURE = {
    "torkit._fast",
    "torkit.params",
    "torkit.events",
    "torkit.proto",
    "torkit.directory",
    "torkit.hs",
    "torkit.paths",
    "torkit.learnt",
}
CLOCKS = {"time", "logging"}


class Import(NamedTuple):
    importer: str
    imported: str
    names: frozenset[str]  # of `from ... import`
    line: str  # where, and the text


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    text = path.read_text()
    name = module_name(path)

    def at(number: int) -> str:
        return f"{path.relative_to(ROOT)}:{number}: {text.splitlines()[number - 1].strip()}"

    if path.suffix != ".py":  # Cython
        for number, line in enumerate(text.splitlines(), 1):
            if match := re.match(r"\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))", line):
                yield Import(name, match[1] or match[2], frozenset(), at(number))
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, frozenset(), at(node.lineno))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, at(node.lineno)
            assert node.module is not None
            names = frozenset(alias.name for alias in node.names)
            if node.module == "torkit":
                for one in names:
                    yield Import(name, f"torkit.{one}", frozenset(), at(node.lineno))
            else:
                yield Import(name, node.module, names, at(node.lineno))


def net_room_of(module: str) -> str | None:
    """Which room of net a module is in; None for those in no room and those beside the rooms."""
    match = re.match(r"torkit\.net\.(\w+)", module)
    return match[1] if match and match[1] in NET_ROOMS else None


def room_of(module: str) -> str:
    return next(room for room in ROOMS if module == room or (room != "torkit" and is_in(module, {room})))


def is_in(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def broken_rule(one: Import) -> str | None:
    """Which rule an import breaks."""
    top = one.imported.partition(".")[0]
    if top == "torkit":
        room, target = room_of(one.importer), room_of(one.imported)
        allowed = {f"torkit.{name}" for name in ROOMS[room]} | {room, *EVERYBODYS}
        if room in EVERYBODYS or target not in allowed:
            return f"{room} may not import {target}"
        inner, wanted = net_room_of(one.importer), net_room_of(one.imported)
        if inner and wanted and wanted not in {inner, *NET_ROOMS[inner]}:
            return f"net.{inner} may not import net.{wanted}"
    if top in OUTSIDE and not is_in(one.importer, OUTSIDE[top]):
        return f"{top} is for {', '.join(sorted(OUTSIDE[top])) or 'tests'} only"
    if (
        top in OPERATING_SYSTEM
        and not is_in(one.importer, TOUCHES_THE_SYSTEM)
        and not (one.names and one.names <= HARMLESS.get(top, set()))
    ):
        return f"{room_of(one.importer)} may not touch the operating system"
    if is_in(one.importer, PURE):
        if top in CLOCKS:
            return f"{top} is not for {room_of(one.importer)}: time is an argument and nothing is logged"
        if top == "random" and one.names != {"Random"}:
            return "randomness is an argument: only the type may be imported"
    return None


MODULES = sorted(path for pattern in ("*.py", "*.pyx", "*.pxd") for path in (ROOT / "torkit").rglob(pattern))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_the_rules(path: Path) -> None:
    broken = [f"{rule}\n    {one.line}" for one in imports_of(path) if (rule := broken_rule(one))]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("torkit.errors", "torkit.config"),
        ("torkit._fast.channel", "torkit.proto.cells"),
        ("torkit.proto.cells", "torkit.directory.netdoc"),
        ("torkit.directory.consensus", "torkit.net.circuit.circuit"),
        ("torkit.directory.consensus", "torkit.paths.choose"),
        ("torkit.learnt.path_bias", "torkit.paths.guards"),
        ("torkit.net.circuits", "torkit.config"),
        ("torkit.net.circuit.stream", "torkit.net.link.channel"),
        ("torkit.net.circuits.pool", "torkit.net.proxy"),
        ("torkit.client", "torkit.public_network"),
        ("torkit.testnet", "torkit.net.link.channel"),
        ("torkit.cli.socks", "torkit.learnt.refusals"),
        ("torkit.proto.channel", "trio"),
        ("torkit.net.proxy.client", "typer"),
        ("torkit.proto.certs", "cryptography.x509"),
        ("torkit.directory.consensus", "pathlib"),
        ("torkit.proto.ntor", "os"),
        ("torkit.paths.choose", "time"),
        ("torkit.paths.guards", "random"),
    ],
)
def test_a_broken_rule_is_seen(importer: str, imported: str) -> None:
    assert broken_rule(Import(importer, imported, frozenset(), ""))


def test_the_second_opinion_takes_the_numbers_of_commands_and_nothing_else() -> None:
    taken = {
        (one.imported, name)
        for path in MODULES
        if is_in(module_name(path), {"torkit.testing"})
        for one in imports_of(path)
        if one.imported.startswith("torkit.") and not is_in(one.imported, {"torkit.testing"})
        for name in one.names or {"all of it"}
    }
    assert taken == {("torkit._fast.cells", "Command"), ("torkit._fast.cells", "RelayCommand")}


def test_every_room_of_net_has_its_rules() -> None:
    rooms = {path.parent.name for path in (ROOT / "torkit/net").glob("*/__init__.py")}
    assert rooms == set(NET_ROOMS)


def test_sockets_to_relays_are_opened_in_one_place() -> None:
    openers = {"from_stdlib_socket", "open_tcp_stream", "create_connection"}
    found = {
        module_name(path)
        for path in MODULES
        if path.suffix == ".py" and is_in(module_name(path), {"torkit.net", "torkit.client"})
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in openers
    }
    assert found == {"torkit.net.link.dial"}


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(arrows()) == []


def test_a_circle_is_seen() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [["a", "b", "c"], ["d", "e"]]


def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in MODULES}
    assert {name for name, length in lengths.items() if length > MAX_LINES} == set()


@pytest.mark.parametrize(("name", "limit"), [("torkit/client.py", 300), ("ARCHITECTURE.md", 150)])
def test_the_librarys_face_and_the_map_stay_short(name: str, limit: int) -> None:
    assert (ROOT / name).read_text().count("\n") <= limit


def test_a_mark_that_silences_a_checker_says_why() -> None:
    files = [path for room in ("torkit", "tests", "bench", "contrib") for path in (ROOT / room).rglob("*.py")]
    marks = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (*files, ROOT / "setup.py")
        for line in path.read_text().splitlines()
        if re.search(r"# (?:noqa|type: ignore)\b", line) and "# (?:" not in line
    ]
    assert len(marks) > 20
    assert [one for one in marks if not re.search(r"(?:noqa: [A-Z]+\d+|ignore\[[a-z,-]+\])  # \w", one)] == []


def test_no_file_of_tests_is_too_long() -> None:
    lengths = {path.name: path.read_text().count("\n") for path in (ROOT / "tests").rglob("*.py")}
    assert {name for name, length in lengths.items() if length > 1000} == set()


def test_an_import_is_known_by_its_line() -> None:
    (one,) = [
        i for i in imports_of(ROOT / "torkit/paths/guards.py") if i.imported == "torkit.paths.constraints"
    ]
    assert re.fullmatch(r"torkit/paths/guards\.py:\d+: from torkit\.paths\.constraints import .*", one.line)
