"""contrib/site.py: what it makes of documents and of the manual, and what it finds in a site."""

import importlib.util
import posixpath
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site() -> Any:
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "contrib" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_between_documents_become_links_between_pages(site: Any) -> None:
    def changed(text: str, folder: str = "docs") -> str:
        return str(site.with_links_of(text, folder))

    assert changed("[map](../ARCHITECTURE.md#failing)") == "[map](architecture.md#failing)"
    assert changed("[map](docs/glossary.md)", "") == "[map](glossary.md)"
    assert changed("![plot](throughput.png)", "bench") == "![plot](throughput.png)"
    assert changed("![plot](../bench/throughput.png)") == "![plot](throughput.png)"
    assert (
        changed("[a](identities.md), [b](https://example.com/)")
        == "[a](identities.md), [b](https://example.com/)"
    )
    assert changed("[scan](../man/torkit-scan.1)") == "[scan](commands/torkit-scan.md)"
    assert changed("[a unit](../contrib/torkit.service)") == "a unit (`contrib/torkit.service`)"


def test_every_picture_of_a_document_is_in_the_site(site: Any) -> None:
    shown = {
        posixpath.normpath(posixpath.join(posixpath.dirname(place), picture))
        for place in site.DOCUMENTS
        for picture in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / place).read_text(encoding="utf-8"))
    }
    assert "bench/chaos.png" in shown
    assert shown <= set(site.PICTURES)


def test_a_manual_page_as_a_page(site: Any) -> None:
    page = site.page_of_manual(
        "torkit-x",
        ".TH X 1\n.SH SEE ALSO\n.BR torkit\\-run (1),\nwhat <is> it\n"
        ".TP\n.BI \\-\\-path\\  PATH\nYes.\n.nf\na < b\n.fi\n",
    )
    assert page.startswith("# torkit-x\n\n## See also\n")
    assert '<a href="torkit-run.html">torkit-run</a>(1), what &lt;is&gt; it' in page
    assert "<dt><b>--path&nbsp;</b><i>PATH</i></dt><dd>Yes.</dd>" in page
    assert "<pre><code>a &lt; b</code></pre>" in page


def test_every_command_is_listed(site: Any) -> None:
    from torkit.cli.teaching import LESSONS

    listed = site.list_of_commands()
    for name, lesson in LESSONS.items():
        assert name in listed
        assert lesson.summary in listed


def test_a_link_that_leads_nowhere_is_found(site: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.html").write_text(
        '<a href="folder/b.html#there">b</a> <a href="https://example.com/">out</a>'
    )
    (tmp_path / "folder" / "b.html").write_text(
        '<p id="there"><a href="../a.html">a</a><a href="#there">c</a>'
    )
    assert site.faults_of(tmp_path) == []
    (tmp_path / "folder" / "b.html").write_text(
        '<a href="c.html">c</a><a href="../a.html#x">x</a><script src="https://example.com/x.js"></script>'
    )
    (tmp_path / "x.css").write_text(
        "a { background: url('//example.com/font') } b { background: url(data:x) }"
    )
    faults = site.faults_of(tmp_path)
    assert [fault.rpartition(": ")[2] for fault in faults] == [
        "no such place in the page",
        "leads nowhere",
        "no such place in the page",
        "fetched from others",
        "fetched from others",
    ]
