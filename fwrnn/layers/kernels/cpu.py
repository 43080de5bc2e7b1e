"""The recurrence on the CPU, fused: buffers, threads and compilation around ``cpu_loops``.

The loops are compiled once per machine and type of number, which takes some seconds, and kept on
disk. They run in PyTorch's own team of threads, as many as ``torch.get_num_threads()`` says: a
second team would fight with the first, whose threads spin a while after every operation.
"""

import ctypes
import functools
import logging
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor

from fwrnn.layers.equations import Rule, SlowWeights

DTYPES = (torch.float32, torch.float64)


def supports(
    drive: Tensor, hidden: Tensor, memory: Tensor | None, slow: SlowWeights, rule: Rule
) -> bool:
    """Whether ``forward`` and ``backward`` take these tensors: on a CPU, in float32 or float64."""
    others = [tensor for tensor in (memory, *slow) if tensor is not None]
    return (
        drive.device.type == "cpu"
        and drive.is_floating_point()
        and drive.numel() > 0
        and hidden.dtype in DTYPES
        and all(tensor.dtype == hidden.dtype for tensor in others)
        and _loops(hidden.dtype) is not None
    )


def forward(
    drive: Tensor,
    hidden: Tensor,
    memory: Tensor | None,
    slow: SlowWeights,
    rule: Rule,
    save: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """h(0) … h(T), (T + 1, B, H), and what ``backward`` needs, if ``save``.

    Arguments are those of ``fwrnn.layers.kernels.recurrence``; nothing here is differentiated.
    """
    drive = drive.to(hidden.dtype)
    call = _Call(drive.shape, hidden.dtype, memory, slow, rule, backward=False)
    steps, batch, units = drive.shape
    trail = drive.new_empty(steps + 1, batch, units)
    trail[0] = hidden
    row, inner_steps = units * call.lanes, rule.inner_steps
    vectors = call.blocks * steps if save else call.threads
    sizes = {
        "brackets": vectors * row,
        "normed": vectors * (inner_steps if save else 1) * row,
        "scales": vectors * (inner_steps if save else 1) * call.lanes,
        "borders": call.blocks * ((steps - 1) // call.chunk) * units * row if save else 0,
    }
    saved = drive.new_empty(sum(sizes.values())).split(list(sizes.values()))
    call.run(
        0, save=save, drive=drive, weight=slow.weight_hh, trail=trail,
        **dict(zip(sizes, saved, strict=True)),
    )  # fmt: skip
    return trail, saved if save else ()


def backward(
    saved: tuple[Tensor, ...],
    trail: Tensor,
    grad_states: Tensor,
    drive: Tensor,
    memory: Tensor | None,
    slow: SlowWeights,
    rule: Rule,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of drive, hidden, memory, norm_weight and norm_bias.

    That of ``weight_hh`` follows from the first and ``trail`` in one matrix product.
    """
    call = _Call(drive.shape, trail.dtype, memory, slow, rule, backward=True)
    grads = {
        "grad_drive": torch.empty_like(trail[1:]),
        "grad_hidden": torch.empty_like(trail[0]),
        "grad_memory": None if memory is None else torch.empty_like(memory),
        "grad_gain": None,
        "grad_shift": None,
    }
    if slow.norm_weight is not None:
        parts = trail.new_empty(2, call.blocks, trail.shape[-1])
        grads["grad_gain"], grads["grad_shift"] = parts
    brackets, normed, scales, borders = saved
    call.run(
        1, save=True, weight=slow.weight_hh.t().contiguous(), trail=trail, brackets=brackets,
        normed=normed, scales=scales, borders=borders, grad_states=grad_states, **grads,
    )  # fmt: skip
    if slow.norm_weight is not None:
        grads["grad_gain"], grads["grad_shift"] = parts.sum(1)
    return tuple(grads.values())


def chunk_length(steps: int, units: int) -> int:
    """Steps after which the memory is folded into a matrix: all T where folding would not pay.

    Per step, attention costs about T·H and a folded matrix 2·H², whatever T. The two were level at
    T = 128 for H = 64, 256 for H = 128 and 390 for H = 256 (a training step, AVX-512). Chunks of
    32 to 64 steps were fastest; longer ones for many units keep the matrices that backward needs,
    one per chunk, from outgrowing the states.
    """
    return steps if steps <= 32 + 3 * units // 2 else max(48, units // 2)


class _Call:
    """One call of a loop: its sizes, its scratch memory and its team of threads."""

    def __init__(self, shape, dtype, memory, slow: SlowWeights, rule: Rule, backward: bool):
        from fwrnn.layers.kernels import cpu_loops, simd

        steps, batch, units = shape
        self.dtype = dtype
        self.lanes = simd.VECTOR_BYTES // dtype.itemsize
        self.blocks = -(-batch // self.lanes)
        self.threads = min(torch.get_num_threads(), self.blocks)
        self.chunk = chunk_length(steps, units)
        matrix = memory is not None or steps > self.chunk
        rows = cpu_loops.work_rows(units, self.chunk, rule.inner_steps, matrix, backward)
        work_size = rows * units * self.lanes
        powers, strengths = _tables(rule.decay, rule.fast_lr, self.chunk, dtype)
        self.fields = {
            "version": cpu_loops.VERSION,
            "counters": torch.zeros(2, dtype=torch.int64),
            "blocks": self.blocks,
            "steps": steps,
            "batch": batch,
            "units": units,
            "inner_steps": rule.inner_steps,
            "chunk": self.chunk,
            "work_size": work_size,
            "tanh": rule.nonlinearity == "tanh",
            "layer_norm": slow.norm_weight is not None,
            "identity": rule.boundary == "identity",
            "previous": rule.inner_start == "previous",
            "memory": memory,
            "gain": slow.norm_weight,
            "shift": slow.norm_bias,
            "powers": powers,
            "strengths": strengths,
            "work": torch.empty(self.threads * work_size, dtype=dtype),
        }

    def run(self, which: int, **fields) -> None:
        """Run loop 0 (forward) or 1 (backward) with these fields beside those known before."""
        from fwrnn.layers.kernels.cpu_loops import CALL

        fields = self.fields | fields
        for name, value in fields.items():
            if isinstance(value, Tensor):
                fields[name] = value.contiguous()  # held here while the loop reads it
        call = np.array([_number(fields.get(name)) for name in CALL.names], dtype=np.int64)
        _run_team(_loops(self.dtype)[which], call.ctypes.data, self.threads)


def _number(value) -> int:
    """What a field of a call holds: an address or a number; 0 for None."""
    return value.data_ptr() if isinstance(value, Tensor) else int(value or 0)


@functools.lru_cache(maxsize=64)
def _tables(decay: float, fast_lr: float, chunk: int, dtype) -> tuple[Tensor, Tensor]:
    """λ^k and η λ^k for k = 0 … chunk; the second after zeros for rows not yet written."""
    from fwrnn.layers.kernels.cpu_loops import GROUP

    powers = torch.tensor(decay, dtype=torch.float64) ** torch.arange(chunk + 1)
    strengths = torch.cat([powers.new_zeros(GROUP - 1), fast_lr * powers])
    return powers.to(dtype), strengths.to(dtype)


@functools.cache
def _loops(dtype: torch.dtype):
    """The two compiled loops for one type of number, or None where they cannot be had."""
    if find_spec("numba") is None:
        return None
    # Reading them from disk is quick; what takes longer than a moment is compiling.
    notice = threading.Timer(1.5, _log.info, [_COMPILING])
    notice.start()
    try:
        return _build(dtype)
    except Exception as error:
        warnings.warn(
            f"the fused CPU kernels did not compile here, so slower ones are used: {error}",
            stacklevel=2,
        )
        return None
    finally:
        notice.cancel()


_log = logging.getLogger(__name__)
_COMPILING = "compiling the fused kernels for this machine, once; some seconds"


def _build(dtype: torch.dtype):
    from numba import types

    from fwrnn.layers.kernels import cpu_loops

    kind = {torch.float32: types.float32, torch.float64: types.float64}[dtype]
    try:
        return cpu_loops.build(kind, cache=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError):
        # No folder for the cache, one that cannot be written, or a damaged file in it.
        return cpu_loops.build(kind, cache=False)


@functools.cache
def _openmp():
    """``GOMP_parallel`` of the OpenMP runtime that PyTorch runs on, or None where it has none."""
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function


def _run_team(loop, argument: int, threads: int) -> None:
    """Call ``loop(argument)`` in every thread of a team; Python's lock is free meanwhile."""
    if threads == 1:
        loop.ctypes(argument)
    elif openmp := _openmp():
        openmp(loop.address, argument, threads, 0)
    else:
        with ThreadPoolExecutor(threads) as team:
            list(team.map(loop.ctypes, [argument] * threads))
