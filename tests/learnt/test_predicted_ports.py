"""Which ports are expected, and for how long."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from torkit.learnt.predicted_ports import MAX_PORTS, PredictedPorts

RNG = Random(6)


def test_a_port_is_expected_from_half_an_hour_to_an_hour() -> None:
    lifetimes = set()
    for seed in range(200):
        predicted = PredictedPorts()
        assert predicted.note(443, now=1000.0, rng=Random(seed))
        lifetime = predicted.seconds_left(1000.0)
        assert predicted.ports(1000.0 + lifetime) == [443]
        assert predicted.ports(1000.0 + lifetime + 0.1) == []
        lifetimes.add(lifetime)
    assert 1800 <= min(lifetimes) < 2000
    assert 3400 < max(lifetimes) < 3600


def test_the_networks_parameter_says_how_long() -> None:
    predicted = PredictedPorts({"nf_conntimeout_clients": 60}.__getitem__)
    predicted.note(443, now=0.0, rng=RNG)
    assert 60 <= predicted.seconds_left(0.0) < 120


def test_asking_again_expects_a_port_anew_and_first() -> None:
    predicted = PredictedPorts()
    predicted.note(80, now=0.0, rng=RNG)
    lifetime = predicted.seconds_left(0.0)
    assert predicted.note(443, now=lifetime / 2, rng=RNG)
    assert predicted.ports(lifetime / 2) == [443, 80]
    assert not predicted.note(80, now=lifetime, rng=RNG)
    assert predicted.ports(lifetime) == [80, 443]
    assert predicted.seconds_left(lifetime) == lifetime
    assert predicted.ports(1.6 * lifetime) == [80]


def test_the_time_is_drawn_anew_only_once_nothing_is_expected() -> None:
    predicted = PredictedPorts()
    seen = set()
    now = 0.0
    for _ in range(5):
        for port in (80, 443):
            predicted.note(port, now=now, rng=RNG)
            seen.add(predicted.seconds_left(now))
        now += 10_000
    assert len(seen) == 5


def test_nothing_is_left_when_nothing_is_expected() -> None:
    predicted = PredictedPorts()
    assert predicted.seconds_left(5.0) == 0
    predicted.note(80, now=5.0, rng=RNG)
    predicted.forget(80)
    predicted.forget(80)
    assert predicted.ports(5.0) == []
    assert predicted.seconds_left(5.0) == 0


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0, 2000)), max_size=200))
def test_only_so_many_ports_are_remembered_those_last_asked_for(asked: list[tuple[int, float]]) -> None:
    predicted = PredictedPorts()
    now, last = 0.0, dict[int, float]()
    for port, wait in asked:
        now += wait
        expected = predicted.ports(now)
        assert predicted.note(port, now=now, rng=Random(1)) is (port not in expected)
        last.pop(port, None)
        last[port] = now
        lifetime = predicted.seconds_left(now)
        alive = [one for one, when in last.items() if when + lifetime >= now]
        assert predicted.ports(now) == alive[::-1][:MAX_PORTS]
