"""The associative LSTM, forward and backward, as compiled loops over one block of sequences.

Equations: ``fwrnn.layers.associative_lstm``. A block is as many sequences as a register has lanes;
each number of them is one register, so that a permutation of units is a choice of rows, and the
product with h, most of the time, reads its weight once for all of them. The rows of a block, of H/2
registers each (real parts before imaginary parts, K heads, C copies):

    affine   g_f, K · g_i, K · g_o, then K · r_i, K · r_o and K · u as complex numbers
    cells    C complex numbers
    found    K complex numbers, mean_s (P_s r_o) ⊛ c_s

``affine``, ``found`` and ``cells`` have such rows for every step where backward will follow, the
cells those before the first step, too. Else a thread uses those of one step again and again, and
the cells change in place.
"""

from numba import carray, cfunc, types

from fwrnn.layers.kernels import cpu_vectors as v
from fwrnn.layers.kernels import simd
from fwrnn.layers.kernels.simd import fma, inner, load, once, store

COUNTERS = ("next_block", "next_slot")
CONSTANTS = (
    "version", "blocks", "steps", "batch", "half", "copies", "heads", "save", "work_size",
    "permutations",
)  # fmt: skip
ARRAYS = (
    "drive", "weight", "hidden", "states", "affine", "found", "cells", "work",
    "grad_states", "grad_cells", "grad_drive", "grad_hidden",
)  # fmt: skip
LOOP = simd.loop_type(*COUNTERS, *CONSTANTS, *ARRAYS)
VERSION = simd.version_of(__file__, v.__file__)


def work_rows(heads: int) -> int:
    """Rows of H/2 registers of the ``work`` array of one thread: see ``_backward_block``."""
    return 2 * (1 + 8 * heads) + 8


@inner
def _square(real, imaginary):
    return fma(real, real, imaginary * imaginary)


@inner
def _shrink(array, square):
    """1 / max(1, |z|) from |z|²."""
    one = simd.number(array, 1)
    return one / simd.sqrt(one + simd.relu(square - one))


@inner
def _bound(source, at, row, target, to):
    """z / max(1, |z|) of the complex numbers at ``at``."""
    lanes = simd.width(source)
    for i in range(0, row, lanes):
        real, imaginary = load(source, at + i), load(source, at + row + i)
        factor = _shrink(source, _square(real, imaginary))
        store(target, to + i, real * factor)
        store(target, to + row + i, imaginary * factor)


@inner
def _bound_back(values, at, row, grads, grad_at, target, to):
    """From the gradient of ``_bound`` to that of z, which lies at ``at``."""
    lanes = simd.width(values)
    for i in range(0, row, lanes):
        real, imaginary = load(values, at + i), load(values, at + row + i)
        square = _square(real, imaginary)
        factor = _shrink(values, square)
        real, imaginary = real * factor, imaginary * factor
        grad_real, grad_imaginary = load(grads, grad_at + i), load(grads, grad_at + row + i)
        along = fma(real, grad_real, imaginary * grad_imaginary)
        along = simd.where_positive(square - simd.number(values, 1), along)
        store(target, to + i, (grad_real - real * along) * factor)
        store(target, to + row + i, (grad_imaginary - imaginary * along) * factor)


@inner
def _sigmoid(array, value):
    half = simd.number(array, 0.5)
    return fma(simd.tanh(value * half), half, half)


@inner
def _activate(c, affine, at, work, gates, vectors, row):
    """The gates as σ, and the vectors bound, of the affine map at ``at``."""
    lanes, gated = simd.width(work), (1 + 2 * c.heads) * row
    for i in range(0, gated, lanes):
        store(work, gates + i, _sigmoid(work, load(affine, at + i)))
    for k in range(0, 6 * c.heads * row, 2 * row):
        _bound(affine, at + gated + k, row, work, vectors + k)


@inner
def _gate_updates(c, work, gates, vectors, row):
    """u_k ← g_i ⊙ u_k, in place."""
    lanes = simd.width(work)
    for k in range(c.heads):
        gate, update = gates + (1 + k) * row, vectors + (2 * c.heads + k) * 2 * row
        for i in range(0, row, lanes):
            factor = load(work, gate + i)
            store(work, update + i, load(work, update + i) * factor)
            store(work, update + row + i, load(work, update + row + i) * factor)


@inner
def _write(c, permutations, work, gates, vectors, cells, before, after, row):
    """c_s ← g_f ⊙ c_s + Σ_k (P_s r_i) ⊛ (g_i ⊙ u)."""
    lanes = simd.width(work)
    for s in range(c.copies):
        old, new = before + s * 2 * row, after + s * 2 * row
        for i in range(c.half):
            here, there = i * lanes, permutations[s * c.half + i] * lanes
            forget = load(work, gates + here)
            real = forget * load(cells, old + here)
            imaginary = forget * load(cells, old + row + here)
            for k in range(c.heads):
                key, update = vectors + k * 2 * row, vectors + (2 * c.heads + k) * 2 * row
                a, b = load(work, key + there), load(work, key + row + there)
                x, y = load(work, update + here), load(work, update + row + here)
                real = fma(a, x, real) - b * y
                imaginary = fma(a, y, fma(b, x, imaginary))
            store(cells, new + here, real)
            store(cells, new + row + here, imaginary)


@inner
def _read(c, permutations, work, vectors, cells, at, found, found_at, row):
    """mean_s (P_s r_o) ⊛ c_s for every head."""
    lanes = simd.width(work)
    share = simd.number(work, 1) / simd.number(work, c.copies)
    for k in range(c.heads):
        key, target = vectors + (c.heads + k) * 2 * row, found_at + k * 2 * row
        for i in range(c.half):
            here = i * lanes
            real, imaginary = simd.zero(work), simd.zero(work)
            for s in range(c.copies):
                there, cell = permutations[s * c.half + i] * lanes, at + s * 2 * row
                a, b = load(work, key + there), load(work, key + row + there)
                x, y = load(cells, cell + here), load(cells, cell + row + here)
                real = fma(a, x, real) - b * y
                imaginary = fma(a, y, fma(b, x, imaginary))
            store(found, target + here, real * share)
            store(found, target + row + here, imaginary * share)


@inner
def _places(c, t, block, slot, row):
    """Where a block has its affine map, what it found, and its cells before and after step t."""
    nth = t * c.blocks + block if c.save else slot
    cell = 2 * c.copies * row
    before = nth * cell if c.save else block * cell
    after = before + c.blocks * cell if c.save else before
    return nth * (1 + 8 * c.heads) * row, nth * 2 * c.heads * row, before, after


@once
def _forward_block(c, kind, block, slot):
    """A block of sequences from its first step to its last."""
    drive, weight, states = v.array(c.drive, kind), v.array(c.weight, kind), v.array(c.states, kind)
    affine, permutations = v.array(c.affine, kind), v.array(c.permutations, types.int64)
    found, cells, work = v.array(c.found, kind), v.array(c.cells, kind), v.array(c.work, kind)
    lanes, half, heads = simd.width(work), c.half, c.heads
    row, first, units, columns = half * lanes, block * lanes, 2 * half, (1 + 8 * heads) * half
    sequences = min(lanes, c.batch - first)
    gates = slot * c.work_size
    vectors = gates + (1 + 2 * heads) * row
    hidden = vectors + 6 * heads * row
    v.take(False, v.array(c.hidden, kind), first * units, units, sequences, work, hidden)
    for t in range(c.steps):
        at, reads, before, after = _places(c, t, block, slot, row)
        step = t * c.batch + first
        v.take(False, drive, step * columns, columns, sequences, affine, at)
        v.multiply(weight, units, 1, columns, units, work, hidden, affine, at)
        _activate(c, affine, at, work, gates, vectors, row)
        _gate_updates(c, work, gates, vectors, row)
        _write(c, permutations, work, gates, vectors, cells, before, after, row)
        _read(c, permutations, work, vectors, cells, after, found, reads, row)
        v.clear(work, hidden, units)
        for k in range(heads):
            read = reads + k * 2 * row
            for i in range(0, row, lanes):
                real, imaginary = load(found, read + i), load(found, read + row + i)
                factor = _shrink(work, _square(real, imaginary))
                factor = factor * load(work, gates + (1 + heads + k) * row + i)
                to = hidden + i
                store(work, to, fma(real, factor, load(work, to)))
                store(work, to + row, fma(imaginary, factor, load(work, to + row)))
        v.put(False, work, hidden, units, sequences, states, step * units)


@inner
def _product_back(work, key, values, cell, grads, grad, row, here, there, share):
    """Of p = a ⊛ b, with a at ``key``: the gradients of a and of b, from that of p."""
    a, b = load(work, key + there), load(work, key + row + there)
    x, y = load(values, cell + here), load(values, cell + row + here)
    p, q = load(grads, grad + here) * share, load(grads, grad + row + here) * share
    return fma(x, p, y * q), x * q - y * p, fma(a, p, b * q), a * q - b * p


@inner
def _add_at(array, at, row, real, imaginary):
    store(array, at, load(array, at) + real)
    store(array, at + row, load(array, at + row) + imaginary)


@inner
def _opened_back(work, gate, values, at, grad_at, to_gate, to, row):
    """From the gradient of σ ⊙ bound(z), with σ at ``gate`` and z of ``values``: to both."""
    lanes = simd.width(work)
    for i in range(0, row, lanes):
        real, imaginary = load(values, at + i), load(values, at + row + i)
        factor = _shrink(work, _square(real, imaginary))
        p, q = load(work, grad_at + i), load(work, grad_at + row + i)
        opened = load(work, gate + i)
        grad = fma(real * factor, p, imaginary * factor * q)
        store(work, to_gate + i, grad * opened * (simd.number(work, 1) - opened))
        store(work, to + i, p * opened)
        store(work, to + row + i, q * opened)
    _bound_back(values, at, row, work, to, work, to)


@inner
def _step_back(c, kind, t, block, work, gates, row):
    """From the gradient of h(t) to that of the affine map; that of the cells, in place."""
    affine, permutations = v.array(c.affine, kind), v.array(c.permutations, types.int64)
    found, cells = v.array(c.found, kind), v.array(c.cells, kind)
    grad_cells = v.array(c.grad_cells, kind)
    lanes, half, heads, copies = simd.width(work), c.half, c.heads, c.copies
    at, reads, before, after = _places(c, t, block, 0, row)
    grad_at = block * copies * 2 * row
    vectors = gates + (1 + 2 * heads) * row
    grads, raw = vectors + 6 * heads * row, at + (1 + 2 * heads) * row
    grad_vectors = grads + (1 + 2 * heads) * row
    grad_output = grad_vectors + 6 * heads * row
    key_grads, grad_found = grad_output + 4 * row, grad_output + 6 * row
    _activate(c, affine, at, work, gates, vectors, row)
    _gate_updates(c, work, gates, vectors, row)
    share = simd.number(work, 1) / simd.number(work, copies)
    for k in range(heads):  # through h = Σ g_o ⊙ bound(found), and the reads
        gate, read = (1 + heads + k) * row, reads + k * 2 * row
        _opened_back(work, gates + gate, found, read, grad_output, grads + gate, grad_found, row)
        v.clear(work, key_grads, 2 * half)
        key = (heads + k) * 2 * row
        for s in range(copies):
            cell = s * 2 * row
            for i in range(half):
                here, there = i * lanes, permutations[s * half + i] * lanes
                a, b, x, y = _product_back(
                    work, vectors + key, cells, after + cell, work, grad_found, row, here, there,
                    share,
                )  # fmt: skip
                _add_at(work, key_grads + there, row, a, b)
                _add_at(grad_cells, grad_at + cell + here, row, x, y)
        _bound_back(affine, raw + key, row, work, key_grads, work, grad_vectors + key)
    one = simd.number(work, 1)
    for k in range(heads):  # through the writes
        key, update = k * 2 * row, (2 * heads + k) * 2 * row
        v.clear(work, key_grads, 2 * half)
        v.clear(work, grad_found, 2 * half)  # here of g_i ⊙ u
        for s in range(copies):
            cell = grad_at + s * 2 * row
            for i in range(half):
                here, there = i * lanes, permutations[s * half + i] * lanes
                a, b, x, y = _product_back(
                    work, vectors + key, work, vectors + update, grad_cells, cell, row, here,
                    there, one,
                )  # fmt: skip
                _add_at(work, key_grads + there, row, a, b)
                _add_at(work, grad_found + here, row, x, y)
        _bound_back(affine, raw + key, row, work, key_grads, work, grad_vectors + key)
        gate = (1 + k) * row
        _opened_back(
            work, gates + gate, affine, raw + update, grad_found, grads + gate,
            grad_vectors + update, row,
        )  # fmt: skip
    for i in range(0, row, lanes):  # through g_f ⊙ c_s
        forget, to_gate = load(work, gates + i), simd.zero(work)
        for s in range(2 * copies):
            grad = load(grad_cells, grad_at + s * row + i)
            to_gate = fma(load(cells, before + s * row + i), grad, to_gate)
            store(grad_cells, grad_at + s * row + i, grad * forget)
        store(work, grads + i, to_gate * forget * (one - forget))


@once
def _backward_block(c, kind, block, slot):
    """The gradients of a block, from its last step to its first; that of the cells in place."""
    weight, work = v.array(c.weight, kind), v.array(c.work, kind)
    grad_states, grad_drive = v.array(c.grad_states, kind), v.array(c.grad_drive, kind)
    lanes, half, heads = simd.width(work), c.half, c.heads
    row, first, units, columns = half * lanes, block * lanes, 2 * half, (1 + 8 * heads) * half
    sequences = min(lanes, c.batch - first)
    gates = slot * c.work_size
    vectors = gates + (1 + 2 * heads) * row
    grads = vectors + 6 * heads * row  # of the affine map, in its order
    grad_output, carry = grads + (1 + 8 * heads) * row, grads + (3 + 8 * heads) * row
    v.clear(work, carry, units)
    for t in range(c.steps - 1, -1, -1):
        step = t * c.batch + first
        v.take(False, grad_states, step * units, units, sequences, work, grad_output)
        v.add(work, carry, work, grad_output, units)
        _step_back(c, kind, t, block, work, gates, row)
        v.put(False, work, grads, columns, sequences, grad_drive, step * columns)
        v.clear(work, carry, units)
        v.multiply(weight, 1, units, units, columns, work, grads, work, carry)
    v.put(False, work, carry, units, sequences, v.array(c.grad_hidden, kind), first * units)


def build(kind, cache: bool):
    """The loops for one type of number: two C functions of type ``LOOP``, forward and backward."""
    return _loop(kind, cache, VERSION, False), _loop(kind, cache, VERSION, True)


def _loop(kind, cache: bool, version: int, back: bool):
    @cfunc(LOOP, cache=cache)
    def run(address):
        c = carray(address, 1)[0]
        counters = carray(simd.as_integers(address), len(COUNTERS))
        slot, block = simd.claim(counters, 1), simd.claim(counters, 0)
        while block < c.blocks and c.version == version:
            if back:
                _backward_block(c, kind, block, slot)
            else:
                _forward_block(c, kind, block, slot)
            block = simd.claim(counters, 0)

    return run
