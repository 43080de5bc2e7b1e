"""The recurrence over a whole sequence in plain PyTorch operations, in the paper's two forms.

Autograd differentiates both, any number of times, on any device. ``matrix`` is the reference that
every other form is compared with.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fwrnn.layers import equations
from fwrnn.layers.equations import Rule, SlowWeights


@dataclass(frozen=True)
class Written:
    """A memory as what was written into it: A = λ^n A(0) + η Σ_τ λ^(n-τ) h(τ) h(τ)ᵀ (equation 3).

    ``chunks`` hold h(1) … h(n) in pieces of any length, each (·, B, H), and ``before`` is A(0),
    (B, H, H), or None for zero. Calling it gives the matrix. While n is below H it is the smaller
    of the two, and attention that goes on from it has less to compute.
    """

    chunks: tuple[Tensor, ...]
    before: Tensor | None
    rule: Rule

    def __call__(self) -> Tensor:
        return memory_after(torch.cat(self.chunks), self.before, self.rule, None)

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


def matrix(
    drive: Tensor,
    hidden: Tensor,
    memory: Tensor | None,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Equations 1, 2 and 5 as written: A is an H×H matrix per sequence, updated at every step.

    Takes and returns what ``fwrnn.layers.kernels.recurrence`` documents. Time and memory grow
    with T·H².
    """
    if memory is None:
        memory = hidden.new_zeros(*hidden.shape, hidden.shape[-1])
    outputs = []
    for t, step in enumerate(drive.unbind(0)):
        bracket = equations.sustained_input(step, hidden, slow)
        new, _ = equations.inner_loop(
            bracket, hidden, lambda query, A=memory: equations.read(A, query), slow, rule
        )
        new = new.to(hidden.dtype)
        written = equations.write(memory, new, rule)
        outputs.append(new)
        if lengths is None:
            hidden, memory = new, written
        else:
            running = (t < lengths).unsqueeze(-1)
            hidden = torch.where(running, new, hidden)
            memory = torch.where(running.unsqueeze(-1), written, memory)
    return torch.stack(outputs), hidden, lambda: memory


def attention(
    drive: Tensor,
    hidden: Tensor,
    memory: Tensor | Written | None,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Equation 4: A is never formed while the sequence runs; each step attends to the past states.

    Takes and returns what ``fwrnn.layers.kernels.recurrence`` documents. Time and memory grow
    with T²·H. Only the returned state holds H×H numbers per sequence, summed up once it is asked
    for. A memory that is ``Written`` only grows longer.
    """
    first, chunks, earlier = hidden, [], 0
    if isinstance(memory, Written):
        chunks, earlier, memory = list(memory.chunks), len(memory), memory.before
    given = len(chunks)
    ages = torch.arange(earlier + len(drive) - 1, -1, -1, device=drive.device)
    strengths = equations.strengths(ages, rule, hidden.dtype).view(-1, 1, 1)
    for written, step in enumerate(drive.unbind(0), start=earlier):
        past = torch.cat(chunks) if written else None  # once for all S reads

        def read(query: Tensor, written: int = written, past: Tensor | None = past) -> Tensor:
            found = torch.zeros_like(query)
            if past is not None:
                found = equations.attend(past, strengths[-written:], query)
            if memory is not None:
                found = found + rule.decay**written * equations.read(memory, query)
            return found

        bracket = equations.sustained_input(step, hidden, slow)
        hidden, _ = equations.inner_loop(bracket, hidden, read, slow, rule)
        hidden = hidden.to(first.dtype)
        chunks.append(hidden.unsqueeze(0))
    # A copy: autograd keeps the parts, and callers may change what they get in place.
    states = torch.cat(chunks[given:])
    if lengths is None:
        return states, states[-1], Written(tuple(chunks), memory, rule)
    hidden = last_states(states, lengths)
    return states, hidden, lambda: memory_after(torch.cat(chunks[given:]), memory, rule, lengths)


def last_states(states: Tensor, lengths: Tensor) -> Tensor:
    """The state of each sequence at its own last step. (T, B, H) → (B, H)."""
    return states[lengths - 1, torch.arange(len(lengths), device=lengths.device)]


def memory_after(
    states: Tensor, memory: Tensor | None, rule: Rule, lengths: Tensor | None
) -> Tensor:
    """Equation 3 once, at each sequence's own end: λ^T A(0) + η Σ_τ λ^(T-τ) h(τ) h(τ)ᵀ."""
    if lengths is None:
        lengths = torch.full(states.shape[1:2], len(states), device=states.device)
    ages = lengths - 1 - torch.arange(len(states), device=lengths.device).unsqueeze(-1)
    weighted = states * equations.strengths(ages, rule, states.dtype).unsqueeze(-1)
    total = (weighted.permute(1, 2, 0) @ states.transpose(0, 1)).to(states.dtype)
    if memory is None:
        return total
    return total + equations.decays(lengths, rule, states.dtype).view(-1, 1, 1) * memory
