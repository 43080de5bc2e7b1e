"""What a classifier confuses, and its worst mistakes."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fwrnn.interfaces import Examples
from fwrnn.learning.supervised.figures import explain, sure

_ROWS, _COLUMNS = 4, 8


def confusion(logits: Tensor, targets: Tensor, classes: int) -> np.ndarray:
    """How many examples of each class (rows) were taken for which (columns)."""
    pairs = targets * classes + logits.argmax(-1)
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes).numpy()


_SPLITS = {"train": "training", "val": "validation", "test": "test"}


def draw_confusion(counts: np.ndarray, labels: tuple[str, ...], split: str) -> Figure:
    """The matrix as a heat map: colours are shares of a row, numbers are counts."""
    size = max(4.0, 0.55 * len(labels) + 1.5)
    figure = Figure(figsize=(size, size), layout="constrained", dpi=80)
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
    axes.set(xlabel="what the network answers", ylabel="what is right")
    share = 100 * wrong / max(counts.sum(), 1)
    axes.set_title(
        f"{wrong:,} of {counts.sum():,} {_SPLITS.get(split, split)} examples wrong: {share:.2f} %",
        fontsize=10,
    )
    explain(
        figure,
        "Numbers count examples, and colours are their shares of a row: on the diagonal the right "
        "answers, beside it what is taken for what.",
    )
    return figure


def draw_worst(examples: Examples, logits: Tensor, labels: tuple[str, ...]) -> Figure | None:
    """The wrong images that the model was surest of, the surest first; None when all are right.

    ``examples`` are images (N, S, S) and ``logits`` (N, classes), on the CPU. A caption reads
    "what it is → what it was taken for", and how sure the model was of that.
    """
    logarithms, taken = logits.double().log_softmax(-1).max(-1)
    (wrong,) = (taken != examples.targets).nonzero(as_tuple=True)
    if not len(wrong):
        return None
    worst = wrong[logarithms[wrong].argsort(descending=True, stable=True)][: _ROWS * _COLUMNS]
    rows = -(-len(worst) // _COLUMNS)
    figure = Figure(figsize=(1.25 * _COLUMNS, 1.65 * rows + 0.7), layout="constrained", dpi=80)
    few = f"the {len(worst)} of them that" if len(worst) < len(wrong) else "all, those first that"
    explain(
        figure,
        f"{len(wrong):,} of {len(taken):,} images are mistaken: {few} the network was surest of. "
        "Above each: what it is → what the network takes it for, and how sure it is.",
    )
    for place in figure.subplots(rows, _COLUMNS, squeeze=False).flat:
        place.set_axis_off()
    for k, place in zip(worst.tolist(), figure.axes, strict=False):
        place.imshow(examples.inputs[k].numpy(), cmap="gray", vmin=0, vmax=255)
        answer = f"{labels[examples.targets[k]]} → {labels[taken[k]]}"
        place.set_title(f"{answer}\n{sure(logarithms[k].exp().item())}", fontsize=9)
    return figure
