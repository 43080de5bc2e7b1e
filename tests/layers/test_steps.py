"""The fused single step against the reference, and what it must notice or leave to others."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

from fwrnn import FastMemory, FastWeightsRNN, FastWeightsRNNCell, FastWeightsState
from fwrnn.layers.kernels import cpu, steps, trial
from tests.layers.layouts import saved_as, spaced

EXACT = {torch.float64: 1e-9, torch.float32: 2e-3}
SETTINGS = [
    {}, {"nonlinearity": "relu", "inner_steps": 3}, {"inner_steps": 0}, {"layer_norm": False},
    {"boundary": "identity", "inner_steps": 2}, {"inner_start": "previous", "inner_steps": 2},
    {"read_gain": "layer", "bias": False}, {"read_gain": "fixed", "decay": 0.0},
    {"read_gain": "fixed", "layer_norm": False, "inner_start": "previous"},
]  # fmt: skip


def cell_of(inputs, units, **settings) -> FastWeightsRNNCell:
    torch.manual_seed(0)
    made = FastWeightsRNNCell(inputs, units, dtype=torch.float64, backend="matrix", **settings)
    for parameter in made.parameters():
        nn.init.normal_(parameter, 0, 0.3 if made.layer_norm else 0.3 / (units + inputs))
    return made


def fused(exact: FastWeightsRNNCell) -> FastWeightsRNNCell:
    made = deepcopy(exact)
    made.backend = "auto"
    return made


def state_of(batch, units) -> FastWeightsState:
    """A memory of a matrix and three written states."""
    random = partial(torch.randn, dtype=torch.float64)
    strengths, fade = random(batch, 3).abs(), random(batch).abs()
    matrix = random(batch, units, units) / units
    return FastWeightsState(
        random(batch, units), FastMemory(random(batch, 3, units) / 3, strengths, matrix, fade)
    )


def results(cell, x, state=None) -> list[torch.Tensor]:
    """States, the last memory, and all gradients, of as many steps as x has."""
    x = x.clone().requires_grad_()
    given = []
    if state is not None:
        hidden, (written, strengths, folded, fade) = state
        given = [part.clone().requires_grad_() for part in (hidden, written, folded)]
        state = FastWeightsState(given[0], FastMemory(given[1], strengths, given[2], fade))
    hiddens, alone = [], state
    for step in x:
        state = cell(step, state)
        hiddens.append(state.hidden)
        with torch.no_grad():  # where nothing is saved
            alone = cell(step, alone)
    torch.testing.assert_close(alone.hidden, state.hidden, rtol=0, atol=0)
    memory = state.memory.matrix()
    loss = sum(hidden.sin().sum() for hidden in hiddens) + memory.cos().mean()
    wanted = [x, *given, *cell.parameters()]
    return [*hiddens, memory, *torch.autograd.grad(loss, wanted, allow_unused=True)]


def assert_same(found, wanted, tolerance):
    for one, other in zip(found, wanted, strict=True):
        zero = torch.zeros(())  # no gradient, as good as one of 0
        one, other = (zero if part is None else part.double() for part in (one, other))
        torch.testing.assert_close(one, other.expand_as(one), rtol=tolerance, atol=tolerance)


def is_fused(cell, *arguments) -> bool:
    return "_StepBackward" in str(cell(*arguments).hidden.grad_fn)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(
    ("batch", "inputs", "units"), [(1, 1, 1), (3, 5, 6), (1, 37, 33), (2, 32, 64), (5, 70, 19)]
)
def test_steps_are_those_of_the_reference(dtype, settings, batch, inputs, units):
    exact = cell_of(inputs, units, **settings)
    cell = fused(exact).to(dtype)
    x = torch.randn(min(units + 3, 10), batch, inputs, dtype=torch.float64)  # until it is folded
    for state in (None, state_of(batch, units)):
        wanted = results(exact, x, state)
        found = results(cell, x.to(dtype), state and state.to(dtype))
        assert_same(found, wanted, EXACT[dtype])
    assert is_fused(cell, x[0].to(dtype))


# By one thread or some, with C x + W h in the loops and outside of them.
@pytest.mark.parametrize("sizes", [(40, 40, 50), (70, 40, 50), (3, 300, 200)], ids=str)
def test_many_sequences_and_large_weights(sizes):
    batch, inputs, units = sizes
    exact = cell_of(inputs, units)
    cell = fused(exact)
    x, state = torch.randn(3, batch, inputs, dtype=torch.float64), state_of(batch, units)
    wanted = results(exact, x, state)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert_same(results(cell, x, state), wanted, 1e-9)
    assert is_fused(cell, x[0])


def test_single_steps_of_a_layer_are_fused_too():
    layer = FastWeightsRNN(5, 7, num_layers=2, bidirectional=True)
    x = torch.randn(1, 3, 5)
    assert layer.form(x) == "numba"
    output, state = layer(x)
    layer.backend = "matrix"
    wanted, last = layer(x)
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(state.memory.matrix(), last.memory.matrix())
    assert output.data_ptr() != state.hidden.data_ptr()


def test_it_takes_the_weights_as_they_are_now():
    exact, x = cell_of(4, 6), torch.randn(2, 4, dtype=torch.float64)
    cell = fused(exact)
    state = cell(x)
    for change in (
        lambda made: made.weight_ih.data.mul_(2),
        lambda made: setattr(made, "weight_hh", nn.Parameter(torch.eye(6).double())),
        lambda made: setattr(made.bias_ih, "data", torch.ones(6).double()),
        lambda made: setattr(made.weight_ih, "data", torch.ones(4, 6).double().t()),
        lambda made: setattr(made, "rule", type(made.rule)(0.3, 0.7, 2)),
        lambda made: made.requires_grad_(False),
        lambda made: setattr(made.norm_bias, "data", torch.ones(12).double()[::2]),
    ):
        change(exact), change(cell)
        found, wanted = cell(x, state), exact(x, state)
        torch.testing.assert_close(found.hidden, wanted.hidden)
        torch.testing.assert_close(found.memory.matrix(), wanted.memory.matrix())
    cell.weight_ih.data = torch.ones(5, 4).double()
    with pytest.raises(RuntimeError):
        cell(x, state)
    cell.weight_ih.data = torch.ones(6, 4).float()
    with pytest.raises(ValueError, match="float32, got an input in torch.float64"):
        cell(x, state)


def test_weights_may_move_before_the_gradients_are_asked_for():
    cell, x = fused(cell_of(4, 6)), torch.randn(2, 4, dtype=torch.float64)
    wanted = torch.autograd.grad(cell(x).hidden.sum(), list(cell.parameters()))
    hidden = cell(x).hidden
    for parameter in cell.parameters():
        parameter.data = parameter.data.clone()
    found = torch.autograd.grad(hidden.sum(), list(cell.parameters()))
    assert_same(found, wanted, 1e-9)


def test_what_is_saved_may_come_back_in_another_layout():
    cell, x, state = fused(cell_of(5, 7)), torch.randn(3, 2, 5).double(), state_of(2, 7)
    wanted = results(cell, x, state)
    with saved_as(spaced):
        torch.testing.assert_close(results(cell, x, state), wanted)


def test_a_state_of_another_batch_or_kind_is_refused():
    cell, x = FastWeightsRNNCell(4, 6), torch.randn(2, 4)
    state = cell(x)
    hidden, memory = state
    for wrong in (
        cell(torch.randn(3, 4)),
        state.to(torch.float64),
        state.to("meta"),
        FastWeightsState(hidden, memory._replace(written=memory.written.repeat(1, 2, 1))),
        FastWeightsState(hidden, memory._replace(fade=memory.fade[:1])),
        FastWeightsState(hidden[:, :5], memory),
    ):
        with pytest.raises(ValueError, match="FastWeightsRNNCell"):
            cell(x, wrong)
    with pytest.raises(ValueError, match="input_size"):
        cell(torch.randn(2, 5), state)
    with pytest.raises(ValueError, match="float64"):
        cell(x.double(), state)


def test_buffers_are_on_the_cpu_whatever_the_default_device():
    cell, x = FastWeightsRNNCell(9, 11), torch.randn(2, 9)
    wanted = cell(x, cell(x))
    with torch.device("meta"):
        found = cell(x, cell(x))
    torch.testing.assert_close(found.hidden, wanted.hidden)
    found.hidden.sum().backward()
    assert cell.weight_ih.grad.isfinite().all()


def test_views_and_parts_of_larger_tensors():
    exact = cell_of(4, 6)
    cell, x = fused(exact), torch.randn(4, 3, 2, dtype=torch.float64)
    state = state_of(4, 6).index_batch(slice(None, None, 2))
    state = state._replace(hidden=torch.randn(6, 2, dtype=torch.float64).t())
    found, wanted = cell(x[:, 1].t(), state), exact(x[:, 1].t(), state)
    torch.testing.assert_close(found.hidden, wanted.hidden)
    torch.testing.assert_close(found.memory.matrix(), wanted.memory.matrix())
    assert is_fused(cell, x[:, 1].t(), state)


@pytest.mark.filterwarnings("ignore:Converting a tensor", "ignore:.*is deprecated")
def test_what_others_look_at_is_left_to_them():
    cell, x = fused(cell_of(3, 5)), torch.randn(4, 2, 3, dtype=torch.float64)
    wanted = cell(x[0]).hidden
    torch.testing.assert_close(torch.vmap(lambda x: cell(x).hidden)(x)[0], wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_fused(cell, x[0])
    parametrised = deepcopy(cell)
    parametrize.register_parametrization(parametrised, "weight_hh", nn.Tanh())
    assert not is_fused(parametrised, x[0], cell(x[0]))
    cell.requires_grad_(False)  # so that nothing but the loops could miss what follows
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x[0], torch.ones_like(x[0]))
        assert forward_ad.unpack_dual(cell(dual).hidden).tangent is not None
    traced = torch.jit.trace(cell, x[0], check_trace=False)
    torch.testing.assert_close(traced(x[1])[0], cell(x[1]).hidden)


def test_gradients_of_gradients_and_in_batches():
    cell = fused(cell_of(2, 3, inner_steps=2))
    x, hidden, matrix = (
        torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2,), (3,), (3, 3))
    )

    def run(x, hidden, matrix):
        state = cell(x, cell(x, (hidden, matrix)))
        return state.hidden, state.memory.folded

    assert torch.autograd.gradcheck(run, (x, hidden, matrix), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, (x, hidden, matrix))


def test_strengths_that_are_learned_have_gradients():
    cell, state = fused(cell_of(3, 5)), state_of(2, 5)
    strengths = state.memory.strengths.requires_grad_()
    cell(torch.randn(2, 3, dtype=torch.float64), state).hidden.sum().backward()
    assert strengths.grad.any()


def test_a_given_matrix_is_not_in_the_next_memory():
    cell, state = FastWeightsRNNCell(3, 5), state_of(2, 5).to(torch.float32)
    with torch.no_grad():
        found = cell(torch.randn(2, 3), state)
        wanted = found.memory.matrix()
        for part in state.memory:
            part.zero_()
        torch.testing.assert_close(found.memory.matrix(), wanted)


def test_the_gradients_of_many_sequences_are_summed_when_all_are_there():
    torch.set_num_threads(2)
    exact = FastWeightsRNNCell(40, 48, dtype=torch.float64, backend="matrix")
    made = deepcopy(exact)
    made.backend = "auto"
    x, state = torch.randn(5, 60, 40, dtype=torch.float64), None
    with torch.no_grad():
        for step in x[1:]:
            state = exact(step, state)
    assert is_fused(made, x[0], state)
    exact(x[0], state).hidden.sin().sum().backward()
    for _ in range(20):
        made.zero_grad()
        made(x[0], state).hidden.sin().sum().backward()
        for one, other in zip(made.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)


def test_loops_that_are_right_pass_their_trial(untried, recwarn):
    for dtype in EXACT:
        assert is_fused(FastWeightsRNNCell(3, 5, dtype=dtype), torch.randn(2, 3, dtype=dtype))
    assert len(trial._passed) == 2 and not recwarn.list


@pytest.mark.parametrize("part", ["_forward", "_backward"])
def test_loops_that_do_not_work_are_left_alone_and_said_so_once(untried, monkeypatch, part):
    right = getattr(steps, part)

    def wrong(*arguments):
        first, *others = right(*arguments)
        return first * 1.01, *others

    monkeypatch.setattr(steps, part, wrong)
    cell, x = FastWeightsRNNCell(3, 5), torch.randn(2, 3)
    with pytest.warns(UserWarning, match="'single step' does not work on this CPU") as caught:
        found = cell(x, cell(x)).hidden
    cell.backend = "attention"
    assert torch.equal(found, cell(x, cell(x)).hidden) and len(caught) == 1


def test_without_numba_the_cell_works(untried, monkeypatch):
    cell, x = FastWeightsRNNCell(3, 5), torch.randn(2, 3)
    monkeypatch.setattr(cpu, "is_installed", lambda: False)
    assert not is_fused(cell, x)


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "norm_weight"])
def test_parameters_that_have_other_numbers_by_then_are_not_taken_for_what_they_were(
    monkeypatch, name
):
    cell = FastWeightsRNNCell(5, 7)
    hidden, _ = cell(torch.randn(3, 5))
    monkeypatch.setattr(steps, "_backward", lambda *all: pytest.fail("by the loops"))
    parameter = getattr(cell, name)
    parameter.data = parameter.data[:2]  # at the same address
    with pytest.raises(RuntimeError):
        hidden.sum().backward()


def test_a_cell_of_another_size_by_then_is_not_what_the_loops_saved(monkeypatch):
    cell, larger = FastWeightsRNNCell(5, 7), FastWeightsRNNCell(5, 70)
    hidden, _ = cell(torch.randn(3, 5))
    monkeypatch.setattr(steps, "_backward", lambda *all: pytest.fail("by the loops"))
    for parameter, other in zip(cell.parameters(), larger.parameters(), strict=True):
        parameter.data = other.data
    with pytest.raises(RuntimeError):
        hidden.sum().backward()


@pytest.mark.parametrize("missing", ["weight_ih", "weight_hh"])
def test_a_step_without_weights_is_left_to_pytorch(missing):
    cell = FastWeightsRNNCell(5, 7)
    setattr(cell, missing, None)
    with pytest.raises((AttributeError, TypeError)):
        cell(torch.randn(3, 5))
