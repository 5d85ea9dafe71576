"""`torkit onion`: onion services, their descriptors and their clients' keys."""

import base64
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torkit.cli.onion_serve import address, new, serve
from torkit.cli.options import Options, command_app
from torkit.cli.progress import erase
from torkit.cli.running import open_client, run
from torkit.cli.teaching import LESSONS
from torkit.cli.voice import say
from torkit.errors import StorageError

if TYPE_CHECKING:
    from torkit.hs.client_auth import ClientKey
    from torkit.hs.descriptor import Descriptor, IntroductionPoint

app = command_app(no_args_is_help=True, help=LESSONS["onion"].summary)

app.command()(serve)
app.command()(new)
app.command()(address)

Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="56 characters and .onion.")]


@app.command()
def descriptor(
    context: typer.Context,
    name: Address,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="A client's key, as keygen writes it.")
    ] = None,
) -> None:
    """Fetch a service's descriptor, check all of it, and print it as JSON."""
    options: Options = context.obj
    client_key = None if key is None else read_key(key)

    async def command() -> None:
        async with open_client(options) as tor:
            await tor.wait_ready()
            found = await tor.onion_descriptor(name, client_key)
            erase()
            print(json.dumps(to_json(found)))

    run(command, options)


@app.command()
def keygen(
    name: Address,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the client's secret key goes.")],
) -> None:
    """Make a client's key for a service: write the secret one, print the line for the service."""
    from torkit._fast.keys import X25519PrivateKey
    from torkit.hs.address import parse_address
    from torkit.hs.client_auth import ClientKey, encode_authorized_client, encode_client_key

    made = ClientKey(parse_address(name), os.urandom(32))
    try:
        with open(file, "x", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o600)) as out:
            out.write(encode_client_key(made))
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}") from error
    print(encode_authorized_client(X25519PrivateKey(made.secret).public_key), end="")
    say("give that line to the service: a file NAME.auth in its authorized_clients directory")


def read_key(file: Path) -> "ClientKey":
    """The client's key in a file. Raises StorageError and UsageError."""
    from torkit.hs.client_auth import MAX_LINE_LEN, decode_client_key

    try:
        with file.open() as text:
            return decode_client_key(text.read(MAX_LINE_LEN + 1))
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{file}: {getattr(error, 'strerror', 'no text')}") from error


def to_json(found: "Descriptor") -> dict[str, Any]:
    """What a descriptor says; keys in base64 as the descriptor has them."""
    work = found.proof_of_work
    return {
        "revision": found.revision,
        "lifetime": 60 * found.lifetime,
        "signing_key": _base64(found.signing_key),
        "single_onion": found.is_single_onion,
        "sendme_inc": found.sendme_inc,
        "proof_of_work": work
        and {"effort": work.effort, "expires": work.expires, "seed": _base64(work.seed)},
        "introduction_points": [_point_to_json(point) for point in found.points],
    }


def _point_to_json(point: "IntroductionPoint") -> dict[str, Any]:
    return {
        "link_specifiers": [{"type": kind, "value": value.hex()} for kind, value in point.link_specifiers],
        "onion_key": _base64(point.onion_key),
        "auth_key": _base64(point.auth_key),
        "enc_key": _base64(point.enc_key),
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
