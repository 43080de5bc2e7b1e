"""What a figure tells of a cell besides its one number."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from statistics import median

import numpy as np

from fwrnn.intervals import interval
from fwrnn.reproduction import published
from fwrnn.reproduction.results import Extra, Result, Run
from fwrnn.reproduction.words import NONE, number

LENGTHS = (1, 2, 4, 8, 12, 16, 20, 26)
"""Numbers of pairs; letters, which are the keys, end at 26."""
SOLVED = 0.01
"""Nats, below which figure 2 counts as solved."""


def with_extras(target: str, result: Result, device: str | None) -> Result:
    """The result and what its figure tells besides."""
    tell = TELLERS.get(target)
    if tell is None or not result.runs:
        return result
    return replace(result, extras=tuple(tell(result, device)))


def curve(run: Run, x: str, y: str) -> np.ndarray:
    """Two columns of the run's validations, (2, N)."""
    rows = np.genfromtxt(run.folder / "curve.csv", delimiter=",", names=True, encoding="utf-8")
    return np.stack([np.atleast_1d(rows[name]) for name in (x, y)])


def _lengths(result: Result, device: str | None) -> list[Extra]:
    """The error on other numbers of pairs, of every run that has weights."""
    from fwrnn.learning.retest import evaluate_pairs

    found: dict[int, list[float]] = {pairs: [] for pairs in LENGTHS}
    for run in result.runs:
        if run.has_weights:
            for row in evaluate_pairs(str(run.folder), list(LENGTHS), device=device):
                found[row["pairs"]].append(100 * row["error"])
    if not found[LENGTHS[0]]:
        return []
    texts = {pairs: number(interval(errors).mean, "error") for pairs, errors in found.items()}
    return [Extra("pairs", found, f"{n} pairs", text) for n, text in texts.items()]


def _solved_after(result: Result, device: str | None) -> list[Extra]:
    """The updates after which the validation loss was below 0.01 nats for the first time."""
    curves = [curve(run, "updates", "val_loss") for run in result.runs]
    each = [_first_below(points, SOLVED) for points in curves]
    paper = _first_below(np.array(published.curve("figure2", result.cell.model)), SOLVED)
    least = [points[1].min() for points in curves]
    return [
        Extra("updates_to_0.01_nats", _finite(each), "solved after", _each(each, ",.0f")),
        Extra("paper_updates", _finite([paper])[0], "the paper after", _each([paper], ",.0f")),
        Extra("least_nats", least, "least nats", ", ".join(f"{nats:.2g}" for nats in least)),
    ]


def _games(result: Result, device: str | None) -> list[Extra]:
    """Frames until the validation reward stayed above 0.9, and the interquartile mean."""
    each = [run.metrics.get("frames_to_0.9") or inf for run in result.runs]
    frames = _each([n / 1e6 for n in each], ".2f")
    middle, low, high = interquartile_mean(result.numbers)
    iqm = f"{middle:.3f} ({low:.3f} to {high:.3f})"
    return [
        Extra("frames_to_0.9", _finite(each), "M frames needed", frames),
        Extra("iqm", [middle, low, high], "middle half", iqm),
    ]


TELLERS: dict[str, Callable[[Result, str | None], list[Extra]]] = {
    "lengths": _lengths,
    "figure2": _solved_after,
    "figure5": _games,
}


def interquartile_mean(numbers: Sequence[float], resamples: int = 2000) -> tuple[float, ...]:
    """The mean of the middle half, and its 95 % interval by the bootstrap over seeds.

    As Agarwal et al. have it, "Deep Reinforcement Learning at the Edge of the Statistical
    Precipice", 2021. A number that lies partly in the middle half counts by that part.
    """
    values = np.asarray(numbers, float)
    draws = np.random.default_rng(0).choice(values, (resamples, len(values)))
    low, high = np.quantile(_middle(draws), [0.025, 0.975])
    return float(_middle(values[None])[0]), float(low), float(high)


def _middle(samples: np.ndarray) -> np.ndarray:
    """The interquartile mean of every row."""
    count = samples.shape[1]
    ends = np.arange(count + 1) / count
    weights = np.clip(ends[1:], 0.25, 0.75) - np.clip(ends[:-1], 0.25, 0.75)
    return np.sort(samples, 1) @ weights / weights.sum()


def _first_below(points: np.ndarray, limit: float) -> float:
    """Where a curve (2, N) is first below a limit; infinite for never."""
    below = points[0][points[1] < limit] if points.size else points
    return float(below[0]) if below.size else inf


def _finite(numbers: Sequence[float]) -> list[float | None]:
    return [None if x == inf else x for x in numbers]


def _each(numbers: Sequence[float], form: str) -> str:
    """The median and, of several, each; – for never."""
    texts = [NONE if x == inf else format(x, form) for x in (median(numbers), *numbers)]
    return texts[0] if len(numbers) == 1 else f"{texts[0]} ({', '.join(texts[1:])})"
