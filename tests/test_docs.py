"""The tables of docs/: every test that they name exists, and no row is without evidence."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
OBSERVERS = DOCS / "observers.md"
SECURITY = DOCS / "security.md"
MAPS = (DOCS.parent / "ARCHITECTURE.md", DOCS / "glossary.md")
UNPROVEN = ("not equal", "not measured")


def _rows(page: Path) -> list[list[str]]:
    """Returns the cells of each row of `page` but headings."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if not row[0].startswith(("what", "---"))]


def _tests() -> set[str]:
    names = set()
    for path in (*TESTS.rglob("test_*.py"), *TESTS.rglob("soak_*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)
    return names


def test_every_test_that_is_named_exists() -> None:
    named = {name for page in DOCS.glob("*.md") for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert named
    assert named - _tests() == set()


def test_every_file_that_is_named_exists() -> None:
    """Such as `net/link/pump.py`, `proxy/`, `_fast/pump`; in a column of ARCHITECTURE.md without the room."""
    package = DOCS.parent / "torkit"
    for page in MAPS:
        named = re.findall(r"`([\w/]+(?:\.py|/|(?<=_fast/)\w+))`", page.read_text())
        assert named
        for name in named:
            found = [
                place
                for place in (package, package / "net", package / "proto", DOCS.parent)
                if (place / name).exists()
            ]
            assert found or (package / f"{name}.pyx").exists(), f"{page.name}: {name}"


def test_every_link_leads_somewhere_in_the_repository() -> None:
    """`make docs` looks at those of the site; its pages of commands are made there."""
    for page in (*DOCS.glob("*.md"), *DOCS.parent.glob("*.md"), DOCS.parent / "bench" / "README.md"):
        for target in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent == DOCS and target.startswith("commands/")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_site() -> None:
    named = set(re.findall(r"(\S+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(), re.MULTILINE))
    made = {"architecture.md", "changes.md", "commands/index.md", "measured.md", "reporting.md"}
    assert named == made | {page.name for page in DOCS.glob("*.md")}, "what is new belongs into mkdocs.yml"


def test_every_bound_names_its_test() -> None:
    for row in _rows(SECURITY):
        assert len(row) == 3, row
        assert re.search(r"`test_\w+`", row[-1]), row


def test_every_row_has_a_test_or_says_that_it_has_none() -> None:
    rows = _rows(OBSERVERS)
    assert len(rows) > 30
    for row in rows:
        *_, is_equal, evidence = row
        assert len(row) == 6, row
        assert is_equal in ("yes", "no", "?"), row
        if is_equal == "yes":
            assert re.search(r"`test_\w+`", evidence), row
        else:
            assert evidence.startswith(UNPROVEN), row
