"""Student's t against printed tables, and the interval against its definition."""

import pytest

from fwrnn.intervals import interval, quantile


@pytest.mark.parametrize(
    "freedom, value",
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423), (120, 1.9799)],
)
def test_quantiles_are_those_of_the_tables(freedom, value):
    assert quantile(freedom) == pytest.approx(value, abs=5e-5)


def test_interval_of_three_numbers():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / 3**0.5)


def test_single_number_has_no_interval():
    assert interval([0.5]) == (0.5, None)
