"""What all networks have, whatever they answer."""

from torch import nn


class Network(nn.Module):
    """``state_size`` is how many numbers it carries from step to step for one sequence."""

    state_size: int

    @property
    def parameter_count(self) -> int:
        """Learned numbers of the whole network."""
        return sum(parameter.numel() for parameter in self.parameters())
