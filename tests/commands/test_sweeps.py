"""Sweeps that go on where they were, and say what became of each job."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fwrnn.cli import main

ROOT = Path(__file__).parents[2]
GRID = ["model=rnn,lstm", "seed=0,1"]


def states(folder) -> list[str]:
    jobs = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["jobs"]
    return sorted(job["state"] for job in jobs.values())


def results(folder) -> dict[str, float]:
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["test_loss"]
        for path in folder.glob("*/metrics.json")
    }


def test_a_sweep_that_is_killed_twice_ends_as_an_undisturbed_one(tiny, tmp_path, monkeypatch):
    settings = [*tiny, "trainer.max_updates=100", "trainer.evaluate_every=10"]
    words = ["train", "-m", *settings, *GRID]
    monkeypatch.chdir(tmp_path)
    assert main([*words, "hydra.sweep.dir=undisturbed"]) == 0
    command = [sys.executable, "-m", "fwrnn", *words, "hydra.sweep.dir=killed"]
    folder = tmp_path / "killed"
    for finished in (0, 1):
        running = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
        )
        while len(list(folder.glob("*/curve.csv"))) <= finished and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}
    assert main(["sweep", "resume", "killed"]) == 0
    assert results(folder) == results(tmp_path / "undisturbed")
    assert states(folder) == ["done"] * 4
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert main([*words, "hydra.sweep.dir=killed", "seed=0,1,2"]) == 0  # two jobs more
    assert len(results(folder)) == 6


def test_the_end_says_how_many_of_what_and_a_bad_trial_is_infinitely_bad(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["train", "-m", *tiny, "trainer.learning_rate=0.001,1e30", "hydra.sweep.dir=sweep"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "2 jobs in sweep: 1 done, 1 failed" in error
    assert "trainer.learning_rate=1e+30: the training loss is" in error
    assert "go on with: fwrnn sweep resume sweep" in error
    assert "Traceback" not in error
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text(encoding="utf-8"))["jobs"]
    failed = next(job for job in jobs.values() if job["state"] == "failed")
    assert "training diverged" in failed["cause"] and failed["folder"].startswith("sweep")
    assert main(["train", "-m", *tiny, "model.decay=1,7", "hydra.sweep.dir=wrong"]) == 2
    assert main(["sweep", "status", "sweep"]) == 0
    assert "failed" in capsys.readouterr().out
    assert main(["sweep", "resume", "nowhere"]) == 2


def test_another_configuration_of_the_same_name_is_refused(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "-m", *tiny, "seed=0", "hydra.sweep.dir=sweep"]
    assert main(words) == 0
    (run,) = tmp_path.glob("sweep/*/config.yaml")
    run.write_text(run.read_text("utf-8").replace("batch_size: 32", "batch_size: 16"), "utf-8")
    assert main(words) == 2
    assert "holds a run of another configuration" in capsys.readouterr().err


def test_folders_say_what_differs_from_the_defaults(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "-m", *tiny, "task.pairs=4,8", "control=none,folded", "hydra.sweep.dir=s"]
    assert main(words) == 0
    names = sorted(path.parent.name for path in tmp_path.glob("s/*/metrics.json"))
    assert len(names) == 4
    assert names[0].startswith("fast_weights-8_") and names[2].startswith("fast_weights_folded-8_")
    assert "pairs=4" in names[0] and "pairs=8" in names[1] and names[0].endswith("_seed0")


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_every_launcher_has_the_same_status_and_record(tiny, tmp_path, monkeypatch, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    monkeypatch.chdir(tmp_path)
    words = ["train", "-m", *tiny, f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep"]
    done = subprocess.run(
        [sys.executable, "-m", "fwrnn", *words, "trainer.learning_rate=0.001,1e30"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert states(tmp_path / "sweep") == ["done", "failed"]
    assert "1 done, 1 failed" in done.stderr
