"""What tasks, models and trainers say to one another; none of them imports another."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


@dataclass(frozen=True)
class Symbols:
    """Inputs are sequences of symbols: (N, T) integers below ``vocabulary``."""

    vocabulary: int


@dataclass(frozen=True)
class Images:
    """Inputs are square grey images: (N, size, size) bytes, 0 black to 255 white."""

    size: int


@dataclass(frozen=True)
class Screens:
    """Inputs are what players see, step by step: (T, N, size, size) bytes, 0 or 1."""

    size: int


@dataclass(frozen=True)
class TaskSpec:
    """What a model must know of a task: its inputs, and the names of its classes or actions."""

    inputs: Symbols | Images | Screens
    labels: tuple[str, ...]


class Examples(NamedTuple):
    """A split of a task, whole in memory.

    ``inputs`` (N, …) are as ``TaskSpec.inputs`` says; ``targets`` (N) are int64 indices into
    ``TaskSpec.labels``.
    """

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> "Examples":
        return Examples(self.inputs.to(device), self.targets.to(device))


class Line(NamedTuple):
    """One of somebody's own examples: as it was written, as an input, and its answer if given."""

    text: str
    inputs: Tensor
    target: int | None


class SupervisedTask(Protocol):
    """A task with examples and answers.

    ``resample`` tells that the training examples differ in every epoch, and ``held_out`` that the
    validation examples are not among them, so that the best weights can be chosen by them.
    ``split`` makes a split, "train", "val" or "test"; the same arguments give the same examples.

    A task on text may have ``decode(inputs)``, the text of an input, ``encode(text)``, the reverse,
    which raises ValueError for what is none, and ``read_file(path)``, a list of ``Line``.
    """

    spec: TaskSpec
    resample: bool
    held_out: bool

    def split(self, name: str, epoch: int = 0) -> Examples: ...


class GameTask(Protocol):
    """A task that is played.

    ``games`` makes a number of games that run side by side, in Gymnasium's autoreset mode
    NEXT_STEP, and ``seed_of`` gives the seed to reset them with, by split: index k of "train" is
    for update k; "val" and "test" games are other ones. A game's rewards add up to a number in
    ``reward_range``.
    """

    spec: TaskSpec
    reward_range: tuple[float, float]

    def games(self, count: int) -> "VectorEnv": ...

    def seed_of(self, split: str, index: int = 0) -> int: ...


Task = SupervisedTask | GameTask
