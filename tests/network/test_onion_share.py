"""`torkit onion share` on a private network of real relays: curl and Chromium fetch, curl sends."""

import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from network.devtools import running_browser
from network.torkit_process import Proxy, Shell, skip_without

pytestmark = [pytest.mark.network]

LARGE = 2 << 20
DATA = os.urandom(LARGE)


@contextmanager
def sharing(shell: Shell, arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Runs `torkit onion share`; gives its page's address."""
    with shell.running(f"exec torkit onion share {arguments}") as process:
        assert process.stdout is not None
        address = process.stdout.readline().decode().strip()
        assert re.fullmatch(r"http://[a-z2-7]{56}\.onion/", address), process.communicate()
        yield address, process


def said_at_end(process: subprocess.Popen[bytes]) -> str:
    """What a share that ends by itself has said; its status is 0."""
    _, said = process.communicate(timeout=100)
    assert b"Traceback" not in said
    assert process.returncode == 0, said
    return said.decode()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "holiday"
    (place / "more").mkdir(parents=True)
    (place / "large").write_bytes(DATA)
    (place / "more" / "note.txt").write_text("a note")
    return place


@skip_without("chromium")
def test_curl_and_a_browser_see_a_page_and_one_download_ends_it(
    shell: Shell, proxy: Proxy, place: Path, tmp_path: Path
) -> None:
    curl = proxy.curl()
    made = shell.run(f"torkit onion new {tmp_path}/key").stdout.decode().strip()
    arguments = f"--once --key {tmp_path}/key {place}"
    with sharing(shell.with_data_dir(tmp_path / "data"), arguments) as (address, process):
        assert address == f"http://{made}/"
        page = shell.run(f"{curl} -i {address}").stdout.decode()
        assert "holiday" in page
        assert '<a href="./more/">' in page
        assert not re.search("(?im)^(server|date):", page)
        part = shell.run(f"{curl} -i -r 5-14 {address}large").stdout
        assert part.startswith(b"HTTP/1.1 206 ")
        assert part.endswith(b"\r\n\r\n" + DATA[5:15])
        with running_browser([], str(tmp_path / "profile")) as browser:
            picture = browser.picture(address, proxy=f"http://{proxy.address}")
        assert picture.startswith(b"\x89PNG")
        (tmp_path / "page.png").write_bytes(picture)
        assert shell.run(f"{curl} -o {tmp_path}/all.zip '{address}?zip'").returncode == 0
        with zipfile.ZipFile(tmp_path / "all.zip") as archive:
            assert archive.testzip() is None
            assert archive.read("large") == DATA
        said = said_at_end(process)
    assert f"{place}: 2 files, 2.0 MiB" in said
    assert "large: 10 B of 10 B, sent" in said
    assert "holiday.zip: 2.0 MiB, sent" in said


def test_curl_sends_a_file_and_that_was_all(shell: Shell, proxy: Proxy, place: Path, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    arguments = f"--once --receive {tmp_path}/inbox"
    with sharing(shell.with_data_dir(tmp_path / "data"), arguments) as (address, process):
        assert b"multipart/form-data" in shell.run(f"{proxy.curl()} {address}").stdout
        thanks = shell.run(f"{proxy.curl()} -F file=@{place}/large {address}").stdout
        assert b"<bdi>large</bdi>" in thanks
        assert "large: 2.0 MiB, received" in said_at_end(process)
    assert {path.name: path.read_bytes() for path in (tmp_path / "inbox").iterdir()} == {"large": DATA}
