"""One contract for every model that ``conf/model`` offers."""

import pytest
import torch

from fwrnn.commands.composition import conf_dir
from fwrnn.interfaces import TaskSpec
from fwrnn.models import build_model
from tests.commands.compose import compose

MODELS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
SPEC = TaskSpec(vocabulary=37, classes=10)


@pytest.mark.parametrize("name", MODELS)
def test_model_classifies_reports_its_size_and_learns(name):
    config = compose(f"model={name}", "model.hidden_size=20").model
    assert config.name == name
    model = build_model(config, SPEC)
    inputs, targets = torch.randint(0, 37, (32, 11)), torch.randint(0, 10, (32,))
    logits = model(inputs)
    assert logits.shape == (32, 10)
    assert model.parameter_count == sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    first = None
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss.item() < first / 2


def test_state_sizes():
    sizes = {
        name: build_model(compose(f"model={name}", "model.hidden_size=20").model, SPEC).state_size
        for name in MODELS
    }
    assert sizes["lstm"] == 40
    assert sizes["irnn"] == 20
    assert sizes["fast_weights"] == 20 + 20 * 20
    assert sizes["associative_lstm"] == 20 + 4 * 20


def test_only_the_core_differs_between_models():
    def outside(name):
        model = build_model(compose(f"model={name}").model, SPEC)
        return {n: p.shape for n, p in model.named_parameters() if not n.startswith("core.")}

    assert all(outside(name) == outside("lstm") for name in MODELS)


def test_controls_are_configurations_of_the_fast_weights_layer():
    cores = {name: build_model(compose(f"model={name}").model, SPEC).core for name in MODELS}
    assert cores["rnn_layer_norm"].fast_lr == 0
    assert not cores["fast_weights_no_layer_norm"].layer_norm
    assert cores["fast_weights_folded"].inner_start == "previous"
