"""A third kind of learning, with its own targets, test and pictures, through the same commands."""

import json
from importlib.metadata import EntryPoint

from fwrnn import registry
from fwrnn.cli import main
from fwrnn.commands.train import train
from fwrnn.config import Config
from tests.commands.compose import compose
from tests.learning import per_step

BROUGHT = {
    "fwrnn.tasks": ("echo", "EchoConfig"),
    "fwrnn.trainers": ("per_step", "PerStepConfig"),
    "fwrnn.kinds": ("per_step", "PerStep"),
}


def test_another_kind_trains_and_evaluates_and_nobody_else_knows(
    tiny, tmp_path, monkeypatch, capsys
):
    def brought(group):
        name, attribute = BROUGHT.get(group, (None, None))
        entry = EntryPoint(name, f"tests.learning.per_step:{attribute}", group)
        return {name: entry} if name else {}

    monkeypatch.setattr(registry, "_brought", brought)
    usual = compose(
        *tiny, "trainer.max_updates=200", "trainer.learning_rate=0.01", "trainer.average_decay=null"
    )
    settings = {**vars(usual.trainer), "name": "per_step"}
    config = Config(
        per_step.EchoConfig("echo", 6), usual.model, per_step.PerStepConfig(**settings), 0, "cpu", 1
    )
    metrics = train(config, tmp_path)
    assert metrics["test_step_error"] < 0.5
    assert metrics == json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert (tmp_path / "pictures" / "steps.png").is_file()
    assert main(["evaluate", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "of all steps wrong" in printed and "as recorded, exactly" in printed
