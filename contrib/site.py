"""What mkdocs does not do by itself for our documentation; and a look at the links of what it has built.

As a hook of mkdocs: pages of documents that stand elsewhere in the repository, and of the manual.

    python contrib/site.py SITE       checks every link and picture, and that no page asks others for anything
"""

import html
import posixpath
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from torkit.cli.manual import FIXED_SPACE, Block, Span, read_page  # noqa: E402  # needs the path above

# Documents that stand elsewhere: path in the repository, and name as a page.
DOCUMENTS = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "reporting.md",
    "bench/README.md": "measured.md",
}
PICTURES = tuple(sorted(f"bench/{picture.name}" for picture in ROOT.glob("bench/*.png")))

# Links that lead to files which are no page.
NO_PAGES = ("contrib/", "deploy/", "tests/", "CONTRIBUTING.md", "README.md", "LICENSE")


# ---- as a hook ---------------------------------------------------------------------------------------


def on_config(config: Any) -> None:
    for entry in config.nav:
        if "Commands" in entry:
            pages = [{page.stem.replace("-", " ", 1): f"commands/{page.stem}.md"} for page in manual_pages()]
            entry["Commands"] = [{"All": entry["Commands"]}, *pages]


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for place, name in DOCUMENTS.items():
        text = (ROOT / place).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=with_links_of(text, posixpath.dirname(place))))
    for place in PICTURES:
        files.append(File.generated(config, posixpath.basename(place), content=(ROOT / place).read_bytes()))
    for page in manual_pages():
        text = page_of_manual(page.stem, page.read_text(encoding="utf-8"))
        files.append(File.generated(config, f"commands/{page.stem}.md", content=text))
    files.append(File.generated(config, "commands/index.md", content=list_of_commands()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return with_links_of(markdown, "docs") if page.file.generated_by is None else markdown


def with_links_of(text: str, folder: str) -> str:
    """Returns a document of `folder` with its links as the site has them: pages beside each other."""

    def changed(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        if urlsplit(target).scheme:
            return found[0]
        place = posixpath.normpath(posixpath.join(folder, target))
        if place.startswith(NO_PAGES):
            return f"{words.strip('[]')} (`{place}`)" if words.strip("[]") != place else f"`{place}`"
        if place.startswith("man/"):
            return f"{words}(commands/{Path(place).stem}.md)"
        return f"{words}({DOCUMENTS.get(place, place.removeprefix('docs/').removeprefix('bench/'))}{anchor})"

    return re.sub(r"(\[[^\]]*\])\(([^)#\s]+)(#[^)\s]*)?\)", changed, text)


# ---- the manual --------------------------------------------------------------------------------------


def manual_pages() -> list[Path]:
    return sorted((ROOT / "man").glob("*.1"))


def page_of_manual(name: str, page: str) -> str:
    """Returns a manual page as Markdown, most of it HTML."""
    lines = [f"# {name}", ""]
    for block in read_page(page):
        text = _html(block.text)
        if block.kind == "heading":
            lines += [f"## {''.join(span.text for span in block.text).strip().capitalize()}", ""]
        elif block.kind == "subheading":
            lines += [f"### {''.join(span.text for span in block.text).strip()}", ""]
        else:
            lines += [_element(block, text), ""]
    return "\n".join(lines)


def _element(block: Block, text: str) -> str:
    if block.kind == "example":
        element = f"<pre><code>{html.escape(''.join(span.text for span in block.text).rstrip())}</code></pre>"
    elif block.kind == "item":
        tags = "<br>".join(_html(tag) for tag in block.tags)
        element = f"<dl><dt>{tags}</dt><dd>{text}</dd></dl>"
    else:
        element = f"<p>{text}</p>"
    return f'<div class="manual-{block.depth}">{element}</div>'


def _html(spans: list[Span]) -> str:
    marks = {"B": "<b>{}</b>", "I": "<i>{}</i>", "R": "{}"}
    parts = []
    for span in spans:
        text = html.escape(span.text, quote=False).replace(FIXED_SPACE, "&nbsp;").replace("\n", "<br>")
        parts.append(marks[span.font].format(text))
    text = "".join(parts).strip()
    return re.sub(r"<b>(torkit(?:-[a-z-]+)?)</b>\(1\)", r'<a href="\1.html">\1</a>(1)', text)


def list_of_commands() -> str:
    from torkit.cli.teaching import GROUPS

    lines = ["# Commands", ""]
    lines += [
        "Made from the manual pages, which `torkit help COMMAND` shows as well. Options of all commands,"
    ]
    lines += ["paths, exit statuses and files are in [torkit](torkit.md).", ""]
    for title, group in GROUPS.items():
        lines += [f"## {title}", "", "| command | what it does | try |", "|---|---|---|"]
        for name, lesson in group.items():
            has_page = (ROOT / "man" / f"torkit-{name}.1").exists()
            command = f"[{name}](torkit-{name}.md)" if has_page else name
            lines.append(f"| {command} | {lesson.summary} | `{lesson.example}` |")
        lines.append("")
    return "\n".join(lines)


# ---- looking at what was built -----------------------------------------------------------------------


class _Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []  # with the element's name
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.anchors |= {known[name] for name in ("id", "name") if name in known}
        if "href" in known and not (tag == "link" and known.get("rel") == "canonical"):
            self.links.append((tag, known["href"]))
        if "src" in known:
            self.links.append((tag, known["src"]))


def faults_of(site: Path) -> list[str]:
    """Returns a line for each link that leads nowhere, and each thing that a page would fetch from others."""
    pages = {path.resolve(): _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    faults = []
    for path, page in pages.items():
        for tag, link in page.links:
            parts = urlsplit(link)
            where = f"{path.relative_to(site.resolve())}: <{tag}> {link}"
            if parts.scheme or parts.netloc:
                if tag != "a":
                    faults.append(f"{where}: fetched from others")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if path.name == "404.html" and parts.path.startswith("/"):
                target = (site / parts.path.lstrip("/")).resolve()
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                faults.append(f"{where}: leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                faults.append(f"{where}: no such place in the page")
    for path in site.rglob("*.css"):
        for link in re.findall(
            r"url\(\s*['\"]?(?!data:)((?:https?:)?//[^)]*)\)", path.read_text(encoding="utf-8")
        ):
            faults.append(f"{path.relative_to(site)}: {link}: fetched from others")
    return faults


if __name__ == "__main__":
    found = faults_of(Path(sys.argv[1]))
    print("\n".join(found) or "every link leads somewhere, and nothing is fetched from others")
    sys.exit(bool(found))
