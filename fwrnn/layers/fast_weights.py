"""The fast-weights recurrent layer, used like ``torch.nn.RNN`` and ``torch.nn.RNNCell``.

The equations are in ``fwrnn.layers.equations``, the ways to compute a whole sequence of them in
``fwrnn.layers.kernels``; this file holds the modules, their parameters and their input forms.
"""

import functools
import inspect
import warnings
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from fwrnn.layers import equations, kernels
from fwrnn.layers.equations import Rule, SlowWeights
from fwrnn.layers.initialization import (
    FAST_WEIGHTS_SCALE,
    scaled_identity_,
    uniform_outgoing_,
)
from fwrnn.layers.state import FastWeightsState


class _FastWeightsModule(nn.Module):
    """What the layer and the cell share: the constants, and how their parameters start."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        layer_norm: bool,
        backend: str,
        rule: Rule,
    ):
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if not isinstance(size, Integral) or size < 1:
                raise ValueError(
                    f"{name} must be an integer of 1 or more, got {size!r}; give a positive size"
                )
        kernels.check(backend)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.layer_norm = layer_norm
        self.backend = backend
        self.decay = rule.decay
        self.fast_lr = rule.fast_lr
        self.inner_steps = rule.inner_steps
        self.nonlinearity = rule.nonlinearity
        self.boundary = rule.boundary
        self.inner_start = rule.inner_start

    def _rule(self) -> Rule:
        """The constants as they are now, checked: attributes may be changed between calls."""
        return _rule(
            self.decay,
            self.fast_lr,
            self.inner_steps,
            self.nonlinearity,
            self.boundary,
            self.inner_start,
        )

    def _add_parameters(self, suffix: str, input_size: int, factory: dict) -> None:
        hidden = self.hidden_size
        shapes = {"weight_ih": (hidden, input_size), "weight_hh": (hidden, hidden)}
        if self.bias:
            shapes |= {"bias_ih": (hidden,), "bias_hh": (hidden,)}
        if self.layer_norm:
            shapes |= {"norm_weight": (hidden,), "norm_bias": (hidden,)}
        for name, shape in shapes.items():
            self.register_parameter(name + suffix, nn.Parameter(torch.empty(shape, **factory)))

    def reset_parameters(self) -> None:
        """Draw all parameters anew: W = 0.05·I, C and biases uniform in ±1/√H, LN gain 1, bias 0.

        Source: section 4 of the paper; see ``fwrnn.layers.initialization``.
        """
        for name, parameter in self.named_parameters():
            if name.startswith("weight_hh"):
                scaled_identity_(parameter, FAST_WEIGHTS_SCALE)
            elif name.startswith("norm_weight"):
                nn.init.ones_(parameter)
            elif name.startswith("norm_bias"):
                nn.init.zeros_(parameter)
            else:
                uniform_outgoing_(parameter)

    def _drive(self, sequence: Tensor, suffix: str) -> Tensor:
        """C x(t) + biases of all steps in one matrix product. (T, B, I) → (T, B, H)."""
        bias = None
        if self.bias:
            bias = getattr(self, "bias_ih" + suffix) + getattr(self, "bias_hh" + suffix)
        return F.linear(sequence, getattr(self, "weight_ih" + suffix), bias)

    def _slow_weights(self, suffix: str) -> SlowWeights:
        return SlowWeights(
            getattr(self, "weight_hh" + suffix),
            getattr(self, "norm_weight" + suffix, None),
            getattr(self, "norm_bias" + suffix, None),
        )

    def _check_input(self, input: Tensor, dims: tuple[int, int]) -> None:
        name = type(self).__name__
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

    def _check_state(
        self, hx: "FastWeightsState | Tensor | tuple | None", shape: tuple[int, ...]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The hidden vector and the memory of a given state, ``None`` for what was not given."""
        if hx is None:
            return None, None
        pair = isinstance(hx, FastWeightsState | tuple | list) and len(hx) == 2
        if not isinstance(hx, Tensor) and not pair:
            raise ValueError(
                f"{type(self).__name__} takes a state of two tensors, hidden and memory, or the "
                f"hidden tensor alone, got {type(hx).__name__}; pass what it returned"
            )
        if isinstance(hx, FastWeightsState) and hx.unmade is not None:
            hidden, memory = hx.hidden, hx.unmade  # which going on may never need as a matrix
        else:
            hidden, memory = (hx, None) if isinstance(hx, Tensor) else hx
        expected = {"hidden": shape, "memory": (*shape, self.hidden_size)}
        for (name, want), tensor in zip(expected.items(), (hidden, memory), strict=True):
            if isinstance(tensor, Tensor) and tuple(tensor.shape) != want:
                raise ValueError(
                    f"{type(self).__name__} takes a state whose {name} has shape {want}, got "
                    f"{tuple(tensor.shape)}; start from None or from a state for the same batch"
                )
        return hidden, memory

    def extra_repr(self) -> str:
        signature = inspect.signature(type(self)).parameters
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, parameter in signature.items()
            if hasattr(self, name) and getattr(self, name) != parameter.default
        ]
        return ", ".join(changed)


_rule = functools.lru_cache(maxsize=64, typed=True)(Rule)


class FastWeightsRNN(_FastWeightsModule):
    r"""A drop-in for ``torch.nn.RNN`` with a fast associative memory in every layer.

    At each step, equations 1, 2 and 5 of arXiv:1610.06258v3:

    .. code-block:: text

        A(t)       = λ A(t-1) + η h(t) h(t)ᵀ
        h_0(t+1)   = f(W h(t) + C x(t+1))
        h_s+1(t+1) = f(LN[W h(t) + C x(t+1) + A(t) h_s(t+1)]),  s = 0 … S-1
        h(t+1)     = h_S(t+1)

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
        inner_start: "candidate", h_0 = f(W h + C x) (the paper's), or "previous", h_0 = h(t),
            which folds the memory into the recurrent matrix and takes the added depth away.
        backend: "auto", "matrix" (A as a matrix, the reference), "attention" (equation 4), or a
            fused kernel, "numba" (CPU) or "triton" (GPU), which gives way to attention where it
            cannot run; "auto" is the fastest that can.

    Inputs: ``input, hx``
        - input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) unbatched, or a
          ``PackedSequence``.
        - hx: a ``FastWeightsState``; or a tensor alone, the hidden vector as ``nn.RNN`` takes it,
          with an empty memory; or None for zeros. D is 2 when bidirectional, else 1.
          hidden (D·num_layers, B, H), memory (D·num_layers, B, H, H); unbatched without B.

    Outputs: ``output, state``
        - output: the last layer's h(t) at every step, (T, B, D·H), in the input's form.
        - state: the ``FastWeightsState`` after the last step of each sequence. Where code for
          ``nn.RNN`` has ``h[-1]``, the last layer's state is ``state.hidden[-1]``.

    Under autocast, outputs and states keep the dtype of the parameters.

    Parameters have ``nn.RNN``'s names, ``weight_ih_l0`` (C), ``weight_hh_l0`` (W), ``bias_ih_l0``,
    ``bias_hh_l0``, and ``norm_weight_l0``, ``norm_bias_l0``, with the suffix ``_reverse`` for the
    reverse direction.

    Raises:
        ValueError: an argument out of range, or an input or state of a wrong shape.

    Example::

        >>> layer = FastWeightsRNN(10, 20, nonlinearity="relu")
        >>> output, state = layer(torch.randn(5, 3, 10))
        >>> output.shape, state.hidden.shape, state.memory.shape
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
        backend: str = "auto",
    ):
        rule = Rule(decay, fast_lr, inner_steps, nonlinearity, boundary, inner_start)
        super().__init__(input_size, hidden_size, bias, layer_norm, backend, rule)
        if not isinstance(num_layers, Integral) or num_layers < 1:
            raise ValueError(
                f"num_layers must be an integer of 1 or more, got {num_layers!r}; "
                "stack at least one"
            )
        if not isinstance(dropout, Real) or not 0 <= dropout <= 1:
            raise ValueError(
                f"dropout must be a probability in [0, 1], got {dropout}; 0 turns it off"
            )
        if dropout and num_layers == 1:
            warnings.warn(
                "dropout acts between layers, so it does nothing with num_layers=1", stacklevel=2
            )
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        width = hidden_size * len(self._directions)
        for layer in range(num_layers):
            for direction in self._directions:
                self._add_parameters(
                    f"_l{layer}{direction}",
                    width if layer else input_size,
                    {"device": device, "dtype": dtype},
                )
        self.reset_parameters()

    @property
    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters, one list per layer and direction, as ``nn.RNN`` gives them."""
        return [
            [p for name, p in self.named_parameters() if name.endswith(f"_l{layer}{direction}")]
            for layer in range(self.num_layers)
            for direction in self._directions
        ]

    def flatten_parameters(self) -> None:
        """Does nothing; here so that code written for ``nn.RNN`` runs unchanged."""

    def initial_state(self, batch_size: int | None = None) -> FastWeightsState:
        """The state before the first step, all zeros; unbatched when ``batch_size`` is None."""
        like, batch = self.weight_hh_l0, () if batch_size is None else (batch_size,)
        shape = (self.num_layers * len(self._directions), *batch, self.hidden_size)
        return FastWeightsState(like.new_zeros(shape), like.new_zeros(*shape, self.hidden_size))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: FastWeightsState | Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, FastWeightsState]:
        sequence, lengths, batched = self._time_first(input)
        hidden, memory = self._starting_state(hx, sequence, batched)
        states = []
        for layer in range(self.num_layers):
            if layer:
                sequence = F.dropout(sequence, self.dropout, self.training)
            outputs = []
            for direction in self._directions:
                k = len(states)
                output, state = self._run(
                    _reversed(sequence, lengths) if direction else sequence,
                    hidden[k],
                    None if memory is None else memory[k],
                    f"_l{layer}{direction}",
                    lengths,
                )
                outputs.append(_reversed(output, lengths) if direction else output)
                states.append(state)
            sequence = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        hiddens, memories = zip(*states, strict=True)
        # A copy: callers may reset their state in place, and autograd keeps the last output.
        state = FastWeightsState(torch.stack(hiddens), _Memories(memories))
        return self._like_input(sequence, input, lengths), (
            state if batched else state.index_batch(0)
        )

    def _run(self, sequence, hidden, memory, suffix, lengths):
        output, hidden, memory = kernels.recurrence(
            self._drive(sequence, suffix),
            hidden,
            memory,
            self._slow_weights(suffix),
            self._rule(),
            lengths,
            self.backend,
        )
        return output, (hidden, memory)

    def _time_first(self, input) -> tuple[Tensor, Tensor | None, bool]:
        """Any input form as (T, B, I), with the lengths of a packed one, and whether it has B."""
        if isinstance(input, PackedSequence):
            sequence, lengths = pad_packed_sequence(input)
            self._check_input(sequence, (2, 3))
            return sequence, lengths.to(sequence.device), True
        self._check_input(input, (2, 3))
        batched = input.dim() == 3
        sequence = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            sequence = sequence.transpose(0, 1)
        if len(sequence) == 0:
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
            steps = torch.arange(len(output), device=output.device).unsqueeze(-1)
            return input._replace(data=output[steps < lengths])
        if input.dim() == 2:
            return output.squeeze(1)
        return output.transpose(0, 1) if self.batch_first else output

    def _starting_state(self, hx, sequence: Tensor, batched: bool):
        layers, batch = self.num_layers * len(self._directions), sequence.shape[1]
        shape = (layers, *((batch,) if batched else ()), self.hidden_size)
        hidden, memory = self._check_state(hx, shape)
        if hidden is None:
            hidden = self.weight_hh_l0.new_zeros(shape, device=sequence.device)
        if not batched:
            hidden = hidden.unsqueeze(1)
            memory = memory() if callable(memory) else memory
            memory = None if memory is None else memory.unsqueeze(1)
        return hidden, memory

    def form(
        self, input: Tensor | PackedSequence, hx: FastWeightsState | Tensor | None = None
    ) -> str:
        """How the first layer computes this input: what ``backend`` comes to, never "auto"."""
        sequence, lengths, batched = self._time_first(input)
        hidden, memory = self._starting_state(hx, sequence, batched)
        memory = None if memory is None else memory[0]
        with torch.no_grad():
            drive = self._drive(sequence, "_l0")
            memory = kernels.usable(memory, drive, self._rule(), lengths, self.backend)
        slow = self._slow_weights("_l0")
        return kernels.choose(self.backend, drive, hidden[0], memory, slow, self._rule())

    def attention(self, input: Tensor, hx: FastWeightsState | Tensor | None = None) -> Tensor:
        """How strongly each step of the first layer attends to each earlier step.

        Entry (b, t, τ) is η λ^(t-1-τ) [h(τ)·h_S-1(t)], the factor of h(τ) in equation 4 at the
        last inner step of step t, from 0 as a step counts; it is 0 for τ ≥ t and with S = 0.
        Takes a tensor in the layer's input form, not a packed sequence. Returns (B, T, T), or
        (T, T) unbatched.
        """
        if isinstance(input, PackedSequence):
            raise ValueError("attention takes a tensor, got a PackedSequence; pad it first")
        rule, slow = self._rule(), self._slow_weights("_l0")
        sequence, _, batched = self._time_first(input)
        hidden, memory = self._starting_state(hx, sequence, batched)
        memory = None if memory is None else memory[0]
        memory = memory() if callable(memory) else memory
        drive = self._drive(sequence, "_l0")
        states, *_ = kernels.recurrence(drive, hidden[0], memory, slow, rule, backend=self.backend)
        # All states are known by now, so one pass over all steps at once repeats the inner loop.
        previous = torch.cat([hidden[:1], states[:-1]])
        steps = torch.arange(len(states), device=states.device)
        factors = equations.strengths(steps.unsqueeze(1) - 1 - steps, rule, states.dtype)
        decays = equations.decays(steps, rule, states.dtype).view(-1, 1, 1)

        def weigh(query: Tensor) -> Tensor:
            return torch.einsum("tbh,sbh,ts->bts", query, states, factors)

        def read(query: Tensor) -> Tensor:
            found = torch.einsum("bts,sbh->tbh", weigh(query), states)
            return found if memory is None else found + decays * equations.read(memory, query)

        bracket = equations.sustained_input(drive, previous, slow)
        _, query = equations.inner_loop(bracket, previous, read, slow, rule)
        weights = weigh(query) * (rule.inner_steps > 0)
        return weights if batched else weights.squeeze(0)


class _Memories(tuple):
    """What makes the memory of each layer and direction; calling it makes all in one tensor."""

    def __call__(self) -> Tensor:
        memories = [make() for make in self]
        return torch.stack(memories) if len(memories) > 1 else memories[0].unsqueeze(0)


def _reversed(sequence: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence of (T, B, ·) from its own last step to its first; padding stays behind it."""
    if lengths is None:
        return sequence.flip(0)
    steps = torch.arange(len(sequence), device=sequence.device).unsqueeze(-1)
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return sequence.gather(0, source.unsqueeze(-1).expand_as(sequence))


class FastWeightsRNNCell(_FastWeightsModule):
    """One step of ``FastWeightsRNN``: a drop-in for ``torch.nn.RNNCell`` with a memory.

    Arguments are those of ``nn.RNNCell`` and, as in ``FastWeightsRNN``, ``decay``, ``fast_lr``,
    ``inner_steps``, ``layer_norm``, ``boundary``, ``inner_start`` and ``backend``.

    Inputs: ``input, hx``
        - input: (B, I), or (I) unbatched.
        - hx: a ``FastWeightsState`` of hidden (B, H) and memory (B, H, H), a hidden tensor alone,
          or None for zeros; unbatched without B.

    Returns the next ``FastWeightsState``; its ``hidden`` is the output. (``nn.LSTMCell`` does the
    same: a cell whose state is more than its output returns the state.)

    Parameters: ``weight_ih`` (C), ``weight_hh`` (W), ``bias_ih``, ``bias_hh``, ``norm_weight``,
    ``norm_bias``.

    Raises:
        ValueError: an argument out of range, or an input or state of a wrong shape.
    """

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
        backend: str = "auto",
    ):
        rule = Rule(decay, fast_lr, inner_steps, nonlinearity, boundary, inner_start)
        super().__init__(input_size, hidden_size, bias, layer_norm, backend, rule)
        self._add_parameters("", input_size, {"device": device, "dtype": dtype})
        self.reset_parameters()

    def initial_state(self, batch_size: int | None = None) -> FastWeightsState:
        """The state before the first step, all zeros; unbatched when ``batch_size`` is None."""
        shape = (*(() if batch_size is None else (batch_size,)), self.hidden_size)
        like = self.weight_hh
        return FastWeightsState(like.new_zeros(shape), like.new_zeros(*shape, self.hidden_size))

    def forward(self, input: Tensor, hx: FastWeightsState | Tensor | None = None):
        self._check_input(input, (1, 2))
        shape = (*input.shape[:-1], self.hidden_size)
        hidden, memory = self._check_state(hx, shape)
        if hidden is None:
            hidden = self.weight_hh.new_zeros(shape, device=input.device)
        if input.dim() == 1:
            hidden = hidden.unsqueeze(0)
            memory = memory() if callable(memory) else memory
            memory = None if memory is None else memory.unsqueeze(0)
        _, hidden, memory = kernels.recurrence(
            self._drive(input.view(1, -1, self.input_size), ""),
            hidden,
            memory,
            self._slow_weights(""),
            self._rule(),
            backend=self.backend,
        )
        state = FastWeightsState(hidden.clone(), memory)  # which callers may change in place
        return state.index_batch(0) if input.dim() == 1 else state
