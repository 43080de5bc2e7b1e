"""What every task promises, shipped or brought, by its kind."""

import numpy as np
import pytest
import torch

from fwrnn.config import TASKS
from fwrnn.interfaces import Images, Screens, Symbols
from fwrnn.learning.kinds import KINDS
from tests.commands.compose import compose

SMALL = {  # and in need of no download
    "assoc_retrieval": ["task.train_size=64", "task.val_size=32", "task.test_size=32"],
    "mnist_glimpses": ["task.dataset=digits"],
    "facial_expression": [
        "task.identities=12", "task.images_per_identity=3", "task.val_identities=3",
        "task.test_identities=3",
    ],
    "catch": ["task.size=6"],
}  # fmt: skip
INPUTS = {"symbols": Symbols, "images": Images, "screens": Screens}
SUPERVISED = [name for name, schema in TASKS.items() if schema.kind == "supervised"]
GAMES = [name for name, schema in TASKS.items() if schema.kind == "games"]


def config_of(name):
    return compose(f"task={name}", *SMALL.get(name, ())).task


def rows(examples) -> set[bytes]:
    return {bytes(row.numpy().tobytes()) for row in examples.inputs}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_what_it_is(name):
    config = config_of(name)
    task = config.build(0)
    assert config.name == name
    assert config.kind in KINDS
    assert isinstance(task.spec.inputs, INPUTS[config.shows])
    assert len(set(task.spec.labels)) == len(task.spec.labels) > 1
    chosen = [getattr(config, key, None) for key in ("dataset", "layout")]
    if any(chosen):  # a stand-in does not pass for the real one
        assert config.variant in chosen


@pytest.mark.parametrize("name", SUPERVISED)
def test_splits_are_whole_and_repeat(name):
    task, again = config_of(name).build(1), config_of(name).build(1)
    for split in ("train", "val", "test"):
        inputs, targets = task.split(split)
        assert len(inputs) == len(targets) > 0
        assert targets.dtype == torch.int64
        assert targets.min() >= 0 and targets.max() < len(task.spec.labels)
        match task.spec.inputs:
            case Symbols(vocabulary):
                assert inputs.ndim == 2 and inputs.dtype == torch.int64
                assert inputs.min() >= 0 and inputs.max() < vocabulary
            case Images(size):
                assert inputs.shape[1:] == (size, size) and inputs.dtype == torch.uint8
        assert torch.equal(inputs, again.split(split).inputs)
        assert torch.equal(targets, again.split(split).targets)
    if not task.resample:
        assert torch.equal(task.split("train", 3).inputs, task.split("train").inputs)


@pytest.mark.parametrize("name", SUPERVISED)
def test_splits_share_nothing(name):
    parts = [rows(config_of(name).build(0).split(split)) for split in ("train", "val", "test")]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


@pytest.mark.parametrize("name", GAMES)
def test_games_differ_by_split_and_seed_and_end(name):
    task = config_of(name).build(0)
    seeds = {task.seed_of(split, k) for split in ("train", "val", "test") for k in range(5)}
    assert len(seeds) == 15
    assert task.seed_of("val") == config_of(name).build(0).seed_of("val")
    assert task.seed_of("val") != config_of(name).build(1).seed_of("val")
    games = task.games(20)
    screen, _ = games.reset(seed=task.seed_of("val"))
    size = task.spec.inputs.size
    assert screen.shape == (20, size, size) and screen.dtype == np.uint8
    alive, scores = np.ones(20, dtype=bool), np.zeros(20)
    for _ in range(10_000):
        actions = np.random.default_rng(0).integers(0, len(task.spec.labels), 20)
        screen, reward, ended, cut_short, _ = games.step(actions)
        scores += reward * alive
        alive &= ~(ended | cut_short)
        if not alive.any():
            break
    assert not alive.any()
    least, most = task.reward_range
    assert ((least <= scores) & (scores <= most)).all()
