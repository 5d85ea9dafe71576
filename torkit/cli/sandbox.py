"""`--sandbox`: what a proxy may still read and write once it listens."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from torkit.cli.countries import GEOIP_DIRS
from torkit.errors import UsageError

SandboxOption = Annotated[
    bool,
    typer.Option(
        "--sandbox",
        help="Once it listens, no programs, no other files, no other sockets; it ends where that cannot be.",
    ),
]

# Where the system keeps shared libraries, and how they are found; times; how OpenSSL is set up.
OF_THE_SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),
    *("/etc/localtime", "/usr/share/zoneinfo"),
)
OPENSSL_CONFIG = "openssl.cnf"


def check_ready_file(ready_file: Path | None, data_dir: Path) -> None:
    """Raises UsageError for one that could not be removed at the end."""
    if ready_file is not None and not ready_file.parent.resolve().is_relative_to(data_dir.resolve()):
        raise UsageError(
            f"--ready-file: {ready_file} is not in the data directory, and --sandbox allows no other",
            hint=f"--ready-file {data_dir / 'ready'}",
        )


def close_sandbox(changeable: Sequence[Path], geoip: Path | None) -> None:
    """Close the sandbox around this process, which has no thread yet; it changes files here only.

    Raises NotPossible.
    """
    from torkit import sandbox

    sandbox.close(readable=_readable(geoip), changeable=changeable)


def _readable(geoip: Path | None) -> Iterator[Path]:
    """Where modules are, which are imported when they are needed, and what these read."""
    import ssl

    from torkit.net.memory import GROUP_LIMIT

    yield from map(Path, sys.path if sys.flags.safe_path else sys.path[1:])  # the first: where it was started
    yield Path(__file__).parents[1]
    for prefix in (sys.base_exec_prefix, sys.exec_prefix):
        yield Path(prefix, "lib")
    yield from map(Path, OF_THE_SYSTEM)
    yield GROUP_LIMIT
    if (config := os.environ.get("OPENSSL_CONF")) is not None:
        yield Path(config)
    yield Path(ssl.get_default_verify_paths().openssl_cafile).with_name(OPENSSL_CONFIG)
    for directory in GEOIP_DIRS:
        yield from (directory / "geoip", directory / "geoip6")
    if geoip is not None:
        yield geoip
