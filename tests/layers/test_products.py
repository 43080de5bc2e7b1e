"""Products of matrices with many rows: the compiled loops beside PyTorch's own."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from fwrnn import FastWeightsRNN
from fwrnn.layers.kernels import operators, products, trial
from tests.layers.test_fast_weights import clone, layer

pytestmark = pytest.mark.filterwarnings("error:the fused kernel")
DTYPES = [torch.float32, torch.float64]
SIZES = [(1, 1, 1, 1), (65, 33, 32, 31), (129, 7, 64, 1), (300, 50, 100, 50), (257, 100, 31, 100)]


@pytest.fixture
def any_rows(monkeypatch):
    """Few rows are multiplied by the loops as well."""
    monkeypatch.setattr(products, "FEWEST", 1)


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, results, columns, others", SIZES)
def test_products_are_right_at_odd_sizes(threads, dtype, rows, results, columns, others):
    left, right, other, matrix, bias = (
        torch.randn(shape, dtype=dtype)
        for shape in (
            (rows, results), (rows, columns), (rows, others), (results, columns), (results,)
        )
    )  # fmt: skip
    pairs = [
        (products._times(right, matrix, bias), right @ matrix.t() + bias),
        (products._times(right, matrix), right @ matrix.t()),
        (products._times(left, matrix.t()), left @ matrix),
        *zip(
            products._contract(left, right, other),
            (left.t() @ right, left.t() @ other, left.sum(0)),
            strict=True,
        ),
    ]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_loops_pass_their_trial_and_any_view_is_taken(any_rows, dtype):
    assert products._fault(dtype) is None
    right, matrix = torch.randn(33, 70, dtype=dtype), torch.randn(20, 33, dtype=dtype)
    torch.testing.assert_close(products.times("numba", right.t(), matrix), (matrix @ right).t())


def test_what_a_row_comes_to_does_not_depend_on_others_nor_on_threads():
    left, right, matrix = torch.randn(600, 20), torch.randn(600, 33), torch.randn(20, 33)
    wanted = products._times(right, matrix), *products._contract(left, right, left)
    assert torch.equal(products._times(right[:300], matrix), wanted[0][:300])
    torch.set_num_threads(3)  # of which there was one
    again = products._times(right, matrix), *products._contract(left, right, left)
    assert all(torch.equal(one, other) for one, other in zip(wanted, again, strict=True))


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


def test_its_gradients_can_be_checked_and_differentiated(any_rows):
    made = layer(3, 4)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)

    def outputs(x, *weights):
        names = [name for name, _ in made.named_parameters()]
        return torch.func.functional_call(made, dict(zip(names, weights, strict=True)), (x,))[0]

    weights = [p.detach().clone().requires_grad_() for p in made.parameters()]
    assert gradcheck(outputs, (x, *weights))
    assert gradgradcheck(outputs, (x, *weights))


@pytest.mark.parametrize("contracts", [False, True])
def test_wrong_loops_are_left_alone_and_said_so_once(monkeypatch, contracts):
    run = products._run

    def wrong(now, *others):
        run(now, *others)
        if now == contracts:
            others[-1][4].mul_(1.01)  # what comes out

    monkeypatch.setattr(products, "_run", wrong)
    monkeypatch.setattr(trial, "_passed", set())
    monkeypatch.setattr(trial, "_failed", set())
    made = layer(5, 7, dtype=torch.float32)
    exact = clone(made, backend="matrix")
    x = torch.randn(16, 40, 5)
    with pytest.warns(UserWarning, match="'products' does not work on this CPU .*PyTorch's own"):
        output, _ = made(x)
        output.sum().backward()
    torch.testing.assert_close(output, exact(x)[0], rtol=1e-4, atol=1e-4)
    exact(x)[0].sum().backward()
    for one, other in zip(made.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)


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


def test_many_rows_are_summed_without_losing_digits():
    left, right = 1 + torch.randn(50_000, 4), 1 + torch.randn(50_000, 5)
    found, _, sums = products._contract(left, right, right)
    for one, wanted in ((found, left.double().t() @ right.double()), (sums, left.double().sum(0))):
        assert ((one - wanted).abs().max() / wanted.abs().max()) < 2e-6
