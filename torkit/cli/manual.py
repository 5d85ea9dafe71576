"""The manual pages: where they are, and what they say.

Reads the macros of man(7) that our own pages use, so that `torkit help` has them where no man is, and the
documentation as well.
"""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE_DIR = Path(__file__).parents[2] / "man"  # of a source tree

WIDTH = 80  # columns of plain text
INDENT = 7  # columns of each step, as man has it

# Escapes of roff. A space that breaks no line stays one until the text is filled.
FIXED_SPACE = "\N{NO-BREAK SPACE}"
ESCAPES = {r"\-": "-", r"\e": "\\", r"\(dq": '"', r"\ ": FIXED_SPACE, r"\&": ""}


class Span(NamedTuple):
    """Text in one font: R, B or I, for roman, bold and italic."""

    font: str
    text: str


class Block(NamedTuple):
    """A part of a page. A newline within `text` is one that the page asks for."""

    kind: str  # "heading", "subheading", "paragraph", "item" or "example"
    text: list[Span]
    depth: int = 0  # how far it is indented beyond the text around it
    tags: tuple[list[Span], ...] = ()  # of an item


def find_page(command: str) -> Path | None:
    """Returns the manual page of a command, "" for torkit's own: of the source tree, else as installed."""
    name = f"torkit-{command}.1" if command else "torkit.1"
    if (page := SOURCE_DIR / name).exists():
        return page
    from importlib.metadata import PackageNotFoundError, files

    try:
        installed = files("torkit") or ()
    except PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in installed if file.name == name)
    return next((page for page in found if page.exists()), None)


# ---- reading -----------------------------------------------------------------------------------------


def read_page(page: str) -> list[Block]:
    """Returns the blocks of a page. Raises ValueError for a macro that none of our pages uses."""
    blocks: list[Block] = []
    depth = 0
    is_example = False
    lines = iter(page.splitlines())
    for line in lines:
        macro, _, rest = line.partition(" ")
        if not line.startswith("."):
            _add(blocks, [*_spans(line), *_end_of_line(is_example)])
        elif macro in (".B", ".I", ".BR", ".RB", ".BI", ".IB", ".IR", ".RI"):
            _add(blocks, [*_fonts(macro, rest), *_end_of_line(is_example)])
        elif macro == ".br":
            _add(blocks, [Span("R", "\n")])
        elif macro in (".SH", ".SS"):
            depth = 0
            kind = "heading" if macro == ".SH" else "subheading"
            blocks += [Block(kind, _spans(rest)), Block("paragraph", [])]
        elif macro == ".PP":
            blocks.append(Block("paragraph", [], depth))
        elif macro == ".TP":
            blocks.append(Block("item", [], depth, (_tag(next(lines)),)))
        elif macro == ".TQ":
            last = blocks[-1]
            blocks[-1] = last._replace(tags=(*last.tags, _tag(next(lines))))
        elif macro == ".IP":
            blocks.append(Block("item", [], depth, (_spans(rest),) if rest else ()))
        elif macro in (".RS", ".RE"):
            depth += 1 if macro == ".RS" else -1
            blocks.append(Block("paragraph", [], depth))
        elif macro in (".nf", ".fi"):
            is_example = macro == ".nf"
            blocks.append(Block("example" if is_example else "paragraph", [], depth))
        elif macro != ".TH":
            raise ValueError(f"no macro of our pages: {line}")
    return [block for block in blocks if block.text or block.tags]


def _end_of_line(is_example: bool) -> list[Span]:
    return [Span("R", "\n" if is_example else " ")]


def _add(blocks: list[Block], spans: list[Span]) -> None:
    blocks[-1].text.extend(spans)


def _tag(line: str) -> list[Span]:
    macro, _, rest = line.partition(" ")
    return _fonts(macro, rest) if line.startswith(".") else _spans(line)


def _fonts(macro: str, rest: str) -> list[Span]:
    """Returns what a macro like .B or .BR makes of its arguments."""
    # Quotes stand around an argument, whose other characters are roff's.
    arguments = [
        quoted if bare == "" else bare
        for quoted, bare in re.findall(r'"([^"]*)"|((?:\\.|[^\s\\"])(?:\\.|[^\s\\])*)', rest)
    ]
    fonts = macro[1:]
    if len(fonts) == 1:
        return _spans(" ".join(arguments), fonts)
    return [span for number, argument in enumerate(arguments) for span in _spans(argument, fonts[number % 2])]


def _spans(text: str, font: str = "R") -> list[Span]:
    spans = []
    previous = "R"
    for piece in re.split(r"(\\f[RBIP])", text):
        if re.fullmatch(r"\\f[RBIP]", piece):
            font, previous = (previous if piece[2] == "P" else piece[2]), font
        elif piece:
            spans.append(Span(font, re.sub(r"\\(?:\(..|.)", lambda found: ESCAPES[found[0]], piece)))
    return spans


# ---- as plain text -----------------------------------------------------------------------------------


def as_text(page: str, width: int = WIDTH) -> str:
    """Returns a page as a terminal shows it, without fonts."""
    return "\n".join(_lines(read_page(page), width)).strip("\n") + "\n"


def _lines(blocks: list[Block], width: int) -> Iterator[str]:
    for number, block in enumerate(blocks):
        if not (number and blocks[number - 1].kind.endswith("heading")):
            yield ""
        text = "".join(span.text for span in block.text)
        margin = INDENT * (1 + block.depth)
        if block.kind == "heading":
            yield text.strip()
        elif block.kind == "subheading":
            yield f"   {text.strip()}"
        elif block.kind == "example":
            yield from (" " * margin + _unfixed(line) for line in text.splitlines())
        elif block.kind == "item":
            for tag in block.tags:
                yield from _fill("".join(span.text for span in tag), margin, width)
            yield from _fill(text, margin + INDENT, width)
        else:
            yield from _fill(text, margin, width)


def _fill(text: str, margin: int, width: int) -> Iterator[str]:
    for line in text.split("\n"):
        if line.strip():
            indent = " " * margin
            filled = textwrap.wrap(
                line.strip(" "),
                width,
                initial_indent=indent,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            yield from map(_unfixed, filled)


def _unfixed(line: str) -> str:
    return line.replace(FIXED_SPACE, " ")
