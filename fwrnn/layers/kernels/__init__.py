"""The recurrence of the fast-weights layer, in every form it can be computed; chosen here alone.

A new form in PyTorch operations is one function such as ``eager.matrix`` and one line in
``operators.EAGER``; a new fused one is a module with ``supports``, ``forward``, ``backward``,
``saved_size``, ``variant`` and ``trial_cases``, as ``cpu`` has them, and one line in
``operators.FUSED``. The names of both are in ``rule.BACKENDS``. On a CPU, where nobody looks,
single steps are taken by ``steps`` and whole sequences by ``sequences``.
"""

from contextlib import nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from fwrnn.layers import equations
from fwrnn.layers.equations import InputWeights, SlowWeights
from fwrnn.layers.kernels import cpu, operators, scan, sequences, trial
from fwrnn.layers.kernels.operators import EAGER, FUSED
from fwrnn.layers.kernels.sequences import Sequences
from fwrnn.layers.memory import FastMemory, is_tracing
from fwrnn.rule import BACKENDS, Rule, one_of


def check(backend: str) -> None:
    """Raises ValueError when ``backend`` is neither "auto" nor the name of a form."""
    one_of("backend", backend, ("auto", *BACKENDS))


def choose(
    backend: str,
    sequence: Tensor,
    hidden: Tensor,
    memory: FastMemory | None,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None = None,
) -> str:
    """The form that ``backend`` comes to for these tensors, a name in ``BACKENDS``.

    "auto" is a fused form where one reaches and has passed its ``trial``, but for a single step
    that ``steps`` did not take. That is attention as long as fewer states than units were written,
    because they are fewer numbers than the matrix that they make; then the matrix form, one pass
    over the memory. A fused form that does not reach, as none does in forward-mode derivatives or
    where ``torch.func`` differentiates a program that is recorded, comes to one of these two; one
    that was asked for by name is not tried.

    Of the eager ones, a training step costs about T²·H as attention and T·H² as a matrix; trials
    at B = 128 on two cores put attention far ahead at (T, H) = (24, 200), and the two level at
    (100, 50).
    """
    if backend in EAGER:
        return backend
    if backend == "auto" and sequence.shape[0] == 1 and not is_tracing():  # a trace takes more
        few = memory is None or not (memory.is_folded() or memory.outgrows(1))
        return "attention" if few else "matrix"
    derived = equations.may_be_dual() or operators.is_differentiated()
    # The fade, of the same device and dtype, stands for the matrix that will be made.
    given = None if memory is None else memory.fade
    for name, implementation in FUSED.items():
        if backend not in ("auto", name) or derived:
            continue
        if not implementation.supports(sequence, hidden, given, slow, rule):
            continue
        variant = implementation.variant(given, slow, rule, lengths)
        if backend == name or operators.works(name, sequence.device, hidden.dtype, variant):
            return name
    return (
        "matrix" if backend == "auto" and sequence.shape[0] > 2 * hidden.shape[-1] else "attention"
    )


def recurrence(
    sequence: Tensor,
    inputs: InputWeights,
    hidden: Tensor,
    memory: FastMemory | None,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, FastMemory]:
    """Run one layer, in one direction, over whole sequences.

    Args:
        sequence: x(t) for every step, (T, B, I), T of 1 or more.
        inputs: C and the biases.
        hidden: the state before the first step, (B, H); its dtype is that of all results.
        memory: the fast memory before the first step, of B sequences, or None for an empty one.
        slow: the learned weights used within a step.
        rule: the constants.
        lengths: steps per sequence, (B), from 1 to T, or None when all have T. Past a sequence's
            end its state and its memory stay what they are, whatever its x is.
        backend: "auto" or a name in ``BACKENDS``.

    Returns:
        The states h(1) … h(T), (T, B, H); the last of each sequence, (B, H), apart, so that both
        may be changed in place; and the memory after the last write.
    """
    check(backend)
    tracing = is_tracing()
    if tracing and torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "fast weights cannot be exported by torch.onnx.export(…, dynamo=False), which traces; "
            "use dynamo=True"
        )
    if memory is not None and not tracing and memory.is_empty():
        memory = None
    if _is_exporting():
        return _exported(sequence, inputs, hidden, memory, slow, rule, lengths)
    form, steps = choose(backend, sequence, hidden, memory, slow, rule, lengths), sequence.shape[0]
    # Traced and compiled programs have no loops of their own, which would be of this length alone,
    # but where torch.func differentiates them.
    unrolled = not torch.compiler.is_compiling() or steps == 1 or operators.is_differentiated()
    if form in EAGER and unrolled and not tracing:
        if memory is None:
            memory = FastMemory.empty(hidden)
        elif form == "attention" and (memory.written.shape[-2] == 0 or memory.outgrows(steps)):
            # A copy, too, of a matrix that callers may change.
            memory = FastMemory.from_matrix(memory.matrix())
        drive = inputs.drive(sequence)
        states, memory = EAGER[form](drive, hidden, memory, slow, rule, lengths)
        return states, states[-1].clone(), memory
    given = None if memory is None else memory.matrix()
    observed = operators.is_observed(sequence, *inputs, hidden, given, *slow)
    if form == "numba" and not observed:
        parts = _parts(sequence, inputs, hidden, given, slow)
        if found := sequences.run(parts, rule, 1.0, lengths, backend == "auto"):
            states, hidden, memory = found
            return states, hidden.squeeze(0), FastMemory(*(part.squeeze(0) for part in memory))
    states, hidden, written = operators.recurrence(
        form, sequence, inputs, hidden, given, slow, rule, lengths, observed
    )
    return states, hidden, _memory_after(written, given, rule, lengths, observed)


def _parts(sequence, inputs: InputWeights, hidden, memory, slow: SlowWeights) -> Sequences:
    weight_hh, *learned = slow
    weight_ih, *biases = inputs
    return Sequences(sequence, hidden, memory, weight_ih, weight_hh, *biases, *learned)


def _exported(
    sequence, inputs, hidden, memory, slow, rule, lengths
) -> tuple[Tensor, Tensor, FastMemory]:
    """The same as a scan, in which what goes round keeps its dtype: autocast has no part in it."""
    casts = equations.is_autocast(hidden.device)
    with torch.autocast(hidden.device.type, enabled=False) if casts else nullcontext():
        drive = inputs.drive(sequence.to(hidden.dtype))
        states, memory = scan.recurrence(drive, hidden, memory, slow, rule, lengths)
    return states, states[-1], memory


def _is_exporting() -> bool:
    """Whether a program is made for other machines, in which there are no kernels."""
    if _COMPILING_COUNTS and torch.compiler.is_dynamo_compiling():
        return False
    return torch.compiler.is_exporting()


# Up to 2.11, PyTorch says of whatever torch.compile looks at that it is being exported.
_COMPILING_COUNTS = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12)


def _memory_after(
    written: Tensor, given: Tensor | None, rule: Rule, lengths: Tensor | None, observed: bool
) -> FastMemory:
    """Equation 3 at each sequence's own end: λ^T A(0) + η Σ_τ λ^(T-τ) h(τ) h(τ)ᵀ, not summed."""
    batch, steps, _ = written.shape
    if lengths is None:
        like = steps, written.dtype, written.device
        fading = _fading(rule, *like) if observed else _known_fading(rule, *like)
        # A copy for each sequence, as callers may change that of one in place.
        left = written.new_empty(batch, steps + 1).copy_(fading)
        strengths, fade = left[:, :-1], left[:, -1]
    else:
        ages = lengths.unsqueeze(-1) - torch.arange(1, steps + 1, device=written.device)
        strengths = equations.strengths(ages, rule, written.dtype)
        fade = equations.decays(lengths, rule, written.dtype)
    folded = written.new_empty(batch, 0, 0) if given is None else given
    return FastMemory(written, strengths, folded, fade)


def _fading(rule: Rule, steps: int, dtype: torch.dtype, device) -> Tensor:
    """What is left of each of T states after the last, η λ^(T-1) … η, and of all before, λ^T."""
    with torch.inference_mode(False):  # so that autograd may keep them, whoever asks first
        powers = equations.decays(torch.arange(steps, -1, -1, device=device), rule, dtype)
        return torch.cat([rule.fast_lr * powers[1:], powers[:1]])


def _known_fading(rule: Rule, steps: int, dtype: torch.dtype, device) -> Tensor:
    """The same, kept for the next call; a CUDA graph's are made at each replay, and its own."""
    if trial.is_captured(device):
        return _fading(rule, steps, dtype, device)
    try:
        return _kept_fading(rule, steps, dtype, device)
    except RuntimeError:  # within torch.func's transforms, whose tensors do not outlive them
        return _fading(rule, steps, dtype, device)


@lru_cache(maxsize=64)
def _kept_fading(*key) -> Tensor:
    fading = _fading(*key)
    cpu.address(fading)  # which those do not have
    return fading
