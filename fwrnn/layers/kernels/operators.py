"""The recurrence as one PyTorch operator, ``torch.ops.fwrnn.recurrence``, and its derivative.

The fused kernels take addresses, into which nothing that PyTorch does to programs can look. As an
operator with a fake implementation, a registered derivative and a batching rule they need not be
looked into: compiling, exporting, tracing and vmap treat them like any of PyTorch's own. Compiled
programs call the eager forms through it too: as loops over time they would be compiled anew for
every length.

The schema has no place for ``SlowWeights`` and ``Rule``, so it names their parts. Where nobody
looks, an ``autograd.Function`` does the same without the operator's overhead, and with it the
products before and after the recurrence; on a CPU ``sequences`` does.
"""

import sys
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwrnn.layers.equations import InputWeights, SlowWeights, may_be_dual
from fwrnn.layers.kernels import cpu, eager, gpu, trial
from fwrnn.layers.kernels.trial import constant_when_compiled
from fwrnn.layers.memory import FastMemory, is_tracing
from fwrnn.rule import Rule

EAGER = {"matrix": eager.matrix, "attention": eager.attention}
FUSED: dict[str, ModuleType] = {"numba": cpu, "triton": gpu}
PLAIN = (Tensor, nn.Parameter)  # not what only looks like a tensor

_INPUTS = (
    "Tensor weight_hh, Tensor? norm_weight, Tensor? norm_bias, Tensor? read_gain, "
    "Tensor? lengths, str form, float decay, float fast_lr, int inner_steps, str nonlinearity, "
    "str boundary, str inner_start, bool plain_read"
)
_library = torch.library.Library("fwrnn", "DEF")
_library.define(
    f"recurrence(Tensor drive, Tensor hidden, Tensor? memory, {_INPUTS}, bool save)"
    " -> (Tensor states, Tensor trail, Tensor saved)"
)
_library.define(
    "recurrence_backward(Tensor saved, Tensor trail, Tensor grad_states, Tensor drive,"
    f" Tensor? memory, {_INPUTS}) -> Tensor[]"
)


def recurrence(
    form: str,
    sequence: Tensor,
    inputs: InputWeights,
    hidden: Tensor,
    memory: Tensor | None,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None,
    observed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole sequences in the operator's way, or where nobody has ``observed`` it in the function's.

    Takes what ``fwrnn.layers.kernels.recurrence`` does, with the memory as a matrix or None.
    Returns h(1) … h(T), (T, B, H); h(T), (B, H); and h(1) … h(T) as a memory has them, (B, T, H).
    They share no storage, so that callers may change the first two in place.
    """
    if not rule.inner_steps:
        slow = SlowWeights(slow.weight_hh, None, None)  # nothing is normalised or read
    given = hidden, memory, *slow, lengths
    tensors = [x for x in (sequence, *inputs, *given[:-1]) if x is not None]
    alike, save = _survey(tensors)
    device = sequence.device.type
    if alike and not (observed or may_be_dual() or torch.is_autocast_enabled(device)):
        try:
            if save:
                return _Layer.apply(sequence, *inputs, *given, form, rule)
            drive = inputs.drive(sequence)
            states, trail, _ = _forward(drive, hidden, memory, slow, lengths, form, rule, save)
            return _outputs(states, trail)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # what PyTorch says, at once, when vmap or torch.func call
            pass
    drive = inputs.drive(sequence).to(hidden.dtype)
    if observed or _is_functionalized():
        save = save and not is_tracing()  # which runs twice, once without gradients
        states, trail, _ = torch.ops.fwrnn.recurrence(drive, *given, form, *_constants(rule), save)
    else:
        states, trail, _ = _Transformed.apply(drive, *given, form, rule, save)
    return _outputs(states, trail)


def _outputs(states: Tensor, trail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return states, trail[-1].clone(), trail[1:].transpose(0, 1)


def _survey(tensors: list[Tensor]) -> tuple[bool, bool]:
    """Whether all are of one type of number, and whether the graph will go back to one of them."""
    kind, alike, back = tensors[0].dtype, True, False
    for x in tensors:
        alike = alike and x.dtype is kind
        back = back or x.requires_grad
    return alike, back and torch.is_grad_enabled()


def plain(parts: Any) -> tuple[Any, tuple, list[int]] | None:
    """A named tuple of tensors, and None, as loops on the CPU take them: contiguous. And what they
    have of shapes and addresses.

    None unless all are plain tensors there, of the first one's kind, and nobody looks on.
    """
    first = parts[0]
    if (
        type(first) not in PLAIN
        or is_observed(first)
        or may_be_dual()
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    dtype, shapes, addresses = first.dtype, [], []
    for x in parts:
        if x is None:
            shapes.append(None)
            addresses.append(0)
        elif type(x) not in PLAIN or x.dtype is not dtype or not x.is_cpu or x.is_neg():
            return None
        elif not x.is_contiguous():
            return plain(type(parts)(*(y if y is None else y.contiguous() for y in parts)))
        else:
            shapes.append(x.shape)
            addresses.append(x.data_ptr() or cpu.address(x))
    return parts, tuple(shapes), addresses


def plain_again(
    parts: Any, shapes: tuple, addresses: list[int], dtype: torch.dtype
) -> tuple[Any, list[int]] | None:
    """Saved tensors as the loops go back by them, and their addresses, from what ``plain`` found.

    What was saved may have been elsewhere meanwhile, or be another tensor by now, as with
    ``parameter.data = …``. None if it is of another shape or type, or not plain.
    """
    for x, shape, address in zip(parts, shapes, addresses, strict=True):
        if x is not None and not (
            x.data_ptr() == address and x.shape == shape and x.dtype is dtype and x.is_contiguous()
        ):
            break
    else:
        return parts, addresses
    found = plain(parts)
    if found is None or found[1] != shapes or parts[0].dtype is not dtype:
        return None
    return found[0], found[2]


@constant_when_compiled
def works(form: str, device: torch.device, dtype: torch.dtype, variant: tuple) -> bool:
    """Whether a fused form passes its trial."""
    find_fault = partial(trial.fault_of, FUSED[form], device, dtype, variant)
    return trial.passes(form, device, (dtype, variant), find_fault, INSTEAD)


INSTEAD = "backend='auto' takes PyTorch operations in its place, backend={!r} insists on it"


def is_observed(first: Tensor, *others: Tensor | None) -> bool:
    """Whether somebody records operators, or gives something else in the place of tensors.

    Or in the place of what comes of them, as fake tensors do.
    """
    if torch.compiler.is_compiling() or is_tracing() or type(first.unsqueeze(0)) is not Tensor:
        return True
    for x in others:
        if x is not None and type(x) not in PLAIN:
            return True
    return _is_recorded()


def _is_recorded() -> bool:
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return tracer is not None and tracer.get_proxy_mode() is not None


def is_differentiated() -> bool:
    """Whether ``torch.func`` differentiates a program that somebody records.

    The operator has a rule for ``vmap``; for its derivative PyTorch takes none.
    """
    if not _are_transforms_active():
        return False
    records = torch.compiler.is_compiling() or _is_recorded()
    return records and bool(_transforms() - {"Vmap", "Functionalize"})


def _is_functionalized() -> bool:
    """Whether ``torch.func.functionalize`` looks on, which takes operators, and no functions."""
    return _are_transforms_active() and "Functionalize" in _transforms()


# Private names, as there are no public ones up to PyTorch 2.13; nobody else here needs them.
_are_transforms_active = torch._C._are_functorch_transforms_active


@constant_when_compiled
def _transforms() -> set[str]:
    """Those of ``torch.func`` that are at work: Vmap, Grad, Jvp, Functionalize."""
    from torch._C import _functorch as functorch  # pyright: ignore[reportAttributeAccessIssue]

    return {level.key().name for level in functorch.get_interpreter_stack() or ()}


def _constants(rule: Rule) -> tuple[float, float, int, str, str, str, bool]:
    """A rule's parts in the schema's order."""
    return (
        rule.decay, rule.fast_lr, rule.inner_steps,
        rule.nonlinearity, rule.boundary, rule.inner_start, rule.plain_read,
    )  # fmt: skip


def eager_states(form, rule, lengths, drive, hidden, memory, *slow) -> tuple[Tensor]:
    """The states in PyTorch's operations; what they are differentiated by comes last."""
    given = FastMemory.empty(hidden) if memory is None else FastMemory.from_matrix(memory)
    return EAGER[form](drive, hidden, given, SlowWeights(*slow), rule, lengths)[:1]


def _eager_layer(rule, lengths, sequence, weight_ih, bias_ih, bias_hh, *given) -> tuple[Tensor]:
    drive = InputWeights(weight_ih, bias_ih, bias_hh).drive(sequence)
    return eager_states("attention", rule, lengths, drive, *given)


def _forward(
    drive: Tensor,
    hidden: Tensor,
    memory: Tensor | None,
    slow: SlowWeights,
    lengths: Tensor | None,
    form: str,
    rule: Rule,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The states, the trail, and what the backward pass needs besides, in one dimension."""
    if form in FUSED:
        if drive.shape[1:] != hidden.shape:
            raise ValueError(
                f"the input weights make {drive.shape[-1]} numbers for a state of "
                f"{hidden.shape[-1]}, for sequences of shape {tuple(drive.shape[:2])}; they must "
                "have as many rows as the state has units"
            )
        return FUSED[form].forward(drive, hidden, memory, slow, rule, lengths, save)
    (states,) = eager_states(form, rule, lengths, drive, hidden, memory, *slow)
    return states, torch.cat([hidden.unsqueeze(0), states]), hidden.new_empty(0)


def _forward_fake(drive, hidden, memory, slow, lengths, form, rule, save):
    steps, batch, units = drive.shape
    saved = 0
    if save and form in FUSED:
        learned = slow.norm_weight is not None, slow.read_gain is not None
        saved = FUSED[form].saved_size(steps, batch, units, hidden.dtype, *learned, rule)
    return (
        hidden.new_empty(steps, batch, units),
        hidden.new_empty(steps + 1, batch, units),
        hidden.new_empty(saved),
    )


def _backward(
    saved: Tensor,
    trail: Tensor,
    grad_states: Tensor,
    drive: Tensor,
    memory: Tensor | None,
    slow: SlowWeights,
    lengths: Tensor | None,
    form: str,
    rule: Rule,
) -> list[Tensor]:
    """The gradients of drive, hidden, memory and slow weights; for what is None there is none."""
    if form in EAGER:
        compute = partial(eager_states, form, rule, lengths)
        grads = pulled_back(compute, [drive, trail[0], memory, *slow], (grad_states,))
        return [grad.contiguous() for grad in grads if grad is not None]
    implementation = FUSED[form]
    if saved.shape[0] == 0:  # the forward pass did not know of this one
        *_, saved = implementation.forward(drive, trail[0], memory, slow, rule, lengths, True)
    grad_drive, grad_hidden, grad_memory, *grad_gains = _fused_backward(
        form, saved, trail, grad_states, memory, slow, rule, lengths
    )
    by_row, previous = grad_drive.flatten(0, 1), trail[:-1].flatten(0, 1)
    grad_weight = by_row.t() @ previous
    grads = grad_drive, grad_hidden, grad_memory, grad_weight, *grad_gains
    return [grad for grad in grads if grad is not None]


def _fused_backward(form, saved, trail, grad_states, memory, slow, rule, lengths):
    """What its module's ``backward`` returns; RuntimeError where the layer was converted since.

    Or moved: the weights are then other ones than those that the states came of.
    """
    if any(x is not None and (x.dtype, x.device) != (trail.dtype, trail.device) for x in slow):
        raise RuntimeError("the layer was converted after the forward pass; go back before that")
    return FUSED[form].backward(saved, trail, grad_states, memory, slow, rule, lengths)


def _backward_fake(saved, trail, grad_states, drive, memory, slow, lengths, form, rule):
    inputs = drive, trail[0], memory, *slow
    return [x.new_empty(x.shape) for x in inputs if x is not None]


def pulled_back(compute, inputs, grads: tuple, wanted=None) -> list[Tensor | None]:
    """The gradients of an eager form's inputs, or of those ``wanted``; they can be differentiated
    again. ``grads`` are of its results, a tuple too, None for zeros."""
    wanted = [x is not None for x in inputs] if wanted is None else wanted
    places = [k for k in range(len(inputs)) if wanted[k]]

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        known = dict(zip(places, values, strict=True))
        return compute(*(known.get(k, x) for k, x in enumerate(inputs)))

    results, pull_back, *_ = torch.func.vjp(call, *(inputs[k] for k in places))
    pairs = zip(results, grads, strict=True)
    filled = tuple(torch.zeros_like(result) if x is None else x for result, x in pairs)
    found = dict(zip(places, pull_back(filled), strict=True))
    return [found.get(k) for k in range(len(inputs))]


class _Layer(torch.autograd.Function):
    """The drive and the recurrence as one node of the graph, whose views are made beforehand."""

    @staticmethod
    def forward(ctx, sequence, weight_ih, bias_ih, bias_hh, hidden, memory, *others):
        *slow, lengths, form, rule = others
        inputs = InputWeights(weight_ih, bias_ih, bias_hh)
        drive = inputs.drive(sequence)
        states, trail, saved = _forward(
            drive, hidden, memory, SlowWeights(*slow), lengths, form, rule, True
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(sequence, *inputs, hidden, memory, *slow, lengths, trail, saved)
        ctx.form, ctx.rule = form, rule
        return _outputs(states, trail)

    @staticmethod
    def backward(ctx, *grads):
        tensors = ctx.saved_tensors  # unpacked once, as checkpoints insist
        *inputs, lengths, trail, _ = tensors
        grad_states = grad_of_states(trail, *grads)
        if grad_states is None:
            return (None,) * len(ctx.needs_input_grad)
        if not torch.is_grad_enabled() and not is_observed(grad_states):
            try:
                return *_Layer._fused(ctx, grad_states, *tensors), None, None, None
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                # Gradients in a batch, as Jacobians ask for, have no addresses; PyTorch says so.
                pass
        compute = partial(_eager_layer, ctx.rule, lengths)
        return *pulled_back(compute, inputs, (grad_states,)), None, None, None

    @staticmethod
    def _fused(ctx, grad_states, sequence, weight_ih, bias_ih, bias_hh, hidden, memory, *others):
        *slow, lengths, trail, saved = others
        grad_drive, grad_hidden, grad_memory, *grad_gains = _fused_backward(
            ctx.form, saved, trail, grad_states, memory, SlowWeights(*slow), ctx.rule, lengths
        )
        by_row, rows = grad_drive.flatten(0, 1), sequence.flatten(0, 1)
        previous = trail[:-1].flatten(0, 1)
        grad_sequence = None
        if ctx.needs_input_grad[0]:
            grad_sequence = grad_drive @ weight_ih
        grad_weight_hh, grad_bias = by_row.t() @ previous, by_row.sum(0)
        return (
            grad_sequence,
            by_row.t() @ rows,
            None if bias_ih is None else grad_bias,
            None if bias_hh is None else grad_bias.clone(),  # as callers may change one in place
            grad_hidden, grad_memory, grad_weight_hh, *grad_gains,
        )  # fmt: skip


def grad_of_states(
    trail: Tensor,
    grad_states: Tensor | None,
    grad_last: Tensor | None,
    grad_written: Tensor | None,
) -> Tensor | None:
    """The gradient of h(1) … h(T), (T, B, H), from theirs and those of the last, (B, H), and of
    the states as a memory has them, (B, T, H)."""
    if grad_written is not None:
        later = grad_written.transpose(0, 1)
        grad_states = later if grad_states is None else grad_states + later
    if grad_last is not None:
        padded = F.pad(grad_last.unsqueeze(0), (0, 0, 0, 0, len(trail) - 2, 0))
        grad_states = padded if grad_states is None else grad_states + padded
    return grad_states


class _Transformed(torch.autograd.Function):
    """The same with what ``torch.func`` and ``torch.vmap`` ask of it."""

    @staticmethod
    def forward(*arguments):
        drive, hidden, memory, *slow, lengths, form, rule, save = arguments
        return _forward(drive, hidden, memory, SlowWeights(*slow), lengths, form, rule, save)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.form, ctx.rule, _ = inputs
        _, trail, saved = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(saved)
        ctx.save_for_backward(*tensors, trail, saved)

    @staticmethod
    def backward(ctx, grad_states, grad_trail, _):
        if grad_trail is not None:
            later = grad_trail[1:]
            grad_states = later if grad_states is None else grad_states + later
        if grad_states is None:
            return (None,) * 11
        grads = _gradients(ctx, grad_states)
        if grad_trail is not None and grads[1] is not None:
            grads[1] = grads[1] + grad_trail[0]
        return *grads, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _batch(_Transformed.apply, info, in_dims, *arguments)


def _gradients(ctx, grad_states: Tensor) -> list[Tensor | None]:
    """The gradients of drive, hidden, memory and the slow weights."""
    *inputs, lengths, trail, saved = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return pulled_back(
            partial(eager_states, "attention", ctx.rule, lengths), inputs, (grad_states,)
        )
    drive, _, memory, *slow = inputs
    known = saved, trail, grad_states, drive, memory
    if is_observed(grad_states):
        operator = torch.ops.fwrnn.recurrence_backward
        found = operator(*known, *slow, lengths, ctx.form, *_constants(ctx.rule))
    else:
        try:
            found = _backward(*known, SlowWeights(*slow), lengths, ctx.form, ctx.rule)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # Gradients in a batch, as Jacobians ask for, have no addresses; PyTorch says so.
            compute = partial(eager_states, "attention", ctx.rule, lengths)
            return pulled_back(compute, inputs, (grad_states,))
    each = iter(found)
    return [None if x is None else next(each) for x in inputs]


def _setup_context(ctx, inputs, output):
    *tensors, form = inputs[:9]
    ctx.count = len(inputs)
    _Transformed.setup_context(ctx, (*tensors, form, Rule(*inputs[9:16]), None), output)


def _differentiate(ctx, *grads):
    found = _Transformed.backward(ctx, *grads)
    return *found[:7], *(None,) * (ctx.count - 7)


def _batch(function, info, in_dims, *arguments):
    """The batching rule: one call for each slice."""
    calls = []
    for k in range(info.batch_size):
        slices = [
            argument if dim is None else argument.select(dim, k)
            for argument, dim in zip(arguments, in_dims, strict=True)
        ]
        calls.append(function(*slices))
    outputs = type(calls[0])(torch.stack(parts) for parts in zip(*calls, strict=True))
    return outputs, type(outputs)(0 for _ in outputs)


def _in_parts(function, at):
    """``function`` with its slow weights, from place ``at`` on, and its rule in parts."""

    def call(*arguments):
        slow, (lengths, form) = SlowWeights(*arguments[at : at + 4]), arguments[at + 4 : at + 6]
        rule, rest = Rule(*arguments[at + 6 : at + 13]), arguments[at + 13 :]
        return function(*arguments[:at], slow, lengths, form, rule, *rest)

    return call


for _name, _implementation, _fake, _at in (
    ("recurrence", _forward, _forward_fake, 3),
    ("recurrence_backward", _backward, _backward_fake, 5),
):
    _operator = getattr(torch.ops.fwrnn, _name)
    _library.impl(_name, _in_parts(_implementation, _at), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fwrnn::{_name}", _in_parts(_fake, _at), lib=_library)
    torch.library.register_vmap(f"fwrnn::{_name}", partial(_batch, _operator), lib=_library)
torch.library.register_autograd(
    "fwrnn::recurrence", _differentiate, setup_context=_setup_context, lib=_library
)
