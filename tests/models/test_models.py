"""One contract for every model that ``conf/model`` offers, on symbols and on images."""

import pytest
import torch

from fwrnn.commands.composition import conf_dir
from fwrnn.interfaces import Images, Symbols, TaskSpec
from fwrnn.models import build_model
from tests.commands.compose import compose

MODELS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
IMAGES_ONLY = {"multilevel", "convnet"}
TEXT = TaskSpec(Symbols(vocabulary=37), labels=tuple("0123456789"))
DIGITS = TaskSpec(Images(size=12), labels=tuple("0123456789"))
RECURRENT = [name for name in MODELS if name != "convnet"]
BOTH = [
    (name, spec)
    for name in MODELS
    for spec in (TEXT, DIGITS)
    if spec is DIGITS or name not in IMAGES_ONLY
]


def built(name, spec, *overrides):
    return build_model(compose(f"model={name}", "model.hidden_size=20", *overrides).model, spec)


def some_inputs(spec, count):
    if spec is TEXT:
        return torch.randint(0, 37, (count, 11))
    return torch.randint(0, 256, (count, 12, 12), dtype=torch.uint8)


@pytest.mark.parametrize(("name", "spec"), BOTH)
def test_model_classifies_reports_its_size_and_learns(name, spec):
    config = compose(f"model={name}", "model.hidden_size=20").model
    assert config.name == name
    model = build_model(config, spec)
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


@pytest.mark.parametrize("name", sorted(IMAGES_ONLY))
def test_models_that_look_at_images_refuse_other_tasks(name):
    with pytest.raises(ValueError, match=f"'{name}' looks at images.*task=mnist_glimpses"):
        built(name, TEXT)


def test_state_sizes():
    sizes = {name: built(name, DIGITS).state_size for name in MODELS}
    assert sizes["lstm"] == 40
    assert sizes["irnn"] == 20
    assert sizes["fast_weights"] == sizes["multilevel"] == 20 + 20 * 20
    assert sizes["associative_lstm"] == 20 + 4 * 20
    assert sizes["convnet"] == 0


@pytest.mark.parametrize("spec", [TEXT, DIGITS], ids=["symbols", "images"])
def test_only_the_core_differs_between_recurrent_models(spec):
    def outside(name):
        parameters = built(name, spec).named_parameters()
        return {n: p.shape for n, p in parameters if not n.startswith("core.")}

    names = [name for name in RECURRENT if spec is DIGITS or name not in IMAGES_ONLY]
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


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("where", ["input", "encoding", "head"])
def test_dropout_acts_in_training_only(name, where):
    model = built(name, DIGITS, f"model.{where}_dropout=0.5")
    inputs = some_inputs(DIGITS, 4)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


def test_pixels_cannot_be_dropped_from_symbols():
    with pytest.raises(ValueError, match="input_dropout is for pixels"):
        built("lstm", TEXT, "model.input_dropout=0.5")


def test_controls_are_configurations_of_the_fast_weights_layer():
    cores = {name: built(name, TEXT).core for name in RECURRENT if name not in IMAGES_ONLY}
    assert cores["rnn_layer_norm"].fast_lr == 0
    assert not cores["fast_weights_no_layer_norm"].layer_norm
    assert cores["fast_weights_folded"].inner_start == "previous"
