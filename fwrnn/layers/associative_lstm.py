"""The associative LSTM of Danihelka et al. 2016 (arXiv:1602.03032), a baseline of the paper.

A state of H reals is read as H/2 complex numbers, the real parts first. Items are bound to complex
keys and added up in ``copies`` redundant memories, each under its own fixed permutation, so that
the noise of one retrieval differs from copy to copy and averages out:

    g_i, g_f, g_o = σ(affine(x, h))                            gates, H/2 numbers each
    r_i, r_o, u   = bound(affine(x, h)),  bound(z) = z / max(1, |z|)
    c_s ← g_f ⊙ c_s + (P_s r_i) ⊛ (g_i ⊙ u)                    ⊛ is the complex product
    h   = g_o ⊙ bound(mean_s (P_s r_o) ⊛ c_s)

With several heads each has its own g_i, g_o, r_i, r_o and u. As the source does not say how their
reads are combined, that choice is ours: writes and reads are both summed over the heads.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwrnn.layers.initialization import uniform_outgoing_
from fwrnn.layers.kernels import associative


class AssociativeLSTMState(NamedTuple):
    """``hidden`` (B, H), and ``cells`` (B, copies, H/2, 2): the memories, real and imaginary."""

    hidden: Tensor
    cells: Tensor


class AssociativeLSTM(nn.Module):
    """One layer of associative LSTM over (T, B, I) inputs.

    Args:
        input_size: numbers per step of the input, I.
        hidden_size: H, an even number.
        copies: redundant copies of the memory; the paper uses 4.
        heads: read-write heads; the paper uses 3.

    Inputs: ``input`` (T, B, I), and an ``AssociativeLSTMState`` or None for zeros.
    Outputs: h(t) at every step, (T, B, H), and the last ``AssociativeLSTMState``.

    Raises:
        ValueError: an odd ``hidden_size``, or a number of copies or heads below 1.
    """

    permutations: Tensor

    def __init__(self, input_size: int, hidden_size: int, copies: int = 4, heads: int = 3):
        super().__init__()
        if hidden_size < 2 or hidden_size % 2:
            raise ValueError(
                f"hidden_size must be even, got {hidden_size}: half the numbers are real parts, "
                "half imaginary parts; add or drop one unit"
            )
        if copies < 1 or heads < 1:
            raise ValueError(
                f"copies and heads must be 1 or more, got {copies} and {heads}; the paper uses "
                "4 copies and 3 heads"
            )
        self.hidden_size, self.copies, self.heads = hidden_size, copies, heads
        half = hidden_size // 2
        # Per head the gates g_i and g_o (half each) and the complex r_i, r_o and u; one shared g_f.
        self._sizes = [half, heads * half, heads * half, 3 * heads * hidden_size]
        self.input_map = nn.Linear(input_size, sum(self._sizes))
        self.hidden_map = nn.Linear(hidden_size, sum(self._sizes), bias=False)
        permutations = torch.empty(copies, half, dtype=torch.int64)
        for row in permutations:  # torch.stack would import PyTorch's compiler for an outline
            row.copy_(torch.randperm(half))
        self.register_buffer("permutations", permutations)
        for parameter in self.parameters():
            uniform_outgoing_(parameter)

    def forward(self, input: Tensor, hx: AssociativeLSTMState | None = None):
        steps = self.input_map(input)
        if hx is None:
            batch, half = input.shape[1], self.hidden_size // 2
            hx = AssociativeLSTMState(
                steps.new_zeros(batch, self.hidden_size),
                steps.new_zeros(batch, self.copies, half, 2),
            )
        weight = self.hidden_map.weight
        states, cells = associative.recurrence(self._eager, steps, weight, *hx, self.permutations)
        return states, AssociativeLSTMState(states[-1], cells)

    def _eager(
        self, steps: Tensor, weight: Tensor, hidden: Tensor, cells: Tensor, permutations: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The recurrence in PyTorch operations: all hidden states, and the last cells."""
        outputs = []
        for step in steps.unbind(0):
            hidden, cells = self._step(step + F.linear(hidden, weight), cells, permutations)
            outputs.append(hidden)
        return torch.stack(outputs), cells

    def _step(self, affine: Tensor, cells: Tensor, permutations: Tensor) -> tuple[Tensor, Tensor]:
        """The equations above; complex numbers are a last dimension of 2, heads a dimension 1."""
        batch, heads, half = len(affine), self.heads, self.hidden_size // 2
        forget, write, output, vectors = affine.split(self._sizes, dim=-1)
        forget = torch.sigmoid(forget).view(batch, 1, half, 1)
        write = torch.sigmoid(write).view(batch, heads, half, 1)
        output = torch.sigmoid(output).view(batch, heads, half, 1)
        vectors = _bound(vectors.view(batch, 3, heads, 2, half).transpose(-1, -2))
        write_key, read_key, update = vectors.unbind(1)
        written = _multiply(_permuted(write_key, permutations), (write * update).unsqueeze(2))
        cells = forget * cells + written.sum(1)
        found = _multiply(_permuted(read_key, permutations), cells.unsqueeze(1)).mean(2)
        hidden = (output * _bound(found)).sum(1)
        return hidden.transpose(-1, -2).flatten(1), cells


def _permuted(keys: Tensor, permutations: Tensor) -> Tensor:
    """P_s applied to keys (B, heads, H/2, 2), for every copy s → (B, heads, copies, H/2, 2).

    By ``gather``, as the gradient of ``index_select`` sums in any order on a GPU.
    """
    batch, heads, half, parts = keys.shape
    places = permutations.view(1, 1, -1, half, 1).expand(batch, heads, -1, -1, parts)
    return keys.unsqueeze(2).expand_as(places).gather(3, places)


def _bound(z: Tensor) -> Tensor:
    """z / max(1, |z|) of complex numbers (…, 2).

    |z|² is clamped before the root, whose derivative at 0 is infinite.
    """
    return z / z.square().sum(-1, keepdim=True).clamp(min=1).sqrt()


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """The product of complex numbers (…, 2)."""
    real = a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
    imaginary = a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0]
    return torch.stack([real, imaginary], dim=-1)
