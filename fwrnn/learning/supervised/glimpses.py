"""A picture of looking: where the glimpses lie, what they show, and what the memory answers."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor

from fwrnn.learning.supervised.figures import explain, pixels_of, verdict
from fwrnn.models.glimpses import FINE, QUADRANTS, STEPS, boxes, cut, in_order
from fwrnn.models.network import Network, evaluating, has_memory

_PER_QUADRANT = STEPS // QUADRANTS
_COLOURS = ("#D55E00", "#009E73", "#56B4E9", "#E69F00")  # of the quadrants
_COARSE_INSET, _FINE_INSET = 0.035, 0.13  # shares of a glimpse's side


class GlimpsePicture:
    """Draws how a model looks at a few fixed images; one row of panels per image.

    From the left: the image and its glimpses, the 24 glimpses in the order of looking, how strongly
    each second coarse look retrieves what was written before, and the same as a picture: the
    written glimpses, mixed by those strengths. Models without a fast memory lack the last two.

    Args:
        images: (N, S, S) uint8, on the model's device.
        answers: the right label of each.
        labels: the names of the classes.
    """

    def __init__(self, images: Tensor, answers: list[str], labels: tuple[str, ...]):
        self.images, self.answers, self.labels = images, answers, labels

    def draw(self, model: Network) -> Figure:
        guesses, confidences, retrieved = look(model, self.images)
        seen = in_order(cut(self.images)).transpose(0, 1).cpu().numpy()  # (N, 24, P·P)
        patch = self.images.shape[-1] // 4
        widths = [1.25, 1.5] if retrieved is None else [1.25, 1.5, 1.5, 0.35]
        figure = Figure(figsize=(2.6 * sum(widths), 3 * len(seen)), layout="constrained", dpi=80)
        axes = figure.subplots(len(seen), len(widths), squeeze=False, width_ratios=widths)
        for k, row in enumerate(axes):
            answer = self.labels[guesses[k]]
            heading = verdict(answer, confidences[k], self.answers[k])
            row[0].set_title(heading.replace(" (", "\n("), fontsize=10)
            _draw_boxes(row[0], self.images[k].cpu().numpy())
            _draw_sequence(row[1], seen[k].reshape(STEPS, patch, patch))
            if retrieved is not None:
                _draw_strengths(row[2], retrieved[k])
                _draw_mixtures(row[3], retrieved[k], seen[k].reshape(STEPS, patch, patch))
        explain(figure, _LOOKS + _written(retrieved))
        return figure

    def pixels(self, model: Network) -> np.ndarray:
        """The drawing as (height, width, 3) bytes."""
        return pixels_of(self.draw(model))


_LOOKS = (
    "Each row is an image, which the network sees in 24 glimpses: of each quadrant first a coarse "
    "look (thick frame), then its four quarters (thin frames), and the coarse look again."
)


def _written(retrieved: np.ndarray | None) -> str:
    """What the panels at the right show."""
    if retrieved is None:
        return ""
    what = "Every glimpse" if retrieved.shape[-1] == STEPS else "The first coarse look"
    return (
        f" {what} is written into the memory. Right: what each second coarse look gets out of it, "
        "and the same as a picture, the looks mixed by these shares."
    )


def look(model: Network, images: Tensor) -> tuple[list[int], list[float], np.ndarray | None]:
    """Guessed classes, how sure the model is of each, and the strengths (N, 4, K) with which each
    quadrant's second coarse look retrieves each of the K states written: of 4 coarse looks
    (multi-level) or of all 24 glimpses.
    """
    with evaluating(model):
        confidences, guesses = model(images).softmax(-1).max(-1)
        strengths = None
        if has_memory(model):
            strengths = model.core.attention(model.encoder(images))
            if strengths.shape[1] == STEPS:
                strengths = strengths[:, _PER_QUADRANT - 1 :: _PER_QUADRANT]
            strengths = strengths.float().cpu().numpy()
    return guesses.tolist(), confidences.tolist(), strengths


def _draw_boxes(axes, image: np.ndarray) -> None:
    """The image, and frames set in by a share of their side: a number in each fine one."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[], xlabel="where it looks: number = step")
    outline = [Stroke(linewidth=2, foreground="black"), Normal()]  # seen on light and dark
    for step, box in enumerate(boxes(image.shape[-1])):
        colour = _COLOURS[step // _PER_QUADRANT]
        inset = box.side * (_COARSE_INSET if box.coarse else _FINE_INSET)
        left, top = box.left - 0.5 + inset, box.top - 0.5 + inset
        side, width = box.side - 2 * inset, 2 if box.coarse else 0.7
        axes.add_patch(Rectangle((left, top), side, side, fill=False, color=colour, lw=width))
        if not box.coarse:
            gap = 0.1 * side
            text = axes.text(left + gap, top + gap, str(step + 1), color="white", fontsize=7)
            text.set(va="top", path_effects=outline)


def _draw_sequence(axes, seen: np.ndarray) -> None:
    """A row per quadrant: coarse, four fine, coarse again."""
    zoom = -(-7 // seen.shape[-1])  # so that the gaps stay narrow beside small glimpses
    seen = seen.repeat(zoom, axis=1).repeat(zoom, axis=2)
    gap = seen.shape[-1] // 7
    framed = np.pad(seen, ((0, 0), (gap, gap), (gap, gap)), constant_values=0.25)
    side = framed.shape[-1]
    sheet = framed.reshape(QUADRANTS, _PER_QUADRANT, side, side).transpose(0, 2, 1, 3)
    axes.imshow(sheet.reshape(QUADRANTS * side, -1), cmap="gray", vmin=0, vmax=1)
    centres = np.arange(_PER_QUADRANT) * side + side / 2 - 0.5
    names = ["coarse", *[f"fine {k + 1}" for k in range(FINE)], "coarse"]
    axes.set_xlabel("what it sees there")
    axes.set_xticks(centres, names, fontsize=6)
    axes.set_yticks(centres[:QUADRANTS], _quadrant_names(), fontsize=6)
    for label, colour in zip(axes.get_yticklabels(), _COLOURS, strict=True):
        label.set_color(colour)


def _draw_strengths(axes, strengths: np.ndarray) -> None:
    shares = _shares(strengths)
    axes.imshow(shares, cmap="magma", vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(QUADRANTS), _quadrant_names(), fontsize=6)
    axes.set_ylabel("the second coarse look at …")
    if shares.shape[1] == QUADRANTS:
        axes.set_xlabel("… retrieves the first at … (per cent)")
        axes.set_xticks(range(QUADRANTS), _quadrant_names(), fontsize=6)
        for (row, column), share in np.ndenumerate(shares):
            if column <= row:
                colour = "black" if share > 0.6 else "white"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour)
    else:
        axes.set_xlabel("… retrieves the glimpse of step … (bright: more)")
        axes.set_xticks(range(0, STEPS, _PER_QUADRANT), range(1, STEPS, _PER_QUADRANT))


def _draw_mixtures(axes, strengths: np.ndarray, seen: np.ndarray) -> None:
    """The written glimpses, averaged by the strengths with which they were retrieved."""
    written = seen if strengths.shape[1] == STEPS else seen[::_PER_QUADRANT]
    mixed = np.tensordot(_shares(strengths), written, axes=1)
    axes.imshow(mixed.reshape(-1, mixed.shape[-1]), cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], xlabel="in a\npicture")
    for row in range(1, QUADRANTS):
        axes.axhline(row * mixed.shape[-1] - 0.5, color="gray", lw=1)


def _shares(strengths: np.ndarray) -> np.ndarray:
    """Rows that sum to 1; a look that retrieves nothing stays 0."""
    total = strengths.sum(-1, keepdims=True)
    return np.divide(strengths, total, out=np.zeros_like(strengths), where=total > 0)


def _quadrant_names() -> list[str]:
    return ["top left", "top right", "low left", "low right"]
