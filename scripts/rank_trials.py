"""Rank the trials of figure 5's random search by how soon they got to a reward of 0.9.

    python scripts/rank_trials.py outputs/sweeps/figure5_search-n16-1000

Of each core the five best, their seeds and what was drawn for them. Of equal ones the validation
reward decides.
"""

import argparse
import csv
import json
from pathlib import Path
from statistics import mean

from omegaconf import OmegaConf

SEARCHED = [
    "trainer.learning_rate", "trainer.entropy_cost", "trainer.clip_norm", "model.decay",
    "model.fast_lr", "model.inner_steps",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", metavar="SWEEP", type=Path, help="a folder of trials")
    parser.add_argument("--best", metavar="N", type=int, default=5, help="of each core; default: 5")
    options = parser.parse_args()
    print(f"| screen | model | seeds | M frames, mean | {' | '.join(SEARCHED)} |")
    print("|---" * (4 + len(SEARCHED)) + "|")
    for (size, model), trials in trials_of(options.sweep).items():
        for trial in sorted(trials, key=rank)[: options.best]:
            seeds = ", ".join(str(run["seed"]) for run in trial)
            drawn = " | ".join("–" if v is None else f"{v}" for v in trial[0]["searched"].values())
            print(f"| {size} | `{model}` | {seeds} | {rank(trial)[0] / 1e6:.2f} | {drawn} |")


def trials_of(folder: Path) -> dict[tuple[int, str], list[list[dict]]]:
    """The runs with the same settings, which differ in their seeds, by screen size and model."""
    trials: dict[tuple[int, str], dict[str, list[dict]]] = {}
    for path in sorted(folder.glob("*/seed*/metrics.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        config = OmegaConf.load(path.with_name("config.yaml"))
        run["searched"] = {key: OmegaConf.select(config, key) for key in SEARCHED}
        with path.with_name("curve.csv").open(encoding="utf-8") as file:
            run["all_frames"] = float(list(csv.DictReader(file))[-1]["frames"])
        cell = trials.setdefault((config.task.size, run["model"]), {})
        cell.setdefault(str(run["searched"]), []).append(run)
    return {cell: list(found.values()) for cell, found in sorted(trials.items())}


def rank(trial: list[dict]) -> tuple[float, float]:
    """Mean frames to 0.9, all of a run's where it never got there; of equal ones the reward."""
    frames = mean(run["frames_to_0.9"] or run["all_frames"] for run in trial)
    return frames, -mean(run["val_reward"] for run in trial)


if __name__ == "__main__":
    main()
