"""Means with 95 % intervals, by Student's t and of shares by Wilson."""

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean, stdev
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """``mean`` ± ``half``, which is None of a single number."""

    mean: float
    half: float | None


def interval(numbers: Sequence[float]) -> Interval:
    """The mean of independent numbers, and where it lies with 95 % confidence."""
    count = len(numbers)
    if count == 1:
        return Interval(numbers[0], None)
    return Interval(fmean(numbers), quantile(count - 1) * stdev(numbers) / math.sqrt(count))


@cache
def quantile(freedom: int) -> float:
    """The t that |t| exceeds in 5 % of cases, with so many degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < CONFIDENCE else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """The probability of |t| ≤ tan(angle) √freedom; Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(freedom // 2):
        total += term
        term *= math.cos(angle) ** 2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    sine = math.sin(angle) * total
    return 2 / math.pi * (angle + sine) if odd else sine


def wilson(mean: float, count: int, least: float, most: float) -> tuple[float, float]:
    """The 95 % interval of Wilson for a mean of ``count`` numbers that are ``least`` or ``most``.

    It holds where the mean is an end of the range too. For numbers in between it is too wide.
    """
    z, width = 1.959964, most - least
    share = (mean - least) / width
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = (least + width * (centre + sign * half) / (1 + z * z / count) for sign in (-1, 1))
    return max(least, min(low, mean)), min(most, max(high, mean))  # rounding aside
