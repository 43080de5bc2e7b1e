"""The recurrence over a whole sequence in plain PyTorch operations, in the paper's two forms.

Autograd differentiates both, any number of times, on any device. ``matrix`` is the reference that
every other form is compared with.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from fwrnn.layers import equations
from fwrnn.layers.equations import SlowWeights
from fwrnn.layers.memory import FastMemory
from fwrnn.rule import Rule

Memory = TypeVar("Memory", Tensor, FastMemory)


def matrix(drive, hidden, memory: FastMemory, slow, rule, lengths) -> tuple[Tensor, FastMemory]:
    """Equations 1, 2 and 5 as written: A is an H×H matrix per sequence, updated at every step.

    Takes and returns what ``fwrnn.layers.kernels.recurrence`` documents. Time and memory grow
    with T·H².
    """
    A = memory.matrix()
    states, A = _run(equations.read, write_matrix, drive, hidden, A, slow, rule, lengths)
    return states, FastMemory.from_matrix(A)


def attention(drive, hidden, memory: FastMemory, slow, rule, lengths) -> tuple[Tensor, FastMemory]:
    """Equation 4: A is never formed while the sequence runs; each step attends to the past states.

    Takes and returns what ``fwrnn.layers.kernels.recurrence`` documents. Time and memory grow
    with T²·H.
    """
    read, write = FastMemory.read, FastMemory.write
    return _run(read, write, drive, hidden, memory, slow, rule, lengths)


def _run(
    read: Callable[[Memory, Tensor], Tensor],
    write: Callable[[Memory, Tensor, Rule, Tensor | None], Memory],
    drive: Tensor,
    hidden: Tensor,
    memory: Memory,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None,
) -> tuple[Tensor, Memory]:
    """The loop over time. A sequence that has ended keeps its state and its memory."""
    states = []
    for t, step in enumerate(drive.unbind(0)):
        running = None if lengths is None else t < lengths
        hidden = next_state(step, hidden, partial(read, memory), slow, rule, running)
        memory = write(memory, hidden, rule, running)
        states.append(hidden)
    return torch.stack(states), memory


def next_state(
    drive: Tensor,
    hidden: Tensor,
    read: Callable[[Tensor], Tensor],
    slow: SlowWeights,
    rule: Rule,
    running: Tensor | None,
) -> Tensor:
    """h(t+1) from h(t), both (B, H); h(t) again where ``running`` (B), a mask, is False."""
    bracket = equations.sustained_input(drive, hidden, slow)
    if running is not None:
        bracket = bracket.where(running.unsqueeze(-1), 0)  # whatever the padding is
    new, _ = equations.inner_loop(bracket, hidden, read, slow, rule)
    new = new.to(hidden.dtype)
    return new if running is None else new.where(running.unsqueeze(-1), hidden)


def write_matrix(A: Tensor, hidden: Tensor, rule: Rule, running: Tensor | None) -> Tensor:
    """Equation 1 for the sequences that run, (B); the A of others, (B, H, H), stays."""
    written = equations.write(A, hidden, rule)
    return written if running is None else written.where(running[:, None, None], A)
