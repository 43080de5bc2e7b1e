"""Weight decay, label smoothing, augmented epochs, and runs without held-out validation."""

import json
import os
import signal

import pytest
import torch

from fwrnn.cli import main
from fwrnn.commands.train import train
from fwrnn.errors import Interrupted
from fwrnn.training.supervised import SupervisedTrainer, adam
from tests.commands.compose import compose
from tests.tasks.mnist import small_mnist, write

SMALL = ["task=mnist_glimpses", "model=multilevel", "model.hidden_size=8", "threads=1"]
SMALL += ["trainer.max_updates=6", "trainer.batch_size=8", "trainer.warmup_updates=0"]
SMALL += ["trainer.evaluate_every=2", "trainer.log_every=2"]


@pytest.fixture
def mnist(monkeypatch, tmp_path):
    """Overrides for a run on a few images."""
    write(tmp_path / "mnist", small_mnist(monkeypatch))
    return [*SMALL, f"task.data_dir={tmp_path / 'mnist'}"]


def test_weight_decay_shrinks_matrices_only(tiny):
    model = torch.nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adam(model, compose(*tiny, "trainer.weight_decay=0.5").trainer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    torch.testing.assert_close(model.weight, before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias, before["bias"])
    assert type(adam(model, compose(*tiny).trainer)) is torch.optim.Adam


def test_label_smoothing_changes_what_is_minimised_but_not_what_is_measured(tiny, tmp_path):
    still = [*tiny, "trainer.learning_rate=1e-30"]
    plain = train(compose(*still), tmp_path / "a")
    smooth = train(compose(*still, "trainer.label_smoothing=0.5"), tmp_path / "b")
    assert smooth["test_loss"] == plain["test_loss"]
    losses = [(tmp_path / run / "curve.csv").read_text().split("\n")[1] for run in "ab"]
    assert losses[0].split(",")[1] != losses[1].split(",")[1]


@pytest.mark.parametrize("extra", [[], ["task.shift=2", "task.rotation=10"]])
def test_run_with_dropout_and_augmentation_goes_on_bit_for_bit(mnist, tmp_path, monkeypatch, extra):
    settings = [*mnist, "model.head_dropout=0.5", "model.integration_dropout=0.5", *extra]
    straight = train(compose(*settings), tmp_path / "straight")
    update = SupervisedTrainer.update

    def interrupting(self):
        if self.progress.update == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "update", interrupting)
        with pytest.raises(Interrupted):
            train(compose(*settings), tmp_path / "early")
    assert main(["train", f"resume={tmp_path / 'early'}"]) == 0
    resumed = json.loads((tmp_path / "early" / "metrics.json").read_text())
    assert resumed["test_loss"] == straight["test_loss"]


def test_without_held_out_images_the_last_weights_are_tested(mnist, tmp_path):
    metrics = train(compose(*mnist, "task.train_on_all=true"), tmp_path / "run")
    assert metrics["best_update"] == metrics["updates"] == 6
    assert metrics["dataset"] == "mnist"
