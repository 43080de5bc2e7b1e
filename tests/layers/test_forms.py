"""Every backend against the matrix form in float64, for whatever Hypothesis thinks of."""

from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_packed_sequence

from fwrnn import FastWeightsRNN
from tests.layers.test_fast_weights import clone

SETTINGS = st.fixed_dictionaries({
    "nonlinearity": st.sampled_from(["tanh", "relu"]),
    "bias": st.booleans(),
    "decay": st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    "fast_lr": st.sampled_from([0.0, 0.5, -0.2]),
    "inner_steps": st.integers(0, 3),
    "layer_norm": st.booleans(),
    "boundary": st.sampled_from(["sustained", "identity"]),
    "inner_start": st.sampled_from(["candidate", "previous", "normalised"]),
    "read_gain": st.sampled_from(["unit", "layer", "plain", "fixed"]),
    "num_layers": st.integers(1, 2),
    "bidirectional": st.booleans(),
}).filter(
    lambda s: s["inner_start"] == "candidate"
    or (s["inner_steps"] > 0 and s["boundary"] == "sustained")
)  # fmt: skip


@st.composite
def problems(draw):
    """A layer in the matrix form, inputs of any lengths, and the pieces they come in."""
    units, inputs, batch = (
        draw(st.integers(1, 20)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 4)),
    )
    torch.manual_seed(draw(st.integers(0, 2**31)))
    made = FastWeightsRNN(inputs, units, **draw(SETTINGS), dtype=torch.float64, backend="matrix")
    # Weights as large as they may be before differences in rounding grow from step to step.
    for parameter in made.parameters():
        scale = 0.4 if made.layer_norm else 0.4 / (units + inputs)
        torch.nn.init.normal_(parameter, 0, scale)
    pieces = [
        torch.randn(draw(st.integers(1, 6)), batch, inputs, dtype=torch.float64)
        for _ in range(draw(st.integers(1, 3)))
    ]
    lengths = [
        draw(st.none() | st.lists(st.integers(1, len(piece)), min_size=batch, max_size=batch))
        for piece in pieces
    ]
    return made, pieces, lengths


def run(made: FastWeightsRNN, pieces, lengths) -> list:
    """Outputs of all pieces, the last state, and the gradients of inputs and parameters."""
    dtype = made.weight_hh_l0.dtype
    leaves = [piece.to(dtype).requires_grad_() for piece in pieces]
    outputs, state = [], None
    for piece, length in zip(leaves, lengths, strict=True):
        if length is None:
            output, state = made(piece, state)
        else:
            packed = torch.nn.utils.rnn.pack_padded_sequence(piece, length, enforce_sorted=False)
            output, state = made(packed, state)
            output, _ = pad_packed_sequence(output)
        outputs.append(output)
    hidden, memory = state.hidden, state.memory.matrix()
    loss = sum(output.sin().sum() for output in outputs) + hidden.cos().sum() + memory.sin().mean()
    wanted = [*leaves, *made.parameters()]
    gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
    return [*outputs, hidden, memory, *gradients]


@pytest.mark.parametrize("backend", ["auto", "attention", "numba"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_form_is_the_matrix_form(backend, dtype):
    tolerance = {torch.float64: 1e-8, torch.float32: 2e-3}[dtype]
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)

    @settings(
        max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(problems())
    def check(problem):
        exact, *sequences = problem
        made = clone(exact, backend=backend).to(dtype)
        for one, other in zip(run(made, *sequences), run(exact, *sequences), strict=True):
            close(one.double(), other)

    check()
