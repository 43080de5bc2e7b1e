"""The comparison with nn.RNN: its tasks, its command, and that it tells learning from not."""

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from fwrnn.benchmarks import battery
from fwrnn.benchmarks.battery import markdown
from fwrnn.cli import main
from fwrnn.commands.battery import read
from fwrnn.learning.claim import claimed


@pytest.mark.parametrize("name", battery.TASKS)
@pytest.mark.parametrize("steps", battery.STEPS)
def test_tasks_have_their_shapes_and_can_be_made_again(name, steps):
    task = battery.TASKS[name]
    one, other = (task.make(steps, 4, np.random.default_rng(0)) for _ in range(2))
    assert one.inputs.shape[:2] == (steps, 4) and one.inputs.dtype == torch.float32
    assert len(one.targets) <= steps and one.targets.shape[1] == 4
    assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
    if not one.targets.is_floating_point():
        assert one.targets.min() >= 0 and one.targets.max() < task.outputs


def test_tasks_ask_for_what_was_shown():
    inputs, targets = battery.adding(16, 50, np.random.default_rng(0))
    assert (inputs[..., 1].sum(0) == 2).all()
    torch.testing.assert_close((inputs[..., 0] * inputs[..., 1]).sum(0), targets[0])
    inputs, targets = battery.copying(16, 50, np.random.default_rng(0))
    assert torch.equal(inputs[: len(targets)].argmax(-1), targets)
    inputs, targets = battery.retrieval(16, 50, np.random.default_rng(0))
    symbols = inputs.argmax(-1)
    for b in range(50):
        shown = dict(zip(symbols[4:12:2, b].tolist(), symbols[5:12:2, b].tolist(), strict=True))
        assert [shown[key] - 8 for key in symbols[12:, b].tolist()] == targets[:, b].tolist()
    inputs, targets = battery.text(16, 50, np.random.default_rng(0))
    assert torch.equal(inputs[1:].argmax(-1), targets[:-1])


def test_what_is_lost_without_looking():
    for name, task in battery.TASKS.items():
        targets = task.make(64, 4000, np.random.default_rng(1)).targets
        if name == "adding":
            found = targets.var().item()
        else:
            shares = torch.bincount(targets.flatten()).double() / targets.numel()
            found = -(shares[shares > 0] * shares[shares > 0].log()).sum().item()
        assert math.isclose(found, task.blank, rel_tol=0.03), name


def result(layer: str, loss: float, **changes) -> dict:
    setting = {"task": "retrieval", "steps": 16, "layers": 1, "units": 32, "nonlinearity": "relu"}
    return setting | {"layer": layer, "seed": 0, "loss": loss, "blank": 1.0} | changes


@pytest.mark.parametrize(("theirs", "ours", "learns", "close", "solved"), [
    (0.5, 0.52, True, True, False), (0.5, 0.54, True, False, False),
    (0.99, 1.0, False, True, False), (0.001, 0.015, True, True, True),
    (0.5, 0.01, True, True, True),
])  # fmt: skip
def test_cells_say_whether_ours_is_close(theirs, ours, learns, close, solved):
    (cell,) = battery.cells([result("nn.RNN", theirs), result("FastWeightsRNN", ours)])
    assert (cell["learns"], cell["close"], cell["solved"]) == (learns, close, solved)
    assert ("**" in markdown([cell]).split("###")[1]) == (learns and not close)


def test_only_seeds_of_both_are_compared():
    results = [result("nn.RNN", 0.5), result("nn.RNN", 0.9, seed=1), result("FastWeightsRNN", 0.4)]
    (cell,) = battery.cells(results)
    assert (cell["seeds"], cell["rnn_loss"]) == (1, 0.5)
    assert battery.cells(results[:2]) == []


@pytest.mark.slow
def test_the_command_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    trials = [battery.Trial("text", 16, 1, 32, "tanh", layer, 0, 2) for layer in battery.LAYERS]
    monkeypatch.setattr(battery, "trials", lambda *budget: trials)
    arguments = ["battery", "--output", str(tmp_path), "--jobs", "1", "--json", "--updates", "2"]
    assert main(arguments) == 0
    (cell,) = json.loads(capsys.readouterr().out)
    assert cell["task"] == "text" and cell["seeds"] == 1
    kept = tmp_path / "battery.jsonl"
    first = kept.read_text()
    kept.write_text(first.splitlines()[0] + "\n" + first.splitlines()[1][:40])  # a full disk
    here = lambda *arguments: ThreadPoolExecutor(1)  # noqa: E731  (in this process)
    monkeypatch.setattr("fwrnn.commands.battery.ProcessPoolExecutor", here)
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == [cell]
    results = [json.loads(line) for line in kept.read_text().splitlines()]
    assert {result["layer"] for result in results} == set(battery.LAYERS) and len(results) == 2
    assert all("commit" in result for result in results)
    for strange in (b"123\n", b'{"task": 3}\n', b"\xff\n"):  # is left out
        kept.write_bytes(kept.read_bytes() + strange)
        assert main(arguments) == 0 and json.loads(capsys.readouterr().out) == [cell]
    with claimed(tmp_path):
        assert main(arguments) == 2  # and takes nothing from who works there
    assert "is being worked on by process" in capsys.readouterr().err
    deeper = [replace(trial, layers=2) for trial in trials]
    monkeypatch.setattr(battery, "trials", lambda *budget: deeper)
    assert main(arguments) == 0
    page = (tmp_path / "battery.md").read_text()
    assert "ours / `nn.RNN`" in page
    assert "| 16 | 1 | 32 |" in page and "| 16 | 2 | 32 |" in page
    longer = [replace(trial, updates=3) for trial in trials]
    monkeypatch.setattr(battery, "trials", lambda *budget: longer)
    assert main([*arguments[:-1], "3"]) == 0
    page = (tmp_path / "battery.md").read_text()  # of networks with one budget alone
    assert "| 16 | 1 | 32 |" in page and "| 16 | 2 | 32 |" not in page


def be_killed(trial):
    os.kill(os.getpid(), 9)


@pytest.mark.slow
def test_nobody_waits_for_a_process_that_was_killed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(battery, "run", be_killed)
    part = ["--task", "text", "--steps", "16", "--units", "32", "--layers", "1", "--seeds", "1"]
    assert main(["battery", *part, "--jobs", "1", "--output", str(tmp_path)]) == 1
    assert "a process ended early" in capsys.readouterr().err


def test_what_diverged_is_kept_as_that(tmp_path, monkeypatch):
    monkeypatch.setattr(battery, "HELD_OUT", 8)
    trial = battery.Trial("adding", 16, 1, 32, "relu", "FastWeightsRNN", 0, 101, 1e38)
    lost = battery.run(trial)
    assert lost["loss"] is None
    setting = {name: lost[name] for name in (*battery.SETTINGS, "updates", "learning_rate")}
    good = [result(layer, 0.1, seed=seed, **setting) for layer in battery.LAYERS
            for seed in (0, 1) if (layer, seed) != ("FastWeightsRNN", 0)]  # fmt: skip
    file = tmp_path / "battery.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in (lost, *good)))
    assert read(file) == [lost, *good]
    (cell,) = battery.cells(read(file))
    assert cell["seeds"] == 2 and not cell["close"] and not cell["solved"]
    assert "inf / 0.1000" in markdown([cell])


def test_any_part_can_be_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "fwrnn.commands.battery.train", lambda trials, *_: asked.extend(trials) or []
    )
    part = "--task text --task adding --steps 200 --layers 2 --units 32 --nonlinearity relu"
    part += " --learning-rate 1e-3"
    assert main(["battery", *part.split(), "--seeds", "2", "--output", str(tmp_path)]) == 0
    assert {trial.task for trial in asked} == {"text", "adding"} and len(asked) == 2 * 2 * 2
    chosen = {(t.steps, t.layers, t.units, t.nonlinearity, t.learning_rate) for t in asked}
    assert chosen == {(200, 2, 32, "relu", 1e-3)}


@pytest.mark.parametrize(("part", "told"), [
    (["--task", "txt"], "--task must be one of text, adding, copying, retrieval, got 'txt'"),
    (["--units", "64"], "--units must be one of 32, 128, got 64"),
    (["--learning-rate", "0"], "must be a number above 0, got '0'"),
    (["--learning-rate", "nan"], "must be a number above 0, got 'nan'"),
])  # fmt: skip
def test_an_unknown_part_is_named(part, told, capsys):
    assert main(["battery", *part]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_defaults_learn_and_recall():
    """The least of the battery: text and retrieval, a few hundred updates, 32 units."""
    losses = {
        (task, layer): battery.run(battery.Trial(task, 16, 1, 32, "tanh", layer, 0, updates))[
            "loss"
        ]
        for task, updates in (("text", 300), ("retrieval", 1200))
        for layer in battery.LAYERS
    }
    assert losses["text", "FastWeightsRNN"] < losses["text", "nn.RNN"] < 2.5
    assert losses["retrieval", "FastWeightsRNN"] < 0.1 < 0.8 < losses["retrieval", "nn.RNN"]
