"""Parameters of a test of which only some are tested each time."""

import pytest


def some_slow(values, *slow):
    """Return the values of a parameter; those in `slow` are marked so, for the others test the same code."""
    values = list(values)
    unknown = [value for value in slow if value not in values]
    assert not unknown, f"no value of the parameter: {unknown}"
    return [pytest.param(value, marks=pytest.mark.slow) if value in slow else value for value in values]
