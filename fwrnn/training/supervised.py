"""The training loop for tasks with examples and answers.

What comes at update k depends on the seed and on k alone, so that a run that was stopped goes on
bit for bit: the order of the examples is drawn anew for every epoch from (seed, epoch), and the
checkpoint holds the rest.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from fwrnn.config import Schedule, SelectBy, SupervisedConfig
from fwrnn.errors import RunFailed, UserError
from fwrnn.interfaces import Examples, Images, SupervisedTask
from fwrnn.training.evaluation import Score, evaluate
from fwrnn.training.run_folder import RunFolder
from fwrnn.training.signals import StopRequest
from fwrnn.training.tracking import Tracker


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint.

    ``best_*`` belong to the best validation so far, see ``select_by``; ``losses`` are the training
    losses since the last validation; ``curve`` has a row per validation.
    """

    update: int = 0
    seconds: float = 0.0
    best_update: int = 0
    best_error: float = math.inf
    best_loss: float = math.inf
    losses: list[float] = field(default_factory=list)
    curve: list[dict] = field(default_factory=list)


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


class SupervisedTrainer:
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
        UserError: ``adversarial_norm`` for a task without images.
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
        self.model, self.config, self.device = model, config, device
        self.folder = folder
        self.progress = Progress()
        self.optimizer = adam(model, config)
        self.averaged = None
        if config.average_decay is not None:
            average = get_ema_multi_avg_fn(config.average_decay)
            self.averaged = AveragedModel(model, multi_avg_fn=average)
        self.batches = Batches(task, config.batch_size, seed, device)
        self.validation, self.held_out = task.split("val").to(device), task.held_out

    def fit(
        self,
        stop: StopRequest,
        tracker: Tracker,
        on_validation: Callable[[nn.Module, int], None] | None = None,
    ) -> str:
        """Train until solved, without progress, or out of updates; returns which.

        Stops early, after saving, when ``stop`` is requested: returns "interrupted". ``tracker``
        takes the scalars; ``on_validation`` is called after every validation with the model that
        was looked at and the update.

        Raises:
            RunFailed: the loss is not finite, or a file could not be written.
        """
        self.tracker, self.on_validation = tracker, on_validation or (lambda model, update: None)
        self.model.train()
        bar = tqdm(
            total=self.config.max_updates,
            initial=self.progress.update,
            unit=" updates",
            desc="training",
            disable=None,
            dynamic_ncols=True,
        )
        self._logged = time.perf_counter()
        started = self._logged - self.progress.seconds
        pending: list[torch.Tensor] = []
        with bar:
            while (reason := self._finished()) is None and not stop.requested:
                pending.append(self.update())
                bar.update()
                update = self.progress.update
                validate = update % self.config.evaluate_every == 0
                validate |= update == self.config.max_updates
                if validate or update % self.config.log_every == 0:
                    self._log(pending, bar)
                if validate:
                    self.progress.seconds = time.perf_counter() - started
                    self._validate(bar)
                    self._logged = time.perf_counter()
        self._log(pending, bar)
        self.progress.seconds = time.perf_counter() - started
        self.save()
        return reason or "interrupted"

    def _finished(self) -> str | None:
        progress, config = self.progress, self.config
        if config.solved_loss is not None and progress.best_loss <= config.solved_loss:
            return "solved"
        if (
            config.patience is not None
            and progress.update - progress.best_update >= config.patience
        ):
            return "no progress"
        return "out of updates" if progress.update >= config.max_updates else None

    def update(self) -> torch.Tensor:
        """One step of Adam on the next batch; returns its loss, not yet waited for."""
        inputs, targets = self.batches.at(self.progress.update)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress.update, self.config)
        self.optimizer.zero_grad()
        loss = self._backward(inputs, targets)
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.progress.update += 1
        return loss.detach()

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

    def _log(self, pending: list[torch.Tensor], bar: tqdm) -> None:
        """Wait for the losses since the last call, check them, and show them."""
        if not pending:
            return
        losses = torch.stack(pending).tolist()
        pending.clear()
        first = self.progress.update - len(losses) + 1
        for update, loss in enumerate(losses, start=first):
            if not math.isfinite(loss):
                raise self._diverged(f"the training loss is {loss} at update {update}")
        self.progress.losses += losses
        mean = sum(losses) / len(losses)
        scalars = {
            "train/loss": mean,
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/updates_per_second": len(losses) / (time.perf_counter() - self._logged),
        }
        self.tracker.scalars(scalars, self.progress.update)
        self._show(bar, loss=f"{mean:.4f}")
        self._logged = time.perf_counter()

    def _validate(self, bar: tqdm) -> None:
        progress = self.progress
        model = self.model if self.averaged is None else self.averaged.module
        score = evaluate(model, self.validation)
        if not math.isfinite(score.loss):
            raise self._diverged(
                f"the validation loss is {score.loss} after update {progress.update}"
            )
        progress.curve.append(
            {
                "updates": progress.update,
                "train_loss": sum(progress.losses) / len(progress.losses),
                "val_loss": score.loss,
                "val_error": score.error,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "seconds": round(progress.seconds, 2),
            }
        )
        progress.losses = []
        if self._better(score):
            progress.best_update = progress.update
            progress.best_error, progress.best_loss = score.error, score.loss
            content = {"update": progress.update, "model": model.state_dict()}
            self.folder.write_checkpoint(self.folder.best, content)
        self.save()
        self.folder.write_curve(progress.curve)
        self.tracker.scalars({"val/loss": score.loss, "val/error": score.error}, progress.update)
        self.on_validation(model, progress.update)
        self._show(bar, val_error=f"{score.error:.2%}")

    def _better(self, score: Score) -> bool:
        """Whether these are the weights to test; of equal errors the smaller loss decides."""
        best = Score(self.progress.best_loss, self.progress.best_error, 0, 0)
        by_error = self.config.select_by is SelectBy.val_error
        now, before = ((s.error, s.loss) if by_error else (s.loss,) for s in (score, best))
        return now < before or not self.held_out

    def _show(self, bar: tqdm, **values: str) -> None:
        self._shown = {**getattr(self, "_shown", {}), **values}
        bar.set_postfix(self._shown, refresh=False)

    def _diverged(self, what: str) -> RunFailed:
        try:
            update = self.folder.read_checkpoint(self.folder.last, torch.device("cpu"))["update"]
            saved = f"the last good checkpoint is {self.folder.last}, of update {update}"
        except Exception:
            saved = "there is no checkpoint yet"
        return RunFailed(
            f"{what}: training diverged. Try a smaller trainer.learning_rate (it was "
            f"{self.config.learning_rate}) or trainer.clip_norm=1.0; {saved}"
        )

    def save(self) -> None:
        """Write ``last.pt``: everything that the rest of the run depends on."""
        content = {
            "update": self.progress.update,
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if self.averaged is not None:
            content["averaged"] = self.averaged.state_dict()
        if self.device.type == "cuda":
            content["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        self.folder.write_checkpoint(self.folder.last, content)

    def restore(self) -> None:
        """Go back to the state that ``last.pt`` holds.

        Raises:
            UserError: it is missing, broken, or of another model.
        """
        content = self.folder.read_checkpoint(self.folder.last, self.device)
        try:
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.progress = Progress(**content["progress"])
            if self.averaged is not None:
                self.averaged.load_state_dict(content["averaged"])
            torch.set_rng_state(content["rng"].cpu())
            if "cuda_rng" in content:
                torch.cuda.set_rng_state(content["cuda_rng"].cpu(), self.device)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
            raise UserError(
                f"{self.folder.last} does not fit the run's configuration; what a run is made of, "
                "trainer.average_decay=null included, cannot change"
            ) from None
        if self.progress.best_update:
            self.folder.read_checkpoint(self.folder.best, self.device)


def adversarial(images: torch.Tensor, length: float) -> torch.Tensor:
    """Images (B, S, S) moved along their gradients by ``length``, where white is 1 (here 255).

    Goodfellow, Shlens and Szegedy (arXiv:1412.6572), with the Euclidean length of Miyato et al.
    (arXiv:1704.03976) in the place of the largest component.
    """
    gradient = images.grad.flatten(1)
    direction = gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return images.detach() + 255 * length * direction.view_as(images)


def adam(model: nn.Module, config: SupervisedConfig) -> torch.optim.Optimizer:
    """Adam, with decoupled weight decay of the matrices where it is asked for (AdamW)."""
    if not config.weight_decay:
        return torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def learning_rate(update: int, config: SupervisedConfig) -> float:
    """The rate of an update, counted from 0: a linear warm-up times the schedule."""
    rate = config.learning_rate
    if update < config.warmup_updates:
        rate *= (update + 1) / config.warmup_updates
    done = update / config.max_updates
    match config.schedule:
        case Schedule.linear:
            rate *= 1 - done
        case Schedule.cosine:
            rate *= (1 + math.cos(math.pi * done)) / 2
    return rate
