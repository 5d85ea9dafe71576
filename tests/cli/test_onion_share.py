"""`torkit onion share`: what it takes, what it refuses before anything is published, and what it says."""

import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from torkit.cli.onion_share import FAREWELL, say_news, show_transfers, wait_until_fetched
from torkit.share.transfers import Transfers


def share(*arguments: str, without: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command in a Python that has no module `without`."""
    code = f"import sys; sys.modules[{without!r}] = None; from torkit.__main__ import start; start()"
    command = [sys.executable, "-c", code, "onion", "share", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "takes a file or a directory, or --receive"),
        (["a", "--receive", "b"], "takes a file or a directory, or --receive"),
        (["--receive", "b", "--max-bytes", "much"], "--max-bytes: 'much' is no size"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], why: str) -> None:
    refused = share(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert why in refused.stderr


@pytest.mark.parametrize("module", ["starlette", "hypercorn", "python_multipart"])
def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path, module: str) -> None:
    refused = share(str(tmp_path), without=module)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "pip install 'torkit[share]'" in refused.stderr
    assert "Traceback" not in refused.stderr


class FakeSite:
    def __init__(self) -> None:
        self.whole = trio.Event()
        self.went_on = 0

    def go_on(self) -> None:
        self.whole = trio.Event()
        self.went_on += 1


class FakeListener:
    connection_count = 1
    cut_count = 0


async def test_it_ends_when_all_was_fetched_and_the_visitor_has_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    site, listener = FakeSite(), FakeListener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_until_fetched, site, listener)  # type: ignore[arg-type]  # what it needs of them
        await trio.sleep(1000)
        assert len(nursery.child_tasks) == 1
        site.whole.set()
        await trio.sleep(FAREWELL / 2)
        assert len(nursery.child_tasks) == 1
        listener.connection_count = 0
    assert site.went_on == 0


async def test_a_connection_that_stays_open_is_not_waited_for_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    site = FakeSite()
    site.whole.set()
    with trio.fail_after(FAREWELL + 1):
        await wait_until_fetched(site, FakeListener())  # type: ignore[arg-type]  # what it needs of them


async def test_it_goes_on_where_the_last_connection_was_lost(autojump_clock: trio.testing.MockClock) -> None:
    site, listener = FakeSite(), FakeListener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_until_fetched, site, listener)  # type: ignore[arg-type]  # what it needs of them
        site.whole.set()
        await trio.sleep(1)
        listener.cut_count, listener.connection_count = 1, 0
        await trio.sleep(1)
        assert site.went_on == 1
        site.whole.set()
    assert site.went_on == 1


async def test_a_bar_or_lines_tell_what_is_under_way(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    transfers = Transfers()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(show_transfers, transfers)
        with transfers.under_way("large", 4 << 20) as transfer:
            transfer.done = 1 << 20
            await trio.sleep(11.5)
            with transfers.under_way("other", None):
                await trio.sleep(11)
        transfers.tell("\x1b[31mred: 1 B of 1 B, sent")
        await trio.sleep(1.5)
        nursery.cancel_scope.cancel()
    assert capsys.readouterr().err.splitlines() == [
        "torkit: 25%, 10 s: large: 1.0 MiB of 4.0 MiB",
        "torkit: 25%, 20 s: other: 0 B, and 1 more",
        "torkit: ?[31mred: 1 B of 1 B, sent",
    ]


def test_of_too_much_news_only_the_number_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    transfers = Transfers()
    for number in range(12):
        transfers.tell(f"file{number}")
    say_news(transfers)
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == ["torkit: file9", "torkit: and 2 more"]
