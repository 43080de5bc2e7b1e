"""What a classifier confuses, and its worst mistakes."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from fwrnn.interfaces import Examples

_ROWS, _COLUMNS = 4, 8


def confusion(logits: Tensor, targets: Tensor, classes: int) -> np.ndarray:
    """How many examples of each class (rows) were taken for which (columns)."""
    pairs = targets * classes + logits.argmax(-1)
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes).numpy()


def draw_confusion(counts: np.ndarray, labels: tuple[str, ...]) -> Figure:
    """The matrix as a heat map: colours are shares of a row, numbers are counts."""
    size = max(4.0, 0.55 * len(labels) + 1.5)
    figure = Figure(figsize=(size, size), layout="constrained", dpi=80)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(np.sqrt(shares), cmap="magma", vmin=0, vmax=1)  # roots show rare confusions too
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "black" if shares[row, column] > 0.5 else "white"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=7)
    long = max(map(len, labels)) > 2
    axes.set_xticks(range(len(labels)), labels, rotation=45 if long else 0)
    axes.set_yticks(range(len(labels)), labels)
    wrong = counts.sum() - np.trace(counts)
    axes.set(xlabel="taken for", ylabel="is", title=f"{wrong:,} of {counts.sum():,} wrong")
    return figure


def draw_worst(examples: Examples, logits: Tensor, labels: tuple[str, ...]) -> Figure | None:
    """The wrong images that the model was surest of, the worst first; None when all are right.

    ``examples`` are images (N, S, S) and ``logits`` (N, classes), on the CPU. A caption reads
    "what it is → what it was taken for".
    """
    taken = logits.argmax(-1)
    losses = torch.nn.functional.cross_entropy(logits, examples.targets, reduction="none")
    losses[taken == examples.targets] = -1
    worst = losses.argsort(descending=True)[: _ROWS * _COLUMNS]
    worst = worst[losses[worst] >= 0]
    if not len(worst):
        return None
    rows = -(-len(worst) // _COLUMNS)
    figure = Figure(figsize=(1.25 * _COLUMNS, 1.5 * rows), layout="constrained", dpi=80)
    FigureCanvasAgg(figure)
    for place in figure.subplots(rows, _COLUMNS, squeeze=False).flat:
        place.set_axis_off()
    for k, place in zip(worst.tolist(), figure.axes, strict=False):
        place.imshow(examples.inputs[k].numpy(), cmap="gray", vmin=0, vmax=255)
        place.set_title(f"{labels[examples.targets[k]]} → {labels[taken[k]]}", fontsize=9)
    return figure
