"""The parts of a network: its options, its relays, and the findings of `verify`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torkit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Options:
    """The shape of a network.

    `voting_interval`: seconds; a consensus is fresh for one interval and valid for two. At least 10, which
    makes every client refresh all the time, and a divisor of a day.
    `distinct_subnets`: every relay has its own /16 (127.10.0.1, 127.11.0.1, ...); else all are on 127.0.0.1.
    `torrc`: nickname to lines added to that relay's torrc, before the default exit policy.
    """

    authorities: int = 3
    exits: int = 3
    middles: int = 3
    distinct_subnets: bool = True
    voting_interval: int = 1800
    log_level: str = "notice"
    torrc: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Relay:
    """One tor relay. `pid` is None before it starts and after `kill_relay`."""

    nickname: str
    address: str
    directory: Path
    is_authority: bool = False
    is_exit: bool = False
    or_port: int = 0
    dir_port: int = 0  # authorities only
    fingerprint: str = ""  # RSA identity, 40 hex digits, upper case
    ed25519: str = ""  # Ed25519 identity, base64 without padding
    v3ident: str = ""  # authorities only
    pid: int | None = None

    @property
    def torrc(self) -> Path:
        return self.directory / "torrc"

    @property
    def data_directory(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "log"


@dataclass(frozen=True)
class Check:
    """One finding of `verify`."""

    name: str
    passed: bool
    detail: str


def check_options(options: Options) -> None:
    if options.authorities < 1 or options.exits < 1 or options.middles < 0:
        raise UsageError("a test network needs at least one authority and one exit")
    if options.authorities + options.exits + options.middles < 3:
        raise UsageError("a path needs three relays")
    if options.voting_interval < 10 or 86400 % options.voting_interval:
        raise UsageError(
            f"a voting interval is at least 10 s and divides a day, got {options.voting_interval} s"
        )


def planned_relays(directory: Path, options: Options) -> list[Relay]:
    names = [
        *(f"auth{n}" for n in range(1, options.authorities + 1)),
        *(f"exit{n}" for n in range(1, options.exits + 1)),
        *(f"middle{n}" for n in range(1, options.middles + 1)),
    ]
    return [
        Relay(
            nickname=name,
            address=f"127.{10 + n}.0.1" if options.distinct_subnets else "127.0.0.1",
            directory=directory / name,
            is_authority=name.startswith("auth"),
            is_exit=name.startswith("exit"),
        )
        for n, name in enumerate(names)
    ]


def authorities_of(relays: Sequence[Relay]) -> list[Relay]:
    return [relay for relay in relays if relay.is_authority]
