"""Whole sequences on the CPU in eager programs, from x to the state: around ``cpu_loops``.

Of small layers most of the time is Python's and autograd's, not the loops'. So this asks of every
tensor what it must be, by the cheapest questions there are, and is one node of the graph, whose
two calls make the products before and after the recurrence as well. Whatever it does not take, from
other devices to tensors that somebody traces, is left to ``operators``.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fwrnn.layers import equations
from fwrnn.layers.equations import InputWeights, SlowWeights
from fwrnn.layers.kernels import cpu, operators, trial
from fwrnn.layers.memory import FastMemory
from fwrnn.rule import Rule

# Rows from which on the loops multiply faster than PyTorch does, and products of so few numbers
# that a call of PyTorch's takes longer than they do.
FEWEST, SMALL = 256, 1 << 18


class Sequences(NamedTuple):
    """What a pass over sequences is made of; what there is none of is None.

    ``input`` (T, B, I), ``hidden`` (B, H), ``memory`` as a matrix (B, H, H), and the parameters as
    a module has them: ``read_gain`` (H) or (1), before it is multiplied by the scale.
    """

    input: Any  # of tensors, or in a plan of their shapes
    hidden: Any
    memory: Any
    weight_ih: Any
    weight_hh: Any
    bias_ih: Any
    bias_hh: Any
    norm_weight: Any
    norm_bias: Any
    read_gain: Any


def run(
    parts: Sequences, rule: Rule, scale: float, lengths: Tensor | None, tried: bool
) -> tuple[Tensor, Tensor, FastMemory] | None:
    """h(1) … h(T), (T, B, H); the last, (1, B, H); and the memory, which has a 1 in front, too.

    None where the loops do not reach, or are to be ``tried`` first and fail. ``scale`` is what
    ``read_gain`` is multiplied by; ``lengths`` are as ``kernels.recurrence`` has them.
    """
    if not rule.inner_steps:  # nothing is normalised or read
        parts = parts._replace(norm_weight=None, norm_bias=None, read_gain=None)
    try:
        if (call := _call_for(parts, rule, scale, lengths, tried)) is None:
            return None
        parts = call.parts
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in parts):
            states, last, written = _Pass.apply(*parts, call)
        else:
            states, last, written, *_ = _forward(call, False)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # what PyTorch says, at once, of tensors that have no address
        return None
    if parts.memory is None:
        folded = parts.input.new_empty(1, written.shape[1], 0, 0)
    else:
        folded = parts.memory.unsqueeze(0)
    return states, last, FastMemory(written, call.left, folded, call.fade)


class _Call(NamedTuple):
    """A pass that the loops take: its plan, its tensors, contiguous, and their addresses.

    And what will be ``left`` of its states, (1, B, T), and of what was before, ``fade`` (1, B).
    """

    plan: "_Plan"
    parts: Sequences
    addresses: list[int]
    lengths: Tensor | None
    left: Tensor
    fade: Tensor


def _call_for(
    parts: Sequences, rule: Rule, scale: float, lengths: Tensor | None, tried: bool
) -> _Call | None:
    """None unless all are plain tensors of one kind and fitting shapes, and nobody looks."""
    if (plain := operators.plain(parts)) is None:
        return None
    parts, shapes, addresses = plain
    plan = _plan(rule, scale, parts.input.dtype, shapes, torch.get_num_threads(), tried)
    if plan is None:
        return None
    steps, batch, _ = shapes[0]
    if lengths is None:  # the loops fill them
        new = parts.input.new_empty
        return _Call(plan, parts, addresses, None, new(1, batch, steps), new(1, batch))
    ages = lengths.unsqueeze(-1) - torch.arange(1, steps + 1, device="cpu")
    left = equations.strengths(ages, rule, parts.input.dtype).unsqueeze(0)
    fade = equations.decays(lengths, rule, parts.input.dtype).unsqueeze(0)
    return _Call(plan, parts, addresses, lengths, left, fade)


class _Plan:
    """What all passes of the same shapes and settings have in common.

    Raises ValueError for shapes that are not those of ``Sequences``.
    """

    def __init__(self, rule: Rule, scale: float, dtype: torch.dtype, shapes: tuple, merges: bool):
        shape = Sequences(*shapes)
        (steps, batch, inputs), (units, _) = shape.input, shape.weight_hh
        vector = (units,)
        wanted = Sequences(
            (steps, batch, inputs), (batch, units), (batch, units, units), (units, inputs),
            (units, units), *(vector,) * 5,
        )  # fmt: skip
        if shape.read_gain == (1,):
            wanted = wanted._replace(read_gain=(1,))
        fitting = tuple(x and want for x, want in zip(shape, wanted, strict=True))
        one_norm = (shape.norm_weight is None) != (shape.norm_bias is None)
        no_weight = shape.weight_ih is None
        if shapes != fitting or one_norm or no_weight or not steps * batch * inputs * units:
            raise ValueError(f"no pass has these shapes: {shapes}")
        self.rule, self.scale, self.units, self.shapes = rule, scale, units, shapes
        self.one_gain = shape.read_gain == (1,)
        rows = steps * batch
        self.merges = merges and (rows >= FEWEST or rows * inputs * units <= SMALL)
        has = shape.memory is not None, shape.norm_weight is not None, shape.read_gain is not None
        self._key = (
            steps, batch, units, dtype, *has, rule, inputs * self.merges, scale, self.one_gain
        )  # fmt: skip
        self.loops = cpu.plan_for(*self._key)

    def loops_for(self, saved: Tensor) -> cpu.Plan:
        """Those by which it was saved: a checkpoint's may be of another number of threads."""
        if saved.shape[0] == self.loops.saved_sizes[True]:
            return self.loops
        return cpu.plan_for(*self._key, saved=saved.shape[0])


@functools.lru_cache(maxsize=1024)
def _plan(
    rule: Rule, scale: float, dtype: torch.dtype, shapes: tuple, threads: int, tried: bool
) -> _Plan | None:
    """The plan for so many threads, made once, and after the loops have passed their trials."""
    if dtype not in cpu.DTYPES or rule.inner_start == "normalised" or not cpu.is_installed():
        return None
    device = torch.device("cpu")
    if tried and not operators.works("numba", device, dtype, ()):
        return None
    find_fault = functools.partial(_fault, dtype)
    merges = trial.passes("products", device, dtype, find_fault, "PyTorch's own take their place")
    try:
        return _Plan(rule, scale, dtype, shapes, merges)
    except (ValueError, TypeError):  # of another number of dimensions
        return None


def _fault(dtype: torch.dtype) -> str | None:
    """How a pass with its products differs from PyTorch's operations, at odd sizes."""
    inputs, units, rule, scale = 37, 11, Rule(0.9, 0.1), 2.0
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) / 4

    for batch in (3, 131):
        exact = Sequences(
            random(3, batch, inputs), random(batch, units), None, random(units, inputs),
            random(units, units), *(random(units) for _ in range(5)),
        )  # fmt: skip
        leaves = [x.requires_grad_() for x in exact if x is not None]
        wanted = _eager(rule, scale, None, *exact)
        grads = [random(*wanted[0].shape)]
        gradients = torch.autograd.grad(wanted, leaves, grads)
        parts = Sequences(*(x if x is None else x.detach().to(dtype) for x in exact))
        shapes = tuple(x if x is None else x.shape for x in parts)
        plan = _Plan(rule, scale, dtype, shapes, True)
        left = parts.input.new_empty(1, batch, 3)
        call = _Call(plan, parts, cpu.addresses(parts), None, left, left[..., 0].contiguous())
        with torch.no_grad():
            states, _, _, trail, saved = _forward(call, True)
            grad = grads[0].to(dtype)
            found = _backward(call, trail, saved, grad, [x is not None for x in parts])
        names = [name for name, x in zip(Sequences._fields, exact, strict=True) if x is not None]
        fault = trial.difference(
            ["h", *(f"the gradient of {name}" for name in names)],
            [states, *(x for x in found if x is not None)], [*wanted, *gradients], dtype,
        )  # fmt: skip
        if fault:
            return fault
    return None


def _forward(call: _Call, save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The states, the last, those written (1, B, T, H), h(0) … h(T), and what is saved.

    No two share storage that callers can see, so that they may be changed in place.
    """
    plan, parts, addresses, lengths, left, fade = call
    input, loops, units = parts.input, plan.loops, plan.units
    steps, batch, _ = input.shape
    states, trail = (cpu.empty(input, t, batch, units) for t in (steps, steps + 1))
    saved, last = cpu.empty(input, loops.saved_sizes[save]), input.new_empty(1, batch, units)
    if plan.merges:
        drive = cpu.empty(input, steps, batch, units)
    else:
        drive = InputWeights(parts.weight_ih, parts.bias_ih, parts.bias_hh).drive(input)
    left, fade = (left, fade) if lengths is None else (None, None)
    made = drive, loops.by_lane(lengths), last, left, fade, states, trail, saved
    loops.run(0, save, input, addresses + cpu.addresses(made))
    written = trail.as_strided(
        (1, batch, steps, units), (0, units, batch * units, 1), batch * units
    )
    return states, last, written, trail, saved


class _Pass(torch.autograd.Function):
    """A pass as one node of the graph."""

    @staticmethod
    def forward(ctx, *arguments):
        *_, call = arguments
        *results, trail, saved = _forward(call, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*call.parts, call.lengths, trail, saved)
        ctx.plan, ctx.addresses = call.plan, call.addresses
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads):
        *parts, lengths, trail, saved = ctx.saved_tensors  # unpacked once, as checkpoints insist
        parts, wanted = Sequences(*parts), ctx.needs_input_grad
        grad_states, *others = grads
        others = (None if grad is None else grad.squeeze(0) for grad in others)
        grad_states = operators.grad_of_states(trail, grad_states, *others)
        if grad_states is None:
            return (None,) * len(wanted)
        try:
            if not torch.is_grad_enabled() and not operators.is_observed(grad_states):
                call = _Pass._call_back(ctx, parts, lengths, trail)
                return *_backward(call, trail, saved, grad_states, wanted), None
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # gradients in a batch, as Jacobians ask for, have no addresses
            pass
        compute = functools.partial(_eager, ctx.plan.rule, ctx.plan.scale, lengths)
        return *operators.pulled_back(compute, parts, (grad_states,), wanted[:-1]), None

    @staticmethod
    def _call_back(ctx, parts: Sequences, lengths: Tensor | None, trail: Tensor) -> _Call:
        dtype = ctx.plan.loops.dtype
        found = operators.plain_again(parts, ctx.plan.shapes, ctx.addresses, dtype)
        if found is None or trail.dtype is not dtype:
            raise RuntimeError("not what the loops were called with")
        return _Call(ctx.plan, *found, lengths, trail, trail)


def _backward(
    call: _Call, trail: Tensor, saved: Tensor, grad_states: Tensor, wanted
) -> list[Tensor | None]:
    """The gradients of the parts of a pass that are ``wanted``, None of others."""
    plan, parts, addresses, lengths, *_ = call
    wanted, new = Sequences(*wanted[: len(parts)]), trail.new_empty
    loops, (steps, batch, units) = plan.loops_for(saved), grad_states.shape
    # That of a sum is one number, expanded.
    if grad_states.is_neg() or not grad_states.is_contiguous():
        grad_states = cpu.empty(trail, steps, batch, units).copy_(grad_states)
    grad_drive = cpu.empty(trail, steps, batch, units)
    grad_hidden = new(batch, units) if wanted.hidden else None
    grad_memory = None if parts.memory is None else cpu.empty(trail, batch, units, units)
    learned = parts.norm_weight, parts.norm_bias, parts.read_gain
    gains = [None if part is None else new(units) for part in learned]
    by_block = cpu.empty(trail, loops.blocks, len(learned), units)
    grad_input = None
    weights = (None,) * 4
    if plan.merges:
        grad_input = cpu.empty(trail, *parts.input.shape) if wanted.input else None
        weights = (
            cpu.empty(trail, *parts.weight_ih.shape), cpu.empty(trail, units, units),
            *(None if part is None else new(units) for part in (parts.bias_ih, parts.bias_hh)),
        )  # fmt: skip
    states = trail.contiguous(), saved.contiguous()
    made = None, loops.by_lane(lengths), None, None, None, None, *states
    grads = grad_states, grad_drive, grad_hidden, grad_memory, by_block, *gains, grad_input
    loops.run(1, True, trail, addresses + cpu.addresses(made), cpu.addresses((*grads, *weights)))
    if not plan.merges:
        grad_input, weights = _products(parts, wanted, trail, grad_drive)
    gain, shift, read_gain = gains
    if read_gain is not None and plan.one_gain:
        read_gain = read_gain.sum(0, keepdim=True)
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    return [
        grad_input, grad_hidden, grad_memory, weight_ih, weight_hh, bias_ih, bias_hh, gain, shift,
        read_gain,
    ]  # fmt: skip


def _products(
    parts: Sequences, wanted: Sequences, trail: Tensor, grad_drive: Tensor
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """The gradients of the input, C, W and the biases by PyTorch's products."""
    by_row = grad_drive.flatten(0, 1)
    grad_input = grad_drive @ parts.weight_ih if wanted.input else None
    biases = [None if part is None else by_row.sum(0) for part in (parts.bias_ih, parts.bias_hh)]
    weight_ih, weight_hh = (by_row.t() @ rows.flatten(0, 1) for rows in (parts.input, trail[:-1]))
    return grad_input, (weight_ih, weight_hh, *biases)


def _eager(rule: Rule, scale: float, lengths: Tensor | None, *parts: Tensor | None):
    """The states in PyTorch's operations."""
    parts = Sequences(*parts)
    drive = InputWeights(parts.weight_ih, parts.bias_ih, parts.bias_hh).drive(parts.input)
    hidden = torch.zeros_like(drive[0]) if parts.hidden is None else parts.hidden
    read_gain = parts.read_gain
    if read_gain is not None:
        read_gain = (scale * read_gain).expand(hidden.shape[-1])
    slow = SlowWeights(parts.weight_hh, parts.norm_weight, parts.norm_bias, read_gain)
    return operators.eager_states("attention", rule, lengths, drive, hidden, parts.memory, *slow)
