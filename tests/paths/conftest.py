"""Fixtures for the tests of paths."""

import pytest
from guard_user import User


@pytest.fixture
def user() -> User:
    return User()
