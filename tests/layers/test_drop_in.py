"""The layer in the place of ``nn.RNN``: input forms, errors, and what PyTorch does to modules."""

import copy
import inspect
import io
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from fwrnn import FastMemory, FastWeightsRNN, FastWeightsRNNCell, FastWeightsState
from fwrnn.layers import AssociativeLSTM
from fwrnn.layers.equations import Rule
from tests.layers.test_fast_weights import tensors


@pytest.mark.parametrize(
    ("ours", "theirs"), [(FastWeightsRNN, nn.RNN), (FastWeightsRNNCell, nn.RNNCell)]
)
def test_arguments_and_defaults_are_those_of_torch(ours, theirs):
    documented = {
        nn.RNN: "input_size hidden_size num_layers=1 nonlinearity='tanh' bias=True "
        "batch_first=False dropout=0.0 bidirectional=False device=None dtype=None",
        nn.RNNCell: "input_size hidden_size bias=True nonlinearity='tanh' device=None dtype=None",
    }[theirs]
    positional = [
        str(parameter).split(":")[0].replace(" ", "")
        if parameter.default is parameter.empty
        else f"{parameter.name}={parameter.default!r}"
        for parameter in inspect.signature(ours).parameters.values()
        if parameter.kind == parameter.POSITIONAL_OR_KEYWORD
    ]
    assert " ".join(positional) == documented


@pytest.mark.parametrize("settings", [
    {}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 3, "bidirectional": True},
    {"batch_first": True}, {"bias": False},
], ids=str)  # fmt: skip
def test_outputs_and_states_have_the_shapes_of_nn_rnn(settings):
    ours, theirs = FastWeightsRNN(5, 7, **settings), nn.RNN(5, 7, **settings)
    for x in (torch.randn(6, 3, 5), torch.randn(6, 5)):
        output, state = ours(x)
        wanted, hidden = theirs(x)
        assert output.shape == wanted.shape
        assert state.hidden.shape == hidden.shape
        assert state.memory.matrix().shape == (*hidden.shape, 7)
        given = ours(x, torch.randn_like(hidden))[0]
        assert given.shape == wanted.shape
        torch.testing.assert_close(ours(x, hx=torch.zeros_like(hidden))[0], output)
    assert {name for name, _ in theirs.named_parameters()} <= dict(ours.named_parameters()).keys()
    assert len(ours.all_weights) == len(theirs.all_weights)


def test_batch_first_and_unbatched_are_the_same_numbers():
    layer = FastWeightsRNN(5, 7)
    transposed = FastWeightsRNN(5, 7, batch_first=True)
    transposed.load_state_dict(layer.state_dict())
    x = torch.randn(6, 3, 5)
    output, state = layer(x)
    torch.testing.assert_close(transposed(x.transpose(0, 1))[0], output.transpose(0, 1))
    alone, last = layer(x[:, 1], state.index_batch(1))
    both, ends = layer(x, state)
    torch.testing.assert_close(alone, both[:, 1])
    torch.testing.assert_close(tensors(last), tensors(ends.index_batch(1)))


@pytest.mark.parametrize("backend", ["matrix", "attention", "numba"])
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_of_a_packed_sequence_changes_nothing(backend, enforce_sorted, bidirectional):
    layer = FastWeightsRNN(5, 7, 2, bidirectional=bidirectional, backend=backend)
    lengths = [6, 4, 1] if enforce_sorted else [4, 1, 6]
    sequences = [torch.randn(length, 5) for length in lengths]
    packed = pack_sequence(sequences, enforce_sorted=enforce_sorted)
    output, state = layer(packed)
    padded, found = pad_packed_sequence(output)
    assert found.tolist() == lengths
    for k, sequence in enumerate(sequences):
        alone, last = layer(sequence)
        torch.testing.assert_close(padded[: lengths[k], k], alone)
        torch.testing.assert_close(tensors(state.index_batch(k)), tensors(last))


def test_packed_padding_gets_no_gradient():
    layer = FastWeightsRNN(5, 7)
    x = torch.randn(6, 2, 5, requires_grad=True)
    output, state = layer(pack_padded_sequence(x, [6, 2]))
    (output.data.sum() + state.memory.matrix().sum()).backward()
    assert x.grad[2:, 1].abs().sum() == 0
    assert x.grad[:2, 1].abs().sum() > 0


def test_states_of_several_ages_are_joined_and_begin_anew():
    layer, cell, x = FastWeightsRNN(5, 7, 2), FastWeightsRNNCell(5, 7), torch.randn(4, 5, 5)
    with torch.no_grad():
        for parameter in (*layer.parameters(), *cell.parameters()):
            parameter += 0.3 * torch.randn_like(parameter)
    for ages in ((3, 3), (3, 6), (6, 0), (3, 20), (20, 4)):
        states = [
            layer(torch.randn(steps, batch, 5))[1] if steps else layer.initial_state(batch)
            for steps, batch in zip(ages, (2, 3), strict=True)
        ]
        joined = FastWeightsState.cat(states)
        assert joined.memory.is_folded() == (20 in ages)
        both, last = layer(x, joined)
        for state, part in zip(states, (slice(0, 2), slice(2, 5)), strict=True):
            alone, end = layer(x[:, part], state)
            torch.testing.assert_close(both[:, part], alone)
            torch.testing.assert_close(tensors(last.index_batch(part)), tensors(end))
    spoiled = joined.map(lambda part: part.index_fill(1, torch.tensor([1]), torch.nan))
    ended = torch.tensor([False, True, False, False, True])
    for mask in (ended, ended.numpy()):
        output, _ = layer(x, spoiled.reset(mask))
        torch.testing.assert_close(output[:, ~ended], both[:, ~ended])
        torch.testing.assert_close(output[:, ended], layer(x[:, ended])[0])
    ages = [cell(x[0]), cell(x[1], cell(x[0]))]
    found = cell(torch.cat([x[2], x[3]]), FastWeightsState.cat(ages).reset(torch.arange(10) == 3))
    torch.testing.assert_close(found.hidden[5:], cell(x[3], ages[1]).hidden)
    torch.testing.assert_close(found.hidden[3], cell(x[2]).hidden[3])
    for product in (lambda: joined * ended, lambda: ended * joined, lambda: joined.memory * 2):
        with pytest.raises(TypeError, match="reset"):
            product()


def test_states_that_cannot_be_joined_or_begin_anew_say_why():
    layer, cell = FastWeightsRNN(5, 7), FastWeightsRNNCell(5, 7)
    state, alone = layer(torch.randn(3, 2, 5))[1], cell(torch.randn(5))
    for states, words in (
        ([], "got none"),
        (state, "got no state of a batch; leave"),
        ([state, cell(torch.randn(2, 5))], "got 1 × B × 7 torch.float32 on cpu and B × 7 torch.f"),
        ([state, state.to(torch.float64)], "float32 on cpu and 1 × B × 7 torch.float64"),
        ([alone, alone], "got no state of a batch"),
    ):
        with pytest.raises(ValueError, match=words):
            FastWeightsState.cat(states)
    for ended in ([True], [True, False, True], torch.ones(2), [1, 0], [[True], [False]], True):
        with pytest.raises(ValueError, match=r"a batch, here \(2,\), got .*; give \(B\) bools"):
            state.reset(ended)
    with pytest.raises(ValueError, match=r"here \(\), got torch.bool of shape \(\)"):
        alone.reset(True)


def test_state_can_be_detached_moved_and_indexed():
    layer = FastWeightsRNN(5, 7)
    _, state = layer(torch.randn(6, 4, 5))
    hidden, memory = state
    assert isinstance(state, FastWeightsState) and isinstance(memory, FastMemory)
    assert state.hidden is hidden
    assert memory.matrix().requires_grad
    assert not state.detach().memory.matrix().requires_grad
    assert {part.dtype for part in state.to(torch.float64).memory} == {torch.float64}
    assert state.index_batch(slice(1, 3)).memory.matrix().shape == (1, 2, 7, 7)
    mask = torch.tensor([True, False, False, True])
    torch.testing.assert_close(state.index_batch(mask).hidden, hidden[:, [0, 3]])
    torch.testing.assert_close(state.index_batch(2).memory.matrix(), memory.matrix()[:, 2])
    start = tensors(layer.initial_state(4))
    torch.testing.assert_close(start, (hidden * 0, memory.matrix() * 0))


@pytest.mark.parametrize("use", [
    lambda h: h.unsqueeze(0), lambda h: h.shape, lambda h: h.data, lambda h: h.cpu(),
])  # fmt: skip
def test_a_state_taken_for_a_tensor_says_where_the_tensor_is(use):
    _, state = FastWeightsRNN(5, 4)(torch.zeros(6, 3, 5))
    with pytest.raises(AttributeError, match=r"for nn\.RNN's h write state\.hidden$"):
        use(state)
    with pytest.raises(AttributeError, match=r"for nn\.RNN's h\[-1\] write state\.hidden\[-1\]"):
        use(state[-1])
    use(state.hidden)


def test_what_no_tensor_has_is_missing_as_usual():
    _, state = FastWeightsRNN(5, 4)(torch.zeros(6, 3, 5))
    for part in state, state.memory:
        assert not hasattr(part, "unsqueeze") and not hasattr(part, "__torch_function__")
        with pytest.raises(AttributeError, match="has no attribute 'hiden'$") as caught:
            part.hiden  # noqa: B018
        assert caught.value.name == "hiden" and caught.value.obj is part

    def probed(state, x):
        return x if hasattr(state, "unsqueeze") else state.hidden

    compiled = torch.compile(probed, fullgraph=True, backend="eager")
    assert torch.equal(compiled(state, torch.zeros(1)), state.hidden)


@pytest.mark.parametrize("backend", ["matrix", "attention", "numba"])
def test_outputs_and_states_may_be_changed_in_place(backend):
    layer = FastWeightsRNN(5, 7, backend=backend)
    output, state = layer(torch.randn(6, 3, 5))
    state.hidden[:, 0] = 0
    second, state = layer(torch.randn(6, 3, 5), state)
    (output.relu_().sum() + second.mul_(2).sum() + state.memory.matrix().sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("backend", ["matrix", "attention", "numba"])
def test_a_given_memory_may_be_changed_before_the_next_is_looked_at(backend):
    layer = FastWeightsRNN(5, 7, backend=backend)
    x, hidden = torch.randn(6, 3, 5), torch.randn(1, 3, 7)
    memory = torch.randn(1, 3, 7, 7)
    with torch.no_grad():
        wanted = layer(x, (hidden, memory))[1].memory.matrix()
        state = layer(x, (hidden, memory))[1]
        memory.zero_()
        torch.testing.assert_close(state.memory.matrix(), wanted)


@pytest.mark.parametrize("backend", ["attention", "numba"])
def test_the_state_keeps_what_was_written_and_no_matrix(backend):
    layer = FastWeightsRNN(5, 7, backend=backend)
    _, state = layer(torch.randn(6, 3, 5))
    assert state.memory.written.shape == (1, 3, 6, 7)
    assert not state.memory.is_folded()
    assert layer.initial_state(3).memory.is_empty()
    wanted = torch.einsum(
        "lbnh,lbnk,lbn->lbhk", *[state.memory.written] * 2, state.memory.strengths
    )
    torch.testing.assert_close(state.memory.matrix(), wanted)
    layer.zero_grad()
    state.memory.matrix().sum().backward()
    assert layer.weight_ih_l0.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ["auto", "matrix", "attention", "numba"])
@pytest.mark.parametrize("piece", [1, 3, 40])
def test_a_state_stays_small_however_long_the_sequence(backend, piece):
    layer = FastWeightsRNN(3, 8, num_layers=2, backend=backend)
    count = 10_000 if (backend, piece) == ("auto", 1) else 200 if piece < 40 else 20
    pieces = torch.randn(count, piece, 2, 3)
    state = None
    with torch.no_grad():
        for x in pieces:
            state = layer(x, state)[1]
            numbers = sum(part.numel() for part in state.memory)
            # No more than a matrix, and what the last piece wrote.
            assert numbers <= 2 * 2 * (8 * 8 + 8 * (8 + piece) + 2 * piece + 20)


@pytest.mark.parametrize("backend", ["auto", "attention"])
@pytest.mark.parametrize("prefix", [0, 3], ids="after {} steps of the layer".format)
def test_single_steps_are_the_sequence_past_as_many_steps_as_units(backend, prefix):
    torch.manual_seed(0)
    layer = FastWeightsRNN(3, 4, num_layers=2, inner_steps=2, dtype=torch.float64, backend="matrix")
    x = torch.randn(11, 2, 3, dtype=torch.float64, requires_grad=True)
    whole, last = layer(x)
    wanted = torch.autograd.grad(whole.sum() + last.memory.matrix().sum(), [x, *layer.parameters()])
    layer.backend = backend
    outputs, state = ([], None) if prefix == 0 else ([layer(x[:prefix])[0]], layer(x[:prefix])[1])
    for step in x[prefix:]:
        output, state = layer(step.unsqueeze(0), state)
        outputs.append(output)
    stepped = torch.cat(outputs)
    torch.testing.assert_close(stepped, whole)
    torch.testing.assert_close(state.memory.matrix(), last.memory.matrix())
    found = torch.autograd.grad(
        stepped.sum() + state.memory.matrix().sum(), [x, *layer.parameters()]
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_cell_goes_on_from_what_its_state_says_now():
    cell = FastWeightsRNNCell(3, 5, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        state = cell(x[1], cell(x[0]))
        hidden, matrix = state.hidden.clone(), state.memory.matrix()
        state.hidden[0] = hidden[0] = 0
        cell.decay = 0.5  # of what follows, not of what was written
        found = cell(x[3], cell(x[2], state))
        cell.backend = "matrix"
        wanted = cell(x[3], cell(x[2], (hidden, matrix)))
    torch.testing.assert_close(tensors(found), tensors(wanted))


@pytest.mark.parametrize("backend", ["auto", "matrix", "attention", "numba"])
def test_states_of_a_cell_may_be_changed_in_place(backend):
    cell = FastWeightsRNNCell(3, 4, backend=backend)
    x, state = torch.randn(9, 2, 3), None
    for step in x:  # past as many steps as there are units
        state = cell(step, state)
        kept = state.hidden.detach().clone()
        state.hidden[0] = 0
    assert cell(x[0], state).memory.matrix().isfinite().all()
    state.hidden.sum().backward()
    assert cell.weight_ih.grad.isfinite().all() and kept[0].any()
    with torch.no_grad():
        state = cell(x[0])
        written = state.hidden.clone()
        state.hidden.zero_()
        wanted = cell.fast_lr * written.unsqueeze(-1) * written.unsqueeze(-2)
        torch.testing.assert_close(state.memory.matrix(), wanted)


def test_survives_copying_saving_and_pickling():
    layer = FastWeightsRNN(5, 7, nonlinearity="relu", decay=0.9, inner_steps=2)
    x = torch.randn(6, 3, 5)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    loaded = FastWeightsRNN(5, 7, nonlinearity="relu", decay=0.9, inner_steps=2)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(other(x)[0], layer(x)[0])
    _, state = layer(x)
    buffer = io.BytesIO()
    torch.save({"state": state.clone()}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)["state"]
    assert torch.equal(loaded.memory.matrix(), state.memory.matrix())
    detached = pickle.loads(pickle.dumps(state.detach()))
    assert torch.equal(detached.memory.matrix(), state.memory.matrix())
    assert eval(repr(layer), {"FastWeightsRNN": FastWeightsRNN}).decay == 0.9


@pytest.mark.parametrize("backend", ["matrix", "attention", "numba"])
def test_trains_under_bfloat16_autocast(backend):
    layer = FastWeightsRNN(5, 7, nonlinearity="relu", backend=backend)
    x = torch.randn(6, 3, 5)
    exact, _ = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = layer(x)
    output.float().sum().backward()
    assert {part.dtype for part in state.memory} == {torch.float32}
    torch.testing.assert_close(output.float(), exact, rtol=0.1, atol=0.1)
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_runs_in_other_dtypes(dtype):
    layer = FastWeightsRNN(5, 7, dtype=dtype)
    output, state = layer(torch.randn(6, 3, 5, dtype=dtype))
    assert {part.dtype for part in (output, state.hidden, *state.memory)} == {dtype}


def test_device_follows_the_parameters():
    layer = FastWeightsRNN(5, 7, 2, bidirectional=True, device="meta")
    output, state = layer(torch.randn(6, 3, 5, device="meta"))
    assert {part.device.type for part in (output, state.hidden, *state.memory)} == {"meta"}


@pytest.mark.parametrize("default", ["meta", "cpu"])
def test_a_device_that_is_named_is_taken_whatever_the_default(default):
    with torch.device(default):
        layer, cell = FastWeightsRNN(5, 7, device="cpu"), FastWeightsRNNCell(5, 7, device="cpu")
        layer.reset_parameters()
    assert {p.device.type for p in (*layer.parameters(), *cell.parameters())} == {"cpu"}


@pytest.mark.parametrize("layers", [1, 2])
def test_one_sequence_of_a_state_can_be_reset_in_place(layers):
    layer = FastWeightsRNN(5, 7, layers)
    with torch.no_grad():
        _, state = layer(torch.randn(6, 3, 5))
        wanted = state.memory.matrix().clone()
        wanted[:, 1] = 0
        for part in (state.hidden, *state.memory):
            part[:, 1] = 0
        torch.testing.assert_close(state.memory.matrix(), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("kind", [FastWeightsRNN, AssociativeLSTM])
def test_a_layer_that_was_converted_since_does_not_go_back(kind, dtype):
    layer = kind(5, 8)
    loss = layer(torch.randn(6, 3, 5))[0].sum()
    layer.to(dtype)
    with pytest.raises(RuntimeError, match="same dtype"):
        loss.backward()


def test_the_gradients_of_both_biases_may_be_changed_in_place():
    layer, cell, x = FastWeightsRNN(5, 7), FastWeightsRNNCell(5, 7), torch.randn(6, 3, 5)
    for output, biases in (
        (layer(x)[0], (layer.bias_ih_l0, layer.bias_hh_l0)),
        (cell(x[0]).hidden, (cell.bias_ih, cell.bias_hh)),
    ):
        one, other = torch.autograd.grad(output.sum(), biases)
        assert torch.equal(one, other)
        one.zero_()
        assert other.abs().max() > 0


def test_a_gradient_that_is_yet_to_be_negated_is():
    layer, x = FastWeightsRNN(5, 7), torch.randn(6, 3, 5, requires_grad=True)
    grad = torch.randn(6, 3, 7)
    one, other = (torch.autograd.grad(layer(x)[0], x, g)[0] for g in (torch._neg_view(grad), -grad))
    assert torch.equal(one, other)


def test_constants_may_be_numbers_of_other_libraries():
    settings = {"decay": Fraction(9, 10), "fast_lr": np.float32(0.5), "inner_steps": np.int64(2)}
    made, x = FastWeightsRNN(3, 4, backend="matrix", **settings), torch.randn(3, 2, 3)
    torch.testing.assert_close(
        torch.compile(made, backend="eager", fullgraph=True)(x)[0], made(x)[0]
    )


def test_what_happens_to_a_state_happens_to_no_other():
    layer = FastWeightsRNN(5, 7)
    x = torch.randn(6, 3, 5)
    with torch.no_grad():
        wanted = layer(x)[1].memory.matrix()
        for one in (0, slice(0, 1)):
            forgotten = layer(x)[1].index_batch(one)
            forgotten.map(lambda part: part.fill_(9))
        torch.testing.assert_close(layer(x)[1].memory.matrix(), wanted)


def test_dropout_acts_between_layers_while_training():
    layer = FastWeightsRNN(5, 7, 2, dropout=0.5)
    x = torch.randn(6, 3, 5)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])
    with pytest.warns(UserWarning, match="num_layers=1"):
        FastWeightsRNN(5, 7, dropout=0.5)


def test_starts_as_the_paper_says():
    layer = FastWeightsRNN(300, 400, read_gain="fixed")
    torch.testing.assert_close(layer.weight_hh_l0.detach(), 0.05 * torch.eye(400))
    for parameter in (layer.weight_ih_l0, layer.bias_ih_l0):
        assert 0.9 / 20 < parameter.abs().max() <= 1 / 20
    assert (layer.norm_weight_l0 == 1).all()
    assert (layer.norm_bias_l0 == 0).all()


def test_starts_with_the_inputs_as_they_came_and_without_the_memory():
    layer = FastWeightsRNN(300, 400)
    torch.testing.assert_close(layer.weight_hh_l0.detach(), 0.05 * torch.eye(400))
    seen = layer.weight_ih_l0 @ torch.randn(300, 100)
    assert 0.9 < seen.std() < 1.1
    assert not layer.read_weight_l0.any()


@pytest.mark.parametrize("module", [FastWeightsRNN, FastWeightsRNNCell])
@pytest.mark.parametrize(("settings", "message"), [
    ({"decay": 1.5}, r"decay .* \[0, 1\], got 1.5"),
    ({"decay": float("nan")}, r"decay .* got nan"),
    ({"decay": -0.1}, r"decay .* got -0.1"),
    ({"fast_lr": float("inf")}, "fast_lr .* finite .* got inf"),
    ({"inner_steps": -1}, "inner_steps .* 0 or more, got -1"),
    ({"inner_steps": 1.5}, "inner_steps .* integer .* got 1.5"),
    ({"inner_steps": 1.0}, "inner_steps .* integer .* got 1.0"),
    ({"decay": None}, "decay must be a plain number, got None"),
    ({"decay": nn.Parameter(torch.ones(()))}, "decay must be a plain number"),
    ({"backend": "magic"}, "backend .* 'matrix', .*, got 'magic'"),
    ({"boundary": "open"}, "boundary .* 'identity', got 'open'"),
    ({"nonlinearity": "gelu"}, "nonlinearity .* 'relu', got 'gelu'"),
    ({"inner_start": "previous", "inner_steps": 0}, "inner_start='previous' needs"),
], ids=str)  # fmt: skip
def test_bad_arguments_say_what_is_wrong(module, settings, message):
    with pytest.raises(ValueError, match=message):
        module(3, 4, **settings)


def test_bad_arguments_of_nn_rnn_say_what_is_wrong():
    for settings in ({"num_layers": 0}, {"dropout": 1.5, "num_layers": 2}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} must"):
            FastWeightsRNN(3, 4, **settings)
    with pytest.raises(ValueError, match="hidden_size must be an integer of 1 or more, got 0"):
        FastWeightsRNN(3, 0)


def test_constants_are_checked_where_they_are_set():
    layer = FastWeightsRNN(3, 4)
    with pytest.raises(ValueError, match="got 2.0"):
        layer.decay = 2.0
    assert layer.decay == 0.95
    layer.inner_steps = 3
    assert layer.rule == Rule(inner_steps=3)
    layer.rule = Rule(inner_start="previous", decay=0.5)
    assert (layer.decay, layer.inner_steps) == (0.5, 1)
    with pytest.raises(ValueError, match="needs inner_steps"):
        layer.inner_steps = 0
    with pytest.raises(ValueError, match="backend .* got 'magic'"):
        layer.backend = "magic"
    with pytest.raises(TypeError, match="rule must be a Rule, got dict"):
        layer.rule = {}


@pytest.mark.parametrize("name", [
    "input_size", "hidden_size", "bias", "layer_norm", "read_gain", "num_layers", "bidirectional",
])  # fmt: skip
def test_what_parameters_were_made_by_cannot_be_changed(name):
    layer = FastWeightsRNN(3, 4)
    with pytest.raises(AttributeError, match=f"{name} of a FastWeightsRNN cannot be changed later"):
        setattr(layer, name, 7)
    assert getattr(layer, name) != 7


@pytest.mark.parametrize(("shape", "state", "message"), [
    ((6, 3, 4), None, "input_size = 5, got shape"),
    ((6,), None, "got 1 of shape"),
    ((1, 6, 3, 5), None, "got 4 of shape"),
    ((0, 3, 5), None, "1 step or more"),
    ((6, 3, 5), (1, 2, 7), r"hidden has shape \(1, 3, 7\), got \(1, 2, 7\)"),
    ((6, 5), (1, 1, 7), r"hidden has shape \(1, 7\), got \(1, 1, 7\)"),
], ids=str)  # fmt: skip
def test_bad_shapes_say_what_is_wrong(shape, state, message):
    layer = FastWeightsRNN(5, 7)
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(shape), None if state is None else torch.zeros(state))


def test_an_input_that_is_no_tensor_says_what_it_is():
    layer, cell = FastWeightsRNN(3, 5), FastWeightsRNNCell(3, 5)
    packed = pack_sequence([torch.randn(2, 3)])
    for module, given in ((layer, None), (layer, [[1.0]]), (cell, packed)):
        name = type(given).__name__
        with pytest.raises(TypeError, match=f"takes an input as a tensor, got {name}"):
            module(given)
    with pytest.raises(ValueError, match="dropout must be a probability"):
        FastWeightsRNN(3, 5, 2, dropout=True)


def test_bad_state_says_what_is_wrong():
    with pytest.raises(ValueError, match="takes a FastWeightsState.* got tuple"):
        FastWeightsRNN(5, 7)(torch.zeros(6, 3, 5), (1, 2, 3))


def test_bad_memory_says_what_is_wrong():
    layer = FastWeightsRNN(5, 7)
    state = layer.initial_state(3)
    wrong = state._replace(memory=state.memory._replace(fade=torch.ones(1, 2)))
    with pytest.raises(ValueError, match=r"memory whose fade has shape \(1, 3\), got \(1, 2\)"):
        layer(torch.zeros(6, 3, 5), wrong)
    with pytest.raises(ValueError, match="takes a FastWeightsState.* got FastWeightsState"):
        layer(torch.zeros(6, 3, 5), FastWeightsState(state.hidden, lambda: None))


def test_cell_takes_what_rnn_cell_takes():
    cell = FastWeightsRNNCell(5, 7)
    state = cell(torch.randn(3, 5))
    assert state.hidden.shape == (3, 7)
    assert state.memory.matrix().shape == (3, 7, 7)
    alone = cell(torch.randn(5))
    assert alone.hidden.shape == (7,)
    assert cell(torch.randn(5), alone).memory.matrix().shape == (7, 7)
    assert cell(torch.randn(3, 5), torch.randn(3, 7)).hidden.shape == (3, 7)
    assert cell.initial_state(3).memory.matrix().shape == (3, 7, 7)
    with pytest.raises(ValueError, match="input_size = 5"):
        cell(torch.randn(3, 4))
