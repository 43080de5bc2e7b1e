"""The loop that every trainer runs: update, log, validate, keep the best weights, stop, go on.

What comes at update k depends on the seed and on k alone, so that a run that was stopped goes on
bit for bit: a trainer draws its examples from (seed, k), and the checkpoint holds the rest.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, cast, get_origin

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fwrnn.errors import RunFailed, UserError, is_full
from fwrnn.learning.adam import Adam
from fwrnn.learning.run_folder import RunFolder
from fwrnn.learning.schema import Schedule
from fwrnn.learning.signals import Stopped, StopRequest

if TYPE_CHECKING:
    from fwrnn.learning.tracking import Tracker


log = logging.getLogger("fwrnn")
log_progress = logging.getLogger("fwrnn.progress")


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint.

    ``best`` is what the best validation so far measured, at ``best_update``; ``recent`` is what the
    updates since the last validation measured; ``curve`` has a row per validation; ``commits`` are
    those of the code that trained, or its versions, the first one first.
    """

    update: int = 0
    seconds: float = 0.0
    best_update: int = 0
    best: dict[str, float] = field(default_factory=dict)
    recent: dict[str, list[float]] = field(default_factory=dict)
    curve: list[dict] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)

    def __post_init__(self):
        """Raises TypeError for what no run saved."""
        for each in fields(self):
            kind = cast(type, get_origin(each.type) or each.type)
            if not isinstance(getattr(self, each.name), kind):
                raise TypeError(f"{each.name} is no {kind.__name__}")
        if not all(isinstance(row, dict) for row in self.curve):
            raise TypeError("the curve has no rows")


class Trainer:
    """A loop over ``update`` and ``validate``, which a subclass gives.

    Args:
        model: already on ``device``.
        optimizer: of the model's parameters.
        config: of the trainer; the loop reads ``max_updates``, ``learning_rate``, ``schedule``,
            ``warmup``, ``evaluate_every``, ``log_every`` and ``patience``.
        device: where the model is.
        folder: takes the checkpoints and the curve.

    ``watched`` is what the progress bar shows of an update.
    """

    watched = "loss"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Adam,
        config,
        device: torch.device,
        folder: RunFolder,
    ):
        self.model, self.optimizer, self.config = model, optimizer, config
        self.device, self.folder = device, folder
        self.progress = Progress()
        self.best_weights: dict[str, Tensor] | None = None
        self._shown: dict[str, str] = {}
        self.stop = StopRequest()  # that of ``fit``, while it works

    def update(self) -> dict[str, Tensor]:
        """One update of the weights; returns what it measured, not yet waited for, ``loss`` among
        it.

        Raises:
            Stopped: a signal came; nothing has changed, see ``unless_stopped``.
        """
        raise NotImplementedError

    @contextmanager
    def unless_stopped(self) -> Iterator[None]:
        """For what comes before the weights change, which takes long where kernels are compiled: a
        signal ends it by ``Stopped`` as if it had not begun."""
        before = self._random_states()
        try:
            with self.stop.at_once():
                yield
        except Stopped:
            self._set_random_states(before)
            raise

    def _random_states(self) -> dict[str, Tensor]:
        states = {"rng": torch.get_rng_state()}
        if self.device.type != "cpu":
            of_device = torch.get_device_module(self.device)
            states[f"{self.device.type}_rng"] = of_device.get_rng_state(*self._whose())
        return states

    def _whose(self) -> tuple[torch.device, ...]:
        """Which device's random numbers, for modules that know more than one."""
        return () if self.device.type == "mps" else (self.device,)

    def _set_random_states(self, states: dict) -> None:
        torch.set_rng_state(states["rng"].cpu())
        state = states.get(f"{self.device.type}_rng")
        if state is not None:  # there is none where the run went on from another device
            torch.get_device_module(self.device).set_rng_state(state.cpu(), *self._whose())

    def settle(self) -> None:
        """Have ``validated_model`` stay as it is from now until after the validation."""

    def validate(self) -> dict[str, float]:
        """Look at ``validated_model``; returns what was measured. Names of what the choice of
        the best weights may look at begin with val_. A signal may end it anywhere."""
        raise NotImplementedError

    def better(self, now: dict[str, float], best: dict[str, float]) -> bool:
        """Whether the weights that measured ``now`` are to be kept instead of those of ``best``."""
        raise NotImplementedError

    def solved(self, best: dict[str, float]) -> bool:
        """Whether the run may end before it is out of updates."""
        raise NotImplementedError

    @property
    def stands_since(self) -> int:
        """The update after which the best validation so far was not bettered any more."""
        return self.progress.best_update

    def shown(self, measured: dict[str, float]) -> dict[str, str]:
        """What the progress bar says of a validation."""
        raise NotImplementedError

    def rates(self, updates: int, seconds: float) -> dict[str, float]:
        """How fast it was since the last log."""
        return {"updates_per_second": updates / seconds}

    @property
    def validated_model(self) -> nn.Module:
        """The weights that are validated, kept and tested."""
        return self.model

    def fit(
        self,
        stop: StopRequest,
        tracker: "Tracker",
        on_validation: Callable[[nn.Module, int], None] | None = None,
    ) -> str:
        """Train until solved, without progress, or out of updates; returns which.

        Stops early, after saving, when ``stop`` is requested: returns "interrupted". A validation
        that it did not wait for comes first when the run goes on. ``tracker`` takes the scalars;
        ``on_validation`` is called after every validation with the model that was looked at and the
        update.

        Raises:
            RunFailed: the loss is not finite, or a file could not be written.
        """
        self.tracker, self.on_validation = tracker, on_validation or (lambda model, update: None)
        self.stop, reason = stop, None
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
        pending: list[dict[str, Tensor]] = []
        with bar:
            while not stop.requested:
                if self._to_validate():
                    self._log(pending, bar)
                    self.progress.seconds = time.perf_counter() - started
                    self._validate(bar)
                    self._logged = time.perf_counter()
                    continue
                if (reason := self._finished()) is not None:
                    break
                try:
                    pending.append(self.update())
                except Stopped:
                    break
                self.progress.update += 1
                bar.update()
                if self.progress.update % self.config.log_every == 0:
                    self._log(pending, bar)
            if reason == "solved":  # the end that was wanted, though updates are left
                bar.total = bar.n
                bar.set_description("solved")
        self._log(pending, bar)
        self.progress.seconds = time.perf_counter() - started
        self.save()
        return reason or "interrupted"

    def _to_validate(self) -> bool:
        update, curve = self.progress.update, self.progress.curve
        there = update % self.config.evaluate_every == 0 or update == self.config.max_updates
        return there and update > (curve[-1]["updates"] if curve else 0)

    def _finished(self) -> str | None:
        progress, config = self.progress, self.config
        if progress.best and self.solved(progress.best):
            return "solved"
        if (
            config.patience is not None
            and progress.best
            and progress.curve[-1]["updates"] - self.stands_since >= config.patience
        ):
            return "no progress"
        return "out of updates" if progress.update >= config.max_updates else None

    def set_learning_rate(self) -> None:
        """That of the coming update."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress.update, self.config)

    def _log(self, pending: list[dict[str, Tensor]], bar: tqdm) -> None:
        """Wait for what was measured since the last call, check it, and show it."""
        if not pending:
            return
        count, names = len(pending), list(pending[0])
        measured = torch.stack([torch.stack([each[n] for n in names]) for each in pending])
        pending.clear()
        recent = dict(zip(names, measured.T.tolist(), strict=True))
        for update, loss in enumerate(recent["loss"], start=self.progress.update - count + 1):
            if not math.isfinite(loss):
                raise self._diverged(f"the training loss is {loss} at update {update}")
        for name, values in recent.items():
            self.progress.recent.setdefault(name, []).extend(values)
        means = {name: sum(values) / count for name, values in recent.items()}
        scalars = {
            **means,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **self.rates(count, time.perf_counter() - self._logged),
        }
        update = self.progress.update
        self.tracker.scalars({f"train/{name}": x for name, x in scalars.items()}, update)
        self._show(bar, **{self.watched: f"{means[self.watched]:.4f}"})
        self._logged = time.perf_counter()

    def _validate(self, bar: tqdm) -> None:
        """Look at the weights, keep them if they are the best, save; or give it up to stop."""
        progress = self.progress
        self.settle()
        try:
            with self.stop.at_once():
                measured = self.validate()
        except Stopped:
            return
        for name, value in measured.items():
            if not math.isfinite(value):
                what = name.removeprefix("val_")
                raise self._diverged(
                    f"the validation {what} is {value} after update {progress.update}"
                )
        means = {f"train_{name}": sum(x) / len(x) for name, x in progress.recent.items()}
        progress.curve.append(
            {
                "updates": progress.update,
                **means,
                **measured,
                "learning_rate": learning_rate(progress.update - 1, self.config),
                "seconds": round(progress.seconds, 2),
            }
        )
        progress.recent = {}
        model = self.validated_model
        improved = not progress.best or self.better(measured, progress.best)
        if improved:
            progress.best_update, progress.best = progress.update, measured
            self.best_weights = {name: x.clone() for name, x in model.state_dict().items()}
        self.save()
        self._write_derived(improved)
        scalars = {f"val/{name.removeprefix('val_')}": value for name, value in measured.items()}
        self.tracker.scalars(scalars, progress.update)
        self.on_validation(model, progress.update)
        self._show(bar, **self.shown(measured))
        found = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
        of_all = f"update {progress.update:,} of {self.config.max_updates:,}"
        log_progress.info(f"{of_all}: {found}; {progress.seconds:.0f} s")

    def _show(self, bar: tqdm, **values: str) -> None:
        self._shown |= values
        bar.set_postfix(self._shown, refresh=False)

    def _diverged(self, what: str) -> RunFailed:
        try:
            update = self.folder.read_checkpoint(self.folder.last)["update"]
            saved = f"the last good checkpoint is {self.folder.last}, of update {update}"
        except Exception:
            saved = "there is no checkpoint yet"
        return RunFailed(
            f"{what}: training diverged. Try a smaller trainer.learning_rate (it was "
            f"{self.config.learning_rate}) or trainer.clip_norm=1.0; {saved}"
        )

    def content(self) -> dict:
        """Everything that the rest of the run depends on."""
        return {
            "update": self.progress.update,
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **self._random_states(),
            "best": self.best_weights,
        }

    def load(self, content: dict) -> None:
        """Go back to what ``content`` returned."""
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.progress = Progress(**content["progress"])
        self.best_weights = content.get("best")
        if self.best_weights is not None and _sizes(self.best_weights) != _sizes(content["model"]):
            raise ValueError("the best weights are of another model")
        self._set_random_states(content)

    def save(self) -> None:
        """Write ``last.pt``."""
        self.folder.write_checkpoint(self.folder.last, self.content())

    def _write_derived(self, best: bool = True) -> None:
        """Write what ``last.pt`` holds too, in files of their own: a kill between them does no
        harm, because going on begins with this."""
        if best and self.best_weights is not None:
            content = {"update": self.progress.best_update, "model": self.best_weights}
            self.folder.write_checkpoint(self.folder.best, content)
        if self.progress.curve:
            self.folder.write_curve(self.progress.curve)

    def restore(self) -> None:
        """Go back to the state that ``last.pt`` holds.

        Raises:
            UserError: it is missing, broken, or of another model.
        """
        try:
            content = self.folder.read_checkpoint(self.folder.last)
        except UserError as error:
            if not self.folder.before_last.is_file():
                raise
            log.warning(f"{error}: going on with the one before it")
            content = self.folder.read_checkpoint(self.folder.before_last)
        try:
            self.load(content)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if is_full(error):
                raise
            raise UserError(
                f"{self.folder.last} does not fit the run's configuration; what a run is made of, "
                "trainer.average_decay=null included, cannot change"
            ) from None
        if self.config.max_updates < self.progress.update:
            raise UserError(
                f"{self.progress.update:,} updates are done, and trainer.max_updates is "
                f"{self.config.max_updates:,}; give as many or more"
            )
        if self.progress.best_update and self.best_weights is None:  # of an earlier version
            self.best_weights = self.folder.read_checkpoint(self.folder.best)["model"]
        self._write_derived()


def _sizes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


def learning_rate(update: int, config) -> float:
    """The rate of an update, counted from 0: a linear warm-up times the schedule."""
    rate = config.learning_rate
    warmup = round(config.warmup * config.max_updates)
    if update < warmup:
        rate *= (update + 1) / warmup
    done = update / config.max_updates
    match config.schedule:
        case Schedule.linear:
            rate *= 1 - done
        case Schedule.cosine:
            rate *= (1 + math.cos(math.pi * done)) / 2
    return rate
