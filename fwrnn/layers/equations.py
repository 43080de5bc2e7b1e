"""The paper's equations 1, 2, 4 and 5, one function each, as pure functions of tensors.

Source: Ba, Hinton, Mnih, Leibo, Ionescu, "Using Fast Weights to Attend to the Recent Past",
NIPS 2016, arXiv:1610.06258v3, section 3 and supplement B. One step of the network is

    A(t)       = λ A(t-1) + η h(t) h(t)ᵀ                                            (1)
    h_0(t+1)   = f(W h(t) + C x(t+1))
    h_s+1(t+1) = f(LN[W h(t) + C x(t+1) + A(t) h_s(t+1)]),  s = 0 … S-1            (2), (5)
    h(t+1)     = h_S(t+1)

How strongly each unit takes in what is read, g, can also be learned (``read_gain``). What is asked
is then the direction of h_s alone, so that what is found is of the size of what was written,
however many units there are and however large h_s has become; and what is found is bounded, so that
a read never drowns the input, however much was written:

    h_s+1(t+1) = f(LN[W h(t) + C x(t+1) + g z / √(1 + mean z² / 4)]),
    z = A(t) h_s(t+1) / (H rms(h_s(t+1)))                                              (2'), (5')

With ``plain_read`` it is g A(t) h_s alone, the paper's read with an η that each unit learns.

The memory A is read first, S times, and then written once, with the final state only. It belongs
to one sequence: rows of a batch never share it. It is not a parameter: λ and η are constants.

Symbols and their names here: λ ``decay``, η ``fast_lr``, S ``inner_steps``, f ``nonlinearity``,
A ``memory``, h ``hidden``, W ``weight_hh``, C ``weight_ih``, and ``drive`` = C x + biases, which
is made for all steps at once before the recurrence starts. Shapes use T steps, B sequences and
H units.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from fwrnn.rule import Rule

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}
NORM_EPS = 1e-5
QUERY_EPS = 1e-6  # added to the squared length of a query
READ_LIMIT = 4.0  # the mean square that a learned read cannot reach


class InputWeights(NamedTuple):
    """What is learned in one layer and used before the recurrence.

    ``weight_ih`` (H, I) is C; ``bias_ih`` and ``bias_hh`` (H), ``None`` without biases, count as
    their sum.
    """

    weight_ih: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def bias(self) -> Tensor | None:
        """What the biases come to, (H)."""
        if self.bias_ih is None or self.bias_hh is None:
            return self.bias_hh if self.bias_ih is None else self.bias_ih
        return self.bias_ih + self.bias_hh

    def drive(self, sequence: Tensor) -> Tensor:
        """C x(t) + biases of all steps in one matrix product. (T, B, I) → (T, B, H)."""
        return F.linear(sequence, self.weight_ih, self.bias())


class SlowWeights(NamedTuple):
    """What is learned in one layer and used inside the recurrence.

    ``weight_hh`` (H, H) is W. ``norm_weight`` and ``norm_bias`` (H) are the gain and bias of layer
    normalisation, both ``None`` without it. ``read_gain`` (H) is g, how strongly each unit takes in
    what is read from the memory, ``None`` for the paper's 1.
    """

    weight_hh: Tensor
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    read_gain: Tensor | None = None


def sustained_input(drive: Tensor, hidden: Tensor, slow: SlowWeights) -> Tensor:
    """W h(t) + C x(t+1), the bracket of equation 2, computed once per step. All shapes (B, H)."""
    return drive + F.linear(hidden, slow.weight_hh)


def layer_norm(total: Tensor, slow: SlowWeights) -> Tensor:
    """LN of equation 5: over the H units of one sequence at one step, never over the batch."""
    if slow.norm_weight is None or slow.norm_bias is None:
        return total
    if may_be_dual():  # PyTorch's own has a wrong derivative of its forward-mode derivative
        centred = total - total.mean(-1, keepdim=True)
        normal = centred * (centred.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        return normal * slow.norm_weight + slow.norm_bias
    return F.layer_norm(total, total.shape[-1:], slow.norm_weight, slow.norm_bias, NORM_EPS)


def may_be_dual() -> bool:
    """Whether tensors can have tangents, those of forward-mode derivatives.

    Their level has a private name only; without it they always can.
    """
    return getattr(forward_ad, "_current_level", 0) >= 0


def is_autocast(device: torch.device) -> bool:
    """Whether operations on this device are in another precision than their inputs."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def inner_loop(
    bracket: Tensor,
    hidden: Tensor,
    read: Callable[[Tensor], Tensor],
    slow: SlowWeights,
    rule: Rule,
) -> tuple[Tensor, Tensor]:
    """Equations 2 and 5: from the bracket (…, H) and h(t) to h(t+1).

    ``read`` maps a query h_s(t+1) to A(t) h_s(t+1), in whatever form the memory is kept.

    h_0 has no layer normalisation, as the paper's only formula for it has none; with one
    (``inner_start="normalised"``, and most public code) retrieval is learned, too. Supplement B's
    "method 2" (``boundary="identity"``) adds the identity to A in place of the bracket:
    h_s+1 = f(LN[(A(t) + I) h_s]).
    ``inner_start="previous"`` is not in the paper: it starts from h_0 = h(t), so that with S = 1
    the step is f(LN[(W + A(t)) h(t) + C x]), a recurrent network without the additional depth.

    Returns h_S(t+1) and the last query h_S-1(t+1) as it was asked, both (…, H).
    """
    activation = ACTIVATIONS[rule.nonlinearity]
    if rule.inner_start == "previous":
        state = hidden
    else:
        normalised = rule.inner_start == "normalised"
        state = activation(layer_norm(bracket, slow) if normalised else bracket)
    query = state
    for _ in range(rule.inner_steps):
        boundary = bracket if rule.boundary == "sustained" else state
        if slow.read_gain is None:
            query = state
            found = read(query)
        elif rule.plain_read:
            query = state
            found = slow.read_gain * read(query)
        else:
            query = direction(state)
            found = slow.read_gain * bounded(read(query))
        state = activation(layer_norm(boundary + found, slow))
    return state, query


def direction(query: Tensor) -> Tensor:
    """q / (H · rms(q)): what a learned read asks, whose entries are about 1/H in size. (…, H)."""
    precise, units = _precise(query), query.shape[-1]
    scale = (units * (precise.square().sum(-1, keepdim=True) + QUERY_EPS)).rsqrt()
    return (precise * scale).to(query.dtype)


def bounded(found: Tensor) -> Tensor:
    """z / √(1 + mean z² / 4): z where that is small, 2 z / rms(z) where it is large. (…, H)."""
    precise = _precise(found)
    mean = precise.square().mean(-1, keepdim=True)
    return (precise * (1 + mean / READ_LIMIT).rsqrt()).to(found.dtype)


def _precise(numbers: Tensor) -> Tensor:
    """In float32 at least, in which squares do not overflow."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def read(memory: Tensor, query: Tensor) -> Tensor:
    """A(t) h_s(t+1), with the memory as a matrix. (B, H, H), (B, H) → (B, H)."""
    return torch.matmul(memory, query.unsqueeze(-1)).squeeze(-1)


def write(memory: Tensor, hidden: Tensor, rule: Rule) -> Tensor:
    """Equation 1: λ A(t-1) + η h(t) h(t)ᵀ, one outer product per sequence. → (B, H, H)."""
    left, right = hidden.unsqueeze(-1), hidden.unsqueeze(-2)
    return torch.addcmul(rule.decay * memory, left, right, value=rule.fast_lr)


def attend(past: Tensor, strengths: Tensor, query: Tensor) -> Tensor:
    """Equation 4: Σ_τ strength_τ h(τ) [h(τ)·h_s(t+1)], the memory as attention over the past.

    ``past`` (…, B, t, H) holds h(1) … h(t) and ``strengths`` (…, B, t) holds η λ^(t-τ).
    → (…, B, H). Products and sums beat batched matrix products here, which are thin.
    """
    scores = (past * query.unsqueeze(-2)).sum(-1) * strengths
    return (past * scores.unsqueeze(-1)).sum(-2)


def decays(ages: Tensor, rule: Rule, dtype: torch.dtype) -> Tensor:
    """λ^age for ages of 0 or more, of any shape, computed in float32 at least."""
    precise = torch.promote_types(dtype, torch.float32)
    powers = rule.decay ** ages.to(precise)
    return powers if dtype == precise else powers.to(dtype)


def strengths(ages: Tensor, rule: Rule, dtype: torch.dtype) -> Tensor:
    """η λ^age, the weight in A of a state written ``age`` writes ago (equation 3).

    ``ages`` are integers of any shape; a negative one stands for a state not yet written: 0.
    """
    return rule.fast_lr * decays(ages.clamp(min=0), rule, dtype) * (ages >= 0)
