"""Training on tasks with examples and answers."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fwrnn.errors import UserError
from fwrnn.interfaces import Examples, Images, SupervisedTask
from fwrnn.learning.adam import Adam
from fwrnn.learning.loop import Trainer
from fwrnn.learning.run_folder import RunFolder
from fwrnn.learning.schema import SelectBy, SupervisedConfig
from fwrnn.learning.supervised.scoring import evaluate


class Batches:
    """The batch of every update: each epoch has an order of its own, and no ragged last batch."""

    def __init__(self, task: SupervisedTask, batch_size: int, seed: int, device: torch.device):
        self.task, self.seed, self.device = task, seed, device
        self._examples = task.split("train")
        count = len(self._examples.targets)
        self.size = min(batch_size, count)
        self.per_epoch = count // self.size
        self._epoch, self._shuffled = -1, self._examples

    def at(self, update: int) -> Examples:
        """The batch of an update, counted from 0, on the device."""
        epoch, k = divmod(update, self.per_epoch)
        if epoch != self._epoch:
            examples = self.task.split("train", epoch) if self.task.resample else self._examples
            order = np.random.default_rng([self.seed, epoch]).permutation(len(examples.targets))
            shuffled = Examples(*(part[torch.from_numpy(order)] for part in examples))
            self._epoch, self._shuffled = epoch, shuffled.to(self.device)
        chosen = slice(k * self.size, (k + 1) * self.size)
        return Examples(*(part[chosen] for part in self._shuffled))


class SupervisedTrainer(Trainer):
    """Adam on mini-batches, validation now and then, the best weights kept.

    With ``average_decay``, what is validated, kept and tested is an exponential moving average of
    the weights over the updates, which is steadier than the weights themselves.

    Args:
        model: maps inputs (B, …) to logits (B, classes); already on ``device``.
        task: gives the examples.
        config: see ``conf/trainer/supervised.yaml``.
        seed: decides the order of the examples.
        device: where the examples go.
        folder: takes the checkpoints and the curve.

    Raises:
        UserError: ``adversarial_norm`` for a task without images, or ``patience`` for one without
            examples to validate with.
    """

    def __init__(
        self,
        model: nn.Module,
        task: SupervisedTask,
        config: SupervisedConfig,
        seed: int,
        device: torch.device,
        folder: RunFolder,
    ):
        if config.adversarial_norm and not isinstance(task.spec.inputs, Images):
            raise UserError("trainer.adversarial_norm is for images, which this task has not")
        if config.patience is not None and not task.held_out:
            raise UserError(
                "trainer.patience waits for better validations, and no examples are held out for "
                "them; set it to null"
            )
        optimizer = Adam(model.parameters(), config.learning_rate, config.weight_decay)
        super().__init__(model, optimizer, config, device, folder)
        self.averaged = None
        if config.average_decay is not None:
            self.averaged = MovingAverage(model, config.average_decay)
        self.batches = Batches(task, config.batch_size, seed, device)
        self.validation, self.held_out = task.split("val").to(device), task.held_out

    def update(self) -> dict[str, torch.Tensor]:
        """One step of Adam on the next batch."""
        self.set_learning_rate()
        with self.unless_stopped():
            inputs, targets = self.batches.at(self.progress.update)
            self.optimizer.zero_grad()
            loss = self._backward(inputs, targets)
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.follow()
        return {"loss": loss.detach()}

    def _backward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The gradients of the batch; returns its loss.

        With ``adversarial_norm`` they are those of the mean of two losses: of the batch, and of the
        same images moved by that length in the direction that raises the loss most.
        """
        length = self.config.adversarial_norm
        if not length:
            loss = self._loss(inputs, targets)
            loss.backward()
            return loss
        pixels = inputs.float().requires_grad_()
        loss = self._loss(pixels, targets)
        (loss / 2).backward()
        (self._loss(adversarial(pixels, length), targets) / 2).backward()
        return loss

    def _loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        smoothing = self.config.label_smoothing
        return F.cross_entropy(self.model(inputs), targets, label_smoothing=smoothing)

    @property
    def validated_model(self) -> nn.Module:
        return self.model if self.averaged is None else self.averaged.module

    def validate(self) -> dict[str, float]:
        score = evaluate(self.validated_model, self.validation)
        return {"val_loss": score.loss, "val_error": score.error}

    def better(self, now: dict[str, float], best: dict[str, float]) -> bool:
        """By ``select_by``; without held-out examples the later weights are the better ones."""
        by_error = self.config.select_by is SelectBy.val_error
        names = ("val_error", "val_loss") if by_error else ("val_loss",)
        return not self.held_out or [now[n] for n in names] < [best[n] for n in names]

    def solved(self, best: dict[str, float]) -> bool:
        """By any validation: that with the least error need not be that with the least loss."""
        wanted, curve = self.config.solved_loss, self.progress.curve
        return wanted is not None and min(row["val_loss"] for row in curve) <= wanted

    def shown(self, measured: dict[str, float]) -> dict[str, str]:
        return {"val_error": f"{measured['val_error']:.2%}"}

    def content(self) -> dict:
        averaged = {} if self.averaged is None else {"averaged": self.averaged.state_dict()}
        return {**super().content(), **averaged}

    def load(self, content: dict) -> None:
        if (self.averaged is None) != ("averaged" not in content):
            raise ValueError("the weights are averaged, or are not any more")
        if self.averaged is not None:
            self.averaged.load_state_dict(content["averaged"])
        super().load(content)


class MovingAverage(AveragedModel):
    """An exponential moving average of the weights of ``model``, in a copy of it, ``module``.

    With PyTorch's own ``update_parameters`` finding and sorting the weights at every update took
    several times as long as averaging them.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay
        for part in self.module.modules():
            if isinstance(part, nn.RNNBase):  # whose copies cuDNN would put together at every call
                part.flatten_parameters()
        self._pairs = list(self.module.parameters()), list(model.parameters())

    @torch.no_grad()
    def follow(self) -> None:
        """Take in the weights as they are now; at first they are the average."""
        torch.ops.aten._foreach_lerp_.Scalar(
            *self._pairs, 1 - self.decay if self.n_averaged else 1.0
        )
        self.n_averaged += 1


def adversarial(images: torch.Tensor, length: float) -> torch.Tensor:
    """Images (B, S, S) moved along their gradients by ``length``, where white is 1 (here 255).

    Goodfellow, Shlens and Szegedy (arXiv:1412.6572), with the Euclidean length of Miyato et al.
    (arXiv:1704.03976) in the place of the largest component.
    """
    assert images.grad is not None, "backward comes first"
    gradient = images.grad.flatten(1)
    direction = gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return images.detach() + 255 * length * direction.view_as(images)
