"""The whole recurrence, forward and backward, as compiled loops over one block of sequences.

Equations: ``fwrnn.layers.equations``; what a step is made of: ``cpu_vectors``. What makes these
loops fast:

- A block is as many sequences as a register has lanes, kept as (unit, lane), or where few are at
  hand one sequence, kept ``along`` its units: see ``cpu_vectors``.
- Everything that a step touches lies in a per-thread ``work`` array that fits the caches.
- ``transpose_tile`` turns (sequence, unit) into (unit, sequence) and back, in registers.

Past ``chunk`` steps the memory is folded into a matrix, and attention starts anew within the next
chunk: A(t) = λ^j A(chunk's start) + Σ of the chunk's own states. So time and memory grow with T,
not T², and λ is never divided by. With one chunk this is the attention form of equation 4.

The products of all steps, C x before the recurrence and the gradients of C and W behind it, are
taken from one list by all threads, who wait for its end before they go on: ``product_loops``.

A lane whose sequence has ended keeps its state. It goes through the same instructions as the others
with zeros in the place of its drive, so that nothing in it can become infinite.

All arrays are flat. A name that ends in ``_at`` is the index in its array where something starts;
``row`` is the numbers in one vector of a block, ``count`` the registers.
"""

from numba import carray, cfunc

from fwrnn.layers import equations
from fwrnn.layers.kernels import cpu_vectors as v
from fwrnn.layers.kernels import product_loops as products
from fwrnn.layers.kernels import simd
from fwrnn.layers.kernels.cpu_vectors import GROUP
from fwrnn.layers.kernels.simd import broadcast, inner, load, once, store

# What a call passes to the loops, each a 64-bit integer: counters that the threads share, sizes and
# switches, and the addresses of arrays, 0 for none.
COUNTERS = ("next_block", "next_slot", "blocks_done", "next_tile", "tiles_done", "next_sum")
CONSTANTS = (
    "version", "along", "blocks", "steps", "batch", "units", "count", "inner_steps", "chunk",
    "tanh", "layer_norm", "identity", "previous", "plain", "powers", "strengths", "scale",
    "one_gain", "inputs", "tiles", "sums", "each", "parts",
)  # fmt: skip
# ``scale``, of read_gain, is an address too. There are ``tiles`` of C x, and ``sums`` behind it.
SIZES = ("save", "normed_at", "found_at", "scales_at", "borders_at", "end_at", "work_size")
ARRAYS = (
    "sequence", "hidden", "memory", "weight_ih", "weight", "bias_ih", "bias_hh", "gain", "shift",
    "read_gain", "drive", "lengths", "last", "left", "fade", "states", "trail", "saved", "work",
    "grad_states", "grad_drive", "grad_hidden", "grad_memory",
    "by_block", "grad_gain", "grad_shift", "grad_read_gain",
    "grad_sequence", "grad_weight_ih", "grad_weight_hh", "grad_bias_ih", "grad_bias_hh",
)  # fmt: skip
LOOP = simd.loop_type(*COUNTERS, *CONSTANTS, *SIZES, *ARRAYS)
VERSION = simd.version_of(__file__, products.__file__, v.__file__, equations.__file__)


def work_rows(
    along: bool, units: int, chunk: int, inner_steps: int, matrix: bool, backward: bool
) -> int:
    """Rows of the ``work`` array of one thread: see the two blocks' loops."""
    past = chunk + 1 + GROUP
    constants = along * units + 3
    if not backward:
        return constants + past + 2 + matrix * units
    return constants + 2 * past + 10 + matrix * (3 * units + 2 * chunk * inner_steps)


@inner
def _constants(c, kind, slot, transposed):
    """What is learned, as arrays: W, and the gain, the shift and the gain of what is read.

    The latter is a scaled copy at the end of the thread's work. Along the units all are copies,
    padded, and W has the rows that ``combine`` asks for: those of Wᵀ for W h.
    """
    weight, gain, shift = v.array(c.weight, kind), v.array(c.gain, kind), v.array(c.shift, kind)
    lanes = simd.width(weight)
    row, size = c.count * lanes, simd.VECTOR_BYTES // lanes
    end = c.work + (slot + 1) * c.work_size * size
    read_gain = v.array(end - row * size, kind)
    if c.read_gain:
        source, scale = v.array(c.read_gain, kind), v.array(c.scale, kind)[0]
        for i in range(c.units):
            read_gain[i] = scale * source[0 if c.one_gain else i]
        for i in range(c.units, c.along * row):
            read_gain[i] = 0
    if not c.along:
        return weight, gain, shift, read_gain
    padded = v.array(end - (c.units + 3) * row * size, kind)
    if transposed:
        v.transpose_square(weight, 0, c.units, c.units, padded, 0, row)
    else:
        v.pad_rows(weight, 0, c.units, c.units, padded, 0, row)
    gains = v.array(end - 3 * row * size, kind)
    if c.layer_norm:
        v.pad(gain, 0, c.units, gains, 0)
        v.pad(shift, 0, c.units, gains, row)
    return padded, gains, v.array(end - 2 * row * size, kind), read_gain


@inner
def _running(c, kind, first, t):
    """Positive in the lanes whose sequence has a step t."""
    lengths = v.array(c.lengths, kind)
    length = broadcast(lengths, first) if c.along else load(lengths, first)
    return length - simd.number(lengths, t)


@inner
def _take_memory(c, kind, first, sequences, transposed, work, matrix):
    """The given matrices A, or along the units of one sequence Aᵀ if that is asked for."""
    memory, units, row = v.array(c.memory, kind), c.units, c.count * simd.width(work)
    square, start = units * units, first * units * units
    if not c.along:
        v.take(False, memory, start, square, sequences, work, matrix)
    elif transposed:
        v.transpose_square(memory, start, units, units, work, matrix, row)
    else:
        v.pad_rows(memory, start, units, units, work, matrix, row)


@once
def _drive_tile(c, kind, slot, tile):
    """Some rows of the drive, C x + biases."""
    work = v.array(c.work, kind)
    products.times(
        kind, c.steps * c.batch, c.inputs, c.units, tile, c.sequence, c.weight_ih, c.inputs, 1,
        (c.bias_ih, c.bias_hh), c.drive, work, slot * c.work_size,
    )  # fmt: skip


@once
def _sum_or_tile(c, kind, slot, task):
    """A part of the gradients of C, W and the biases, and then some rows of the sequence's."""
    work = v.array(c.work, kind)
    if task < c.sums:
        products.contract(c, kind, task, work, slot * c.work_size)
    else:
        products.times(
            kind, c.steps * c.batch, c.units, c.inputs, task - c.sums, c.grad_drive, c.weight_ih,
            1, c.inputs, (0, 0), c.grad_sequence, work, slot * c.work_size,
        )  # fmt: skip


@inner
def _put_rest(c, kind, first, sequences):
    """What is left of each state, and of a memory before the first, as the tables have it."""
    left, fade = v.array(c.left, kind), v.array(c.fade, kind)
    powers, strengths = v.array(c.powers, kind), v.array(c.strengths, kind)
    for k in range(first, first + sequences):
        for t in range(c.steps):
            left[k * c.steps + t] = strengths[GROUP - 1 + c.steps - 1 - t]
        fade[k] = powers[c.steps]


@inner
def _put_matrix(c, work, matrix, first, sequences, target):
    """The matrices of a block into (B, H, H)."""
    units, square = c.units, c.units * c.units
    if c.along:
        row = c.count * simd.width(work)
        v.put_rows(work, matrix, row, units, units, target, first * square)
    else:
        v.put(False, work, matrix, square, sequences, target, first * square)


@once
def _forward_block(c, kind, constants, block, slot):
    """One block of sequences from its first step to its last."""
    drive, trail = v.array(c.drive, kind), v.array(c.trail, kind)
    weight, gain, shift, read_gain = constants
    powers, strengths = v.array(c.powers, kind), v.array(c.strengths, kind)
    saved, work = v.array(c.saved, kind), v.array(c.work, kind)
    along, units, count, lanes, chunk = c.along, c.units, c.count, simd.width(work), c.chunk
    row, first = count * lanes, block if along else block * lanes
    sequences = 1 if along else min(lanes, c.batch - first)
    past = slot * c.work_size  # its row 0 is the state before the chunk
    query = past + (chunk + 1 + GROUP) * row
    matrix = query + 2 * row
    newest = GROUP - 1  # where ``strengths`` starts for an age of 0
    if c.hidden:
        v.take(along, v.array(c.hidden, kind), first * units, units, sequences, work, past)
    else:
        v.clear(work, past, count)
    v.put(along, work, past, units, sequences, trail, first * units)
    if c.memory:
        _take_memory(c, kind, first, sequences, True, work, matrix)
    if along and c.save and not block:
        saved[c.end_at] = 0
    if c.left:
        _put_rest(c, kind, first, sequences)
    for t in range(c.steps):
        j = t % chunk
        if t and not j:
            if t == chunk and not c.memory:
                v.clear(work, matrix, units * count)
            v.fold(
                along, work, matrix, broadcast(powers, chunk), past + row, past + row,
                strengths, newest + chunk - 1, -1, chunk, count, units,
            )  # fmt: skip
            v.copy(work, past + chunk * row, work, past, count)
            if c.save:
                border = (block * ((c.steps - 1) // chunk) + t // chunk - 1) * units * row
                v.copy(work, matrix, saved, c.borders_at + border, units * count)
        if j % GROUP == 0:
            v.clear(work, past + (j + 1) * row, GROUP * count)
        step = t * c.batch + first
        nth = block * c.steps + t if c.save else slot
        bracket, previous, new = nth * row, past + j * row, past + (j + 1) * row
        v.take(along, drive, step * units, units, sequences, saved, bracket)
        if along:
            one = simd.number(work, 1)
            v.combine(weight, 0, row, units, work, previous, one, saved, bracket)
        else:
            v.multiply(weight, units, 1, units, units, work, previous, saved, bracket)
        if c.lengths:
            v.keep(_running(c, kind, first, t), saved, bracket, count)
        asked = previous
        if not c.previous:
            asked = query if c.inner_steps else new
            v.activate(saved, bracket, work, asked, count, c.tanh)
        for s in range(c.inner_steps):
            inner = nth * c.inner_steps + s if c.save else slot
            z = c.normed_at + inner * row
            if c.identity:
                v.copy(work, asked, saved, z, count)
            else:
                v.copy(saved, bracket, saved, z, count)
            found = z
            if c.read_gain:
                found = c.found_at + inner * row
                v.clear(saved, found, count)
            if c.memory or t >= chunk:
                decayed = broadcast(powers, j)
                if along:
                    v.combine(work, matrix, row, units, work, asked, decayed, saved, found)
                else:
                    v.matrix_times(work, matrix, row, lanes, units, decayed, asked, saved, found)
            v.attend(
                along, work, past + row, j, strengths, newest + j - 1, asked, saved, found, count
            )
            if c.read_gain:
                v.add_read(
                    along, c.plain, work, asked, read_gain, saved, found, z, count, units
                )  # fmt: skip
            if c.layer_norm:
                store(
                    saved, c.scales_at + inner * lanes, v.normalise(along, saved, z, count, units)
                )
            asked = new if s == c.inner_steps - 1 else query + (s + 1) % 2 * row
            v.outer_activation(
                along, c.layer_norm, c.tanh, saved, z, gain, shift, work, asked, count
            )
        if c.lengths:
            v.stop(_running(c, kind, first, t), work, new, previous, count)
        v.put(along, work, new, units, sequences, v.array(c.states, kind), step * units)
        v.put(along, work, new, units, sequences, trail, (step + c.batch) * units)
        if c.last and t == c.steps - 1:
            v.put(along, work, new, units, sequences, v.array(c.last, kind), first * units)


@once
def _backward_block(c, kind, constants, block, slot):
    """The gradients of one block, from its last step to its first."""
    trail = v.array(c.trail, kind)
    weight, gain, shift, read_gain = constants
    powers, strengths = v.array(c.powers, kind), v.array(c.strengths, kind)
    saved, work = v.array(c.saved, kind), v.array(c.work, kind)
    grad_states, grad_drive = v.array(c.grad_states, kind), v.array(c.grad_drive, kind)
    along, units, count, lanes, chunk = c.along, c.units, c.count, simd.width(work), c.chunk
    row, first = count * lanes, block if along else block * lanes
    sequences = 1 if along else min(lanes, c.batch - first)
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
    v.clear(work, totals, 3 * count)
    v.clear(work, carry, count)
    if c.memory or last_chunk:
        v.clear(work, grad_matrix, units * count)
    for k in range(last_chunk, -1, -1):
        start = k * chunk
        steps = min(chunk, c.steps - start)
        has_matrix = c.memory or k
        before = (start * c.batch + first) * units
        v.take(along, trail, before, units, sequences, work, past)
        for j in range(steps):
            nth = block * c.steps + start + j
            if c.inner_steps:
                z, new = c.normed_at + ((nth + 1) * c.inner_steps - 1) * row, past + (j + 1) * row
                v.outer_activation(
                    along, c.layer_norm, c.tanh, saved, z, gain, shift, work, new, count
                )
            else:
                v.activate(saved, nth * row, work, past + (j + 1) * row, count, c.tanh)
        v.clear(work, past + (steps + 1) * row, GROUP * count)
        v.clear(work, grad_past, rows * count)
        if k:
            border = c.borders_at + (block * last_chunk + k - 1) * units * row
            if along:
                v.transpose_square(saved, border, row, units, work, matrix, row)
            else:
                v.copy(saved, border, work, matrix, units * count)
        elif c.memory:
            _take_memory(c, kind, first, sequences, False, work, matrix)
        if k < last_chunk:
            v.fold_back(
                along, work, grad_matrix, both, past + row, grad_past + row,
                strengths, newest + steps - 1, steps, count, units,
            )  # fmt: skip
        for j in range(steps - 1, -1, -1):
            step, nth = (start + j) * c.batch + first, block * c.steps + start + j
            previous, answer, bracket = past + j * row, past + (j + 1) * row, nth * row
            v.take(along, grad_states, step * units, units, sequences, work, grad)
            v.add(work, carry, work, grad, count)
            v.add(work, grad_past + (j + 1) * row, work, grad, count)
            if c.lengths:  # the gradient of a state that was kept is one of the state before
                running = _running(c, kind, first, start + j)
                v.copy(work, grad, work, passed, count)
                v.keep(simd.number(work, 0.5) - running, work, passed, count)
                v.keep(running, work, grad, count)
            v.clear(work, grad_bracket, count)
            for s in range(c.inner_steps - 1, -1, -1):
                inner, pair = nth * c.inner_steps + s, (j * c.inner_steps + s) * row
                z = c.normed_at + inner * row
                factor = load(saved, c.scales_at + inner * lanes)
                v.outer_activation_back(
                    along, c.layer_norm, c.tanh, saved, z, factor, gain, work, answer, grad,
                    totals, count, units,
                )  # fmt: skip
                asked = rights + pair if has_matrix else query
                if s:
                    v.outer_activation(
                        along, c.layer_norm, c.tanh, saved, z - row, gain, shift, work, asked, count
                    )
                elif c.previous:
                    v.copy(work, previous, work, asked, count)
                else:
                    v.activate(saved, bracket, work, asked, count, c.tanh)
                if c.identity:
                    v.copy(work, grad, work, grad_query, count)
                else:
                    v.add(work, grad, work, grad_bracket, count)
                    v.clear(work, grad_query, count)
                grad_found = grad
                if c.read_gain:
                    found, grad_found = c.found_at + inner * row, scaled
                    v.read_back(
                        along, c.plain, saved, found, read_gain, work, grad, asked,
                        totals + 2 * row, scaled, grad_query, count, units,
                    )  # fmt: skip
                v.attend_back(
                    along, work, past + row, grad_past + row, j, strengths, newest + j - 1,
                    asked, grad_found, grad_query, count,
                )  # fmt: skip
                if has_matrix:
                    decayed = broadcast(powers, j)
                    if along:
                        v.combine(
                            work, matrix, row, units, work, grad_found, decayed, work, grad_query
                        )
                    else:
                        v.matrix_times(
                            work, matrix, lanes, row, units, decayed, grad_found, work, grad_query
                        )
                    v.scale(work, grad_found, decayed, work, lefts + pair, count)
                v.copy(work, grad_query, work, grad, count)
                answer = asked
            if c.previous:
                v.copy(work, grad, work, carry, count)
            else:
                v.clear(work, carry, count)
                v.activate_back(work, answer, grad, grad_bracket, count, c.tanh)
            v.put(along, work, grad_bracket, units, sequences, grad_drive, step * units)
            if along:
                one = simd.number(work, 1)
                v.combine(weight, 0, row, units, work, grad_bracket, one, work, carry)
            else:
                v.multiply(weight, 1, units, units, units, work, grad_bracket, work, carry)
            if c.lengths:
                v.add(work, passed, work, carry, count)
        if has_matrix:
            v.fold(
                along, work, grad_matrix, broadcast(powers, steps), lefts, rights,
                powers, 0, 0, steps * c.inner_steps, count, units,
            )  # fmt: skip
    if c.grad_hidden:
        v.put(along, work, carry, units, sequences, v.array(c.grad_hidden, kind), first * units)
    if c.memory:
        _put_matrix(c, work, grad_matrix, first, sequences, v.array(c.grad_memory, kind))
    if c.layer_norm or c.read_gain:
        by_block = v.array(c.by_block, kind)
        for i in range(3 * units):  # of the gain, then of the bias, then of the read gain
            here = totals + i // units * row + i % units if along else totals + i * lanes
            found = work[here] if along else simd.total(load(work, here))
            by_block[block * 3 * units + i] = found


@inner
def sum_blocks(c, kind, address, rows, which, scale=1):
    """The sum over all blocks, always in their order, of one of the ``rows`` each has of units."""
    if address:
        target, by_block = v.array(address, kind), v.array(c.by_block, kind)
        for u in range(c.units):
            found = by_block[which * c.units + u]
            for block in range(1, c.blocks):
                found += by_block[(block * rows + which) * c.units + u]
            target[u] = found * scale


def build(kind, cache: bool):
    """The loops for one type of number: two C functions of type ``LOOP``, forward and backward.

    Every thread of a team calls the function with the same address, and takes block after block
    until none is left.
    """
    return _loop(kind, cache, VERSION, False), _loop(kind, cache, VERSION, True)


def _loop(kind, cache: bool, version: int, back: bool):
    @cfunc(LOOP, cache=cache)
    def run(address):
        c = carray(address, 1)[0]
        counters = carray(simd.as_integers(address), len(COUNTERS))
        slot = simd.claim(counters, 1)
        if c.version != version:
            return
        if not back and c.tiles:
            tile = simd.claim(counters, 3)
            while tile < c.tiles:
                _drive_tile(c, kind, slot, tile)
                simd.claim(counters, 4)
                tile = simd.claim(counters, 3)
            simd.wait(counters, 4, c.tiles)
        block = simd.claim(counters, 0)
        if block < c.blocks:
            constants = _constants(c, kind, slot, not back)
            while block < c.blocks:
                if not back:
                    _forward_block(c, kind, constants, block, slot)
                else:
                    _backward_block(c, kind, constants, block, slot)
                    if simd.claim(counters, 2) == c.blocks - 1:  # the last block is done
                        scale = v.array(c.scale, kind)[0]
                        sum_blocks(c, kind, c.grad_gain, 3, 0)
                        sum_blocks(c, kind, c.grad_shift, 3, 1)
                        sum_blocks(c, kind, c.grad_read_gain, 3, 2, scale)
                block = simd.claim(counters, 0)
        if back and c.sums:
            simd.wait(counters, 2, c.blocks)
            task = simd.claim(counters, 5)
            while task < c.sums + (c.tiles if c.grad_sequence else 0):
                _sum_or_tile(c, kind, slot, task)
                task = simd.claim(counters, 5)

    return run
