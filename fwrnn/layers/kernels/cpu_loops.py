"""The whole recurrence, forward and backward, as compiled loops over one block of sequences.

Equations: ``fwrnn.layers.equations``. What makes these loops fast:

- A block is ``LANES`` sequences. Every vector of H units is kept as (H, LANES), so that one
  instruction does the same for all sequences of a block, no sum runs across a register, and W h
  is a matrix product that reads W once per block.
- Everything that a step touches lies in a per-thread ``work`` array that fits the caches.
- ``transpose_tile`` turns (sequence, unit) into (unit, sequence) and back, in registers.

Past ``chunk`` steps the memory is folded into a matrix, and attention starts anew within the next
chunk: A(t) = λ^j A(chunk's start) + Σ of the chunk's own states. So time and memory grow with T,
not T², and λ is never divided by. With one chunk this is the attention form of equation 4.

A lane whose sequence has ended keeps its state. It goes through the same instructions as the others
with zeros in the place of its drive, so that nothing in it can become infinite.

All arrays are flat. A name that ends in ``_at`` is the index in its array where something starts;
``row`` is H·LANES, the numbers in one vector of a block.
"""

import zlib
from pathlib import Path

import numpy as np
from numba import carray, cfunc, from_dtype, njit, types

from fwrnn.layers import equations
from fwrnn.layers.equations import NORM_EPS, QUERY_EPS
from fwrnn.layers.kernels import simd
from fwrnn.layers.kernels.simd import MANY, broadcast, fma, load, store

GROUP = 4  # past states attended to at once; rows up to the next multiple exist and are finite

# What a call passes to the loops, each a 64-bit integer: counters that the threads share, sizes and
# switches, and the addresses of arrays, 0 for none.
COUNTERS = ("next_block", "next_slot", "blocks_done")
CONSTANTS = (
    "version", "blocks", "steps", "batch", "units", "inner_steps", "chunk",
    "tanh", "layer_norm", "identity", "previous", "powers", "strengths",
)  # fmt: skip
SIZES = ("save", "normed_at", "found_at", "scales_at", "borders_at", "work_size")
ARRAYS = (
    "drive", "lengths", "memory", "weight", "gain", "shift", "read_gain",
    "states", "trail", "saved", "work",
    "grad_states", "grad_drive", "grad_hidden", "grad_memory", "grad_gains",
)  # fmt: skip
CALL = np.dtype([(name, np.int64) for name in (*COUNTERS, *CONSTANTS, *SIZES, *ARRAYS)])
# Numba's cache on disk notices changes of this file, but not of what it imports; it does notice
# other values of a variable around a function, which this becomes in ``build``.
SOURCES = (__file__, simd.__file__, equations.__file__)
VERSION = zlib.crc32(b"".join(Path(source).read_bytes() for source in SOURCES))


def work_rows(units: int, chunk: int, inner_steps: int, matrix: bool, backward: bool) -> int:
    """Rows of the ``work`` array of one thread: see the two blocks' loops."""
    past = chunk + 1 + GROUP
    if not backward:
        return past + 2 + matrix * units
    return 2 * past + 10 + matrix * (3 * units + 2 * chunk * inner_steps)


@njit
def _gather(source, start, units, sequences, target, at):
    """(sequence, unit) rows of ``source`` → (unit, lane); lanes without a sequence become 0."""
    lanes = simd.width(source)
    tile = lanes // 2
    for lane in range(0, lanes, tile):
        done = 0
        while done < units and units >= tile and lane + tile <= sequences:
            unit = min(done, units - tile)  # the last tile may do some units again
            simd.transpose_tile(
                source, start + lane * units + unit, units, target, at + unit * lanes + lane, lanes
            )
            done = unit + tile
        for u in range(done, units):
            for k in range(lane, lane + tile):
                target[at + u * lanes + k] = source[start + k * units + u] if k < sequences else 0


@njit
def _scatter(source, at, units, sequences, target, start):
    """(unit, lane) rows of ``source`` → (sequence, unit) for the lanes that hold a sequence."""
    lanes = simd.width(source)
    tile = lanes // 2
    for lane in range(0, lanes, tile):
        done = 0
        while done < units and units >= tile and lane + tile <= sequences:
            unit = min(done, units - tile)
            simd.transpose_tile(
                source, at + unit * lanes + lane, lanes, target, start + lane * units + unit, units
            )
            done = unit + tile
        for u in range(done, units):
            for k in range(lane, min(lane + tile, sequences)):
                target[start + k * units + u] = source[at + u * lanes + k]


@njit
def _copy(source, at, target, to, units):
    lanes = simd.width(source)
    for i in range(units):
        store(target, to + i * lanes, load(source, at + i * lanes))


@njit
def _add(source, at, target, to, units):
    lanes = simd.width(source)
    for i in range(units):
        here = to + i * lanes
        store(target, here, load(target, here) + load(source, at + i * lanes))


@njit
def _clear(target, at, units):
    lanes = simd.width(target)
    for i in range(units):
        store(target, at + i * lanes, simd.zero(target))


@njit
def _activate(source, at, target, to, units, tanh):
    lanes = simd.width(source)
    for i in range(units):
        value = load(source, at + i * lanes)
        store(target, to + i * lanes, simd.tanh(value) if tanh else simd.relu(value))


@njit
def _running(c, kind, first, t):
    """Positive in the lanes whose sequence has a step t."""
    lengths = _array(c.lengths, kind)
    return load(lengths, first) - simd.number(lengths, t)


@njit
def _keep(gate, target, at, units):
    """Zero in the lanes where ``gate`` is not positive, whatever was there."""
    lanes = simd.width(target)
    for i in range(at, at + units * lanes, lanes):
        store(target, i, simd.where_positive(gate, load(target, i)))


@njit
def _stop(running, work, new, previous, units):
    """Lanes that do not run keep their previous state."""
    lanes = simd.width(work)
    ended = simd.number(work, 0.5) - running  # lengths and steps are whole numbers
    for i in range(0, units * lanes, lanes):
        value = simd.where_positive(running, load(work, new + i))
        kept = simd.where_positive(ended, load(work, previous + i))
        store(work, new + i, value + kept)


@njit
def _add_scaled_rows(factors, source, at, target, to, units):
    """target += factor_u · source for each unit u."""
    lanes = simd.width(source)
    for i in range(units):
        here = to + i * lanes
        value = fma(broadcast(factors, i), load(source, at + i * lanes), load(target, here))
        store(target, here, value)


@njit
def _scale(source, at, factor, target, to, units):
    lanes = simd.width(source)
    for i in range(units):
        store(target, to + i * lanes, load(source, at + i * lanes) * factor)


@njit
def _start_back(c, bracket_grad_at, work, answer_at, grad_at):
    """Through h_0 = f(bracket): adds to the gradient of the bracket."""
    lanes = simd.width(work)
    for k in range(0, c.units * lanes, lanes):
        grad = _slope(load(work, answer_at + k), load(work, grad_at + k), c.tanh)
        store(work, bracket_grad_at + k, load(work, bracket_grad_at + k) + grad)


@njit
def _slope(output, gradient, tanh):
    """The gradient before the non-linearity, from the output of it and the gradient after it."""
    if tanh:
        return fma(output * output, simd.negative(gradient), gradient)
    return simd.where_positive(output, gradient)


@njit
def _weight_rows(rows, weight, at, down, across, units, x, x_at):
    """rows[r] + Σ_j W[r, j] x[j], with W[r, j] at ``at + r·down + j·across``."""
    lanes = simd.width(x)
    for j in range(units):
        vector = load(x, x_at + j * lanes)
        rows = simd.fma_broadcast(rows, weight, at + j * across, down, vector)
    return rows


@njit
def _multiply(weight, down, across, units, x, x_at, out, out_at):
    """out += W x, some rows of W at a time so that they share what is read of x.

    W[i, j] lies at ``i·down + j·across``: exchange the two for Wᵀ.
    """
    lanes = simd.width(x)
    i = 0
    for _ in range(units // MANY):
        rows = simd.load_many(out, out_at + i * lanes, lanes)
        rows = _weight_rows(rows, weight, i * down, down, across, units, x, x_at)
        simd.store_rows(out, out_at + i * lanes, lanes, rows)
        i += MANY
    for _ in range(units % MANY // 2):
        rows = simd.load_2(out, out_at + i * lanes, lanes)
        rows = _weight_rows(rows, weight, i * down, down, across, units, x, x_at)
        simd.store_rows(out, out_at + i * lanes, lanes, rows)
        i += 2
    if units % 2:
        rows = simd.load_1(out, out_at + i * lanes, lanes)
        rows = _weight_rows(rows, weight, i * down, down, across, units, x, x_at)
        simd.store_rows(out, out_at + i * lanes, lanes, rows)


@njit
def _attend(past, past_at, count, strengths, strengths_at, query_at, out, out_at, units):
    """out += Σ_r strength_r h_r (h_r · query) over the ``count`` rows at ``past_at``.

    Reads whole groups of rows; ``strengths`` is 0 for those past ``count``.
    """
    lanes = simd.width(past)
    row = units * lanes
    for first in range(0, count, GROUP):
        at = past_at + first * row
        weights = simd.zeros_4(past)
        for i in range(0, row, lanes):
            weights = simd.fma_rows(weights, past, at + i, row, load(past, query_at + i))
        weights = simd.scale_rows(weights, strengths, strengths_at - first, -1)
        for i in range(0, row, lanes):
            value = simd.weigh_rows(load(out, out_at + i), weights, past, at + i, row)
            store(out, out_at + i, value)


@njit
def _attend_back(
    past, past_at, grad_past_at, count, strengths, strengths_at, query_at, grad_at, out_at, units
):
    """The gradients of ``_attend``, whose output's gradient is at ``grad_at``.

    Adds to that of the query, at ``out_at``, and to those of the rows, at ``grad_past_at``. All
    lie in the array ``past``.
    """
    lanes = simd.width(past)
    row = units * lanes
    for first in range(0, count, GROUP):
        at, grads_at = past_at + first * row, grad_past_at + first * row
        asked, answered = simd.zeros_4(past), simd.zeros_4(past)
        for i in range(0, row, lanes):
            asked = simd.fma_rows(asked, past, at + i, row, load(past, query_at + i))
            answered = simd.fma_rows(answered, past, at + i, row, load(past, grad_at + i))
        asked = simd.scale_rows(asked, strengths, strengths_at - first, -1)
        answered = simd.scale_rows(answered, strengths, strengths_at - first, -1)
        for i in range(0, row, lanes):
            query, grad = load(past, query_at + i), load(past, grad_at + i)
            value = simd.weigh_rows(load(past, out_at + i), answered, past, at + i, row)
            store(past, out_at + i, value)
            grads = simd.load_4(past, grads_at + i, row)
            grads = simd.add_scaled(simd.add_scaled(grads, asked, grad), answered, query)
            simd.store_rows(past, grads_at + i, row, grads)


@njit
def _normalise(z, z_at, units):
    """Layer normalisation of z in place, before gain and bias; returns 1 / standard deviation."""
    lanes = simd.width(z)
    end = z_at + units * lanes
    count = simd.number(z, units)
    mean, variance = simd.zero(z), simd.zero(z)
    for at in range(z_at, end, lanes):
        mean = mean + load(z, at)
    mean = mean / count
    for at in range(z_at, end, lanes):
        centred = load(z, at) - mean
        store(z, at, centred)
        variance = fma(centred, centred, variance)
    scale = simd.number(z, 1) / simd.sqrt(variance / count + simd.number(z, NORM_EPS))
    for at in range(z_at, end, lanes):
        store(z, at, load(z, at) * scale)
    return scale


@njit
def _outer_activation(c, normed, at, gain, shift, out, out_at):
    """out = f(g z + b) with layer normalisation, f(z) without."""
    lanes = simd.width(normed)
    for i in range(c.units):
        value = load(normed, at + i * lanes)
        if c.layer_norm:
            value = fma(value, broadcast(gain, i), broadcast(shift, i))
        store(out, out_at + i * lanes, simd.tanh(value) if c.tanh else simd.relu(value))


@njit
def _outer_activation_back(c, normed, at, scale, gain, work, out_at, grad_at, total_at):
    """The gradient of ``_outer_activation`` and of ``_normalise``: from h's to z's, in place.

    h lies at ``out_at``, the gradient at ``grad_at``; those of gain and bias add up, lane by lane,
    in the two rows at ``total_at``.
    """
    lanes = simd.width(work)
    row = c.units * lanes
    mean, product = simd.zero(work), simd.zero(work)
    for i in range(c.units):
        k = i * lanes
        grad = _slope(load(work, out_at + k), load(work, grad_at + k), c.tanh)
        if c.layer_norm:
            value = load(normed, at + k)
            to_gain, to_shift = total_at + k, total_at + row + k
            store(work, to_gain, fma(grad, value, load(work, to_gain)))
            store(work, to_shift, load(work, to_shift) + grad)
            grad = grad * broadcast(gain, i)
            mean = mean + grad
            product = fma(grad, value, product)
        store(work, grad_at + k, grad)
    if c.layer_norm:
        count = simd.number(work, c.units)
        mean, product = mean / count, simd.negative(product / count)
        for k in range(0, row, lanes):
            centred = load(work, grad_at + k) - mean
            centred = fma(load(normed, at + k), product, centred)
            store(work, grad_at + k, centred * scale)


@njit
def _per_direction(query, at, units):
    """1 / (H · rms(q)) for each lane, by which what is found is multiplied."""
    lanes = simd.width(query)
    total = simd.number(query, QUERY_EPS)
    for k in range(at, at + units * lanes, lanes):
        total = fma(load(query, k), load(query, k), total)
    return simd.number(query, 1) / simd.sqrt(total * simd.number(query, units))


@njit
def _read_gain_back(saved, found, read_gain, work, grad, query, total, to, grad_query, units):
    """From the gradient of g ⊙ z, at ``grad``, with z = c A q and c = 1 / (H rms(q)).

    To that of A q, at ``to``; that of g adds up in ``total``, and that of q, by way of c, is added
    at ``grad_query``: -(z · dz) H c² q.
    """
    lanes = simd.width(work)
    factor, product = _per_direction(work, query, units), simd.zero(work)
    for i in range(units):
        k = i * lanes
        value, answer = load(work, grad + k), load(saved, found + k)
        store(work, total + k, fma(value, answer, load(work, total + k)))
        value = value * broadcast(read_gain, i)
        product = fma(value, answer, product)
        store(work, to + k, value * factor)
    product = simd.negative(product * factor * factor * simd.number(work, units))
    for k in range(0, units * lanes, lanes):
        store(work, grad_query + k, fma(product, load(work, query + k), load(work, grad_query + k)))


@njit
def _matrix_times(matrix, at, down, across, units, scale, x_at, out, out_at):
    """out_i += scale · Σ_j M_ij x_j for each lane; M_ij at ``at + i·down + j·across``, x in M."""
    lanes = simd.width(matrix)
    i = 0
    for _ in range(units // 4):
        rows = simd.zeros_4(matrix)
        for j in range(units):
            vector = load(matrix, x_at + j * lanes)
            rows = simd.fma_rows(rows, matrix, at + i * down + j * across, down, vector)
        here = out_at + i * lanes
        simd.store_rows(
            out, here, lanes, simd.add_scaled(simd.load_4(out, here, lanes), rows, scale)
        )
        i += 4
    for k in range(i, units):
        value = simd.zero(matrix)
        for j in range(units):
            entry = load(matrix, at + k * down + j * across)
            value = fma(entry, load(matrix, x_at + j * lanes), value)
        here = out_at + k * lanes
        store(out, here, fma(value, scale, load(out, here)))


@njit
def _fold(work, at, keep, left_at, right_at, weights, weights_at, step, count, units):
    """M = keep · M + Σ_k weight_k left_k right_kᵀ for each lane, over ``count`` rows of each."""
    lanes = simd.width(work)
    row = units * lanes
    for i in range(units):
        j = 0
        for _ in range(units // MANY):
            here = at + i * row + j * lanes
            rows = simd.load_many(work, here, lanes)
            rows = simd.times(rows, keep)
            for k in range(count):
                factor = load(work, left_at + k * row + i * lanes)
                factor = factor * broadcast(weights, weights_at + k * step)
                rows = simd.fma_rows(rows, work, right_at + k * row + j * lanes, lanes, factor)
            simd.store_rows(work, here, lanes, rows)
            j += MANY
        for jj in range(j, units):
            here = at + i * row + jj * lanes
            value = load(work, here) * keep
            for k in range(count):
                factor = load(work, left_at + k * row + i * lanes)
                factor = factor * broadcast(weights, weights_at + k * step)
                value = fma(factor, load(work, right_at + k * row + jj * lanes), value)
            store(work, here, value)


@njit
def _fold_back(
    work, grad_at, both_at, past_at, grad_past_at, strengths, strengths_at, count, units
):
    """The gradients of the folded rows: those of h_r grow by strength_r (G + Gᵀ) h_r."""
    lanes = simd.width(work)
    row = units * lanes
    for i in range(units):
        for j in range(units):
            entry = load(work, grad_at + i * row + j * lanes)
            other = load(work, grad_at + j * row + i * lanes)
            store(work, both_at + i * row + j * lanes, entry + other)
    for first in range(0, count, GROUP):
        for i in range(units):
            rows = simd.zeros_4(work)
            for j in range(units):
                entry = load(work, both_at + i * row + j * lanes)
                rows = simd.fma_rows(rows, work, past_at + first * row + j * lanes, row, entry)
            rows = simd.scale_rows(rows, strengths, strengths_at - first, -1)
            here = grad_past_at + first * row + i * lanes
            grads = simd.load_4(work, here, row)
            simd.store_rows(work, here, row, simd.add_scaled(grads, rows, simd.number(work, 1)))


@njit
def _array(address, kind):
    """The numbers from ``address`` on; their count is not known here."""
    return carray(simd.at_address(address, kind), 1 << 60)


@njit
def _forward_block(c, kind, block, slot):
    """One block of sequences from its first step to its last."""
    drive, trail = _array(c.drive, kind), _array(c.trail, kind)
    weight, gain, shift = _array(c.weight, kind), _array(c.gain, kind), _array(c.shift, kind)
    powers, strengths = _array(c.powers, kind), _array(c.strengths, kind)
    read_gain = _array(c.read_gain, kind)
    saved, work = _array(c.saved, kind), _array(c.work, kind)
    units, lanes, chunk = c.units, simd.width(work), c.chunk
    row, first = units * lanes, block * lanes
    sequences = min(lanes, c.batch - first)
    past = slot * c.work_size  # its row 0 is the state before the chunk
    query = past + (chunk + 1 + GROUP) * row
    matrix = query + 2 * row
    newest = GROUP - 1  # where ``strengths`` starts for an age of 0
    _gather(trail, first * units, units, sequences, work, past)
    if c.memory:
        memory = _array(c.memory, kind)
        _gather(memory, first * units * units, units * units, sequences, work, matrix)
    for t in range(c.steps):
        j = t % chunk
        if t and not j:
            if t == chunk and not c.memory:
                _clear(work, matrix, units * units)
            _fold(
                work, matrix, broadcast(powers, chunk), past + row, past + row,
                strengths, newest + chunk - 1, -1, chunk, units,
            )  # fmt: skip
            _copy(work, past + chunk * row, work, past, units)
            if c.save:
                border = (block * ((c.steps - 1) // chunk) + t // chunk - 1) * units * row
                _copy(work, matrix, saved, c.borders_at + border, units * units)
        if j % GROUP == 0:
            _clear(work, past + (j + 1) * row, GROUP * units)
        step = t * c.batch + first
        nth = block * c.steps + t if c.save else slot
        bracket, previous, new = nth * row, past + j * row, past + (j + 1) * row
        _gather(drive, step * units, units, sequences, saved, bracket)
        _multiply(weight, units, 1, units, work, previous, saved, bracket)
        if c.lengths:
            _keep(_running(c, kind, first, t), saved, bracket, units)
        asked = previous
        if not c.previous:
            asked = query if c.inner_steps else new
            _activate(saved, bracket, work, asked, units, c.tanh)
        for s in range(c.inner_steps):
            inner = nth * c.inner_steps + s if c.save else slot
            z = c.normed_at + inner * row
            if c.identity:
                _copy(work, asked, saved, z, units)
            else:
                _copy(saved, bracket, saved, z, units)
            found = z
            if c.read_gain:
                found = c.found_at + inner * row
                _clear(saved, found, units)
            if c.memory or t >= chunk:
                decayed = broadcast(powers, j)
                _matrix_times(work, matrix, row, lanes, units, decayed, asked, saved, found)
            _attend(work, past + row, j, strengths, newest + j - 1, asked, saved, found, units)
            if c.read_gain:
                _scale(saved, found, _per_direction(work, asked, units), saved, found, units)
                _add_scaled_rows(read_gain, saved, found, saved, z, units)
            if c.layer_norm:
                store(saved, c.scales_at + inner * lanes, _normalise(saved, z, units))
            asked = new if s == c.inner_steps - 1 else query + (s + 1) % 2 * row
            _outer_activation(c, saved, z, gain, shift, work, asked)
        if c.lengths:
            _stop(_running(c, kind, first, t), work, new, previous, units)
        _scatter(work, new, units, sequences, _array(c.states, kind), step * units)
        _scatter(work, new, units, sequences, trail, (step + c.batch) * units)


@njit
def _backward_block(c, kind, block, slot):
    """The gradients of one block, from its last step to its first."""
    trail, weight = _array(c.trail, kind), _array(c.weight, kind)
    gain, shift = _array(c.gain, kind), _array(c.shift, kind)
    powers, strengths = _array(c.powers, kind), _array(c.strengths, kind)
    read_gain = _array(c.read_gain, kind)
    saved, work = _array(c.saved, kind), _array(c.work, kind)
    grad_states, grad_drive = _array(c.grad_states, kind), _array(c.grad_drive, kind)
    units, lanes, chunk = c.units, simd.width(work), c.chunk
    row, first = units * lanes, block * lanes
    sequences = min(lanes, c.batch - first)
    newest = GROUP - 1
    rows = chunk + 1 + GROUP
    past = slot * c.work_size
    grad_past = past + rows * row
    totals = grad_past + rows * row  # of gain, bias and read gain, lane by lane
    grad, grad_query = totals + 3 * row, totals + 4 * row
    grad_bracket, query, carry = totals + 5 * row, totals + 6 * row, totals + 7 * row
    passed, scaled = totals + 8 * row, totals + 9 * row
    matrix = totals + 10 * row
    grad_matrix, both = matrix + units * row, matrix + 2 * units * row
    lefts = matrix + 3 * units * row
    rights = lefts + chunk * c.inner_steps * row
    last_chunk = (c.steps - 1) // chunk
    _clear(work, totals, 3 * units)
    _clear(work, carry, units)
    if c.memory or last_chunk:
        _clear(work, grad_matrix, units * units)
    for k in range(last_chunk, -1, -1):
        start = k * chunk
        count = min(chunk, c.steps - start)
        has_matrix = c.memory or k
        before = (start * c.batch + first) * units
        _gather(trail, before, units, sequences, work, past)
        for j in range(count):
            nth = block * c.steps + start + j
            if c.inner_steps:
                z = c.normed_at + ((nth + 1) * c.inner_steps - 1) * row
                _outer_activation(c, saved, z, gain, shift, work, past + (j + 1) * row)
            else:
                _activate(saved, nth * row, work, past + (j + 1) * row, units, c.tanh)
        _clear(work, past + (count + 1) * row, GROUP * units)
        _clear(work, grad_past, rows * units)
        if k:
            border = c.borders_at + (block * last_chunk + k - 1) * units * row
            _copy(saved, border, work, matrix, units * units)
        elif c.memory:
            memory = _array(c.memory, kind)
            _gather(memory, first * units * units, units * units, sequences, work, matrix)
        if k < last_chunk:
            _fold_back(
                work, grad_matrix, both, past + row, grad_past + row,
                strengths, newest + count - 1, count, units,
            )  # fmt: skip
        for j in range(count - 1, -1, -1):
            step, nth = (start + j) * c.batch + first, block * c.steps + start + j
            previous, answer, bracket = past + j * row, past + (j + 1) * row, nth * row
            _gather(grad_states, step * units, units, sequences, work, grad)
            _add(work, carry, work, grad, units)
            _add(work, grad_past + (j + 1) * row, work, grad, units)
            if c.lengths:  # the gradient of a state that was kept is one of the state before
                running = _running(c, kind, first, start + j)
                _copy(work, grad, work, passed, units)
                _keep(simd.number(work, 0.5) - running, work, passed, units)
                _keep(running, work, grad, units)
            _clear(work, grad_bracket, units)
            for s in range(c.inner_steps - 1, -1, -1):
                inner, pair = nth * c.inner_steps + s, (j * c.inner_steps + s) * row
                z = c.normed_at + inner * row
                scale = load(saved, c.scales_at + inner * lanes)
                _outer_activation_back(c, saved, z, scale, gain, work, answer, grad, totals)
                asked = rights + pair if has_matrix else query
                if s:
                    _outer_activation(c, saved, z - row, gain, shift, work, asked)
                elif c.previous:
                    _copy(work, previous, work, asked, units)
                else:
                    _activate(saved, bracket, work, asked, units, c.tanh)
                if c.identity:
                    _copy(work, grad, work, grad_query, units)
                else:
                    _add(work, grad, work, grad_bracket, units)
                    _clear(work, grad_query, units)
                grad_found = grad
                if c.read_gain:
                    found, grad_found = c.found_at + inner * row, scaled
                    _read_gain_back(
                        saved, found, read_gain, work, grad, asked, totals + 2 * row,
                        scaled, grad_query, units,
                    )  # fmt: skip
                _attend_back(
                    work, past + row, grad_past + row, j, strengths, newest + j - 1,
                    asked, grad_found, grad_query, units,
                )  # fmt: skip
                if has_matrix:
                    decayed = broadcast(powers, j)
                    _matrix_times(
                        work, matrix, lanes, row, units, decayed, grad_found, work, grad_query
                    )
                    _scale(work, grad_found, decayed, work, lefts + pair, units)
                _copy(work, grad_query, work, grad, units)
                answer = asked
            if c.previous:
                _copy(work, grad, work, carry, units)
            else:
                _clear(work, carry, units)
                _start_back(c, grad_bracket, work, answer, grad)
            _scatter(work, grad_bracket, units, sequences, grad_drive, step * units)
            _multiply(weight, 1, units, units, work, grad_bracket, work, carry)
            if c.lengths:
                _add(work, passed, work, carry, units)
        if has_matrix:
            _fold(
                work, grad_matrix, broadcast(powers, count), lefts, rights,
                powers, 0, 0, count * c.inner_steps, units,
            )  # fmt: skip
    _scatter(work, carry, units, sequences, _array(c.grad_hidden, kind), first * units)
    if c.memory:
        square = units * units
        grad_memory = _array(c.grad_memory, kind)
        _scatter(work, grad_matrix, square, sequences, grad_memory, first * square)
    if c.grad_gains:
        grad_gains = _array(c.grad_gains, kind)
        for i in range(3 * units):  # of the gain, then of the bias, then of the read gain
            grad_gains[(block + 1) * 3 * units + i] = simd.total(load(work, totals + i * lanes))


@njit
def _sum_gains(c, kind):
    """Row 0 of ``grad_gains`` becomes the sum of the rows of all blocks, always in their order."""
    grad_gains, width = _array(c.grad_gains, kind), 3 * c.units
    for i in range(width):
        found = grad_gains[width + i]
        for block in range(1, c.blocks):
            found += grad_gains[(block + 1) * width + i]
        grad_gains[i] = found


def build(kind, cache: bool):
    """The loops for one type of number: two C functions, each of the address of a ``CALL``.

    Every thread of a team calls the function with the same address, and takes block after block
    until none is left.
    """
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
            if simd.claim(counters, 2) == c.blocks - 1 and c.grad_gains:
                _sum_gains(c, kind)  # the last block is done
            block = simd.claim(counters, 0)

    return forward, backward
