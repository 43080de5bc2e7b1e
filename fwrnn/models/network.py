"""What all networks have, whatever they answer."""

from typing import TYPE_CHECKING, Protocol

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


def has_memory(model: object) -> "TypeIs[Remembering]":
    """Whether there is a fast memory to draw: one that is written to."""
    core = getattr(model, "core", None)
    return isinstance(core, FastWeightsRNN | MultiLevelFastWeights) and core.rule.fast_lr != 0
