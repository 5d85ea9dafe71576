"""torkit.cli.manual: the manual pages as text, and `torkit help` on a terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from torkit.cli import manual
from torkit.cli.manual import as_text, find_page, read_page

ROOT = Path(__file__).parents[2]

PAGE = r""".TH TORKIT 1
.SH NAME
torkit\-x \- does something
.SH DESCRIPTION
Words that are so many that one line of a narrow terminal does not hold
.BR them ,
nor
.I FILE\fR,
.br
next.
.PP
Again.
.TP
.BI \-\-path\  PATH\fR,\ \fB\-p
What it is.
.TQ
.B \-q
.RS
.TP
.B inner
Deep.
.RE
.SS Small
.nf
printf 'a\er'
  two
.fi
"""

TEXT = r"""NAME
       torkit-x - does something

DESCRIPTION
       Words that are so many that one line of
       a narrow terminal does not hold them,
       nor FILE,
       next.

       Again.

       --path PATH, -p
       -q
              What it is.

              inner
                     Deep.

   Small
       printf 'a\r'
         two
"""


def test_a_page_as_text() -> None:
    assert as_text(PAGE, width=46) == TEXT


def test_fonts_are_told() -> None:
    (item,) = [block for block in read_page(PAGE) if block.tags and len(block.tags) == 2]
    assert [(span.font, span.text) for span in item.tags[0]] == [
        ("B", "--path\N{NO-BREAK SPACE}"),
        ("I", "PATH"),
        ("R", ",\N{NO-BREAK SPACE}"),
        ("B", "-p"),
    ]


@pytest.mark.parametrize("page", sorted((ROOT / "man").glob("*.1")), ids=lambda page: page.stem)
def test_every_page_can_be_read(page: Path) -> None:
    text = as_text(page.read_text())
    assert text.startswith(f"NAME\n       {page.stem} - ")
    assert "\\" not in text.partition("EXAMPLES")[0].replace("\\r\\n", "")


def test_an_unknown_macro_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\.Sh"):
        read_page(".TH X 1\n.Sh NAME\n")


def test_where_no_page_is_installed_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_page("socks") == ROOT / "man" / "torkit-socks.1"
    assert find_page("") == ROOT / "man" / "torkit.1"
    monkeypatch.setattr(manual, "SOURCE_DIR", tmp_path)
    assert find_page("nothing") is None


@pytest.mark.parametrize("status", [0, 1])
def test_on_a_terminal_man_shows_the_page(tmp_path: Path, status: int) -> None:
    """Where it can; a man that has no pages, as in small containers, is as none."""
    program = tmp_path / "man"
    program.write_text(f'#!/bin/sh\n[ {status} = 1 ] || echo "shown: $1"\nexit {status}\n')
    program.chmod(0o755)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "torkit", "help", "relay"],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=os.environ | {"PATH": str(tmp_path)},
    ):
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    if status:
        assert shown.startswith(b"NAME\r\n       torkit-relay - ")
    else:
        assert shown.decode() == f"shown: {ROOT}/man/torkit-relay.1\r\n"
