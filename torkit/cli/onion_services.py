"""A file that names several onion services: what `torkit onion serve --services` reads.

[web]
ports = ["80:127.0.0.1:8080"]
key = "web"                      a directory, from where the file is; without it, a new address each time
pow = true
intro-limit = "25:200"
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torkit.cli.onion_ports import parse_limits, parse_ports
from torkit.errors import StorageError, UsageError

if TYPE_CHECKING:
    from torkit.hs.keys import SecretKey
    from torkit.net.hosting.forward import Target
    from torkit.net.hosting.means import Wishes

# Implementation limits: bytes of the file, and services.
MAX_FILE_LEN = 1 << 20
MAX_SERVICES = 64


class Service(NamedTuple):
    """One service to be run. `name` is the file's, or empty where it is the only one."""

    name: str
    targets: "Mapping[int, Target]"
    key: "SecretKey | None"
    wishes: "Wishes"


def make_service(
    name: str, ports: list[str], key: Path | None, *, has_pow: bool, intro_limit: str | None
) -> Service:
    """A service as an operator describes it; reads its key and clients. Raises UsageError, StorageError."""
    from torkit.net.hosting.keys import load_clients, load_key
    from torkit.net.hosting.means import Wishes

    targets = parse_ports(ports)
    limits = None if intro_limit is None else parse_limits(intro_limit)
    secret: SecretKey | None = None
    clients: list[bytes] = []
    if key is not None:
        try:
            secret = load_key(key)
            clients = load_clients(key if key.is_dir() else key.parent)
        except OSError as error:
            raise StorageError(f"{key}: {error.strerror}") from error
    return Service(name, targets, secret, Wishes(clients, limits, proof_of_work=has_pow))


def read_services(file: Path) -> list[Service]:
    """The services that a file names, one at least, no key twice. Raises UsageError, StorageError."""
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_FILE_LEN + 1)
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}") from error
    if len(text) > MAX_FILE_LEN:
        raise UsageError(f"{file} has more than {MAX_FILE_LEN} bytes")
    try:
        tables = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: {error}") from error
    except (ValueError, RecursionError) as error:  # what Python's int and stack do not take
        raise UsageError(f"{file}: a number is too long, or brackets are too deep") from error
    if not 1 <= len(tables) <= MAX_SERVICES:
        raise UsageError(f"{file} names {len(tables)} services: 1 to {MAX_SERVICES} are possible")
    services = []
    for name, table in tables.items():
        try:
            services.append(_read_service(file.parent, name, table))
        except UsageError as error:
            raise UsageError(f"{file}: [{name}] {error}", hint=error.hint) from error
    keys = [service.key.public for service in services if service.key is not None]
    if len(set(keys)) < len(keys):
        raise UsageError(f"{file}: two services have the same key")
    return services


def _read_service(place: Path, name: str, table: Any) -> Service:
    if not isinstance(table, dict):
        raise UsageError("is no table: a service is [NAME], and its lines")
    if not (name and name.isprintable()):
        raise UsageError("has a name that cannot be printed")
    entries = dict(table)
    ports = entries.pop("ports", None)
    if not (isinstance(ports, list) and ports and all(isinstance(port, str) for port in ports)):
        raise UsageError('wants ports = ["80:127.0.0.1:8080"], one at least')
    key, intro_limit = entries.pop("key", None), entries.pop("intro-limit", None)
    for what, value in (("key", key), ("intro-limit", intro_limit)):
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{what} is a text in quotes")
    if key is not None and "\0" in key:
        raise UsageError("key is no name of a directory")
    has_pow = entries.pop("pow", False)
    if not isinstance(has_pow, bool):
        raise UsageError("pow is true or false")
    if entries:
        raise UsageError(f"has {next(iter(entries))!r}, which is unknown")
    directory = None if key is None else place / key
    return make_service(name, ports, directory, has_pow=has_pow, intro_limit=intro_limit)
