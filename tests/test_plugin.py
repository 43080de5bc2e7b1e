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
    """Runs command lines in one process where the example is installed: what each printed."""
    place = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place)]
    subprocess.run([*pip, str(EXAMPLE)], check=True, capture_output=True)

    def call(*lines):
        done = subprocess.run(
            [sys.executable, "-c", SEVERAL, json.dumps(lines)], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(place)}, cwd=EXAMPLE.parents[1],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


SEVERAL = """
import contextlib, io, json, sys
from fwrnn.cli import main
found = []
for words in json.loads(sys.argv[1]):
    said, status = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code or 0
    found.append((status, said.getvalue()))
print(json.dumps(found))
"""


def test_what_a_package_brings_is_offered_explained_and_suggested(fwrnn):
    task = ["train", "task=recall_first"]
    (_, text), wrong, none = fwrnn(
        [*task, "--help", "model=gru"], ["train", "task=recal_first"], [*task, "task.length=0"]
    )
    for line in ("recall_first", "gru", "tanh", "# letters in a sequence", "# stacked on one"):
        assert line in text
    assert wrong[0] == 2 and "did you mean 'recall_first'?" in wrong[1]
    assert none[0] == 2 and "task.length must be 1 or more, got 0" in none[1]


@pytest.mark.slow
def test_what_a_package_brings_is_swept_over_and_evaluates(fwrnn, tmp_path):
    settings = ["task=recall_first", "task.length=3", "threads=1", "model.hidden_size=20"]
    settings += ["trainer.max_updates=150", "trainer.learning_rate=0.01"]
    settings += ["trainer.evaluate_every=50", "trainer.average_decay=null"]
    sweep = ["train", "-m", *settings, "model=gru,rnn"]
    sweep += [f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${model.name}"]
    evaluations = [["evaluate", str(tmp_path / core)] for core in ("gru", "rnn")]
    run = tmp_path / "control"
    control = ["train", *settings, "control=tanh", "trainer.max_updates=2", f"hydra.run.dir={run}"]
    swept, *evaluated, controlled = fwrnn(sweep, *evaluations, control)
    assert swept[0] == controlled[0] == 0, swept[1] + controlled[1]
    for core, (status, said) in zip(("gru", "rnn"), evaluated, strict=True):
        metrics = json.loads((tmp_path / core / "metrics.json").read_text())
        assert metrics["test_error"] < 0.9
        assert status == 0 and "as recorded, exactly" in said
    assert json.loads((run / "metrics.json").read_text())["control"] == "tanh"


def test_each_part_is_a_short_file():
    for path in [*EXAMPLE.rglob("*.py"), *EXAMPLE.rglob("*.yaml"), EXAMPLE / "pyproject.toml"]:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_the_page_for_contributors_shows_the_core_as_it_is():
    page = (EXAMPLE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    core = (EXAMPLE / "fwrnn_recall" / "core.py").read_text(encoding="utf-8")
    assert core.strip() in page
