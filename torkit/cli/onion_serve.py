"""`torkit onion serve`, `new` and `address`: onion services that we run."""

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli.failures import OK
from torkit.cli.options import Options
from torkit.cli.running import open_client, run
from torkit.cli.voice import say
from torkit.errors import UsageError
from torkit.targets import parse_target

if TYPE_CHECKING:
    from torkit.hs.keys import SecretKey
    from torkit.hs.service_messages import DosLimits
    from torkit.net.hosting.forward import Target

HOW_TO_NAME = "write it like 80:127.0.0.1:8080, 80:8080, 80 alone, or 80:unix:PATH"

Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="A service's directory, as C tor's HiddenServiceDir.")
]


def serve(
    context: typer.Context,
    ports: Annotated[
        list[str],
        typer.Argument(
            metavar="PORT[:TARGET]...",
            help="What clients may ask for, and the server of this machine behind it: [ADDRESS:]PORT, or "
            "unix:PATH; without a target, the same port of 127.0.0.1.",
        ),
    ],
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
) -> None:
    """Run an onion service; print its address once clients can find it."""
    options: Options = context.obj
    targets = parse_ports(ports)
    limits = None if intro_limit is None else parse_limits(intro_limit)
    secret: SecretKey | None = None
    clients: list[bytes] = []
    if key is not None:
        from torkit.net.hosting.keys import load_clients, load_key

        secret = load_key(key)
        clients = load_clients(key if key.is_dir() else key.parent)

    async def command() -> None:
        import trio

        from torkit.net.hosting.means import Wishes

        wishes = Wishes(clients, limits, proof_of_work=pow_)
        async with (
            open_client(options, is_service=True) as tor,
            tor.serve_onion(targets, secret, wishes) as service,
        ):
            await service.wait_published()
            for port, target in targets.items():
                say(f"port {port} leads to {target}")
            if clients:
                say(f"{len(clients)} clients are known, nobody else can find out what is there")
            print(service.address, flush=True)
            await trio.sleep_forever()

    run(command, options, on_sigterm=OK)


def new(directory: Directory) -> None:
    """Make the key of a service in a new directory, and print its address."""
    from torkit.hs.address import encode_address
    from torkit.net.hosting.keys import make_key

    print(encode_address(make_key(directory).public))


def address(directory: Directory) -> None:
    """Print the address of the service whose key is in a directory."""
    from torkit.hs.address import encode_address
    from torkit.net.hosting.keys import load_key

    print(encode_address(load_key(directory).public))


def parse_ports(texts: list[str]) -> "dict[int, Target]":
    """What clients may ask for, and where it leads. Raises UsageError."""
    from torkit.net.hosting.forward import Target

    targets: dict[int, Target] = {}
    for text in texts:
        number, colon, where = text.partition(":")
        port = _port(number, text)
        if port in targets:
            raise UsageError(f"port {port} is named twice")
        if not colon:
            targets[port] = Target("127.0.0.1", port)
        elif where.startswith("unix:"):
            path = where.removeprefix("unix:")
            if not path or len(path.encode()) > 107:
                raise UsageError(f"{text!r}: unix: wants a path of 107 bytes at most", hint=HOW_TO_NAME)
            targets[port] = Target(path)
        else:
            targets[port] = _parse_server(where, text)
    return targets


def parse_limits(text: str) -> "DosLimits":
    """What `--intro-limit` says. Raises UsageError."""
    from torkit.hs.service_messages import MAX_DOS_LIMIT, DosLimits

    rate, _, burst = text.partition(":")
    numbers = [int(part) if part.isascii() and part.isdigit() else -1 for part in (rate, burst)]
    if not 1 <= numbers[0] <= numbers[1] <= MAX_DOS_LIMIT:
        raise UsageError(f"--intro-limit takes RATE:BURST, such as 25:200, not {text!r}")
    return DosLimits(*numbers)


def _port(number: str, text: str) -> int:
    if not (number.isascii() and number.isdigit() and len(number) <= 5 and 1 <= int(number) <= 65535):
        raise UsageError(f"{text!r} begins with no port", hint=HOW_TO_NAME)
    return int(number)


def _parse_server(where: str, text: str) -> "Target":
    """An address and a port of a server. Names are not looked up: who answers is not known."""
    from torkit.net.hosting.forward import Target

    if where.isascii() and where.isdigit():
        where = f"127.0.0.1:{where}"
    try:
        host, port = parse_target(where)
        host = "127.0.0.1" if host.lower() == "localhost" else str(ip_address(host))
    except ValueError as error:
        raise UsageError(f"{text!r} leads to no address and port", hint=HOW_TO_NAME) from error
    return Target(host, _port(str(port), text))
