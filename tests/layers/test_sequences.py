"""Whole sequences in one pass on the CPU, with the products before and after the recurrence."""

import warnings
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from fwrnn import FastWeightsRNN
from fwrnn.layers import fast_weights
from fwrnn.layers.kernels import cpu, operators, sequences
from fwrnn.layers.kernels.sequences import Sequences
from fwrnn.rule import Rule
from tests.layers.test_fast_weights import clone, layer

pytestmark = pytest.mark.filterwarnings("error:the fused kernel")
DTYPES = [torch.float32, torch.float64]
# T, B, I, H: along the units and across a register, few rows and many, tasks for some threads.
SIZES = [
    (1, 1, 1, 1), (5, 2, 3, 4), (7, 37, 33, 31), (65, 1, 7, 64), (3, 131, 64, 5), (20, 20, 100, 33),
    (2, 3, 40, 300),
]  # fmt: skip


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def problem(steps, batch, inputs, units, dtype, missing=()):
    """A pass, and the gradient of its states."""
    shapes = Sequences(
        (steps, batch, inputs), (batch, units), (batch, units, units), (units, inputs),
        (units, units), *((units,),) * 5,
    )  # fmt: skip
    scales = Sequences(1, 1, 0.05, inputs**-0.5, units**-0.5, 1, 1, 1, 1, 0.1)
    parts = [
        None if name in missing else (scale * torch.randn(shape, dtype=dtype)).requires_grad_()
        for name, shape, scale in zip(Sequences._fields, shapes, scales, strict=True)
    ]
    return Sequences(*parts), torch.randn(steps, batch, units, dtype=dtype)


def outcome(parts, grad, compute):
    """The states, and the gradients of all there is."""
    states = compute(parts)
    leaves = [x for x in parts if x is not None]
    return [states, *torch.autograd.grad(states, leaves, grad, allow_unused=True)]


def by_loops(parts, rule, scale=2.0, lengths=None):
    found = sequences.run(parts, rule, scale, lengths, True)
    assert found is not None
    return found[0]


def exactly(parts, grad, rule, scale=2.0, lengths=None):
    parts = Sequences(*(x if x is None else x.detach().double().requires_grad_() for x in parts))

    def compute(parts):
        return sequences._eager(rule, scale, lengths, *parts)[0]

    return outcome(parts, grad.double(), compute)


def assert_close(found, wanted, dtype):
    tolerance = 2e-4 if dtype == torch.float32 else 1e-10
    for one, other in zip(found, wanted, strict=True):
        one, other = (torch.zeros(()) if x is None else x.double() for x in (one, other))
        largest = other.abs().max().clamp(min=1e-3)
        assert ((one - other).abs().max() / largest).item() < tolerance


def check(sizes, dtype, missing):
    parts, grad = problem(*sizes, dtype, missing)
    rule = Rule(0.9, 0.1)
    found = outcome(parts, grad, partial(by_loops, rule=rule))
    assert_close(found, exactly(parts, grad, rule), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_pass_is_right_at_odd_sizes(threads, dtype, sizes):
    check(sizes, dtype, ())


@pytest.mark.parametrize("sizes", [(5, 2, 3, 4), (3, 131, 64, 5)], ids=str)
@pytest.mark.parametrize("missing", [
    ("hidden", "memory"), ("bias_ih", "bias_hh", "memory"), ("norm_weight", "norm_bias"),
    ("read_gain", "hidden", "memory"), ("bias_hh",), ("bias_ih",),
], ids=str)  # fmt: skip
def test_a_pass_does_without_what_is_missing(sizes, missing):
    check(sizes, torch.float64, missing)


@pytest.mark.parametrize("batch", [2, 40])
@pytest.mark.parametrize("steps", [1, 6, 130])
def test_what_is_left_of_each_state(steps, batch):
    parts, _ = problem(steps, batch, 3, 6, torch.float64, ("hidden", "memory"))
    states, last, memory = sequences.run(parts, Rule(0.9, 0.1), 1.0, None, True)
    assert torch.equal(last, states[-1:]) and torch.equal(memory.written[0].transpose(0, 1), states)
    ages = torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(memory.strengths, (0.1 * 0.9**ages).expand(1, batch, steps))
    torch.testing.assert_close(memory.fade, torch.full_like(memory.fade, 0.9**steps))
    assert memory.folded.shape == (1, batch, 0, 0)


def test_no_sequence_begins_before_its_drive_is_made():
    torch.set_num_threads(2)  # one of which takes two of three tiles, that take long
    sizes, missing = (1, 3 * cpu.lanes_of(torch.float32), 20_000, 2), ("norm_weight", "norm_bias")
    parts, grad = problem(*sizes, torch.float32, missing)
    for _ in range(5):
        found = outcome(parts, grad, partial(by_loops, rule=Rule()))
        assert_close(found, exactly(parts, grad, Rule()), torch.float32)


@pytest.mark.parametrize("batch", [2, 40])
@pytest.mark.parametrize("inner_steps", [0, 2])
def test_a_pass_stops_where_sequences_do(batch, inner_steps):
    parts, grad = problem(9, batch, 5, 7, torch.float64)
    rule, lengths = Rule(0.9, 0.1, inner_steps), 1 + torch.arange(batch) % 9
    found = outcome(parts, grad, partial(by_loops, rule=rule, lengths=lengths))
    assert_close(found, exactly(parts, grad, rule, lengths=lengths), torch.float64)


def test_one_gain_for_all_units_is_scaled_and_summed():
    parts, grad = problem(5, 30, 4, 9, torch.float64)
    parts = parts._replace(read_gain=torch.randn(1, dtype=torch.float64, requires_grad=True))
    found = outcome(parts, grad, partial(by_loops, rule=Rule(0.9, 0.1), scale=3.0))
    assert_close(found, exactly(parts, grad, Rule(0.9, 0.1), 3.0), torch.float64)


def test_what_comes_out_does_not_depend_on_threads():
    parts, grad = problem(9, 67, 33, 20, torch.float32)
    wanted = outcome(parts, grad, partial(by_loops, rule=Rule()))
    torch.set_num_threads(3)  # of which there was one
    again = outcome(parts, grad, partial(by_loops, rule=Rule()))
    assert all(torch.equal(one, other) for one, other in zip(wanted, again, strict=True))


def test_what_is_saved_by_other_threads_goes_back_all_the_same():
    parts, grad = problem(9, 20, 5, 7, torch.float64)  # along the units by two threads, not by one
    wanted = exactly(parts, grad, Rule())

    def compute(parts):
        states = checkpoint(
            lambda *x: by_loops(Sequences(*x), Rule()), *parts,
            use_reentrant=False, determinism_check="none",
        )  # fmt: skip
        torch.set_num_threads(4)
        return states

    assert_close(outcome(parts, grad, compute), wanted, torch.float64)


@pytest.mark.parametrize("name, shape", [
    ("input", (4, 3)), ("hidden", (3, 7)), ("memory", (2, 7, 8)), ("weight_ih", (7, 4)),
    ("weight_hh", (7, 6)), ("bias_ih", (8,)), ("norm_bias", (6,)), ("read_gain", (2,)),
    ("bias_hh", (7, 1)), ("input", (0, 2, 5)), ("input", (4, 0, 5)),
])  # fmt: skip
def test_shapes_that_do_not_go_together_are_left_to_pytorch(name, shape):
    parts, _ = problem(4, 2, 5, 7, torch.float32)
    assert sequences.run(parts, Rule(), 1.0, None, False)
    wrong = parts._replace(**{name: torch.randn(shape)})
    assert sequences.run(wrong, Rule(), 1.0, None, False) is None


@pytest.mark.parametrize("missing", ["norm_weight", "norm_bias"])
def test_half_a_normalisation_is_none(missing):
    parts, _ = problem(4, 2, 5, 7, torch.float32, (missing,))
    assert sequences.run(parts, Rule(), 1.0, None, False) is None


@pytest.mark.parametrize("missing", ["weight_ih", "weight_hh"])
def test_a_pass_without_weights_is_none(missing):
    parts, _ = problem(4, 2, 5, 7, torch.float32, (missing,))
    assert sequences.run(parts, Rule(), 1.0, None, False) is None


def test_a_layer_passes_at_once_where_it_can(monkeypatch):
    monkeypatch.setattr(fast_weights.kernels, "recurrence", lambda *a: pytest.fail("the long way"))
    made, x = FastWeightsRNN(5, 7, 2, bidirectional=True), torch.randn(6, 3, 5)
    made(x)
    made(x, made(x)[1].hidden)
    made(torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:3, 1]]))
    with torch.no_grad():
        made(x.transpose(0, 1).contiguous().transpose(0, 1))


def test_a_layer_with_other_parameters_passes_by_the_kernels_too(monkeypatch):
    made, x = FastWeightsRNN(5, 7), torch.randn(16, 40, 5)
    wanted = made(x)[0]
    torch.nn.init.zeros_(made.bias_hh_l0)
    wanted = made(x)[0]
    parametrize.register_parametrization(made, "weight_ih_l0", torch.nn.Identity())
    monkeypatch.setattr(operators, "recurrence", lambda *a: pytest.fail("the long way"))
    assert torch.equal(made(x)[0], wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_products_pass_their_trial(dtype):
    assert sequences._fault(dtype) is None


@pytest.mark.parametrize("which", ["_forward", "_backward"])
def test_wrong_products_are_left_alone_and_said_so_once(monkeypatch, untried, which):
    right = getattr(sequences, which)

    def wrong(call, *others):
        found = list(right(call, *others))
        place = 0 if which == "_forward" else Sequences._fields.index("weight_ih")
        if call.plan.merges:
            found[place] = 1.01 * found[place]
        return found

    monkeypatch.setattr(sequences, which, wrong)
    made = layer(5, 7, dtype=torch.float32)
    exact = clone(made, backend="matrix")
    x = torch.randn(16, 40, 5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            made.zero_grad()
            output, _ = made(x)
            output.sum().backward()
    (warning,) = caught
    assert "'products' does not work on this CPU" in str(warning.message)
    assert "PyTorch's own" in str(warning.message)
    torch.testing.assert_close(output, exact(x)[0], rtol=1e-4, atol=1e-4)
    exact(x)[0].sum().backward()
    for one, other in zip(made.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)


SETTINGS = [
    {},
    {"bias": False, "layer_norm": False, "nonlinearity": "tanh"},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "read_gain": "fixed"},
    {"read_gain": "layer", "inner_steps": 2, "nonlinearity": "tanh"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_layer_of_many_rows_is_the_matrix_form(settings):
    made = layer(5, 7, **settings)
    exact = clone(made, backend="matrix")
    x = torch.randn(16, 40, 5, dtype=torch.float64)
    outcomes = []
    for each in (made, exact):
        given = x.clone().requires_grad_()
        output, state = each(given)
        (
            output.sin().sum() + state.hidden.cos().sum() + state.memory.matrix().sin().sum()
        ).backward()
        outcomes.append([output, given.grad, *(p.grad for p in each.parameters())])
    for found, wanted in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_its_gradients_can_be_checked_and_differentiated():
    made = layer(3, 4)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)

    def outputs(x, *weights):
        names = [name for name, _ in made.named_parameters()]
        return torch.func.functional_call(made, dict(zip(names, weights, strict=True)), (x,))[0]

    weights = [p.detach().clone().requires_grad_() for p in made.parameters()]
    assert gradcheck(outputs, (x, *weights))
    assert gradgradcheck(outputs, (x, *weights))


@pytest.mark.parametrize("name, shape", [
    ("weight_ih_l0", (9, 5)), ("weight_ih_l0", (7, 4)), ("bias_ih_l0", (3,)),
    ("weight_hh_l0", (6, 7)), ("weight_hh_l0", (9, 9)), ("norm_bias_l0", (5,)),
])  # fmt: skip
@pytest.mark.parametrize("batch", [2, 40])
def test_weights_of_another_size_are_refused(name, shape, batch):
    made, x = FastWeightsRNN(5, 7), torch.randn(16, batch, 5)
    with pytest.raises((RuntimeError, ValueError)):
        torch.func.functional_call(made, {name: torch.randn(shape)}, (x,))


def test_what_has_no_address_is_left_to_pytorch():
    made, x = FastWeightsRNN(5, 7), torch.randn(16, 40, 5)
    for name, shape in (("weight_ih_l0", (7, 5)), ("bias_ih_l0", (7,)), ("weight_hh_l0", (7, 7))):
        with pytest.raises((RuntimeError, ValueError), match="cpu.*meta|meta.*cpu"):
            torch.func.functional_call(made, {name: torch.empty(shape, device="meta")}, (x,))
        negated = torch.randn(shape, dtype=torch.complex64).conj().imag
        assert negated.is_neg()
        lazily = torch.func.functional_call(made, {name: negated}, (x,))[0]
        really = torch.func.functional_call(made, {name: negated.resolve_neg()}, (x,))[0]
        torch.testing.assert_close(lazily, really)


def test_fake_tensors_stay_fake_and_meta_ones_can_be_compiled():
    made, x = FastWeightsRNN(5, 7), torch.randn(16, 40, 5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(made(x)[0], FakeTensor)
    compiled = torch.compile(made.to("meta"), backend="eager")
    assert compiled(x.to("meta"))[0].shape == (16, 40, 7)


def test_checkpoints_are_unpacked_once_and_go_back_by_the_loops(monkeypatch):
    monkeypatch.setattr(operators, "pulled_back", lambda *all: pytest.fail("by PyTorch's"))
    made, x = FastWeightsRNN(5, 7), torch.randn(16, 40, 5, requires_grad=True)
    checkpoint(lambda x: made(x)[0], x, use_reentrant=False).sum().backward()
    found, x.grad = x.grad, None
    made(x)[0].sum().backward()
    assert torch.equal(found, x.grad)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "norm_weight_l0"])
def test_parameters_that_have_other_numbers_by_then_are_not_taken_for_what_they_were(
    monkeypatch, name
):
    made = FastWeightsRNN(5, 7)
    output, _ = made(torch.randn(6, 3, 5))
    monkeypatch.setattr(sequences, "_backward", lambda *all: pytest.fail("by the loops"))
    parameter = getattr(made, name)
    parameter.data = parameter.data[:2]  # at the same address
    with pytest.raises(RuntimeError):
        output.sum().backward()


def test_what_is_saved_in_another_precision_goes_back_in_it():
    made, x = FastWeightsRNN(5, 7), torch.randn(6, 3, 5)
    wanted = torch.autograd.grad(made(x)[0].sin().sum(), list(made.parameters()))
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.double, torch.Tensor.float):
        usual = made(x)[0]
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.double, lambda x: x):
        double = made(x)[0]
    for output in (usual, double):
        found = torch.autograd.grad(output.sin().sum(), list(made.parameters()))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_many_rows_are_summed_without_losing_digits():
    parts, _ = problem(1, 50_000, 5, 4, torch.float32, ("hidden", "memory", "read_gain"))
    parts = parts._replace(input=(1 + torch.randn(1, 50_000, 5)).requires_grad_())
    grad = 1 + torch.randn(1, 50_000, 4)
    rule = Rule(inner_steps=0, nonlinearity="relu")
    with torch.no_grad():
        parts.bias_ih.fill_(100)  # the gradient of the drive is that of the states
    found = outcome(parts, grad, partial(by_loops, rule=rule))
    _, _, weight_ih, _, bias_ih, *_ = found
    right = parts.input.detach()[0].double(), grad[0].double()
    for one, wanted in ((weight_ih, right[1].t() @ right[0]), (bias_ih, right[1].sum(0))):
        assert ((one - wanted).abs().max() / wanted.abs().max()) < 2e-6
