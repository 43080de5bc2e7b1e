"""What people do to ``nn.RNN``, done to it and to every backend of ours: the same comes out.

Each case is one such thing. Where ``nn.RNN`` succeeds, so must ours, with results of the same
shapes, or with an error that names the remedy and is listed here.
"""

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.parallel import scatter_gather
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from fwrnn import FastWeightsRNN, FastWeightsState
from fwrnn.layers.kernels import BACKENDS
from tests.layers.layouts import saved_as, turned

Make = Callable[..., nn.Module]
OURS = {name: partial(FastWeightsRNN, backend=name) for name in ("auto", *BACKENDS)}
CASES: dict[str, Callable[[Make], object]] = {}
REMEDIES = {"re-entrant checkpoint": "use use_reentrant=False"}
REFUSED = {  # by nn.RNN, too
    "other dtype of the input", "other dtype of the state", "no steps", "wrong input size",
    "input on another device", "state on another device",
}  # fmt: skip
OURS_ALONE = {  # what nn.RNN cannot, or not yet
    "skip init", "ensemble by vmap", "gradients per sequence", "export", "compile",
    "export under autocast", "compile of vmap",
}  # fmt: skip

ONE_WAY = {  # what all backends do by the same operations
    "export under autocast", "export that goes on", "export of no numbers",
    "compile of a gradient", "graph of a gradient",
}  # fmt: skip


def case(function):
    CASES[function.__name__.replace("_", " ").replace("re entrant", "re-entrant")] = function
    return function


def hidden(state) -> Tensor:
    return state if isinstance(state, Tensor) else state.hidden


def x(*shape: int, **settings) -> Tensor:
    return torch.randn(*(shape or (5, 2, 3)), **settings)


@torch.no_grad()
def stirred(layer: nn.Module) -> nn.Module:
    """As after some training, so that what is read counts."""
    for parameter in layer.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return layer


def trained(layer: nn.Module, *inputs) -> list:
    """Output, state and the gradient of every parameter."""
    output, state = layer(*inputs)
    (output.float().sin().sum() + hidden(state).float().cos().sum()).backward()
    return [output, hidden(state), *(layer.get_parameter(name).grad for name in SHARED)]


SHARED = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


@case
def plain(make):
    return trained(make(3, 4), x())


@case
def functionalize(make):
    layer = make(3, 4)
    return torch.func.functionalize(lambda y: layer(y)[0])(x())


@case
def unbatched(make):
    return trained(make(3, 4), x(5, 3))


@case
def batch_first(make):
    return trained(make(3, 4, batch_first=True), x(2, 5, 3))


@case
def stacked_and_bidirectional(make):
    return trained(make(3, 4, 2, bidirectional=True, dropout=0.5), x())


@case
def keyword_arguments(make):
    return trained(make(input_size=3, hidden_size=4, num_layers=1, nonlinearity="relu"), x())


@case
def hidden_vector_given(make):
    return trained(make(3, 4, 2), x(), x(2, 2, 4))


@case
def state_given_back(make):
    layer = make(3, 4, 2, bidirectional=True)
    return trained(layer, x(), layer(x())[1])


@case
def state_given_back_unbatched(make):
    layer = make(3, 4)
    return trained(layer, x(5, 3), layer(x(1, 3))[1])


@case
def packed(make):
    layer = make(3, 4, bidirectional=True)
    output, state = layer(pack_sequence([x(2, 3), x(5, 3), x(1, 3)], enforce_sorted=False))
    return pad_packed_sequence(output), hidden(state), output.sorted_indices


@case
def packed_and_a_state(make):
    layer = make(3, 4)
    packed = pack_sequence([x(5, 3), x(2, 3)])
    return layer(packed, layer(packed)[1])[0].data


@case
def no_bias(make):
    output, state = make(3, 4, bias=False)(x())
    return output, hidden(state)


@case
def float64(make):
    return trained(make(3, 4, dtype=torch.float64), x(dtype=torch.float64))


@case
def bfloat16(make):
    return trained(make(3, 4, dtype=torch.bfloat16), x(dtype=torch.bfloat16))


@case
def float16(make):
    return trained(make(3, 4).half(), x(dtype=torch.float16))


@case
def default_dtype(make):
    torch.set_default_dtype(torch.float64)
    try:
        return trained(make(3, 4), x())
    finally:
        torch.set_default_dtype(torch.float32)


@case
def other_dtype_of_the_input(make):
    return make(3, 4)(x(dtype=torch.float64))


@case
def other_dtype_of_the_state(make):
    return make(3, 4)(x(), x(1, 2, 4, dtype=torch.float64))


@case
def autocast(make):
    layer = make(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = layer(x())
    output.float().sum().backward()
    return output.shape, hidden(state).shape, layer.weight_hh_l0.grad


@case
def not_contiguous(make):
    return trained(make(3, 4), x(3, 2, 5).transpose(0, 2))


@case
def expanded(make):
    return trained(make(3, 4), x(5, 1, 3).expand(5, 2, 3))


@case
def no_sequences(make):
    output, state = make(3, 4)(x(5, 0, 3))
    return output, hidden(state)


@case
def no_steps(make):
    return make(3, 4)(x(0, 2, 3))


@case
def wrong_input_size(make):
    return make(3, 4)(x(5, 2, 4))


@case
def meta_device(make):
    layer = make(3, 4, device="meta")
    output, state = layer(x(device="meta"))
    return output, hidden(state)


@case
def default_device(make):
    layer, inputs = make(3, 4), x()
    with torch.device("meta"):
        return layer(inputs)[0]


@case
def input_on_another_device(make):
    return make(3, 4)(x(device="meta"))


@case
def state_on_another_device(make):
    return make(3, 4)(x(), torch.zeros(1, 2, 4, device="meta"))


@case
def skip_init(make):
    cls = make.func if isinstance(make, partial) else make
    layer = nn.utils.skip_init(cls, 3, 4)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return trained(layer, x())


@case
def to_empty(make):
    layer = make(3, 4, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    return trained(layer, x())


@case
def train_and_eval(make):
    layer = make(3, 4, 2, dropout=0.9)
    inputs = x()
    assert not torch.equal(layer(inputs)[0], layer(inputs)[0])
    layer.eval()
    assert torch.equal(layer(inputs)[0], layer(inputs)[0])
    layer.dropout = 0.0
    return layer.train()(inputs)[0]


@case
def hooks(make):
    layer, seen = make(3, 4), []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    layer.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs[0].shape))
    layer.register_full_backward_hook(lambda module, given, got: seen.append(got[0].shape))
    layer(x(requires_grad=True))[0].sum().backward()
    return seen


@case
def parametrizations_of_a_weight(make):
    layer = parametrizations.weight_norm(make(3, 4), "weight_hh_l0")
    output, _ = layer(x())
    output.sum().backward()
    return output, layer.parametrizations.weight_hh_l0.original1.grad


@case
def pruning(make):
    layer = prune.l1_unstructured(make(3, 4), "weight_hh_l0", 0.5)
    layer(x())[0].sum().backward()
    return layer.weight_hh_l0_orig.grad


@case
def frozen_parameters(make):
    layer = make(3, 4).requires_grad_(False)
    inputs = x(requires_grad=True)
    layer(inputs)[0].sum().backward()
    return inputs.grad


@case
def deepcopy(make):
    return trained(copy.deepcopy(make(3, 4)), x())


@case
def pickling(make):
    return trained(pickle.loads(pickle.dumps(make(3, 4))), x())


@case
def state_dict(make):
    buffer = io.BytesIO()
    torch.save(make(3, 4).state_dict(), buffer)
    buffer.seek(0)
    layer = make(3, 4)
    layer.load_state_dict(torch.load(buffer, weights_only=True))
    return trained(layer, x())


@case
def saved_state(make):
    layer, buffer = make(3, 4, 2), io.BytesIO()
    torch.save(layer(x())[1], buffer)
    buffer.seek(0)
    return trained(layer, x(), torch.load(buffer, weights_only=True))


@case
def functional_call(make):
    layer = make(3, 4)
    doubled = {name: 2 * p for name, p in layer.named_parameters()}
    return torch.func.functional_call(layer, doubled, (x(),))[0]


@case
def ensemble_by_vmap(make):
    layers = [make(3, 4) for _ in range(3)]
    values, _ = torch.func.stack_module_state(layers)
    inputs = x()
    call = lambda value: torch.func.functional_call(layers[0], value, (inputs,))[0]  # noqa: E731
    outputs = torch.vmap(call)(values)
    torch.testing.assert_close(outputs, torch.stack([layer(inputs)[0] for layer in layers]))
    return outputs


@case
def gradients_per_sequence(make):
    layer = make(3, 4)
    values = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(values, sequence):
        return torch.func.functional_call(layer, values, (sequence,))[0].sin().sum()

    grads = torch.vmap(torch.func.grad(loss), in_dims=(None, 1))(values, x())
    return [grads[name] for name in SHARED]


@case
def jacobians_both_ways(make):
    layer = make(3, 4, dtype=torch.float64)
    inputs = x(5, 3, dtype=torch.float64)
    call = lambda inputs: layer(inputs)[0][-1]  # noqa: E731
    one, other = torch.func.jacrev(call)(inputs), torch.func.jacfwd(call)(inputs)
    torch.testing.assert_close(one, other)
    return one


@case
def jacobians_in_a_batch(make):
    layer = make(3, 4, dtype=torch.float64)
    inputs = x(5, 3, dtype=torch.float64)
    call = lambda inputs: layer(inputs)[0][-1]  # noqa: E731
    found = torch.autograd.functional.jacobian(call, inputs, vectorize=True)
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(call, inputs))
    torch.autograd.functional.hessian(lambda x: call(x).sin().sum(), inputs, vectorize=True)
    return found


@case
def dual_numbers(make):
    layer, inputs, direction = make(3, 4, dtype=torch.float64), x(5, 3), x(5, 3)
    inputs, direction = inputs.double(), direction.double()
    with forward_ad.dual_level():
        output, state = layer(forward_ad.make_dual(inputs, direction))
        found = (
            forward_ad.unpack_dual(output).tangent,
            forward_ad.unpack_dual(hidden(state)).tangent,
        )
    wanted = torch.autograd.functional.jvp(lambda x: layer(x)[0], inputs, direction)[1]
    torch.testing.assert_close(found[0], wanted)
    return found


@case
def hessian(make):
    layer = make(3, 4)
    return torch.func.hessian(lambda inputs: layer(inputs)[0].sum())(x(5, 3))


@case
def a_second_nested_gradient(make):
    layer = make(3, 4)
    call = torch.func.grad(lambda x: torch.func.grad(lambda y: layer(y)[0].sum())(x).sum())
    # What the first one leaves must not disturb the second: a length that nobody else asks for.
    return call(x(11, 2, 3)), call(x(11, 2, 3))


@case
def double_backward(make):
    layer, inputs = make(3, 4), x(requires_grad=True)
    (grad,) = torch.autograd.grad(layer(inputs)[0].sum(), inputs, create_graph=True)
    grad.square().sum().backward()
    return inputs.grad, layer.weight_hh_l0.grad


@case
def inference_mode(make):
    layer = make(3, 4)
    with torch.inference_mode():
        output, state = layer(x(), layer(x())[1])
    return output, hidden(state)


@case
def truncated_backpropagation(make):
    layer, state = make(3, 4), None
    for _ in range(3):
        output, state = layer(x(), state)
        output.sum().backward()
        state = pytree.tree_map(Tensor.detach, state)
    return output, hidden(state)


@case
def checkpoint_without_reentry(make):
    layer = make(3, 4)
    output, state = checkpoint(layer, x(), use_reentrant=False)
    hidden(state).sum().backward()
    return output, layer.weight_hh_l0.grad


@case
def re_entrant_checkpoint(make):
    layer = make(3, 4)
    _, state = checkpoint(layer, x(requires_grad=True), use_reentrant=True)
    assert hidden(state).requires_grad
    return hidden(state)


@case
def re_entrant_checkpoint_of_what_returns_tensors(make):
    layer = make(3, 4)
    output = checkpoint(lambda x: layer(x)[0], x(requires_grad=True), use_reentrant=True)
    output.sum().backward()
    return output, layer.weight_hh_l0.grad


@case
def gathered_from_replicas(make):
    state, gather = make(3, 4)(x())[1], scatter_gather.Gather
    try:  # which takes tensors of GPUs only
        scatter_gather.Gather = type("Gather", (), {"apply": lambda _, dim, *p: torch.cat(p, dim)})
        gathered = scatter_gather.gather([state, state], "cpu", dim=1)
    finally:
        scatter_gather.Gather = gather
    return hidden(gathered)


@case
def trace(make):
    layer, inputs = make(3, 4, 2), x()
    traced = torch.jit.trace(layer, inputs)
    torch.testing.assert_close(traced(inputs)[0], layer(inputs)[0])
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)(inputs)[0]


@case
def trace_with_a_state(make):
    """Traced from one state, whatever its kind, it takes any other, and its own."""
    layer = stirred(make(3, 4, 2)).requires_grad_(False)
    states = [layer(x(steps, 2, 3))[1] for steps in (2, 9)]
    if isinstance(layer, FastWeightsRNN):
        states += [layer.initial_state(2), states[0].as_matrix()]
    for start in states:
        traced = torch.jit.trace(layer, (x(1, 2, 3), start), check_trace=False)
        for state in states:
            given = state
            for steps in (3, 1, 1, 4, 1):
                inputs = x(steps, 2, 3)
                output, given = traced(inputs, given)
                wanted, state = layer(inputs, state)
                torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
    return output


@case
def trace_of_packed_sequences(make):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make(3, 4, bidirectional=True)

        def forward(self, inputs, lengths):
            packed = pack_padded_sequence(inputs, lengths, enforce_sorted=False)
            return pad_packed_sequence(self.layer(packed)[0])[0]

    padded = Padded()
    inputs, lengths = x(7, 2, 3), torch.tensor([2, 7])
    traced = torch.jit.trace(padded, (x(1, 2, 3), torch.tensor([1, 1])), check_trace=False)
    torch.testing.assert_close(traced(inputs, lengths), padded(inputs, lengths))
    return traced(inputs, lengths)


@case
def export_under_autocast(make):
    layer, inputs = stirred(make(3, 4)).eval(), x()

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, inputs):
            with torch.autocast("cpu", torch.bfloat16):
                return self.layer(inputs)[0].float()

    with torch.autocast("cpu", torch.bfloat16):
        program = torch.export.export(layer, (inputs,)).module()
    outputs = [program(inputs)[0]]
    outputs += [torch.export.export(Cast(), (inputs,), strict=s).module()(inputs) for s in (0, 1)]
    for output in outputs:
        torch.testing.assert_close(output, layer(inputs)[0], rtol=0.02, atol=0.02)
    return outputs


@case
def export_that_goes_on(make):
    layer = stirred(make(3, 4)).requires_grad_(False)
    state = layer(x(2, 2, 3))[1]
    given = state.as_matrix() if isinstance(layer, FastWeightsRNN) else state
    program = torch.export.export(layer, (x(1, 2, 3), given)).module()
    for _ in range(6):
        inputs = x(1, 2, 3)
        output, given = program(inputs, given)
        wanted, state = layer(inputs, state)
        torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
    return output


@case
def export(make):
    layer, inputs = make(3, 4), x()
    anything = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(layer, (inputs,), dynamic_shapes=(anything,)).module()
    for shape in ((5, 2, 3), (1, 1, 3), (9, 4, 3)):
        inputs = x(*shape)
        output, state = program(inputs)
        torch.testing.assert_close(output, layer(inputs)[0])
        torch.testing.assert_close(hidden(state), hidden(layer(inputs)[1]))
    return output


@case
def compile(make):
    torch._dynamo.reset()
    layer = make(3, 4, bidirectional=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for steps, batch in ((5, 2), (7, 3), (8, 4), (3, 6)):
        inputs = x(steps, batch, 3)
        output, state = compiled(inputs)
        torch.testing.assert_close(output, layer(inputs)[0], rtol=1e-4, atol=1e-5)
        hidden(state).sum().backward()
    return output, layer.weight_hh_l0.grad


def gradients(make):
    """A function that ``torch.func`` differentiates, and what it is called with."""
    layer = stirred(make(3, 4))
    parameters = {name: each.detach() for name, each in layer.named_parameters()}

    def loss(parameters, inputs):
        return torch.func.functional_call(layer, parameters, (inputs,))[0].sin().sum()

    return torch.func.grad(loss), parameters, x()


@case
def compile_of_a_gradient(make):
    torch._dynamo.reset()
    function, *given = gradients(make)
    # A function of our own, as PyTorch's is not looked into.
    found = torch.compile(lambda *given: function(*given), backend="aot_eager")(*given)
    torch.testing.assert_close(found, function(*given), rtol=1e-4, atol=1e-5)
    return [found[name] for name in SHARED]


@case
def compile_of_vmap(make):
    """A gradient of it is unrolled, but this need not be."""
    torch._dynamo.reset()
    layer, inputs, graphs = stirred(make(3, 4)).requires_grad_(False), x(4, 20, 2, 3), []

    def kept(graph, _):
        graphs.append(graph)
        return graph

    outputs = torch.compile(lambda x: torch.vmap(lambda x: layer(x)[0])(x), backend=kept)(inputs)
    torch.testing.assert_close(outputs, torch.stack([layer(each)[0] for each in inputs]))
    assert len(list(graphs[-1].graph.nodes)) < 100
    return outputs


@case
def export_of_no_numbers(make):
    layer = make(3, 4, device="meta")
    return torch.export.export(layer, (x(device="meta"),)).module()(x(device="meta"))[0]


@case
def graph_of_a_gradient(make):
    function, *given = gradients(make)
    found = make_fx(function)(*given)(*given)
    torch.testing.assert_close(found, function(*given), rtol=1e-4, atol=1e-5)
    return [found[name] for name in SHARED]


@case
def saved_tensors_of_another_layout(make):
    # Of ours all tensors that are saved are read, then.
    rare = {} if make is nn.RNN else {"inner_start": "previous"}
    layer, results = stirred(make(3, 4, **rare)), []
    for steps in (1, 6, 60):
        inputs, first = x(steps, 2, 3), x(1, 2, 4, requires_grad=True)
        for context in (nullcontext(), saved_as(turned)):
            layer.zero_grad()
            first.grad = None
            with context:
                results.append([*trained(layer, inputs, first), first.grad])
        torch.testing.assert_close(*results[-2:])
    return results


def shapes(result):
    """What a case came to, every tensor as its shape."""
    return pytree.tree_map_only(Tensor, lambda tensor: tuple(tensor.shape), result)


def attempt(case, make):
    torch.manual_seed(0)
    try:
        return shapes(case(make))
    except AssertionError:
        raise
    except Exception as error:
        return error


@pytest.fixture(scope="module")
def theirs():
    return {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "backend"), [
    (name, backend) for name in CASES for backend in OURS
    if backend in ("auto", "matrix") or name not in ONE_WAY
])  # fmt: skip
def test_is_as_with_nn_rnn(name, backend, theirs):
    if name not in theirs:
        theirs[name] = attempt(CASES[name], nn.RNN)
    wanted, found = theirs[name], attempt(CASES[name], OURS[backend])
    if name in REMEDIES:
        assert REMEDIES[name] in str(found)
    elif name in REFUSED:
        assert isinstance(wanted, Exception)
        assert isinstance(found, Exception) and len(str(found)) > 20
    else:
        assert not isinstance(found, Exception), repr(found)
        assert found == wanted or name in OURS_ALONE and isinstance(wanted, Exception)


def test_what_is_mixed_is_named():
    layer = FastWeightsRNN(3, 4)
    for call, words in (
        (lambda: layer(x(device="meta")), "parameters on cpu, got an input on meta"),
        (lambda: layer(x(), torch.zeros(1, 2, 4, device="meta")), "cpu, got a state on meta"),
        (lambda: layer(x(dtype=torch.float64)), "float32, got an input in torch.float64"),
        (lambda: layer(x(), x(1, 2, 4).double()), "float32, got a state in torch.float64"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_state_taken_for_a_hidden_vector_is_noticed():
    _, h = FastWeightsRNN(3, 4)(x())
    with pytest.raises(TypeError):
        nn.Linear(4, 2)(h[-1])


def test_an_empty_state_of_another_kind_is_refused():
    layer = FastWeightsRNN(3, 4)
    with pytest.raises(ValueError, match="takes a FastWeightsState"):
        layer(x(), FastWeightsState(torch.zeros(1, 2, 4), lambda: None))
