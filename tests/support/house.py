"""A picture of the house: its rooms, who imports whom, and circles of files. `scripts/house` prints it.

A room is a folder of torkit or a module beside them; net/ is one room with rooms of its own.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_LINES = 600


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Every Python module of torkit, by name. (The compiled ones import nothing above them.)"""
    return {module_name(path, root): path for path in sorted((root / "torkit").rglob("*.py"))}


def imports_of(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of torkit that a file imports, wherever in it and for types alone, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in known:
                    yield submodule
                elif node.module in known:
                    yield node.module


def arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """By module, the modules that it imports."""
    known = sources(root)
    return {name: set(imports_of(path, known)) - {name} for name, path in known.items()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Every group of modules each of which imports all others of it, over some way."""
    reached = {name: _reachable(name, graph) for name in graph}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def _reachable(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(graph[name])
    return found


def room_of(module: str) -> str:
    parts = module.split(".")[1:]
    is_deep = len(parts) > 2 and parts[0] == "net"
    return ".".join(parts[: 2 if is_deep else 1]) or "torkit"


def main() -> None:
    graph = arrows()
    known = sources()
    lines = {name: path.read_text().count("\n") for name, path in known.items()}
    files, sizes = Counter(map(room_of, graph)), Counter[str]()
    for name in graph:
        sizes[room_of(name)] += lines[name]
    between = Counter(
        (room_of(name), room_of(other))
        for name, others in graph.items()
        for other in others
        if room_of(name) != room_of(other)
    )
    everybodys = {"errors", "params"}
    count = sum(other not in everybodys for _, other in between)
    print(
        f"{len(files)} rooms, {count} arrows between them (without those to {', '.join(sorted(everybodys))})"
    )
    for room in sorted(files):
        targets = sorted(other for one, other in between if one == room and other not in everybodys)
        print(f"  {room:16} {files[room]:3} files {sizes[room]:6} lines  -> {', '.join(targets) or '-'}")
    found = circles(graph)
    print(f"{len(found)} circles of files")
    for circle in found:
        print("  " + ", ".join(circle))
    large = {name: count for name, count in lines.items() if count > MAX_LINES}
    print(f"{len(large)} files over {MAX_LINES} lines")
    for name, count in large.items():
        print(f"  {name}: {count}")


if __name__ == "__main__":
    main()
