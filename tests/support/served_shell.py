"""A shell whose torkit knows a network of scripted relays, which the test's own process serves."""

import sys
from pathlib import Path

from network.torkit_process import Shell
from served import ServedNetwork


def shell_on(network: ServedNetwork, place: Path) -> Shell:
    """A shell whose torkit knows this network."""
    voters = [
        f"{one.nickname} v3ident={one.v3ident.hex()} 127.0.0.1:80 {one.fingerprint.hex()}"
        for one in network.config.authorities
        if one.v3ident is not None
    ]
    fallbacks = [
        f"{one.address} orport={one.or_port} id={one.identity.hex()}" for one in network.config.fallbacks
    ]
    file = place / "network.toml"
    file.write_text(f"authorities = {voters!r}\nfallbacks = {fallbacks!r}\ntesting = true\n")
    torkit = place / "bin" / "torkit"
    torkit.parent.mkdir()
    torkit.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m torkit "$@"\n')
    torkit.chmod(0o755)
    return Shell(file, place / "data", torkit.parent)
