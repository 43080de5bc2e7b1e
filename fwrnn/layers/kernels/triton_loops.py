"""The loops over time behind ``gpu``, in Triton: one program runs one sequence from end to end.

Imported by ``gpu`` when it launches for the first time, and by nothing else.

Names: T steps, B sequences, H units, S inner steps. A *read* is one inner step of one step; read
t·S + s is inner step s of step t (both from 0), has query h_s, finds z = A h_s, and adds it to what
is normalised; with ``READ_GAIN`` it finds z = A h_s / (H rms(h_s)), and adds g z. Rows of (T, B, H)
and (T·S, B, H) tensors are numbered step·B + sequence in int64.

With ``HAS_LENGTHS`` a program runs only the first steps of its sequence, as many as it has. What
lies past them is never loaded, apart from gradients of the states there, all of them the last one.

The fast memory has one of two forms here, by ``RESIDENT``:

- True: W, A and the gradient of A are H×H matrices in registers for the whole sequence.
- False: W is streamed from the cache at each step, and A is attention over the rows of states that
  this program has stored before; in the backward pass so is the gradient of A, over the (query,
  gradient of z) pairs of later reads. A barrier parts every such store from its first load.

A pipelined loop would load rows ahead of the stores that make them. So no loop here asks for
stages, and none has a ``tl.dot``, for whose sake Triton pipelines by itself: products are sums of
element-wise products, in full float32 or float64.
"""

import triton
import triton.language as tl


@triton.jit
def _activate(x, RELU: tl.constexpr):
    if RELU:
        return tl.where(x <= 0, 0.0, x)  # unlike tl.maximum it keeps NaN
    # 1 - exp(-2|x|) cancels near 0, so an odd polynomial takes over where it is exact enough.
    NEAR: tl.constexpr = 0.03 if x.dtype == tl.float64 else 0.25
    size = tl.abs(x)
    fading = tl.exp(-2.0 * size)
    far = (1.0 - fading) / (1.0 + fading)
    square = x * x
    series = square * (-17.0 / 315.0 + square * (62.0 / 2835.0))
    near = size * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 + series)))
    magnitude = tl.where(size < NEAR, near, far)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def _through_activation(grad, output, RELU: tl.constexpr):
    """The gradient before f, from the one after it and f's output."""
    if RELU:
        return tl.where(output <= 0, 0.0, grad)
    return grad * (1.0 - output * output)


@triton.jit
def _load_row(pointer, row, units, H: tl.constexpr):
    return tl.load(pointer + row * H + units, mask=units < H, other=0.0)


@triton.jit
def _load_tile(pointer, rows, units, wanted, H: tl.constexpr):
    """Rows ``rows`` of a (…, H) tensor, 0 where ``wanted`` is false and beyond H."""
    places = rows[:, None] * H + units[None, :]
    return tl.load(pointer + places, mask=wanted[:, None] & (units < H)[None, :], other=0.0)


@triton.jit
def _own_steps(lengths_ptr, sequence, steps, HAS_LENGTHS: tl.constexpr):
    """How many of the T steps this sequence has."""
    if HAS_LENGTHS:
        return tl.minimum(tl.load(lengths_ptr + sequence).to(tl.int32), steps)
    return steps


@triton.jit
def _per_direction(query, H: tl.constexpr, QUERY_EPS: tl.constexpr):
    """1 / (H · rms(q)), by which what is found is multiplied where it has a gain."""
    return 1.0 / tl.sqrt((tl.sum(query * query, 0) + QUERY_EPS) * H)


@triton.jit
def _bound(found, H: tl.constexpr, READ_LIMIT: tl.constexpr):
    """1 / √(1 + mean z² / 4), by which what is found is bounded."""
    return 1.0 / tl.sqrt(1.0 + tl.sum(found * found, 0) / (H * READ_LIMIT))


@triton.jit
def _times_transposed(
    matrix_ptr, vector_ptr, H: tl.constexpr, BLOCK_H: tl.constexpr, TILE: tl.constexpr
):
    """Mᵀ v, TILE rows of M at a time."""
    units = tl.arange(0, BLOCK_H)
    products = tl.zeros((TILE, BLOCK_H), vector_ptr.dtype.element_ty)
    for start in range(0, H, TILE):
        rows = start + tl.arange(0, TILE)
        vector = tl.load(vector_ptr + rows, mask=rows < H, other=0.0)
        products += _load_tile(matrix_ptr, rows, units, rows < H, H) * vector[:, None]
    return tl.sum(products, 0)


@triton.jit
def _attend_past(
    vector, states_ptr, strengths_ptr, step, batch, sequence,
    H: tl.constexpr, BLOCK_H: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Σ_τ η λ^(step-1-τ) h(τ) [h(τ)·vector] over the states of steps τ < ``step``; symmetric."""
    units = tl.arange(0, BLOCK_H)
    found = tl.zeros((TILE, BLOCK_H), vector.dtype)
    for start in range(0, step, TILE):
        past = start + tl.arange(0, TILE)
        written = past < step
        states = _load_tile(states_ptr, past * batch + sequence, units, written, H)
        strengths = tl.load(strengths_ptr + step - 1 - past, mask=written, other=0.0)
        scores = tl.sum(states * vector[None, :], 1) * strengths
        found += states * scores[:, None]
    return tl.sum(found, 0)


@triton.jit
def _attend_later(
    state, queries_ptr, grad_reads_ptr, strengths_ptr, step, steps, batch, sequence,
    H: tl.constexpr, S: tl.constexpr, BLOCK_H: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The gradient of h(step) by way of A, from every later read of it.

    Σ η λ^(t-1-step) ([h·q] dz + [h·dz] q) over reads of steps t > ``step``.
    """
    units = tl.arange(0, BLOCK_H)
    total = tl.zeros((TILE, BLOCK_H), state.dtype)
    for start in range((step + 1) * S, steps * S, TILE):
        later = start + tl.arange(0, TILE)
        exists = later < steps * S
        rows = later * batch + sequence
        queries = _load_tile(queries_ptr, rows, units, exists, H)
        grads = _load_tile(grad_reads_ptr, rows, units, exists, H)
        strengths = tl.load(strengths_ptr + later // S - 1 - step, mask=exists, other=0.0)
        total += grads * (tl.sum(queries * state[None, :], 1) * strengths)[:, None]
        total += queries * (tl.sum(grads * state[None, :], 1) * strengths)[:, None]
    return tl.sum(total, 0)


@triton.jit
def _store_state(states_ptr, trail_ptr, row, batch, state, units, H: tl.constexpr):
    tl.store(states_ptr + row * H + units, state, mask=units < H)
    tl.store(trail_ptr + (row + batch) * H + units, state, mask=units < H)


@triton.jit(do_not_specialize=["steps", "batch"])
def forward_loop(
    drive_ptr, hidden_ptr, lengths_ptr, memory_ptr, weight_ptr, gain_ptr, bias_ptr, read_gain_ptr,
    powers_ptr, strengths_ptr, trail_ptr, states_ptr,
    queries_ptr, normed_ptr, found_ptr, scales_ptr, steps, batch,
    H: tl.constexpr, S: tl.constexpr, QUERY_EPS: tl.constexpr,
    READ_LIMIT: tl.constexpr, RELU: tl.constexpr,
    LAYER_NORM: tl.constexpr, IDENTITY: tl.constexpr, PREVIOUS: tl.constexpr,
    READ_GAIN: tl.constexpr, GIVEN_MEMORY: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    RESIDENT: tl.constexpr, BLOCK_H: tl.constexpr, TILE: tl.constexpr,
    EPS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Stores the states (T, B, H), the trail, which is the first state and those, (T + 1, B, H),
    and, with ``SAVE``, what ``backward_loop`` reads of each read.

    That is the query, the normalised sum before gain and bias, and z where it has a gain, all
    (T·S, B, H), and the factor 1/σ of the normalisation (T·S, B). The last state of a sequence is
    repeated past its end; of reads nothing is stored there. W and a given memory are transposed.
    """
    dtype = states_ptr.dtype.element_ty
    units = tl.arange(0, BLOCK_H)
    sequence = tl.program_id(0).to(tl.int64)
    batch = batch.to(tl.int64)
    if GIVEN_MEMORY:
        memory_ptr += sequence * H * H
    hidden = _load_row(hidden_ptr, sequence, units, H)
    tl.store(trail_ptr + sequence * H + units, hidden, mask=units < H)
    if LAYER_NORM:
        gain = _load_row(gain_ptr, 0, units, H)
        bias = _load_row(bias_ptr, 0, units, H)
    if READ_GAIN:
        read_gain = _load_row(read_gain_ptr, 0, units, H)
    if RESIDENT:
        weight = _load_tile(weight_ptr, units, units, units < H, H)
        memory = tl.zeros((BLOCK_H, BLOCK_H), dtype)
        if GIVEN_MEMORY:
            memory = _load_tile(memory_ptr, units, units, units < H, H)
        decay = tl.load(powers_ptr + 1)
        fast_lr = tl.load(strengths_ptr)
    else:
        tl.debug_barrier()  # states are loaded by other threads than those that stored them
    own_steps = _own_steps(lengths_ptr, sequence, steps, HAS_LENGTHS)
    ahead = _load_row(drive_ptr, sequence, units, H)
    for t in range(own_steps):
        row = t * batch + sequence
        bracket = ahead.to(dtype)
        coming = tl.minimum(t + 1, own_steps - 1) * batch + sequence
        ahead = _load_row(drive_ptr, coming, units, H)
        if RESIDENT:
            bracket += tl.sum(weight * hidden[:, None], 0)
        else:
            bracket += _times_transposed(weight_ptr, trail_ptr + row * H, H, BLOCK_H, TILE)
        bracket = tl.where(units < H, bracket, 0.0)  # which 0 · ∞ was not
        state = hidden
        if not PREVIOUS:
            state = _activate(bracket, RELU)
        for s in range(S):
            read = (t * S + s) * batch + sequence
            if SAVE:
                tl.store(queries_ptr + read * H + units, state, mask=units < H)
            if RESIDENT:
                total = tl.sum(memory * state[:, None], 0)
            else:
                total = _attend_past(
                    state, states_ptr, strengths_ptr, t, batch, sequence, H, BLOCK_H, TILE
                )
                if GIVEN_MEMORY:  # queries are always stored then
                    tl.debug_barrier()
                    given = _times_transposed(memory_ptr, queries_ptr + read * H, H, BLOCK_H, TILE)
                    total += tl.load(powers_ptr + t) * given
            if READ_GAIN:
                total *= _per_direction(state, H, QUERY_EPS)
                if SAVE:
                    tl.store(found_ptr + read * H + units, total, mask=units < H)
                total *= read_gain * _bound(total, H, READ_LIMIT)
            total += state if IDENTITY else bracket
            if LAYER_NORM:
                centred = tl.where(units < H, total - tl.sum(total, 0) / H, 0.0)
                scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / H + EPS)
                normed = centred * scale
                if SAVE:
                    tl.store(normed_ptr + read * H + units, normed, mask=units < H)
                    tl.store(scales_ptr + read, scale)
                total = normed * gain + bias
            state = _activate(total, RELU)
        hidden = state
        _store_state(states_ptr, trail_ptr, row, batch, hidden, units, H)
        if RESIDENT:
            memory = decay * memory + fast_lr * hidden[:, None] * hidden[None, :]
        else:
            tl.debug_barrier()
    if HAS_LENGTHS:
        for t in range(own_steps, steps):
            _store_state(states_ptr, trail_ptr, t * batch + sequence, batch, hidden, units, H)


@triton.jit(do_not_specialize=["steps", "batch"])
def backward_loop(
    grad_states_ptr, trail_ptr, queries_ptr, normed_ptr, found_ptr, scales_ptr,
    lengths_ptr, memory_ptr, weight_ptr, gain_ptr, read_gain_ptr, powers_ptr, strengths_ptr,
    grad_drive_ptr, grad_hidden_ptr, grad_reads_ptr, grad_gains_ptr, steps, batch,
    H: tl.constexpr, S: tl.constexpr, QUERY_EPS: tl.constexpr,
    READ_LIMIT: tl.constexpr, RELU: tl.constexpr,
    LAYER_NORM: tl.constexpr, IDENTITY: tl.constexpr, PREVIOUS: tl.constexpr,
    READ_GAIN: tl.constexpr, GIVEN_MEMORY: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    RESIDENT: tl.constexpr, BLOCK_H: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Stores the gradients of drive (T, B, H), first state (B, H) and every z (T·S, B, H).

    Those of the gain and bias of layer normalisation and of the gain of z, as far as they exist,
    are one row per sequence, (·, B, H), to be summed by the caller, so that the order of the sum
    never changes. Past the end of a sequence the gradient of drive is 0, and that of z is not
    stored.
    """
    dtype = trail_ptr.dtype.element_ty
    units = tl.arange(0, BLOCK_H)
    sequence = tl.program_id(0).to(tl.int64)
    batch = batch.to(tl.int64)
    states_ptr = trail_ptr + batch * H
    if GIVEN_MEMORY:
        memory_ptr += sequence * H * H
    carried = tl.zeros((BLOCK_H,), dtype)  # what h(t) receives by way of step t + 1
    if LAYER_NORM:
        gain = _load_row(gain_ptr, 0, units, H)
        grad_gain = tl.zeros((BLOCK_H,), dtype)
        grad_bias = tl.zeros((BLOCK_H,), dtype)
    if READ_GAIN:
        read_gain = _load_row(read_gain_ptr, 0, units, H)
        grad_read_gain = tl.zeros((BLOCK_H,), dtype)
    if RESIDENT:
        weight = _load_tile(weight_ptr, units, units, units < H, H)
        grad_memory = tl.zeros((BLOCK_H, BLOCK_H), dtype)  # of A after the write of step t
        decay = tl.load(powers_ptr + 1)
        fast_lr = tl.load(strengths_ptr)
    own_steps = _own_steps(lengths_ptr, sequence, steps, HAS_LENGTHS)
    if HAS_LENGTHS:
        for t in range(own_steps, steps):  # where states are copies of the last one
            row = t * batch + sequence
            carried += _load_row(grad_states_ptr, row, units, H)
            tl.store(grad_drive_ptr + row * H + units, tl.zeros_like(carried), mask=units < H)
    coming = (own_steps - 1) * batch + sequence
    output_ahead = _load_row(states_ptr, coming, units, H)
    grad_ahead = _load_row(grad_states_ptr, coming, units, H)
    for age in range(own_steps):
        t = own_steps - 1 - age
        row = t * batch + sequence
        output, grad = output_ahead, carried + grad_ahead
        coming = tl.maximum(t - 1, 0) * batch + sequence
        output_ahead = _load_row(states_ptr, coming, units, H)
        grad_ahead = _load_row(grad_states_ptr, coming, units, H)
        if RESIDENT:
            grad += fast_lr * tl.sum(grad_memory * output[:, None], 0)
            grad_memory *= decay
        else:
            grad += _attend_later(
                output, queries_ptr, grad_reads_ptr, strengths_ptr, t, own_steps, batch, sequence,
                H, S, BLOCK_H, TILE,
            )  # fmt: skip
        grad_bracket = tl.zeros((BLOCK_H,), dtype)
        for done in range(S):
            # Here ``output`` is h_s+1, ``grad`` its gradient, and ``query`` is h_s.
            read = (t * S + S - 1 - done) * batch + sequence
            query = _load_row(queries_ptr, read, units, H)
            if READ_GAIN:
                found = _load_row(found_ptr, read, units, H)
            if LAYER_NORM:
                normed = _load_row(normed_ptr, read, units, H)
                scale = tl.load(scales_ptr + read)
            grad = _through_activation(grad, output, RELU)
            if LAYER_NORM:
                grad_gain += grad * normed
                grad_bias += grad
                grad *= gain
                grad -= (tl.sum(grad, 0) + normed * tl.sum(grad * normed, 0)) / H
                grad = tl.where(units < H, grad * scale, 0.0)
            # From here on ``grad`` is that of the boundary, and ``grad_read`` that of z.
            grad_read = grad
            if READ_GAIN:
                bound = _bound(found, H, READ_LIMIT)
                found *= bound
                grad_read_gain += grad * found
                factor = bound * _per_direction(query, H, QUERY_EPS)
                product = tl.sum(grad * read_gain * found, 0)
                by_length = product * H * factor * factor
                grad_read = (grad * read_gain - found * (product / (H * READ_LIMIT))) * factor
            tl.store(grad_reads_ptr + read * H + units, grad_read, mask=units < H)
            grad_query = _attend_past(
                grad_read, states_ptr, strengths_ptr, t, batch, sequence, H, BLOCK_H, TILE
            )
            if GIVEN_MEMORY:
                tl.debug_barrier()
                given = _times_transposed(memory_ptr, grad_reads_ptr + read * H, H, BLOCK_H, TILE)
                grad_query += tl.load(powers_ptr + t) * given
            if RESIDENT:
                grad_memory += grad_read[:, None] * query[None, :]
                grad_memory += query[:, None] * grad_read[None, :]
            if READ_GAIN:
                grad_query -= by_length * query
            if IDENTITY:
                grad_query += grad
            else:
                grad_bracket += grad
            grad = grad_query
            output = query
        if not PREVIOUS:
            grad_bracket += _through_activation(grad, output, RELU)
        tl.store(grad_drive_ptr + row * H + units, grad_bracket, mask=units < H)
        if RESIDENT:
            carried = tl.sum(weight * grad_bracket[:, None], 0)
        else:
            tl.debug_barrier()  # this step's gradients are loaded by other threads from here on
            carried = _times_transposed(weight_ptr, grad_drive_ptr + row * H, H, BLOCK_H, TILE)
        if PREVIOUS:
            carried += grad
    tl.store(grad_hidden_ptr + sequence * H + units, carried, mask=units < H)
    row = sequence
    if LAYER_NORM:
        tl.store(grad_gains_ptr + row * H + units, grad_gain, mask=units < H)
        tl.store(grad_gains_ptr + (row + batch) * H + units, grad_bias, mask=units < H)
        row += 2 * batch
    if READ_GAIN:
        tl.store(grad_gains_ptr + row * H + units, grad_read_gain, mask=units < H)
