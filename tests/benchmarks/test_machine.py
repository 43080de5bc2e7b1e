"""Peak memory, and what is said of the machine."""

import json
from pathlib import Path

import pytest
import torch

from fwrnn.benchmarks import machine

CPU = torch.device("cpu")


def test_peak_memory_sees_what_came_and_went():
    megabytes = 200

    def run():
        torch.ones(megabytes * 10**6, dtype=torch.uint8)

    run()
    peak = machine.measure_peak(run, CPU)
    if peak is None:
        pytest.skip("this system does not tell")
    assert 0.95 * megabytes < peak.added / 10**6 < 1.2 * megabytes
    assert peak.resident > peak.added
    assert machine.measure_peak(lambda: None, CPU).added / 10**6 < 0.1 * megabytes


def test_memory_that_cannot_be_measured_is_none_and_runs_nothing(monkeypatch):
    monkeypatch.setattr(machine, "_SELF", Path("/nowhere"))
    assert machine.measure_peak(lambda: pytest.fail("was run"), CPU) is None


def test_machine_is_described_flat_and_whole():
    about = machine.describe(CPU)
    assert about["threads"] == torch.get_num_threads()
    assert about["torch"] == torch.__version__
    assert about["gpu"] is None
    assert json.loads(json.dumps(about)) == about
