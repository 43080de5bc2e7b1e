"""The multi-level layer against figure 3, taken arrow by arrow in NumPy with A as a matrix."""

import numpy as np
import pytest
import torch

from fwrnn import FastWeightsState
from fwrnn.layers import MultiLevelFastWeights


def figure_3(x, weights, decay, fast_lr, inner_steps, fine, f):
    """States after every region, and the last memory, for glimpses (T, B, I)."""
    w = {name: value.detach().numpy() for name, value in weights.items()}
    size = len(w["bias"])
    states, memories = [], []
    for sequence in x.transpose(1, 0, 2):
        A, through = np.zeros((size, size)), np.zeros(size)
        for region in sequence.reshape(-1, fine + 2, x.shape[-1]):
            drive = region @ w["weight_ih"].T + w["bias"]
            coarse = f(_norm(w["weight_hh"] @ through + drive[0], w, "coarse"))
            A = decay * A + fast_lr * np.outer(coarse, coarse)
            h = np.zeros(size)
            for glimpse in drive[1:-1]:
                h = f(_norm(w["weight_hh"] @ h + glimpse, w, "fine"))
            through = f(_norm(drive[-1], w, "coarse"))
            for _ in range(inner_steps):
                total = w["weight_integration"] @ h + A @ through
                through = f(_norm(total, w, "integration"))
            states.append(through)
        memories.append(A)
    return np.stack(states).reshape(x.shape[1], -1, size).swapaxes(0, 1), np.stack(memories)


def _norm(total, w, level):
    if f"{level}_norm_weight" not in w:
        return total
    normal = (total - total.mean()) / np.sqrt(total.var() + 1e-5)
    return normal * w[f"{level}_norm_weight"] + w[f"{level}_norm_bias"]


def shaken(**settings) -> MultiLevelFastWeights:
    """A layer in float64 whose parameters are all different from how they start."""
    layer = MultiLevelFastWeights(5, 7, **settings).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("fine", [1, 4])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_layer_is_figure_3(layer_norm, inner_steps, fine, nonlinearity):
    rule = {"decay": 0.8, "fast_lr": 0.3, "inner_steps": inner_steps, "fine": fine}
    layer = shaken(layer_norm=layer_norm, nonlinearity=nonlinearity, **rule)
    x = torch.randn(3 * (fine + 2), 2, 5, dtype=torch.float64)
    outputs, state = layer(x)
    f = np.tanh if nonlinearity == "tanh" else lambda total: np.maximum(total, 0)
    expected, memory = figure_3(x.numpy(), dict(layer.named_parameters()), f=f, **rule)
    np.testing.assert_allclose(outputs.detach(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(state.memory.matrix().detach(), memory, rtol=1e-9, atol=1e-12)
    assert torch.equal(state.hidden, outputs[-1])


def test_gradients_are_right():
    layer = shaken(decay=0.8, fast_lr=0.3, nonlinearity="tanh")
    x = torch.randn(12, 2, 5, dtype=torch.float64, requires_grad=True)
    weights = tuple(layer.parameters())

    def loss(x, *weights):
        named = dict(zip(dict(layer.named_parameters()), weights, strict=True))
        outputs, state = torch.func.functional_call(layer, named, (x,))
        return outputs, state.memory.matrix()

    assert torch.autograd.gradcheck(loss, (x, *weights))


def test_regions_can_be_given_one_after_the_other():
    layer = shaken(decay=0.8, fast_lr=0.3)
    x = torch.randn(24, 2, 5, dtype=torch.float64)
    whole, last = layer(x)
    parts, state = [], None
    for part in x.split(6):
        outputs, state = layer(part, state)
        parts.append(outputs)
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(state.memory.matrix(), last.memory.matrix())
    for _ in range(20):
        state = layer(x, state)[1].detach()
    assert state.memory.written.shape[-2] <= layer.hidden_size + len(x)
    assert isinstance(state, FastWeightsState)


def test_memory_alone_joins_the_levels():
    """Without it (η = 0) the second coarse look has no effect; with it, it has."""
    x = torch.randn(12, 2, 5, dtype=torch.float64)
    other = x.clone()
    other[-1] += 1
    for fast_lr, same in ((0.0, True), (0.3, False)):
        layer = shaken(fast_lr=fast_lr, decay=0.8)
        assert torch.equal(layer(x)[0], layer(other)[0]) == same


def test_attention_is_the_factor_of_what_is_read():
    layer = shaken(decay=0.8, fast_lr=0.3)
    x = torch.randn(24, 3, 5, dtype=torch.float64)
    weights = layer.attention(x)
    assert weights.shape == (3, 4, 4)
    assert not weights.triu(1).any()
    _, written, queries, _ = layer._regions(x, None)
    for r in range(4):
        ages = [0.3 * 0.8 ** (r - k) * (written[k] * queries[r]).sum(-1) for k in range(r + 1)]
        torch.testing.assert_close(weights[:, r, : r + 1], torch.stack(ages, -1))


def test_rows_of_a_batch_do_not_touch():
    layer = shaken(decay=0.8, fast_lr=0.3)
    x = torch.randn(24, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0][:, 1:2], layer(x[:, 1:2])[0])


def test_dropout_acts_in_training_only():
    layer = shaken(dropout=0.5)
    x = torch.randn(12, 2, 5, dtype=torch.float64)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.parametrize(("settings", "words"), [
    ({"fine": 0}, "fine must be 1 or more, got 0"),
    ({"dropout": 1.0}, "dropout must lie in"),
    ({"decay": 2}, "decay"),
    ({"inner_steps": 0}, "inner_steps"),
])  # fmt: skip
def test_settings_out_of_range_say_so(settings, words):
    with pytest.raises(ValueError, match=words):
        MultiLevelFastWeights(5, 7, **settings)


@pytest.mark.parametrize("shape", [(7, 2, 5), (0, 2, 5), (6, 5)])
def test_inputs_are_whole_regions(shape):
    with pytest.raises(ValueError, match="multiple of 6 glimpses"):
        MultiLevelFastWeights(5, 7)(torch.zeros(shape))
