"""Contestants in turn, medians, and shares of the budget; no test looks at a time itself."""

import pytest
import torch

from fwrnn.benchmarks import timing
from fwrnn.benchmarks.timing import ENOUGH, Timing, alternate, waiter


def test_contestants_take_turns_in_the_order_given():
    calls = []
    contestants = {name: lambda name=name: calls.append(name) for name in "cab"}
    timings = alternate(contestants, budget=60, most=4, sample_seconds=0)
    assert "".join(calls) == "cab" * 5  # once to count the calls of a sample, then four rounds
    assert [each.samples for each in timings.values()] == [4, 4, 4]


def test_without_budget_each_still_gets_enough_samples():
    timings = alternate({"a": lambda: None, "b": lambda: None}, budget=0, most=9, sample_seconds=0)
    assert [each.samples for each in timings.values()] == [ENOUGH, ENOUGH]


def test_one_stalled_sample_is_outvoted(monkeypatch):
    now, costs = [0.0], [1.0, 50.0, 1.0, 1.0]  # the first call counts the calls of a sample

    def call():
        now[0] += costs.pop(0)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    result = alternate({"a": call}, budget=3, most=9, sample_seconds=0)
    assert result == {"a": Timing(1000, 1000, 25500, 3)}


def test_device_is_waited_for_before_every_reading_of_the_clock():
    events = []
    contestants = {"a": lambda: events.append("call")}
    alternate(contestants, 60, 2, sample_seconds=0, wait=lambda: events.append("wait"))
    assert events == ["wait"] + ["call", "wait"] * 3


def test_nobody_to_time_is_no_mistake():
    assert alternate({}, budget=1, most=3, sample_seconds=0) == {}


def test_timing_is_the_median_with_its_quartiles():
    summary = Timing.of([0.005, 0.001, 0.002, 0.004, 0.003])
    assert (summary.ms, summary.ms_q1, summary.ms_q3) == pytest.approx((3, 2, 4))
    assert summary.samples == 5
    assert Timing.of([0.002]) == Timing(2, 2, 2, 1)


def test_cpu_needs_no_waiting():
    assert waiter(torch.device("cpu"))() is None
