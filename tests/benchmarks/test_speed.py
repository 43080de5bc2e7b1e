"""The tables and the picture of measurements that are made up."""

import pytest

from fwrnn.benchmarks import speed


def row(name, against=None, skipped=None, **columns):
    times = dict.fromkeys(("ms", "ms_q1", "ms_q3"), None if skipped else 4.5)
    size = {"T": 11, "B": 128, "I": 100, "H": 20, "form": None, "against": against}
    ratio = None if skipped else 1.5
    rest = {"contestant": name, "skipped": skipped, "samples": 9, "ratio": ratio}
    return {**size, **times, **rest, "peak_bytes": None if skipped else 2**24, **columns}


@pytest.fixture
def result() -> dict:
    names = ("auto", "attention", "matrix", "nn.LSTM")
    machine = dict.fromkeys(
        ["cpu", "gpu", "system", "device", "torch", "numba", "triton", "fwrnn", "commit"]
    )
    machine |= {"cpu": "Some CPU", "device": "cpu", "torch": "2.5", "threads": 1, "cores": 2}
    machine |= {"fwrnn": "0.1", "date": "2025-01-31T10:00:00+00:00"}
    steps = [row(name, step=kind) for kind in ("training", "inference") for name in names]
    steps[2] |= {"skipped": "up to 9 s a step expected", "ms": None, "ratio": None}
    growth = [row(name, "T", T=T) for T in (50, 100) for name in names]
    growth += [row("matrix", "T", T=5000, skipped="up to 50 GiB expected")]
    growth += [row(name, "T", T=5000) for name in names if name != "matrix"]
    growth += [row(name, "H", H=H) for H in (20, 64) for name in names]
    return {
        "mode": "full",
        "machine": machine,
        "unavailable": {"triton": "needs a GPU"},
        "warnings": ["The machine was busy."],
        "steps": steps,
        "small": [row("auto", step=kind, B=1) for kind in ("training", "inference")],
        "cells": [row("a cell", step=kind, T=1) for kind in ("training", "inference")],
        "one_thread": [row("auto")],
        "growth": growth,
        "growth_ratios": [
            {"contestant": "auto", "T_short": 500, "T_long": 2000}
            | {"time_ratio": 4.2, "memory_ratio": None}
        ],
        "share": [row("auto", gflops=50.0, sgemm_gflops=100.0, share=0.5)],
        "updates": [
            row("", model="lstm", hidden_size=100, batch_size=128, updates_per_second=120.0),
            row("", model="odd", hidden_size=None, batch_size=None, skipped="does not fit"),
        ],
    }


def test_markdown_says_what_was_measured_and_what_was_left_out(result):
    text = speed.markdown(result)
    for part in (
        "Some CPU, cpu · 1 thread, 2 cores · torch 2.5 · fwrnn 0.1 · 2025-01-31",
        "**The machine was busy.**",
        "`triton` (needs a GPU)",
        "1.50× (4.5 ms)",
        "`matrix` at T=11, H=20 (up to 9 s a step expected)",
        "4.5 ms, 16 MiB",
        "`matrix` at T=5,000 (up to 50 GiB expected)",
        "500 → 2,000",
        "50.0%",
        "`odd` (does not fit)",
    ):
        assert part in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 12
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_memory_that_was_not_measured_is_said(result):
    for point in result["growth"]:
        point["peak_bytes"] = None
    assert "Peak memory cannot be measured" in speed.markdown(result)
    assert speed.png(result).startswith(b"\x89PNG")


@pytest.mark.parametrize(("mode", "panels"), [("quick", 3), ("full", 5)])
def test_picture_has_a_panel_for_each_question(result, mode, panels):
    figure = speed.draw({**result, "mode": mode})
    assert len(figure.axes) == panels
    assert "H: units" in figure.get_supxlabel() and "in PyTorch's" in figure.get_supxlabel()
    assert speed.png({**result, "mode": mode}).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("ms", "text"), [(0.5123, "0.512 ms"), (45.31, "45.3 ms"), (1278, "1.28 s")]
)
def test_times_have_three_digits_and_a_unit(ms, text):
    assert speed.milliseconds(ms) == text
