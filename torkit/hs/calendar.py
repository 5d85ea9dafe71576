"""Which time period and which shared random value are in force, by one consensus.

    time period     a service's blinded key is new in each; a day, from 12:00 UTC on the public network
    run             24 voting intervals, from 00:00 UTC; each ends with a new shared random value

Clients place a descriptor by the current period, and by the newest value that was known when the period
began. rend-spec-v3, "Dividing time into periods" and "Where to publish a hidden service descriptor".
"""

import hashlib
from typing import NamedTuple

# Specification constants.
RUN_INTERVALS = 24  # voting intervals of one run of the shared random protocol
OFFSET_INTERVALS = 12  # voting intervals from the start of a run to that of a period
DISASTER_PREFIX = b"shared-random-disaster"


class TimePeriod(NamedTuple):
    """A period by its number, counted from 1970, and its length in minutes."""

    number: int
    length: int


class Stand(NamedTuple):
    """One of the places of a descriptor: the period, and the shared random value by which it is placed, 32
    bytes. Its revision counter counts from `run_began`, Unix time."""

    period: TimePeriod
    shared_random: bytes
    run_began: int


class Calendar(NamedTuple):
    """`valid_after` of a consensus, Unix time; its voting interval, seconds; the length of periods, minutes;
    and the shared random values that it holds, 32 bytes each."""

    valid_after: int
    voting_interval: int
    period_length: int
    random_current: bytes | None = None
    random_previous: bytes | None = None

    @property
    def period(self) -> TimePeriod:
        """The period in force."""
        return self._period_at(self.valid_after)

    @property
    def shared_random(self) -> bytes:
        """The value by which clients look for descriptors now; the disaster value if the network has none."""
        value = self.random_current if self._is_between_period_and_random else self.random_previous
        return value or disaster_random(self.period)

    @property
    def stands(self) -> tuple[Stand, Stand]:
        """Where a service publishes now: for clients with an older consensus, and for those with a newer one.

        rend-spec-v3, "Where to publish a hidden service descriptor". (Counters as in C tor.)
        """
        number, length = self.period
        first = number - 1 if self._is_between_period_and_random else number
        periods = TimePeriod(first, length), TimePeriod(first + 1, length)
        values = self.random_previous, self.random_current
        began = self._run_began - RUN_INTERVALS * self.voting_interval, self._run_began
        older, newer = (
            Stand(period, value or disaster_random(period), when)
            for period, value, when in zip(periods, values, began, strict=True)
        )
        return older, newer

    @property
    def _run_began(self) -> int:
        intervals = self.valid_after // self.voting_interval % RUN_INTERVALS
        return self.valid_after - intervals * self.voting_interval

    @property
    def _is_between_period_and_random(self) -> bool:
        """Whether a period has begun in this run. Then the newest value counts, else the one before."""
        return self.valid_after >= self._end_of(self._period_at(self._run_began))

    def _period_at(self, when: int) -> TimePeriod:
        minutes = when // 60 - self._offset
        return TimePeriod(minutes // self.period_length, self.period_length)

    def _end_of(self, period: TimePeriod) -> int:
        return ((period.number + 1) * period.length + self._offset) * 60

    @property
    def _offset(self) -> int:
        """Minutes."""
        return OFFSET_INTERVALS * self.voting_interval // 60


def length_when_testing(voting_interval: int) -> int:
    """Returns the minutes of a period where TestingTorNetwork is set, whatever hsdir_interval (as C tor)."""
    return RUN_INTERVALS * voting_interval // 60


def disaster_random(period: TimePeriod) -> bytes:
    """Returns the value in place of a shared random value that the network has failed to make."""
    numbers = period.length.to_bytes(8, "big") + period.number.to_bytes(8, "big")
    return hashlib.sha3_256(DISASTER_PREFIX + numbers).digest()
