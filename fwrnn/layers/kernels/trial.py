"""Whether a fused kernel works on the machine at hand, tried before "auto" first relies on it.

Kernels are compiled for processors that nobody tried them on. So ``backend="auto"`` and the
associative LSTM, which take a kernel unasked, first let it compute a small problem that is also
computed in PyTorch operations. If that fails, or the numbers differ, one warning says so, and for
the rest of the process PyTorch operations do the work. A backend that is asked for by name is not
tried.

A trial runs in a thread of its own, because what callers are in belongs to their thread: gradient,
inference and autocast modes, a default device, vmap, fake tensors, and whatever records a program.
So trials happen also while ``torch.compile`` traces, whose programs keep what was found then.
Random numbers come from a generator of the trial's own. Only CUDA graphs take in the work of all
threads: while one is captured nothing is tried, and what was not tried before is not used in it.
"""

import logging
import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fwrnn.layers.equations import SlowWeights
from fwrnn.layers.kernels import eager
from fwrnn.layers.memory import FastMemory
from fwrnn.rule import Rule

# Relative to the largest number of a tensor. A wrong kernel is off by more, a right one by less.
TOLERANCE = {torch.float32: 3e-4, torch.float64: 1e-9}
# For what comes of PyTorch's own products, which can be told to be as coarse as bfloat16.
COARSE_TOLERANCE = 1e-2

_lock = threading.Lock()
_passed: set[tuple] = set()
_failed: set[tuple] = set()
_log = logging.getLogger(__name__)


def constant_when_compiled(function: Any) -> Any:
    """Have ``torch.compile`` call a function once, and keep what it returned.

    What ``torch.compiler.assume_constant_result`` does too, after it has imported the compiler,
    which takes as long as PyTorch itself.
    """
    function._dynamo_marked_constant = True
    return function


def passes(
    kernel: str,
    device: torch.device,
    variant: Hashable,
    find_fault: Callable[[], str | None],
    instead: str = "slower operations take its place",
) -> bool:
    """Whether a kernel works, by a trial when this is first asked for a kind of device.

    Args:
        kernel: its name.
        device: where it is to run.
        variant: whatever else it is compiled for. A fault in one is held against all.
        find_fault: the trial: says what is wrong, or raises it; None when all is well.
        instead: what the warning says is done about it; "{!r}" in it becomes the name.
    """
    kind = _kind(device)
    if (kernel, kind) in _failed:
        return False
    if (kernel, kind, variant) in _passed:
        return True
    if is_captured(device):
        return False
    with _lock:
        if (kernel, kind) not in _failed and (kernel, kind, variant) not in _passed:
            fault = _in_a_thread(find_fault)
            if fault is None:
                _passed.add((kernel, kind, variant))
            else:
                _failed.add((kernel, kind))
                said = f"the fused kernel {kernel!r} does not work on this {kind} ({fault})"
                warnings.warn(f"{said}; {instead.format(kernel)}", stacklevel=2)
    return (kernel, kind) not in _failed


def is_captured(device: torch.device) -> bool:
    """Whether a CUDA graph records what is done there, and does it at its replays alone."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@lru_cache
def _kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _in_a_thread(find_fault: Callable[[], str | None]) -> str | None:
    """What it returns or raises, in words; Ctrl-C does not wait for the end of a compilation."""
    faults: list[str | None] = []
    full: list[Exception] = []

    def find() -> None:
        try:
            faults.append(find_fault())
        except Exception as error:  # compilers and drivers raise anything
            if "out of memory" in str(error):  # which is no fault of the kernel's
                full.append(error)
                return
            _log.debug("the trial of a kernel failed", exc_info=True)
            lines = str(error).strip().splitlines()
            kind = type(error).__name__
            faults.append(f"{kind}: {lines[0][:200]}" if lines else kind)

    alone = threading.Thread(target=find, daemon=True, name="fwrnn compiler")  # as cli knows it
    alone.start()
    while alone.is_alive():
        alone.join(0.2)  # on Windows nothing interrupts a wait without an end
    if full:
        raise full[0]
    return faults[0] if faults else "it ended the thread"


def difference(
    names: Sequence[str],
    found: Sequence[Tensor | None],
    wanted: Sequence[Tensor | None],
    dtype: torch.dtype,
    coarse: Sequence[str] = (),
) -> str | None:
    """Which of these tensors first differ by more than rounding does; None is taken for zeros.

    ``coarse`` are the names of those that depend on products of matrices that PyTorch makes.
    """
    for name, one, other in zip(names, found, wanted, strict=True):
        pair = [None if x is None else x.detach().to("cpu", torch.float64) for x in (one, other)]
        one, other = (torch.zeros(()) if x is None else x for x in pair)
        error = ((one - other).abs().max() / other.abs().max().clamp(min=1e-3)).item()
        rough = name in coarse and dtype == torch.float32
        if not error <= (COARSE_TOLERANCE if rough else TOLERANCE[dtype]):  # or not a number
            return f"{name} is off by {error:.1g} times its largest number"
    return None


class Case(NamedTuple):
    """A small problem for a kernel of the layer: its sizes, and what it is compiled for."""

    steps: int
    batch: int
    units: int
    memory: bool
    lengths: bool
    layer_norm: bool
    read_gain: bool
    inner_steps: int
    nonlinearity: str
    boundary: str
    inner_start: str


NAMES = (
    "h", "the gradient of the drive", "the gradient of the first state",
    "the gradient of the memory", "the gradient of the norm's weight",
    "the gradient of the norm's bias", "the gradient of the read's gain",
)  # fmt: skip


def fault_of(
    implementation: ModuleType, device: torch.device, dtype: torch.dtype, variant: tuple
) -> str | None:
    """How a kernel of the layer, one of ``operators.FUSED``, differs from the attention form."""
    for case in implementation.trial_cases(dtype, variant):
        arguments, grad_states = _problem(case)
        wanted = _by_attention(arguments, grad_states)
        moved = _moved(arguments, grad_states, device, dtype)
        for _ in range(2):  # the first time compiles, the second is like all that follow
            found = _by_kernel(implementation, *moved)
            if fault := difference(NAMES, found, wanted, dtype, NAMES[3:4]):
                return fault
    return None


def _problem(case: Case) -> tuple[tuple, Tensor]:
    """The arguments of a kernel's ``forward`` up to the lengths, and the gradient of the states.

    They are of a size that keeps what goes into a ReLU away from 0, where rounding could decide
    between two gradients: the drive and the bias of the norm outweigh all else.
    """
    generator, units = torch.Generator().manual_seed(0), case.units

    def random(*shape: int, scale: float, mean: float = 0.0) -> Tensor:
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
        return numbers * scale + mean

    def far_from_0(*shape: int) -> Tensor:
        numbers = random(*shape, scale=0.3)
        return numbers + numbers.sign()

    read = 1 if case.read_gain else 1 / units  # what undoes the read's own scale
    slow = SlowWeights(
        random(units, units, scale=0.1 * units**-0.5),
        random(units, scale=0.05, mean=0.25) if case.layer_norm else None,
        far_from_0(units) if case.layer_norm else None,
        random(units, scale=0.2, mean=1.0) if case.read_gain else None,
    )
    fast_lr = (0.1 if case.layer_norm else 0.005) * read
    rule = Rule(0.9, fast_lr, *case[-4:])
    shape = case.steps, case.batch, units
    memory = random(*shape[1:], units, scale=0.05 * read * units**0.5) if case.memory else None
    lengths = None
    if case.lengths:
        lengths = case.steps - torch.arange(case.batch) % case.steps
    drive, hidden = far_from_0(*shape), random(*shape[1:], scale=0.5)
    return (drive, hidden, memory, slow, rule, lengths), random(*shape, scale=1.0)


def _by_attention(arguments: tuple, grad_states: Tensor) -> list[Tensor | None]:
    drive, hidden, memory, slow, rule, lengths = arguments
    leaves = [drive, hidden, memory, *slow[1:]]
    wanted = [leaf.requires_grad_() for leaf in leaves if leaf is not None]
    given = FastMemory.empty(hidden) if memory is None else FastMemory.from_matrix(memory)
    states, _ = eager.attention(drive, hidden, given, slow, rule, lengths)
    grads = iter(torch.autograd.grad(states, wanted, grad_states, allow_unused=True))
    return [states, *(None if leaf is None else next(grads) for leaf in leaves)]


def _moved(arguments: tuple, grad_states: Tensor, device, dtype) -> tuple[tuple, Tensor]:
    *tensors, slow, rule, lengths = arguments

    def move(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.detach().to(device, dtype)

    lengths = None if lengths is None else lengths.to(device)
    slow = SlowWeights(*map(move, slow))
    return (*map(move, tensors), slow, rule, lengths), move(grad_states)


def _by_kernel(implementation, arguments: tuple, grad_states: Tensor) -> list[Tensor | None]:
    with torch.no_grad():
        states, trail, saved = implementation.forward(*arguments, True)
        implementation.forward(*arguments, False)  # which has to compile, too
        return [states, *implementation.backward(saved, trail, grad_states, *arguments[2:])]
