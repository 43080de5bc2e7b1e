"""Times of several contestants, taken in turn: what slows the machine slows them all."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

ENOUGH = 3
"""Of so many samples, the median does not mind one that was stalled."""

WIDE_SPREAD = 0.25
"""Quartiles further apart than this part of the median tell of a busy machine."""


@dataclass(frozen=True)
class Timing:
    """How long one call takes: the median and the quartiles of ``samples`` samples, in ms."""

    ms: float
    ms_q1: float
    ms_q3: float
    samples: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """The summary of samples in seconds, of which there must be one or more."""
        quartiles = [seconds[0]] * 3
        if len(seconds) > 1:
            quartiles = statistics.quantiles(seconds, n=4, method="inclusive")
        q1, median, q3 = (1e3 * value for value in quartiles)
        return cls(median, q1, q3, len(seconds))


def alternate(
    contestants: Mapping[str, Callable[[], object]],
    budget: float,
    most: int,
    sample_seconds: float,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time every contestant, in rounds: one sample of each, always in the order given.

    All get the same share of ``budget`` seconds; one that has used up its share, or has ``most``
    samples, leaves the later rounds to the others. Each gets ``ENOUGH`` at least, and each of its
    samples counts as the fastest one, so that one stalled by something else can be outvoted. They
    should have been called once before: one more call here says how many calls make a sample of
    ``sample_seconds``. ``wait`` returns once the device has done what it was given.
    """

    def seconds(call: Callable[[], object], times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            call()
        wait()
        return (time.perf_counter() - started) / times

    wait()
    fastest = {name: seconds(call, 1) for name, call in contestants.items()}
    calls = {name: max(1, math.ceil(sample_seconds / fastest[name])) for name in contestants}
    taken: dict[str, list[float]] = {name: [] for name in contestants}

    def goes_on(name: str) -> bool:
        count = len(taken[name])
        used_up = (count + 1) * calls[name] * fastest[name] > budget / len(contestants)
        return count < most and (count < ENOUGH or not used_up)

    while running := [name for name in contestants if goes_on(name)]:
        for name in running:
            taken[name].append(seconds(contestants[name], calls[name]))
            fastest[name] = min(fastest[name], taken[name][-1])
    return {name: Timing.of(samples) for name, samples in taken.items()}


def waiter(device: torch.device) -> Callable[[], object]:
    """A function that returns once ``device`` has done all it was given; the CPU always has."""
    if device.type == "cpu":
        return lambda: None
    return partial(torch.accelerator.synchronize, device)
