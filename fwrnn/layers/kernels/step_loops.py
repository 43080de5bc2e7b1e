"""One step of the recurrence, forward and backward, as compiled loops over sequences.

Equations: ``fwrnn.layers.equations``; what a step is made of: ``cpu_vectors``, with each sequence
``along`` its units. Where ``cpu_loops`` runs whole sequences from a matrix, this goes on from a
memory as it was written (``fwrnn.layers.memory``) and makes the next one, by appending the new
state or, if it ``folds``, by summing all into a matrix. The products C x and W h are in it too,
straight from the rows of C and W, as those of the way back are: as a call of PyTorch's for each,
they would take longer than the rest.

Rows of padded numbers are ``row`` apart. A name that ends in ``_at`` is where something starts.
"""

from numba import carray, cfunc

from fwrnn.layers import equations
from fwrnn.layers.kernels import cpu_loops, simd
from fwrnn.layers.kernels import cpu_vectors as v
from fwrnn.layers.kernels.cpu_vectors import GROUP
from fwrnn.layers.kernels.simd import broadcast, fma, inner, load, once, store

COUNTERS = ("next_block", "next_slot", "blocks_done", "next_sum")
# ``past`` states were written before. ``wide`` is the numbers in the padded rows of C.
CONSTANTS = (
    "version", "inner_steps", "tanh", "identity", "previous", "plain", "rule",
    "blocks", "inputs", "units", "count", "wide", "past", "folds", "one_gain", "sums", "save",
    "work_size", "saved_size",
)  # fmt: skip
# ``rule`` is λ, η and the scale of read_gain, and a 1. The bracket is given, or made here, and then
# there are ``sums`` of the gradients of C and W, too.
ARRAYS = (
    "work", "input", "hidden", "written", "strengths", "folded", "fade",
    "weight_ih", "weight_hh", "bias_ih", "bias_hh", "gain", "shift", "read_gain",
    "new_hidden", "new_written", "new_strengths", "new_folded", "new_fade",
    "saved", "bracket",
    "grad_new_hidden", "grad_new_written", "grad_new_folded",
    "grad_bracket", "grad_hidden", "grad_written", "grad_folded",
    "by_block", "grad_gain", "grad_shift", "grad_read_gain", "grad_bias_ih", "grad_bias_hh",
    "grad_input", "grad_weight_ih", "grad_weight_hh",
)  # fmt: skip
SHARED = 4  # vectors whose gradients are summed over the sequences
LOOP = simd.loop_type(*COUNTERS, *CONSTANTS, *ARRAYS)
VERSION = simd.version_of(__file__, cpu_loops.__file__, v.__file__, equations.__file__)


def saved_size(inner_steps: int, row: int, lanes: int) -> int:
    """Numbers that backward needs of each sequence: the bracket, z, what was found, and scales."""
    return (1 + 2 * inner_steps) * row + inner_steps * lanes


def work_size(
    row: int, wide: int, past: int, matrix: int, inner_steps: int, lanes: int, backward: bool
) -> int:
    """Numbers in the ``work`` array of one thread: see ``_places`` and the two functions there.

    ``matrix`` is the rows of a matrix, 0 where there is none.
    """
    rows = 4 + past + 1 + GROUP + matrix
    if backward:
        rows += past + 1 + GROUP + 8 + 2 * matrix + 2 * inner_steps
    else:
        rows += 3
    weights = -(-(past + 1 + GROUP) // lanes) * lanes
    own = 0 if backward else saved_size(inner_steps, row, lanes)
    return rows * row + max(wide, row) + lanes + weights + own


@inner
def _row_sums(matrix, at, columns, x, x_at, whole):
    """Four rows' products with x, lane by lane."""
    lanes = simd.width(x)
    sums = simd.zeros_4(x)
    for j in range(0, whole, lanes):
        sums = simd.fma_rows(sums, matrix, at + j, columns, load(x, x_at + j))
    if whole < columns:  # the last register begins before the end of those before it
        sums = simd.fma_rows(sums, matrix, at + columns - lanes, columns, load(x, x_at + whole))
    return sums


@inner
def _dots(matrix, start, rows, columns, x, x_at, factor, out, out_at):
    """out += factor · M x for the matrix at ``start``, rows not padded, and x as ``_edged`` has it.

    Four rows at a time, so that there is something to do while each sum waits for its last term.
    """
    lanes = simd.width(x)
    whole = columns // lanes * lanes
    for i in range(0, rows // 4 * 4, 4):
        at, to = start + i * columns, out_at + i
        if whole:
            a, b, c, d = _row_sums(matrix, at, columns, x, x_at, whole)
            sums = simd.total(a), simd.total(b), simd.total(c), simd.total(d)
        else:
            sums = _short_sums(matrix, at, columns, x, x_at)
        for k in range(4):
            out[to + k] += factor * sums[k]
    for i in range(rows // 4 * 4, rows):
        at, total = start + i * columns, x.dtype.type(0)
        for j in range(columns):
            place = j if j < whole or not whole else j + lanes - columns + whole
            total += matrix[at + j] * x[x_at + place]
        out[out_at + i] += factor * total


@inner
def _short_sums(matrix, at, columns, x, x_at):
    """Four rows' products with x, of fewer numbers than a register has."""
    a = b = c = d = x.dtype.type(0)
    for j in range(columns):
        value, here = x[x_at + j], at + j
        a += matrix[here] * value
        b += matrix[here + columns] * value
        c += matrix[here + 2 * columns] * value
        d += matrix[here + 3 * columns] * value
    return a, b, c, d


@inner
def _edged(source, start, columns, target, at):
    """A vector for ``_dots``: the last register ends where the vector does, less what came before.

    So rows of a matrix are read in whole registers, and not past their end.
    """
    lanes = simd.width(source)
    whole = columns // lanes * lanes
    if not whole:
        v.pad(source, start, columns, target, at)
        return
    for i in range(0, whole, lanes):
        store(target, at + i, load(source, start + i))
    if whole < columns:
        store(target, at + whole, load(source, start + columns - lanes))
        for i in range(whole, whole + lanes - (columns - whole)):
            target[i + at] = 0


@inner
def _take_constants(c, kind, work, at, row):
    """The rows that all sequences share: gain, shift, read gain and the sum of the biases."""
    if c.gain:
        v.pad(v.array(c.gain, kind), 0, c.units, work, at)
        v.pad(v.array(c.shift, kind), 0, c.units, work, at + row)
    if c.read_gain:
        source, scale = v.array(c.read_gain, kind), v.array(c.rule, kind)[2]
        v.clear(work, at + 2 * row, c.count)
        for i in range(c.units):
            work[at + 2 * row + i] = scale * source[0 if c.one_gain else i]
    if not c.bracket:
        v.clear(work, at + 3 * row, c.count)
        if c.bias_ih:
            one, other = v.array(c.bias_ih, kind), v.array(c.bias_hh, kind)
            for i in range(c.units):
                work[at + 3 * row + i] = one[i] + other[i]


@inner
def _learned(c, kind, constants):
    """Gain, shift and read gain as arrays of their own."""
    lanes, step = simd.width(v.array(c.work, kind)), c.count * simd.VECTOR_BYTES
    start = c.work + constants * (simd.VECTOR_BYTES // lanes)
    return v.array(start, kind), v.array(start + step, kind), v.array(start + 2 * step, kind)


@inner
def _take_past(c, kind, block, work, past, weights):
    """The written states as padded rows, and their strengths, the last first, before ``weights``.

    Row n's strength lies at ``weights - n``; of the rows past the last it is 0.
    """
    row, written = c.count * simd.width(work), v.array(c.written, kind)
    v.pad_rows(written, block * c.past * c.units, c.past, c.units, work, past, row)
    v.clear(work, past + c.past * row, (1 + GROUP) * c.count)
    _take_strengths(c, kind, block, work, weights)


@inner
def _take_strengths(c, kind, block, work, weights):
    strengths = v.array(c.strengths, kind)
    for n in range(c.past):
        work[weights - n] = strengths[block * c.past + n]
    for n in range(c.past, c.past + 1 + GROUP):
        work[weights - n] = 0


@inner
def _take_bracket(c, kind, block, work, bias, edged, saved, to):
    """W h + C x + biases, given or made here."""
    if c.bracket:
        v.pad(v.array(c.bracket, kind), block * c.units, c.units, saved, to)
        return
    one = v.array(c.rule, kind)[3]
    v.copy(work, bias, saved, to, c.count)
    _edged(v.array(c.input, kind), block * c.inputs, c.inputs, work, edged)
    weight = v.array(c.weight_ih, kind)
    _dots(weight, 0, c.units, c.inputs, work, edged, one, saved, to)
    if c.hidden:
        _edged(v.array(c.hidden, kind), block * c.units, c.units, work, edged)
        weight = v.array(c.weight_hh, kind)
        _dots(weight, 0, c.units, c.units, work, edged, one, saved, to)


@inner
def _fade(c, kind, block):
    """What is left of the given matrix."""
    return v.array(c.fade, kind)[block] if c.folded else v.array(c.rule, kind)[3]


@inner
def _age(c, kind, work, weights):
    """Strengths as the new state's write leaves them, its own behind them."""
    rule = v.array(c.rule, kind)
    for n in range(c.past):
        work[weights - n] *= rule[0]
    work[weights - c.past] = rule[1]


@inner
def _append(c, kind, block, work, past, weights):
    """The memory with one more state."""
    units, more = c.units, c.past + 1
    written = v.array(c.new_written, kind)
    if c.past:
        numbers = c.past * units
        source = v.array(c.written, kind)
        v.put(True, source, block * numbers, numbers, 1, written, block * more * units)
    row = c.count * simd.width(work)
    v.put(True, work, past + c.past * row, units, 1, written, (block * more + c.past) * units)
    strengths = v.array(c.new_strengths, kind)
    for n in range(more):
        strengths[block * more + n] = work[weights - n]
    fade = v.array(c.fade, kind)[block] if c.fade else v.array(c.rule, kind)[3]
    v.array(c.new_fade, kind)[block] = fade * v.array(c.rule, kind)[0]


@inner
def _fold(c, kind, block, work, past, weights, matrix):
    """The memory as a matrix."""
    row, units = c.count * simd.width(work), c.units
    decay, start = v.array(c.rule, kind)[0], block * units * units
    if c.folded:
        v.pad_rows(v.array(c.folded, kind), start, units, units, work, matrix, row)
    else:
        v.clear(work, matrix, units * c.count)
    v.fold(
        True, work, matrix, simd.splat(decay * _fade(c, kind, block)), past, past, work, weights,
        -1, c.past + 1, c.count, units,
    )  # fmt: skip
    v.put_rows(work, matrix, row, units, units, v.array(c.new_folded, kind), start)
    v.array(c.new_fade, kind)[block] = v.array(c.rule, kind)[3]


@inner
def _places(c, work, slot):
    """Where things lie in a thread's work: constants, an edged vector, strengths, past states."""
    lanes = simd.width(work)
    row = c.count * lanes
    constants = slot * c.work_size
    edged = constants + 4 * row
    strengths = edged + max(c.wide, row) + lanes
    past = strengths + -(-(c.past + 1 + GROUP) // lanes) * lanes
    return constants, edged, strengths + c.past + GROUP, past


@once
def _forward_block(c, kind, block, slot):
    """The step of one sequence."""
    work, saved = v.array(c.work, kind), v.array(c.saved if c.save else c.work, kind)
    lanes, units, count = simd.width(work), c.units, c.count
    row = count * lanes
    constants, edged, weights, past = _places(c, work, slot)
    hidden = past + (c.past + 1 + GROUP) * row
    query, matrix = hidden + row, hidden + 3 * row
    bracket = matrix + (units * row if c.folds else 0)
    if c.save:
        bracket = block * c.saved_size
    scales = bracket + (1 + 2 * c.inner_steps) * row
    new = past + c.past * row
    gain, shift, read_gain = _learned(c, kind, constants)
    _take_past(c, kind, block, work, past, weights)
    _take_bracket(c, kind, block, work, constants + 3 * row, edged, saved, bracket)
    asked = hidden
    if not c.previous:
        asked = query if c.inner_steps else new
        v.activate(saved, bracket, work, asked, count, c.tanh)
    elif c.hidden:
        v.pad(v.array(c.hidden, kind), block * units, units, work, hidden)
    else:
        v.clear(work, hidden, count)
    for s in range(c.inner_steps):
        z = bracket + (1 + 2 * s) * row
        if c.identity:
            v.copy(work, asked, saved, z, count)
        else:
            v.copy(saved, bracket, saved, z, count)
        found = z
        if c.read_gain:
            found = z + row
            v.clear(saved, found, count)
        if c.folded:
            fade, folded = _fade(c, kind, block), v.array(c.folded, kind)
            _edged(work, asked, units, work, edged)
            _dots(folded, block * units * units, units, units, work, edged, fade, saved, found)
        v.attend(True, work, past, c.past, work, weights, asked, saved, found, count)
        if c.read_gain:
            v.add_read(True, c.plain, work, asked, read_gain, saved, found, z, count, units)
        if c.gain:
            store(saved, scales + s * lanes, v.normalise(True, saved, z, count, units))
        asked = new if s == c.inner_steps - 1 else query + (s + 1) % 2 * row
        v.outer_activation(True, c.gain, c.tanh, saved, z, gain, shift, work, asked, count)
    v.put(True, work, new, units, 1, v.array(c.new_hidden, kind), block * units)
    _age(c, kind, work, weights)
    if c.folds:
        _fold(c, kind, block, work, past, weights, matrix)
    else:
        _append(c, kind, block, work, past, weights)


@once
def _backward_block(c, kind, block, slot):
    """The gradients of one sequence's step."""
    work, saved = v.array(c.work, kind), v.array(c.saved, kind)
    lanes, units, count = simd.width(work), c.units, c.count
    row = count * lanes
    constants, edged, weights, past = _places(c, work, slot)
    gain, shift, read_gain = _learned(c, kind, constants)
    rows = (c.past + 1 + GROUP) * row
    grad_past = past + rows
    totals = grad_past + rows  # of what all sequences share: gain, shift, read gain and bias
    grad, grad_query = totals + 4 * row, totals + 5 * row
    grad_bracket, scaled, lefts = totals + 6 * row, totals + 7 * row, totals + 8 * row
    rights = lefts + c.inner_steps * row
    matrix = rights + c.inner_steps * row
    grad_matrix, both = matrix + units * row, matrix + 2 * units * row
    bracket = block * c.saved_size
    scales = bracket + (1 + 2 * c.inner_steps) * row
    new = past + c.past * row
    v.clear(work, totals, 3 * count)
    v.clear(work, grad_bracket, count)
    v.clear(work, grad_past, (c.past + 1 + GROUP) * count)
    _take_past(c, kind, block, work, past, weights)
    answer = new
    if c.inner_steps:
        z = bracket + (2 * c.inner_steps - 1) * row
        v.outer_activation(True, c.gain, c.tanh, saved, z, gain, shift, work, new, count)
    else:
        v.activate(saved, bracket, work, new, count, c.tanh)
    _take_gradient(c, kind, block, work, past, grad_past, grad_matrix, both, weights, grad)
    if c.folded:
        folded, start = v.array(c.folded, kind), block * units * units
        v.pad_rows(folded, start, units, units, work, matrix, row)
    for s in range(c.inner_steps - 1, -1, -1):
        z = bracket + (1 + 2 * s) * row
        factor = load(saved, scales + s * lanes)
        v.outer_activation_back(
            True, c.gain, c.tanh, saved, z, factor, gain, work, answer, grad, totals, count, units
        )
        asked = rights + s * row
        if s:
            v.outer_activation(
                True, c.gain, c.tanh, saved, z - 2 * row, gain, shift, work, asked, count
            )
        elif not c.previous:
            v.activate(saved, bracket, work, asked, count, c.tanh)
        elif c.hidden:
            v.pad(v.array(c.hidden, kind), block * units, units, work, asked)
        else:
            v.clear(work, asked, count)
        if c.identity:
            v.copy(work, grad, work, grad_query, count)
        else:
            v.add(work, grad, work, grad_bracket, count)
            v.clear(work, grad_query, count)
        grad_found = grad
        if c.read_gain:
            grad_found = scaled
            v.read_back(
                True, c.plain, saved, z + row, read_gain, work, grad, asked, totals + 2 * row,
                scaled, grad_query, count, units,
            )  # fmt: skip
        v.attend_back(
            True, work, past, grad_past, c.past, work, weights, asked, grad_found, grad_query,
            count,
        )  # fmt: skip
        if c.folded:
            fade = simd.splat(_fade(c, kind, block))
            v.combine(work, matrix, row, units, work, grad_found, fade, work, grad_query)
            v.scale(work, grad_found, fade, work, lefts + s * row, count)
        v.copy(work, grad_query, work, grad, count)
        answer = asked
    if not c.previous:
        v.activate_back(work, answer, grad, grad_bracket, count, c.tanh)
        v.clear(work, grad, count)
    _put_products(c, kind, block, work, grad, grad_bracket, edged)
    v.put(True, work, grad_bracket, units, 1, v.array(c.grad_bracket, kind), block * units)
    if c.grad_written:
        target, start = v.array(c.grad_written, kind), block * c.past * units
        v.put_rows(work, grad_past, row, c.past, units, target, start)
    if c.grad_folded:
        _put_grad_folded(c, kind, block, work, grad_matrix, lefts, rights)
    if c.by_block:
        by_block, scale = v.array(c.by_block, kind), simd.splat(v.array(c.rule, kind)[2])
        v.scale(work, totals + 2 * row, scale, work, totals + 2 * row, count)
        v.copy(work, grad_bracket, work, totals + 3 * row, count)
        v.put_rows(work, totals, row, SHARED, units, by_block, block * SHARED * units)


@inner
def _put_products(c, kind, block, work, carry, grad_bracket, place):
    """The gradients of the input and of h; of the latter a part is at ``carry`` already."""
    if c.grad_input:
        _back_through(v.array(c.weight_ih, kind), c.units, c.inputs, work, grad_bracket, place)
        v.put(True, work, place, c.inputs, 1, v.array(c.grad_input, kind), block * c.inputs)
    if c.grad_hidden:
        if c.sums:
            weight = v.array(c.weight_hh, kind)
            _back_through(weight, c.units, c.units, work, grad_bracket, place)
            for i in range(c.units):
                work[carry + i] += work[place + i]
        v.put(True, work, carry, c.units, 1, v.array(c.grad_hidden, kind), block * c.units)


@inner
def _back_through(matrix, rows, columns, work, x_at, to):
    """Mᵀ x for one sequence, at ``to``, from the rows of M as they are."""
    lanes = simd.width(work)
    whole = columns >= lanes
    for first in range(0, columns * whole, lanes):
        j = min(first, columns - lanes)  # the last register has some columns again
        a, b, c, d = simd.zeros_4(work)
        for i in range(0, rows // 4 * 4, 4):
            at, x = i * columns + j, x_at + i
            a = fma(load(matrix, at), broadcast(work, x), a)
            b = fma(load(matrix, at + columns), broadcast(work, x + 1), b)
            c = fma(load(matrix, at + 2 * columns), broadcast(work, x + 2), c)
            d = fma(load(matrix, at + 3 * columns), broadcast(work, x + 3), d)
        for i in range(rows // 4 * 4, rows):
            a = fma(load(matrix, i * columns + j), broadcast(work, x_at + i), a)
        store(work, to + j, (a + b) + (c + d))
    for j in range(0 if whole else columns):
        work[to + j] = 0
        for i in range(rows):
            work[to + j] += matrix[i * columns + j] * work[x_at + i]


@once
def _sum_rows(c, kind, task):
    """Four rows of the gradients of C and W, over all sequences."""
    _outer(c, kind, task * 4, c.inputs, c.input, c.grad_weight_ih)
    _outer(c, kind, task * 4, c.units, c.hidden, c.grad_weight_hh)


@inner
def _outer(c, kind, first, columns, given, target):
    """Four rows of Gᵀ X: G are the brackets' gradients, X is what is ``given``, or zeros."""
    grads, right, out = v.array(c.grad_bracket, kind), v.array(given, kind), v.array(target, kind)
    lanes, units, batch = simd.width(out), c.units, c.blocks if given else 0
    if columns < lanes or units < 4:
        for i in range(first, min(first + 4, units)):
            for j in range(columns):
                found = out.dtype.type(0)
                for b in range(batch):
                    found += grads[b * units + i] * right[b * columns + j]
                out[i * columns + j] = found
        return
    first = min(first, units - 4)  # the last task has some rows again, and a register some columns
    for at in range(0, columns, lanes):
        j = min(at, columns - lanes)
        rows = simd.zeros_4(out)
        for b in range(batch):
            vector = load(right, b * columns + j)
            rows = simd.fma_broadcast(rows, grads, b * units + first, 1, vector)
        simd.store_rows(out, first * columns + j, columns, rows)


@inner
def _take_gradient(c, kind, block, work, past, grad_past, grad_matrix, both, weights, grad):
    """The gradients of the new state, at ``grad``, and of the past ones by way of the memory."""
    row, units, count = c.count * simd.width(work), c.units, c.count
    v.clear(work, grad, count)
    if c.grad_new_hidden:
        v.pad(v.array(c.grad_new_hidden, kind), block * units, units, work, grad)
    if c.grad_new_written:
        source, start = v.array(c.grad_new_written, kind), block * (c.past + 1) * units
        v.pad_rows(source, start, c.past + 1, units, work, grad_past, row)
    if c.folded:
        v.clear(work, grad_matrix, units * count)
    if c.grad_new_folded:
        source, start = v.array(c.grad_new_folded, kind), block * units * units
        v.pad_rows(source, start, units, units, work, grad_matrix, row)
        _age(c, kind, work, weights)
        v.fold_back(
            True, work, grad_matrix, both, past, grad_past, work, weights, c.past + 1, count, units
        )
        _take_strengths(c, kind, block, work, weights)  # younger, as the step read them
    v.add(work, grad_past + c.past * row, work, grad, count)


@inner
def _put_grad_folded(c, kind, block, work, grad_matrix, lefts, rights):
    """The gradient of the matrix that was read from, and went on fading into the next."""
    row, units, rule = c.count * simd.width(work), c.units, v.array(c.rule, kind)
    v.fold(
        True, work, grad_matrix, simd.splat(rule[0] * _fade(c, kind, block)), lefts, rights,
        rule, 3, 0, c.inner_steps, c.count, units,
    )  # fmt: skip
    target, start = v.array(c.grad_folded, kind), block * units * units
    v.put_rows(work, grad_matrix, row, units, units, target, start)


def build(kind, cache: bool):
    """The two C functions, as ``cpu_loops.build`` makes them."""
    return _loop(kind, cache, VERSION, False), _loop(kind, cache, VERSION, True)


def _loop(kind, cache: bool, version: int, back: bool):
    @cfunc(LOOP, cache=cache)
    def run(address):
        c = carray(address, 1)[0]
        counters = carray(simd.as_integers(address), len(COUNTERS))
        slot, block = simd.claim(counters, 1), simd.claim(counters, 0)
        if c.version != version:
            return
        work = v.array(c.work, kind)
        _take_constants(c, kind, work, slot * c.work_size, c.count * simd.width(work))
        while block < c.blocks:
            if not back:
                _forward_block(c, kind, block, slot)
            else:
                _backward_block(c, kind, block, slot)
                if simd.claim(counters, 2) == c.blocks - 1:  # the last block is done
                    cpu_loops.sum_blocks(c, kind, c.grad_gain, SHARED, 0)
                    cpu_loops.sum_blocks(c, kind, c.grad_shift, SHARED, 1)
                    cpu_loops.sum_blocks(c, kind, c.grad_read_gain, SHARED, 2)
                    cpu_loops.sum_blocks(c, kind, c.grad_bias_ih, SHARED, 3)
                    cpu_loops.sum_blocks(c, kind, c.grad_bias_hh, SHARED, 3)
            block = simd.claim(counters, 0)
        if back and c.sums:
            simd.wait(counters, 2, c.blocks)
            task = simd.claim(counters, 3)
            while task < c.sums:
                _sum_rows(c, kind, task)
                task = simd.claim(counters, 3)

    return run
