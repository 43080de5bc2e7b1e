"""The recurrence of the fast-weights layer, in every form it can be computed; chosen here alone.

A new form in PyTorch operations is one function with the signature of ``recurrence`` less
``backend`` and one line in ``EAGER``; a new fused one is a module with ``supports``, ``forward``
and ``backward``, as ``cpu`` has them, and one line in ``FUSED``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fwrnn.layers.equations import Rule, SlowWeights
from fwrnn.layers.kernels import cpu, eager, fused, gpu
from fwrnn.layers.kernels.eager import Written

EAGER = {"matrix": eager.matrix, "attention": eager.attention}
FUSED = {"numba": cpu, "triton": gpu}
BACKENDS = (*EAGER, *FUSED)


def check(backend: str) -> None:
    """Raises ValueError when ``backend`` is neither "auto" nor the name of a form."""
    if backend != "auto" and backend not in BACKENDS:
        names = ", ".join(repr(name) for name in ("auto", *BACKENDS))
        raise ValueError(
            f"backend must be one of {names}, got {backend!r}; 'auto' picks the fastest one"
        )


def usable(
    memory: Tensor | Callable[[], Tensor] | None,
    drive: Tensor,
    rule: Rule,
    lengths: Tensor | None,
    backend: str,
) -> Tensor | Written | None:
    """The given memory, made into a matrix unless a single step can go on from what was written."""
    if not callable(memory):
        return memory
    few = isinstance(memory, Written) and len(memory) < drive.shape[-1] and memory.rule == rule
    single = len(drive) == 1 and lengths is None
    return memory if few and single and backend in ("auto", "attention") else memory()


def choose(
    backend: str,
    drive: Tensor,
    hidden: Tensor,
    memory: Tensor | Written | None,
    slow: SlowWeights,
    rule: Rule,
) -> str:
    """The form that ``backend`` comes to for these tensors, a name in ``BACKENDS``.

    "auto" is a fused form where one reaches, but for a single step, as a cell takes it. That is
    attention as long as fewer states than units were written, because they are fewer numbers than
    the matrix that they make; then the matrix form, one pass over the memory, which no fused form
    makes faster. A fused form that does not reach comes to attention.

    Of the eager ones, a training step costs about T²·H as attention and T·H² as a matrix; trials
    at B = 128 on two cores put attention far ahead at (T, H) = (24, 200), and the two level at
    (100, 50).
    """
    if backend in EAGER:
        return backend
    if backend == "auto" and len(drive) == 1:
        return "attention" if memory is None or isinstance(memory, Written) else "matrix"
    for name, implementation in FUSED.items():
        if backend in ("auto", name) and fused.reaches(
            implementation, drive, hidden, memory, slow, rule
        ):
            return name
    return "matrix" if backend == "auto" and len(drive) > 2 * drive.shape[-1] else "attention"


def recurrence(
    drive: Tensor,
    hidden: Tensor,
    memory: Tensor | Callable[[], Tensor] | None,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Run one layer, in one direction, over whole sequences.

    Args:
        drive: C x(t) + biases for every step, (T, B, H), T of 1 or more.
        hidden: the state before the first step, (B, H); its dtype is that of all results.
        memory: the fast memory before the first step, (B, H, H), or None for zero; or what an
            earlier call returned to make it, which attention may go on from as it is.
        slow: the learned weights used within a step.
        rule: the constants.
        lengths: steps per sequence, (B), from 1 to T, or None when all have T. Past a sequence's
            end its outputs are arbitrary finite numbers and its state stays as it was.
        backend: "auto" or a name in ``BACKENDS``.

    Returns:
        The states h(1) … h(T), (T, B, H); the last state of each sequence, (B, H); and a function
        that makes its memory after the last write, (B, H, H): H times as many numbers as the
        state, which most callers never look at.
    """
    if backend not in EAGER and torch.compiler.is_compiling():
        # TorchDynamo cannot look into a fused kernel: it compiles what comes before and after.
        disabled = torch.compiler.disable(recurrence)
        return disabled(drive, hidden, memory, slow, rule, lengths, backend)
    check(backend)
    given, memory = memory, usable(memory, drive, rule, lengths, backend)
    form = choose(backend, drive, hidden, memory, slow, rule)
    if memory is given and isinstance(memory, Tensor) and form != "matrix":
        memory = memory.clone()  # what makes the next one needs it; callers may change theirs
    arguments = drive, hidden, memory, slow, rule
    if form in FUSED:
        return fused.recurrence(FUSED[form], *arguments, lengths)
    return EAGER[form](*arguments, lengths)
