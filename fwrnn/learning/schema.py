"""The settings of every trainer. Does not import torch."""

from dataclasses import dataclass
from enum import Enum
from pkgutil import resolve_name
from typing import ClassVar

from fwrnn.config import at_least

Schedule = Enum("Schedule", ["constant", "linear", "cosine"])
SelectBy = Enum("SelectBy", ["val_loss", "val_error"])


@dataclass(kw_only=True)
class TrainerConfig:
    """What every trainer has: how long, how fast, and how often it looks.

    ``kind`` names the tasks that it is for, as ``TaskConfig.kind`` does; ``makes`` is its class, as
    "module:class".
    """

    name: str
    max_updates: int
    learning_rate: float
    schedule: Schedule
    warmup: float
    clip_norm: float | None
    evaluate_every: int
    log_every: int
    patience: int | None

    kind: ClassVar[str]
    makes: ClassVar[str]
    cpu_only: ClassVar[bool] = False

    def __post_init__(self):
        for name in ("max_updates", "evaluate_every", "log_every", "patience"):
            at_least(1, name, getattr(self, name))
        if not 0 <= self.warmup <= 1:
            raise ValueError(
                f"warmup is a share of the run and must lie in [0, 1], got {self.warmup}"
            )
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}; try 1e-3")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"clip_norm must be positive, got {self.clip_norm}; null turns clipping off"
            )

    def build(self, model, task, seed: int, device, folder):
        """The ``Trainer``. Raises UserError for what does not go together."""
        return resolve_name(self.makes)(model, task, self, seed, device, folder)


@dataclass(kw_only=True)
class SupervisedConfig(TrainerConfig):
    batch_size: int
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    average_decay: float | None
    select_by: SelectBy = SelectBy.val_loss
    solved_loss: float | None
    adversarial_norm: float = 0.0

    kind = "supervised"
    makes = "fwrnn.learning.supervised.trainer:SupervisedTrainer"

    def __post_init__(self):
        super().__post_init__()
        at_least(1, "batch_size", self.batch_size)
        for name in ("weight_decay", "adversarial_norm"):
            at_least(0, name, getattr(self, name))
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.average_decay is not None and not 0 <= self.average_decay < 1:
            raise ValueError(
                f"average_decay must be at least 0 and below 1, got {self.average_decay}; "
                "null turns averaging off"
            )


@dataclass(kw_only=True)
class ActorCriticConfig(TrainerConfig):
    games: int
    discount: float
    n_steps: int | None
    value_cost: float
    entropy_cost: float
    entropy_until: float | None
    val_games: int
    test_games: int
    solved_reward: float | None

    kind = "games"
    makes = "fwrnn.learning.games.actor_critic:A2CTrainer"

    def __post_init__(self):
        super().__post_init__()
        for name in ("games", "n_steps", "val_games", "test_games"):
            at_least(1, name, getattr(self, name))
        for name in ("discount", "entropy_until"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        for name in ("value_cost", "entropy_cost"):
            at_least(0, name, getattr(self, name))


@dataclass(kw_only=True)
class A3CConfig(ActorCriticConfig):
    workers: int

    makes = "fwrnn.learning.games.a3c:A3CTrainer"
    cpu_only = True  # workers share memory there

    def __post_init__(self):
        super().__post_init__()
        at_least(1, "workers", self.workers)
