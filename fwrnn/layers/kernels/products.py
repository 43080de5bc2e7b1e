"""Products of matrices with many rows on the CPU: what lies around ``product_loops``.

The library that PyTorch multiplies by, Intel's, leaves the widest registers of other processors
idle. On an AMD EPYC with AVX-512 (Zen 5, two threads) these take half of its time, at 1,408 rows
and 50 columns as at 2,000 and 1,024: 400 to 460 of 512 GFLOP/s. On Intel's own they were never
timed. Below ``FEWEST`` rows it is ahead.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fwrnn.layers.kernels import cpu, trial

FEWEST = 256


def times(form: str, rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """X Mᵀ + bias, without autograd: (…, K), (R, K), (R) → (…, R). M may be any view.

    ``form`` is that of the recurrence, whose tensors these are.
    """
    if pay(form, rows.shape[:-1].numel(), rows.dtype) and _fit(rows, matrix, bias):
        return _times(
            rows.resolve_neg().contiguous(), matrix, None if bias is None else bias.contiguous()
        )
    return F.linear(rows, matrix, bias)


def contract(
    form: str, left: Tensor, right: Tensor, other: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gᵀ X, Gᵀ Y and the sums of G's columns, without autograd.

    (N, R), (N, K), (N, L) → (R, K), (R, L), (R).
    """
    if pay(form, left.shape[0], left.dtype):
        return _contract(*(x.resolve_neg().contiguous() for x in (left, right, other)))
    return left.t() @ right, left.t() @ other, left.sum(0)


def _fit(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> bool:
    """Whether they go together, at which the loops do not look; else it is for PyTorch."""
    return (
        matrix.shape[1:] == rows.shape[-1:]
        and _is_alike(matrix, rows)
        and (bias is None or bias.shape == matrix.shape[:1] and _is_alike(bias, rows))
    )


def _is_alike(x: Tensor, rows: Tensor) -> bool:
    return x.is_cpu and x.layout is torch.strided and x.dtype is rows.dtype and not x.is_neg()


def pay(form: str, rows: int, dtype: torch.dtype) -> bool:
    """Whether the loops are faster for so many rows, and pass their ``trial``."""
    return form == "numba" and rows >= FEWEST and _work(dtype)


def _work(dtype: torch.dtype) -> bool:
    instead = "PyTorch's own take their place"
    find_fault = partial(_fault, dtype)
    return trial.passes("products", torch.device("cpu"), dtype, find_fault, instead)


def _fault(dtype: torch.dtype) -> str | None:
    """How the loops differ from PyTorch, at sizes that fill no register."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    given = random(131, 37), random(11, 37), random(11), random(131, 11), random(131, 5)
    rows, matrix, bias, left, other = given
    names = "X Mᵀ + b", "G M", "Gᵀ X", "Gᵀ Y", "the sums of G"
    wanted = (
        F.linear(rows, matrix, bias),
        left @ matrix,
        left.t() @ rows,
        left.t() @ other,
        left.sum(0),
    )
    rows, matrix, bias, left, other = (tensor.to(dtype) for tensor in given)
    found = _times(rows, matrix, bias), _times(left, matrix.t()), *_contract(left, rows, other)
    return trial.difference(names, found, wanted, dtype)


def _times(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    lanes, (*before, columns), results = cpu.lanes_of(rows.dtype), rows.shape, matrix.shape[0]
    out = cpu.empty(rows, *before, results)
    count = rows.shape[:-1].numel()
    sizes = -(-count // lanes), count, columns, 0, results, *matrix.stride(), 0, 0
    arrays = rows, matrix, None, bias, out, None, None
    _run(False, sizes, (columns + results) * lanes, arrays)
    return out


def _contract(left: Tensor, right: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from fwrnn.layers.kernels.product_loops import CHUNK

    lanes, (count, results) = cpu.lanes_of(left.dtype), left.shape
    columns, others = right.shape[1], other.shape[1]
    panels = -(-(columns + 1 + others) // lanes)  # one column more has the sums
    # In parts where there are too few panels for all threads, of at least 8 rows each.
    parts = min(-(-2 * torch.get_num_threads() // panels), -(-results // 8))
    each = -(-results // parts)
    parts = -(-results // each)
    shapes = (results, columns), (results, others), (results,)
    out, other_out, sums = (cpu.empty(left, *shape) for shape in shapes)
    sizes = panels * parts, count, columns, others, results, 0, 0, each, parts
    arrays = left, right, other, None, out, other_out, sums
    _run(True, sizes, (CHUNK + 1 + 2 * each) * lanes, arrays)
    return out, other_out, sums


def _run(contracts: bool, sizes: tuple[int, ...], work_size: int, arrays: tuple) -> None:
    """Run the loop for one of the products: sizes from the tasks on, arrays in their order."""
    from fwrnn.layers.kernels import product_loops as loops

    dtype, threads = arrays[0].dtype, min(torch.get_num_threads(), sizes[0])
    work = cpu.empty(arrays[0], threads * work_size)
    numbers = (0, 0, loops.VERSION, contracts, *sizes, work_size)
    loop = cpu.compiled("product_loops", dtype)
    cpu.call(loop, numbers, (*arrays, work), len(loops.ARRAYS), threads)
