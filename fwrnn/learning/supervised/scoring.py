"""Testing a classifier on a whole split."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwrnn.interfaces import Examples
from fwrnn.models.network import evaluating

BATCH_SIZE = 1000


class Score(NamedTuple):
    """``error`` is a fraction from 0 to 1, ``loss`` the mean negative log likelihood in nats.

    By the names, and in the order, in which a run records them.
    """

    error: float
    loss: float
    wrong: int
    examples: int


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's logits (N, classes) for inputs (N, …) on its device, in eval mode for it."""
    with evaluating(model):
        return torch.cat([model(part) for part in inputs.split(BATCH_SIZE)])


def score(logits: Tensor, targets: Tensor) -> Score:
    """The score of logits (N, classes) against targets (N)."""
    loss, count = torch.zeros((), dtype=torch.float64), len(targets)
    for part, right in zip(logits.split(BATCH_SIZE), targets.split(BATCH_SIZE), strict=True):
        loss += F.cross_entropy(part, right, reduction="sum").cpu()
    unsaid = logits.isnan().any(-1)  # of which the first would be taken for the largest
    wrong = int(((logits.argmax(-1) != targets) | unsaid).sum())
    return Score(wrong / count, loss.item() / count, wrong, count)


def evaluate(model: nn.Module, examples: Examples) -> Score:
    """The model's score on examples, which lie on its device."""
    return score(predict(model, examples.inputs), examples.targets)
