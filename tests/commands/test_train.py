"""A run from beginning to end: what it leaves, that it repeats, and that it can be resumed."""

import csv
import gc
import json
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fwrnn.cli import main
from fwrnn.commands.train import train
from fwrnn.learning import assembly
from fwrnn.learning.kinds import Question
from fwrnn.learning.retest import evaluated
from tests.commands.compose import compose
from tests.conftest import TINY
from tests.signals import press

TIMES = ("seconds", "updates_per_second")


def lasting(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name not in TIMES}


def curve(folder) -> list[dict]:
    rows = csv.DictReader((folder / "curve.csv").open())
    return [{name: row[name] for name in row if name != "seconds"} for row in rows]


def weights(path) -> dict:
    return torch.load(path, weights_only=True)["model"]


def test_run_leaves_its_folder_complete(tmp_path):
    metrics = train(compose(*TINY), tmp_path)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    wanted = "test_error val_error updates seconds updates_per_second seed task model"
    assert set(wanted.split()) <= metrics.keys()
    assert 0 <= metrics["test_error"] <= 1
    for name in ("config.yaml", "curve.csv", "checkpoints/best.pt", "checkpoints/last.pt"):
        assert (tmp_path / name).is_file()
    for name in ("memory", "confusion"):
        assert np.array(Image.open(tmp_path / "pictures" / f"{name}.png")).std() > 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_tensorboard_has_scalars_pictures_text_and_one_row_of_hyperparameters(tiny, tmp_path):
    train(compose(*tiny), tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    scalars = {"train/loss", "train/updates_per_second", "val/loss", "val/error"}
    scalars |= {"verdict/test_error", "verdict/val_error", "verdict/updates"}
    assert scalars <= set(tags["scalars"])
    assert [event.step for event in events.Images("work/memory")] == [5, 10, 15, 20]
    assert "configuration/text_summary" in tags["tensors"]
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert len(list(tmp_path.rglob("events.out.tfevents*"))) == 1


def test_nothing_of_a_run_that_is_done_stays_in_memory(tiny, tmp_path, monkeypatch):
    import matplotlib.figure  # noqa: F401 - as its import keeps what called it

    models, assemble = [], assembly.assemble

    def noting(config):
        assembled = assemble(config)
        models.append(weakref.ref(assembled.model))
        return assembled

    monkeypatch.setattr(assembly, "assemble", noting)
    gc.disable()  # which would find them, some time or other
    try:
        train(compose(*tiny), tmp_path / "pictures")
        train(compose(*tiny, "model=lstm"), tmp_path / "none")
        assert [model() for model in models] == [None, None]
    finally:
        gc.enable()


def test_models_without_a_memory_draw_none(tiny, tmp_path):
    train(compose(*tiny, "model=lstm"), tmp_path)
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == ["work/confusion"]


def test_evaluate_reproduces_the_recorded_number(tiny, tmp_path):
    metrics = train(compose(*tiny), tmp_path)
    result = evaluated(str(tmp_path))[0]
    assert result["error"] == metrics["test_error"]
    assert result["loss"] == metrics["test_loss"]
    assert result["reproduced"]
    assert evaluated(str(tmp_path), Question("val"))[0]["error"] == metrics["val_error"]


def test_same_seed_gives_the_same_metrics_and_another_does_not(tiny, tmp_path):
    first = train(compose(*tiny), tmp_path / "a")
    second = train(compose(*tiny), tmp_path / "b")
    other = train(compose(*tiny, "seed=1"), tmp_path / "c")
    assert lasting(first) == lasting(second)
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert other["test_loss"] != first["test_loss"]


@pytest.mark.parametrize("stop_at", [7, 10])
def test_interrupted_run_goes_on_bit_for_bit(tiny, tmp_path, monkeypatch, capsys, stop_at):
    from fwrnn.learning.supervised.trainer import SupervisedTrainer

    monkeypatch.chdir(tmp_path)
    straight = train(compose(*tiny), tmp_path / "straight")
    update = SupervisedTrainer.update

    def interrupting(self):
        if self.progress.update == stop_at:
            press()
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "update", interrupting)
        assert main(["train", *tiny, "hydra.run.dir=stopped"]) == 130
    assert "fwrnn train resume=stopped" in capsys.readouterr().err
    assert not (tmp_path / "stopped" / "metrics.json").exists()
    assert main(["train", "resume=stopped"]) == 0
    resumed = json.loads((tmp_path / "stopped" / "metrics.json").read_text())
    assert lasting(resumed) == lasting(straight)
    assert curve(tmp_path / "stopped") == curve(tmp_path / "straight")
    for name in ("best.pt", "last.pt"):
        one = weights(tmp_path / "stopped" / "checkpoints" / name)
        other = weights(tmp_path / "straight" / "checkpoints" / name)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_finished_run_can_be_given_more_updates_but_not_another_model(tiny, tmp_path, capsys):
    train(compose(*tiny), tmp_path)
    assert main(["train", f"resume={tmp_path}", "trainer.max_updates=30"]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["updates"] == 30
    assert main(["train", f"resume={tmp_path}", "model=lstm"]) == 2
    assert "'model=lstm' cannot change" in capsys.readouterr().err


def test_finished_run_that_goes_on_is_unfinished_until_its_new_end(
    tiny, tmp_path, monkeypatch, capsys
):
    from fwrnn.learning.supervised.trainer import SupervisedTrainer

    update = SupervisedTrainer.update

    def interrupting(self):
        if self.progress.update == 30:
            press()
        return update(self)

    before = train(compose(*tiny), tmp_path)
    more = ["train", f"resume={tmp_path}", "trainer.max_updates=40"]
    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "update", interrupting)
        assert main(more) == 130
    kept = json.loads((tmp_path / "metrics-before.json").read_text())
    assert kept["test_loss"] == before["test_loss"]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path)]) == 0
    assert "the run has not ended" in capsys.readouterr().out
    assert main(["train", f"resume={tmp_path}", "trainer.max_updates=29"]) == 2
    assert "30 updates are done" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "last.pt").unlink()  # there is the one before it
    assert main(more) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["updates"] == 40


def test_refused_resume_leaves_the_run_as_it_was(tiny, tmp_path, capsys):
    train(compose(*tiny, "trainer.average_decay=null"), tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    assert main(["train", f"resume={tmp_path}", "trainer.average_decay=0.9"]) == 2
    assert "does not fit" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == before
    train(compose(*tiny), tmp_path / "averaged")
    assert main(["train", f"resume={tmp_path / 'averaged'}", "trainer.average_decay=null"]) == 2
    (tmp_path / "checkpoints" / "best.pt").unlink()
    assert main(["train", f"resume={tmp_path}"]) == 0  # last.pt has them too
    assert (tmp_path / "checkpoints" / "best.pt").is_file()


def test_run_stopped_before_its_first_validation_can_go_on(tiny, tmp_path, capsys):
    diverging = [*tiny, "trainer.learning_rate=1e30", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(["train", *diverging]) == 1
    assert "diverged" in capsys.readouterr().err
    assert main(["train", f"resume={tmp_path / 'run'}", "trainer.learning_rate=1e-3"]) == 0


@pytest.mark.parametrize("name", ["it's a=b, [x]", "r(1)"])
def test_any_folder_can_be_resumed(tiny, tmp_path, name):
    train(compose(*tiny), tmp_path / name)
    assert main(["train", f"resume={tmp_path / name}", "trainer.max_updates=25"]) == 0
    assert json.loads((tmp_path / name / "metrics.json").read_text())["updates"] == 25


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are text there")
def test_a_folder_may_be_called_what_is_no_text(tiny, tmp_path):
    fwrnn = [sys.executable, "-m", "fwrnn", "train"]
    command = [*fwrnn, *tiny, "model=rnn", b"hydra.run.dir=M\xfcller"]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stderr
    assert b"the run goes on without" in said and b"Traceback" not in said
    command = [*fwrnn, b"resume=M\xfcller", "trainer.max_updates=25"]
    subprocess.run(command, cwd=tmp_path, check=True)
    log = tmp_path / os.fsdecode(b"M\xfcller") / "train.log"
    assert "in M\\udcfcller; watch it" in log.read_text("utf-8")


def test_full_disk_keeps_what_was_there(tiny, tmp_path, monkeypatch, capsys):
    train(compose(*tiny), tmp_path)
    before = (tmp_path / "checkpoints" / "last.pt").read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main(["train", f"resume={tmp_path}", "trainer.max_updates=30"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "last.pt").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_digits_are_learned_in_glimpses_without_a_download(unpainted, tmp_path):
    pytest.importorskip("sklearn")
    settings = ["task=mnist_glimpses", "task.dataset=digits", "model=multilevel", "threads=1"]
    settings += ["model.hidden_size=50", "model.head_dropout=0", "model.integration_dropout=0"]
    settings += ["trainer.max_updates=300", "trainer.warmup=0.17"]
    settings += ["trainer.average_decay=0.95", "trainer.evaluate_every=100"]
    assert train(compose(*settings), tmp_path)["test_error"] < 0.1


def test_threads_are_those_of_one_run_alone(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(2)
    words = [*tiny, "model=rnn", "trainer.max_updates=1", "hydra.sweep.subdir=${hydra.job.num}"]
    assert main(["train", "-m", *words, "threads=1,null", "hydra.sweep.dir=sweep"]) == 0
    found = [json.loads(file.read_text())["threads"] for file in tmp_path.rglob("metrics.json")]
    assert sorted(found) == [1, 2] and torch.get_num_threads() == 2


def test_sweep_runs_every_combination(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = ["model=fast_weights,lstm", "-m", "model.hidden_size=6,8"]
    assert main(["train", *[word for word in tiny if "hidden_size" not in word], *sweep]) == 0
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("metrics.json")]
    settings = {(m["model"], m["hidden_size"]) for m in found}
    assert len(found) == len(settings) == 4
