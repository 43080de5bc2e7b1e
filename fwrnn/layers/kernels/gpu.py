"""The recurrence over a whole sequence on a GPU: one launch forward, one launch backward.

The loops themselves are in ``triton_loops``, which is imported at the first launch: Triton comes
with CUDA builds of PyTorch and is needed by nothing else.

One program runs one sequence. What bounds it is its chain of dependent steps, and a batch of 128
fills the 132 processors of an H100 once: several sequences in a program would leave most of them
idle, to share nothing but W (the attention over past states, most of the work, is each sequence's
own) and without tensor cores, which do not multiply in full float32. Where W and A fit into
registers, H ≤ 128 in float32, they stay there (some hundred bytes of each thread do not, from H =
65 on), and a forward step touches memory for its drive and its results alone; above that W comes
from the cache at every step, and the memory is attention.

To check on a GPU::

    python -m pytest -m '' tests/layers/test_gpu.py
    compute-sanitizer python -m pytest -m '' tests/layers/test_gpu.py
    fwrnn bench --device cuda

On an H100 (PyTorch 2.11, Triton 3.6) the tests passed, and the loops of a training step at B = 128
took, forward and backward, in microseconds, beside all that cuDNN does for ``nn.LSTM``::

    T, H         11, 20     11, 50     11, 100    24, 200     100, 100    1000, 128
    the loops    11 + 17    12 + 22    28 + 46    116 + 151   240 + 551   2,600 + 18,800
    nn.LSTM      66         79         124        531         686         6,100

With eight warps instead of four they take half as long again: every warp repeats what is done to
vectors. Sums over rows of a tile, in place of columns, save most of the shuffles, which is why W
and a given memory are transposed. What attention costs backward grows with T². Around the loops are
a dozen small launches, and the host, not the GPU, decided how long a step took there, 2.1 to 2.6
ms, 1.1 to 1.6 times ``nn.LSTM``'s; ``_launch`` is the answer to that, which has only been tried
with stand-ins yet. Everything is compiled for compute capabilities 7.5 to 12.0 besides. Without a
GPU the tests use the interpreter, which ``TRITON_INTERPRET=1`` turns on.
"""

# pyright: reportCallIssue=false
# (a launch in Triton takes its arguments and, besides, options of the compiler)

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fwrnn.layers.equations import NORM_EPS, QUERY_EPS, READ_LIMIT, SlowWeights
from fwrnn.layers.kernels.cpu import address, is_found
from fwrnn.layers.kernels.trial import Case, constant_when_compiled, is_captured
from fwrnn.rule import Rule

MAX_HIDDEN_SIZE = 256
MAX_STEPS = 1024
RESIDENT_BYTES = 128 * 128 * 4  # of one H×H matrix; two of them fill half the registers
TILE_BYTES = 32 * 128 * 4  # of what one load instruction of a program fetches
DRIVE_DTYPES = {
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),  # the latter under autocast
    torch.float64: (torch.float64,),
}


def supports(
    sequence: Tensor, hidden: Tensor, memory: Tensor | None, slow: SlowWeights, rule: Rule
) -> bool:
    """Whether ``forward`` and ``backward`` take these tensors and what a sequence (T, B, I) drives.

    They take float32 (with a drive of half precision, too) or float64 on an NVIDIA GPU, H up to
    256, T up to 1,024, and any ``rule`` but with a normalised start or a plain read.
    """
    (steps, batch, _), size = sequence.shape, hidden.shape[-1]
    if rule.inner_start == "normalised" or rule.plain_read:
        return False
    if not (0 < steps <= MAX_STEPS and 0 < size <= MAX_HIDDEN_SIZE and batch > 0):
        return False
    if sequence.dtype not in DRIVE_DTYPES.get(hidden.dtype, ()):
        return False
    others = [tensor for tensor in (hidden, memory, *slow) if tensor is not None]
    if any(tensor.device != sequence.device or tensor.dtype != hidden.dtype for tensor in others):
        return False
    return _runs_on(sequence.device)


def variant(
    memory: Tensor | None, slow: SlowWeights, rule: Rule, lengths: Tensor | None
) -> tuple[int | bool | str, ...]:
    """What the kernels are compiled for, besides the dtype: a ``trial.Case`` less T and B."""
    reads = int(rule.inner_steps) > 0
    return (
        slow.weight_hh.shape[0], memory is not None, lengths is not None,
        reads and slow.norm_weight is not None, reads and slow.read_gain is not None,
        int(rule.inner_steps), rule.nonlinearity, rule.boundary, rule.inner_start,
    )  # fmt: skip


def trial_cases(dtype: torch.dtype, variant: tuple) -> list[Case]:
    """What ``trial`` computes: more steps than a tile has rows, so that loops over tiles go on.

    Of two units layer normalisation makes ±1, whatever they are, and gradients drown in rounding.
    """
    units, *settings = variant
    return [Case(35, 3, max(3, units), *settings)]


@constant_when_compiled
def _runs_on(device: torch.device) -> bool:
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1" and is_found("triton")
    return device.type == "cuda" and _is_new_enough(device) and is_found("triton")


@lru_cache
def _is_new_enough(device: torch.device) -> bool:
    """Turing or later; not another maker's, on which nothing was tried, nor a fake tensor's."""
    if torch.version.hip is not None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= (7, 5)


def forward(
    drive: Tensor,
    hidden: Tensor,
    memory: Tensor | None,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``cpu.forward``; ``lengths`` are int64, 1 to T, and no drive past them is looked at."""
    from fwrnn.layers.kernels import triton_loops

    steps, batch, size = drive.shape
    constants, options = _constants(memory, slow, rule, lengths), _options(size, hidden.dtype)
    # A given memory that is streamed multiplies queries that are read back, so they are stored.
    keep = save or (memory is not None and not constants["RESIDENT"])
    sizes = _part_sizes(steps if keep else 0, batch, size, constants)
    kept = _new(hidden, lengths, sum(sizes))
    states, trail = hidden.new_empty(steps, batch, size), hidden.new_empty(steps + 1, batch, size)
    turned = slow._replace(weight_hh=slow.weight_hh.t())
    tensors = (
        _placed(drive), _placed(hidden),
        *_given(lengths, None if memory is None else memory.mT, turned),
        *_tables(rule, hidden.dtype, hidden.device), trail, states, *kept.split(sizes),
    )  # fmt: skip
    constants |= {"EPS": NORM_EPS, "SAVE": keep}
    _launch(triton_loops.forward_loop, tensors, steps, batch, constants, options)
    return states, trail, kept if save else hidden.new_empty(0)


def saved_size(
    steps: int,
    batch: int,
    units: int,
    dtype: torch.dtype,
    layer_norm: bool,
    read_gain: bool,
    rule: Rule,
) -> int:
    """How many numbers ``forward`` saves, whatever their dtype; T and B may be symbols."""
    constants = {"S": int(rule.inner_steps), "LAYER_NORM": layer_norm, "READ_GAIN": read_gain}
    return sum(_part_sizes(steps, batch, units, constants))


def _part_sizes(steps: int, batch: int, units: int, constants: dict) -> list[int]:
    """Of queries, normalised sums and what was found, rows of H numbers each, and of 1/σ.

    Multiples of 4, so that all begin at multiples of 16 bytes: Triton compiles for that, too.
    """
    reads = steps * batch * constants["S"]
    normed, found = int(constants["LAYER_NORM"]), int(constants["READ_GAIN"])
    sizes = reads * units, reads * units * normed, reads * units * found, reads * normed
    return [(size + 3) // 4 * 4 for size in sizes]


def _new(like: Tensor, lengths: Tensor | None, *shape: int) -> Tensor:
    """A tensor for something of every read: no kernel writes those past the end of a sequence."""
    return like.new_empty(shape) if lengths is None else like.new_zeros(shape)


def backward(
    saved: Tensor,
    trail: Tensor,
    grad_states: Tensor,
    memory: Tensor | None,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """As ``cpu.backward``. None, too, for what no inner step uses.

    The gradient of drive is 0 past the end of a sequence.
    """
    from fwrnn.layers.kernels import triton_loops

    trail = _placed(trail)  # whatever hooks for saved tensors gave back
    states = trail[1:]
    steps, batch, size = states.shape
    constants = _constants(memory, slow, rule, lengths)
    parts = _placed(saved).split(_part_sizes(steps, batch, size, constants))
    reads = steps * constants["S"]
    queries = parts[0][: reads * batch * size].view(reads, batch, size)
    grad_drive, grad_hidden = torch.empty_like(states), torch.empty_like(trail[0])
    grad_reads = _new(states, lengths, *queries.shape)
    # One row per sequence, summed afterwards: atomic additions would vary in their order.
    used = [constants[name] for name in ("LAYER_NORM", "LAYER_NORM", "READ_GAIN")]
    by_sequence = states.new_empty(sum(used), batch, size)
    *given, _, read_gain = _given(lengths, memory, slow)  # the bias has no part in gradients
    tensors = (
        _placed(grad_states), trail, *parts, *given, read_gain,
        *_tables(rule, states.dtype, states.device),
        grad_drive, grad_hidden, grad_reads, by_sequence,
    )  # fmt: skip
    options = _options(size, states.dtype)
    _launch(triton_loops.backward_loop, tensors, steps, batch, constants, options)
    grad_memory = None if memory is None else _grad_memory(grad_reads, queries, rule)
    sums = (rows.sum(0) for rows in by_sequence)  # no views of one tensor
    gain, shift, read = (next(sums) if use else None for use in used)
    return grad_drive, grad_hidden, grad_memory, gain, shift, read


def _grad_memory(grad_reads: Tensor, queries: Tensor, rule: Rule) -> Tensor:
    """Σ λ^t dz qᵀ over all reads (T·S, B, H), in one product per sequence: (B, H, H)."""
    powers, _ = _tables(rule, queries.dtype, queries.device)
    powers = powers.repeat_interleave(rule.inner_steps)[: len(queries)]
    with torch.autocast(queries.device.type, enabled=False):
        return torch.einsum("rbi,rbj->bij", grad_reads * powers.view(-1, 1, 1), queries)


def _given(lengths: Tensor | None, memory: Tensor | None, slow: SlowWeights) -> tuple[Tensor, ...]:
    """Lengths, memory and slow weights as kernels take them.

    What is missing is W, and never loaded.
    """
    weight = _placed(slow.weight_hh)
    tensors = lengths, memory, weight, *slow[1:]
    return tuple(weight if tensor is None else _placed(tensor) for tensor in tensors)


def _placed(tensor: Tensor) -> Tensor:
    """The same numbers in one piece that begins at a multiple of 16 bytes, as all new ones do.

    Triton would compile once more for each set of tensors that do not, at once and untried.
    """
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _constants(
    memory: Tensor | None, slow: SlowWeights, rule: Rule, lengths: Tensor | None
) -> dict:
    """What kernels are compiled for; T and B are not, so that a new one compiles nothing."""
    units, dtype, inner_steps = len(slow.weight_hh), slow.weight_hh.dtype, int(rule.inner_steps)
    block = _block(units)
    return {
        "H": units,
        "S": inner_steps,
        "QUERY_EPS": QUERY_EPS,
        "READ_LIMIT": READ_LIMIT,
        "RELU": rule.nonlinearity == "relu",
        "LAYER_NORM": slow.norm_weight is not None and inner_steps > 0,
        "IDENTITY": rule.boundary == "identity",
        "PREVIOUS": rule.inner_start == "previous",
        "READ_GAIN": slow.read_gain is not None and inner_steps > 0,
        "GIVEN_MEMORY": memory is not None,
        "HAS_LENGTHS": lengths is not None,
        "RESIDENT": block * block * dtype.itemsize <= RESIDENT_BYTES,
        "BLOCK_H": block,
        "TILE": min(32, TILE_BYTES // (block * dtype.itemsize)),
    }


def _options(units: int, dtype: torch.dtype) -> dict:
    """What the compiler is told: the threads of a program, and how it may compute."""
    return {
        "num_warps": min(4, _block(units) * dtype.itemsize // 64),
        "num_stages": 1,  # no loop is pipelined: loads stay behind the stores they depend on
        "enable_fp_fusion": True,  # a product and its addition in one instruction
    }


def _block(units: int) -> int:
    return max(16, 1 << (units - 1).bit_length())


_programs: dict[tuple, Any] = {}


def _launch(
    loop: Any, tensors: tuple[Tensor, ...], steps: int, batch: int, constants: dict, options: dict
) -> None:
    """Run a loop, a program for each sequence.

    Triton takes longer to find what it has compiled than the GPU to run it, so that is kept here.
    ``tensors`` are all ``_placed``, and ``constants`` in the order of the loop's.
    """
    addresses = list(map(address, tensors))
    first, dtypes = tensors[0], [tensor.dtype for tensor in tensors]
    key = loop, first.device, *dtypes, *constants.values(), *options.values()
    program = _programs.get(key)
    with torch.cuda.device_of(first):
        if program is not None:
            program[batch, 1, 1](*addresses, steps, batch, *constants.values())
            return
        program = loop[(batch,)](*tensors, steps, batch, **constants, **options)
        if program is not None:  # as it is where Triton interprets
            _programs[key] = program


_kept: dict[tuple, tuple[Tensor, Tensor]] = {}
_in_graphs: dict[tuple, tuple[Tensor, Tensor]] = {}  # which a CUDA graph reads where they lie


def _tables(rule: Rule, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """λ^age and η λ^age for ages from 0 to ``MAX_STEPS``, kept for the next launch.

    Made in a thread of their own, because torch.compile(mode="reduce-overhead") takes whatever the
    caller's allocates into the memory of its CUDA graphs, where nothing may stay; and transforms
    of ``torch.func`` and modes of the caller's have no part in them there.
    """
    key = rule, dtype, device
    tables, captured = _kept.get(key), is_captured(device)
    if tables is None:
        if captured:  # their numbers come with the graph's first replay, and go with the graph
            return _made_tables(*key, device)
        with ThreadPoolExecutor(1) as alone:
            tables = alone.submit(_made_tables, *key).result()
        if len(_kept) >= 64:
            if device.type == "cuda":  # other streams than the thread's may read them still
                torch.cuda.synchronize(device)
            _kept.clear()
        tables = _kept.setdefault(key, tables)  # another thread's, which stay, if it was faster
    elif captured:
        _in_graphs[key] = tables
    return tables


def _made_tables(
    rule: Rule, dtype: torch.dtype, device: torch.device, by: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Computed in float64: Triton takes Python floats as float32, too coarse for float64.

    On the host, or where its numbers could not be copied to the device, on that.
    """
    ages = torch.arange(MAX_STEPS + 1, dtype=torch.float64, device=by)
    powers = float(rule.decay) ** ages
    return powers.to(device, dtype), (float(rule.fast_lr) * powers).to(device, dtype)
