"""Decides whether to believe a consensus: by its signatures, and by the time."""

from collections.abc import Collection, Iterable, Mapping
from enum import IntEnum

from torkit.directory.authorities import AuthorityCertificate, check_signature
from torkit.directory.consensus import Preamble, Signature
from torkit.directory.entries import FLAVORS
from torkit.directory.netdoc import encode_time
from torkit.directory.steps import Steps, complete, digest
from torkit.errors import NoDirectory

# Specification constant: seconds; dir-spec, "Downloading network-status documents".
REASONABLY_LIVE = 24 * 3600

# Implementation limit: seconds that our clock may be behind (as many as C tor allows before it warns).
EARLY_SKEW = 60


class Liveness(IntEnum):
    """How a consensus stands to a time."""

    UNTIMELY = 0
    REASONABLE = 1  # by REASONABLY_LIVE: clients use it where no source has a newer one (as C tor)
    LIVE = 2  # what a fetch must bring, and what `fetch-consensus` prints


def liveness(consensus: Preamble, now: float) -> Liveness:
    """Judge by its times; it is live DistSeconds early, when authorities hand it to caches."""
    off = max(_seconds_early(consensus, now), now - consensus.valid_until)
    if off <= 0:
        return Liveness.LIVE
    return Liveness.REASONABLE if off <= REASONABLY_LIVE else Liveness.UNTIMELY


def is_live(consensus: Preamble, now: float) -> bool:
    return liveness(consensus, now) is Liveness.LIVE


def check_times(consensus: Preamble, now: float, *, least: Liveness = Liveness.LIVE) -> None:
    """Refuse a consensus of less liveness than `least`. Raises NoDirectory."""
    if liveness(consensus, now) >= least:
        return
    if _seconds_early(consensus, now) > 0:
        raise NoDirectory(
            f"consensus is from the future: valid after {encode_time(consensus.valid_after)} UTC,"
            f" {length_of(consensus.valid_after - now)} from now",
            hint="check this computer's clock and time zone",
        )
    raise NoDirectory(
        f"consensus has expired: valid until {encode_time(consensus.valid_until)} UTC,"
        f" {length_of(now - consensus.valid_until)} ago",
        hint="check this computer's clock, or fetch a newer consensus",
    )


def _seconds_early(consensus: Preamble, now: float) -> float:
    return consensus.valid_after - consensus.dist_seconds - EARLY_SKEW - now


def verify(
    consensus: Preamble,
    certificates: Iterable[AuthorityCertificate],
    authorities: Mapping[bytes, str],
    now: float,
    *,
    least: Liveness = Liveness.LIVE,
) -> tuple[str, ...]:
    """As `verify_in_steps`, at once."""
    return complete(verify_in_steps(consensus, certificates, authorities, now, least=least))


def verify_in_steps(
    consensus: Preamble,
    certificates: Iterable[AuthorityCertificate],
    authorities: Mapping[bytes, str],
    now: float,
    *,
    least: Liveness = Liveness.LIVE,
) -> Steps[tuple[str, ...]]:
    """Check the times, then that more than half of `authorities` have signed. Returns the signers.

    `authorities` maps each configured v3 identity, 20 bytes, to its nickname; each counts once,
    however often it signs. A signature counts if made with the flavor's digest by a key whose
    certificate is at hand and current at `now`. `least` as in `check_times`. Raises NoDirectory.
    """
    check_times(consensus, now, least=least)
    current = _current_by_key(certificates, now)
    signed = memoryview(consensus.text)[: consensus.signed_len]
    signed_digest = yield from digest(FLAVORS[consensus.flavor].algorithm, signed)
    outcomes: dict[bytes, str] = dict.fromkeys(authorities, "did not sign")
    for signature in _countable(consensus, authorities):
        if outcomes[signature.identity] == "good":
            continue
        certificate = current.get((signature.identity, signature.signing_key_digest))
        if certificate is None:
            outcomes[signature.identity] = "certificate missing or expired"
        elif check_signature(certificate.signing_key, signature.signature, signed_digest):
            outcomes[signature.identity] = "good"
        else:
            outcomes[signature.identity] = "bad signature"
    good = tuple(authorities[identity] for identity, outcome in outcomes.items() if outcome == "good")
    needed = len(authorities) // 2 + 1
    if len(good) < needed:
        rest = (f"{authorities[who]}: {outcome}" for who, outcome in outcomes.items() if outcome != "good")
        raise NoDirectory(
            f"consensus has {len(good)} good signatures, {needed} of {len(authorities)} authorities needed"
            f" ({', '.join(rest)})"
        )
    return good


def missing_certificates(
    consensus: Preamble,
    certificates: Iterable[AuthorityCertificate],
    authorities: Collection[bytes],
    now: float,
) -> list[tuple[bytes, bytes]]:
    """Returns the certificates without which `verify` cannot count all signatures:

    (identity, key digest) pairs.
    """
    current = _current_by_key(certificates, now)
    wanted = (
        (signature.identity, signature.signing_key_digest) for signature in _countable(consensus, authorities)
    )
    return [pair for pair in dict.fromkeys(wanted) if pair not in current]


def _current_by_key(
    certificates: Iterable[AuthorityCertificate], now: float
) -> dict[tuple[bytes, bytes], AuthorityCertificate]:
    return {(cert.identity, cert.signing_key_digest): cert for cert in certificates if cert.is_current(now)}


def _countable(consensus: Preamble, authorities: Collection[bytes]) -> list[Signature]:
    algorithm = FLAVORS[consensus.flavor].algorithm
    return [s for s in consensus.signatures if s.algorithm == algorithm and s.identity in authorities]


def length_of(seconds: float) -> str:
    """Returns how long that is, for sentences, by its largest unit and the next:

    `2 days 5 hours`, `1 hour`.
    """
    left = int(seconds)
    words: list[str] = []
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1)):
        count, left = divmod(left, length)
        has_begun = bool(words)
        if count:
            words.append(f"{count} {unit}{'' if count == 1 else 's'}")
        if has_begun:
            break
    return " ".join(words) or "0 seconds"
