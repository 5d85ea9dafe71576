"""What people see: pages without scripts, pictures or anything of another place, in one small style."""

import base64
import hashlib
import os
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from torkit.share.form import Received
from torkit.share.tree import Entry
from torkit.sizes import to_size

ZIP_QUERY = "zip"  # what a request for a directory asks for all of it with

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; }
td { padding: .4rem 0; border-top: 1px solid #8886; overflow-wrap: anywhere; }
td + td { text-align: right; white-space: nowrap; padding-left: 1rem; opacity: .7; }
a { color: #7d4698; }
@media (prefers-color-scheme: dark) { a { color: #c9a0e4; } }
button { font: inherit; padding: .4rem 1rem; }
p.note { opacity: .7; }
"""

# A page may use that style, and send a form to where it came from; nothing else.
POLICY = (
    "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)


def to_text(name: str) -> str:
    """Returns a name of the system's as it can be shown, without what is no character or moves others."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def to_link(name: str) -> str:
    """Returns a relative reference to what has this name in the directory that the page is of."""
    return "./" + quote(os.fsencode(name), safe="")


def listing(name: str, path: Sequence[str], entries: Sequence[Entry], *, has_zip: bool) -> str:
    """Returns the page of the directory at `path`, names from the root `name` downwards."""
    rows = [_row("../", "..", "")] if path else []
    for entry in entries:
        text = _name(entry.name)
        if entry.size is None:
            rows.append(_row(to_link(entry.name) + "/", text + "/", ""))
        elif entry.is_readable:
            rows.append(_row(to_link(entry.name), text, to_size(entry.size)))
        else:
            rows.append(_row(None, text, "cannot be read"))
    body = f"<table>\n{''.join(rows)}</table>\n" if rows else "<p>There is nothing here.\n"
    if has_zip:
        body += f'<p><a href="./?{ZIP_QUERY}">All of it, as a zip file</a>\n'
    heading = " / ".join(map(_name, (name, *path))) if has_zip or path else _name(name)
    return _page(to_text(path[-1] if path else name), heading, body)


def upload(left: int) -> str:
    """Returns the page with the form, where `left` bytes may still come."""
    body = (
        '<form method="post" enctype="multipart/form-data" action="./">\n'
        '<p><input type="file" name="file" multiple required>\n'
        "<p><button>Send</button>\n</form>\n"
        f'<p class="note">Up to {to_size(left)}. Your browser tells how far it has come.\n'
    )
    return _page("Send files", "Send files", body)


def thanks(received: Sequence[Received]) -> str:
    """Returns the page that tells what has come."""
    rows = "".join(_row(None, _name(one.name), to_size(one.size)) for one in received)
    body = f'<table>\n{rows}</table>\n<p><a href="./">Send more</a>\n'
    return _page("Received", "Received", body)


def sorry(title: str, text: str) -> str:
    """Returns the page that tells why there is nothing else."""
    return _page(title, escape(title), f"<p>{escape(text)}\n")


def _name(name: str) -> str:
    return f"<bdi>{escape(to_text(name))}</bdi>"


def _row(link: str | None, text: str, size: str) -> str:
    shown = text if link is None else f'<a href="{escape(link)}">{text}</a>'
    return f"<tr><td>{shown}<td>{size}\n"


def _page(title: str, heading: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n<h1>{heading}</h1>\n{body}"
    )
