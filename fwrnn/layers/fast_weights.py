"""The fast-weights recurrent layer, used like ``torch.nn.RNN`` and ``torch.nn.RNNCell``.

The equations are in ``fwrnn.layers.equations``, the ways to compute a whole sequence of them in
``fwrnn.layers.kernels``; this file holds the modules, their parameters and their input forms.
"""

import inspect
import warnings
from dataclasses import replace
from itertools import chain
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils.checkpoint import CheckpointFunction

from fwrnn.layers import equations, kernels
from fwrnn.layers.equations import InputWeights, SlowWeights
from fwrnn.layers.initialization import (
    FAST_WEIGHTS_SCALE,
    normal_incoming_,
    scaled_identity_,
    uniform_outgoing_,
)
from fwrnn.layers.kernels import sequences, steps
from fwrnn.layers.memory import FastMemory, FastWeightsState
from fwrnn.rule import READ_GAINS, Rule, one_of

_PARAMETERS = (
    "weight_ih", "weight_hh", "bias_ih", "bias_hh", "norm_weight", "norm_bias", "read_weight",
)  # fmt: skip
READ_SCALES = {"unit": 24.0, "layer": 24.0, "plain": 4.0}
"""g = 24 w, or 4 w: w is then as small as other weights, and learned at their rates."""


def _constant(name: str) -> Any:
    """A constant of the rule as an attribute that may be set, and is checked when it is."""

    def change(self, value):
        self.rule = replace(self.rule, **{name: value})

    return property(lambda self: getattr(self.rule, name), change)


def _fixed(name: str) -> Any:
    """An attribute that parameters were made by, so that it can only be read."""

    def refuse(self, value):
        raise AttributeError(
            f"{name} of a {type(self).__name__} cannot be changed later, because its parameters "
            f"were made for {name}={getattr(self, name)!r}; make a new one with {name}={value!r}"
        )

    private = f"_{name}"
    return property(lambda self: getattr(self, private), refuse)


class _FastWeightsModule(nn.Module):
    """What the layer and the cell share: the constants, and how their parameters start."""

    decay = _constant("decay")
    fast_lr = _constant("fast_lr")
    inner_steps = _constant("inner_steps")
    nonlinearity = _constant("nonlinearity")
    boundary = _constant("boundary")
    inner_start = _constant("inner_start")

    input_size = _fixed("input_size")
    hidden_size = _fixed("hidden_size")
    bias = _fixed("bias")
    layer_norm = _fixed("layer_norm")
    read_gain = _fixed("read_gain")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        layer_norm: bool,
        read_gain: str,
        backend: str,
        rule: Rule,
    ):
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if not isinstance(size, Integral) or size < 1:
                raise ValueError(
                    f"{name} must be an integer of 1 or more, got {size!r}; give a positive size"
                )
        one_of("read_gain", read_gain, READ_GAINS)
        if hidden_size == 1 and layer_norm and rule.inner_steps:
            warnings.warn(
                "layer normalisation of a single unit leaves nothing of it, so that the state does "
                "not depend on the input; set layer_norm=False, or a larger hidden_size",
                stacklevel=3,
            )
        self._input_size, self._hidden_size = input_size, hidden_size
        self._bias, self._layer_norm, self._read_gain = bias, layer_norm, read_gain
        self._read_scale = READ_SCALES.get(read_gain, 1.0)
        self._names = {}
        self.backend = backend
        self.rule = rule

    @property
    def rule(self) -> Rule:
        """The constants, all together; each of them is an attribute, too."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        if not isinstance(rule, Rule):
            raise TypeError(
                f"rule must be a Rule, got {type(rule).__name__}; set single constants by name"
            )
        self._rule = replace(rule, plain_read=self.read_gain == "plain")

    @property
    def backend(self) -> str:
        """The form that computes whole sequences; "auto" is the fastest."""
        return self._backend

    @backend.setter
    def backend(self, backend: str) -> None:
        kernels.check(backend)
        self._backend = backend

    def _add_parameters(self, suffix: str, input_size: int, factory: dict) -> None:
        hidden = self.hidden_size
        shapes = {"weight_ih": (hidden, input_size), "weight_hh": (hidden, hidden)}
        if self.bias:
            shapes |= {"bias_ih": (hidden,), "bias_hh": (hidden,)}
        if self.layer_norm:
            shapes |= {"norm_weight": (hidden,), "norm_bias": (hidden,)}
        if self.read_gain != "fixed":
            shapes |= {"read_weight": (1 if self.read_gain == "layer" else hidden,)}
        for name, shape in shapes.items():
            self.register_parameter(name + suffix, nn.Parameter(torch.empty(shape, **factory)))
        # In the order of a ``Step``.
        self._names[suffix] = [name + suffix if name in shapes else None for name in _PARAMETERS]

    def reset_parameters(self) -> None:
        """Draw all parameters anew: W = 0.05·I, C and biases uniform in ±1/√H, LN gain 1, bias 0.

        Source: section 4 of the paper; see ``fwrnn.layers.initialization``. Where the strength of
        the read is learned, it starts at 0, from where training finds how much of it the data can
        use, and C as N(0, 1/I), so that normalisation finds the inputs large enough.
        """
        for name in filter(None, chain(*self._names.values())):
            drawn = torch.empty_like(getattr(self, name), requires_grad=False)
            if name.startswith("weight_hh"):
                scaled_identity_(drawn, FAST_WEIGHTS_SCALE)
            elif name.startswith("norm_weight"):
                nn.init.ones_(drawn)
            elif name.startswith(("norm_bias", "read_weight")):
                nn.init.zeros_(drawn)
            elif name.startswith("weight_ih") and self.read_gain != "fixed":
                normal_incoming_(drawn)
            else:
                uniform_outgoing_(drawn)
            if is_parametrized(self, name):
                setattr(self, name, drawn)  # as the parametrisation has it
                continue
            pruned = self._parameters.get(f"{name}_orig")
            with torch.no_grad():
                (getattr(self, name) if pruned is None else pruned).copy_(drawn)

    def initial_state(self, batch_size: int | None = None) -> FastWeightsState:
        """The state before the first step, all zeros; unbatched when ``batch_size`` is None."""
        suffix = next(iter(self._names))  # none of a cell
        layers = (len(self._names),) if suffix else ()
        batch = () if batch_size is None else (batch_size,)
        like = getattr(self, f"weight_hh{suffix}")  # a shard may be, whose new_zeros are shards
        shape = *layers, *batch, self.hidden_size
        hidden = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return FastWeightsState(hidden, FastMemory.empty(hidden))

    def _registered(self, suffix: str) -> list[Any] | None:
        """The parameters of one layer in one direction, in the order of a ``Step``; None where
        somebody parametrised one of them."""
        own = self._parameters
        try:
            return [name and own[name] for name in self._names[suffix]]
        except KeyError:
            return None

    def _weights(self, suffix: str) -> tuple[InputWeights, SlowWeights]:
        """What one layer has learned in one direction."""
        named = self._registered(suffix)
        if named is None:
            named = [name and getattr(self, name) for name in self._names[suffix]]
        weight_ih, weight_hh, bias_ih, bias_hh, gain, shift, read_weight = named
        read_gain = None if read_weight is None else self._read_scale * read_weight
        if read_gain is not None and self._read_gain == "layer":
            read_gain = read_gain.expand(self.hidden_size)
        inputs = InputWeights(weight_ih, bias_ih, bias_hh)
        return inputs, SlowWeights(weight_hh, gain, shift, read_gain)

    def _step(
        self, input: Tensor, hidden: Tensor | None, memory: FastMemory | None, suffix: str
    ) -> steps.Step | None:
        """What the fused loops for one step are asked with; None where they are not to be asked.

        Nothing of it is checked: they do that, and whatever is not as it should be, they refuse.
        """
        if (weights := self._for_loops(suffix)) is None:
            return None
        parts = (None,) * 4 if memory is None else memory
        return steps.Step(input, hidden, *parts, *weights)

    def _for_loops(self, suffix: str) -> list[Any] | None:
        """The parameters, for the fused loops on a CPU; None where those are not to be asked."""
        return self._registered(suffix) if self._backend in ("auto", "numba") else None

    def _recurrence(
        self,
        sequence: Tensor,
        suffix: str,
        hidden: Tensor | None,
        memory: FastMemory | None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, FastMemory]:
        """One layer in one direction, of its input (T, B, I), as ``kernels.recurrence`` runs it.

        The last state and the memory have a 1 in front, for this layer.
        """
        if lengths is None and sequence.shape[0] == 1:
            step = self._step(sequence[0], hidden, memory, suffix)
            if found := step and steps.run(step, self.rule, self._read_scale):
                hidden, memory = found
                return hidden.clone().unsqueeze(0), hidden.unsqueeze(0), _in_front(memory)
        elif memory is None and (weights := self._for_loops(suffix)):
            parts = sequences.Sequences(sequence, hidden, None, *weights)
            tried = self._backend == "auto"
            if found := sequences.run(parts, self.rule, self._read_scale, lengths, tried):
                return found
        inputs, slow = self._weights(suffix)
        self._check_kind("an input", sequence, inputs.weight_ih)  # PyTorch looks the other way
        if hidden is None:
            hidden = slow.weight_hh.new_zeros(sequence.shape[1], self.hidden_size)
        output, hidden, memory = kernels.recurrence(
            sequence, inputs, hidden, memory, slow, self.rule, lengths, self.backend
        )
        return output, hidden.unsqueeze(0), _in_front(memory)

    def _check_input(self, input: Tensor, like: Tensor, dims: tuple[int, int]) -> None:
        name = type(self).__name__
        if not isinstance(input, Tensor):
            raise TypeError(
                f"{name} takes an input as a tensor, got {type(input).__name__}; make one of it"
            )
        if input.dim() not in dims:
            raise ValueError(
                f"{name} takes an input of {dims[0]} dimensions (unbatched) or {dims[1]} (batched),"
                f" got {input.dim()} of shape {tuple(input.shape)}; add or drop a dimension"
            )
        if input.shape[-1] != self.input_size:
            raise ValueError(
                f"{name} takes inputs with a last dimension of input_size = {self.input_size}, "
                f"got shape {tuple(input.shape)}; change input_size or the input"
            )
        self._check_kind("an input", input, like)

    def _check_kind(self, what: str, tensor: Tensor, like: Tensor) -> None:
        """Raises ValueError unless ``tensor`` can be computed with parameters such as ``like``."""
        name = type(self).__name__
        if tensor.device != like.device:
            raise ValueError(
                f"{name} has parameters on {like.device}, got {what} on {tensor.device}; "
                "move one of them"
            )
        if tensor.dtype != like.dtype and not equations.is_autocast(like.device):
            raise ValueError(
                f"{name} has parameters in {like.dtype}, got {what} in {tensor.dtype}; "
                f"convert it with .to({like.dtype}), or the module"
            )

    def _check_state(
        self, hx: Any, shape: tuple[int, ...], like: Tensor
    ) -> tuple[Tensor | None, FastMemory | None]:
        """The hidden vector, of this ``shape``, and the memory of a state; None for all zeros."""
        if hx is None:
            return None, None
        hidden, memory = self._parts(hx)
        units = self.hidden_size
        if tuple(hidden.shape) != shape:
            raise ValueError(
                f"{type(self).__name__} takes a state whose hidden has shape {shape}, got "
                f"{tuple(hidden.shape)}; start from None or from a state for the same batch, of a "
                "layer with num_layers in front, of a cell without"
            )
        self._check_kind("a state", hidden, like)
        if memory is None:
            return hidden.to(like.dtype), None
        batch, past, matrix = shape[:-1], memory.written.shape[-2], units * memory.is_folded()
        expected = (*batch, past, units), (*batch, past), (*batch, matrix, matrix), batch
        for name, part, want in zip(FastMemory._fields, memory, expected, strict=True):
            if tuple(part.shape) != want:
                raise ValueError(
                    f"{type(self).__name__} takes a memory whose {name} has shape {want}, got "
                    f"{tuple(part.shape)}; start from None or from a state for the same batch"
                )
            self._check_kind("a memory", part, like)
        return hidden.to(like.dtype), FastMemory(*(part.to(like.dtype) for part in memory))

    def _parts(self, hx: Any) -> tuple[Tensor, FastMemory | None]:
        """Hidden vector and memory of a state in any form that is taken for one."""
        if isinstance(hx, Tensor):
            return hx, None
        if isinstance(hx, tuple | list) and len(hx) == 2 and isinstance(hx[0], Tensor):
            hidden, memory = hx
            if isinstance(memory, Tensor) and memory.dim() > 1:
                return hidden, FastMemory.from_matrix(memory)
            # Tracing, for one, makes plain tuples of named ones.
            parts = memory if isinstance(memory, tuple | list) else ()
            if [isinstance(part, Tensor) for part in parts] == [True] * len(FastMemory._fields):
                return hidden, FastMemory(*parts)
        raise ValueError(
            f"{type(self).__name__} takes a FastWeightsState, or the hidden tensor alone, got "
            f"{type(hx).__name__}; pass what it returned, or (hidden, memory as a matrix)"
        )

    def extra_repr(self) -> str:
        signature = inspect.signature(type(self)).parameters
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, parameter in signature.items()
            if hasattr(self, name) and getattr(self, name) != parameter.default
        ]
        return ", ".join(changed)


class FastWeightsRNN(_FastWeightsModule):
    r"""A drop-in for ``torch.nn.RNN`` with a fast associative memory in every layer.

    At each step, equations 1, 2 and 5 of arXiv:1610.06258v3:

    .. code-block:: text

        A(t)       = λ A(t-1) + η h(t) h(t)ᵀ
        h_0(t+1)   = f(W h(t) + C x(t+1))
        h_s+1(t+1) = f(LN[W h(t) + C x(t+1) + A(t) h_s(t+1)]),  s = 0 … S-1
        h(t+1)     = h_S(t+1)

    That is the paper's layer, ``FastWeightsRNN(input_size, hidden_size, nonlinearity="relu",
    read_gain="fixed")``. Its A h grows with H and with what was written, and after layer
    normalisation drowns the input, unless the data is made of little but things to recall. So by
    default what is read is of the size of what was written, bounded, and counts as much as is
    learned:

    .. code-block:: text

        h_s+1(t+1) = f(LN[W h(t) + C x(t+1) + g z / √(1 + mean z² / 4)]),
        z = A(t) h_s(t+1) / (H rms(h_s(t+1)))

    with g = 24 w and w, one number per unit, a parameter that starts at 0. (The 24 lets w be
    learned at the rates of other parameters.) ``fwrnn battery`` compares it with ``nn.RNN``.

    Args:
        input_size: numbers per step of the input, I.
        hidden_size: units, H.
        num_layers: layers stacked on one another, each with a memory of its own.
        nonlinearity: f, "tanh" (the default of ``nn.RNN``) or "relu" (the paper's).
        bias: whether C x and W h have the biases of ``nn.RNN``. Layer normalisation has its own.
        batch_first: batched inputs and outputs are (B, T, ·) instead of (T, B, ·).
        dropout: probability of dropping an output between layers, in [0, 1].
        bidirectional: also run over the reversed sequence, with weights and a memory of its own.
        device, dtype: of the parameters.
        decay: λ, in [0, 1]: what is left of the memory after a step.
        fast_lr: η, any finite number: how strongly a state is written.
        inner_steps: S, 0 or more: how often the memory is read in a step. With 0 it never is.
        layer_norm: whether to normalise over the units at each inner step.
        boundary: "sustained" (the paper's) or "identity" (supplement B, method 2):
            h_s+1 = f(LN[(A(t) + I) h_s]).
        read_gain: "unit" or "layer", the read with a g that is learned, one number per unit or
            one; "plain", g A(t) h_s with g = 4 w, one number per unit, an η that is learned, the
            most precise where all is recalling, and the first to fail where it is not; or "fixed",
            the paper's.
        inner_start: "candidate", h_0 = f(W h + C x) (the paper's); "previous", h_0 = h(t), which
            folds the memory into the recurrent matrix and takes the added depth away; or
            "normalised", h_0 = f(LN[W h + C x]), for comparison, which has no fused kernel.
        backend: "auto", "matrix" (A as a matrix, the reference), "attention" (equation 4), or a
            fused kernel, "numba" (CPU) or "triton" (GPU), which gives way to attention for what it
            does not take; "auto" is the fastest that takes the input and, on the machine at hand,
            computes a small problem right.

    Inputs: ``input, hx``
        - input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) unbatched, or a
          ``PackedSequence``.
        - hx: a ``FastWeightsState``; or a tensor alone, the hidden vector as ``nn.RNN`` takes it,
          with an empty memory; or None for zeros; or a pair of the hidden vector and A as one
          tensor. D is 2 when bidirectional, else 1. hidden (D·num_layers, B, H), A
          (D·num_layers, B, H, H); unbatched without B.

    Outputs: ``output, state``
        - output: the last layer's h(t) at every step, (T, B, D·H), in the input's form.
        - state: the ``FastWeightsState`` after the last step of each sequence, named tuples of
          tensors. Where code for ``nn.RNN`` computes with ``h``, this has ``state.hidden``; what is
          handed to the next call is the state as a whole, or its ``detach()``. A is
          ``state.memory.matrix()``. ``state.reset(ended)`` has sequences begin anew,
          ``FastWeightsState.cat(states)`` joins batches, whatever their ages.

    Under autocast, outputs and states keep the dtype of the parameters.

    Parameters have ``nn.RNN``'s names, ``weight_ih_l0`` (C), ``weight_hh_l0`` (W), ``bias_ih_l0``,
    ``bias_hh_l0``, and ``norm_weight_l0``, ``norm_bias_l0``, ``read_weight_l0`` (w), with the
    suffix ``_reverse`` for the reverse direction. The constants λ, η, S, f and the boundary can be
    set later, by name or all together as ``rule``; what parameters were made by cannot. They are no
    part of the ``state_dict``: make the layer that loads one with the same arguments.

    Raises:
        ValueError: an argument out of range, or an input or state of a wrong shape, device or
            dtype.

    Example::

        >>> layer = FastWeightsRNN(10, 20)
        >>> output, state = layer(torch.randn(5, 3, 10))
        >>> output.shape, state.hidden.shape, state.memory.matrix().shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]), torch.Size([1, 3, 20, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device=None,
        dtype=None,
        *,
        decay: float = 0.95,
        fast_lr: float = 0.5,
        inner_steps: int = 1,
        layer_norm: bool = True,
        boundary: str = "sustained",
        inner_start: str = "candidate",
        read_gain: str = "unit",
        backend: str = "auto",
    ):
        rule = Rule(decay, fast_lr, inner_steps, nonlinearity, boundary, inner_start)
        super().__init__(input_size, hidden_size, bias, layer_norm, read_gain, backend, rule)
        if not isinstance(num_layers, Integral) or num_layers < 1:
            raise ValueError(
                f"num_layers must be an integer of 1 or more, got {num_layers!r}; "
                "stack at least one"
            )
        if not isinstance(dropout, Real) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(
                f"dropout must be a probability in [0, 1], got {dropout}; 0 turns it off"
            )
        if dropout and num_layers == 1:
            warnings.warn(
                "dropout acts between layers, so it does nothing with num_layers=1", stacklevel=2
            )
        self._num_layers, self._bidirectional = num_layers, bidirectional
        self.batch_first = batch_first
        self.dropout = float(dropout)
        width = hidden_size * len(self._directions)
        for layer in range(num_layers):
            for direction in self._directions:
                self._add_parameters(
                    f"_l{layer}{direction}",
                    width if layer else input_size,
                    {"device": device, "dtype": dtype},
                )
        self.reset_parameters()

    weight_hh_l0: Tensor
    num_layers = _fixed("num_layers")
    bidirectional = _fixed("bidirectional")

    @property
    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters, one list per layer and direction, as ``nn.RNN`` gives them."""
        return [[getattr(self, name) for name in names if name] for names in self._names.values()]

    def flatten_parameters(self) -> None:
        """Does nothing; here so that code written for ``nn.RNN`` runs unchanged."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: FastWeightsState | Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, FastWeightsState]:
        _refuse_reentrant_checkpoint()
        sequence, lengths, batched = self._time_first(input)
        hidden, memory = self._starting_state(hx, sequence, batched)
        hiddens, memories = [], []
        for layer in range(self.num_layers):
            if layer:
                sequence = F.dropout(sequence, self.dropout, self.training)
            outputs = []
            for direction in self._directions:
                k, suffix = len(hiddens), f"_l{layer}{direction}"
                output, last, written = self._recurrence(
                    _reversed(sequence, lengths) if direction else sequence,
                    suffix,
                    None if hidden is None else hidden[k],
                    _of_layer(memory, k),
                    lengths,
                )
                outputs.append(_reversed(output, lengths) if direction else output)
                hiddens.append(last)
                memories.append(written)
            sequence = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        if len(hiddens) == 1:
            state = FastWeightsState(hiddens[0], memories[0])
        else:
            parts = (torch.cat(parts) for parts in zip(*memories, strict=True))
            state = FastWeightsState(torch.cat(hiddens), FastMemory(*parts))
        if not batched:
            state = state.map(lambda part: part.squeeze(1))
        return self._like_input(sequence, input, lengths), state

    def _time_first(self, input) -> tuple[Tensor, Tensor | None, bool]:
        """Any input form as (T, B, I), with the lengths of a packed one, and whether it has B."""
        if isinstance(input, PackedSequence):
            sequence, lengths = pad_packed_sequence(input)
            self._check_input(sequence, self.weight_hh_l0, (2, 3))
            return sequence, lengths.to(sequence.device), True
        self._check_input(input, self.weight_hh_l0, (2, 3))
        batched = input.dim() == 3
        sequence = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            sequence = sequence.transpose(0, 1)
        if sequence.shape[0] == 0:
            raise ValueError(
                f"{type(self).__name__} takes sequences of 1 step or more, got an input of shape "
                f"{tuple(input.shape)}; leave empty sequences out"
            )
        return sequence, None, batched

    def _like_input(self, output: Tensor, input, lengths):
        """The output (T, B, ·) in the form of the input."""
        if isinstance(input, PackedSequence):
            order = input.sorted_indices
            if order is not None:
                output, lengths = output[:, order], lengths[order]
            steps = torch.arange(output.shape[0], device=output.device).unsqueeze(-1)
            return input._replace(data=output[steps < lengths])
        if input.dim() == 2:
            return output.squeeze(1)
        return output.transpose(0, 1) if self.batch_first else output

    def _starting_state(
        self, hx, sequence: Tensor, batched: bool
    ) -> tuple[Tensor | None, FastMemory | None]:
        """The given state, batched: hidden (D·num_layers, B, H), and the memory; None for zeros."""
        batch = sequence.shape[1:2] if batched else ()
        shape = (len(self._names), *batch, self.hidden_size)
        hidden, memory = self._check_state(hx, shape, self.weight_hh_l0)
        if batched or hidden is None:
            return hidden, memory
        return hidden.unsqueeze(1), memory and FastMemory(*(part.unsqueeze(1) for part in memory))

    def form(
        self, input: Tensor | PackedSequence, hx: FastWeightsState | Tensor | None = None
    ) -> str:
        """How the first layer computes this input: what ``backend`` comes to, never "auto"."""
        sequence, lengths, batched = self._time_first(input)
        _, slow = self._weights("_l0")
        hidden, memory = self._first_state(hx, sequence, batched, slow)
        if lengths is None and sequence.shape[0] == 1:
            step = self._step(sequence[0], hidden, memory, "_l0")
            if step and steps.reach(step, self.rule, self._read_scale):
                return "numba"
        return kernels.choose(self.backend, sequence, hidden, memory, slow, self.rule, lengths)

    def _first_state(
        self, hx, sequence: Tensor, batched: bool, slow: SlowWeights
    ) -> tuple[Tensor, FastMemory | None]:
        """The first layer's: hidden (B, H), and the memory, None if empty."""
        hidden, memory = self._starting_state(hx, sequence, batched)
        if hidden is None:
            return slow.weight_hh.new_zeros(sequence.shape[1], self.hidden_size), None
        return hidden[0], _of_layer(memory, 0)

    def attention(self, input: Tensor, hx: FastWeightsState | Tensor | None = None) -> Tensor:
        """How strongly each step of the first layer attends to each earlier step.

        Entry (b, t, τ) is η λ^(t-1-τ) [h(τ)·h_S-1(t)], the factor of h(τ) in equation 4 at the
        last inner step of step t, from 0 as a step counts; it is 0 for τ ≥ t and with S = 0. What
        was found is then weighed by g. Takes a tensor in the layer's input form, not a packed
        sequence. Returns (B, T, T), or (T, T) unbatched.
        """
        if isinstance(input, PackedSequence):
            raise ValueError("attention takes a tensor, got a PackedSequence; pad it first")
        rule, (inputs, slow) = self.rule, self._weights("_l0")
        sequence, _, batched = self._time_first(input)
        hidden, memory = self._first_state(hx, sequence, batched, slow)
        before = None if memory is None else memory.matrix()
        states, *_ = kernels.recurrence(
            sequence, inputs, hidden, memory, slow, rule, backend=self.backend
        )
        # All states are known by now, so one pass over all steps at once repeats the inner loop.
        previous = torch.cat([hidden.unsqueeze(0), states[:-1]])
        steps = torch.arange(states.shape[0], device=states.device)
        factors = equations.strengths(steps.unsqueeze(1) - 1 - steps, rule, states.dtype)
        decays = equations.decays(steps, rule, states.dtype).view(-1, 1, 1)

        def weigh(query: Tensor) -> Tensor:
            return torch.einsum("tbh,sbh,ts->bts", query, states, factors)

        def read(query: Tensor) -> Tensor:
            found = torch.einsum("bts,sbh->tbh", weigh(query), states)
            return found if before is None else found + decays * equations.read(before, query)

        bracket = equations.sustained_input(inputs.drive(sequence), previous, slow)
        _, query = equations.inner_loop(bracket, previous, read, slow, rule)
        weights = weigh(query) * int(rule.inner_steps > 0)
        return weights if batched else weights.squeeze(0)


def _of_layer(memory: FastMemory | None, k: int) -> FastMemory | None:
    """The memory of one layer and direction."""
    return None if memory is None else FastMemory(*(part[k] for part in memory))


def _in_front(memory: FastMemory) -> FastMemory:
    """That of a layer, as it is in the state: with a dimension for all layers in front."""
    return FastMemory(*[part.unsqueeze(0) for part in memory])


def _reversed(sequence: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence of (T, B, ·) from its own last step to its first; padding stays behind it."""
    if lengths is None:
        return sequence.flip(0)
    steps = torch.arange(sequence.shape[0], device=sequence.device).unsqueeze(-1)
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return sequence.gather(0, source.unsqueeze(-1).expand_as(sequence))


def _refuse_reentrant_checkpoint() -> None:
    """Raises RuntimeError when re-entrant checkpointing calls the layer or cell itself.

    It keeps the gradients of tensors that it is given back, and drops those of what lies deeper,
    as a state's tensors do, without a word. It runs without gradients, so nobody else waits.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    frame = inspect.currentframe()
    module_file = nn.Module.__call__.__code__.co_filename
    while frame and frame.f_code.co_filename in (__file__, module_file):
        frame = frame.f_back
    if frame and frame.f_code is CheckpointFunction.forward.__code__:
        raise RuntimeError(
            "checkpoint(layer, …, use_reentrant=True) would drop the gradients of the state, got a "
            "fast-weights layer called by it; use use_reentrant=False, or checkpoint a function "
            "that returns tensors alone"
        )


class FastWeightsRNNCell(_FastWeightsModule):
    """One step of ``FastWeightsRNN``: a drop-in for ``torch.nn.RNNCell`` with a memory.

    Arguments are those of ``nn.RNNCell`` and, as in ``FastWeightsRNN``, ``decay``, ``fast_lr``,
    ``inner_steps``, ``layer_norm``, ``boundary``, ``inner_start``, ``read_gain`` and ``backend``.

    Inputs: ``input, hx``
        - input: (B, I), or (I) unbatched.
        - hx: a ``FastWeightsState`` whose hidden is (B, H), a hidden tensor alone, a pair of that
          and A as one tensor, (B, H, H), or None for zeros; unbatched without B.

    Returns the next ``FastWeightsState``; its ``hidden`` is the output. (``nn.LSTMCell`` does the
    same: a cell whose state is more than its output returns the state.)

    Parameters: ``weight_ih`` (C), ``weight_hh`` (W), ``bias_ih``, ``bias_hh``, ``norm_weight``,
    ``norm_bias``, ``read_weight`` (w).

    To go on step by step with what a ``FastWeightsRNN`` of one layer has learned, and where it is::

        cell = FastWeightsRNNCell(…)  # the same sizes, read_gain and layer_norm
        weights = layer.state_dict().items()
        cell.load_state_dict({name.removesuffix("_l0"): value for name, value in weights})
        cell.rule = layer.rule
        state = state.map(lambda part: part[0])  # the layer's state has num_layers in front

    Raises:
        ValueError: an argument out of range, or an input or state of a wrong shape, device or
            dtype.
    """

    weight_hh: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device=None,
        dtype=None,
        *,
        decay: float = 0.95,
        fast_lr: float = 0.5,
        inner_steps: int = 1,
        layer_norm: bool = True,
        boundary: str = "sustained",
        inner_start: str = "candidate",
        read_gain: str = "unit",
        backend: str = "auto",
    ):
        rule = Rule(decay, fast_lr, inner_steps, nonlinearity, boundary, inner_start)
        super().__init__(input_size, hidden_size, bias, layer_norm, read_gain, backend, rule)
        self._add_parameters("", input_size, {"device": device, "dtype": dtype})
        self.reset_parameters()

    def forward(
        self, input: Tensor, hx: FastWeightsState | Tensor | None = None
    ) -> FastWeightsState:
        _refuse_reentrant_checkpoint()
        if hx is None or type(hx) is FastWeightsState and type(hx[1]) is FastMemory:
            # The loops ask all that is asked below, and take less time than that.
            step = self._step(input, *(hx or (None, None)), "")
            if found := step and steps.run(step, self.rule, self._read_scale):
                return FastWeightsState(*found)
        self._check_input(input, self.weight_hh, (1, 2))
        shape = (*input.shape[:-1], self.hidden_size)
        hidden, memory = self._check_state(hx, shape, self.weight_hh)
        if input.dim() == 1:
            hidden = None if hidden is None else hidden.unsqueeze(0)
            memory = memory and FastMemory(*(part.unsqueeze(0) for part in memory))
        sequence = input.view(1, -1, self.input_size)
        _, hidden, memory = self._recurrence(sequence, "", hidden, memory)
        state = FastWeightsState(hidden, memory).map(lambda part: part.squeeze(0))
        return state if input.dim() == 2 else state.map(lambda part: part.squeeze(0))
