"""`torkit onion`: onion services, their descriptors and their clients' keys."""

import os
from pathlib import Path
from typing import Annotated

import typer

from torkit.cli.onion_look import Address, check, descriptor
from torkit.cli.onion_serve import address, new, serve
from torkit.cli.onion_share import share
from torkit.cli.options import command_app
from torkit.cli.teaching import LESSONS
from torkit.cli.voice import say
from torkit.errors import StorageError

app = command_app(no_args_is_help=True, help=LESSONS["onion"].summary)

app.command()(serve)
app.command()(share)
app.command()(new)
app.command()(address)
app.command()(check)
app.command()(descriptor)


@app.command()
def keygen(
    name: Address,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the client's secret key goes.")],
) -> None:
    """Make a client's key for a service that knows its clients.

    The secret key goes to a file; the line for the service is printed.
    """
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
