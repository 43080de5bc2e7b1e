"""One contract for every core, shipped or brought, and what the networks around them share."""

import pytest
import torch

from fwrnn.config import CORES
from fwrnn.errors import UserError
from fwrnn.interfaces import Images, Screens, Symbols, TaskSpec
from fwrnn.layers import FastWeightsState
from fwrnn.models.glimpses import STEPS
from tests.commands.compose import compose, model_config

TEXT = TaskSpec(Symbols(vocabulary=37), labels=tuple("0123456789"))
DIGITS = TaskSpec(Images(size=12), labels=tuple("0123456789"))
SCREENS = TaskSpec(Screens(size=8), labels=("left", "stay", "right"))
SHOWN = {"symbols": TEXT, "images": DIGITS, "screens": SCREENS}
SEEN = [(name, shows) for name, schema in CORES.items() for shows in SHOWN if shows in schema.takes]
CLASSIFIERS = [(name, shows) for name, shows in SEEN if shows != "screens"]
PLAYERS = [name for name, shows in SEEN if shows == "screens"]
RECURRENT = [name for name in CORES if hasattr(CORES[name], "build")]


def config_of(name, *overrides):
    return model_config(f"model={name}", "model.hidden_size=20", *overrides)


def built(name, spec, *overrides):
    return config_of(name, *overrides).classifier(spec)


def some_inputs(spec, count):
    if spec is TEXT:
        return torch.randint(0, 37, (count, 11))
    return torch.randint(0, 256, (count, 12, 12), dtype=torch.uint8)


@pytest.mark.parametrize(("name", "shows"), CLASSIFIERS)
def test_model_classifies_reports_its_size_and_learns(name, shows):
    spec = SHOWN[shows]
    assert config_of(name).name == name
    model = built(name, spec)
    inputs, targets = some_inputs(spec, 32), torch.randint(0, 10, (32,))
    logits = model(inputs)
    assert logits.shape == (32, 10)
    assert model.parameter_count == sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if spec is TEXT else 3e-3)
    first = None
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss.item() < 0.6 * first


@pytest.mark.parametrize("name", PLAYERS)
def test_player_gives_a_policy_and_a_value_and_its_pieces_make_the_whole(name):
    model = config_of(name).player(SCREENS)
    screens = torch.randint(0, 2, (6, 3, 8, 8), dtype=torch.uint8)
    whole = model(screens)
    assert whole.logits.shape == (6, 3, 3)
    assert whole.values.shape == (6, 3)
    (whole.logits.square().mean() + whole.values.square().mean()).backward()
    assert all(p.grad is not None for p in model.parameters())
    state, pieces = None, []
    for piece in screens.split([1, 2, 3]):
        logits, _, state = model(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces), whole.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RECURRENT)
def test_core_streams_and_carries_as_many_numbers_as_it_says(name):
    config = config_of(name)
    core = config.build(16)
    inputs = torch.randn(2 * STEPS, 3, 16)  # whole images too
    outputs, state = core(inputs)
    first, passed = core(inputs[:STEPS])
    second, passed = core(inputs[STEPS:], passed)
    torch.testing.assert_close(torch.cat([first, second]), outputs, rtol=1e-4, atol=1e-5)
    if isinstance(state, FastWeightsState):
        state = state.hidden, state.memory.matrix()
    parts = (state,) if isinstance(state, torch.Tensor) else state
    assert sum(part.numel() for part in parts) == 3 * config.state_size


def test_state_sizes():
    sizes = {name: config_of(name).state_size for name in CORES}
    assert sizes["lstm"] == 40
    assert sizes["irnn"] == 20
    assert sizes["fast_weights"] == sizes["multilevel"] == 20 + 20 * 20
    assert sizes["associative_lstm"] == 20 + 4 * 20
    assert sizes["convnet"] == 0


@pytest.mark.parametrize("shows", ["symbols", "images"])
def test_only_the_core_differs_between_recurrent_models(shows):
    def outside(name):
        parameters = built(name, SHOWN[shows]).named_parameters()
        return {n: p.shape for n, p in parameters if not n.startswith("core.")}

    names = [name for name in RECURRENT if (name, shows) in SEEN]
    assert all(outside(name) == outside("lstm") for name in names)


def test_convnet_has_the_head_of_all_and_as_many_layers_as_asked():
    def weights(*overrides):
        parameters = built("convnet", DIGITS, *overrides).named_parameters()
        return {n: tuple(p.shape) for n, p in parameters if n.endswith("weight")}

    three, two = weights(), weights("model.layers=2")
    assert three["glimpse.weight"] == (20, 9)
    assert three["quadrant.weight"] == (20, 5 * 20)
    assert three["image.weight"] == (20, 4 * 20)
    assert two["image.weight"] == (20, 4 * 5 * 20)
    assert "quadrant.weight" not in two
    heads = {n: s for n, s in built("lstm", DIGITS).named_parameters() if n.startswith("head")}
    assert {n: tuple(s.shape) for n, s in heads.items() if n.endswith("weight")}.items() <= (
        three.items()
    )
    with pytest.raises(ValueError, match="layers must be 2 or 3, got 4"):
        built("convnet", DIGITS, "model.layers=4")


@pytest.mark.parametrize("name", [name for name, shows in SEEN if shows == "images"])
@pytest.mark.parametrize("where", ["input", "encoding", "head"])
def test_dropout_acts_in_training_only(name, where):
    model = built(name, DIGITS, f"model.{where}_dropout=0.5")
    inputs = some_inputs(DIGITS, 4)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


def test_normalised_start_is_refused_where_nothing_is_normalised():
    with pytest.raises(UserError, match="inner_start=normalised needs layer_norm=true"):
        compose("control=normalised_start", "model.layer_norm=false")
