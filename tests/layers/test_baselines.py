"""The layers that fast weights are compared with."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fwrnn.layers import IRNN, AssociativeLSTM
from fwrnn.layers.kernels import associative
from tests.layers.layouts import saved_as, spaced


def test_irnn_starts_from_half_the_identity_and_is_relu():
    layer = IRNN(5, 7, num_layers=2)
    for name in ("weight_hh_l0", "weight_hh_l1"):
        torch.testing.assert_close(getattr(layer, name).detach(), 0.5 * torch.eye(7))
    assert layer.nonlinearity == "relu"
    assert layer(torch.randn(6, 3, 5))[0].min() == 0


@pytest.mark.parametrize(("copies", "heads"), [(1, 1), (4, 3)])
def test_associative_lstm_equals_its_equations_in_complex_numbers(copies, heads):
    size, half = 6, 3
    layer = AssociativeLSTM(5, size, copies, heads).double()
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    outputs, state = layer(x)
    hidden = torch.zeros(2, size, dtype=torch.float64)
    cells = torch.zeros(copies, 2, half, dtype=torch.complex128)

    def bound(z):
        return z / z.abs().clamp(min=1)

    def gate(numbers):
        return torch.sigmoid(numbers)

    for step, output in zip(x, outputs, strict=True):
        numbers = layer.input_map(step) + layer.hidden_map(hidden)
        forget, numbers = gate(numbers[:, :half]), numbers[:, half:]
        write = gate(numbers[:, : heads * half]).split(half, dim=1)
        read = gate(numbers[:, heads * half : 2 * heads * half]).split(half, dim=1)
        rest = numbers[:, 2 * heads * half :].view(2, 3, heads, 2, half)
        write_key, read_key, update = bound(torch.complex(rest[..., 0, :], rest[..., 1, :])).unbind(
            1
        )
        hidden = 0
        cells = forget * cells
        for s in range(copies):
            for k in range(heads):
                cells[s] += write_key[:, k, layer.permutations[s]] * (write[k] * update[:, k])
        for k in range(heads):
            found = [read_key[:, k, layer.permutations[s]] * cells[s] for s in range(copies)]
            hidden = hidden + read[k] * bound(torch.stack(found).mean(0))
        hidden = torch.cat([hidden.real, hidden.imag], dim=1)
        torch.testing.assert_close(output, hidden)
    torch.testing.assert_close(state.cells[..., 0].transpose(0, 1), cells.real)
    torch.testing.assert_close(state.cells[..., 1].transpose(0, 1), cells.imag)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("steps", "batch", "size", "copies", "heads"), [
    (1, 1, 2, 1, 1), (5, 70, 14, 4, 3), (7, 16, 6, 3, 2),
])  # fmt: skip
def test_associative_lstm_is_the_same_fused(dtype, steps, batch, size, copies, heads):
    layer = AssociativeLSTM(5, size, copies, heads).double()
    x = torch.randn(steps, batch, 5).double()
    state = [3 * torch.randn(batch, size), 2 * torch.randn(batch, copies, size // 2, 2)]
    with torch.no_grad():
        layer.input_map.weight.mul_(3)  # some vectors beyond their bound, some within

    def results(layer, fused):
        x_, *given = (part.to(layer.input_map.weight).requires_grad_() for part in (x, *state))
        if fused:
            output, (_, cells) = layer(x_, tuple(given))
            assert "_Recurrence" in type(cells.grad_fn).__name__
        else:
            start = layer.input_map(x_), layer.hidden_map.weight, *given, layer.permutations
            output, cells = layer._eager(*start)
        loss = output.sin().sum() + cells.cos().sum()
        return output, cells, *torch.autograd.grad(loss, [x_, *given, *layer.parameters()])

    wanted = results(layer, False)
    near = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    for one, other in zip(results(layer.to(dtype), True), wanted, strict=True):
        torch.testing.assert_close(one.double(), other, **near)


def test_the_fused_associative_lstm_follows_no_address_blindly():
    layer = AssociativeLSTM(3, 4)
    x = torch.randn(5, 2, 3)
    wanted, state = layer(x)
    with torch.device("meta"):
        torch.testing.assert_close(layer(x)[0], wanted)
    for given in (
        state._replace(hidden=torch.randn(3, 4)),
        (state.hidden, torch.randn(7, 4, 2, 2)),
    ):
        with pytest.raises(RuntimeError, match="size"):
            layer(x, given)
    output, _ = layer(x[:, :1], state)  # one input for two states is PyTorch's broadcasting
    assert output.shape == (5, 2, 4)


@pytest.mark.parametrize("place", ["hidden", "copies", "half", "permutations"])
def test_the_fused_associative_lstm_is_not_given_what_leads_out_of_its_arrays(place, monkeypatch):
    layer = AssociativeLSTM(3, 4)
    x, (hidden, cells) = torch.randn(5, 2, 3), layer(torch.randn(5, 2, 3))[1]
    monkeypatch.setattr(associative._Recurrence, "apply", lambda *all: pytest.fail("it was given"))
    if place == "hidden":
        hidden = torch.randn(2, 8)
    elif place == "permutations":  # of a file of weights
        layer.permutations[1, 0] = 10**9
    else:
        cells = torch.randn(2, 5, 2, 2) if place == "copies" else torch.randn(2, 4, 4, 2)
    with pytest.raises((RuntimeError, IndexError), match="size|shapes|range"):
        layer(x, (hidden, cells))


@pytest.mark.parametrize("batch", [2, 70])
def test_the_associative_lstms_memories_may_be_changed_in_place(batch):
    layer = AssociativeLSTM(3, 4)
    _, (_, cells) = layer(torch.randn(5, batch, 3))
    cells.mul_(0)
    cells.sum().backward()
    assert layer.input_map.weight.grad.abs().max() == 0


def test_threads_that_go_back_at_once_through_the_associative_lstm_do_not_meet():
    layer = AssociativeLSTM(3, 8)
    output, _ = layer(torch.randn(20, 200, 3))
    grads = torch.randn_like(output)

    def back(_) -> Tensor:
        (grad,) = torch.autograd.grad(output, layer.hidden_map.weight, grads, retain_graph=True)
        return grad

    wanted = back(0)
    with ThreadPoolExecutor(3) as threads:
        assert all(torch.equal(grad, wanted) for grad in threads.map(back, range(60)))


class Severed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize("create_graph", [False, True])
def test_the_associative_lstm_passes_on_that_there_is_no_gradient(create_graph):
    layer = AssociativeLSTM(3, 4)
    loss = Severed.apply(layer(torch.randn(5, 2, 3))[0]).sum()
    weight = layer.hidden_map.weight
    options = {"create_graph": create_graph, "allow_unused": True}
    assert torch.autograd.grad(loss, weight, **options) == (None,)


def test_the_associative_lstm_takes_empty_batches_and_gradients_in_a_batch():
    made, x = AssociativeLSTM(5, 8), torch.randn(6, 3, 5)
    assert made(x[:, :0])[0].shape == (6, 0, 8)
    one, other = (
        torch.autograd.functional.jacobian(lambda y: made(y)[0][-1], x, vectorize=vectorize)
        for vectorize in (True, False)
    )
    torch.testing.assert_close(one, other)


def test_derivatives_of_the_associative_lstm():
    layer = AssociativeLSTM(3, 4, 2, 2).double()
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], x)
    each = torch.stack([layer(x[:, k : k + 1])[0] for k in range(2)])
    torch.testing.assert_close(
        torch.vmap(lambda x: layer(x)[0])(x.unsqueeze(2).transpose(0, 1)), each
    )


def test_what_the_associative_lstm_saves_may_come_back_in_another_layout_or_be_made_anew():
    layer, x = AssociativeLSTM(3, 8, 2), torch.randn(5, 2, 3)

    def gradients(run) -> list[Tensor]:
        output, _ = run(x)
        return list(torch.autograd.grad(output.sin().sum(), list(layer.parameters())))

    wanted = gradients(layer)
    with saved_as(spaced):
        torch.testing.assert_close(gradients(layer), wanted)
    torch.testing.assert_close(gradients(partial(checkpoint, layer, use_reentrant=False)), wanted)


def test_associative_lstm_goes_on_from_its_state():
    layer = AssociativeLSTM(5, 6)
    x = torch.randn(6, 3, 5)
    whole, final = layer(x)
    first, state = layer(x[:2])
    second, last = layer(x[2:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(tuple(last), tuple(final))
    whole.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_associative_lstm_says_what_is_wrong():
    with pytest.raises(ValueError, match="hidden_size must be even, got 7"):
        AssociativeLSTM(5, 7)
    with pytest.raises(ValueError, match="copies and heads must be 1 or more, got 0 and 3"):
        AssociativeLSTM(5, 6, copies=0)
