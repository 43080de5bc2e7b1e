"""Testing a classifier on a whole split."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwrnn.interfaces import Examples

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
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in inputs.split(BATCH_SIZE)])
    model.train(was_training)
    return logits


def score(*groups: tuple[Tensor, Tensor]) -> Score:
    """The score of one or more pairs of logits (N, classes) and targets (N)."""
    loss = torch.zeros((), dtype=torch.float64)
    wrong = 0
    for group in groups:
        for logits, targets in zip(*(part.split(BATCH_SIZE) for part in group), strict=True):
            loss += F.cross_entropy(logits, targets, reduction="sum").cpu()
            unsaid = logits.isnan().any(-1)  # of which the first would be taken for the largest
            wrong += int(((logits.argmax(-1) != targets) | unsaid).sum())
    count = sum(len(targets) for _, targets in groups)
    return Score(wrong / count, loss.item() / count, wrong, count)


def evaluate(model: nn.Module, *groups: Examples) -> Score:
    """The model's score on one or more sets of examples, which lie on the model's device."""
    return score(*((predict(model, examples.inputs), examples.targets) for examples in groups))
