"""Compiled operations on vectors of H units, for ``cpu_loops``: what one step is made of.

A vector is a row of ``count`` registers' worth of numbers, in one of two layouts. Where many
sequences are at hand, register i holds unit i of as many sequences as it has lanes: ``count`` is H,
no sum runs across a register, and W h reads W once for all of them. Where few are, the registers
lie ``along`` the units of one sequence: ``count`` is H/lanes, rounded up, sums end across a
register, and the numbers past H are kept at zero.

All arrays are flat, and a name that ends in ``_at`` is where in its array something starts.
"""

from numba import carray

from fwrnn.layers.equations import NORM_EPS, QUERY_EPS, READ_LIMIT
from fwrnn.layers.kernels import simd
from fwrnn.layers.kernels.simd import (
    MANY,
    broadcast,
    fma,
    inner,
    load,
    load_1,
    load_2,
    load_4,
    load_many,
    store,
)

GROUP = 4  # past states attended to at once; rows up to the next multiple exist and are finite


@inner
def array(address, kind):
    """The numbers from ``address`` on; their count is not known here."""
    return carray(simd.at_address(address, kind), 1 << 60)


@inner
def take(along, source, start, units, sequences, target, at):
    """(sequence, unit) rows of ``source`` as one vector; what has no sequence or unit becomes 0."""
    if along:
        pad(source, start, units, target, at)
    else:
        transpose(source, start, units, units, sequences, target, at, simd.width(source))


@inner
def pad(source, start, units, target, at):
    lanes = simd.width(source)
    whole = units // lanes * lanes
    for i in range(0, whole, lanes):
        store(target, at + i, load(source, start + i))
    if whole < units:
        store(target, at + whole, simd.zero(target))
        for i in range(whole, units):
            target[at + i] = source[start + i]


@inner
def transpose(source, start, down, columns, rows, target, at, across):
    """``rows`` rows of ``columns`` numbers, ``down`` apart → as many columns, ``across`` apart.

    The rows are at most as many as a register has lanes; where there are fewer, zeros follow.
    """
    lanes = simd.width(source)
    tile = lanes // 2
    for lane in range(0, lanes, tile):
        done = 0
        while done < columns and columns >= tile and lane + tile <= rows:
            column = min(done, columns - tile)  # the last tile may do some columns again
            here = start + lane * down + column
            simd.transpose_tile(source, here, down, target, at + column * across + lane, across)
            done = column + tile
        for u in range(done, columns):
            for k in range(lane, lane + tile):
                found = source[start + k * down + u] if k < rows else 0
                target[at + u * across + k] = found


@inner
def transpose_square(source, start, down, units, target, at, row):
    """A matrix with rows ``down`` apart → its transpose, with padded rows ``row`` apart."""
    lanes = simd.width(source)
    for first in range(0, units, lanes):
        rows = min(lanes, units - first)
        transpose(source, start + first * down, down, units, rows, target, at + first, row)


@inner
def put(along, source, at, units, sequences, target, start):
    """A vector as (sequence, unit) rows of ``target``, for the sequences and units that it has."""
    lanes = simd.width(source)
    if along:
        whole = units // lanes * lanes
        for i in range(0, whole, lanes):
            store(target, start + i, load(source, at + i))
        for i in range(whole, units):
            target[start + i] = source[at + i]
        return
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


@inner
def pad_rows(source, start, rows, columns, target, at, row):
    """A matrix whose rows follow one another → the same with padded rows, ``row`` apart."""
    for i in range(rows):
        pad(source, start + i * columns, columns, target, at + i * row)


@inner
def put_rows(source, at, row, rows, columns, target, start):
    """The way back."""
    for i in range(rows):
        put(True, source, at + i * row, columns, 1, target, start + i * columns)


@inner
def copy(source, at, target, to, count):
    lanes = simd.width(source)
    for i in range(count):
        store(target, to + i * lanes, load(source, at + i * lanes))


@inner
def add(source, at, target, to, count):
    lanes = simd.width(source)
    for i in range(count):
        here = to + i * lanes
        store(target, here, load(target, here) + load(source, at + i * lanes))


@inner
def clear(target, at, count):
    lanes = simd.width(target)
    for i in range(count):
        store(target, at + i * lanes, simd.zero(target))


@inner
def scale(source, at, factor, target, to, count):
    lanes = simd.width(source)
    for i in range(count):
        store(target, to + i * lanes, load(source, at + i * lanes) * factor)


@inner
def keep(gate, target, at, count):
    """Zero in the lanes where ``gate`` is not positive, whatever was there."""
    lanes = simd.width(target)
    for i in range(at, at + count * lanes, lanes):
        store(target, i, simd.where_positive(gate, load(target, i)))


@inner
def stop(running, work, new, previous, count):
    """Lanes that do not run keep their previous state."""
    lanes = simd.width(work)
    ended = simd.number(work, 0.5) - running  # lengths and steps are whole numbers
    for i in range(0, count * lanes, lanes):
        value = simd.where_positive(running, load(work, new + i))
        kept = simd.where_positive(ended, load(work, previous + i))
        store(work, new + i, value + kept)


@inner
def activate(source, at, target, to, count, tanh):
    lanes = simd.width(source)
    for i in range(count):
        value = load(source, at + i * lanes)
        store(target, to + i * lanes, simd.tanh(value) if tanh else simd.relu(value))


@inner
def activate_back(output, at, grad_at, to, count, tanh):
    """From the gradient of f(z), at ``grad_at``, to that of z, added at ``to``."""
    lanes = simd.width(output)
    for k in range(0, count * lanes, lanes):
        grad = _slope(load(output, at + k), load(output, grad_at + k), tanh)
        store(output, to + k, load(output, to + k) + grad)


@inner
def _slope(output, gradient, tanh):
    """The gradient before the non-linearity, from the output of it and the gradient after it."""
    if tanh:
        return fma(output * output, simd.negative(gradient), gradient)
    return simd.where_positive(output, gradient)


@inner
def _across(along, value):
    """Sums that were taken lane by lane, in all lanes: over the units of one sequence."""
    return simd.splat(simd.total(value)) if along else value


@inner
def _across_4(along, rows):
    if along:
        a, b, c, d = rows
        return _across(along, a), _across(along, b), _across(along, c), _across(along, d)
    return rows


@inner
def _of_unit(along, values, i):
    """A number of unit i for all sequences; or along the units, those of register i."""
    return load(values, i * simd.width(values)) if along else broadcast(values, i)


@inner
def _weight_rows(load_rows, weight, at, down, across, columns, x, x_at, out, out_at):
    """Some rows of ``multiply``, as many as ``load_rows`` loads."""
    lanes = simd.width(x)
    rows = load_rows(out, out_at, lanes)
    for j in range(columns):
        vector = load(x, x_at + j * lanes)
        rows = simd.fma_broadcast(rows, weight, at + j * across, down, vector)
    simd.store_rows(out, out_at, lanes, rows)


@inner
def multiply(weight, down, across, rows, columns, x, x_at, out, out_at):
    """out += W x for many sequences, some rows of W at a time so that they share what is read of x.

    W[i, j] lies at ``i·down + j·across``: exchange the two, and rows and columns, for Wᵀ.
    """
    lanes = simd.width(x)
    i = 0
    for _ in range(rows // MANY):
        here = out_at + i * lanes
        _weight_rows(load_many, weight, i * down, down, across, columns, x, x_at, out, here)
        i += MANY
    for _ in range(rows % MANY // 2):
        here = out_at + i * lanes
        _weight_rows(load_2, weight, i * down, down, across, columns, x, x_at, out, here)
        i += 2
    if rows % 2:
        here = out_at + i * lanes
        _weight_rows(load_1, weight, i * down, down, across, columns, x, x_at, out, here)


@inner
def _combine_rows(load_rows, matrix, at, row, units, x, x_at, factor, out, out_at):
    """Some registers of ``combine``, as many as ``load_rows`` loads."""
    lanes = simd.width(x)
    rows = load_rows(out, out_at, lanes)
    for j in range(units):
        rows = simd.fma_rows(rows, matrix, at + j * row, lanes, factor * broadcast(x, x_at + j))
    simd.store_rows(out, out_at, lanes, rows)


@inner
def combine(matrix, at, row, units, x, x_at, factor, out, out_at):
    """out += factor · Σ_j x_j M_j for one sequence: Mᵀ x, of the rows of M, ``row`` apart."""
    lanes = simd.width(x)
    count, i = row // lanes, 0
    for _ in range(count // MANY):
        here = i * lanes
        _combine_rows(load_many, matrix, at + here, row, units, x, x_at, factor, out, out_at + here)
        i += MANY
    for _ in range((count - i) // 4):
        here = i * lanes
        _combine_rows(load_4, matrix, at + here, row, units, x, x_at, factor, out, out_at + here)
        i += 4
    for _ in range((count - i) // 2):
        here = i * lanes
        _combine_rows(load_2, matrix, at + here, row, units, x, x_at, factor, out, out_at + here)
        i += 2
    if count - i:
        here = i * lanes
        _combine_rows(load_1, matrix, at + here, row, units, x, x_at, factor, out, out_at + here)


@inner
def attend(along, past, past_at, rows, strengths, strengths_at, query_at, out, out_at, count):
    """out += Σ_r strength_r h_r (h_r · query) over the ``rows`` states at ``past_at``.

    Reads whole groups of rows; ``strengths`` is 0 for those past ``rows``.
    """
    lanes = simd.width(past)
    row = count * lanes
    for first in range(0, rows, GROUP):
        at = past_at + first * row
        weights = simd.zeros_4(past)
        for i in range(0, row, lanes):
            weights = simd.fma_rows(weights, past, at + i, row, load(past, query_at + i))
        weights = _across_4(along, weights)
        weights = simd.scale_rows(weights, strengths, strengths_at - first, -1)
        for i in range(0, row, lanes):
            value = simd.weigh_rows(load(out, out_at + i), weights, past, at + i, row)
            store(out, out_at + i, value)


@inner
def attend_back(
    along, past, past_at, grad_past_at, rows, strengths, strengths_at, query_at, grad_at, out_at,
    count,
):  # fmt: skip
    """The gradients of ``attend``, whose output's gradient is at ``grad_at``.

    Adds to that of the query, at ``out_at``, and to those of the rows, at ``grad_past_at``. All
    lie in the array ``past``.
    """
    lanes = simd.width(past)
    row = count * lanes
    for first in range(0, rows, GROUP):
        at, grads_at = past_at + first * row, grad_past_at + first * row
        asked, answered = simd.zeros_4(past), simd.zeros_4(past)
        for i in range(0, row, lanes):
            asked = simd.fma_rows(asked, past, at + i, row, load(past, query_at + i))
            answered = simd.fma_rows(answered, past, at + i, row, load(past, grad_at + i))
        asked, answered = _across_4(along, asked), _across_4(along, answered)
        asked = simd.scale_rows(asked, strengths, strengths_at - first, -1)
        answered = simd.scale_rows(answered, strengths, strengths_at - first, -1)
        for i in range(0, row, lanes):
            query, grad = load(past, query_at + i), load(past, grad_at + i)
            value = simd.weigh_rows(load(past, out_at + i), answered, past, at + i, row)
            store(past, out_at + i, value)
            grads = simd.load_4(past, grads_at + i, row)
            grads = simd.add_scaled(simd.add_scaled(grads, asked, grad), answered, query)
            simd.store_rows(past, grads_at + i, row, grads)


@inner
def normalise(along, z, z_at, count, units):
    """Layer normalisation of z in place, before gain and bias; returns 1 / standard deviation."""
    lanes = simd.width(z)
    end = z_at + count * lanes
    number = simd.number(z, units)
    mean, variance = simd.zero(z), simd.zero(z)
    for at in range(z_at, end, lanes):
        mean = mean + load(z, at)
    mean = _across(along, mean) / number
    if along and z_at + units < end:  # so that the numbers past the units become 0
        for at in range(z_at + units, end):
            z[at] = simd.first(mean)
    for at in range(z_at, end, lanes):
        centred = load(z, at) - mean
        store(z, at, centred)
        variance = fma(centred, centred, variance)
    variance = _across(along, variance) / number
    factor = simd.number(z, 1) / simd.sqrt(variance + simd.number(z, NORM_EPS))
    for at in range(z_at, end, lanes):
        store(z, at, load(z, at) * factor)
    return factor


@inner
def outer_activation(along, layer_norm, tanh, normed, at, gain, shift, out, out_at, count):
    """out = f(g z + b) with layer normalisation, f(z) without."""
    lanes = simd.width(normed)
    for i in range(count):
        value = load(normed, at + i * lanes)
        if layer_norm:
            value = fma(value, _of_unit(along, gain, i), _of_unit(along, shift, i))
        store(out, out_at + i * lanes, simd.tanh(value) if tanh else simd.relu(value))


@inner
def outer_activation_back(
    along, layer_norm, tanh, normed, at, factor, gain, work, out_at, grad_at, total_at, count, units
):
    """The gradient of ``outer_activation`` and of ``normalise``: from h's to z's, in place.

    h lies at ``out_at``, the gradient at ``grad_at``; those of gain and bias add up, lane by lane,
    in the two rows at ``total_at``.
    """
    lanes = simd.width(work)
    row = count * lanes
    mean, product = simd.zero(work), simd.zero(work)
    for i in range(count):
        k = i * lanes
        grad = _slope(load(work, out_at + k), load(work, grad_at + k), tanh)
        if layer_norm:
            value = load(normed, at + k)
            to_gain, to_shift = total_at + k, total_at + row + k
            store(work, to_gain, fma(grad, value, load(work, to_gain)))
            store(work, to_shift, load(work, to_shift) + grad)
            grad = grad * _of_unit(along, gain, i)
            mean = mean + grad
            product = fma(grad, value, product)
        store(work, grad_at + k, grad)
    if layer_norm:
        number = simd.number(work, units)
        mean = _across(along, mean) / number
        product = simd.negative(_across(along, product) / number)
        for k in range(0, row, lanes):
            centred = load(work, grad_at + k) - mean
            centred = fma(load(normed, at + k), product, centred)
            store(work, grad_at + k, centred * factor)
        if along:
            for k in range(units, row):
                work[grad_at + k] = 0


@inner
def per_direction(along, query, at, count, units):
    """1 / (H · rms(q)) in each lane, by which what is found is multiplied."""
    lanes = simd.width(query)
    total = simd.zero(query)
    for k in range(at, at + count * lanes, lanes):
        total = fma(load(query, k), load(query, k), total)
    total = _across(along, total) + simd.number(query, QUERY_EPS)
    return simd.number(query, 1) / simd.sqrt(total * simd.number(query, units))


@inner
def _bound(along, squares, limit):
    """1 / √(1 + mean z² / 4), by which what is found is bounded, from the squares' sums."""
    return simd.sqrt(limit / (_across(along, squares) + limit))


@inner
def add_read(along, plain, query, asked, read_gain, saved, found, to, count, units):
    """What is at ``to`` += g ⊙ z / √(1 + mean z² / 4), z = A q / (H · rms(q)).

    A q, at ``found``, becomes z. If ``plain`` it is g ⊙ A q alone.
    """
    lanes = simd.width(query)
    if plain:
        for i in range(count):
            k = i * lanes
            value = fma(_of_unit(along, read_gain, i), load(saved, found + k), load(saved, to + k))
            store(saved, to + k, value)
        return
    factor, squares = per_direction(along, query, asked, count, units), simd.zero(query)
    for k in range(found, found + count * lanes, lanes):
        value = load(saved, k) * factor
        store(saved, k, value)
        squares = fma(value, value, squares)
    bound = _bound(along, squares, simd.number(query, units * READ_LIMIT))
    for i in range(count):
        k = i * lanes
        value = load(saved, found + k) * bound
        value = fma(_of_unit(along, read_gain, i), value, load(saved, to + k))
        store(saved, to + k, value)


@inner
def read_back(
    along, plain, saved, found, read_gain, work, grad, query, total, to, grad_query, count, units
):
    """From the gradient of g ⊙ y, at ``grad``, to that of A q, at ``to``.

    Here y = b z, b = 1 / √(1 + mean z² / 4), and z = c A q, c = 1 / (H rms(q)). With
    dy = g ⊙ grad and p = y · dy it is dz = b (dy - y p / 4 H), and z · dz = b² p. The gradient of g
    adds up in ``total``, and that of q, by way of c, is added at ``grad_query``: -(z · dz) H c² q.
    If ``plain`` it is b = c = 1.
    """
    lanes = simd.width(work)
    if plain:
        for i in range(count):
            k = i * lanes
            value = load(work, grad + k)
            store(work, total + k, fma(value, load(saved, found + k), load(work, total + k)))
            store(work, to + k, value * _of_unit(along, read_gain, i))
        return
    squares, product = simd.zero(work), simd.zero(work)
    for i in range(count):
        k = i * lanes
        answer = load(saved, found + k)
        value = load(work, grad + k) * _of_unit(along, read_gain, i)
        squares = fma(answer, answer, squares)
        product = fma(value, answer, product)
    limit = simd.number(work, units * READ_LIMIT)
    bound = _bound(along, squares, limit)
    product = _across(along, product) * bound
    factor = per_direction(along, work, query, count, units)
    scale, mean = bound * factor, simd.negative(product / limit)
    for i in range(count):
        k = i * lanes
        value, answer = load(work, grad + k), load(saved, found + k) * bound
        store(work, total + k, fma(value, answer, load(work, total + k)))
        value = value * _of_unit(along, read_gain, i)
        store(work, to + k, fma(answer, mean, value) * scale)
    product = simd.negative(product * simd.number(work, units)) * scale * scale
    for k in range(0, count * lanes, lanes):
        store(work, grad_query + k, fma(product, load(work, query + k), load(work, grad_query + k)))


@inner
def matrix_times(matrix, at, down, across, units, factor, x_at, out, out_at):
    """out_i += factor · Σ_j M_ij x_j for each of many sequences: each has an M of its own.

    M_ij lies at ``at + i·down + j·across``, x in the same array. For one there is ``combine``.
    """
    lanes = simd.width(matrix)
    i = 0
    for _ in range(units // 4):
        rows = simd.zeros_4(matrix)
        for j in range(units):
            vector = load(matrix, x_at + j * lanes)
            rows = simd.fma_rows(rows, matrix, at + i * down + j * across, down, vector)
        here = out_at + i * lanes
        simd.store_rows(
            out, here, lanes, simd.add_scaled(simd.load_4(out, here, lanes), rows, factor)
        )
        i += 4
    for k in range(i, units):
        value = simd.zero(matrix)
        for j in range(units):
            entry = load(matrix, at + k * down + j * across)
            value = fma(entry, load(matrix, x_at + j * lanes), value)
        here = out_at + k * lanes
        store(out, here, fma(value, factor, load(out, here)))


@inner
def _fold_rows(
    load_rows, along, work, at, remaining, left_at, i, right_at,
    weights, weights_at, step, terms, row,
):  # fmt: skip
    """Some registers of row i of ``fold``, as many as ``load_rows`` loads."""
    lanes = simd.width(work)
    rows = simd.times(load_rows(work, at, lanes), remaining)
    for k in range(terms):
        left = left_at + k * row
        factor = broadcast(work, left + i) if along else load(work, left + i * lanes)
        factor = factor * broadcast(weights, weights_at + k * step)
        rows = simd.fma_rows(rows, work, right_at + k * row, lanes, factor)
    simd.store_rows(work, at, lanes, rows)


@inner
def fold(
    along, work, at, remaining, left_at, right_at, weights, weights_at, step, terms, count, units
):
    """M = remaining · M + Σ_k weight_k left_k right_kᵀ, over ``terms`` vectors of each."""
    lanes = simd.width(work)
    row = count * lanes
    for i in range(units):
        here, right = at + i * row, right_at
        for _ in range(count // MANY):
            _fold_rows(
                load_many, along, work, here, remaining, left_at, i, right,
                weights, weights_at, step, terms, row,
            )  # fmt: skip
            here, right = here + MANY * lanes, right + MANY * lanes
        for _ in range(count % MANY // 4):
            _fold_rows(
                load_4, along, work, here, remaining, left_at, i, right,
                weights, weights_at, step, terms, row,
            )  # fmt: skip
            here, right = here + 4 * lanes, right + 4 * lanes
        for _ in range(count % 4):
            _fold_rows(
                load_1, along, work, here, remaining, left_at, i, right,
                weights, weights_at, step, terms, row,
            )  # fmt: skip
            here, right = here + lanes, right + lanes


@inner
def fold_back(
    along, work, grad_at, both_at, past_at, grad_past_at, strengths, strengths_at, rows_folded,
    count, units,
):  # fmt: skip
    """The gradients of the folded states: those of h_r grow by strength_r (G + Gᵀ) h_r."""
    lanes = simd.width(work)
    row = count * lanes
    if along:
        transpose_square(work, grad_at, row, units, work, both_at, row)
        add(work, grad_at, work, both_at, units * count)
        for r in range(rows_folded):
            strength = broadcast(strengths, strengths_at - r)
            past, grad = past_at + r * row, grad_past_at + r * row
            combine(work, both_at, row, units, work, past, strength, work, grad)
        return
    for i in range(units):
        for j in range(units):
            entry = load(work, grad_at + i * row + j * lanes)
            other = load(work, grad_at + j * row + i * lanes)
            store(work, both_at + i * row + j * lanes, entry + other)
    for first in range(0, rows_folded, GROUP):
        for i in range(units):
            rows = simd.zeros_4(work)
            for j in range(units):
                entry = load(work, both_at + i * row + j * lanes)
                rows = simd.fma_rows(rows, work, past_at + first * row + j * lanes, row, entry)
            rows = simd.scale_rows(rows, strengths, strengths_at - first, -1)
            here = grad_past_at + first * row + i * lanes
            grads = simd.load_4(work, here, row)
            simd.store_rows(work, here, row, simd.add_scaled(grads, rows, simd.number(work, 1)))
