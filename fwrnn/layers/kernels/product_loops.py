"""Products of matrices with many rows in ``cpu_loops``: what comes before and after a recurrence.

The register work is that of a step, ``cpu_vectors.multiply``. What is summed over fits the first
cache, so nothing else has to be packed.

The library that PyTorch multiplies by, Intel's, leaves the widest registers of other processors
idle. On an AMD EPYC with AVX-512 (Zen 5, two threads) these take half of its time, at 1,408 rows
and 50 columns as at 2,000 and 1,024: 400 to 460 of 512 GFLOP/s. On Intel's own they were never
timed.
"""

from fwrnn.layers.kernels import cpu_vectors as v
from fwrnn.layers.kernels import simd
from fwrnn.layers.kernels.simd import broadcast, load, once, store

CHUNK = 128  # rows that are summed over at once


def work_size(columns: int, results: int, lanes: int) -> int:
    """Numbers in the ``work`` of one thread: the greater of what the two products need."""
    return max(columns + results, CHUNK + 1 + 2 * results) * lanes


@once
def times(
    kind, rows, columns, results, task, given, matrix_at, down, across, biases, out, work, at
):
    """Some rows of X Mᵀ + biases, (N, K), (R, K) → (N, R): as many as a register has lanes.

    M[i, j] lies at ``i·down + j·across`` from ``matrix_at``; of two biases each may be missing.
    """
    lanes = simd.width(work)
    first, one, other = task * lanes, v.array(biases[0], kind), v.array(biases[1], kind)
    found, taken = at + columns * lanes, min(lanes, rows - first)
    v.take(False, v.array(given, kind), first * columns, columns, taken, work, at)
    for i in range(results):
        start = broadcast(one, i) if biases[0] else simd.zero(work)
        if biases[1]:
            start = start + broadcast(other, i)
        store(work, found + i * lanes, start)
    matrix = v.array(matrix_at, kind)
    v.multiply(matrix, down, across, results, columns, work, at, work, found)
    v.put(False, work, found, results, taken, v.array(out, kind), first * results)


@once
def contract(c, kind, task, work, taken):
    """``each`` rows of Gᵀ [X 1 Y], (N, R), (N, K) → (R, K), and as many columns as lanes.

    G is the gradient of the drive, X the sequence, Y the states before each step. Every number is
    summed by one thread: first over the rows of a chunk, then over chunks, which loses less to
    rounding. A column of ones makes the sums of G's columns.
    """
    right, other, lanes = v.array(c.sequence, kind), v.array(c.trail, kind), simd.width(work)
    all_rows = c.steps * c.batch
    first, column = task % c.parts * c.each, task // c.parts * lanes
    results = min(c.each, c.units - first)
    width = max(0, min(lanes, c.inputs - column))  # of X, then perhaps the ones, then of Y
    has_ones = 0 <= c.inputs - column < lanes
    behind, start = width + has_ones, max(0, column - c.inputs - 1)
    others = max(0, min(lanes - behind, c.units - start))
    found = taken + (CHUNK + 1) * lanes
    partial = found + c.each * lanes
    v.clear(work, found, results)
    for chunk in range(0, all_rows, CHUNK):
        rows = min(CHUNK, all_rows - chunk)
        for n in range(rows):
            at, x_at = taken + n * lanes, (chunk + n) * c.inputs + column
            y_at = (chunk + n) * c.units + start
            # What is past a row's end is taken, too, and lies under what comes next.
            if width and x_at + lanes <= all_rows * c.inputs:
                store(work, at, load(right, x_at))
            else:
                for k in range(width):
                    work[at + k] = right[x_at + k]
            if has_ones:
                work[at + width] = 1
            if others and y_at + lanes <= all_rows * c.units:
                store(work, at + behind, load(other, y_at))
            else:
                for k in range(others):
                    work[at + behind + k] = other[y_at + k]
        grads = c.grad_drive + (chunk * c.units + first) * simd.VECTOR_BYTES // lanes
        v.clear(work, partial, results)
        v.multiply(
            v.array(grads, kind), 1, c.units, results, rows, work, taken, work, partial
        )  # fmt: skip
        v.add(work, partial, work, found, results)
    out, other_out = v.array(c.grad_weight_ih, kind), v.array(c.grad_weight_hh, kind)
    sums, same_sums = v.array(c.grad_bias_ih, kind), v.array(c.grad_bias_hh, kind)
    for i in range(results):
        at = found + i * lanes
        v.put(True, work, at, width, 1, out, (first + i) * c.inputs + column)
        if has_ones and c.grad_bias_ih:
            sums[first + i] = work[at + width]
        if has_ones and c.grad_bias_hh:
            same_sums[first + i] = work[at + width]
        for k in range(others):
            other_out[(first + i) * c.units + start + k] = work[at + behind + k]
