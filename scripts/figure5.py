"""Draw figure 5 of the paper, Catch with memory, from kept runs, and print what they reached.

    python scripts/figure5.py                        # from outputs/paper/figure5
    python scripts/figure5.py --search SWEEP         # the five best trials of a random search

A line is the mean greedy reward over a model's runs, its band the lowest and the highest of them.
The paper's curves are dashed, on an axis of their own: it does not state the unit of their steps.
"""

import argparse
import csv
import json
from math import inf
from pathlib import Path
from statistics import mean, median

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import OmegaConf

FOLDER = Path(__file__).parents[1] / "outputs" / "paper" / "figure5"
COLOURS = {"fast_weights": "tab:red", "lstm": "tab:blue", "rnn": "tab:green"}
BEST = 5
SEARCHED = [
    "trainer.learning_rate",
    "trainer.entropy_cost",
    "model.decay",
    "model.fast_lr",
    "model.inner_steps",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search", metavar="SWEEP", type=Path, help="a folder of trials")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="default: figure5.png there")
    options = parser.parse_args()
    folder = options.search or FOLDER
    runs = read_runs(folder)
    if not runs:
        parser.error(f"there are no finished runs in {folder}")
    if options.search:
        runs = {cell: best_of(found) for cell, found in runs.items()}
    print(table(runs, bool(options.search)))
    picture = options.picture or folder / "figure5.png"
    draw(runs).savefig(picture, dpi=110)
    print(f"\ndrawn in {picture}")


def read_runs(folder: Path) -> dict[tuple[int, str], list[dict]]:
    """Metrics, curve and settings of every finished run, by screen size and model."""
    runs: dict[tuple[int, str], list[dict]] = {}
    for path in sorted(folder.glob("*/seed*/metrics.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        config = OmegaConf.load(path.with_name("config.yaml"))
        run["size"] = config.task.size
        run["searched"] = {key: OmegaConf.select(config, key) for key in SEARCHED}
        with path.with_name("curve.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        run["curve"] = np.array([[float(r["frames"]), float(r["val_reward"])] for r in rows]).T
        runs.setdefault((run["size"], run["model"]), []).append(run)
    order = list(COLOURS)
    return dict(
        sorted(
            (cell for cell in runs.items() if cell[0][1] in order),
            key=lambda cell: (cell[0][0], order.index(cell[0][1])),
        )
    )


def best_of(runs: list[dict]) -> list[dict]:
    """The runs of the best trials, the best one's first."""
    return [run for trial in sorted(trials_of(runs), key=rank)[:BEST] for run in trial]


def trials_of(runs: list[dict]) -> list[list[dict]]:
    """Runs with the same settings, which differ in their seeds."""
    trials: dict[str, list[dict]] = {}
    for run in runs:
        trials.setdefault(str(run["searched"]), []).append(run)
    return list(trials.values())


def rank(trial: list[dict]) -> tuple[float, float]:
    """Mean frames to 0.9, all of a run's where it never got there; of equal ones the reward."""
    frames = mean(run["frames_to_0.9"] or run["curve"][0, -1] for run in trial)
    return frames, -mean(run["val_reward"] for run in trial)


def table(runs: dict, searched: bool) -> str:
    """Markdown: a row per model and size, and of a search a row per trial."""
    lines = [
        "| screen | model | runs | test reward | each | M frames to 0.9 | each | min | commit |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for (size, model), found in runs.items():
        rewards = [run["test_reward"] for run in found]
        frames = [run["frames_to_0.9"] or inf for run in found]
        each = ", ".join(f"{reward:.3f}" for reward in rewards)
        minutes = mean(run["seconds"] for run in found) / 60
        commits = ", ".join(sorted({short(run["commit"]) for run in found}))
        lines.append(
            f"| {size} | `{model}` | {len(found)} | {mean(rewards):.3f} | {each} | "
            f"{millions(median(frames))} | {', '.join(map(millions, frames))} | "
            f"{minutes:.1f} | {commits} |"
        )
    if searched:
        lines += ["", f"| screen | model | seeds | M frames, mean | {' | '.join(SEARCHED)} |"]
        lines.append("|---" * (4 + len(SEARCHED)) + "|")
        for (size, model), found in runs.items():
            for trial in trials_of(found):
                seeds = ", ".join(str(run["seed"]) for run in trial)
                drawn = trial[0]["searched"].values()
                drawn = " | ".join("–" if value is None else f"{value}" for value in drawn)
                frames = millions(rank(trial)[0])
                lines.append(f"| {size} | `{model}` | {seeds} | {frames} | {drawn} |")
    return "\n".join(lines)


def millions(frames: float) -> str:
    """– for never."""
    return "–" if frames == inf else f"{frames / 1e6:.2f}"


def short(commit: str | None) -> str:
    """As git shows it; + where the code had been changed, – where it was not known."""
    return f"`{commit[:7]}{'+' * commit.endswith('+')}`" if commit else "–"


def draw(runs: dict) -> Figure:
    """A panel per screen size."""
    sizes = sorted({size for size, _ in runs})
    figure = Figure(figsize=(6.2 * len(sizes), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        for (other, model), found in runs.items():
            if other == size:
                draw_band(axes, [run["curve"] for run in found], model)
        axes.set(ylim=(-1.02, 1.05), xlabel="millions of frames", ylabel="mean reward, greedy")
        axes.set_title(f"{size}×{size}", pad=34)
        axes.axhline(0.9, color="0.85", linewidth=0.8, zorder=0)
        published = FOLDER / "published" / f"n{size}.csv"
        if published.exists():
            draw_published(axes.twiny(), published)
        axes.legend(loc="center right", fontsize=8)
    return figure


def draw_band(axes, curves: list[np.ndarray], model: str) -> None:
    frames = max((curve[0] for curve in curves), key=len)
    rewards = np.stack([np.interp(frames, *curve) for curve in curves])
    axes.plot(frames / 1e6, rewards.mean(0), color=COLOURS[model], label=f"{model}, {len(curves)}")
    axes.fill_between(
        frames / 1e6, rewards.min(0), rewards.max(0), color=COLOURS[model], alpha=0.18, linewidth=0
    )


def draw_published(axes, path: Path) -> None:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    for model, colour in COLOURS.items():
        points = [
            (float(row["step_unit"]), float(row["average_reward"]))
            for row in rows
            if row["model"] == model
        ]
        axes.plot(*zip(*points, strict=True), "--", color=colour, linewidth=0.9, alpha=0.7)
    axes.set_xlabel("dashed: the paper's curves, in its steps", fontsize=8)


if __name__ == "__main__":
    main()
