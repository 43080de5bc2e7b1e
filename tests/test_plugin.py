"""The worked example of a package with a task, a core and a control, installed and used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent / "plugin"


@pytest.fixture(scope="module")
def fwrnn(tmp_path_factory):
    """Runs the command line where the example is installed; returns what it printed."""
    place = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place)]
    subprocess.run([*pip, str(EXAMPLE)], check=True, capture_output=True)

    def call(*words, status=0):
        done = subprocess.run(
            [sys.executable, "-m", "fwrnn", *words], capture_output=True, text=True, cwd=place,
            env={**os.environ, "PYTHONPATH": str(place)},
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    return call


def test_what_a_package_brings_is_offered_explained_and_suggested(fwrnn):
    text = fwrnn("train", "--help", "task=recall_first", "model=gru")
    for line in ("recall_first", "gru", "tanh", "# letters in a sequence", "# stacked on one"):
        assert line in text
    wrong = fwrnn("train", "task=recal_first", status=2)
    assert "did you mean 'recall_first'?" in wrong
    assert "task.length must be 1 or more, got 0" in fwrnn(
        "train", "task=recall_first", "task.length=0", status=2
    )


def test_what_a_package_brings_is_swept_over_and_evaluates(fwrnn, tmp_path):
    settings = ["task=recall_first", "task.length=3", "threads=1", "model.hidden_size=20"]
    settings += ["trainer.max_updates=150", "trainer.learning_rate=0.01"]
    settings += ["trainer.evaluate_every=50", "trainer.average_decay=null"]
    fwrnn("train", "-m", *settings, "model=gru,rnn", f"hydra.sweep.dir={tmp_path}")
    for core in ("gru", "rnn"):
        (run,) = tmp_path.glob(f"{core}-20_*_seed0")
        assert json.loads((run / "metrics.json").read_text())["test_error"] < 0.9
        assert "as recorded, exactly" in fwrnn("evaluate", str(run))
    run = tmp_path / "control"
    fwrnn("train", *settings, "control=tanh", "trainer.max_updates=2", f"hydra.run.dir={run}")
    assert json.loads((run / "metrics.json").read_text())["control"] == "tanh"


def test_each_part_is_a_short_file():
    for path in [*EXAMPLE.rglob("*.py"), *EXAMPLE.rglob("*.yaml"), EXAMPLE / "pyproject.toml"]:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_the_page_for_contributors_shows_the_core_as_it_is():
    page = (EXAMPLE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    core = (EXAMPLE / "fwrnn_recall" / "core.py").read_text(encoding="utf-8")
    assert core.strip() in page
