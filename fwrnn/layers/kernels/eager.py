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
from fwrnn.layers.equations import Rule, SlowWeights
from fwrnn.layers.memory import FastMemory

Memory = TypeVar("Memory", Tensor, FastMemory)


def matrix(
    drive: Tensor,
    hidden: Tensor,
    memory: FastMemory,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None,
) -> tuple[Tensor, FastMemory]:
    """Equations 1, 2 and 5 as written: A is an H×H matrix per sequence, updated at every step.

    Takes and returns what ``fwrnn.layers.kernels.recurrence`` documents. Time and memory grow
    with T·H².
    """

    def write(A: Tensor, hidden: Tensor, rule: Rule, running: Tensor | None) -> Tensor:
        written = equations.write(A, hidden, rule)
        return written if running is None else torch.where(running[:, None, None], written, A)

    states, A = _run(
        drive, hidden, memory.matrix(), slow, rule, lengths, equations.read, write
    )  # fmt: skip
    return states, FastMemory.from_matrix(A)


def attention(
    drive: Tensor,
    hidden: Tensor,
    memory: FastMemory,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None,
) -> tuple[Tensor, FastMemory]:
    """Equation 4: A is never formed while the sequence runs; each step attends to the past states.

    Takes and returns what ``fwrnn.layers.kernels.recurrence`` documents. Time and memory grow
    with T²·H.
    """
    return _run(
        drive, hidden, memory, slow, rule, lengths, FastMemory.read, FastMemory.write
    )  # fmt: skip


def _run(
    drive: Tensor,
    hidden: Tensor,
    memory: Memory,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None,
    read: Callable[[Memory, Tensor], Tensor],
    write: Callable[[Memory, Tensor, Rule, Tensor | None], Memory],
) -> tuple[Tensor, Memory]:
    """The loop over time. A sequence that has ended keeps its state and its memory."""
    states, running = [], None
    for t, step in enumerate(drive.unbind(0)):
        bracket = equations.sustained_input(step, hidden, slow)
        if lengths is not None:
            running = t < lengths
            bracket = bracket.where(running.unsqueeze(-1), 0)  # whatever the padding is
        new, _ = equations.inner_loop(bracket, hidden, partial(read, memory), slow, rule)
        new = new.to(hidden.dtype)
        hidden = new if running is None else new.where(running.unsqueeze(-1), hidden)
        memory = write(memory, hidden, rule, running)
        states.append(hidden)
    return torch.stack(states), memory
