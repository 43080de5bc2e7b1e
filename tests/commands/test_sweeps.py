"""Sweeps that go on where they were, and say what became of each job."""

import json
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException

from fwrnn.cli import main
from fwrnn.commands import sweeps
from fwrnn.commands.composition import explain, planned
from fwrnn.commands.sweep import check_recorded
from fwrnn.commands.sweeps import Sweep
from fwrnn.errors import RunFailed
from fwrnn.files import WINDOWS
from fwrnn.learning.claim import claimed

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


@pytest.mark.slow
def test_a_sweep_that_is_killed_twice_ends_as_an_undisturbed_one(tiny, tmp_path, monkeypatch):
    settings = [*tiny, "trainer.max_updates=60", "trainer.evaluate_every=10"]
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
        running.kill()
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
    assert "compare them with: fwrnn report sweep" in error
    assert "Traceback" not in error
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text(encoding="utf-8"))["jobs"]
    failed = next(job for job in jobs.values() if job["state"] == "failed")
    assert "training diverged" in failed["cause"] and failed["folder"].startswith("sweep")
    assert main(["train", "-m", *tiny, "model.decay=1,7", "hydra.sweep.dir=wrong"]) == 2
    assert main(["sweep", "status", "sweep"]) == 0
    assert "failed" in capsys.readouterr().out
    assert main(["sweep", "resume", "nowhere"]) == 2


def test_the_end_of_a_sweep_names_a_command_that_a_shell_takes(tmp_path):
    sweep = Sweep(tmp_path / "it's a sweep")
    overrides = ["seed=0"], ["seed=1"]
    sweep.begin([], list(overrides))
    assert "fwrnn report" not in sweep.summary()[0]  # there is nothing to see yet
    sweep.work(overrides[0], sweep.folder / "0", lambda: 0.5)
    (line,) = (line for line in sweep.summary()[0].splitlines() if "fwrnn report" in line)
    assert shlex.split(line)[-3:] == ["fwrnn", "report", str(sweep.folder)]


def test_what_a_strangers_sweep_is_called_is_only_printed(tmp_path, capsys):
    sweep = Sweep(tmp_path)
    sweep.begin([], [["seed=0\x1b[2J"]])
    sweep.set(["seed=0\x1b[2J"], state="failed", cause="\x1b[2J", folder="\x1b[2J")
    main(["sweep", "status", str(tmp_path)])
    assert "\x1b" not in capsys.readouterr().out


def test_a_job_that_went_on_for_more_updates_stays_done(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "-m", *tiny, "seed=0", "hydra.sweep.dir=sweep"]
    assert main(words) == 0
    (run,) = (path.parent for path in tmp_path.glob("sweep/*/metrics.json"))
    assert main(["train", f"resume={run}", "trainer.max_updates=22"]) == 0
    capsys.readouterr()
    assert main(["sweep", "resume", "sweep"]) == 0
    assert states(tmp_path / "sweep") == ["done"]
    assert json.loads((run / "metrics.json").read_text("utf-8"))["updates"] == 22


def test_a_done_job_whose_longer_run_was_stopped_goes_on_with_that(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", *tiny, "seed=0", "hydra.sweep.dir=sweep"]) == 0
    (run,) = (path.parent for path in tmp_path.glob("sweep/*/metrics.json"))
    assert main(["train", f"resume={run}", "trainer.max_updates=22"]) == 0
    for state in ("done", "interrupted"):
        (run / "metrics.json").unlink()  # as after Ctrl-C
        record = json.loads((tmp_path / "sweep" / "sweep.json").read_text("utf-8"))
        (job,) = record["jobs"].values()
        job["state"] = state
        (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(record), "utf-8")
        assert main(["sweep", "resume", "sweep"]) == 0
        assert json.loads((run / "metrics.json").read_text("utf-8"))["updates"] == 22


def test_jobs_that_share_a_folder_are_told_how_not_to(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "-m", *tiny, "hydra.sweep.dir=sweep", "hydra.sweep.subdir=s${seed}"]
    assert main([*words, "trainer.learning_rate=0.001,0.002"]) == 2
    told = capsys.readouterr().err
    assert "1 done, 1 failed" in told
    assert "is that of the job '" in told and "hydra.sweep.subdir=${model.name}-" in told


def test_jobs_that_run_are_seen_from_another_folder(tmp_path, monkeypatch):
    sweep = Sweep(tmp_path / "sweep")
    sweep.begin(["-m", "seed=0"], [["seed=0"]])
    sweep.set(["seed=0"], state="running", folder="elsewhere/sweep/lstm/seed0")
    os.utime(sweep.file, (0, 0))
    assert [job["state"] for job in sweep.jobs().values()] == ["interrupted"]
    with claimed(tmp_path / "sweep" / "lstm" / "seed0"):
        assert [job["state"] for job in sweep.jobs().values()] == ["running"]
        taken = lambda: train_in(tmp_path / "sweep" / "lstm" / "seed0")  # noqa: E731
        assert sweep.work(["seed=0"], tmp_path / "sweep" / "lstm" / "seed0", taken) == math.inf
        assert states(tmp_path / "sweep") == ["running"]


def train_in(folder):
    with claimed(folder):
        raise AssertionError("it was free")


def test_resuming_does_the_jobs_of_every_command(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = ["-m", *tiny, "trainer.max_updates=10", "seed=0,1"]
    Sweep(tmp_path / "sweep").begin(first, planned(first))  # and was killed
    words = ["train", "-m", *tiny, "seed=2", "hydra.sweep.dir=sweep"]
    assert main(words) == 1
    assert states(tmp_path / "sweep") == ["done", "waiting", "waiting"]
    assert main(["sweep", "resume", "sweep"]) == 0
    assert states(tmp_path / "sweep") == ["done"] * 3
    content = json.loads((tmp_path / "sweep" / "sweep.json").read_text("utf-8"))
    assert [content["command"], *content["earlier"]] == [first, words[1:-1]]


def test_a_command_that_was_refused_leaves_no_jobs(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "-m", *tiny, "hydra.sweep.dir=sweep"]
    assert main([*words, "model=rnn,rnnn"]) == 2
    assert not (tmp_path / "sweep" / "sweep.json").exists()
    assert main([*words, "model=rnn"]) == 0
    assert main([*words, "model=rnn,rnnn", "seed=1"]) == 2
    assert states(tmp_path / "sweep") == ["done"]
    assert main(["sweep", "resume", "sweep"]) == 0


def test_a_killed_job_is_not_said_to_run_and_a_record_without_a_command_is_refused(
    tmp_path, capsys
):
    sweep = Sweep(tmp_path)
    sweep.set(["seed=0"], state="running", cause=None, folder=str(tmp_path / "seed0"))
    assert sweep.jobs()["seed=0"]["state"] == "running"  # it may be about to take its folder
    ahead = time.time() + 5
    os.utime(sweep.file, (ahead, ahead))  # by the clock of a file server
    assert sweep.jobs()["seed=0"]["state"] == "running"
    os.utime(sweep.file, (2**33, 2**33))  # the clock was set back
    assert sweep.jobs()["seed=0"]["state"] == "interrupted"
    os.utime(sweep.file, (0, 0))
    assert main(["sweep", "status", str(tmp_path)]) == 0
    assert "1 interrupted" in capsys.readouterr().out
    assert main(["sweep", "resume", str(tmp_path)]) == 2
    assert "has no command to go on with" in capsys.readouterr().err


def test_another_configuration_of_the_same_name_is_refused(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "-m", *tiny, "seed=0", "hydra.sweep.dir=sweep"]
    assert main(words) == 0
    (run,) = tmp_path.glob("sweep/*/config.yaml")
    run.write_text(run.read_text("utf-8").replace("hidden_size: 8", "hidden_size: 9"), "utf-8")
    assert main(words) == 2
    assert "holds a run of another configuration" in capsys.readouterr().err


def test_a_job_that_went_on_elsewhere_is_the_same_job(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "-m", *tiny, "seed=0", "hydra.sweep.dir=sweep"]
    assert main(words) == 0
    (run,) = tmp_path.glob("sweep/*/config.yaml")
    assert main(["train", f"resume={run.parent}", "threads=2", "device=auto"]) == 0
    assert "threads: 2" in run.read_text("utf-8")
    assert main(words) == 0


def test_folders_say_what_differs_from_the_defaults(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "-m", *tiny, "task.pairs=4,8", "control=none,folded", "hydra.sweep.dir=s"]
    assert main(words) == 0
    names = sorted(path.parent.name for path in tmp_path.glob("s/*/metrics.json"))
    assert len(names) == 4
    assert names[0].startswith("fast_weights-8_") and names[2].startswith("fast_weights_folded-8_")
    if not WINDOWS:  # where they are shorter
        assert "pairs=4" in names[0] and "pairs=8" in names[1] and names[0].endswith("_seed0")


@pytest.mark.slow
def test_a_search_goes_on_after_a_trial_that_diverges(tiny, tmp_path, monkeypatch, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    monkeypatch.chdir(tmp_path)
    words = ["train", "-m", *tiny, "hydra/sweeper=optuna", "experiment=search", "model=rnn"]
    words += ["hydra.sweep.dir=sweep", "hydra.sweeper.n_trials=3", "seed=1"]
    assert main([*words, "trainer.learning_rate=choice(0.001,1e30)", "trainer.clip_norm=1"]) in (
        0,
        1,
    )
    assert len(states(tmp_path / "sweep")) >= 1
    assert (tmp_path / "sweep" / "optimization_results.yaml").is_file()
    bad = [*words, "trainer.learning_rate=choice(1e29,1e30)", "hydra.sweep.dir=bad"]
    assert main(bad) == 1
    assert set(states(tmp_path / "bad")) == {"failed"}
    assert (tmp_path / "bad" / "optimization_results.yaml").is_file()


def test_a_launcher_that_is_not_installed_says_what_to_install(monkeypatch):
    error = explain(MissingConfigException("", "hydra/sweeper/optuna", ["basic"]))
    assert error == "hydra/sweeper=optuna needs: pip install 'fwrnn[search]'"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["cores", "submitit_local"])
def test_every_launcher_has_the_same_status_and_record(
    tiny, tmp_path, monkeypatch, capsys, launcher
):
    plugin = {"cores": "joblib", "submitit_local": "submitit"}[launcher]
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    loky = pytest.importorskip("joblib.externals.loky")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the processes that it starts
    words = ["train", "-m", *tiny, "model=rnn", f"hydra/launcher={launcher}"]
    words += ["hydra.sweep.dir=sweep", "trainer.learning_rate=0.001,1e30"]
    try:
        assert main(words) == 1
    finally:
        if launcher == "cores":  # whose processes would wait for more
            loky.get_reusable_executor().shutdown(kill_workers=True)
    assert states(tmp_path / "sweep") == ["done", "failed"]
    assert "1 done, 1 failed" in capsys.readouterr().err


def test_a_process_that_is_killed_is_told_in_a_line_and_its_job_can_go_on(
    tiny, tmp_path, monkeypatch, capsys
):
    class UncompletedJobError(RuntimeError):
        __module__ = "submitit.core.utils"

    def launch(launcher, jobs, initial_job_idx):
        Sweep("sweep").set(list(jobs[0]), state="running", folder="sweep/nobody")
        raise UncompletedJobError("Job 1_0 has not\nany output (state: KILLED)\nError stream …")

    monkeypatch.chdir(tmp_path)
    name = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    monkeypatch.setattr(Plugins.instance().class_name_to_class[name], "launch", launch)
    assert main(["train", "-m", *tiny, "seed=0,1", "hydra.sweep.dir=sweep"]) == 1
    said = capsys.readouterr().err
    assert (
        "fwrnn: a process ended before its job: Job 1_0 has not any output (state: KILLED)" in said
    )
    assert "2 jobs in sweep: 1 interrupted, 1 waiting" in said
    assert "go on with: fwrnn sweep resume sweep" in said
    assert "stream" not in said
    assert states(tmp_path / "sweep") == ["interrupted", "waiting"]


def test_a_sweep_whose_record_cannot_be_written_is_one_line(tiny, tmp_path, monkeypatch, capsys):
    full = RunFailed("could not write sweep.json: No space left on device")
    writes = iter([full])  # after which somebody frees some space

    def write(*arguments):
        for error in writes:
            raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeps, "write_whole", write)
    assert main(["train", "-m", *tiny, "seed=0", "hydra.sweep.dir=sweep"]) == 1
    assert capsys.readouterr().err == f"fwrnn: {full}\n"


def test_latest_is_the_run_that_was_worked_on_last_and_has_not_ended(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "resume=latest"]) == 2
    assert "no run below outputs/ could go on" in capsys.readouterr().err
    for name in ("first", "second", "third"):
        assert main(["train", *tiny, f"hydra.run.dir=outputs/runs/{name}"]) == 0
    for name in ("first", "second"):
        (tmp_path / "outputs" / "runs" / name / "metrics.json").unlink()
    assert main(["train", "resume=latest", "trainer.max_updates=25"]) == 0
    assert (tmp_path / "outputs" / "runs" / "second" / "metrics.json").is_file()


def test_a_log_without_a_terminal_has_a_line_per_validation_and_the_next_command(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *tiny, "hydra.run.dir=run"]) == 0
    for text in (capsys.readouterr().err, (tmp_path / "run" / "train.log").read_text("utf-8")):
        assert [f"update {k} of 20: val_loss" in text for k in (5, 10, 15, 20)] == [True] * 4
        assert "test it again with: fwrnn evaluate run\n" in text


HONEST = [
    ["experiment=table1", "model=lstm,irnn", "seed=range(0,3)", "threads=1", "control=null"],
    ["hydra/launcher=slurm", "hydra.launcher.partition=cpu", "hydra/sweeper=optuna"],
    ["hydra.sweeper.n_trials=5", "trial=1,2", "model=choice(rnn,lstm)", "--multirun"],
    ["hydra.sweep.subdir=a/seed${seed}", "task.size=${trainer.games}", "++model.decay=0.9"],
    ["task.cache_dir=null"],
]


@pytest.mark.parametrize("words", HONEST, ids=" ".join)
def test_plain_settings_of_a_recorded_command_are_followed(words):
    check_recorded(["-m", *words, "hydra.sweep.dir=somewhere"])


@pytest.mark.parametrize("word", [
    "hydra.callbacks.sweep._target_=os.system",
    "+hydra.callbacks.x._target_=os.system",
    "hydra.launcher._target_=os.system",
    "hydra.sweeper._target_=os.system",
    "hydra.sweeper.sampler._target_=os.system",
    "hydra.launcher.setup=[touch pwned]",
    "hydra.launcher={_target_: os.system}",
    "hydra.job.env_set.LD_PRELOAD=x.so",
    "hydra.searchpath=[file:///tmp]",
    "hydra/launcher=../../evil",
    "hydra/callbacks=x",
    "hydra=x",
    "experiment=../../evil",
    "experiment=table1,../../evil",
    "model@hydra.launcher=lstm",
    "model.name=../../evil",
    "hydra.sweep.subdir=../../evil",
    "hydra.sweep.subdir=/evil",
    "hydra.sweep.subdir=${task.data_dir}",
    "resume=elsewhere",
    "task.data_dir=${oc.env:HOME}",
    "task.data_dir=${unused:elsewhere}",
    "task.cache_dir=/etc",
    "~trainer",
    "--config-dir=/tmp",
    "-cd",
    "evil",
])  # fmt: skip
def test_a_recorded_command_that_does_more_is_refused_by_its_word(word, tmp_path, capsys):
    content = {"command": ["-m", "seed=0", word], "jobs": {}}
    (tmp_path / "sweep.json").write_text(json.dumps(content), "utf-8")
    assert main(["sweep", "resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"'{word}' in the recorded command" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]
