"""A frozen directory: a consensus, the certificates that prove it and the microdescriptors, as one unit.

It has neither guards nor state, so any number of processes may read one. Its digest is of what decides over
relays and paths: the consensus and those microdescriptors that it lists and that are at hand, in its order.
Nothing in it is trusted: signatures, digests and times are checked whenever it is read.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from torkit.directory.authorities import MAX_CERTIFICATES_LEN, parse_certificates
from torkit.directory.cache import CERTIFICATES, CONSENSUS, MICRODESCS
from torkit.directory.consensus import MAX_CONSENSUS_LEN, read_consensus, read_preamble
from torkit.directory.directory import CountryOf, Directory
from torkit.directory.microdesc import MAX_MICRODESCS_LEN, Microdescs
from torkit.directory.steps import complete
from torkit.directory.trust import Liveness, verify
from torkit.errors import DocumentError, NoDirectory, StorageError, UsageError
from torkit.files import sync_directory

DIGEST = "digest"  # the file that names it; written last
DIGEST_LEN = 32  # hexadecimal digits, of SHA-256
UNFINISHED = ".unfinished-"  # begins the name of a unit that is being written

HOW_TO_EXPORT = "torkit cache export DIR prints the directory that --cache takes"


class Unit(NamedTuple):
    """The directory, and what rows call it."""

    directory: Directory
    digest: str


def freeze(directory: Directory) -> Unit:
    """The unit that this directory is."""
    return Unit(directory, _digest(directory.consensus.text, _texts(directory)))


def export(directory: Directory, certificates: bytes, place: Path) -> Path:
    """Write a unit into `place`, under its digest; one that is there already is left as it is.

    Returns its directory, which appears whole or not at all; what a killed process has left of one goes.
    Raises StorageError.
    """
    digest = freeze(directory).digest
    target = place / digest
    unfinished = place / f"{UNFINISHED}{os.getpid()}-{digest}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _alone_in(place):
            if target.exists():
                return target
            unfinished.mkdir()
            _write(unfinished / CONSENSUS, directory.consensus.text)
            _write(unfinished / CERTIFICATES, certificates)
            _write(unfinished / MICRODESCS, b"".join(_texts(directory)))
            _write(unfinished / DIGEST, f"{digest}\n".encode())
            sync_directory(unfinished)
            unfinished.rename(target)
            sync_directory(place)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if target.exists():  # another process was faster
            return target
        raise StorageError(f"{place}: {error.strerror or error}") from error
    return target


def load(place: Path, authorities: dict[bytes, str], now: float, country_of: CountryOf | None = None) -> Unit:
    """Read a unit that `export` has written. Nothing is written there.

    `authorities` as for torkit.directory.trust.verify. Raises UsageError where there is none, DocumentError
    where it is incomplete or damaged, NoDirectory where it is of another network or another time.
    """
    named = _read(place, DIGEST, 2 * DIGEST_LEN).decode("ascii", "replace").strip()
    consensus = _read(place, CONSENSUS, MAX_CONSENSUS_LEN)
    certificates = _read(place, CERTIFICATES, MAX_CERTIFICATES_LEN)
    microdescs = _read(place, MICRODESCS, MAX_MICRODESCS_LEN)
    try:
        preamble = read_preamble(consensus)
        known = parse_certificates(certificates)
        texts = Microdescs.decode(microdescs)
    except DocumentError as error:
        raise DocumentError(f"{place} is damaged: {error}", hint=HOW_TO_EXPORT) from error
    try:
        verify(preamble, known, authorities, now, least=Liveness.REASONABLE)
    except NoDirectory as error:
        hint = error.hint or "is it of another network? --network names the one that is meant"
        raise NoDirectory(f"{place}: {error}", hint=hint) from error
    directory = Directory(complete(read_consensus(preamble)), texts, country_of)
    unit = freeze(directory)
    if unit.digest != named:
        raise DocumentError(
            f"{place} is damaged: its digest is {unit.digest}, and {named[:DIGEST_LEN]} was written",
            hint=HOW_TO_EXPORT,
        )
    return unit


@contextmanager
def _alone_in(place: Path) -> Iterator[None]:
    """Wait until no other process exports to `place`; what is unfinished then is a dead one's, and removed.

    On a file system without locks, several may export at once, and nothing is removed.
    """
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
            for left in place.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)


def _texts(directory: Directory) -> list[bytes]:
    found = (directory.microdesc_at(index) for index in range(len(directory)))
    return [text for text in found if text is not None]


def _digest(consensus: bytes, microdescs: list[bytes]) -> str:
    whole = sha256(b"%d\n" % len(consensus))
    whole.update(consensus)
    for text in microdescs:
        whole.update(text)
    return whole.hexdigest()[:DIGEST_LEN]


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(place: Path, name: str, limit: int) -> bytes:
    """One file of a unit, whoever owns it. Raises UsageError, DocumentError."""
    path = place / name
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if name == DIGEST:
            raise UsageError(f"{place} holds no exported directory", hint=HOW_TO_EXPORT) from error
        raise DocumentError(f"{place} is incomplete: it lacks {name}", hint=HOW_TO_EXPORT) from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise DocumentError(f"{place} is damaged: {name} has more than {limit} bytes", hint=HOW_TO_EXPORT)
    return data
