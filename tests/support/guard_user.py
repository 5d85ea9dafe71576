"""A user with guards and a clock of its own, on a network of 200 relays. No tests here."""

from collections.abc import Callable, Iterable
from random import Random

import network_docs

from torkit.directory.consensus import parse_consensus
from torkit.directory.directory import Directory, Relay
from torkit.directory.microdesc import Microdescs
from torkit.params import default_param
from torkit.paths.guards import Guards, Verdict
from torkit.testing.directory import RelayDoc, encode_microdescs

DOCS = network_docs.relays(200)  # a hundred of them may be guards: twenty are sampled
NICKNAMES = {doc.identity: doc.nickname for doc in DOCS}
IDENTITIES = {doc.nickname: doc.identity for doc in DOCS}
NOW = float(network_docs.NOW)
MINUTE = 60.0
HOUR = 3600.0

CONNECT_TIMEOUT = default_param("guard-nonprimary-guard-connect-timeout")
IDLE_TIMEOUT = default_param("guard-nonprimary-guard-idle-timeout")
LIKELY_DOWN = default_param("guard-internet-likely-down-interval")


def directory_of(
    docs: Iterable[RelayDoc],
    *,
    params: str = "",
    held: Iterable[RelayDoc] | None = None,
    at: float = NOW,
) -> Directory:
    """Live `at` this time."""
    docs = list(docs)
    microdescs = Microdescs()
    signers = network_docs.authorities(1)
    consensus = parse_consensus(
        network_docs.consensus(docs, signers, params=params, valid_after=int(at - HOUR / 2))
    )
    microdescs.add(
        encode_microdescs(docs if held is None else held),
        {digest for digest in consensus.relays.digests if digest},
        network_docs.NOW,
    )
    return Directory(consensus, microdescs)


DIRECTORY = directory_of(DOCS)


def anyone(relay: Relay) -> bool:
    return True


def none_of(*names: str) -> Callable[[Relay], bool]:
    return lambda relay: relay.nickname not in names


class User:
    """Guards, and a clock of their own: what a client does with them, in few words."""

    def __init__(self, guards: Guards | None = None, directory: Directory = DIRECTORY, seed: int = 1) -> None:
        self.guards = guards or Guards()
        self.directory = directory
        self.now = NOW
        self.rng = Random(seed)
        self.guards.update(directory, now=self.now, rng=self.rng)

    def choose(self, fits: Callable[[Relay], bool] = anyone) -> str:
        """The nickname of the guard for the next circuit."""
        return self.guards.choose(self.directory, fits, now=self.now, rng=self.rng).nickname

    def see(self, directory: Directory) -> None:
        self.directory = directory
        self.guards.update(directory, now=self.now, rng=self.rng)

    def fail(self, *names: str) -> None:
        for name in names:
            self.guards.note_failed(IDENTITIES[name], now=self.now)

    def reach(self, name: str) -> None:
        self.guards.note_reached(IDENTITIES[name], now=self.now)

    def judge(self, name: str, fits: Callable[[Relay], bool] = anyone) -> Verdict:
        return self.guards.judge(self.directory, IDENTITIES[name], fits, now=self.now)

    def use(self, fits: Callable[[Relay], bool] = anyone) -> str:
        """Build a circuit for traffic, which works."""
        name = self.choose(fits)
        self.reach(name)
        assert self.judge(name, fits) is Verdict.USABLE
        self.guards.confirm(IDENTITIES[name], now=self.now, rng=self.rng)
        return name

    def fail_all(self) -> list[str]:
        """Build circuits, all of which fail, until a guard is tried again; those tried."""
        failed: list[str] = []
        while (name := self.choose()) not in failed:
            self.fail(name)
            failed.append(name)
        return failed

    def fail_primary(self) -> None:
        """Try the primary guards now, in vain."""
        for guard in self.guards.primary:
            guard.last_tried = self.now
        self.fail(*self.primary)

    @property
    def primary(self) -> list[str]:
        return [NICKNAMES[guard.identity] for guard in self.guards.primary]

    @property
    def sample(self) -> list[str]:
        return [NICKNAMES[guard.identity] for guard in self.guards.sample]

    def restart(self, directory: Directory | None = None) -> "User":
        guards, complaints = Guards.from_state(self.guards.to_state(), now=self.now, rng=self.rng)
        assert complaints == []
        again = User.__new__(User)
        again.guards, again.directory = guards, directory or self.directory
        again.now, again.rng = self.now, Random(2)
        again.guards.update(again.directory, now=again.now, rng=again.rng)
        return again


def without(*names: str) -> list[RelayDoc]:
    return [doc for doc in DOCS if doc.nickname not in names]
