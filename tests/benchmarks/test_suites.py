"""What is measured, who is left out and why, and the count of multiply-adds."""

from dataclasses import replace

import pytest
import torch

from fwrnn.benchmarks import suites
from fwrnn.benchmarks.suites import Forecast, Size
from fwrnn.benchmarks.timing import Timing
from fwrnn.layers import kernels
from tests.benchmarks.tiny import TINY

CPU = torch.device("cpu")


def nothing(text):
    pass


def test_ratios_are_of_medians():
    timings = {
        "nn.LSTM": Timing.of([0.001, 0.002, 0.9]),
        "auto": Timing.of([0.003, 0.005, 0.004]),
    }
    columns = suites.compare(timings, "nn.LSTM")
    assert columns["auto"]["ratio"] == pytest.approx(2)
    assert columns["nn.LSTM"]["ratio"] == 1
    assert suites.compare({"auto": timings["auto"]}, "nn.LSTM")["auto"]["ratio"] is None


def test_steps_show_every_form_and_say_what_auto_was():
    rows = suites.measure_steps(TINY, CPU, absent=["matrix", "triton"], progress=nothing)
    forms = set(kernels.BACKENDS) - {"matrix", "triton"}
    assert {row["contestant"] for row in rows} == {"auto", *forms, *suites.OTHERS}
    assert {row["step"] for row in rows} == {"training", "inference"}
    for row in rows:
        expected = {"auto": kernels.BACKENDS, **{name: {name} for name in forms}}
        assert row["form"] in expected.get(row["contestant"], {None})
        assert row["samples"] > 0
        assert row["skipped"] is None


def test_form_that_gives_way_or_fails_is_left_out_with_its_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert suites.unavailable(CPU) == {"triton": "gives way to attention"}

    def broken(*arguments):
        raise RuntimeError("no such device\nand much more")

    monkeypatch.setitem(kernels.EAGER, "attention", broken)
    assert suites.unavailable(CPU)["attention"] == "no such device"
    forecast = Forecast(TINY, CPU)
    size = TINY.sizes[0]
    rows = suites.race(suites.training_step, size, ["attention", "auto"], TINY, forecast, CPU)
    assert rows[0]["skipped"] == "no such device"
    assert rows[0]["ms"] is None
    assert rows[0].keys() == rows[1].keys()


def test_training_step_leaves_gradients_of_all_parameters_and_none_of_the_input():
    x = torch.randn(3, 2, 4)
    for name in ("auto", *suites.OTHERS):
        module = suites.build(name, Size(3, 2, 4, 5), CPU)
        suites.training_step(module, x)
        assert all(parameter.grad is not None for parameter in module.parameters())
    assert x.grad is None


def test_too_long_or_too_large_is_left_out_and_shown():
    impatient = replace(TINY, patience=0.0)
    rows = suites.measure_growth(impatient, CPU, nothing)
    later = [row for row in rows if row["T"] == TINY.lengths[-1] and row["against"] == "T"]
    assert len(later) == 4
    assert all("s a step expected" in row["skipped"] for row in later)


@pytest.mark.parametrize(("name", "form", "longest", "widest"), [
    ("attention", "attention", 10 * 2, 16 * 3),
    ("matrix", "matrix", 10 * 4, 16 * 1),
    ("nn.LSTM", None, 10 * 4, 16 * 4),
])  # fmt: skip
def test_memory_is_forecast_from_the_last_size(name, form, longest, widest):
    forecast = Forecast(replace(TINY, memory=2**20), CPU)
    quick = Timing.of([1e-9])
    forecast.learn(name, Size(10, 1, 1, 16), form, quick, suites.Peak(2**18, None))
    fits = [forecast.objection(name, Size(10, 1, 1, widest))]
    fits += [forecast.objection(name, Size(longest - 1, 1, 1, 16))]
    assert fits == [None, None]
    assert "GiB expected" in forecast.objection(name, Size(longest + 1, 1, 1, 16))
    assert "GiB expected" in forecast.objection(name, Size(10, 1, 1, 16 * 5))


def test_growth_ratios_are_last_by_first_and_null_where_one_is_missing():
    def row(name, steps, ms, peak):
        return {"against": "T", "contestant": name, "T": steps, "ms": ms, "peak_bytes": peak}

    rows = [row("auto", 500, 2, 10), row("auto", 2000, 9, None), row("matrix", 500, 1, 1)]
    first, second = suites.growth_ratios(rows, 500, 2000)
    assert (first["time_ratio"], first["memory_ratio"]) == (4.5, None)
    assert (second["time_ratio"], second["memory_ratio"]) == (None, None)


def test_multiply_adds_against_a_count_by_hand():
    # T=3, B=2, I=4, H=5. C x: 3 steps of 4·5. W h: 3 steps of 5·5. Equation 4: 0 + 1 + 2 past
    # states, each compared and mixed, 5 numbers. Once forward and twice backward, twice B.
    by_hand = 3 * 2 * (3 * 4 * 5 + 3 * 5 * 5 + (0 + 1 + 2) * 2 * 5)
    assert suites.multiply_adds("auto", Size(3, 2, 4, 5)) == by_hand
    more = suites.multiply_adds("auto", Size(3, 2, 4, 5), inner_steps=2)
    assert more - by_hand == 3 * 2 * (0 + 1 + 2) * 2 * 5
    lstm = 3 * 2 * (3 * 4 * 5 + 3 * 5 * 5) * 4
    assert suites.multiply_adds("nn.LSTM", Size(3, 2, 4, 5)) == lstm


def test_share_is_work_by_time_by_rate():
    for row in suites.measure_share(TINY, CPU, nothing):
        assert row["gflops"] == pytest.approx(2e-6 * row["multiply_adds"] / row["ms"])
        assert row["share"] == pytest.approx(row["gflops"] / row["sgemm_gflops"])


def test_one_thread_is_measured_where_there_are_more():
    torch.set_num_threads(2)
    threads = []
    rows = suites.measure_one_thread(TINY, CPU, lambda _: threads.append(torch.get_num_threads()))
    assert set(threads) == {1} and torch.get_num_threads() == 2
    assert {row["contestant"] for row in rows} == {"auto", "nn.RNN", "nn.LSTM"}
    assert all(row["ms"] > 0 for row in rows)
