"""`torkit onion share`: files as a page over an onion service, or uploads by one."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli import progress
from torkit.cli.failures import OK
from torkit.cli.memory import parse_size
from torkit.cli.options import Options
from torkit.cli.running import open_client, run
from torkit.cli.voice import say
from torkit.errors import NotPossible, UsageError
from torkit.sizes import to_size

if TYPE_CHECKING:
    from torkit.cli.onion_services import Service
    from torkit.net.hosting.serve import OnionListener
    from torkit.share.app import Site
    from torkit.share.transfers import Transfers

PORT = 80  # of the page
EXTRA = {"hypercorn", "python_multipart", "starlette"}  # what torkit[share] brings

# Implementation limits: connections of all visitors at once, and of one visitor's circuit.
MAX_CONNECTIONS = 256
MAX_STREAMS = 32

# Seconds after the last byte: until a connection that its visitor leaves open is not waited for any more, and
# in which one that is lost may have lost some of it on its way.
FAREWELL = 60.0
UNDER_WAY = 15.0
LOOK_INTERVAL = 0.1


def share(
    context: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE|DIR]", show_default=False, help="What is shared."),
    ] = None,
    receive: Annotated[
        Path | None,
        typer.Option("--receive", metavar="DIR", help="Take uploads, and store them in DIR, instead."),
    ] = None,
    max_bytes: Annotated[
        str,
        typer.Option("--max-bytes", metavar="SIZE", help="How much may be uploaded in all, as 500M or 2G."),
    ] = "1G",
    once: Annotated[
        bool, typer.Option("--once", help="End when all has been downloaded once, or after one upload.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="DIR", help="The service's directory; without it, a new address each time."
        ),
    ] = None,
) -> None:
    """Share files as a page, or take uploads, until stopped.

    The address of the page is printed once it can be found.
    """
    from torkit.cli.onion_services import make_service

    options: Options = context.obj
    if (path is None) == (receive is None):
        raise UsageError("share takes a file or a directory, or --receive DIR")
    limit = parse_size(max_bytes, "--max-bytes")
    assert limit is not None
    try:
        from torkit.share.app import Downloads, Uploads
        from torkit.share.inbox import Inbox
        from torkit.share.server import serving
        from torkit.share.transfers import Transfers
        from torkit.share.tree import Tree
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise NotPossible(
            "pages are served by Hypercorn and Starlette, which are not installed",
            hint="pip install 'torkit[share]'",
        ) from error
    transfers = Transfers()
    service = make_service("", [str(PORT)], key, has_pow=False, intro_limit=None)
    with ExitStack() as stack:
        site: Site
        if path is not None:
            tree = Tree(path)
            stack.callback(tree.close)
            summary = tree.summarize()
            many = "1 file" if summary.files == 1 else f"{summary.files} files"
            say(f"{path}: {many}, {to_size(summary.size)}")
            if summary.hidden:
                names = "1 name begins" if summary.hidden == 1 else f"{summary.hidden} names begin"
                say(f"{names} with a dot, and what it names is shared, too")
            site = Downloads(tree, transfers, once=once)
        else:
            assert receive is not None
            inbox = Inbox(receive, limit)
            stack.callback(inbox.close)
            say(f"uploads go to {receive}, {to_size(limit)} at most")
            site = Uploads(inbox, transfers, once=once)

        async def command() -> None:
            async with serving(site) as place:
                await serve_site(options, service, site, place, transfers, once=once)

        run(command, options, on_sigterm=OK)


async def serve_site(
    options: Options, service: "Service", site: "Site", place: Path, transfers: "Transfers", *, once: bool
) -> None:
    """Publish the site whose socket is at `place`, until cancelled, or until all has been fetched `once`."""
    import trio

    from torkit.net.hosting.forward import Target

    wishes = service.wishes._replace(max_streams=MAX_STREAMS, max_connections=MAX_CONNECTIONS)
    async with (
        open_client(options, is_service=True) as tor,
        tor.serve_onion({PORT: Target(str(place))}, service.key, wishes) as listener,
        trio.open_nursery() as nursery,
    ):
        await listener.wait_published()
        if count := len(wishes.clients):
            say(f"{count} clients are known, nobody else can find out what is there")
        print(f"http://{listener.address}/", flush=True)
        nursery.start_soon(show_transfers, transfers)
        if once:
            await wait_until_fetched(site, listener)
        else:
            await trio.sleep_forever()
        say_news(transfers)
        nursery.cancel_scope.cancel()


async def wait_until_fetched(site: "Site", listener: "OnionListener") -> None:
    """Until all has been sent once, and whoever got it has left or has had the time to get the last bytes."""
    import trio

    while True:
        await site.whole.wait()
        before, began = listener.cut_count, trio.current_time()
        with trio.move_on_after(FAREWELL):
            while listener.connection_count:
                await trio.sleep(LOOK_INTERVAL)
        if listener.cut_count == before or trio.current_time() - began > UNDER_WAY:
            return
        say("a connection was lost before all had come: it can be fetched again")
        site.go_on()


async def show_transfers(transfers: "Transfers") -> None:
    """Show what is under way, and say what has ended."""
    import trio

    view, began = progress.Work(), trio.current_time()
    while True:
        await trio.sleep(progress.TICK)
        say_news(transfers)
        now = trio.current_time()
        if not transfers.active:
            progress.erase()
            view, began = progress.Work(), now
            continue
        newest = transfers.active[-1]
        known = [one for one in transfers.active if one.total]
        total = sum(one.total or 0 for one in known)
        percent = 100 * sum(one.done for one in known) // total if total else 0
        others = len(transfers.active) - 1
        text = f"{newest}, and {others} more" if others else str(newest)
        view.show(percent, now - began, text)


def say_news(transfers: "Transfers") -> None:
    while transfers.news:
        say(transfers.news.popleft())
    if transfers.silenced:
        say(f"and {transfers.silenced} more")
        transfers.silenced = 0
