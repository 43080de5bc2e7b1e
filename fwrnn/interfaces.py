"""What tasks, models and trainers say to one another; none of them imports another."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TaskSpec:
    """What a model must know of a task: how many symbols its sequences use, how many classes."""

    vocabulary: int
    classes: int


class Examples(NamedTuple):
    """A split of a task, whole in memory.

    ``inputs`` (N, T) are symbols, integers below ``TaskSpec.vocabulary``; ``targets`` (N) are
    integers below ``TaskSpec.classes``.
    """

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Examples":
        return Examples(self.inputs.to(device), self.targets.to(device))


class SupervisedTask(Protocol):
    """A task with examples and answers.

    ``resample`` tells that the training examples differ in every epoch. ``split`` makes a split,
    "train", "val" or "test"; the same arguments give the same examples.
    """

    spec: TaskSpec
    resample: bool

    def split(self, name: str, epoch: int = 0) -> Examples: ...
