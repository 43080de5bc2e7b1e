"""Testing a classifier on a whole split."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fwrnn.interfaces import Examples

BATCH_SIZE = 1000


class Score(NamedTuple):
    """``loss`` is the mean negative log likelihood in nats, ``error`` a fraction from 0 to 1."""

    loss: float
    error: float
    wrong: int
    count: int


def evaluate(model: nn.Module, *groups: Examples) -> Score:
    """The model's score on one or more sets of examples, which lie on the model's device."""
    was_training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64)
    wrong = 0
    with torch.inference_mode():
        for examples in groups:
            batches = zip(*(part.split(BATCH_SIZE) for part in examples), strict=True)
            for inputs, targets in batches:
                logits = model(inputs)
                loss += F.cross_entropy(logits, targets, reduction="sum").cpu()
                wrong += int((logits.argmax(-1) != targets).sum())
    model.train(was_training)
    count = sum(len(examples.targets) for examples in groups)
    return Score(loss.item() / count, wrong / count, wrong, count)
