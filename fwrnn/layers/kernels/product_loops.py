"""Products of matrices with many rows, as compiled loops: what comes before and after a recurrence.

The register work is that of a step, ``cpu_vectors.multiply``. What is summed over fits the first
cache, so nothing else has to be packed.
"""

from numba import carray, cfunc

from fwrnn.layers.kernels import cpu_vectors as v
from fwrnn.layers.kernels import simd
from fwrnn.layers.kernels.simd import broadcast, inner, load, store

COUNTERS = ("next_task", "next_slot")
CONSTANTS = (
    "version", "contracts", "tasks", "rows", "columns", "others", "results", "down", "across",
    "each", "parts", "work_size",
)  # fmt: skip
ARRAYS = ("left", "right", "other", "bias", "out", "other_out", "sums", "work")
LOOP = simd.loop_type(*COUNTERS, *CONSTANTS, *ARRAYS)
VERSION = simd.version_of(__file__, v.__file__)
CHUNK = 128  # rows that are summed over at once


@inner
def _times(c, kind, task, slot):
    """Some rows of X Mᵀ + bias, (N, K), (R, K) → (N, R): as many as a register has lanes."""
    work, bias = v.array(c.work, kind), v.array(c.bias, kind)
    lanes = simd.width(work)
    first, taken = task * lanes, slot * c.work_size
    found, rows = taken + c.columns * lanes, min(lanes, c.rows - first)
    v.take(False, v.array(c.left, kind), first * c.columns, c.columns, rows, work, taken)
    for i in range(c.results):
        start = broadcast(bias, i) if c.bias else simd.zero(work)
        store(work, found + i * lanes, start)
    matrix = v.array(c.right, kind)
    v.multiply(matrix, c.down, c.across, c.results, c.columns, work, taken, work, found)
    v.put(False, work, found, c.results, rows, v.array(c.out, kind), first * c.results)


@inner
def _contract(c, kind, task, slot):
    """``each`` rows of Gᵀ [X 1 Y], (N, R), (N, K) → (R, K), and as many columns as lanes.

    Every number is summed by one thread: first over the rows of a chunk, then over chunks, which
    loses less to rounding. A column of ones makes the sums of G's columns.
    """
    work, right, other = v.array(c.work, kind), v.array(c.right, kind), v.array(c.other, kind)
    lanes, taken = simd.width(work), slot * c.work_size
    first, column = task % c.parts * c.each, task // c.parts * lanes
    results = min(c.each, c.results - first)
    width = max(0, min(lanes, c.columns - column))  # of X, then perhaps the ones, then of Y
    has_ones = 0 <= c.columns - column < lanes
    behind, start = width + has_ones, max(0, column - c.columns - 1)
    others = max(0, min(lanes - behind, c.others - start))
    found = taken + (CHUNK + 1) * lanes
    partial = found + c.each * lanes
    v.clear(work, found, results)
    for chunk in range(0, c.rows, CHUNK):
        rows = min(CHUNK, c.rows - chunk)
        for n in range(rows):
            at, x_at = taken + n * lanes, (chunk + n) * c.columns + column
            y_at = (chunk + n) * c.others + start
            # What is past a row's end is taken, too, and lies under what comes next.
            if width and x_at + lanes <= c.rows * c.columns:
                store(work, at, load(right, x_at))
            else:
                for k in range(width):
                    work[at + k] = right[x_at + k]
            if has_ones:
                work[at + width] = 1
            if others and y_at + lanes <= c.rows * c.others:
                store(work, at + behind, load(other, y_at))
            else:
                for k in range(others):
                    work[at + behind + k] = other[y_at + k]
        here = v.array(c.left + (chunk * c.results + first) * simd.VECTOR_BYTES // lanes, kind)
        v.clear(work, partial, results)
        v.multiply(here, 1, c.results, results, rows, work, taken, work, partial)
        v.add(work, partial, work, found, results)
    out, other_out, sums = v.array(c.out, kind), v.array(c.other_out, kind), v.array(c.sums, kind)
    for i in range(results):
        at = found + i * lanes
        v.put(True, work, at, width, 1, out, (first + i) * c.columns + column)
        if has_ones:
            sums[first + i] = work[at + width]
        for k in range(others):
            other_out[(first + i) * c.others + start + k] = work[at + behind + k]


def build(kind, cache: bool):
    """The loop for one type of number: a C function of type ``LOOP``, for either product."""
    version = VERSION

    @cfunc(LOOP, cache=cache)
    def run(address):
        c = carray(address, 1)[0]
        counters = carray(simd.as_integers(address), len(COUNTERS))
        slot, task = simd.claim(counters, 1), simd.claim(counters, 0)
        while task < c.tasks and c.version == version:
            if c.contracts:
                _contract(c, kind, task, slot)
            else:
                _times(c, kind, task, slot)
            task = simd.claim(counters, 0)

    return run
