"""A service's identity key in a directory, as C tor keeps it: read, or made with what belongs to it.

It can be moved between the two programs, either way, as long as one of them runs at a time.
"""

import errno
import os
from contextlib import ExitStack
from pathlib import Path

from torkit._fast.keys import wipe
from torkit.errors import StorageError
from torkit.files import make_file, make_private_directory, read_file, sync_directory
from torkit.hs.address import encode_address
from torkit.hs.client_auth import MAX_LINE_LEN, decode_authorized_client
from torkit.hs.keyfiles import (
    HOSTNAME_FILE,
    KEY_FILE,
    PUBLIC_FILE,
    PUBLIC_FILE_LEN,
    SECRET_FILE_LEN,
    check_public_file,
    decode_secret_file,
    encode_public_file,
    encode_secret_file,
)
from torkit.hs.keys import KEY_LEN, SecretKey

CLIENTS_DIRECTORY = "authorized_clients"
CLIENT_SUFFIX = ".auth"

# Implementation limit: clients that one service knows. (C tor's descriptors hold some 330.)
MAX_CLIENTS = 330


def new_key() -> SecretKey:
    """The key of a service that nobody knows yet."""
    seed = os.urandom(KEY_LEN)
    try:
        return SecretKey.from_seed(seed)
    finally:
        wipe(seed)


def check_is_new(directory: Path) -> None:
    """Raise StorageError where `make_key` is going to: a file of a key is there, or nothing can be made."""
    for name in (KEY_FILE, PUBLIC_FILE, HOSTNAME_FILE):
        if os.path.lexists(directory / name):
            raise StorageError(f"{directory / name}: {os.strerror(errno.EEXIST)}")
    place = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not place.is_dir():
        raise StorageError(f"{place}: {os.strerror(errno.ENOTDIR)}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StorageError(f"{place}: {os.strerror(errno.EACCES)}")


def make_key(directory: Path, key: SecretKey | None = None) -> SecretKey:
    """Make the files of a key, or of a new one, in `directory`, which nobody else may read.

    Nothing that is there is overwritten, and where it fails no file of the key is left. Raises StorageError.
    """
    key = key or new_key()
    files = {
        KEY_FILE: encode_secret_file(key),
        PUBLIC_FILE: encode_public_file(key),
        HOSTNAME_FILE: f"{encode_address(key.public)}\n".encode(),
    }
    try:
        make_private_directory(directory)
        directory.chmod(0o700)
        with ExitStack() as made:
            for name, data in files.items():
                make_file(directory / name, data, mode=0o600)
                made.callback((directory / name).unlink)
            sync_directory(directory)
            made.pop_all()
    except OSError as error:
        named = error.filename2 or error.filename or directory
        raise StorageError(f"{named}: {error.strerror}") from error
    finally:
        wipe(files[KEY_FILE])
    return key


def load_key(path: Path) -> SecretKey:
    """The key in a directory of a service, or in its file hs_ed25519_secret_key.

    What stands beside it must be its own. Raises StorageError, UsageError.
    """
    file = path / KEY_FILE if path.is_dir() else path
    data = _read(file, SECRET_FILE_LEN)
    if data is None:
        raise StorageError(
            f"{file}: no such file", hint="`torkit onion new DIR` makes a service's key in a new directory"
        )
    try:
        key = decode_secret_file(data)
    finally:
        wipe(data)
    if file.stat().st_mode & 0o077:
        raise StorageError(f"{file} may be read by others", hint=f"chmod 600 {file}")
    if (public := _read(file.with_name(PUBLIC_FILE), PUBLIC_FILE_LEN)) is not None:
        check_public_file(public, key)
    hostname = _read(file.with_name(HOSTNAME_FILE), 256)
    if hostname is not None and hostname.strip().decode("latin-1") != encode_address(key.public):
        raise StorageError(f"{file.with_name(HOSTNAME_FILE)} is another service's address")
    return key


def load_clients(directory: Path) -> list[bytes]:
    """The X25519 keys of clients in `directory`/authorized_clients/*.auth; none where there are no files.

    A file that is none of that is an error: a service that was for few must not be for all. Raises
    StorageError.
    """
    found = directory / CLIENTS_DIRECTORY
    try:
        files = sorted(path for path in found.iterdir() if path.name.endswith(CLIENT_SUFFIX))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{found}: {error.strerror}") from error
    if len(files) > MAX_CLIENTS:
        raise StorageError(f"{found} has {len(files)} clients, a descriptor names {MAX_CLIENTS} at most")
    clients = []
    for path in files:
        data = _read(path, MAX_LINE_LEN) or b""
        try:
            clients.append(decode_authorized_client(data.decode("latin-1")))
        except ValueError as error:
            raise StorageError(f"{path}: {error}") from error
    return clients


def _read(path: Path, limit: int) -> bytes | None:
    try:
        return read_file(path, limit)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
