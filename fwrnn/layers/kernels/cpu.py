"""The recurrence on the CPU, fused: buffers, threads and compilation around ``cpu_loops``.

The loops are compiled once per machine and type of number, which takes some seconds, and kept on
disk. They run in PyTorch's own team of threads, as many as ``torch.get_num_threads()`` says: a
second team would fight with the first, whose threads spin a while after every operation.

They have been run on x86-64, with AVX-512 and as for processors without, and in QEMU's emulation of
a Neoverse N1 (64-bit ARM, NEON): there the tests show numbers, but neither speed nor the order in
which such a processor lets other threads see what one wrote. Elsewhere ``trial`` is the test.
"""

import ctypes
import functools
import logging
import mmap
import threading
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from tempfile import TemporaryFile
from typing import Any, cast

import torch
from torch import Tensor

from fwrnn.layers.equations import SlowWeights
from fwrnn.layers.kernels.trial import Case, constant_when_compiled
from fwrnn.rule import Rule

DTYPES = (torch.float32, torch.float64)
LARGE = 1 << 25  # bytes: what the C library takes from the system and gives back every time


def supports(
    sequence: Tensor, hidden: Tensor, memory: Tensor | None, slow: SlowWeights, rule: Rule
) -> bool:
    """Whether ``forward`` and ``backward`` take these tensors: on a CPU, in float32 or float64.

    Whether they compile shows in the first call. Weights of another size than the state's are for
    PyTorch to refuse.
    """
    units, dtype = hidden.shape[-1:], hidden.dtype
    shapes = None, units + units, units, units, units
    for tensor, shape in zip((memory, *slow), shapes, strict=True):
        if tensor is not None and not (
            tensor.is_cpu and tensor.dtype is dtype and shape in (None, tensor.shape)
        ):
            return False
    return (
        sequence.is_cpu
        and hidden.is_cpu
        and sequence.is_floating_point()
        and sequence.numel() > 0
        and dtype in DTYPES
        and rule.inner_start != "normalised"  # which is for comparison only
        and is_installed()
    )


def variant(
    memory: Tensor | None, slow: SlowWeights, rule: Rule, lengths: Tensor | None
) -> tuple[()]:
    """What the loops are compiled for, besides the dtype: nothing."""
    return ()


def trial_cases(dtype: torch.dtype, variant: tuple) -> list[Case]:
    """What ``trial`` computes: both layouts, the sequences in chunks and of several lengths."""
    units, settings = 3, (True, True, True, True, 1, "tanh", "sustained", "candidate")
    many = few(True, torch.get_num_threads(), dtype)
    return [Case(cut_length(units) + 1, batch, units, *settings) for batch in (1, many)]


def forward(
    drive: Tensor,
    hidden: Tensor,
    memory: Tensor | None,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every state of whole sequences, without autograd.

    Args:
        drive: C x(t) + biases for every step, (T, B, H).
        hidden: the state before the first step, (B, H); its dtype is that of all results.
        memory: the fast memory before the first step, (B, H, H), or None for zero.
        slow: the learned weights used within a step.
        rule: the constants.
        lengths: steps per sequence, (B), or None for T; past them the state stays what it is.
        save: whether ``backward`` will follow.

    Returns:
        h(1) … h(T), (T, B, H); h(0) … h(T), (T + 1, B, H), apart; and what ``backward`` needs,
        ``saved_size`` numbers in one dimension, none without ``save``.
    """
    plan = _plan_for(drive.shape, hidden.dtype, memory, slow, rule)
    steps, batch, units = drive.shape
    trail = empty(hidden, steps + 1, batch, units)
    states = empty(hidden, steps, batch, units)
    saved = empty(hidden, plan.saved_sizes[save])
    driven, *given = contiguous(drive.to(hidden.dtype), hidden, memory, *slow)
    made = driven, plan.by_lane(lengths), None, None, None, states, trail, saved
    plan.run(0, save, hidden, addresses((*_arrays(*given), *made)))
    return states, trail, saved if save else hidden.new_empty(0)


def saved_size(
    steps: int,
    batch: int,
    units: int,
    dtype: torch.dtype,
    layer_norm: bool,
    read_gain: bool,
    rule: Rule,
) -> int:
    """How many numbers ``forward`` saves; T and B may be symbols, so nothing branches on them."""
    lanes = lanes_of(dtype)
    # 1 where the sequence is cut, and where the layout is along the units, else 0.
    cut = cast(int, torch.sym_min(1, torch.sym_max(0, steps - uncut_steps(units))))
    fewer = few(cut, torch.get_num_threads(), dtype) - batch
    along = cast(int, torch.sym_min(1, torch.sym_max(0, fewer)))
    padded = -(-units // lanes) * lanes
    blocks = along * batch + (1 - along) * -(-batch // lanes)
    row = along * padded + (1 - along) * units * lanes
    reads = blocks * steps * rule.inner_steps
    borders = blocks * ((steps - 1) // cut_length(units)) * cut
    saved = row * (blocks * steps + reads * (1 + int(read_gain)) + borders * units)
    return saved + reads * lanes * int(layer_norm) + along


def backward(
    saved: Tensor,
    trail: Tensor,
    grad_states: Tensor,
    memory: Tensor | None,
    slow: SlowWeights,
    rule: Rule,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of drive, hidden, memory, norm_weight, norm_bias and read_gain.

    From that of h(1) … h(T) and what ``forward`` returned and was given; in the dtype of ``trail``,
    and None for what there was none of. That of drive is also that of W h(t), so that of
    ``weight_hh`` follows from it and ``trail`` in one matrix product.
    """
    plan = _plan_for(grad_states.shape, trail.dtype, memory, slow, rule, saved.shape[0])
    steps, batch, units = grad_states.shape
    # That of a sum is one number, expanded.
    if grad_states.is_neg() or not grad_states.is_contiguous():
        grad_states = empty(trail, steps, batch, units).copy_(grad_states)
    grad_drive = empty(trail, steps, batch, units)
    grad_hidden = trail.new_empty(batch, units)
    grad_memory = None if memory is None else empty(trail, batch, units, units)
    _, *learned = slow
    grad_gains = [None if gain is None else trail.new_empty(units) for gain in learned]
    by_block = empty(trail, plan.blocks, len(learned), units)
    given, states = contiguous(memory, *slow), contiguous(trail, saved)
    made = None, plan.by_lane(lengths), None, None, None, None, *states
    grads = grad_states, grad_drive, grad_hidden, grad_memory, by_block, *grad_gains
    plan.run(1, True, trail, addresses((*_arrays(None, *given), *made)), addresses(grads))
    gain, shift, read = grad_gains
    return grad_drive, grad_hidden, grad_memory, gain, shift, read


def _arrays(hidden, memory, weight, gain, shift, read_gain) -> tuple[Tensor | None, ...]:
    """The first of ``cpu_loops.ARRAYS`` where the drive is made already."""
    return None, hidden, memory, None, weight, None, None, gain, shift, read_gain


def empty(like: Tensor, *shape: int) -> Tensor:
    """``new_empty``; a large one in large pages, as the first touch of small ones is slow."""
    tensor = like.new_empty(*shape)  # which is faster than with a tuple
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


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """As their numbers are to lie in memory: one after another, and not to be negated yet."""
    return [None if x is None else x.resolve_neg().contiguous() for x in tensors]


def uncut_steps(units: int) -> int:
    """How long sequences are not cut into chunks: up to where folding would not pay.

    Per step, attention costs about T·H and a folded matrix 2·H², whatever T. The two were level at
    T = 128 for H = 64, 256 for H = 128 and 390 for H = 256 (a training step, AVX-512).
    """
    return 32 + 3 * units // 2


def cut_length(units: int) -> int:
    """Steps after which the memory of a long sequence is folded into a matrix.

    32 to 64 were fastest; more for many units keep the matrices that backward needs, one per
    chunk, from outgrowing the states.
    """
    return max(48, units // 2)


def few(cut: bool | int, threads: int, dtype: torch.dtype) -> int:
    """Below how many sequences one after another, along their units, beat a register full of them.

    They have something to do for every thread, and where a sequence is cut its matrix fits the
    caches. For one thread the two were level at 12 to 24 sequences of up to 200 steps in float32,
    and from 24 on for longer ones (20 to 200 units, AVX-512).
    """
    return max(1, threads * lanes_of(dtype) * 3 // 8 * (1 + cut))


def _plan_for(
    shape, dtype, memory, slow: SlowWeights, rule: Rule, saved: int | None = None
) -> "Plan":
    """The plan for these tensors; for backward, that by which so many numbers were ``saved``."""
    has = memory is not None, slow.norm_weight is not None, slow.read_gain is not None
    steps, batch, units = shape
    return plan_for(steps, batch, units, dtype, *has, rule, saved=saved)


def plan_for(
    steps: int,
    batch: int,
    units: int,
    dtype: torch.dtype,
    given: bool,
    normalised: bool,
    gained: bool,
    rule: Rule,
    inputs: int = 0,
    scale: float = 1.0,
    one_gain: bool = False,
    saved: int | None = None,
) -> "Plan":
    """The plan of a call with as many threads as there are now; or, for backward, that by which so
    many numbers were ``saved``."""
    threads, cut = torch.get_num_threads(), steps > uncut_steps(units)
    along = batch < few(cut, threads, dtype)
    chunk = cut_length(units) if cut else steps
    sizes = steps, batch, units, dtype, chunk, given, normalised, gained, rule
    others = inputs, scale, one_gain, threads
    plan = Plan.cached(*sizes, *others, along)
    if saved is None or saved == plan.saved_sizes[True]:
        return plan
    return Plan.cached(*sizes, *others, not along)  # by other threads


@functools.cache
def lanes_of(dtype: torch.dtype) -> int:
    from fwrnn.layers.kernels import simd

    return simd.VECTOR_BYTES // dtype.itemsize


class Plan:
    """What all calls for the same sizes and settings have in common.

    With ``inputs``, the numbers of x(t), the loops make C x and the gradients of C and W, too.
    What they take as ``read_gain`` is multiplied by ``scale``, or is ``one_gain`` for all units.
    """

    def __init__(
        self, steps, batch, units, dtype, chunk, given, normalised, gained, rule: Rule, inputs,
        scale, one_gain, threads, along,
    ):  # fmt: skip
        from fwrnn.layers.kernels import cpu_loops, product_loops

        self._arrays = len(cpu_loops.ARRAYS)
        self._lanes = lanes = lanes_of(dtype)
        count = -(-units // lanes) if along else units
        row = count * lanes
        self.loops, self.dtype = compiled("cpu_loops", dtype), dtype
        self.blocks = batch if along else -(-batch // lanes)
        self._tables = (
            *_tables(rule, max(chunk, steps), cpu_loops.GROUP, dtype),
            torch.tensor([scale], dtype=dtype, device="cpu"),
        )
        tiles, sums, each, parts = _tasks(steps * batch, inputs, units, lanes, threads)
        constants = (
            cpu_loops.VERSION, along, self.blocks, steps, batch, units, count, rule.inner_steps,
            chunk,
            rule.nonlinearity == "tanh", normalised, rule.boundary == "identity",
            rule.inner_start == "previous", rule.plain_read,
            *map(address, self._tables),
            one_gain, inputs, tiles, sums, each, parts,
        )  # fmt: skip
        folds, by_products = given or steps > chunk, 0
        if inputs:
            by_products = product_loops.work_size(inputs, units, lanes)
        self._work_sizes = [
            max(
                by_products,
                cpu_loops.work_rows(along, units, chunk, rule.inner_steps, folds, backward) * row,
            )
            for backward in (False, True)
        ]
        # Without backward, each thread uses the same vectors again at every step.
        layouts, self.saved_sizes = [], []
        for vectors, reads, borders in (
            (min(threads, self.blocks), 1, 0),
            (self.blocks * steps, rule.inner_steps, self.blocks * ((steps - 1) // chunk)),
        ):
            normed_at = vectors * row
            found_at = normed_at + vectors * reads * row
            scales_at = found_at + vectors * reads * row * gained
            borders_at = scales_at + vectors * reads * lanes * normalised
            # Without normalisation the loops still load a scale, from anywhere, and drop it.
            end_at = borders_at + borders * units * row
            layouts.append((normed_at, found_at, scales_at * normalised, borders_at, end_at))
            # One number more along the units, so that the size tells the layout.
            self.saved_sizes.append(end_at + along)
        numbers = dict.fromkeys(cpu_loops.COUNTERS, 0)
        numbers |= dict(zip(cpu_loops.CONSTANTS, constants, strict=True))
        # By loop and whether something is saved: what to call it with, and how many threads.
        self._calls = [
            [_stages(which, numbers, (save, *layouts[save], work_size), threads) for save in (0, 1)]
            for which, work_size in enumerate(self._work_sizes)
        ]

    cached = functools.lru_cache(maxsize=256)(lambda *key: Plan(*key))

    def by_lane(self, lengths: Tensor | None) -> Tensor | None:
        """Lengths as the loops compare them: numbers of the states' type, 0 in idle lanes."""
        if lengths is None:
            return None
        padded = torch.zeros(self.blocks * self._lanes, dtype=self.dtype, device="cpu")
        padded[: len(lengths)] = lengths
        return padded

    def run(
        self, which: int, save: bool, like: Tensor, given: list[int], grads: Sequence[int] = ()
    ) -> None:
        """Run loop 0 (forward) or 1 (backward) with the addresses of what lies before ``work`` in
        ``cpu_loops.ARRAYS``, and of what lies behind it."""
        calls = self._calls[which][save]
        work = like.new_empty(max(team for _, team in calls) * self._work_sizes[which])
        places = array("q", (*given, work.data_ptr(), *grads))
        places.extend([0] * (self._arrays - len(places)))
        for numbers, team in calls:
            argument = numbers + places
            run_team(self.loops[which], argument.buffer_info()[0], team)


def _tasks(rows: int, inputs: int, units: int, lanes: int, threads: int) -> tuple[int, ...]:
    """Of how many tiles the drive is made, of how many sums the gradients of C and W, and of these
    how many rows each has, in how many parts."""
    if not inputs:
        return 0, 0, 0, 0
    panels = -(-(inputs + 1 + units) // lanes)  # one column more has the sums of biases
    # In parts where there are too few panels for all threads, of at least 8 rows each.
    parts = min(-(-2 * threads // panels), -(-units // 8))
    each = -(-units // parts)
    parts = -(-units // each)
    return -(-rows // lanes), panels * parts, each, parts


def _stages(which: int, numbers: dict, rest: tuple, threads: int) -> list[tuple[array, int]]:
    """The calls that a pass takes, each with what it begins with and the threads of its team.

    One; or a second for the products if for the sequences not all threads are needed, which would
    have to be awake all the while.
    """
    blocks = numbers["blocks"]
    if not numbers["tiles"]:
        stages = [({}, min(threads, blocks))]
    elif blocks >= threads:
        stages = [({}, threads)]
    else:
        stages = [({"blocks": 0}, threads), ({"tiles": 0, "sums": 0}, blocks)]
    ordered = reversed(stages) if which else stages
    return [(array("q", (*(numbers | changed).values(), *rest)), team) for changed, team in ordered]


def _tables(rule: Rule, chunk: int, zeros: int, dtype) -> tuple[Tensor, Tensor]:
    """λ^k and η λ^k for k = 0 … chunk; the latter after zeros for rows not yet written."""
    ages = torch.arange(chunk + 1, dtype=torch.float64, device="cpu")
    powers = rule.decay**ages
    strengths = torch.cat([powers.new_zeros(zeros - 1), rule.fast_lr * powers])
    return powers.to(dtype), strengths.to(dtype)


@constant_when_compiled
def is_installed() -> bool:
    """Whether there is a Numba to compile the loops."""
    return is_found("numba")


@functools.cache
def is_found(package: str) -> bool:
    return find_spec(package) is not None


@functools.cache
def compiled(module: str, dtype: torch.dtype) -> Any:
    """What a module beside this one builds, compiled; raises what importing Numba raises.

    Or what its compiler does.
    """
    from numba.core import event

    def tell() -> None:
        if passes.buffer:  # of the compiler: reading from disk, however long it takes, has none
            _log.info("compiling a fused kernel for this machine; some ten seconds")

    with event.install_recorder("numba:run_pass") as passes:
        notice = threading.Timer(1.5, tell)
        notice.start()
        try:
            return _build(module, dtype)
        finally:
            notice.cancel()


_log = logging.getLogger(__name__)


def _build(module: str, dtype: torch.dtype):
    from numba import types

    loops = import_module(f"fwrnn.layers.kernels.{module}")
    kind = {torch.float32: types.float32, torch.float64: types.float64}[dtype]
    try:
        return _kept(loops.build, kind, module)
    except Exception as error:
        # No folder for the cache, one that cannot be written, a damaged file in it, or what is
        # raised again here.
        loops = loops.build(kind, cache=False)
        _failures.append(" ".join(str(error).split())[:200])
        if len(_failures) == 1:  # not for each module again
            _log.warning(_NOT_KEPT, _failures[0])
        return loops


def _kept(build, kind, name: str):
    """Loops that were kept on disk; those that were not one process compiles, and others wait."""
    from numba.core import event

    ours = threading.get_ident()

    class Compiles(BaseException):  # which the compiler lets pass
        pass

    class Stopper(event.Listener):
        def on_start(self, event):
            if threading.get_ident() == ours:
                raise Compiles

        def on_end(self, event):
            pass

    with suppress(Compiles), event.install_listener("numba:run_pass", Stopper()):
        return build(kind, cache=True)
    with _in_turn(build, name):
        return build(kind, cache=True)


@contextmanager
def _in_turn(build, name: str):
    """One process after another, so that the second finds what the first one kept.

    A module's loops for both types of number have one index on disk, so they have one lock.

    The system lets go of the lock of a process that dies, and after ``LONGEST_WAIT`` seconds, or
    where files cannot be locked, nobody waits. Raises, before waiting, what numba or the system
    does where nothing can be kept.
    """
    from filelock import FileLock
    from numba.core.caching import FunctionCache

    folder = FunctionCache(build).cache_path
    with TemporaryFile(dir=folder) as file:
        file.write(bytes(ROOM))  # of a full disk the others would wait for nothing
        file.flush()
    lock = FileLock(f"{folder}/.{name}.lock")
    with suppress(OSError, NotImplementedError):  # its Timeout is an OSError too
        lock.acquire(timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        lock.release()


LONGEST_WAIT = 120.0
ROOM = 1 << 20  # bytes that a module's loops take on disk

_failures: list[str] = []
_NOT_KEPT = (
    "the compiled kernels cannot be kept on disk (%s), so every process compiles them anew; have "
    "NUMBA_CACHE_DIR name a folder that can be written"
)


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


def address(tensor: Tensor) -> int:
    """Where a tensor's numbers lie.

    Raises:
        RuntimeError: nowhere, as with those that ``torch.func`` gives to functions.
    """
    place = tensor.data_ptr()
    if not place and tensor.numel():
        raise RuntimeError("a tensor has no numbers in memory; give one that has")
    return place


def addresses(tensors: Iterable[Tensor | None]) -> list[int]:
    """Those of all tensors, 0 for None."""
    return [0 if x is None else x.data_ptr() or address(x) for x in tensors]


def call(loop, numbers: Iterable[int], tensors: tuple, arrays: int, threads: int) -> None:
    """Call ``loop`` in every thread of a team, with numbers and the addresses of tensors.

    There are as many addresses as the loop has ``arrays``, 0 for None and for what is not given.
    """
    argument, missing = array("q", numbers), arrays - len(tensors)
    argument.extend(addresses(tensors))
    argument.extend([0] * missing)
    run_team(loop, argument.buffer_info()[0], threads)


def run_team(loop, argument: int, threads: int) -> None:
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
