"""The fast memory and the state that layers hand from one call to the next, as plain data.

Both are named tuples of tensors, so whatever PyTorch does to tuples of tensors it does to them.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from fwrnn.layers import equations
from fwrnn.rule import Rule

is_tracing = torch.jit.is_tracing  # pyright: ignore[reportPrivateImportUsage] (it is documented)


def _missing(data: tuple, name: str, instead: str) -> AttributeError:
    """The error for an attribute that there is not, with what to do where a tensor has one."""
    words = f"'{type(data).__name__}' object has no attribute '{name}'"
    if hasattr(Tensor, name) and not name.startswith("_"):
        words += f": {instead}"
    return AttributeError(words)  # to which Python adds the name and the object


def _not_multiplied(data: tuple, factor):
    """In the place of a tuple's product, which would repeat it."""
    raise TypeError(
        f"a {type(data).__name__} is not multiplied, got one times {type(factor).__name__}; "
        "state.reset(ended) begins sequences anew, state.map(function) changes every tensor"
    )


class FastMemory(NamedTuple):
    """The fast weights A as what was written into them, which is less than A while it is little:

        A = fade · folded + Σ_n strengths_n written_n written_nᵀ                    (equation 3)

    ``written`` (…, B, N, H) holds N states h, ``strengths`` (…, B, N) what is left of each, η λ^age
    (0 for what a sequence does not have), ``folded`` (…, B, H, H) an earlier A, or (…, B, 0, 0)
    when there was none, and ``fade`` (…, B) what is left of that. A layer's memory has a leading
    dimension of num_layers (times two when bidirectional), a cell's has none; unbatched ones lack
    B. ``matrix()`` is A itself.
    """

    written: Tensor
    strengths: Tensor
    folded: Tensor
    fade: Tensor

    if not TYPE_CHECKING:  # who would take it for what has every attribute

        def __getattr__(self, name):
            of = "the state's last part is its memory, a FastMemory; for nn.RNN's h[-1]"
            raise _missing(self, name, f"{of} write state.hidden[-1]; memory.matrix() is a tensor")

        __mul__ = __rmul__ = _not_multiplied

    @staticmethod
    def empty(hidden: Tensor) -> "FastMemory":
        """A = 0, for hidden states (…, B, H)."""
        batch, units = hidden.shape[:-1], hidden.shape[-1]
        return FastMemory(
            hidden.new_empty(*batch, 0, units),
            hidden.new_empty(*batch, 0),
            hidden.new_empty(*batch, 0, 0),
            hidden.new_ones(batch),
        )

    @staticmethod
    def from_matrix(matrix: Tensor) -> "FastMemory":
        """The memory that is this ``matrix``, (…, B, H, H)."""
        *batch, units, _ = matrix.shape
        return FastMemory(
            matrix.new_empty(*batch, 0, units),
            matrix.new_empty(*batch, 0),
            matrix,
            matrix.new_ones(batch),
        )

    def is_folded(self) -> bool:
        """Whether some of it is a matrix."""
        return self.folded.shape[-1] > 0

    def is_empty(self) -> bool:
        """Whether nothing was ever written, so that A = 0."""
        return not self.is_folded() and self.written.shape[-2] == 0

    def outgrows(self, steps: int) -> bool:
        """Whether with so many more states it would take more room than the matrix they make."""
        return self.written.shape[-2] + steps > self.written.shape[-1]

    def matrix(self) -> Tensor:
        """A, (…, B, H, H): H times as many numbers as there are units."""
        units, folded, traced = self.written.shape[-1], self.folded, is_tracing()
        if traced:  # a branch would be taken for good, whatever memory comes later
            missing = units - folded.shape[-1]
            folded = F.pad(folded, (0, missing, 0, missing))
        faded = self.fade[..., None, None] * folded
        if self.written.shape[-2] == 0 and not traced:
            return faded if self.is_folded() else faded.new_zeros(*self.fade.shape, units, units)
        weighted = self.written * self.strengths.unsqueeze(-1)
        total = (weighted.transpose(-1, -2) @ self.written).to(self.written.dtype)
        return total + faded if traced or self.is_folded() else total

    def read(self, query: Tensor) -> Tensor:
        """A q for queries (…, B, H), equation 4: attention over what was written."""
        found = torch.zeros_like(query)
        if self.written.shape[-2]:
            found = equations.attend(self.written, self.strengths, query)
        if self.is_folded():
            found = found + self.fade.unsqueeze(-1) * equations.read(self.folded, query)
        return found

    def write(self, hidden: Tensor, rule: Rule, running: Tensor | None = None) -> "FastMemory":
        """Equation 1: h (…, B, H) is added, and the rest fades by λ.

        Nothing happens to sequences for which ``running`` (…, B), a mask, is False.
        """
        strength = torch.full_like(self.fade, rule.fast_lr)
        strengths, fade = rule.decay * self.strengths, rule.decay * self.fade
        if running is not None:
            strength = strength * running
            strengths = strengths.where(running.unsqueeze(-1), self.strengths)
            fade = fade.where(running, self.fade)
        return FastMemory(
            torch.cat([self.written, hidden.unsqueeze(-2)], -2),
            torch.cat([strengths, strength.unsqueeze(-1)], -1),
            self.folded,
            fade,
        )


class FastWeightsState(NamedTuple):
    """Everything a fast-weights layer remembers of the past: unpack it as ``hidden, memory``.

    ``hidden`` (…, B, H) is h(t) and ``memory`` the ``FastMemory`` A(t), after h(t) was written;
    ``memory.matrix()`` is A as a tensor. In every tensor of it the sequences of a batch lie along
    the dimension along which they lie in ``hidden``.

    The tensors' shapes tell how much was written. ``as_matrix()`` gives all states one shape, for
    programs that keep to the shapes that they were made with, as exported ones do.
    """

    hidden: Tensor
    memory: FastMemory

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            of = "the state is a FastWeightsState(hidden, memory)"
            whole = "state.to(…) and state.map(function) change all of it"
            raise _missing(self, name, f"{of}; {whole}, and for nn.RNN's h write state.hidden")

        __mul__ = __rmul__ = _not_multiplied

    def map(self, function: Callable[[Tensor], Tensor]) -> "FastWeightsState":
        """The state of what ``function`` makes of each tensor."""
        return FastWeightsState(function(self.hidden), FastMemory(*map(function, self.memory)))

    def detach(self) -> "FastWeightsState":
        """The same numbers, cut from the graph: for truncated backpropagation."""
        return self.map(Tensor.detach)

    def to(self, *args, **kwargs) -> "FastWeightsState":
        """All tensors moved or converted, with the arguments of ``Tensor.to``."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def clone(self) -> "FastWeightsState":
        """A copy of all tensors."""
        return self.map(Tensor.clone)

    def as_matrix(self) -> "FastWeightsState":
        """The same with the memory as a matrix: of one shape, however much was written."""
        return FastWeightsState(self.hidden, FastMemory.from_matrix(self.memory.matrix()))

    @staticmethod
    def cat(states: "Iterable[FastWeightsState]") -> "FastWeightsState":
        """Several batches as one, in their order, of the same layer; they may differ in age.

        Raises:
            ValueError: there is none, one is no batch's, or they are not of one layer.
        """
        states = list(states)
        kinds = list(dict.fromkeys(map(_shape_of, states)))
        if len(kinds) != 1 or None in kinds:
            raise ValueError(
                "cat takes states of batches, one or more, as one layer returned them, got "
                f"{' and '.join(kind or 'no state of a batch' for kind in kinds) or 'none'}; "
                "leave out what is of another kind"
            )
        memories = _alike([state.memory for state in states])
        each = [(state.hidden, *memory) for state, memory in zip(states, memories, strict=True)]
        dimension = states[0]._batch_dimension()
        hidden, *memory = (torch.cat(parts, dimension) for parts in zip(*each, strict=True))
        return FastWeightsState(hidden, FastMemory(*memory))

    def reset(self, ended) -> "FastWeightsState":
        """Zeros for some sequences of a batch, which begin anew.

        ``ended`` has a bool for each, (B), as a tensor, an array or a list. Reset before the first
        observation of what begins is taken in, which Gymnasium's vectors of games give, in their
        default mode NEXT_STEP, one step after the end::

            observation, _, terminated, truncated, _ = games.step(actions)
            began, ended = ended, terminated | truncated  # both False everywhere at first
            state = cell(observation, state.reset(began))

        Raises:
            ValueError: it has not.
        """
        mask = ended if isinstance(ended, Tensor) else torch.as_tensor(ended)
        batch, before = self.memory.fade.shape[-1:], self._batch_dimension() + 1
        if mask.dtype != torch.bool or not before or mask.shape != batch:
            raise ValueError(
                f"reset takes bools, one for each sequence of a batch, here {tuple(batch)}, got "
                f"{mask.dtype} of shape {tuple(mask.shape)}; give (B) bools, such as ended == 1"
            )
        mask = mask.to(self.hidden.device)
        return self.map(
            lambda part: part.masked_fill(mask.view(-1, *(1,) * (part.dim() - before)), 0)
        )

    def index_batch(self, index) -> "FastWeightsState":
        """The state of some sequences: ``index`` is an int, slice, list, index or mask tensor."""
        before = (slice(None),) * self._batch_dimension()
        return self.map(lambda tensor: tensor[(*before, index)])

    def _batch_dimension(self) -> int:
        return self.memory.fade.dim() - 1


def _shape_of(state) -> str | None:
    """Of what layer's batches a state can be, in words; None for what is no batch's state."""
    if not isinstance(state, FastWeightsState) or not state.memory.fade.dim():
        return None
    *layers, _, units = state.hidden.shape
    sizes = " × ".join(map(str, (*layers, "B", units)))
    return f"{sizes} {state.hidden.dtype} on {state.hidden.device}"


def _alike(memories: list[FastMemory]) -> list[FastMemory]:
    """The same memories of batches, in one form and of one length, so that they can be joined."""
    sizes = [(memory.written.shape[-2], memory.folded.shape[-1]) for memory in memories]
    if not is_tracing() and all(size == sizes[0] for size in sizes):
        return memories
    longest, units = max(written for written, _ in sizes), memories[0].written.shape[-1]
    if is_tracing() or any(folded for _, folded in sizes) or longest > units:
        return [FastMemory.from_matrix(memory.matrix()) for memory in memories]
    return [
        memory._replace(
            written=F.pad(memory.written, (0, 0, longest - written, 0)),
            strengths=F.pad(memory.strengths, (longest - written, 0)),
        )
        for memory, (written, _) in zip(memories, sizes, strict=True)
    ]


# An exported program can then be saved. There is only a private name for it yet.
if _register := getattr(pytree, "_register_namedtuple", None):
    for _kind in (FastMemory, FastWeightsState):
        _register(_kind, serialized_type_name=f"fwrnn.{_kind.__name__}")

# A state saved by torch.save can then be loaded by torch.load, which trusts only what it knows.
torch.serialization.add_safe_globals([FastMemory, FastWeightsState])
