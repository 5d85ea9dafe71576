"""Chooses the relays at which circuits begin: a short list, kept for months, since each new guard is a risk.

guard-spec.

Pure: the directory, the time and the outcomes of circuits are arguments. A guard is

    sampled     drawn from the consensus by bandwidth, and kept for months
    filtered    of those, listed in the newest consensus and allowed by the user
    confirmed   of the sampled, has carried traffic: preferred
    primary     the first few of the filtered: used at once where reachable, retried soon where not

A circuit through a guard that is not primary is built to see whether the guard answers. It is used only once
no better guard may still answer: `judge`, after proposal 337, which asks about guards where guard-spec
compares circuits. Guards of a kind are preferred in the order of sampling (as by C tor: proposal 310).

A primary guard whose microdescriptor has not come is waited for (`lacking`): whoever serves directories
could otherwise choose when a circuit begins elsewhere. A newer consensus changes the sample at once, even
while circuits are still built by the one before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from math import inf
from random import Random
from typing import Any

from torkit.directory.directory import Directory, Relay
from torkit.directory.netdoc import decode_fingerprint, decode_time, encode_time
from torkit.directory.positions import Position, is_possible_guard
from torkit.directory.trust import Liveness, liveness
from torkit.errors import NoDirectory, NoGuard, NoPath
from torkit.learnt.path_bias import Counts
from torkit.params import default_param
from torkit.paths.constraints import Constraints, excluded_places, places_of

DAY = 86400.0

# Specification constants, seconds (guard-spec, "Parameters"). Each row: the age of a failure up to which it
# applies; after how long a primary guard is tried again; after how long another guard is.
RETRY_SCHEDULE = (
    (0.25 * DAY, 600.0, 3600.0),
    (4 * DAY, 5400.0, 14400.0),
    (7 * DAY, 14400.0, 64800.0),
    (inf, 32400.0, 129600.0),
)

# Specification constant (guard-spec, "State instances"): how far the share of allowed guards has to pass the
# threshold before the other sample is used.
STICKINESS = 0.05

Fits = Callable[[Relay], bool]


class Reachability(Enum):
    """`is_reachable` of guard-spec. MAYBE is worth trying, YES answered when last tried."""

    YES = "yes"
    NO = "no"
    MAYBE = "maybe"


class Verdict(Enum):
    """Whether a circuit through a guard that is not primary may carry traffic."""

    USABLE = "its circuit may carry traffic"
    UNDECIDED = "a better one is being tried"
    BETTER_FIRST = "a better one is worth a try"


DATES = ("sampled_on", "confirmed_on", "unlisted_since", "failing_since", "last_tried")


class Guard:
    """One sampled guard; times in seconds since the epoch.

    The dates are kept, each moved into the past at random so that the file does not tell when this client
    was used. `kept` holds what another version of torkit has written beside them. So that a command which
    runs for a moment knows what the one before it has met, a guard that is down is kept with when it failed
    and was last tried, as they are: its retry is due within minutes. The rest is forgotten at the end.
    """

    def __init__(self, identity: bytes, sampled_on: float) -> None:
        self.identity = identity
        self.sampled_on = sampled_on
        self.confirmed_on: float | None = None
        self.unlisted_since: float | None = None
        self.path_bias = Counts()
        self.kept: dict[str, Any] = {}
        self.reachability = Reachability.MAYBE
        self.failing_since: float | None = None
        self.last_tried: float | None = None
        self.pending_since: float | None = None

    def __repr__(self) -> str:
        states = [self.reachability.value]
        states += ["confirmed"] if self.confirmed_on is not None else []
        states += ["not listed"] if self.unlisted_since is not None else []
        states += ["being tried"] if self.pending_since is not None else []
        return f"<Guard ${self.identity.hex().upper()}, reachable: {', '.join(states)}>"

    @classmethod
    def from_json(cls, entry: Any, *, now: float, rng: Random) -> Guard:
        """Read one entry of the state file. Raises ValueError for an entry that is no guard.

        Entries with nothing but a fingerprint are of guards that were used: they count as confirmed now.
        """
        kept = dict(entry) if isinstance(entry, dict) else {}
        guard = cls(decode_fingerprint(str(kept.pop("fingerprint", None))), now)
        guard.kept = kept
        guard.path_bias = Counts.from_json(kept.pop("path_bias", None))
        if kept.get("sampled_on") is None:
            guard.sampled_on = guard.confirmed_on = _randomized(
                now, DAY * default_param("guard-lifetime-days") / 10, rng
            )
        for name in DATES:
            date = kept.pop(name, None)
            if date is not None:
                setattr(guard, name, decode_date(date))
        if guard.failing_since is not None:
            guard.reachability = Reachability.NO
        return guard

    def bring_back(self, now: float) -> bool:
        """Set dates after `now`, of a clock that was ahead, to `now`. Returns whether there was any."""
        ahead = [name for name in DATES if (getattr(self, name) or now) > now]
        for name in ahead:
            setattr(self, name, now)
        return bool(ahead)

    def to_json(self) -> dict[str, Any]:
        dates = {
            "sampled_on": self.sampled_on,
            "confirmed_on": self.confirmed_on,
            "unlisted_since": self.unlisted_since,
        }
        if self.reachability is Reachability.NO:
            dates |= {"failing_since": self.failing_since, "last_tried": self.last_tried}
        return (
            self.kept
            | {"fingerprint": self.identity.hex().upper()}
            | {name: encode_date(date) for name, date in dates.items() if date is not None}
            | ({"path_bias": counts} if (counts := self.path_bias.to_json()) else {})
        )


class Guards:
    """Callers ask `choose` for a guard, and tell with `note_*` what came of it. `to_state` is for its file.

    `now` is the time of day in seconds since the epoch, which a suspended machine goes on counting; should
    it be set back, guards are retried early. A directory that is not reasonably live removes no guard.
    """

    def __init__(self, restrictions: Constraints | None = None) -> None:
        """`restrictions` are the user's wishes for every path. Only `entries` and `exclude` count here."""
        self.has_changed = False  # since the state was last kept
        self._restrictions = restrictions or Constraints()
        # The second instance is for users who exclude nearly all guards. guard-spec, "State instances".
        self._samples: dict[str, list[Guard]] = {"guards": [], "restricted_guards": []}
        self._instance: str | None = None
        self._primary: list[Guard] = []
        self._directory: Directory | None = None
        self._possible: list[int] = []  # places in the consensus: GUARDS of guard-spec
        self._allowed: frozenset[bytes] = frozenset()  # identities of the guards that the user allows
        self._last_on_internet = -inf
        self._have_all_failed = False  # since any guard answered

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], *, now: float, rng: Random, restrictions: Constraints | None = None
    ) -> tuple[Guards, list[str]]:
        """Read what `to_state` gave. Returns also what is wrong with each entry that is left out."""
        guards = cls(restrictions)
        complaints = []
        for instance, sample in guards._samples.items():
            entries = state.get(instance, [])
            if not isinstance(entries, list):
                complaints.append(f"{instance}: a list expected")
                continue
            known: set[bytes] = set()
            for number, entry in enumerate(entries, 1):
                try:
                    guard = Guard.from_json(entry, now=now, rng=rng)
                    if guard.identity in known:
                        raise ValueError("the same guard again")
                except ValueError as error:
                    complaints.append(f"{instance}, entry {number}: {error}")
                    continue
                known.add(guard.identity)
                sample.append(guard)
        return guards, complaints

    def to_state(self) -> dict[str, Any]:
        """Returns JSON values, the guards in the order in which they were sampled."""
        return {
            instance: [guard.to_json() for guard in sample]
            for instance, sample in self._samples.items()
            if sample or instance == "guards"
        }

    @property
    def sample(self) -> list[Guard]:
        """The sample in use, in the order of sampling."""
        return self._samples[self._instance or "guards"]

    @property
    def primary(self) -> list[Guard]:
        """The primary guards, best first."""
        return list(self._primary)

    @property
    def is_extremely_restricted(self) -> bool:
        """Returns whether so few guards are allowed that they tell this user from others."""
        return (
            len(self._allowed) < len(self._possible) * self._param("guard-extreme-restriction-percent") / 100
        )

    # --- choosing ---------------------------------------------------------------------------------

    def choose(self, directory: Directory, fits: Fits, *, now: float, rng: Random) -> Relay:
        """Returns the guard for the next circuit. guard-spec, "Selecting guards for circuits".

        `fits` tells whether a guard goes with the rest of the path. The caller notes what comes of the
        circuit. Raises NoGuard where the directory has no guard that is allowed, NoPath where none of the
        sample fits, and NoDirectory where a guard is `lacking`.
        """
        if names := self.lacking(directory, now=now, rng=rng):
            raise missing_microdescs(names)

        def is_wanted(guard: Guard) -> bool:
            relay = directory.relay(guard.identity)
            return relay is not None and fits(relay)

        # A guard that does not fit still takes its place among the guards in use: the exit of a path must not
        # decide how many guards there are (as in C tor).
        count = self._param("guard-n-primary-guards-to-use")
        primary = [one for one in self._reachable_primary(now) if directory.relay(one.identity) is not None]
        usable = list(filter(is_wanted, primary[:count])) or list(filter(is_wanted, primary[count:]))[:1]
        guard = rng.choice(usable) if usable else self._choose_other(is_wanted, now, rng)
        if guard is None and self._give_another_chance(is_wanted):
            return self.choose(directory, fits, now=now, rng=rng)
        relay = None if guard is None else directory.relay(guard.identity)
        if guard is None or relay is None:
            raise self._explain(directory)
        guard.last_tried = now
        return relay

    def choose_for_directory(self, directory: Directory, *, now: float, rng: Random) -> list[bytes]:
        """Returns the identities of the guards to ask for documents, in random order.

        A guard needs no microdescriptor for that, only its entry in the consensus.
        """
        self.update(directory, now=now, rng=rng)
        guards = self._reachable_primary(now)[: self._param("guard-n-primary-dir-guards-to-use")]
        if not guards:
            guard = self._choose_other(_any, now, rng)
            if guard is None and self._give_another_chance(_any):
                return self.choose_for_directory(directory, now=now, rng=rng)
            guards = [] if guard is None else [guard]
        rng.shuffle(guards)
        for guard in guards:
            guard.last_tried = now
        return [guard.identity for guard in guards]

    def lacking(self, directory: Directory, *, now: float, rng: Random) -> list[str]:
        """Returns the nicknames of guards in use whose microdescriptors have not come.

        No circuit is built before these have come. Looked at are the primary guards that may be reachable,
        one more than are in use, since the exit of a path may exclude one (as by C tor).
        """
        self.update(directory, now=now, rng=rng)
        count = self._param("guard-n-primary-guards-to-use") + 1
        relays = directory.consensus.relays
        places = [relays.index_of(guard.identity) for guard in self._reachable_primary(now)[:count]]
        return [relays[place].nickname for place in places if place is not None and directory.lacks(place)]

    def judge(self, directory: Directory, identity: bytes, fits: Fits, *, now: float) -> Verdict:
        """Decide whether a complete circuit may carry traffic. Guards whose retry is due count as up again.

        It may if it begins at a primary guard, or if all better guards that fit are down or slow to answer.
        Proposal 337.
        """
        if any(guard.identity == identity for guard in self._primary):
            return Verdict.USABLE
        timeout = self._param("guard-nonprimary-guard-connect-timeout")
        must_wait = False
        for guard in self._by_preference():
            if guard.identity == identity:
                break
            relay = directory.relay(guard.identity)
            self._consider_retry(guard, now)
            if guard.reachability is Reachability.NO or relay is None or not fits(relay):
                continue
            if not self._is_pending(guard, now):
                return Verdict.BETTER_FIRST
            assert guard.pending_since is not None
            must_wait = must_wait or now - guard.pending_since < timeout
        return Verdict.UNDECIDED if must_wait else Verdict.USABLE

    def _reachable_primary(self, now: float) -> list[Guard]:
        """Returns the primary guards that may be reachable."""
        for guard in self._primary:
            self._consider_retry(guard, now)
        return [guard for guard in self._primary if guard.reachability is not Reachability.NO]

    def _choose_other(self, is_wanted: Callable[[Guard], bool], now: float, rng: Random) -> Guard | None:
        """Returns the best guard that is not primary, may be reachable, and is not being tried already."""
        self._expand(now, rng)
        pending: list[Guard] = []
        for guard in self._by_preference()[len(self._primary) :]:
            self._consider_retry(guard, now)
            if guard.reachability is Reachability.NO or not is_wanted(guard):
                continue
            if self._is_pending(guard, now):
                pending.append(guard)
                continue
            if guard.reachability is Reachability.MAYBE:
                guard.pending_since = now
            return guard
        return pending[0] if pending else None

    def _give_another_chance(self, is_wanted: Callable[[Guard], bool]) -> bool:
        """Take every guard for untried again, if a wanted one is down. Returns whether one was."""
        down = [guard for guard in self._by_preference() if guard.reachability is Reachability.NO]
        if not any(map(is_wanted, down)):
            return False
        for guard in down:
            guard.reachability = Reachability.MAYBE
        self._have_all_failed = True
        return True

    def _explain(self, directory: Directory) -> NoGuard | NoPath:
        if not self._possible:
            return NoGuard(f"not a Guard: none of the {len(directory)} relays may be one")
        if not self._allowed:
            return NoGuard(
                f"none of the {len(self._possible)} guards in the directory is allowed",
                hint="see --entry-nodes and --exclude-nodes",
            )
        reasons: Counter[str] = Counter()
        for guard in self.sample:
            if guard.unlisted_since is not None:
                reasons["not listed"] += 1
            elif guard.identity not in self._allowed:
                reasons["excluded"] += 1
            else:
                relay = directory.relay(guard.identity)
                reasons["no usable microdescriptor" if relay is None else "does not go with the path"] += 1
        why = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        hints = {
            "not listed": "if the data directory is another network's, name one with --data-dir",
            "excluded": "earlier --entry-nodes have filled the list; name another place with --data-dir",
        }
        return NoPath(
            f"no guard among {len(self.sample)} sampled ({why})",
            hint=hints.get(next(iter(reasons))) if len(reasons) == 1 else None,
        )

    # --- what came of it --------------------------------------------------------------------------

    def note_reached(self, identity: bytes, *, now: float) -> None:
        """Note that the first hop of a circuit was made.

        Relays that are no guards of ours are ignored, here as below.
        """
        guard = self.find(identity)
        if guard is None:
            return
        self.has_changed = self.has_changed or guard.failing_since is not None
        guard.reachability = Reachability.YES
        guard.failing_since = guard.pending_since = None
        was_down = not 0 <= now - self._last_on_internet <= self._param("guard-internet-likely-down-interval")
        self._last_on_internet = now
        # guard-spec asks only how long ago any guard answered. That all guards have failed says the same
        # sooner.
        is_back = self._have_all_failed or (was_down and guard not in self._primary)
        self._have_all_failed = False
        if is_back:
            # Guards that failed meanwhile may have failed because our network was down: the best are tried
            # first.
            for one in self._primary:
                if one.reachability is Reachability.NO:
                    one.reachability = Reachability.MAYBE

    def note_failed(self, identity: bytes, *, now: float) -> None:
        """Note that a relay could not be reached, or did not answer as a first hop."""
        guard = self.find(identity)
        if guard is None:
            return
        self.has_changed = self.has_changed or guard.reachability is not Reachability.NO
        guard.reachability = Reachability.NO
        guard.pending_since = None
        if guard.failing_since is None:
            guard.failing_since = now
        if guard.last_tried is None:  # not as our choice
            guard.last_tried = now

    def note_given_up(self, identity: bytes) -> None:
        """Note that an attempt ended for another reason, before its outcome was known."""
        guard = self.find(identity)
        if guard is not None:
            guard.pending_since = None

    def confirm(self, identity: bytes, *, now: float, rng: Random) -> None:
        """Note that a circuit for traffic was completed and may be used."""
        guard = self.find(identity)
        if guard is None or guard.confirmed_on is not None:
            return
        guard.confirmed_on = _randomized(now, self._days("guard-lifetime-days") / 10, rng)
        self.has_changed = True
        self._choose_primary()

    def path_bias_of(self, identity: bytes) -> Counts | None:
        """Returns the counts of a guard, which torkit.learnt.path_bias changes; None for other relays."""
        guard = self.find(identity)
        return None if guard is None else guard.path_bias

    def note_dropped(self) -> None:
        """Use a guard no more, until the end of the process: its `path_bias` says so."""
        self._choose_primary()

    def find(self, identity: bytes) -> Guard | None:
        """Returns the sampled guard with this identity, or None."""
        return next((guard for guard in self.sample if guard.identity == identity), None)

    def _is_pending(self, guard: Guard, now: float) -> bool:
        """Returns whether an attempt at this guard is under way and has not taken too long."""
        timeout = self._param("guard-nonprimary-guard-idle-timeout")
        return guard.pending_since is not None and 0 <= now - guard.pending_since < timeout

    def _consider_retry(self, guard: Guard, now: float) -> None:
        """guard-spec, "Retrying guards"."""
        if guard.reachability is not Reachability.NO:
            return
        age = now - (now if guard.failing_since is None else guard.failing_since)
        delays = next(delays for max_age, *delays in RETRY_SCHEDULE if age <= max_age)
        delay = delays[0 if guard in self._primary else 1]
        if guard.last_tried is None or not 0 <= now - guard.last_tried < delay:
            guard.reachability = Reachability.MAYBE

    # --- the sample -------------------------------------------------------------------------------

    def update(self, directory: Directory, *, now: float, rng: Random) -> None:
        """Take note of a new consensus. guard-spec, "Whenever we get a new consensus"."""
        is_first = self._directory is None
        if self._directory is not None:
            known, new = self._directory.consensus, directory.consensus
            if new is known or new.valid_after < known.valid_after:
                return
        self._directory = directory
        relays = directory.consensus.relays
        self._possible = [place for place, flags in enumerate(relays.flags) if is_possible_guard(flags)]
        entries = places_of(directory, self._restrictions.entries)
        excluded = excluded_places(directory, self._restrictions)
        self._allowed = frozenset(
            relays.identities[place]
            for place in self._possible
            if place not in excluded and (place in entries or not self._restrictions.entries)
        )
        self._choose_instance()
        if liveness(directory.consensus, now) > Liveness.UNTIMELY:  # else our clock may be wrong
            for guard in self.sample:
                self.has_changed = guard.bring_back(now) or self.has_changed
            self._note_listed({relays.identities[place] for place in self._possible}, now, rng)
            kept = [guard for guard in self.sample if not self._has_expired(guard, now)]
            if len(kept) < len(self.sample):
                self._samples[self._instance or "guards"] = kept
                self.has_changed = True
        self._expand(now, rng)
        self._choose_primary()
        if is_first and all(guard.reachability is Reachability.NO for guard in self._primary):
            # The file says that all guards failed: rather than the guards, our network was down.
            for guard in self.sample:
                guard.reachability = Reachability.MAYBE

    def _choose_instance(self) -> None:
        """guard-spec, "State instances"."""
        threshold = len(self._possible) * self._param("guard-meaningful-restriction-percent") / 100
        if self._instance is not None:
            threshold *= 1 - STICKINESS if self._instance == "guards" else 1 + STICKINESS
        instance = "guards" if len(self._allowed) >= threshold else "restricted_guards"
        if instance != self._instance:
            self._instance = instance
            self._primary = []

    def _note_listed(self, listed: set[bytes], now: float, rng: Random) -> None:
        for guard in self.sample:
            if (guard.unlisted_since is None) is not (guard.identity in listed):
                slack = self._days("guard-remove-unlisted-guards-after-days") / 5
                guard.unlisted_since = None if guard.identity in listed else _randomized(now, slack, rng)
                self.has_changed = True

    def _has_expired(self, guard: Guard, now: float) -> bool:
        """guard-spec, "The sampled guard set". For a confirmed guard that date alone counts (as in C tor)."""
        if guard.unlisted_since is not None and now - guard.unlisted_since > self._days(
            "guard-remove-unlisted-guards-after-days"
        ):
            return True
        if guard.confirmed_on is not None:
            return now - guard.confirmed_on > self._days("guard-confirmed-min-lifetime-days")
        return now - guard.sampled_on > self._days("guard-lifetime-days")

    def _expand(self, now: float, rng: Random) -> None:
        """Sample more guards while too few are usable, up to the sample's greatest size."""
        assert self._directory is not None
        least = self._param("guard-min-filtered-sample-size")
        usable = (one for one in self.sample if self._passes(one) and one.reachability is not Reachability.NO)
        wanted = least - sum(1 for _ in usable)
        if wanted <= 0:
            return
        relays = self._directory.consensus.relays
        pool = self._possible
        if self._instance == "restricted_guards":  # or hardly any of the sample would pass
            pool = [place for place in pool if relays.identities[place] in self._allowed]
        most = len(pool) * self._param("guard-max-sample-threshold-percent") // 100
        room = max(min(most, self._param("guard-max-sample-size")), least) - len(self.sample)
        if room <= 0:
            return
        sampled = {guard.identity for guard in self.sample}
        weights = self._directory.weights(Position.GUARD)
        new = [place for place in pool if relays.identities[place] not in sampled]
        has_weights = any(weights[place] > 0 for place in new)
        # Exponential clocks ring in the order of draws by weight, without putting back.
        rings = {place: _ring_at(weights[place] if has_weights else 1.0, rng) for place in new}
        slack = self._days("guard-lifetime-days") / 10
        for place in sorted(new, key=rings.__getitem__)[:room]:
            if wanted <= 0:
                return
            guard = Guard(relays.identities[place], _randomized(now, slack, rng))
            self.sample.append(guard)
            self.has_changed = True
            wanted -= self._passes(guard)

    def _passes(self, guard: Guard) -> bool:
        """Returns whether it is filtered: listed, allowed, and not dropped."""
        return (
            guard.unlisted_since is None
            and guard.identity in self._allowed
            and not guard.path_bias.is_disabled
        )

    def _choose_primary(self) -> None:
        """A primary guard stays primary until a confirmed one comes. guard-spec, "The primary guards"."""
        filtered = [guard for guard in self.sample if self._passes(guard)]
        ranked = sorted(
            filtered,
            key=lambda guard: 0 if guard.confirmed_on is not None else 1 if guard in self._primary else 2,
        )
        primary = ranked[: self._param("guard-n-primary-guards")]
        self._primary = [guard for guard in filtered if guard in primary]

    def _by_preference(self) -> list[Guard]:
        """Returns the filtered guards: the primary ones, the other confirmed ones, the rest."""
        others = [guard for guard in self.sample if self._passes(guard) and guard not in self._primary]
        return self._primary + sorted(others, key=lambda guard: guard.confirmed_on is None)

    def _param(self, name: str) -> int:
        if self._directory is None:
            return default_param(name)
        return self._directory.consensus.param(name)

    def _days(self, name: str) -> float:
        """Returns a parameter of days in seconds."""
        return DAY * self._param(name)


def missing_microdescs(names: Iterable[str]) -> NoDirectory:
    """Returns the error that says for which guards circuits wait."""
    return NoDirectory(f"the microdescriptor of the guard {', '.join(names)} has not come yet")


def _any(guard: Guard) -> bool:
    return True


def _ring_at(weight: float, rng: Random) -> float:
    return rng.expovariate(weight) if weight > 0 else inf


def _randomized(now: float, interval: float, rng: Random) -> float:
    """Returns a random time between `interval` ago and now. guard-spec, "Random values"."""
    return now - interval * rng.random()


def encode_date(date: float) -> str:
    """Returns a time as the state file has it."""
    return encode_time(date).replace(" ", "T")


def decode_date(value: Any) -> float:
    """Raises ValueError or DocumentError."""
    date, separator, time = str(value).partition("T")
    if not separator:
        raise ValueError(f"a date like 2026-11-22T10:00:00 expected, {str(value)[:40]!r} seen")
    return decode_time(date, time)
