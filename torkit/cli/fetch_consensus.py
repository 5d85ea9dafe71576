"""`torkit fetch-consensus`: the verified network status."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torkit.cli import Options, command_app, open_client, run, write_file

if TYPE_CHECKING:
    from torkit.directory.consensus import Consensus

app = command_app()


@app.command()
def fetch_consensus(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write; - is stdout.")
    ] = Path("-"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line for each relay.")] = False,
) -> None:
    """Print the consensus, its signatures and times checked."""
    options: Options = context.obj

    async def command() -> None:
        async with open_client(options) as tor:
            consensus = await tor.fetch_consensus()
        data = relays_to_json(consensus) if as_json else consensus.text
        if output == Path("-"):
            sys.stdout.buffer.write(data)
        else:
            write_file(output, data)

    run(command, options)


def relays_to_json(consensus: "Consensus") -> bytes:
    """One line for each relay, in the order of the consensus. `bandwidth` has the consensus's unit."""
    lines = [
        json.dumps(
            {
                "nickname": relay.nickname,
                "fingerprint": relay.identity.hex().upper(),
                "address": relay.address,
                "or_port": relay.or_port,
                "flags": sorted(relay.flags),
                "bandwidth": relay.bandwidth,
            }
        )
        for relay in consensus.relays
    ]
    return "".join(f"{line}\n" for line in lines).encode()
