"""One step of the associative LSTM, forward and backward, for blocks of sequences.

Equations: ``fwrnn.layers.associative_lstm``. A block is as many sequences as a register has lanes;
each number of them is one register, so that a permutation of units is a choice of rows. The rows of
a block, of H/2 registers each (real parts before imaginary parts, K heads, C copies):

    affine   g_f, K · g_i, K · g_o, then K · r_i, K · r_o and K · u as complex numbers
    cells    C complex numbers
    found    K complex numbers, mean_s (P_s r_o) ⊛ c_s
"""

import zlib
from pathlib import Path

import numpy as np
from numba import carray, cfunc, from_dtype, njit, types

from fwrnn.layers.kernels import cpu_vectors as v
from fwrnn.layers.kernels import simd
from fwrnn.layers.kernels.simd import fma, load, store

COUNTERS = ("next_block", "next_slot")
CONSTANTS = ("version", "blocks", "batch", "half", "copies", "heads", "work_size", "permutations")
ARRAYS = (
    "work", "affine", "before", "after", "found", "hidden", "grad_hidden", "grad_cells",
    "grad_affine",
)  # fmt: skip
CALL = np.dtype([(name, np.int64) for name in (*COUNTERS, *CONSTANTS, *ARRAYS)])
SOURCES = (__file__, v.__file__, simd.__file__)
VERSION = zlib.crc32(b"".join(Path(source).read_bytes() for source in SOURCES))


def work_rows(heads: int) -> int:
    """Rows of H/2 registers of the ``work`` array of one thread: see ``_backward_block``."""
    return 2 * (1 + 8 * heads) + 6


@njit
def _square(real, imaginary):
    return fma(real, real, imaginary * imaginary)


@njit
def _shrink(array, square):
    """1 / max(1, |z|) from |z|²."""
    one = simd.number(array, 1)
    return one / simd.sqrt(one + simd.relu(square - one))


@njit
def _bound(work, at, row, target, to):
    """z / max(1, |z|) of the complex numbers at ``at``."""
    lanes = simd.width(work)
    for i in range(0, row, lanes):
        real, imaginary = load(work, at + i), load(work, at + row + i)
        factor = _shrink(work, _square(real, imaginary))
        store(target, to + i, real * factor)
        store(target, to + row + i, imaginary * factor)


@njit
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


@njit
def _sigmoid(array, value):
    half = simd.number(array, 0.5)
    return fma(simd.tanh(value * half), half, half)


@njit
def _activate(c, affine, first, sequences, work, gates, vectors, raw):
    """The gates as σ and the vectors bound; ``raw`` keeps what came, if it is not ``gates``."""
    lanes, half, heads = simd.width(work), c.half, c.heads
    row, columns = half * lanes, (1 + 8 * heads) * half
    v.transpose(affine, first * columns, columns, columns, sequences, work, raw, lanes)
    for i in range(0, (1 + 2 * heads) * row, lanes):
        store(work, gates + i, _sigmoid(work, load(work, raw + i)))
    offset = raw + (1 + 2 * heads) * row
    for k in range(3 * heads):
        _bound(work, offset + 2 * k * row, row, work, vectors + 2 * k * row)


@njit
def _gate_updates(c, work, gates, vectors, row):
    """u_k ← g_i ⊙ u_k, in place."""
    lanes = simd.width(work)
    for k in range(c.heads):
        gate, update = gates + (1 + k) * row, vectors + (2 * c.heads + k) * 2 * row
        for i in range(0, row, lanes):
            factor = load(work, gate + i)
            store(work, update + i, load(work, update + i) * factor)
            store(work, update + row + i, load(work, update + row + i) * factor)


@njit
def _write(c, permutations, work, gates, vectors, before, after, at, row):
    """c_s ← g_f ⊙ c_s + Σ_k (P_s r_i) ⊛ (g_i ⊙ u)."""
    lanes = simd.width(work)
    for s in range(c.copies):
        cell = at + s * 2 * row
        for i in range(c.half):
            here, there = i * lanes, permutations[s * c.half + i] * lanes
            forget = load(work, gates + here)
            real = forget * load(before, cell + here)
            imaginary = forget * load(before, cell + row + here)
            for k in range(c.heads):
                key, update = vectors + k * 2 * row, vectors + (2 * c.heads + k) * 2 * row
                a, b = load(work, key + there), load(work, key + row + there)
                x, y = load(work, update + here), load(work, update + row + here)
                real = fma(a, x, real) - b * y
                imaginary = fma(a, y, fma(b, x, imaginary))
            store(after, cell + here, real)
            store(after, cell + row + here, imaginary)


@njit
def _read(c, permutations, work, vectors, after, at, found, found_at, row):
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
                x, y = load(after, cell + here), load(after, cell + row + here)
                real = fma(a, x, real) - b * y
                imaginary = fma(a, y, fma(b, x, imaginary))
            store(found, target + here, real * share)
            store(found, target + row + here, imaginary * share)


@njit
def _forward_block(c, kind, block, slot):
    """One step of a block of sequences."""
    affine, permutations = v.array(c.affine, kind), v.array(c.permutations, types.int64)
    before, after, found = v.array(c.before, kind), v.array(c.after, kind), v.array(c.found, kind)
    work, hidden = v.array(c.work, kind), v.array(c.hidden, kind)
    lanes, half, heads, copies = simd.width(work), c.half, c.heads, c.copies
    row, first = half * lanes, block * lanes
    sequences = min(lanes, c.batch - first)
    gates = slot * c.work_size
    vectors = gates + (1 + 2 * heads) * row
    output = vectors + 6 * heads * row
    _activate(c, affine, first, sequences, work, gates, vectors, gates)
    _gate_updates(c, work, gates, vectors, row)
    cells, reads = block * copies * 2 * row, block * heads * 2 * row
    _write(c, permutations, work, gates, vectors, before, after, cells, row)
    _read(c, permutations, work, vectors, after, cells, found, reads, row)
    v.clear(work, output, 2 * half)
    for k in range(heads):
        read = reads + k * 2 * row
        for i in range(0, row, lanes):
            real, imaginary = load(found, read + i), load(found, read + row + i)
            factor = _shrink(work, _square(real, imaginary))
            factor = factor * load(work, gates + (1 + heads + k) * row + i)
            store(work, output + i, fma(real, factor, load(work, output + i)))
            to = output + row + i
            store(work, to, fma(imaginary, factor, load(work, to)))
    v.put(False, work, output, 2 * half, sequences, hidden, first * 2 * half)


@njit
def _product_back(work, key, values, cell, grads, grad, row, here, there, share):
    """Of p = a ⊛ b, with a at ``key``: the gradients of a and of b, from that of p."""
    a, b = load(work, key + there), load(work, key + row + there)
    x, y = load(values, cell + here), load(values, cell + row + here)
    p, q = load(grads, grad + here) * share, load(grads, grad + row + here) * share
    return fma(x, p, y * q), x * q - y * p, fma(a, p, b * q), a * q - b * p


@njit
def _add_at(array, at, row, real, imaginary):
    store(array, at, load(array, at) + real)
    store(array, at + row, load(array, at + row) + imaginary)


@njit
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


@njit
def _backward_block(c, kind, block, slot):
    """One step of a block back: the gradient of its affine map; that of the cells, in place."""
    affine, permutations = v.array(c.affine, kind), v.array(c.permutations, types.int64)
    before, after, found = v.array(c.before, kind), v.array(c.after, kind), v.array(c.found, kind)
    work, grad_cells = v.array(c.work, kind), v.array(c.grad_cells, kind)
    lanes, half, heads, copies = simd.width(work), c.half, c.heads, c.copies
    row, first = half * lanes, block * lanes
    sequences, columns = min(lanes, c.batch - first), (1 + 8 * heads) * half
    gates = slot * c.work_size
    vectors = gates + (1 + 2 * heads) * row
    grads = vectors + 6 * heads * row  # of what came, in its order; the raw vectors until then
    raw_vectors = grads + (1 + 2 * heads) * row
    scratch = raw_vectors + 6 * heads * row
    key_grads, grad_found, grad_output = scratch, scratch + 2 * row, scratch + 4 * row
    _activate(c, affine, first, sequences, work, gates, vectors, grads)
    _gate_updates(c, work, gates, vectors, row)
    v.transpose(
        v.array(c.grad_hidden, kind), first * 2 * half, 2 * half, 2 * half, sequences,
        work, grad_output, lanes,
    )  # fmt: skip
    cells, reads = block * copies * 2 * row, block * heads * 2 * row
    share = simd.number(work, 1) / simd.number(work, copies)
    for k in range(heads):  # through h = Σ g_o ⊙ bound(found), and the reads
        gate, read = gates + (1 + heads + k) * row, reads + k * 2 * row
        to_gate = grads + (1 + heads + k) * row
        _opened_back(work, gate, found, read, grad_output, to_gate, grad_found, row)
        v.clear(work, key_grads, 2 * half)
        key = vectors + (heads + k) * 2 * row
        for s in range(copies):
            cell = cells + s * 2 * row
            for i in range(half):
                here, there = i * lanes, permutations[s * half + i] * lanes
                a, b, x, y = _product_back(
                    work, key, after, cell, work, grad_found, row, here, there, share
                )
                _add_at(work, key_grads + there, row, a, b)
                _add_at(grad_cells, cell + here, row, x, y)
        raw = raw_vectors + (heads + k) * 2 * row
        _bound_back(work, raw, row, work, key_grads, work, raw)
    one = simd.number(work, 1)
    for k in range(heads):  # through the writes
        key, update = vectors + k * 2 * row, vectors + (2 * heads + k) * 2 * row
        v.clear(work, key_grads, 2 * half)
        v.clear(work, grad_found, 2 * half)  # here of g_i ⊙ u
        for s in range(copies):
            cell = cells + s * 2 * row
            for i in range(half):
                here, there = i * lanes, permutations[s * half + i] * lanes
                a, b, x, y = _product_back(
                    work, key, work, update, grad_cells, cell, row, here, there, one
                )
                _add_at(work, key_grads + there, row, a, b)
                _add_at(work, grad_found + here, row, x, y)
        raw = raw_vectors + k * 2 * row
        _bound_back(work, raw, row, work, key_grads, work, raw)
        gate, raw = gates + (1 + k) * row, raw_vectors + (2 * heads + k) * 2 * row
        _opened_back(work, gate, work, raw, grad_found, grads + (1 + k) * row, grad_found, row)
        v.copy(work, grad_found, work, raw, 2 * half)
    for i in range(0, row, lanes):  # through g_f ⊙ c_s
        forget, to_gate = load(work, gates + i), simd.zero(work)
        for s in range(copies):
            for part in range(2):
                at = cells + (2 * s + part) * row + i
                grad = load(grad_cells, at)
                to_gate = fma(load(before, at), grad, to_gate)
                store(grad_cells, at, grad * forget)
        store(work, grads + i, to_gate * forget * (one - forget))
    grad_affine = v.array(c.grad_affine, kind)
    v.put(False, work, grads, columns, sequences, grad_affine, first * columns)


def build(kind, cache: bool):
    """The two steps for one type of number: C functions of the address of a ``CALL``."""
    signature, version = types.void(types.CPointer(from_dtype(CALL))), VERSION

    @cfunc(signature, cache=cache)
    def forward(address):
        c = carray(address, 1)[0]
        counters = carray(simd.as_integers(address), len(COUNTERS))
        slot, block = simd.claim(counters, 1), simd.claim(counters, 0)
        while block < c.blocks and c.version == version:
            _forward_block(c, kind, block, slot)
            block = simd.claim(counters, 0)

    @cfunc(signature, cache=cache)
    def backward(address):
        c = carray(address, 1)[0]
        counters = carray(simd.as_integers(address), len(COUNTERS))
        slot, block = simd.claim(counters, 1), simd.claim(counters, 0)
        while block < c.blocks and c.version == version:
            _backward_block(c, kind, block, slot)
            block = simd.claim(counters, 0)

    return forward, backward
