"""`torkit onion serve`, `new` and `address`: onion services that we run."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.failures import OK
from torkit.cli.options import Options
from torkit.cli.running import open_client, protect_keys, run
from torkit.cli.voice import say
from torkit.errors import UsageError

if TYPE_CHECKING:
    from torkit.cli.onion_services import Service
    from torkit.client import Tor

Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="A service's directory, as C tor's HiddenServiceDir.")
]


def serve(
    context: typer.Context,
    ports: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PORT[:TARGET]...]",
            show_default=False,
            help="What clients may ask for, and the server of this machine behind it: [ADDRESS:]PORT, or "
            "unix:PATH; without a target, the same port of 127.0.0.1.",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            metavar="DIR",
            help="The service's directory, as C tor's HiddenServiceDir; without it, a new address each time.",
        ),
    ] = None,
    pow_: Annotated[
        bool,
        typer.Option("--pow", help="While too many clients come, ask them for a proof of work."),
    ] = False,
    intro_limit: Annotated[
        str | None,
        typer.Option(
            metavar="RATE:BURST",
            help="Have introduction points pass on so many clients a second, and at once, each.",
        ),
    ] = None,
    services: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Run the services that a TOML file names, instead of one; SIGHUP has it read again.",
        ),
    ] = None,
) -> None:
    """Run an onion service.

    Its address is printed once clients can find it.
    """
    from torkit.cli.onion_services import make_service, read_services

    options: Options = context.obj
    if services is None:
        if not ports:
            raise UsageError("serve takes the ports of a service, or --services FILE")
        wanted = [make_service("", ports, key, has_pow=pow_, intro_limit=intro_limit)]
    elif ports or key is not None or pow_ or intro_limit is not None:
        raise UsageError("--services FILE names everything: it takes neither ports nor a service's options")
    else:
        wanted = read_services(services)

    reload = None
    if services is not None:
        from torkit.cli.onion_reload import Reload

        reload = Reload(services)

    async def command() -> None:
        async with open_client(options, is_service=True) as tor:
            if reload is None:
                await serve_one(tor, wanted[0])
            else:
                await reload.run(wanted, partial(serve_one, tor))

    run(command, options, on_sigterm=OK, on_hangup=None if reload is None else reload.note_hangup)


async def serve_one(tor: "Tor", service: "Service") -> None:
    """Run one service, and tell of it when clients can find it; never returns."""
    import trio

    from torkit.net.late import load_late

    async with tor.serve_onion(service.targets, service.key, service.wishes) as listener:
        await listener.wait_published()
        await load_late()
        whose = f"{service.name}: " if service.name else ""
        for port, target in service.targets.items():
            say(f"{whose}port {port} leads to {target}")
        if count := len(service.wishes.clients):
            say(f"{whose}{count} clients are known, nobody else can find out what is there")
        print(*([service.name] if service.name else []), listener.address, sep="\t", flush=True)
        await trio.sleep_forever()


def new(
    context: typer.Context,
    directory: Directory,
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="WISH", help="What the address begins with; each character takes 32 times as long."
        ),
    ] = None,
) -> None:
    """Make a service's key in a new directory; print its address."""
    from torkit.hs.address import encode_address
    from torkit.net.hosting.keys import check_is_new, make_key

    key = None
    if prefix is not None:
        from torkit.cli.onion_prefix import find_key
        from torkit.hs.prefix import Prefix

        wish = Prefix(prefix)
        check_is_new(directory)
        protect_keys(context.obj)
        key = find_key(wish)
    print(encode_address(make_key(directory, key).public))


def address(directory: Directory) -> None:
    """Print the address of the service whose key is in a directory."""
    from torkit.hs.address import encode_address
    from torkit.net.hosting.keys import load_key

    print(encode_address(load_key(directory).public))
