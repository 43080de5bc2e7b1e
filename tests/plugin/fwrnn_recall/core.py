"""torch.nn.GRU as a core."""

from dataclasses import dataclass

from fwrnn.models.schema import RecurrentConfig


@dataclass(kw_only=True)
class GRU(RecurrentConfig):
    """The keys of ``model=gru``: those of every recurrent model, and one of its own."""

    layers: int

    @property
    def state_size(self) -> int:
        return self.layers * self.hidden_size

    def build(self, input_size: int):
        from torch import nn

        return nn.GRU(input_size, self.hidden_size, self.layers)
