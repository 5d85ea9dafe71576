"""The common part of `fetch-consensus`, `relays` and `relay`: sources of documents, and countries.

A document is verified wherever it comes from, and the client starts only where the network is needed: what
the cache or a file holds is printed without it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torkit.cli.files import read_file
from torkit.cli.options import Options
from torkit.cli.running import open_client, run
from torkit.errors import DocumentError, NoDirectory, StorageError, UsageError
from torkit.targets import format_address

if TYPE_CHECKING:
    from torkit.config import Network
    from torkit.directory.authorities import AuthorityCertificate
    from torkit.directory.cache import Cache
    from torkit.directory.consensus import Consensus, Preamble
    from torkit.directory.directory import Directory
    from torkit.directory.entries import RouterStatus
    from torkit.directory.microdesc import Microdescs

CACHE = "cache"
NETWORK = "network"
MICRODESC = "microdesc"


def iso_time(value: str | float) -> float:
    """Returns the value of --at, in seconds since the epoch. Raises typer.BadParameter."""
    if isinstance(value, float):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise typer.BadParameter("expected a time in ISO 8601, like 2022-11-19T10:30:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="cache|network|FILE",
        help="Where the consensus comes from, - being stdin; else the cache, or the network.",
    ),
]
Flavor = Annotated[
    str | None,
    typer.Option(metavar="microdesc|ns", help="Which consensus; microdesc is what clients use."),
]
Certs = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The authorities' certificates for --from; else those of the cache."),
]
At = Annotated[
    float | None,
    typer.Option(
        parser=iso_time,
        metavar="TIME",
        help="When the consensus of --from must be valid, in ISO 8601; UTC unless it says otherwise.",
    ),
]


@dataclass(frozen=True)
class Source:
    """The options that say which consensus. `at` is in seconds since the epoch."""

    where: str | None = None
    flavor: str | None = None
    certs: Path | None = None
    at: float | None = None
    diff_from: Path | None = None

    def __post_init__(self) -> None:
        if self.flavor not in (None, MICRODESC, "ns"):
            raise UsageError(f"--flavor takes microdesc or ns, not {self.flavor!r}")
        if self.where == CACHE and self.flavor == "ns":
            raise UsageError("the cache holds the microdesc flavor only", hint="--from network has both")
        if self.where in (None, NETWORK) and (self.certs or self.at is not None):
            raise UsageError("--certs and --at need --from with cache or a file")
        if self.where not in (None, NETWORK) and self.diff_from is not None:
            raise UsageError(f"--diff-from asks the network, not --from {self.where}")


def read_directory(options: Options, source: Source, *, microdescs: bool = True) -> "Directory":
    """Returns a verified consensus, and its microdescriptors as far as they are at hand.

    Without `microdescs`, only the consensus is looked for. Raises NoDirectory, DocumentError, StorageError,
    UsageError.
    """
    from torkit.config import load_network
    from torkit.directory.directory import Directory

    network = load_network(options.network)
    if source.where == NETWORK or source.diff_from or (source.where is None and source.flavor == "ns"):
        return _from_network(options, source, microdescs=microdescs)
    if source.where is not None:
        consensus = _verified(options, network, source)
        held = _load_microdescs(options, network) if microdescs and consensus.flavor == MICRODESC else {}
        return Directory(consensus, held)
    try:
        consensus = _verified(options, network, Source(CACHE))
        directory = Directory(consensus, _load_microdescs(options, network) if microdescs else {})
        if not microdescs or directory.is_usable():
            return directory
    except (NoDirectory, StorageError):
        pass  # the client says what it cannot do about it
    return _from_network(options, source, microdescs=microdescs)


def _verified(options: Options, network: "Network", source: Source) -> "Consensus":
    """Returns the consensus of the cache or of a file."""
    from torkit.directory.consensus import read_consensus
    from torkit.directory.steps import complete
    from torkit.directory.trust import missing_certificates, verify

    assert source.where is not None
    if source.where == CACHE:
        cached = _cache(options, network).load_consensus()
        if cached is None:
            raise NoDirectory("the cache holds no consensus", hint="torkit fetch-consensus fetches one")
        consensus = cached
    else:
        consensus = _parse_file(Path(source.where), source.flavor)
    certificates = _load_certificates(options, network, source.certs)
    now = time.time() if source.at is None else source.at
    try:
        verify(consensus, certificates, network.voters, now)
    except NoDirectory as error:
        if error.hint is None and missing_certificates(consensus, certificates, network.voters, now):
            error.hint = (
                "name a file with the authorities' certificates: --certs FILE"
                if source.certs is None
                else f"the certificates in {source.certs} are not those of the authorities at that time"
            )
        raise
    return complete(read_consensus(consensus))


def _parse_file(path: Path, flavor: str | None) -> "Preamble":
    from torkit.directory.consensus import MAX_CONSENSUS_LEN, read_preamble

    with naming(path):
        consensus = read_preamble(read_archived(path, MAX_CONSENSUS_LEN))
    if flavor not in (None, consensus.flavor):
        raise DocumentError(f"a consensus of flavor {consensus.flavor}, where --flavor asks for {flavor}")
    return consensus


def _load_certificates(
    options: Options, network: "Network", path: Path | None
) -> "tuple[AuthorityCertificate, ...]":
    from torkit.directory.authorities import MAX_CERTIFICATES_LEN, parse_certificates

    if path is None:
        return _cache(options, network).load_certificates() or ()
    # No authority signs CRLF, but many a file has got it on its way here.
    with naming(path):
        return parse_certificates(read_archived(path, MAX_CERTIFICATES_LEN).replace(b"\r\n", b"\n"))


def _load_microdescs(options: Options, network: "Network") -> "Microdescs":
    from torkit.directory.microdesc import Microdescs

    return _cache(options, network).load_microdescs() or Microdescs()


def _cache(options: Options, network: "Network") -> "Cache":
    from torkit.config import data_dir
    from torkit.directory.cache import Cache

    return Cache(data_dir(network, options.data_dir))


def _from_network(options: Options, source: Source, *, microdescs: bool) -> "Directory":
    from torkit.directory.directory import Directory

    found: list[Directory] = []
    held = None if source.diff_from is None else _parse_file(source.diff_from, source.flavor)
    flavor = held.flavor if held else source.flavor or MICRODESC

    async def command() -> None:
        async with open_client(options) as tor:
            if source.where == NETWORK or held or flavor != MICRODESC:
                consensus = await tor.download_consensus(flavor, held)
            else:
                consensus = await tor.fetch_consensus()
            if microdescs and consensus.flavor == MICRODESC:
                await tor.wait_ready()
                found.append(tor.directory.with_consensus(consensus))
            else:
                found.append(Directory(consensus, {}))

    run(command, options)
    return found[0]


def read_archived(path: Path, limit: int) -> bytes:
    """As `read_file`, without the lines that archives put before a document."""
    from torkit.directory.netdoc import without_annotations

    return without_annotations(read_file(path, limit))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of a document inside the block name its file."""
    try:
        yield
    except DocumentError as error:
        raise DocumentError(f"{path}: {error}", hint=error.hint) from error


def status_fields(status: "RouterStatus") -> dict[str, Any]:
    """Returns a consensus's entry of a relay, for JSON. `bandwidth` has the consensus's unit."""
    return {
        "nickname": status.nickname,
        "fingerprint": status.identity.hex().upper(),
        "address": status.address,
        "or_port": status.or_port,
        "ipv6": format_address(*status.ipv6) if status.ipv6 else None,
        "flags": sorted(status.flags),
        "bandwidth": status.bandwidth,
        "version": status.version,
        "protocols": str(status.protocols),
    }
