"""The layer against the paper: a hand-written oracle, known limits, and the traps."""

import inspect
import warnings
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrizations, parametrize, prune

from fwrnn import FastWeightsRNN, FastWeightsRNNCell, FastWeightsState
from fwrnn.layers import equations
from tests.layers import oracle

FORMS = ["matrix", "attention", "numba"]
FUNCTIONS = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh}


def layer(input_size=5, hidden_size=7, **settings) -> FastWeightsRNN:
    """A float64 ReLU layer whose every parameter is random, so that none hides a mistake."""
    settings = {"nonlinearity": "relu", "dtype": torch.float64} | settings
    made = FastWeightsRNN(input_size, hidden_size, **settings)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return made


def clone(original: FastWeightsRNN, **changes) -> FastWeightsRNN:
    """The same layer with the same weights and some settings changed."""
    arguments = inspect.signature(FastWeightsRNN).parameters
    settings = {name: getattr(original, name) for name in arguments if hasattr(original, name)}
    dtype = next(original.parameters()).dtype
    other = FastWeightsRNN(dtype=dtype, **(settings | changes))
    other.load_state_dict(original.state_dict())
    return other


def oracle_states(made: FastWeightsRNN, x: torch.Tensor, trap=None) -> torch.Tensor:
    weights = {name: p.detach().numpy() for name, p in made.named_parameters()}
    f = FUNCTIONS[made.nonlinearity]
    states = oracle.run(
        x.numpy(), weights, made.decay, made.fast_lr, made.inner_steps, f, trap=trap
    )
    return torch.from_numpy(states)


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("inner_steps", [0, 1, 2, 5])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_layer_equals_the_paper(backend, nonlinearity, inner_steps, layer_norm):
    made = layer(
        nonlinearity=nonlinearity, inner_steps=inner_steps, layer_norm=layer_norm, backend=backend
    )
    with torch.no_grad():  # keeps the unnormalised network from exploding
        made.weight_hh_l0.mul_(0.2)
        made.weight_ih_l0.mul_(0.2)
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(made(x)[0].detach(), oracle_states(made, x))


@pytest.mark.parametrize("trap", oracle.TRAPS)
def test_layer_avoids_the_trap(trap):
    made = layer(inner_steps=2)
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    output = made(x)[0].detach()
    torch.testing.assert_close(output, oracle_states(made, x))
    assert (output - oracle_states(made, x, trap)).abs().max() > 1e-2


@pytest.mark.parametrize("settings", [{}, {"layer_norm": False}, {"read_gain": "fixed"}], ids=str)
@pytest.mark.parametrize("backend", ["auto", "matrix"])
@pytest.mark.parametrize("steps", [1, 3])
def test_second_derivatives_are_right_in_every_order(settings, backend, steps):
    made = layer(3, 4, nonlinearity="tanh", backend=backend, **settings)
    x, direction = torch.randn(2, steps, 2, 3, dtype=torch.float64)

    def loss(x):
        return made(x)[0].square().sum()

    step = 1e-5 * direction
    slope = torch.func.grad(loss)
    wanted = (slope(x + step) - slope(x - step)) / 2e-5
    forward, back = torch.func.jacfwd, torch.func.jacrev
    for outer, inner in product((forward, back), repeat=2):
        found = outer(inner(loss))(x).flatten(3) @ direction.flatten()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_half_precision_reads_with_many_units():
    made = FastWeightsRNN(8, 1024)
    with torch.no_grad():
        made.read_weight_l0.fill_(0.1)
    x = torch.randn(20, 2, 8)
    wanted = made(x)[0].detach()
    half = made.half()(x.half())[0]
    assert (half.float() - wanted).abs().mean() < 1e-3
    half.float().sum().backward()
    assert made.read_weight_l0.grad.abs().mean() > 1e-6
    large = torch.tensor([1e3, -1e3], dtype=torch.float16)
    assert equations.bounded(large).tolist() == [2, -2]  # the root mean square is at most 2


def test_decay_and_fast_lr_are_not_learned():
    names = dict(FastWeightsRNN(3, 4).named_parameters())
    learned = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "norm_weight", "norm_bias"]
    learned += ["read_weight"]
    assert set(names) == {f"{name}_l0" for name in learned}


@pytest.mark.parametrize("settings", [
    {},
    {"inner_steps": 0},
    {"inner_steps": 3},
    {"layer_norm": False, "fast_lr": 0.05},
    {"boundary": "identity"},
    {"boundary": "identity", "inner_steps": 2},
    {"inner_start": "previous"},
    {"decay": 0.0},
    {"decay": 1.0},
    {"fast_lr": -0.3},
    {"bias": False},
    {"num_layers": 2, "bidirectional": True},
    {"read_gain": "fixed"},
    {"read_gain": "layer", "boundary": "identity", "inner_steps": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("given_state", [False, True], ids=["zero state", "given state"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("backend", FORMS[1:])
def test_all_forms_agree_in_outputs_states_and_gradients(settings, given_state, packed, backend):
    first = layer(nonlinearity="tanh", **settings, backend="matrix")
    second = clone(first, backend=backend)
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    state = random_state(first, 3) if given_state else None
    results = []
    for made in (first, second):
        inputs = x.clone().requires_grad_()
        given = None if state is None else tuple(p.clone().requires_grad_() for p in state)
        sequence = pack(inputs) if packed else inputs
        output, final = made(sequence, given)
        output = output.data if packed else output
        loss = output.sin().sum() + final.hidden.cos().sum() + final.memory.matrix().sin().sum()
        wanted = [inputs, *(given or ()), *made.parameters()]
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        results.append([output, final.hidden, final.memory.matrix(), *gradients])
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("boundary", ["sustained", "identity"])
def test_gradients_are_right_and_so_are_theirs(backend, boundary):
    made = layer(2, 3, nonlinearity="tanh", boundary=boundary, inner_steps=2, backend=backend)
    names = [name for name, _ in made.named_parameters()]

    def call(x, hidden, memory, *parameters):
        values = dict(zip(names, parameters, strict=True))
        output, state = torch.func.functional_call(made, values, (x, (hidden, memory)))
        return output, state.hidden, state.memory.matrix()

    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    given = [part.requires_grad_() for part in random_state(made, 2)]
    inputs = (x, *given, *made.parameters())
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs, atol=1e-4)


@pytest.mark.parametrize(("steps", "hidden_size"), [(1, 7), (2, 20), (11, 50), (24, 33), (63, 7)])
def test_forms_agree_in_float32_at_odd_sizes(steps, hidden_size):
    torch.manual_seed(steps)
    first = FastWeightsRNN(10, hidden_size, nonlinearity="relu", backend="matrix")
    exact = clone(first).double()
    x = torch.randn(steps, 5, 10)
    for made in (clone(first, backend=backend) for backend in FORMS):
        assert made(x)[0].dtype == torch.float32
        torch.testing.assert_close(made(x)[0], exact(x.double())[0].float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", FORMS)
def test_whole_sequence_equals_pieces_equals_steps_of_the_cell(backend):
    made = layer(backend=backend)
    cell = FastWeightsRNNCell(5, 7, nonlinearity="relu", dtype=torch.float64, backend=backend)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in made.state_dict().items()})
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    output, final = made(x)

    pieces, state = [], None
    for piece in x.split([1, 3, 2]):
        part, state = made(piece, state)
        pieces.append(part)
    torch.testing.assert_close(torch.cat(pieces), output)
    torch.testing.assert_close(tensors(state), tensors(final))

    state = None
    for step, wanted in zip(x, output, strict=True):
        state = cell(step, state)
        torch.testing.assert_close(state.hidden, wanted)
    torch.testing.assert_close(state.memory.matrix(), final.memory.matrix()[0])


@pytest.mark.parametrize("backend", FORMS)
def test_without_fast_lr_it_is_exactly_a_network_with_layer_norm(backend):
    made = layer(fast_lr=0.0, inner_steps=3, backend=backend)
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    hidden = torch.zeros(3, 7, dtype=torch.float64)
    for step, output in zip(x, made(x)[0], strict=True):
        drive = F.linear(step, made.weight_ih_l0, made.bias_ih_l0 + made.bias_hh_l0)
        total = drive + F.linear(hidden, made.weight_hh_l0)
        hidden = torch.relu(F.layer_norm(total, (7,), made.norm_weight_l0, made.norm_bias_l0))
        torch.testing.assert_close(hidden, output, rtol=0, atol=1e-14)


def test_without_inner_steps_and_norm_it_is_nn_rnn():
    settings = {"inner_steps": 0, "layer_norm": False, "read_gain": "fixed"}
    made = FastWeightsRNN(5, 7, 2, bidirectional=True, **settings)
    other = torch.nn.RNN(5, 7, 2, bidirectional=True)
    other.load_state_dict(made.state_dict())
    x = torch.randn(6, 3, 5)
    torch.testing.assert_close(made(x)[0], other(x)[0])
    torch.testing.assert_close(made(x)[1].hidden, other(x)[1])


@pytest.mark.parametrize("backend", FORMS)
def test_without_decay_memory_keeps_one_step(backend):
    made = layer(decay=0.0, backend=backend)
    output, state = made(torch.randn(6, 3, 5, dtype=torch.float64))
    last = output[-1]
    torch.testing.assert_close(
        state.memory.matrix()[0], 0.5 * last.unsqueeze(2) * last.unsqueeze(1)
    )


def test_memory_folded_into_the_recurrent_matrix():
    made = layer(inner_start="previous", read_gain="fixed")
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    hidden, memory = torch.zeros(2, 7).double(), torch.zeros(2, 7, 7).double()
    for step, output in zip(x, made(x)[0], strict=True):
        drive = F.linear(step, made.weight_ih_l0, made.bias_ih_l0 + made.bias_hh_l0)
        total = drive + torch.einsum("bij,bj->bi", made.weight_hh_l0 + memory, hidden)
        hidden = torch.relu(F.layer_norm(total, (7,), made.norm_weight_l0, made.norm_bias_l0))
        memory = 0.95 * memory + 0.5 * torch.einsum("bi,bj->bij", hidden, hidden)
        torch.testing.assert_close(hidden, output)


@pytest.mark.parametrize("backend", FORMS)
def test_rows_of_a_batch_do_not_touch_each_other(backend):
    made = layer(backend=backend)
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    alone = made(x[:, :1])[0]
    torch.testing.assert_close(made(x)[0][:, :1], alone)
    x[:, 1:] = 100 * torch.randn(6, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(made(x)[0][:, :1], alone)


def test_layer_norm_is_over_units():
    made = layer()
    with torch.no_grad():
        made.norm_weight_l0.fill_(1.0)
        made.norm_bias_l0.fill_(100.0)  # ReLU then passes every unit
    normalised = made(torch.randn(6, 3, 5, dtype=torch.float64))[0] - 100
    torch.testing.assert_close(normalised.mean(-1), torch.zeros(6, 3).double())
    torch.testing.assert_close(normalised.var(-1, correction=0), torch.ones(6, 3).double(),
                               rtol=1e-3, atol=1e-3)  # fmt: skip


@pytest.mark.parametrize("read_gain", ["fixed", "unit"])
def test_attention_is_the_weight_of_each_past_state(read_gain):
    made = layer(inner_steps=1, decay=0.8, read_gain=read_gain)
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    states, weights = made(x)[0], made.attention(x)
    assert weights.shape == (2, 6, 6)
    for t in range(6):
        previous = states[t - 1] if t else torch.zeros_like(states[0])
        drive = F.linear(x[t], made.weight_ih_l0, made.bias_ih_l0 + made.bias_hh_l0)
        query = torch.relu(drive + F.linear(previous, made.weight_hh_l0))
        if read_gain == "unit":  # as it is asked: its direction
            query = query / (query.norm(dim=-1, keepdim=True) * 7**0.5)
        for past in range(6):
            wanted = torch.zeros(2).double()
            if past < t:
                wanted = 0.5 * 0.8 ** (t - 1 - past) * (states[past] * query).sum(-1)
            torch.testing.assert_close(weights[:, t, past], wanted)
    torch.testing.assert_close(made.attention(x[:, 0]), weights[0])


def test_attention_goes_on_from_a_state():
    made = layer(inner_steps=2)
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    _, state = made(x[:3])
    torch.testing.assert_close(made.attention(x[3:], state), made.attention(x)[:, 3:, 3:])


def random_state(made: FastWeightsRNN, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden and memory; the latter not symmetric, as a memory that someone else made may be."""
    hidden, memory = tensors(made.initial_state(batch))
    return torch.rand_like(hidden), torch.randn_like(memory) * 0.5


def tensors(state: FastWeightsState) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden vector and A, however the memory is kept."""
    return state.hidden, state.memory.matrix()


def pack(x: torch.Tensor):
    """Three sequences of 4, 6 and 1 steps, not in order of their length."""
    return torch.nn.utils.rnn.pack_padded_sequence(x, [4, 6, 1], enforce_sorted=False)


def halved(made):
    class Half(torch.nn.Module):
        def forward(self, weight):
            return weight / 2

        def right_inverse(self, weight):
            return weight * 2

    parametrize.register_parametrization(made, "weight_hh_l0", Half())


def normed(made):
    parametrizations.weight_norm(made, "weight_hh_l0")


def pruned(made):
    prune.random_unstructured(made, "weight_hh_l0", 0.5)


@pytest.mark.parametrize("change", [halved, normed, pruned])
def test_weights_behind_a_parametrisation_are_listed_and_start_as_others_do(change):
    made = FastWeightsRNN(3, 6)
    names = [name for name, _ in made.named_parameters()]
    change(made)
    (weights,) = made.all_weights
    assert len(weights) == len(names)
    for name, weight in zip(names, weights, strict=True):
        torch.testing.assert_close(weight, getattr(made, name))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(7)
    made.reset_parameters()
    kept = made.weight_hh_l0_mask if change is pruned else 1
    made(torch.ones(2, 1, 3))  # where pruning applies its mask
    torch.testing.assert_close(made.weight_hh_l0.detach(), 0.05 * torch.eye(6) * kept)


def test_a_single_normalised_unit_is_warned_of():
    with pytest.warns(UserWarning, match="layer_norm=False"):
        FastWeightsRNN(3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FastWeightsRNN(3, 1, layer_norm=False)
        FastWeightsRNN(3, 2)
