"""A picture of one answer: what the question attended to, and what other values would change."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fwrnn.learning.trained import sureness

_ASKED, _OTHER, _WRONG = "tab:orange", "tab:gray", "tab:red"


def png(result: dict) -> bytes:
    """The picture of what ``fwrnn ask`` found, see ``fwrnn.commands.ask``, as a PNG."""
    buffer = io.BytesIO()
    draw(result).savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def draw(result: dict) -> Figure:
    """The attention above, without it where the network has none; the edits below."""
    attends = result["attention"] is not None
    count = result["pairs"]
    size = (max(7.0, 0.26 * (2 * count + 2)), 3.2 * attends + 1.9 + 0.24 * count)
    figure = Figure(figsize=size, layout="constrained")
    right = result["answer"] == result["expected"]
    verdict = "" if right else f", which should be {result['expected']}"
    figure.suptitle(
        f"Told {result['question'][:-3]}, asked {result['question'][-1]}: "
        f"the network answers {result['answer']}{verdict}\n"
        f"{sureness(result['confidence'])}; trained on {result['trained_pairs']} pairs, "
        f"this has {count}",
        fontsize=11,
    )
    if attends:
        heights = [2.6, 1 + 0.24 * count]
        above, below = figure.subplots(2, 1, height_ratios=heights)
        _draw_attention(above, result)
    else:
        below = figure.subplots()
    _draw_edits(below, result)
    return figure


def _draw_attention(axes: Axes, result: dict) -> None:
    """A bar per earlier character: its share of what the last step retrieves."""
    characters, places, strengths = zip(*result["attention"], strict=True)
    shares = 100 * np.array(strengths) / max(np.abs(strengths).sum(), 1e-9)
    place = result["question"].index(result["question"][-1])
    asked = (place, place + 1)
    bars = axes.bar(places, shares, color=[_ASKED if k in asked else _OTHER for k in places])
    if len(places) <= 20:
        axes.bar_label(bars, fmt="%.0f %%", fontsize=8)
    axes.set_xticks(places, characters, family="monospace")
    axes.margins(x=0.01, y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel("share (per cent)")
    axes.set_title(
        f"What the last character, {result['question'][-1]}, attends to among those before it\n"
        "(orange: the pair asked for)",
        fontsize=9,
    )


def _draw_edits(axes: Axes, result: dict) -> None:
    """A row per pair, a column per value that it could have had, and what is then answered."""
    pairs = list(dict.fromkeys(edit["pair"] for edit in result["edits"]))
    axes.set(xlim=(-0.5, 9.5), ylim=(len(pairs) - 0.5, -0.5))
    for edit in result["edits"]:
        wrong = edit["answer"] != edit["expected"]
        changed = edit["answer"] != result["answer"]
        colour = _WRONG if wrong else _ASKED if changed else _OTHER
        place = int(edit["value"]), pairs.index(edit["pair"])
        axes.text(
            *place, edit["answer"], color=colour, ha="center", va="center",
            weight="bold" if changed or wrong else "normal",
        )  # fmt: skip
    for k, pair in enumerate(pairs):
        axes.text(int(pair[1]), k, "·", ha="center", va="center", color="black")
    axes.set_xticks(range(10), [str(value) for value in range(10)])
    axes.set_yticks(range(len(pairs)), pairs, family="monospace")
    axes.tick_params(length=0)
    axes.set(xlabel="the value it has instead (·: the one that it has)", ylabel="pair")
    axes.set_title(
        "What it answers when one pair has another value\n"
        "(grey: as before, orange: another and right, red: wrong)",
        fontsize=9,
    )
