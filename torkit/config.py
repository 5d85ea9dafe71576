"""The network file names the trusted authorities, the data directory keeps cache and state.

Read once, checked, typed. The public network is built in; a network file replaces all of it.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torkit import public_network
from torkit.errors import StorageError, UsageError
from torkit.files import make_private_directory

MAX_NETWORK_FILE_LEN = 1 << 20  # bytes; the public network takes about 20,000

ANOTHER_PLACE = "name a directory that stays: --data-dir DIR or TORKIT_DATA_DIR"

StrPath = str | os.PathLike[str]

_T = TypeVar("_T")
_NICKNAME = re.compile(r"[A-Za-z0-9]{1,19}")
_IGNORED_FLAGS = frozenset({"bridge", "hs", "no-hs", "no-v2", "v2"})  # torrc still accepts them
_IGNORED_VALUES = frozenset({"upload", "download", "vote"})  # for authorities among themselves


class Authority(NamedTuple):
    """A directory authority. It votes, and its signature counts, if it has a `v3ident`.

    `fingerprint` is the relay identity and `v3ident` the directory identity, 20 bytes each.
    """

    nickname: str
    address: str
    dir_port: int
    or_port: int | None
    fingerprint: bytes
    v3ident: bytes | None
    ipv6: tuple[str, int] | None


class Fallback(NamedTuple):
    """A relay that serves directories to clients that have none yet. `identity` is 20 bytes."""

    address: str
    or_port: int
    identity: bytes
    ipv6: tuple[str, int] | None


class Network(NamedTuple):
    """The sources of a network's documents, and the authorities that sign them.

    `testing` is for private networks: private destinations and short consensus lives are allowed.
    `distinct_subnets` says whether no two relays of a path may share a subnet. `is_public` is for the one
    that is built in.
    """

    authorities: tuple[Authority, ...]
    fallbacks: tuple[Fallback, ...]
    testing: bool
    distinct_subnets: bool
    is_public: bool = False

    @property
    def name(self) -> str:
        """`public`, or hexadecimal digits made from a network file's voters, which tell it from others.

        The public network keeps its name, and so its guards, when a release knows other authorities.
        """
        return "public" if self.is_public else sha256(b"".join(sorted(self.voters))).hexdigest()[:16]

    @property
    def voters(self) -> dict[bytes, str]:
        """The v3 identity of each authority that votes, and its nickname: what `verify` takes."""
        return {one.v3ident: one.nickname for one in self.authorities if one.v3ident is not None}


def chosen_network(named: StrPath | None) -> Network:
    """As `load_network`; None is the file that TORKIT_NETWORK names, else the public network."""
    return load_network(named if named is not None else os.environ.get("TORKIT_NETWORK") or None)


def chosen_data_dir(network: Network, named: StrPath | None) -> Path:
    """As `data_dir`; None is TORKIT_DATA_DIR, else the platform's place."""
    return data_dir(network, named if named is not None else os.environ.get("TORKIT_DATA_DIR") or None)


def load_network(path: StrPath | None) -> Network:
    """Returns the network of this TOML file, or the public one.

    Raises UsageError, which names the file and the entry, for what is missing, unknown or malformed.
    """
    if path is None:
        return Network(
            authorities=tuple(map(parse_authority, public_network.AUTHORITIES.strip().splitlines())),
            fallbacks=tuple(map(parse_fallback, public_network.FALLBACKS.strip().splitlines())),
            testing=False,
            distinct_subnets=True,
            is_public=True,
        )
    import tomllib  # 1.6 ms, for private networks only

    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_NETWORK_FILE_LEN + 1)
        if len(text) > MAX_NETWORK_FILE_LEN:
            raise ValueError(f"more than {MAX_NETWORK_FILE_LEN} bytes")
        table = tomllib.loads(text.decode("utf-8"))
    except OSError as error:
        hint = None
        if isinstance(error, FileNotFoundError):  # as after `torkit testnet down`
            hint = "torkit testnet up makes a network; without TORKIT_NETWORK torkit uses the public one"
        raise UsageError(f"{path}: {error.strerror or error}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}") from error
    return _read_network(table, path)


def _read_network(table: dict[str, Any], path: Path) -> Network:
    unknown = table.keys() - {"authorities", "fallbacks", "testing", "distinct_subnets"}
    if unknown:
        raise UsageError(f"{path}: unknown key {min(unknown)!r}")
    testing = _read_bool(table, "testing", False, path)
    network = Network(
        authorities=_read_entries(table, "authorities", parse_authority, path),
        fallbacks=_read_entries(table, "fallbacks", parse_fallback, path),
        testing=testing,
        distinct_subnets=_read_bool(table, "distinct_subnets", not testing, path),
    )
    if not network.voters:
        raise UsageError(f"{path}: authorities: at least one with a v3ident expected")
    if len(network.voters) != sum(one.v3ident is not None for one in network.authorities):
        raise UsageError(f"{path}: authorities: one v3ident twice")
    return network


def _read_bool(table: dict[str, Any], key: str, default: bool, path: Path) -> bool:
    value = table.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"{path}: {key}: true or false expected")
    return value


def _read_entries(table: dict[str, Any], key: str, parse: Callable[[str], _T], path: Path) -> tuple[_T, ...]:
    values = table.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UsageError(f"{path}: {key}: a list of strings expected")
    entries = []
    for number, value in enumerate(values, 1):
        try:
            entries.append(parse(value))
        except UsageError as error:
            raise UsageError(f"{path}: {key}, entry {number}: {error}") from None
    return tuple(entries)


def parse_authority(value: str) -> Authority:
    """Parse the value of torrc's DirAuthority: `[nickname] [flags] address:dirport fingerprint`.

    Flags that matter only between authorities are accepted and ignored. Raises UsageError.
    """
    words = value.split()
    nickname = words.pop(0) if words and _NICKNAME.fullmatch(words[0]) else ""
    or_port = v3ident = ipv6 = None
    while words and not words[0][0].isdigit():
        flag = words.pop(0)
        name, equals, argument = flag.partition("=")
        match name.lower(), argument if equals else None:
            case "orport", str():
                or_port = _port(argument)
            case "v3ident", str():
                v3ident = _fingerprint(argument)
            case "ipv6", str():
                ipv6 = _ipv6(argument)
            case "weight", str():
                _weight(argument)
            case other, str() if other in _IGNORED_VALUES:
                pass
            case other, None if other in _IGNORED_FLAGS:
                pass
            case _:
                raise UsageError(f"unknown flag {flag[:60]!r}")
    if len(words) < 2:
        raise UsageError("address:port and a fingerprint expected at the end")
    address, colon, port = words[0].partition(":")
    if not colon:
        raise UsageError(f"address:port expected, {words[0][:60]!r} seen")
    return Authority(
        nickname=nickname or words[0],
        address=_ipv4(address),
        dir_port=_port(port),
        or_port=or_port,
        fingerprint=_fingerprint("".join(words[1:])),
        v3ident=v3ident,
        ipv6=ipv6,
    )


def parse_fallback(value: str) -> Fallback:
    """Parse the value of torrc's FallbackDir: `address[:dirport] orport=PORT id=FINGERPRINT [ipv6=...]`.

    Raises UsageError.
    """
    address = or_port = identity = ipv6 = None
    for word in value.split():
        name, equals, argument = word.partition("=")
        match name.lower(), argument if equals else None:
            case "orport", str():
                or_port = _port(argument)
            case "id", str():
                identity = _fingerprint(argument)
            case "ipv6", str():
                ipv6 = _ipv6(argument)
            case "weight", str():
                _weight(argument)
            case _, None if address is None:
                host, colon, dir_port = word.partition(":")
                address = _ipv4(host)
                if colon:
                    _port(dir_port)
            case _:
                raise UsageError(f"unknown word {word[:60]!r}")
    if address is None or or_port is None or identity is None:
        raise UsageError("an address, orport= and id= expected")
    return Fallback(address, or_port, identity, ipv6)


def data_dir(network: Network, explicit: StrPath | None) -> Path:
    """Returns where cache and state are kept: `explicit`, or the platform's place for a user's state.

    Networks do not share the platform's place: guards and documents of one mean nothing to another.
    It is made where it is not there yet. Raises StorageError, as `make_data_dir` does.
    """
    path = user_state_dir() / network.name if explicit is None else Path(explicit)
    make_data_dir(path)
    return path


SHARED_CACHE = ("shared cache", "--shared-cache")  # how errors call one, and the option that names it


def make_data_dir(path: Path, what: str = "data directory", option: str = "--data-dir") -> None:
    """Make a directory for its owner alone, where it is not there yet. An error calls it by `what`.

    Raises StorageError, also for one that is there and another user's.
    """
    try:
        make_private_directory(path)
    except OSError as error:
        raise StorageError(
            f"{what} {path}: {error.strerror or error}",
            hint=f"choose a directory that can be written, with {option}",
        ) from error


def user_state_dir() -> Path:
    """Returns where programs keep a user's state: `$XDG_STATE_HOME/torkit`, else `~/.local/state/torkit`.

    A relative path in the environment counts for nothing, as the XDG specification has it.
    Raises StorageError where nothing names a home directory, or it is not there.
    """
    if (place := Path(os.environ.get("XDG_STATE_HOME", ""))).is_absolute():
        return place / "torkit"
    home = Path(os.environ.get("HOME", ""))
    if not home.is_absolute():
        import pwd

        with suppress(KeyError):  # containers often run as users whom no file lists
            home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    if not home.is_absolute():
        raise StorageError(
            "this user has no home directory to keep files in",
            hint=ANOTHER_PLACE,
        )
    if not os.path.isdir(home):  # root could make it, also where an account is to have none
        raise StorageError(f"this user's home directory {home} is not there", hint=ANOTHER_PLACE)
    return home / ".local" / "state" / "torkit"


def _fingerprint(text: str) -> bytes:
    if not re.fullmatch(r"[0-9A-Fa-f]{40}", text):
        raise UsageError(f"a fingerprint of 40 hexadecimal digits expected, {text[:60]!r} seen")
    return bytes.fromhex(text)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise UsageError(f"a port from 1 to 65535 expected, {text[:60]!r} seen")
    return int(text)


def _ipv4(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except AddressValueError:
        raise UsageError(f"an IPv4 address expected, {text[:60]!r} seen") from None


def _ipv6(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\]:([0-9]+)", text)
    try:
        if match is not None:
            return str(IPv6Address(match[1])), _port(match[2])
    except AddressValueError:
        pass
    raise UsageError(f"[IPv6 address]:port expected, {text[:60]!r} seen")


def _weight(text: str) -> None:
    if not re.fullmatch(r"[0-9]+(?:\.[0-9]*)?", text):
        raise UsageError(f"a weight of 0 or more expected, {text[:60]!r} seen")
