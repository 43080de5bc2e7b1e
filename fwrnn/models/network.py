"""What all networks have, whatever they answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from fwrnn.layers import FastWeightsRNN, MultiLevelFastWeights

if TYPE_CHECKING:
    from typing_extensions import TypeIs


class Network(nn.Module):
    """``state_size`` is how many numbers it carries from step to step for one sequence."""

    state_size: int

    @property
    def parameter_count(self) -> int:
        """Learned numbers of the whole network."""
        return sum(parameter.numel() for parameter in self.parameters())


class Remembering(Protocol):
    """A network whose ``core`` has a fast memory, and sees what ``encoder`` makes of the inputs."""

    encoder: nn.Module
    core: FastWeightsRNN | MultiLevelFastWeights


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While open, the model is in eval mode, and nothing is differentiated."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:  # a signal may end it anywhere
        model.train(was_training)


def has_memory(model: object) -> "TypeIs[Remembering]":
    """Whether there is a fast memory to draw: one that is written to."""
    core = getattr(model, "core", None)
    return isinstance(core, FastWeightsRNN | MultiLevelFastWeights) and core.rule.fast_lr != 0
