"""Weight decay, label smoothing, augmented epochs, and runs without held-out validation."""

import json

import pytest
import torch
import torch.nn.functional as F

from fwrnn.cli import main
from fwrnn.commands.train import train
from fwrnn.errors import Interrupted, UserError
from fwrnn.learning.adam import Adam
from fwrnn.learning.assembly import assemble
from fwrnn.learning.run_folder import RunFolder
from fwrnn.learning.supervised.trainer import SupervisedTrainer, adversarial
from tests.commands.compose import compose
from tests.signals import press
from tests.tasks.mnist import small_mnist, write

SMALL = ["task=mnist_glimpses", "model=multilevel", "model.hidden_size=8", "threads=1"]
SMALL += ["trainer.max_updates=6", "trainer.batch_size=8", "trainer.warmup=0"]
SMALL += ["trainer.evaluate_every=2", "trainer.log_every=2"]


@pytest.fixture
def mnist(unpainted, monkeypatch, tmp_path):
    """Overrides for a run on a few images."""
    write(tmp_path / "mnist", small_mnist(monkeypatch))
    return [*SMALL, f"task.data_dir={tmp_path / 'mnist'}"]


def test_weight_decay_shrinks_matrices_only():
    model = torch.nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Adam(model.parameters(), lr=1.0, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    torch.testing.assert_close(model.weight, before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias, before["bias"])


def test_label_smoothing_changes_what_is_minimised_but_not_what_is_measured(tiny, tmp_path):
    still = [*tiny, "trainer.learning_rate=1e-30"]
    plain = train(compose(*still), tmp_path / "a")
    smooth = train(compose(*still, "trainer.label_smoothing=0.5"), tmp_path / "b")
    assert smooth["test_loss"] == plain["test_loss"]
    losses = [(tmp_path / run / "curve.csv").read_text().split("\n")[1] for run in "ab"]
    assert losses[0].split(",")[1] != losses[1].split(",")[1]


@pytest.mark.parametrize(
    "extra", [[], ["task.shift=2", "task.rotation=10"], ["trainer.adversarial_norm=1.0"]]
)
def test_run_with_dropout_and_augmentation_goes_on_bit_for_bit(mnist, tmp_path, monkeypatch, extra):
    settings = [*mnist, "model.head_dropout=0.5", "model.integration_dropout=0.5", *extra]
    straight = train(compose(*settings), tmp_path / "straight")
    update = SupervisedTrainer.update

    def interrupting(self):
        if self.progress.update == 3:
            press()
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "update", interrupting)
        with pytest.raises(Interrupted):
            train(compose(*settings), tmp_path / "early")
    assert main(["train", f"resume={tmp_path / 'early'}"]) == 0
    resumed = json.loads((tmp_path / "early" / "metrics.json").read_text())
    assert resumed["test_loss"] == straight["test_loss"]


def test_adversarial_images_lie_at_the_given_distance_where_the_loss_is_higher():
    torch.manual_seed(0)
    slope = torch.randn(4, 4)
    images = (255 * torch.rand(3, 4, 4)).requires_grad_()
    (images * slope).sum().backward()
    moved = adversarial(images, 0.5) - images.detach()
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((3,), 127.5))
    torch.testing.assert_close(moved[1] / moved[1].norm(), slope / slope.norm())


def test_adversarial_gradients_are_the_mean_of_both_losses(mnist, tmp_path):
    config = compose(*mnist, "trainer.adversarial_norm=1.0", "model.head_dropout=0")
    for name in ("input_dropout", "encoding_dropout", "integration_dropout"):
        setattr(config.model, name, 0.0)
    _, _, task, model, device = assemble(config)
    trainer = SupervisedTrainer(model, task, config.trainer, 0, device, RunFolder(tmp_path))
    images, targets = (part[:5] for part in task.split("train"))
    loss = trainer._backward(images, targets)
    found = model.head[0].weight.grad.clone()
    pixels = images.float().requires_grad_()
    plain = F.cross_entropy(model(pixels), targets)
    plain.backward()
    worse = F.cross_entropy(model(adversarial(pixels, 1.0)), targets)
    assert worse > plain == loss
    model.zero_grad()
    ((F.cross_entropy(model(images), targets) + worse) / 2).backward()
    torch.testing.assert_close(found, model.head[0].weight.grad)


def test_adversarial_training_needs_images(tiny, tmp_path):
    with pytest.raises(UserError, match="images"):
        train(compose(*tiny, "trainer.adversarial_norm=1.0"), tmp_path)


def test_without_held_out_images_the_last_weights_are_tested(mnist, tmp_path):
    metrics = train(compose(*mnist, "task.train_on_all=true"), tmp_path / "run")
    assert metrics["best_update"] == metrics["updates"] == 6
    assert metrics["dataset"] == "mnist"
