"""Consensus parameters are moved into their ranges."""

import pytest

from torkit.params import PARAMETERS, default_param, parameter


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_is_moved_into_its_range(name: str) -> None:
    default, low, high = PARAMETERS[name]
    assert low <= default <= high
    assert parameter({}, name) == default_param(name) == default
    assert [parameter({name: value}, name) for value in (low - 1, low, low + 1)] == [
        low,
        low,
        min(low + 1, high),
    ]
    assert parameter({name: high - 1}, name) == max(high - 1, low)
    assert [parameter({name: value}, name) for value in (high, high + 1)] == [high, high]
