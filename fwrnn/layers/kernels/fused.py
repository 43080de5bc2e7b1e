"""The fused kernels, differentiable, with the attention form where they do not reach."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fwrnn.layers.equations import Rule, SlowWeights
from fwrnn.layers.kernels import eager


def reaches(implementation, *arguments) -> bool:
    """Whether ``implementation`` takes these: drive, hidden, memory, slow weights and rule."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False  # vmap and forward-mode derivatives look inside every operation
    if torch.jit.is_tracing() or type(arguments[0]) is not Tensor:
        return False  # so do tracers, which pass stand-ins for tensors
    return implementation.supports(*arguments)


def recurrence(implementation, drive, hidden, memory, slow, rule, lengths):
    """What ``fwrnn.layers.kernels.recurrence`` documents, where ``implementation`` reaches."""
    if not rule.inner_steps:
        slow = SlowWeights(slow.weight_hh, None, None)  # nothing is normalised
    inputs = drive, hidden, memory, *slow
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    states, trail = FusedRecurrence.apply(implementation, rule, save, *inputs)
    if lengths is None:
        return states, trail[-1], eager.Written((trail[1:],), memory, rule)
    hidden = eager.last_states(trail[1:], lengths)
    return states, hidden, lambda: eager.memory_after(trail[1:], memory, rule, lengths)


class FusedRecurrence(torch.autograd.Function):
    """Whole sequences through ``implementation``: a module with ``forward`` and ``backward``.

    Returns the states, (T, B, H), and the trail h(0) … h(T), (T + 1, B, H): the same numbers
    again, which backward keeps, so that the states may be changed in place.
    """

    @staticmethod
    def forward(ctx, implementation, rule, save, drive, hidden, memory, *weights):
        slow = SlowWeights(*weights)
        states, trail, saved = implementation.forward(drive, hidden, memory, slow, rule, save)
        ctx.implementation, ctx.rule = implementation, rule
        ctx.set_materialize_grads(False)
        if save:
            ctx.save_for_backward(trail, drive, hidden, memory, *weights, *saved)
        return states, trail

    @staticmethod
    def backward(ctx, grad_states, grad_trail):
        trail, drive, hidden, memory, *rest = ctx.saved_tensors
        weights, saved = rest[:3], rest[3:]
        if grad_trail is not None:
            later = grad_trail[1:]
            grad_states = later if grad_states is None else grad_states + later
        if grad_states is None:
            return (None,) * len(ctx.needs_input_grad)
        if torch.is_grad_enabled():
            grads = _attention_gradients(
                grad_states, ctx.rule, (drive, hidden, memory, *weights), ctx.needs_input_grad[3:]
            )
        else:
            slow = SlowWeights(*weights)
            drive_grad, hidden_grad, memory_grad, gain_grad, shift_grad = (
                ctx.implementation.backward(
                    saved, trail, grad_states, drive, memory, slow, ctx.rule
                )
            )
            units = drive.shape[-1]
            weight_grad = drive_grad.view(-1, units).t() @ trail[:-1].view(-1, units)
            grads = [drive_grad, hidden_grad, memory_grad, weight_grad, gain_grad, shift_grad]
        if grad_trail is not None and grads[1] is not None:
            grads[1] = grads[1] + grad_trail[0]
        return None, None, None, *grads


def _attention_gradients(grad_states, rule: Rule, inputs, needed) -> list[Tensor | None]:
    """The gradients by way of the attention form, so that they can be differentiated again."""
    drive, hidden, memory, *weights = inputs
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    with torch.enable_grad():
        states, *_ = eager.attention(drive, hidden, memory, SlowWeights(*weights), rule, None)
        found = iter(
            torch.autograd.grad(states, wanted, grad_states, create_graph=True, allow_unused=True)
        )
    return [next(found) if need else None for need in needed]
