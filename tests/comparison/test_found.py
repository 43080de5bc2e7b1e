"""What is found below a folder: runs, and whatever else lies there, none of it fatal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fwrnn.comparison import found
from fwrnn.comparison.found import Run, Trouble, find, settings_of
from fwrnn.comparison.rows import by_task
from fwrnn.errors import UserError
from fwrnn.learning.claim import claimed
from tests.comparison.runs import CONFIG, write_game, write_run


def only(folder: Path) -> Run | Trouble:
    (each,) = find([folder])
    return each


def link(name: Path, to: Path) -> None:
    try:
        name.symlink_to(to)
    except OSError as error:  # as on Windows, by default
        pytest.skip(f"no links for this user: {error}")


def test_runs_are_found_at_any_depth_and_each_once(tmp_path):
    write_run(tmp_path / "a" / "b" / "run")
    inside = write_run(tmp_path / "a" / "b" / "run" / "inside")
    link(tmp_path / "loop", tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "z").symlink_to(inside)
    runs = list(find([tmp_path, tmp_path / "a", str(inside)]))
    assert [run.folder.name for run in runs] == ["run", "inside"]


def test_hidden_folders_are_not_looked_into(tmp_path):
    write_run(tmp_path / ".git" / "run")
    write_run(tmp_path / "run" / "checkpoints" / "x")
    assert list(find([tmp_path])) == []


def test_link_leads_to_a_run(tmp_path):
    run = write_run(tmp_path / "elsewhere" / "run")
    (tmp_path / "chosen").mkdir()
    link(tmp_path / "chosen" / "link", run)
    assert isinstance(only(tmp_path / "chosen"), Run)


def test_folder_without_permission_is_listed(tmp_path, monkeypatch):
    write_run(tmp_path / "open")
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def guarded(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    locked, run = find([tmp_path])
    assert isinstance(run, Run)
    assert locked == Trouble(
        tmp_path / "locked", "broken", "the folder cannot be read: Permission denied"
    )


NAMES = "task: {name: a}\nmodel: {name: b}\n"
BOMB = "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize("content, words", [
    ("[" * 100_000, "nested too deeply"),
    ("- " * 100_000, "nested too deeply"),
    ("a: [", "not YAML"),
    ("", "no keys"),
    ("- 1", "no keys"),
    (b"\xff\xfe\x00", "not YAML"),
    ("name: resnet", "no task.name"),
    ("task: [1]\nmodel: {name: x}", "no task.name"),
    ("task: {name: catch}", "no model.name"),
    (BOMB, "aliases"),
    ("a: 1\n" * 100_000, "larger than 256 KiB"),
    ("a: " + "9" * 10_000, "not YAML"),
    (NAMES + "seed: 0x" + "f" * 6_000, "not YAML"),
    (NAMES + "x: " + "1:" * 300 + "1.5", "not YAML"),
    ("task: {name: {a: 1}}\nmodel: {name: b}", "no task.name"),
    ("task: !!python/object/apply:os.mkdir [pwned]", "not YAML"),
    (NAMES + "trainer: {warmup_updates: 1, max_updates: 0}", "no part"),
    (NAMES + "trainer: {warmup_updates: x}", "no part"),
    (NAMES + "".join(f"k{i}: 1\n" for i in range(600)), "than 500"),
], ids=lambda value: None if len(value) > 30 else str(value))  # fmt: skip
def test_broken_configuration_is_listed(content, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    trouble = only(tmp_path)
    assert trouble.state == "broken"
    assert words in trouble.words
    assert "\n" not in trouble.words
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content, state, words", [
    ("[1, 2]", "broken", "no keys"),
    ("{", "broken", "not JSON"),
    ("", "broken", "not JSON"),
    ("[" * 100_000, "broken", "not JSON"),
    (" " * 300_000, "broken", "larger than"),
    ('{"accuracy": 1}', "broken", "no test_error"),
    ('{"test_error": NaN, "val_error": 0}', "failed", "test_error is NaN"),
    ('{"test_error": [1], "val_error": 0}', "failed", "test_error is [1]"),
    ('{"test_error": 0, "val_error": 1e999}', "failed", "val_error is Infinity"),
    ('{"test_error": true, "val_error": 0}', "failed", "test_error is true"),
])  # fmt: skip
def test_broken_metrics_are_listed(content, state, words, tmp_path):
    run = write_run(tmp_path / "run")
    (run / "metrics.json").write_text(content)
    trouble = only(tmp_path)
    assert trouble.state == state
    assert words in trouble.words


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_pipe_and_folder_in_the_place_of_a_file_are_listed(tmp_path):
    for name in ("pipe", "folder"):
        (write_run(tmp_path / name) / "config.yaml").unlink()
    (tmp_path / "folder" / "config.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.yaml")
    command = [sys.executable, "-m", "fwrnn", "report", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "pipe: config.yaml: it is not a file" in shown  # and nobody waited for a writer
    assert "folder: config.yaml: it is not a file" in shown


def test_interpolation_stays_text(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    run = write_run(tmp_path / "run", ("model.encoding_size", "${oc.env:SECRET}"))
    assert only(run).settings["model.encoding_size"] == "${oc.env:SECRET}"


def test_unfinished_run_says_how_far_it_came(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "metrics.json").unlink()
    assert only(run).words == "past update 100 of 100; there is no last.pt to go on from"
    (run / "checkpoints").mkdir()
    torch.save({"format": 1, "update": 70}, run / "checkpoints" / "last.pt")
    assert only(run) == Trouble(run, "unfinished", "at update 70 of 100")


@pytest.mark.parametrize("jobs, state", [
    ({"seed=0": {"state": "failed", "cause": "diverged. Try 1", "folder": "x/run"}}, "failed"),
    ({"seed=0": {"state": "running", "cause": None, "folder": "x/run"}}, "unfinished"),
    ({"seed=0": {"state": "interrupted", "cause": None, "folder": "x/run"}}, "interrupted"),
    ({"seed=0": {"state": "interrupted", "cause": None, "folder": "x/other"}}, "unfinished"),
    ({"seed=0": {"state": "failed", "cause": None, "folder": None}, "b": 1}, "unfinished"),
    ([1], "unfinished"),
])  # fmt: skip
def test_failed_run_of_a_sweep_says_why(jobs, state, tmp_path):
    (write_run(tmp_path / "run") / "metrics.json").unlink()
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    trouble = only(tmp_path)
    assert trouble.state == state
    assert trouble.words.startswith("diverged (past update 100" if state == "failed" else "past")


def test_a_job_of_a_sweep_may_lie_deep_below_it(tmp_path):
    run = write_run(tmp_path / "a" / "b" / "seed0")
    (run / "metrics.json").unlink()
    jobs = {"seed=0": {"state": "failed", "cause": "diverged", "folder": "elsewhere/a/b/seed0"}}
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    assert only(tmp_path).folder == run and only(tmp_path).state == "failed"


def test_jobs_of_a_sweep_that_left_no_run_are_listed(tmp_path):
    (write_run(tmp_path / "lstm" / "seed0") / "metrics.json").unlink()
    states = {"lstm/seed0": "interrupted", "lstm/seed1": "waiting", "lstm/seed2": "failed"}
    jobs = {
        where: {"state": state, "cause": "no data. Give some", "folder": f"x/{where}"}
        for where, state in states.items()
    }
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    states = {each.state: each for each in find([tmp_path]) if isinstance(each, Trouble)}
    assert states["interrupted"].folder == tmp_path / "lstm" / "seed0"
    assert states["waiting"] == Trouble(tmp_path, "waiting", "1 job has not begun")
    assert states["failed"].words == "no data" and len(states) == 3


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"], ids=["long", "zero"])
def test_a_sweep_may_name_what_no_folder_is_called(name, tmp_path):
    jobs = {"seed=0": {"state": "failed", "cause": "no data", "folder": name}}
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    assert [(each.state, each.words) for each in find([tmp_path])] == [("failed", "no data")]


def test_a_run_that_is_worked_on_is_running_whatever_its_sweep_says(tmp_path):
    (write_run(tmp_path / "run") / "metrics.json").unlink()
    jobs = {"seed=0": {"state": "failed", "cause": "diverged", "folder": "x/run"}}
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    with claimed(tmp_path / "run"):
        assert only(tmp_path).state == "running"
        assert f"by process {os.getpid()} on" in only(tmp_path).words
    assert only(tmp_path).state == "failed"


@pytest.mark.parametrize("content", [b"", b"nonsense", {"format": 1}, {"update": 3}, [1]])
def test_broken_checkpoint_of_an_unfinished_run_is_not_fatal(content, tmp_path):
    run = write_run(tmp_path / "run")
    (run / "metrics.json").unlink()
    (run / "curve.csv").unlink()
    last = run / "checkpoints" / "last.pt"
    last.parent.mkdir()
    last.write_bytes(content) if isinstance(content, bytes) else torch.save(content, last)
    assert only(run).words == "last.pt is broken, or of another program"


def test_huge_checkpoint_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(found, "LARGEST_CHECKPOINT", 10)
    run = write_run(tmp_path / "run")
    (run / "metrics.json").unlink()
    (run / "checkpoints").mkdir()
    torch.save({"format": 1, "update": 70}, run / "checkpoints" / "last.pt")
    assert "past update 100 of 100; last.pt is larger" in only(run).words


def test_metrics_without_a_configuration_are_listed(tmp_path):
    (write_run(tmp_path / "run") / "config.yaml").unlink()
    assert only(tmp_path).words == "there is no config.yaml"


def test_earlier_spellings_are_todays_settings():
    old = json.loads(json.dumps(CONFIG))
    del old["control"]
    old["model"] |= {"name": "fast_weights_folded", "core": "fast_weights"}
    del old["trainer"]["warmup"]
    old["trainer"] |= {"warmup_updates": 10, "max_updates": 100}
    settings = settings_of(old)
    assert settings["control"] == "folded"
    assert settings["model.name"] == "fast_weights"
    assert settings["trainer.warmup"] == 0.1
    assert settings["model.head_dropout"] == 0  # came later


def test_runs_of_a_package_that_is_not_installed_are_runs(tmp_path):
    names = ("task.name", "recall"), ("model.name", "gru"), ("model.core", "gru")
    run = write_run(tmp_path / "run", *names, ("trainer.name", "other"), test_f1=0.5, val_f1=0.4)
    assert only(run).settings["task.name"] == "recall"
    metrics = {"test_f1": 0.5, "test_loss": 1.0, "val_loss": 2.0, "val_accuracy": 1}
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert only(run).score == ("loss", True)
    (run / "metrics.json").write_text('{"test_accuracy": 0.5, "val_accuracy": 0.4}')
    assert only(run).score == ("accuracy", False)


def test_games_are_compared_by_their_reward(tmp_path):
    assert only(write_game(tmp_path / "run", 0.5)).score == ("reward", False)


def test_numbers_are_the_same_however_they_are_written():
    config = {**CONFIG, "a": 1.0, "b": float("nan"), "c": [1, "x"], "d": {}, "e": True}
    settings = settings_of(config)
    assert (settings["a"], settings["b"], settings["c"]) == (1, "nan", '[1, "x"]')
    assert settings["d"] == "{}"
    assert settings["e"] is True


@pytest.mark.parametrize("content", [NAMES, NAMES + "x: [{2020-01-01: 1}]"])
def test_odd_values_are_compared_like_others(content, tmp_path):
    for name in ("one", "two"):
        run = write_run(tmp_path / name)
        (run / "config.yaml").write_text(content)
        metrics = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps({**metrics, "seed": [1]}))
    (comparison,) = by_task(list(find([tmp_path])))
    assert len(comparison.rows) == 1


def test_exponents_are_numbers(tmp_path):
    run = write_run(tmp_path / "run")
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.001", "learning_rate: 1e-3"))
    assert only(run).settings["trainer.learning_rate"] == 0.001


def test_configuration_of_another_program_is_refused():
    with pytest.raises(UserError, match=r"no model\.name"):
        settings_of({"task": {"name": "x"}})
