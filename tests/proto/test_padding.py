"""When a channel is padded, against times and draws that the test gives."""

import math
from collections import Counter
from collections.abc import Mapping
from random import Random

import pytest

from torkit._fast.cells import Command
from torkit.proto.padding import (
    IDLE_TIMEOUT,
    IDLE_TIMEOUT_SPREAD,
    KEEPALIVE,
    SHORTEST,
    LinkPadding,
    Padding,
    PaddingCommand,
    Use,
    encode_padding_negotiate,
    idle_timeout,
)

STOP = [(Command.PADDING_NEGOTIATE, b"\0\1\0\0\0\0")]


class Draws(Random):
    """Gives what it was given, and notes from how many each was to be drawn."""

    def __init__(self, *values: int) -> None:
        super().__init__()
        self.values = list(values)
        self.limits: list[int] = []

    def randrange(self, stop: int) -> int:  # type: ignore[override]  # the only way it is called
        self.limits.append(stop)
        return self.values.pop(0)


def machine(*draws: int, padding: Padding = Padding.AUTO, link_protocol: int = 5) -> LinkPadding:
    return LinkPadding(padding, link_protocol=link_protocol, rng=Draws(*draws) if draws else Random(1))


def first_due(
    link: LinkPadding, *, use: Use = Use.CIRCUITS, params: Mapping[str, int] = {}, active_at: float = 100.0
) -> float:
    """When a silent channel is padded, in seconds after its last cell; only what is looked at is known."""
    now = active_at
    for _ in range(1000):
        look_at = link.look(now, active_at=active_at, use=use, params=params)
        if look_at is None:
            return now - active_at
        assert look_at > now
        now = look_at
    return math.inf


# --- What is negotiated --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padding", "cells"), [(Padding.AUTO, []), (Padding.REDUCED, STOP), (Padding.OFF, STOP)]
)
@pytest.mark.parametrize("link_protocol", [4, 5, 6])
def test_relays_of_link_protocol_5_are_told_to_stop_and_never_told_to_start(
    padding: Padding, cells: list[tuple[Command, bytes]], link_protocol: int
) -> None:
    link = machine(padding=padding, link_protocol=link_protocol)
    assert link.start() == (cells if link_protocol >= 5 else [])


def test_a_negotiation_is_six_bytes_of_the_body() -> None:
    assert encode_padding_negotiate(PaddingCommand.STOP) == bytes.fromhex("00 01 0000 0000")
    assert encode_padding_negotiate(PaddingCommand.START, 1500, 65_535) == bytes.fromhex("00 02 05dc ffff")


# --- How long a silence --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padding", "params", "draws", "limits", "seconds"),
    [
        (Padding.AUTO, {}, (0, 0), [8000, 8000], 1.5),
        (Padding.AUTO, {}, (0, 7999), [8000, 8000], 9.499),
        (Padding.AUTO, {}, (7999, 0), [8000, 8000], 9.499),
        (Padding.REDUCED, {}, (0, 0), [5000, 5000], 9.0),
        (Padding.REDUCED, {}, (4999, 1), [5000, 5000], 13.999),
        # Values out of range are moved into it, and the longest is no shorter than the shortest.
        (Padding.AUTO, {"nf_ito_low": -5}, (0, 1), [9500, 9500], SHORTEST),
        (Padding.AUTO, {"nf_ito_low": 60_001, "nf_ito_high": 70_000}, (), [], 60.0),
        (Padding.AUTO, {"nf_ito_low": 9000, "nf_ito_high": 2000}, (), [], 9.0),
        (Padding.AUTO, {"nf_ito_low": 2000, "nf_ito_high": 2001}, (0, 0), [1, 1], 2.0),
        (Padding.AUTO, {"nf_ito_low": 0, "nf_ito_high": 1}, (0, 0), [1, 1], SHORTEST),
        (Padding.AUTO, {"nf_ito_low": 3000, "nf_ito_high": 0}, (), [], 3.0),
        (Padding.REDUCED, {"nf_ito_low_reduced": 15_000}, (), [], 15.0),
        # Reduced padding is never more than the others', bound by bound.
        (Padding.REDUCED, {"nf_ito_low": 10_000, "nf_ito_high": 12_000}, (5, 3), [4000, 4000], 10.005),
        (Padding.REDUCED, {"nf_ito_low": 10_000, "nf_ito_high": 20_000}, (5, 9), [10_000, 10_000], 10.009),
        (Padding.REDUCED, {"nf_ito_low_reduced": 0}, (3, 4), [8000, 8000], 1.504),
        (Padding.REDUCED, {"nf_ito_low_reduced": 1, "nf_ito_high_reduced": 1}, (3, 4), [8000, 8000], 1.504),
    ],
)
def test_the_silence_before_padding(
    padding: Padding, params: Mapping[str, int], draws: tuple[int, ...], limits: list[int], seconds: float
) -> None:
    rng = Draws(*draws)
    link = LinkPadding(padding, link_protocol=5, rng=rng)
    assert first_due(link, params=params) == pytest.approx(seconds, abs=1e-6)
    assert (rng.limits, rng.values) == (limits, [])


@pytest.mark.parametrize(
    ("padding", "link_protocol", "use", "params"),
    [
        (Padding.OFF, 5, Use.STREAMS, {}),
        (Padding.AUTO, 4, Use.STREAMS, {}),
        (Padding.REDUCED, 4, Use.STREAMS, {}),
        (Padding.AUTO, 5, Use.STREAMS, {"nf_ito_low": 0, "nf_ito_high": 0}),
        (Padding.REDUCED, 5, Use.STREAMS, {"nf_ito_low": 0, "nf_ito_high": 0}),
        (Padding.AUTO, 5, Use.DIRECTORY, {}),
        (Padding.AUTO, 5, Use.CIRCUITS, {"nf_pad_before_usage": 0}),
    ],
)
def test_where_there_is_no_padding_one_cell_in_five_minutes_keeps_the_connection(
    padding: Padding, link_protocol: int, use: Use, params: Mapping[str, int]
) -> None:
    link = machine(padding=padding, link_protocol=link_protocol)
    assert first_due(link, use=use, params=params) == KEEPALIVE


@pytest.mark.parametrize(
    ("use", "params"),
    [
        (Use.CIRCUITS, {}),
        (Use.CIRCUITS, {"nf_pad_before_usage": 2}),  # moved into its range
        (Use.STREAMS, {}),
        (Use.STREAMS, {"nf_pad_before_usage": 0}),
    ],
)
def test_what_is_padded(use: Use, params: Mapping[str, int]) -> None:
    assert first_due(machine(), use=use, params=params) < 9.5


def test_silences_are_distributed_as_the_larger_of_two_draws() -> None:
    link, params = machine(), {"nf_ito_low": 2000, "nf_ito_high": 2004}
    count = 16_000
    silences = (first_due(link, params=params, active_at=20.0 * (1 + number)) for number in range(count))
    seen = Counter(round(seconds * 1000) for seconds in silences)
    # padding-spec: Prob(Y == i) = (2i + 1) / R^2
    expected = {2000 + i: count * (2 * i + 1) / 16 for i in range(4)}
    assert seen.keys() == expected.keys()
    chi_squared = sum((seen[ms] - expected[ms]) ** 2 / expected[ms] for ms in expected)
    assert chi_squared < 16.3  # three degrees of freedom, p = 0.001


# --- When looked at ------------------------------------------------------------------------------------


def test_every_cell_starts_the_timer_anew_with_another_draw() -> None:
    link = machine(4000, 0, 0, 1000, 6000, 6000)
    assert link.look(100.0, active_at=100.0, use=Use.CIRCUITS, params={}) == 101.5
    assert link.look(101.5, active_at=101.2, use=Use.CIRCUITS, params={}) == 103.0
    assert link.look(103.0, active_at=101.2, use=Use.CIRCUITS, params={}) == pytest.approx(103.7)  # 2.5 s
    assert link.look(103.7, active_at=103.6, use=Use.CIRCUITS, params={}) == pytest.approx(105.2)
    assert first_due(link, active_at=103.6) == pytest.approx(7.5)


def test_no_timer_can_run_out_between_two_looks() -> None:
    """However busy the channel: each look comes before a cell since the last one could be due for padding."""
    rng = Random(2)
    for low in (0, 1000, 1500, 60_000):
        link, params = LinkPadding(Padding.AUTO, link_protocol=5, rng=rng), {"nf_ito_low": low}
        now = active_at = 0.0
        for _ in range(2000):
            look_at = link.look(now, active_at=active_at, use=Use.STREAMS, params=params)
            if look_at is None:
                active_at = now
                continue
            assert now < look_at <= now + max(low / 1000, SHORTEST)
            if rng.random() < 0.7:
                active_at = rng.uniform(now, look_at)
            now = look_at


def test_padding_begins_when_the_channel_is_used_for_it() -> None:
    link = machine(500, 0)
    assert link.look(100.0, active_at=100.0, use=Use.DIRECTORY, params={}) == 400.0
    assert link.look(150.0, active_at=100.0, use=Use.CIRCUITS, params={}) is None  # silent for long enough


def test_a_new_consensus_is_heeded_at_once() -> None:
    link = machine(7999, 0, 0, 0)
    off = {"nf_ito_low": 0, "nf_ito_high": 0}
    assert link.look(100.0, active_at=100.0, use=Use.CIRCUITS, params={}) == 101.5
    assert link.look(101.5, active_at=100.0, use=Use.CIRCUITS, params=off) == 400.0
    shorter = {"nf_ito_high": 2000}
    assert link.look(101.6, active_at=100.0, use=Use.CIRCUITS, params=shorter) is None


def test_padding_that_could_not_be_sent_stays_due() -> None:
    link = machine(0, 0)
    assert link.look(101.5, active_at=100.0, use=Use.CIRCUITS, params={}) is None
    assert link.look(110.0, active_at=100.0, use=Use.CIRCUITS, params={}) is None


# --- How long an idle channel is kept ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padding", "draw", "seconds"),
    [
        (Padding.AUTO, 0, 180),
        (Padding.AUTO, 89, 269),
        (Padding.OFF, 89, 269),
        (Padding.REDUCED, 0, 90),
        (Padding.REDUCED, 89, 134),
    ],
)
def test_idle_channels_are_kept_for_a_random_time(padding: Padding, draw: int, seconds: int) -> None:
    rng = Draws(draw)
    assert idle_timeout(padding, rng) == seconds
    assert rng.limits == [IDLE_TIMEOUT_SPREAD] == [IDLE_TIMEOUT // 2]
