"""A picture of a target: ours beside the paper's."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from fwrnn.files import write_whole
from fwrnn.reproduction import published
from fwrnn.reproduction.extras import SOLVED, curve
from fwrnn.reproduction.results import Result
from fwrnn.reproduction.targets import GAMES, Target

COLOURS = {  # of Okabe and Ito, told apart by the colour-blind too
    "fast_weights": "#D55E00", "multilevel": "#D55E00", "fast_weights_learned_read": "#CC79A7",
    "lstm": "#0072B2", "irnn": "#009E73", "rnn": "#009E73", "associative_lstm": "#E69F00",
    "convnet": "#56B4E9",
}  # fmt: skip


def draw(target: Target, results: Sequence[Result], file: Path) -> None:
    """Draw what there is of a target into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    found = [result for result in results if result.runs]
    figure.suptitle(target.title, fontsize=11)
    DRAWERS.get(target.name, _cells)(figure, target, found)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    few_colours, small = Image.open(drawn).convert("RGB").quantize(), BytesIO()
    few_colours.save(small, "PNG", optimize=True)  # a third of the size
    write_whole(file, small.getvalue())


def _cells(figure, target: Target, results: Sequence[Result]) -> None:
    """A line per cell: every seed, the mean with its interval, and the paper's."""
    figure.set_size_inches(8, 1.5 + 0.3 * max(len(results), 2))
    axes = figure.subplots()
    for y, result in enumerate(results):
        colour = COLOURS.get(result.cell.model, "0.3")
        assert result.measured is not None  # as it has runs
        mean, half = result.measured
        axes.plot(result.numbers, [y] * len(result.numbers), ".", color=colour, alpha=0.5)
        axes.errorbar(mean, y, xerr=half or 0, fmt="o", color=colour, capsize=3)
        if result.cell.paper is not None:
            axes.plot(result.cell.paper, y, "D", mfc="none", mec="black", markersize=7)
    axes.set_yticks(
        range(len(results)), [f"{r.cell.model}  {r.cell.column}" for r in results], fontsize=8
    )
    axes.set_ylabel(f"network, {target.column}")
    axes.invert_yaxis()
    papers = [r.cell.paper for r in results if r.cell.paper is not None]
    if min([x for r in results for x in r.numbers] + papers, default=0) > 0.1:
        axes.set(xscale="log", xlabel="test error in %")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        most = max([x for r in results for x in r.numbers] + papers, default=0)
        axes.set_xscale("symlog", linthresh=0.01)
        right = max(1.6 * most, axes.get_xlim()[1])  # no mark is cut
        axes.set(xlabel="test error in %, linear below 0.01", xlim=(-0.0005, right))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.plot([], [], "o", color="0.3", label="ours: mean ± 95 % interval; small: each seed")
    if papers:
        axes.plot([], [], "D", mfc="none", mec="black", label="the paper's")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    axes.grid(axis="x", color="0.9")


def _figure2(figure, target: Target, results: Sequence[Result]) -> None:
    """Nats against updates, both on logarithmic axes: ours, a line per seed, dashed the paper's."""
    axes = figure.subplots()
    for result in results:
        colour = COLOURS.get(result.cell.model, "0.3")
        for k, run in enumerate(result.runs):
            label = f"{result.cell.model}, ours" if k == 0 else None
            axes.plot(*curve(run, "updates", "val_loss"), color=colour, label=label, linewidth=1.2)
    for model in ("fast_weights", "associative_lstm", "lstm", "irnn"):
        updates, nats = published.curve("figure2", model)
        style = {"color": COLOURS[model], "linewidth": 1, "alpha": 0.8}
        axes.plot(updates[1:], nats[1:], "--", label=f"{model}, the paper's", **style)
    axes.set(xscale="log", yscale="log", xlabel="updates", xlim=(400, 8e5))
    axes.set_ylabel("nats, less is better (ours: validation, the paper's: test)")
    axes.axhline(SOLVED, color="0.8", linewidth=0.8, zorder=0, label=f"{SOLVED} nats: solved")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _figure5(figure, target: Target, results: Sequence[Result]) -> None:
    """The greedy reward against frames: mean and range over seeds, dashed the paper's."""
    figure.set_size_inches(11, 5)
    for axes, size in zip(figure.subplots(1, len(GAMES)), GAMES, strict=True):
        above = axes.twiny()
        for result in results:
            if result.cell.column != f"n{size}":
                continue
            colour = COLOURS[result.cell.model]
            curves = [curve(run, "frames", "val_reward") for run in result.runs]
            frames = max((each[0] for each in curves), key=len)
            rewards = np.stack([np.interp(frames, *each) for each in curves])
            label = f"{result.cell.model}, {len(curves)} seeds: mean, lowest to highest"
            axes.plot(frames / 1e6, rewards.mean(0), color=colour, label=label)
            axes.fill_between(
                frames / 1e6, rewards.min(0), rewards.max(0), color=colour, alpha=0.15, linewidth=0
            )
            above.plot(
                *published.curve(f"figure5-n{size}", result.cell.model), "--", color=colour,
                linewidth=0.9, alpha=0.8,
            )  # fmt: skip
        axes.axhline(0.9, color="0.7", linewidth=0.8, zorder=0, label="reward 0.9")
        axes.set(ylim=(-1.02, 1.05), xlabel="millions of frames played")
        axes.set_ylabel("mean reward: 1 catches all, −1 none")
        axes.set_title(f"screens of {size}×{size}", pad=34, fontsize=10)
        above.set_xlabel("dashed: the paper's curves, in its steps", fontsize=8)
    lines = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    place = {"loc": "outside lower center", "ncols": 4, "frameon": False}
    figure.legend(lines.values(), lines.keys(), fontsize=8, **place)


def _lengths(figure, target: Target, results: Sequence[Result]) -> None:
    """The error against the number of pairs, a line for each network: the mean over its seeds."""
    axes = figure.subplots()
    for result in results:
        errors = next((extra.value for extra in result.extras if extra.name == "pairs"), None)
        if errors is None:
            continue
        means = [max(float(np.mean(found)), 0.004) for found in errors.values()]
        style = "-" if result.cell.column == 100 else ":"
        model, _, note = result.cell.model.partition(", ")
        name = ", ".join(filter(None, [f"{model}, {result.cell.column} units", note]))
        axes.plot(
            list(errors), means, style, marker=".", label=name,
            color=COLOURS.get(result.cell.model, "0.3"),
        )  # fmt: skip
    axes.set(
        yscale="log", xlabel="pairs in a sequence; all but one are trained on 4 alone",
        ylabel="error in % (0 drawn at 0.004)",
    )  # fmt: skip
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axvline(4, color="0.8", linewidth=0.8, zorder=0)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


DRAWERS = {"figure2": _figure2, "figure5": _figure5, "lengths": _lengths}
