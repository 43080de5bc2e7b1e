"""The ways of learning. A task names its own; everybody else asks it for what differs.

A kind = one class with the methods of ``Kind``, one line in ``KINDS`` or an entry point, trainers
and tasks that name it as their ``kind``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from fwrnn.interfaces import TaskSpec
from fwrnn.models.network import Network
from fwrnn.models.schema import ModelConfig
from fwrnn.registry import Registry

Draw = Callable[[Network], np.ndarray]
"""Draws a model at work, as (height, width, 3) bytes."""


@dataclass(frozen=True)
class Question:
    """What a model is tested on: a ``split``, or a ``file`` of somebody's own examples.

    ``games`` is how many to play, None for as many as is usual.
    """

    split: str = "test"
    file: str | None = None
    games: int | None = None


class Pictures(NamedTuple):
    """What a test shows, by name: (height, width, 3) bytes, and the contents of GIF files."""

    still: dict[str, np.ndarray]
    moving: dict[str, bytes]


@dataclass
class Outcome:
    """What a test brought: flat ``measured`` numbers, ``words`` for people, and what to ``draw``.

    Names in ``measured`` are recorded with the split before them, as in test_error. ``lines`` are
    answers to examples that had none; without any that had one, there are no ``words``.
    """

    measured: dict[str, Any]
    words: str
    draw: Callable[[], Pictures] = field(default=lambda: Pictures({}, {}))
    lines: list[str] = field(default_factory=list)


class Kind(Protocol):
    """A way of learning: what it measures, and how a model is built, tested and shown.

    ``score`` is the number that runs are compared by, as ``Outcome.measured`` and, after val_, what
    its trainers call it; ``lower_is_better`` whether a search wants less of it.
    """

    score: str
    lower_is_better: bool

    def network(self, model: ModelConfig, spec: TaskSpec) -> Network:
        """The network for a task. Raises ValueError for a setting that it does not take."""
        ...

    def question(self, trainer: Any) -> Question:
        """What a run is tested on at its end."""
        ...

    def drawing(self, task: Any, model: Network, device: torch.device) -> tuple[str, Draw] | None:
        """A name, and what draws the model while it learns; None when there is nothing to see."""
        ...

    def test(
        self, task: Any, model: Network, device: torch.device, question: Question, recorded: dict
    ) -> Outcome:
        """The model's answer. ``recorded`` is what the run recorded of itself, {} in its making.

        Raises:
            UserError: a question that is not for this kind, or a file that cannot be read.
        """
        ...

    def curve_metrics(self, trainer: Any, curve: list[dict]) -> dict:
        """What else is recorded of a run, from its validations."""
        ...


KINDS = Registry("fwrnn.kinds", {
    "supervised": "fwrnn.learning.supervised:Supervised",
    "games": "fwrnn.learning.games:Games",
})  # fmt: skip


def kind_of(task) -> Kind:
    """The kind that a task's configuration names."""
    return KINDS[task.kind]()
