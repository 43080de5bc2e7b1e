"""Products of matrices with many rows, as compiled loops: what comes before and after a recurrence.

The register work is that of a step, ``cpu_vectors.multiply``. What is summed over fits the first
cache, so nothing else has to be packed.
"""

from numba import carray, cfunc

from fwrnn.layers.kernels import cpu_vectors as v
from fwrnn.layers.kernels import simd
from fwrnn.layers.kernels.simd import broadcast, inner, store

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
    """``each`` rows of Gᵀ X or Gᵀ Y, (N, R), (N, K) → (R, K), and as many columns as lanes.

    Every number is summed by one thread: first over the rows of a chunk, then over chunks, which
    loses less to rounding. The sums of G's columns come from a column of ones behind those of X.
    """
    work = v.array(c.work, kind)
    lanes = simd.width(work)
    panels, panel = c.columns // lanes + 1, task // c.parts
    of_other = panel >= panels
    columns = c.others if of_other else c.columns
    right = v.array(c.other if of_other else c.right, kind)
    out, sums = v.array(c.other_out if of_other else c.out, kind), v.array(c.sums, kind)
    column, first = (panel - panels * of_other) * lanes, task % c.parts * c.each
    width, results = min(lanes, columns - column), min(c.each, c.results - first)
    taken, has_ones = slot * c.work_size, panel == panels - 1
    found, partial = taken + CHUNK * lanes, taken + (CHUNK + c.each) * lanes
    v.clear(work, found, results)
    for start in range(0, c.rows, CHUNK):
        rows = min(CHUNK, c.rows - start)
        for n in range(rows):
            at = taken + n * lanes
            if has_ones:
                v.clear(work, at, 1)
            v.pad(right, (start + n) * columns + column, width, work, at)
            if has_ones:
                work[at + width] = 1
        left = v.array(c.left + (start * c.results + first) * simd.VECTOR_BYTES // lanes, kind)
        v.clear(work, partial, results)
        v.multiply(left, 1, c.results, results, rows, work, taken, work, partial)
        v.add(work, partial, work, found, results)
    for i in range(results):
        at = found + i * lanes
        v.put(True, work, at, width, 1, out, (first + i) * columns + column)
        if has_ones:
            sums[first + i] = work[at + width]


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
