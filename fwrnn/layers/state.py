"""What a fast-weights layer or cell hands from one call to the next."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node


class FastWeightsState:
    """Everything a fast-weights layer remembers of the past: unpack it as ``hidden, memory``.

    ``hidden`` (…, B, H) is h(t) and ``memory`` (…, B, H, H) is A(t), the fast weights after h(t)
    was written. A layer's state has a leading dimension of ``num_layers`` (times two when
    bidirectional), a cell's has none; unbatched states lack B.

    A layer hands over a function in the place of ``memory``, which is called when the memory is
    first looked at: it has H times as many numbers as ``hidden``, and training rarely needs it.
    """

    def __init__(self, hidden: Tensor, memory: "Tensor | Callable[[], Tensor]"):
        self.hidden = hidden
        self._memory = memory
        self._differentiable = torch.is_grad_enabled()

    @property
    def unmade(self) -> "Callable[[], Tensor] | None":
        """What would make the memory, as long as nobody has looked at it."""
        return self._memory if callable(self._memory) else None

    @property
    def memory(self) -> Tensor:
        if callable(self._memory):
            with torch.set_grad_enabled(self._differentiable):
                self._memory = self._memory()
        return self._memory

    def __iter__(self):
        return iter((self.hidden, self.memory))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index):
        return (self.hidden, self.memory)[index]

    def __repr__(self) -> str:
        return f"FastWeightsState(hidden={self.hidden!r}, memory={self.memory!r})"

    def __reduce__(self):
        return FastWeightsState, (self.hidden, self.memory)

    def detach(self) -> "FastWeightsState":
        """The same numbers, cut from the graph: for truncated backpropagation."""
        with torch.no_grad():  # a memory not made yet is then made without a graph
            memory = self._memory() if callable(self._memory) else self._memory
        return FastWeightsState(self.hidden.detach(), memory.detach())

    def to(self, *args, **kwargs) -> "FastWeightsState":
        """Both tensors moved or converted, with the arguments of ``Tensor.to``."""
        return FastWeightsState(*(part.to(*args, **kwargs) for part in self))

    def clone(self) -> "FastWeightsState":
        """A copy of both tensors."""
        return FastWeightsState(*(part.clone() for part in self))

    def index_batch(self, index) -> "FastWeightsState":
        """The state of some sequences: ``index`` is an int, slice, list, index or mask tensor."""
        return FastWeightsState(self.hidden[..., index, :], self.memory[..., index, :, :])


# A state saved by torch.save can then be loaded by torch.load, which trusts only what it knows;
# and torch.vmap and the like find the tensors in it.
torch.serialization.add_safe_globals([FastWeightsState])
register_pytree_node(
    FastWeightsState,
    lambda state: (list(state), None),
    lambda parts, _: FastWeightsState(*parts),
    serialized_type_name="fwrnn.FastWeightsState",
)
