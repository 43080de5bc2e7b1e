"""One step of the recurrence on the CPU, fused: what lies around ``step_loops``.

A step takes no longer than the Python around it, so this asks of every tensor what it must be, by
the cheapest questions there are, and calls the loop with its address. Whatever the loops do not
take, from other devices to tensors that somebody traces, is left to ``kernels.recurrence``.
"""

import functools
from array import array
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fwrnn.layers.equations import SlowWeights
from fwrnn.layers.kernels import cpu, eager, operators, trial
from fwrnn.layers.kernels.operators import is_observed, pulled_back
from fwrnn.layers.memory import FastMemory
from fwrnn.rule import Rule

# Products of a batch with C and W from which on PyTorch's are faster, a call for each included:
# at B = 16 to 32 with 100 units, and at some 400 units with one sequence, the two were level.
INSIDE = 1 << 18
ENOUGH = 1 << 17  # products from which on a second thread is worth being woken


class Step(NamedTuple):
    """What a step is made of; what there is none of is None.

    ``input`` (B, I), ``hidden`` (B, H), the parts of a ``FastMemory``, and the parameters as a
    module has them: ``read_gain`` (H) or (1), before it is multiplied by the scale.
    """

    input: Any  # of tensors, or in a plan of their shapes
    hidden: Any
    written: Any
    strengths: Any
    folded: Any
    fade: Any
    weight_ih: Any
    weight_hh: Any
    bias_ih: Any
    bias_hh: Any
    norm_weight: Any
    norm_bias: Any
    read_gain: Any


def run(step: Step, rule: Rule, scale: float) -> tuple[Tensor, FastMemory] | None:
    """h(t+1), (B, H), and the memory it was written to; None where the loops do not reach.

    The memory is what was written, until it would take more room than the matrix, and then that.
    ``scale`` is what ``read_gain`` is multiplied by.
    """
    if not rule.inner_steps:  # nothing is normalised or read
        step = step._replace(norm_weight=None, norm_bias=None, read_gain=None)
    try:
        if (call := _call_for(step, rule, scale)) is None:
            return None
        plan, step, _, strengths, fade = call
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in step):
            if step.fade is not None and (step.strengths.requires_grad or step.fade.requires_grad):
                return None
            hidden, kept = _Step.apply(*step, call)
        else:
            hidden, kept, _ = _forward(call, False)
    except RuntimeError:  # what PyTorch says, at once, of tensors that have no address
        return None
    if plan.folds:
        return hidden, FastMemory(
            hidden.new_empty(plan.batch, 0, plan.units), strengths, kept, fade
        )
    folded = hidden.new_empty(plan.batch, 0, 0) if step.folded is None else step.folded
    return hidden, FastMemory(kept, strengths, folded, fade)


def reach(step: Step, rule: Rule, scale: float) -> bool:
    """Whether ``run`` finds a step that the loops take."""
    try:
        return _call_for(step, rule, scale) is not None
    except RuntimeError:
        return False


class _Plan:
    """What all steps of the same shapes and settings have in common.

    Raises ValueError for shapes that are not those of a ``Step``.
    """

    def __init__(self, rule: Rule, scale: float, dtype: torch.dtype, shapes: tuple):
        from fwrnn.layers.kernels import step_loops

        shape = Step(*shapes)
        (batch, inputs), (units, _) = shape.input, shape.weight_hh
        past = shape.strengths[1] if shape.strengths else 0
        folded = bool(shape.folded and shape.folded[1])
        self.batch, self.units, self.past = batch, units, past
        self.folds = folded or past + 1 > units
        if shapes != self._wanted(shape, inputs, folded) or not batch * inputs * units:
            raise ValueError(f"no step has these shapes: {shapes}")
        self.rule, self.scale, self.shapes, self.dtype = rule, scale, shapes, dtype
        self.one_gain = bool(shape.read_gain) and shape.read_gain[0] == 1
        self.outside = batch * (inputs + units) * units > INSIDE
        self.products = batch * units * (
            (not self.outside) * (inputs + units)
            + 2 * rule.inner_steps * (past + folded * units)
        )  # fmt: skip
        lanes = cpu.lanes_of(dtype)
        count, wide = -(-units // lanes), -(-inputs // lanes) * lanes
        row = count * lanes
        self.saved_size = batch * step_loops.saved_size(rule.inner_steps, row, lanes)
        self.work_sizes = [
            step_loops.work_size(
                row, wide, past, units * self.folds, rule.inner_steps, lanes, backward
            )
            for backward in (False, True)
        ]
        # The loops read this table for as long as the plan is there.
        self.table = torch.tensor([rule.decay, rule.fast_lr, scale, 1], dtype=dtype, device="cpu")
        constants = (
            step_loops.VERSION, rule.inner_steps, rule.nonlinearity == "tanh",
            rule.boundary == "identity", rule.inner_start == "previous", rule.plain_read,
            cpu.address(self.table),
            batch, inputs, units, count, wide, past, self.folds, self.one_gain,
            0 if self.outside else -(-units // 4),
        )  # fmt: skip
        # By which loop, and whether something is saved.
        self.numbers = {
            (which, save): array("q", (
                *(0 for _ in step_loops.COUNTERS), *constants, save, self.work_sizes[which],
                self.saved_size // batch,
            ))
            for which, save in ((0, False), (0, True), (1, True))
        }  # fmt: skip
        self.arrays, self.shared = len(step_loops.ARRAYS), step_loops.SHARED
        self.loops = cpu.compiled("step_loops", dtype)

    @staticmethod
    def _wanted(shape: Step, inputs: int, folded: bool) -> tuple:
        """The shapes that go with those of the input, W and the memory."""
        (batch, _), (units, _) = shape.input, shape.weight_hh
        past, matrix, vector = shape.strengths and shape.strengths[1], folded * units, (units,)
        wanted = Step(
            (batch, inputs), (batch, units), (batch, past, units), (batch, past),
            (batch, matrix, matrix), (batch,), (units, inputs), (units, units), *(vector,) * 5,
        )  # fmt: skip
        if shape.read_gain == (1,):
            wanted = wanted._replace(read_gain=(1,))
        if shape.weight_ih is None:
            raise ValueError("there is no C")
        for one, other in (("bias_ih", "bias_hh"), ("norm_weight", "norm_bias")):
            if (getattr(shape, one) is None) != (getattr(shape, other) is None):
                raise ValueError(f"{one} goes with {other}")
        return tuple(x and want for x, want in zip(shape, wanted, strict=True))

    def run(self, which: int, save: bool, like: Tensor, addresses: list[int]) -> None:
        """Call loop 0 (forward) or 1 (backward) with the addresses of all arrays after ``work``."""
        threads = 1
        if self.products > ENOUGH:
            threads = min(torch.get_num_threads(), self.batch)
        work = like.new_empty(threads * self.work_sizes[which])
        addresses += [0] * (self.arrays - 1 - len(addresses))
        argument = self.numbers[which, save] + array("q", (work.data_ptr(), *addresses))
        cpu.run_team(self.loops[which], argument.buffer_info()[0], threads)


@functools.lru_cache(maxsize=2048)  # a stream has up to H shapes before it is folded
def _plan(rule: Rule, scale: float, dtype: torch.dtype, shapes: tuple) -> _Plan | None:
    """The plan, made once, and not before the loops have passed their ``trial``."""
    if dtype not in cpu.DTYPES or rule.inner_start == "normalised" or not cpu.is_installed():
        return None
    find_fault = functools.partial(_fault, dtype)
    if not trial.passes("single step", torch.device("cpu"), dtype, find_fault):
        return None
    try:
        return _Plan(rule, scale, dtype, shapes)
    except (ValueError, TypeError):  # of another number of dimensions
        return None


def _fault(dtype: torch.dtype) -> str | None:
    """How the loops differ from PyTorch's operations, where they append and where they fold."""
    batch, inputs, units = 2, 3, cpu.lanes_of(dtype) + 5
    generator, rule, scale = torch.Generator().manual_seed(0), Rule(0.9, 0.1, 2), 2.0

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) / 4

    for matrix in (0, units):
        exact = Step(
            random(batch, inputs), random(batch, units), random(batch, 2, units), random(batch, 2),
            random(batch, matrix, matrix), random(batch), random(units, inputs),
            random(units, units), *(random(units) for _ in range(5)),
        )  # fmt: skip
        constants = ("strengths", "fade") if matrix else ("strengths", "fade", "folded")
        wanted = [k for k, name in enumerate(Step._fields) if name not in constants]
        results = _eager(rule, scale, *(x.requires_grad_() for x in exact))
        grads = [random(*result.shape) for result in results]
        gradients = torch.autograd.grad(results, [exact[k] for k in wanted], grads)
        step = Step(*(x.detach().to(dtype) for x in exact))
        plan = _Plan(rule, scale, dtype, tuple(x.shape for x in step))
        call = _Call(plan, step, cpu.addresses(step), *_left(plan, step))
        with torch.no_grad():
            hidden, kept, saved = _forward(call, True)
            grad_hidden, grad_kept = (grad.to(dtype) for grad in grads)
            found = _backward(
                call, saved, grad_hidden, grad_kept, [k in wanted for k in range(len(step) + 1)]
            )
        names = ["h", "the memory", *(f"the gradient of {Step._fields[k]}" for k in wanted)]
        fault = trial.difference(
            names, [hidden, kept, *(found[k] for k in wanted)], [*results, *gradients], dtype,
            [name for name in names if name.endswith(("input", "hidden", "_ih", "_hh"))],
        )  # fmt: skip
        if fault:
            return fault
    return None


class _Call(NamedTuple):
    """A step that the loops take: its plan, its tensors, contiguous, and their addresses."""

    plan: _Plan
    step: Step
    addresses: list[int]
    strengths: Any  # of the next memory; constants, which the loops fill in
    fade: Any


def _call_for(step: Step, rule: Rule, scale: float) -> _Call | None:
    """None unless all are plain tensors of one kind and fitting shapes, and nobody looks."""
    if (plain := operators.plain(step)) is None:
        return None
    step, shapes, addresses = plain
    plan = _plan(rule, scale, step.input.dtype, shapes)
    if plan is None:
        return None
    return _Call(plan, step, addresses, *_left(plan, step))


def _left(plan: _Plan, step: Step) -> tuple[Tensor, Tensor]:
    """Room for the strengths and the fade of the next memory."""
    new = step.input.new_empty
    return new(plan.batch, 0 if plan.folds else plan.past + 1), new(plan.batch)


def _forward(call: _Call, save: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The new state, what its memory keeps, and what is saved.

    Kept are written states, (B, N, H), or (B, H, H), where there are no strengths, a matrix.
    """
    plan, step, addresses, strengths, fade = call
    batch, units, new = plan.batch, plan.units, step.input.new_empty
    hidden = new(batch, units)
    kept = new(batch, units if plan.folds else plan.past + 1, units)
    saved = new(plan.saved_size) if save else None
    bracket = _bracket(step) if plan.outside else None
    written, folded = (None, kept) if plan.folds else (kept, None)
    made = cpu.addresses((hidden, written, strengths, folded, fade, saved, bracket))
    plan.run(0, save, step.input, addresses + made)
    return hidden, kept, saved


def _bracket(step: Step) -> Tensor:
    """W h + C x + biases in PyTorch's products, which are made for large ones."""
    bracket = F.linear(step.input, step.weight_ih, step.bias_ih)
    if step.bias_hh is not None:
        bracket += step.bias_hh
    return bracket if step.hidden is None else bracket.addmm_(step.hidden, step.weight_hh.t())


class _Step(torch.autograd.Function):
    """A step as one node of the graph; its strengths and its fade are constants."""

    @staticmethod
    def forward(ctx, *arguments):
        *_, call = arguments
        *results, saved = _forward(call, True)
        ctx.save_for_backward(*call.step, saved)
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.addresses = call.plan, call.addresses
        return tuple(results)

    @staticmethod
    def backward(ctx, grad_hidden, grad_kept):
        *parts, saved = ctx.saved_tensors
        step, grads = Step(*parts), (grad_hidden, grad_kept)
        if grad_hidden is None and grad_kept is None:
            return (None,) * (len(step) + 1)
        plan, wanted, saved = ctx.plan, ctx.needs_input_grad, saved.contiguous()
        try:
            found = None
            if not torch.is_grad_enabled() and not is_observed(saved) and saved.dtype is plan.dtype:
                found = operators.plain_again(step, plan.shapes, ctx.addresses, plan.dtype)
            if found is not None:
                call = _Call(plan, *found, None, None)
                return *_backward(call, saved, *grads, wanted), None
        except RuntimeError:  # gradients in a batch, as Jacobians ask for, have no addresses
            pass
        compute = functools.partial(_eager, plan.rule, plan.scale)
        return *pulled_back(compute, step, grads, wanted), None


NOT_MADE = (None,) * 5  # by backward: what forward makes


def _backward(call: _Call, saved: Any, grad_hidden, grad_kept, wanted) -> list:
    """The gradients of the parts of a step that are ``wanted``, None of others."""
    plan, step, addresses, *_ = call
    wanted = Step(*wanted[:-1])
    new, inside = step.input.new_empty, not plan.outside
    batch, inputs, units = plan.batch, step.input.shape[1], plan.units
    bracket = new(batch, units)
    hidden = new(batch, units) if wanted.hidden else None
    written = torch.empty_like(step.written) if wanted.written else None
    folded = torch.empty_like(step.folded) if wanted.folded else None
    by_sequence = new(batch, plan.shared, units)
    learned = step.norm_weight, step.norm_bias, step.read_gain, step.bias_ih, step.bias_hh
    vectors = [None if part is None else new(units) for part in learned]
    products = None, None, None
    if inside:
        input = new(batch, inputs) if wanted.input else None
        products = input, new(units, inputs), new(units, units)
    grad_hidden, grad_kept = cpu.contiguous(grad_hidden, grad_kept)
    kept = (None, grad_kept) if plan.folds else (grad_kept, None)
    results = bracket, hidden, written, folded, by_sequence, *vectors, *products
    made = cpu.addresses((*NOT_MADE, saved, None, grad_hidden, *kept, *results))
    plan.run(1, True, step.input, addresses + made)
    if not inside:
        hidden, *products = _products(step, wanted, bracket, hidden)
    input, weight_ih, weight_hh = products
    gain, shift, read_gain, bias_ih, bias_hh = vectors
    if read_gain is not None and plan.one_gain:
        read_gain = read_gain.sum(0, keepdim=True)
    return [
        input, hidden, written, None, folded, None, weight_ih, weight_hh, bias_ih, bias_hh, gain,
        shift, read_gain,
    ]  # fmt: skip


def _products(step: Step, wanted: Step, bracket: Tensor, carry: Tensor | None) -> tuple:
    """The gradients of h, the input, C and W by PyTorch's products."""
    hidden = None if carry is None else carry.addmm(bracket, step.weight_hh)
    input = bracket.mm(step.weight_ih) if wanted.input else None
    if step.hidden is None:
        weight_hh = torch.zeros_like(step.weight_hh)
    else:
        weight_hh = bracket.t().mm(step.hidden)
    return hidden, input, bracket.t().mm(step.input), weight_hh


def _eager(rule: Rule, scale: float, *parts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The new state and what its memory keeps, in PyTorch's operations."""
    step = Step(*parts)
    bias = None if step.bias_ih is None else step.bias_ih + step.bias_hh
    drive = F.linear(step.input, step.weight_ih, bias).unsqueeze(0)
    hidden = torch.zeros_like(drive[0]) if step.hidden is None else step.hidden
    memory = FastMemory.empty(hidden) if step.fade is None else FastMemory(*step[2:6])
    read_gain = step.read_gain
    if read_gain is not None:
        read_gain = (scale * read_gain).expand(hidden.shape[-1])
    slow = SlowWeights(step.weight_hh, step.norm_weight, step.norm_bias, read_gain)
    folds = memory.is_folded() or memory.outgrows(1)
    form = eager.matrix if folds else eager.attention
    states, memory = form(drive, hidden, memory, slow, rule, None)
    return states[0], memory.folded if folds else memory.written
