"""Adam and the moving average of the weights beside PyTorch's own."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fwrnn.learning.adam import Adam
from fwrnn.learning.assembly import assemble
from fwrnn.learning.games.a3c import one_update
from fwrnn.learning.run_folder import RunFolder
from fwrnn.learning.supervised.trainer import MovingAverage
from tests.commands.compose import compose

SIZES = (7, 33, 3)


def network() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(SIZES, SIZES[1:], strict=False)))
    model.unused = nn.Parameter(torch.ones(2))
    return model


def steps(model, optimizer, count: int) -> None:
    """Some updates; the same ones each time that as many are asked for."""
    random = torch.Generator().manual_seed(count)
    for _ in range(count):
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        optimizer.zero_grad()
        inputs = torch.randn(5, SIZES[0], generator=random)
        model(inputs).square().sum().backward()
        optimizer.step()


def theirs(model, weight_decay: float) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    if not weight_decay:
        return torch.optim.Adam(parameters, lr=0.1, fused=True)
    groups = [
        {"params": [x for x in parameters if x.ndim > 1], "weight_decay": weight_decay},
        {"params": [x for x in parameters if x.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.1, fused=True)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adam_is_that_of_torch_and_goes_on_from_its_checkpoints(weight_decay):
    ours, reference = network(), network()
    optimizer = Adam(ours.parameters(), 0.1, weight_decay)
    other = theirs(reference, weight_decay)
    steps(ours, optimizer, 6)
    steps(reference, other, 6)
    assert_equal(ours, reference)
    mine, wanted = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert mine.keys() == wanted.keys()
    assert len(mine) == len(list(ours.parameters())) - 1  # one never had a gradient
    for number, state in wanted.items():
        assert mine[number].keys() == state.keys()
        assert all(torch.equal(mine[number][name], state[name]) for name in state)

    again = Adam(ours.parameters(), optimizer.param_groups[0]["lr"], weight_decay)
    again.load_state_dict(other.state_dict())
    steps(ours, again, 4)
    steps(reference, other, 4)
    assert_equal(ours, reference)


def test_adam_refuses_the_state_of_other_parameters():
    model = network()
    saved = Adam(model.parameters(), 0.1, weight_decay=0.1)
    steps(model, saved, 1)
    with pytest.raises(ValueError, match="groups"):
        Adam(model.parameters(), 0.1).load_state_dict(saved.state_dict())
    wider = nn.Sequential(nn.Linear(8, 33), nn.Linear(33, 3))
    wider.unused = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="sizes"):
        Adam(wider.parameters(), 0.1, weight_decay=0.1).load_state_dict(saved.state_dict())


def test_moving_average_is_that_of_torch():
    model = network()
    ours = MovingAverage(model, 0.9)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = Adam(model.parameters(), 0.1)
    for _ in range(4):
        steps(model, optimizer, 1)
        ours.follow()
        reference.update_parameters(model)
    assert_equal(ours, reference)


@pytest.mark.parametrize("words", [
    ["task.train_size=64", "task.val_size=32"], ["task=catch", "task.size=5"],
    ["task=catch", "task.size=5", "trainer=a3c"],
], ids=" ".join)  # fmt: skip
def test_every_trainer_clips_gradients_and_keeps_to_its_schedule(words, tmp_path):
    settings = ["trainer.clip_norm=1e-3", "trainer.learning_rate=0.1", "trainer.warmup=0.5"]
    settings += ["trainer.max_updates=20", "model=rnn", "model.hidden_size=8", "threads=1"]
    config, _, task, model, device = assemble(compose(*words, *settings))
    if "trainer=a3c" in words:
        optimizer, games = Adam(model.parameters(), 0.1), task.games(4)
        one_update(model, deepcopy(model), optimizer, games, task, config.trainer, 0, nullcontext())
    else:
        trainer = config.trainer.build(model, task, 0, device, RunFolder(tmp_path))
        trainer.update()
        optimizer = trainer.optimizer
    norm = nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 10)


def assert_equal(ours: nn.Module, reference: nn.Module) -> None:
    mine, wanted = ours.state_dict(), reference.state_dict()
    assert mine.keys() == wanted.keys()
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)
