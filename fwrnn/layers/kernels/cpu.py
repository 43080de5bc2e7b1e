"""The recurrence on the CPU, fused: buffers, threads and compilation around ``cpu_loops``.

The loops are compiled once per machine and type of number, which takes some seconds, and kept on
disk. They run in PyTorch's own team of threads, as many as ``torch.get_num_threads()`` says: a
second team would fight with the first, whose threads spin a while after every operation.
"""

import ctypes
import functools
import logging
import mmap
import threading
import warnings
from array import array
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import torch
from torch import Tensor

from fwrnn.layers.equations import Rule, SlowWeights

DTYPES = (torch.float32, torch.float64)
LARGE = 1 << 25  # bytes: what the C library takes from the system and gives back every time


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
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """h(1) … h(T), (T, B, H); h(0) … h(T), (T + 1, B, H), apart; and what ``backward`` needs.

    Arguments are those of ``fwrnn.layers.kernels.recurrence``, and ``save``, whether ``backward``
    will follow; nothing here is differentiated.
    """
    plan = _plan_for(drive.shape, hidden.dtype, memory, slow, rule)
    steps, batch, units = drive.shape
    trail = _empty((steps + 1, batch, units), hidden.dtype)
    trail[0] = hidden
    states = _empty(drive.shape, hidden.dtype)
    saved = _empty((plan.saved_sizes[save],), hidden.dtype)
    drive = drive.to(hidden.dtype).contiguous()
    inputs = (drive, *_contiguous(memory, *slow), states, trail, saved)
    plan.run(0, save, inputs)
    return states, trail, (saved,) if save else ()


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
    plan = _plan_for(drive.shape, trail.dtype, memory, slow, rule)
    if not grad_states.is_contiguous():  # that of a sum is one number, expanded
        grad_states = _empty(drive.shape, trail.dtype).copy_(grad_states)
    grad_drive, grad_hidden = _empty(drive.shape, trail.dtype), torch.empty_like(trail[0])
    grad_memory = None if memory is None else _empty(memory.shape, trail.dtype)
    grad_norms = None  # of gain and bias; a row for each block after that of their sum
    if slow.norm_weight is not None:
        grad_norms = trail.new_empty(1 + plan.blocks, 2, trail.shape[-1])
    inputs = (None, *_contiguous(memory, *slow), None, trail, *saved)
    plan.run(1, True, inputs, (grad_states, grad_drive, grad_hidden, grad_memory, grad_norms))
    norms = (None, None) if grad_norms is None else (grad_norms[0, 0], grad_norms[0, 1])
    return grad_drive, grad_hidden, grad_memory, *norms


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``torch.empty``; a large one in large pages, as the first touch of small ones is slow."""
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.nbytes >= LARGE and (advise := _madvise()):
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(start, tensor.data_ptr() + tensor.nbytes - start, mmap.MADV_HUGEPAGE)
    return tensor


@functools.cache
def _madvise():
    """The C library's ``madvise`` where it knows large pages (Linux), or None."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def chunk_length(steps: int, units: int) -> int:
    """Steps after which the memory is folded into a matrix: all T where folding would not pay.

    Per step, attention costs about T·H and a folded matrix 2·H², whatever T. The two were level at
    T = 128 for H = 64, 256 for H = 128 and 390 for H = 256 (a training step, AVX-512). Chunks of
    32 to 64 steps were fastest; longer ones for many units keep the matrices that backward needs,
    one per chunk, from outgrowing the states.
    """
    return steps if steps <= 32 + 3 * units // 2 else max(48, units // 2)


def _plan_for(shape, dtype, memory, slow: SlowWeights, rule: Rule) -> "_Plan":
    given, normalised = memory is not None, slow.norm_weight is not None
    return _Plan.cached(*shape, dtype, given, normalised, rule, torch.get_num_threads())


class _Plan:
    """What all calls for the same sizes and settings have in common."""

    def __init__(self, steps, batch, units, dtype, given, normalised, rule: Rule, threads):
        from fwrnn.layers.kernels import cpu_loops, simd

        self._counters = (0,) * len(cpu_loops.COUNTERS)
        self._arrays = len(cpu_loops.ARRAYS)
        lanes = simd.VECTOR_BYTES // dtype.itemsize
        row, chunk = units * lanes, chunk_length(steps, units)
        self.loops, self.dtype = _loops(dtype), dtype
        self.blocks = -(-batch // lanes)
        self.threads = min(threads, self.blocks)
        self._tables = _tables(rule, chunk, cpu_loops.GROUP, dtype)
        self._constants = (
            cpu_loops.VERSION, self.blocks, steps, batch, units, rule.inner_steps, chunk,
            rule.nonlinearity == "tanh", normalised, rule.boundary == "identity",
            rule.inner_start == "previous", *(table.data_ptr() for table in self._tables),
        )  # fmt: skip
        folds = given or steps > chunk
        self._work_sizes = [
            cpu_loops.work_rows(units, chunk, rule.inner_steps, folds, backward) * row
            for backward in (False, True)
        ]
        # Without backward, each thread uses the same vectors again at every step.
        self._layouts, self.saved_sizes = [], []
        for vectors, reads, borders in (
            (self.threads, 1, 0),
            (self.blocks * steps, rule.inner_steps, self.blocks * ((steps - 1) // chunk)),
        ):
            normed_at = vectors * row
            scales_at = normed_at + vectors * reads * row
            borders_at = scales_at + vectors * reads * lanes
            self._layouts.append((normed_at, scales_at, borders_at))
            self.saved_sizes.append(borders_at + borders * units * row)

    cached = functools.lru_cache(maxsize=256)(lambda *key: _Plan(*key))

    def run(self, which: int, save: bool, inputs: tuple, grads: tuple = ()) -> None:
        """Run loop 0 (forward) or 1 (backward); arrays in the order of ``cpu_loops.ARRAYS``."""
        work_size = self._work_sizes[which]
        work = torch.empty(self.threads * work_size, dtype=self.dtype)
        addresses = [
            0 if tensor is None else tensor.data_ptr() for tensor in (*inputs, work, *grads)
        ]
        addresses += [0] * (self._arrays - len(addresses))
        sizes = (save, *self._layouts[save], work_size)
        call = array("q", (*self._counters, *self._constants, *sizes, *addresses))
        _run_team(self.loops[which], call.buffer_info()[0], self.threads)


def _tables(rule: Rule, chunk: int, zeros: int, dtype) -> tuple[Tensor, Tensor]:
    """λ^k and η λ^k for k = 0 … chunk; the latter after zeros for rows not yet written."""
    powers = torch.tensor(rule.decay, dtype=torch.float64) ** torch.arange(chunk + 1)
    strengths = torch.cat([powers.new_zeros(zeros - 1), rule.fast_lr * powers])
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
    except Exception as error:
        # No folder for the cache, one that cannot be written, a damaged file in it, or what will
        # be raised again.
        _log.info("the compiled kernels cannot be kept on disk: %s", error)
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
    run = _callable(loop)
    if threads == 1:
        run(argument)
    elif openmp := _openmp():
        openmp(loop.address, argument, threads, 0)
    else:
        with ThreadPoolExecutor(threads) as team:
            list(team.map(run, [argument] * threads))


@functools.cache
def _callable(loop):
    return loop.ctypes
