"""What the tests of net/ share."""

import pytest
import trio
import trio.testing
from keeping import DOCS

from torkit.testing.directory import DirectoryService, FakeAuthority, make_authorities, signed_service


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps to the next deadline when for a while nothing moved: the sockets' other ends are in here too."""
    return trio.testing.MockClock(autojump_threshold=0.05)


@pytest.fixture
def signers() -> list[FakeAuthority]:
    return make_authorities()


@pytest.fixture
def service(signers: list[FakeAuthority]) -> DirectoryService:
    return signed_service(DOCS, signers)
