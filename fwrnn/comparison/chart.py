"""A picture of a comparison: learning curves, and the final scores with a point per seed."""

import io
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fwrnn.comparison.cells import heading, row_labels, score_cell, score_name
from fwrnn.comparison.found import Run, Trouble
from fwrnn.comparison.rows import Comparison, Row
from fwrnn.errors import UserError
from fwrnn.reading import read_curve

MOST_ROWS = 24
MOST_SECTIONS = 8
MOST_POINTS = 600
LONGEST_LABEL = 58
FEWEST_BARS = 5  # as much room, for them not to look like walls
FEW = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#8C6D31"]
DECADES = 1.0
"""Errors that span more are drawn on a logarithmic axis."""
PLAIN: dict = {"text.parse_math": False, "svg.hashsalt": "fwrnn", "svg.fonttype": "path"}
"""Text from a file is no formula."""
Curves = dict[int, list[tuple[float, float]]]
"""Points (updates, validation score) of runs, by their ids."""


class Drawn(NamedTuple):
    """A row on the picture: its place in the table from 1, and its colour."""

    number: int
    row: Row
    colour: str


def read_curves(runs: Iterable[Run]) -> tuple[Curves, list[Trouble]]:
    """The curves of runs, and what was wrong with them."""
    curves, troubles = {}, []
    for run in runs:
        curves[id(run)] = []
        try:
            points, broken = read_curve(run.folder / "curve.csv", f"val_{run.score.name}")
        except OSError as error:
            words = f"curve.csv cannot be read: {error.strerror}"
        except UserError as error:
            words = f"curve.csv: {error}"
        else:
            curves[id(run)] = points
            words = f"curve.csv: {broken:,} broken lines, not drawn" if broken else ""
        troubles += [Trouble(run.folder, "broken", words)] if words else []
    return curves, troubles


def png(comparisons: Sequence[Comparison], curves: Curves) -> bytes:
    """The picture as the bytes of a PNG."""
    return _saved(comparisons, curves, "png", facecolor="white")


def svg(comparisons: Sequence[Comparison], curves: Curves) -> str:
    """The picture as an element of a page."""
    text = _saved(comparisons, curves, "svg", metadata={"Date": None}).decode()
    return text[text.index("<svg") :]


def _saved(comparisons, curves, form: str, **options) -> bytes:
    file = io.BytesIO()
    with matplotlib.rc_context(PLAIN), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of letters that the font lacks, of curves without extent
        draw(comparisons, curves).savefig(file, format=form, **options)
    return file.getvalue()


def draw(comparisons: Sequence[Comparison], curves: Curves) -> Figure:
    """A row of two panels per task; of many tasks the first, of many rows the best."""
    shown = comparisons[:MOST_SECTIONS]
    heights = [1.5 + max(2.4, 0.235 * min(len(each.rows), MOST_ROWS)) for each in shown]
    figure = Figure(
        figsize=(12, sum(heights) or 1), dpi=130, layout=ConstrainedLayoutEngine(h_pad=0.08)
    )
    if not shown:
        figure.text(0.5, 0.5, "no finished runs", ha="center", color="#777777")
        return figure
    parts = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, each in zip(parts, shown, strict=True):
        _draw_section(part, each, curves)
    return figure


def _draw_section(figure: SubFigure, comparison: Comparison, curves: Curves) -> None:
    rows = _coloured(comparison.rows)
    left_out = len(comparison.rows) - len(rows)
    more = f"; the first {len(rows)} rows" if left_out else ""
    figure.suptitle(f"{heading(comparison)}{more}", fontsize=11, x=0.01, ha="left")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _draw_curves(left, rows, curves)
    _draw_bars(right, rows, row_labels(comparison))


def _coloured(rows: Sequence[Row]) -> list[Drawn]:
    """Colours that differ, of up to eight rows; of more from dark, the first, to light."""
    rows = rows[:MOST_ROWS]
    scale = matplotlib.colormaps["viridis"]
    shades = [scale(k / len(rows)) for k in range(len(rows))] if len(rows) > len(FEW) else FEW
    return [
        Drawn(number, row, to_hex(shades[number - 1])) for number, row in enumerate(rows, start=1)
    ]


def _draw_curves(axes: Axes, rows: list[Drawn], curves: Curves) -> None:
    """The mean over a row's runs, and a band from the lowest to the highest of them."""
    bands = {each.number: _band(each.row, curves) for each in rows}
    bands = {number: band for number, band in bands.items() if band is not None}
    floor = _log_floor(axes, "y", [band[1:] for band in bands.values()], rows)
    veil = 0.18 if len(bands) <= len(FEW) else 0.07
    for number, row, colour in rows:
        if number not in bands:
            continue
        updates, *lines = bands[number]
        mean, low, high = (np.maximum(line, floor) for line in lines)
        dot = "o" if len(updates) == 1 else None
        style = {"marker": dot, "clip_on": dot is None, "lw": 1.8, "zorder": 3 - number / 100}
        axes.plot(updates, mean, color=colour, **style)
        if len(row.runs) > 1:
            axes.fill_between(updates, low, high, color=colour, alpha=veil, linewidth=0)
    if bands:
        axes.set_xlim(0, max(band[0][-1] for band in bands.values()) or 1)
        _number_lines(axes, rows, bands, floor)
    else:
        axes.text(0.5, 0.5, "no curves", ha="center", transform=axes.transAxes, color="#777777")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    numbers = "; lines have the numbers of the bars" * (len(rows) > 1)
    axes.set_xlabel(f"updates{numbers}", fontsize=9)
    several = any(len(each.row.runs) > 1 for each in rows)
    words = ": line mean, band lowest to highest seed" * several
    _tidy(axes, f"{_score_names('val', rows)}{words}")


def _band(row: Row, curves: Curves) -> tuple[np.ndarray, ...] | None:
    """Updates, mean, lowest and highest; a run that has ended stays at its last value."""
    found = [dict(sorted(curves.get(id(run), ()))) for run in row.runs]
    found = [curve for curve in found if curve]
    if not found:
        return None
    updates = np.array(sorted(set().union(*found)))
    if len(updates) > MOST_POINTS:
        updates = updates[np.linspace(0, len(updates) - 1, MOST_POINTS).astype(int)]
    each = [np.interp(updates, list(curve), list(curve.values())) for curve in found]
    lines = np.stack(each) * _factor(row)
    return updates, lines.mean(0), lines.min(0), lines.max(0)


def _number_lines(axes: Axes, rows: list[Drawn], bands: dict, floor: float) -> None:
    """The rows' numbers at the right, each as near to the end of its line as the others let it."""
    inches = axes.figure.bbox.height / axes.figure.dpi
    gap = 0.13 / (inches - 0.9)  # the heading and the axis take the rest
    place = axes.transData + axes.transAxes.inverted()
    ends = []
    for each in rows:
        if each.number in bands:
            updates, mean, *_ = bands[each.number]
            height = place.transform((updates[-1], max(mean[-1], floor)))[1]
            ends.append((min(max(height, 0.0), 1.0), each))
    ends.sort(key=lambda end: (end[0], -end[1].number))
    heights = _spread([height for height, _ in ends], gap)
    for height, (_, each) in zip(heights, ends, strict=True):
        axes.text(
            1.01, height, str(each.number), color=each.colour, transform=axes.transAxes,
            fontsize=8, fontweight="bold", va="center",
        )  # fmt: skip


def _spread(heights: list[float], gap: float) -> list[float]:
    """Ascending heights, moved until they are ``gap`` apart and, if they fit at all, in [0, 1]."""
    placed = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    top = 1.0
    for k in range(len(placed) - 1, -1, -1):
        placed[k] = min(placed[k], top)
        top = placed[k] - gap
    return placed


def _draw_bars(axes: Axes, rows: list[Drawn], labels: list[str]) -> None:
    """A bar to the mean over seeds, a point per run, the numbers at the right."""
    points = [
        [number * _factor(each.row) for number in each.row.numbers(f"test_{each.row.score.name}")]
        for each in rows
    ]
    floor = _log_floor(axes, "x", points, rows)
    several = any(len(each.row.seeds) > 1 for each in rows)
    for place, (each, values) in enumerate(zip(rows, points, strict=True)):
        score = each.row.score.name
        measured = each.row.measured(f"test_{score}")
        assert measured is not None  # every run in the table has its score
        start = floor if np.isfinite(floor) else 0.0
        mean = max(measured.mean * _factor(each.row), floor)
        axes.barh(place, mean - start, 0.72, left=start, color=each.colour, alpha=0.45)
        axes.scatter(
            np.maximum(values, floor), [place] * len(values), s=16, color=each.colour,
            edgecolors="white", linewidths=0.6, zorder=3, clip_on=False,
        )  # fmt: skip
        axes.text(
            1.02, place, score_cell(measured, score), transform=axes.get_yaxis_transform(),
            va="center", fontsize=8,
        )  # fmt: skip
    numbered = [_shortened(f"{labels[each.number - 1]}  {each.number}") for each in rows]
    axes.set_yticks(range(len(rows)), numbered, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(len(rows), FEWEST_BARS) - 0.4, -0.6)
    words = ": bar mean, points seeds, number ± 95 % interval" * several
    _tidy(axes, f"{_score_names('test', rows)}{words}")
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)


def _shortened(label: str) -> str:
    """Without its middle, if it is long; the number at its end stays."""
    half = LONGEST_LABEL // 2
    return label if len(label) <= LONGEST_LABEL else f"{label[: half + 8]}…{label[9 - half :]}"


def _score_names(split: str, rows: list[Drawn]) -> str:
    words = {"test": "test", "val": "validation"}[split]
    return ", ".join(dict.fromkeys(score_name(words, each.row.score.name) for each in rows))


def _factor(row: Row) -> float:
    """Errors are drawn in per cent."""
    return 100.0 if row.score.name == "error" else 1.0


def _log_floor(axes: Axes, which: str, numbers: Sequence, rows: list[Drawn]) -> float:
    """Make an axis of errors over decades logarithmic; returns where its zeros are drawn, or -∞."""
    values = np.concatenate([np.ravel(each) for each in numbers]) if len(numbers) else np.zeros(0)
    positive = values[values > 0]
    lower_is_better = all(each.row.score.lower_is_better for each in rows)
    if not lower_is_better or not len(positive) or (values < 0).any():
        return -np.inf
    if positive.max() < 10**DECADES * positive.min():
        return -np.inf
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    few = positive.max() < 300 * positive.min()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
    floor = positive.min() / 2
    if (values == 0).any():
        axis.set_label_text(f"0 is drawn at {floor:.2g}", fontsize=8, color="#555555")
    return float(floor)


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
