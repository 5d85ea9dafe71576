"""What holds for every test."""

from collections.abc import Iterator

import pytest
from clocks import HastyClock
from hypothesis import HealthCheck, settings
from trio.testing import MockClock

# Nothing is timed in tests: a busy machine fails none.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def no_public_network() -> Iterator[None]:
    """A torkit started without naming a network would go to the public one: make it fail instead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORKIT_NETWORK", "/nonexistent/no-test-may-reach-the-public-network.toml")
        yield


@pytest.fixture
def hasty_clock() -> HastyClock:
    return HastyClock()


@pytest.fixture
def patient_clock() -> MockClock:
    """Jumps to the next deadline when for a while nothing moved: the sockets' other ends are in here too."""
    return MockClock(autojump_threshold=0.1)
