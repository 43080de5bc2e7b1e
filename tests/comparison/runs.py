"""Run folders as train leaves them, without training."""

import json
from pathlib import Path

import yaml

CONFIG = {
    "task": {"name": "assoc_retrieval", "pairs": 4, "train_size": 100},
    "model": {"name": "lstm", "core": "lstm", "hidden_size": 20, "head_size": None},
    "trainer": {"name": "supervised", "max_updates": 100, "learning_rate": 0.001, "warmup": 0.1},
    "seed": 0,
    "device": "auto",
    "threads": 1,
    "control": "none",
}


def write_run(folder: Path, *settings: tuple, error: float = 0.1, **metrics) -> Path:
    """A finished run; ``settings`` are pairs of a dotted key and its value, other than CONFIG's."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in settings:
        group, _, name = key.partition(".")
        (config[group] if name else config)[name or key] = value
    measured = {
        "seed": config["seed"], "test_error": error, "val_error": error / 2, "updates": 100,
        "updates_per_second": 50.0, "commit": "0123456789ab",
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(measured | metrics), encoding="utf-8")
    lines = [f"{update},{0.9 - update * 0.008},{update}" for update in (10, 50, 100)]
    (folder / "curve.csv").write_text("\n".join(["updates,val_error,seconds", *lines]) + "\n")
    return folder


def write_game(folder: Path, reward: float, *settings: tuple) -> Path:
    """A finished run of Catch."""
    task = ("task", {"name": "catch", "size": 16, "visible_frames": 3})
    run = write_run(folder, task, *settings)
    (run / "metrics.json").write_text(
        json.dumps({"test_reward": reward, "val_reward": reward, "test_games": 9, "val_games": 9})
    )
    return run
