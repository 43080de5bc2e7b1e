"""A picture of the fast memory: which earlier step each step attends to, and A as a heat map."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from fwrnn.learning.supervised.figures import Painter, explain, verdict
from fwrnn.models.network import Network, evaluating, has_memory

_WHY = (
    "Each column is a sequence, read character by character, and the answer at its end. Above, a "
    "row per step: the brighter, the more of that earlier state it finds in the memory. It finds "
    "states like its own, as a second ? finds the first, whatever is asked. What counts is the "
    "bottom row, which gives the answer: does it find what it is asked for? Below: the memory "
    "itself after the last step, a matrix of fast weights."
)


class MemoryPicture:
    """Draws the memory of a fast-weights model on a few fixed sequences.

    Args:
        inputs: the sequences, (N, T).
        labels: per sequence, what to write beside each of its T steps.
        answers: per sequence, the right answer.
        classes: the names of the answers.
    """

    def __init__(
        self, inputs: Tensor, labels: list[str], answers: list[str], classes: Sequence[str]
    ):
        self.inputs, self.labels, self.answers, self.classes = inputs, labels, answers, classes
        count, steps = inputs.shape
        side = max(3.4, 0.13 * steps)  # inches, with room for a character each
        size = (side * count, 2 * side + 0.8)
        layout = ConstrainedLayoutEngine(h_pad=0.12)  # or it would cut the headings' first line
        self._figure = Figure(figsize=size, layout=layout, dpi=80)
        explain(self._figure, _WHY)
        self._axes = self._figure.subplots(2, count, squeeze=False, height_ratios=[1.15, 1])
        for above, below, names in zip(*self._axes, labels, strict=True):
            _label_steps(above, names)
            below.set(xticks=[], yticks=[], xlabel="the memory, unit × unit, strongest first")
        self._axes[0, 0].set_ylabel("a step …")
        self._painter: Painter | None = None

    def draw(self, model: Network) -> Figure:
        """One column per sequence: its attention above, its memory after the last step below."""
        attention, memory, guesses, confidences = look_inside(model, self.inputs)
        for k, (above, below) in enumerate(self._axes.T):
            answer = self.classes[guesses[k]]
            heading = f"{self.labels[k]}\n{verdict(answer, confidences[k], self.answers[k])}"
            _show(above, attention[k])
            above.set_title(heading, family="monospace", fontsize=9)
            order = np.argsort(-np.diagonal(memory[k]))
            _show(below, memory[k][np.ix_(order, order)])
        return self._figure

    def pixels(self, model: Network) -> np.ndarray:
        """The drawing as (height, width, 3) bytes; only what a network changes is painted anew."""
        figure = self.draw(model)
        if self._painter is None:
            images = [artist for axes in figure.axes for artist in axes.images]
            lines = [line for axes in figure.axes for line in axes.spines.values()]  # on the images
            titles = [axes.title for axes in figure.axes]
            self._painter = Painter(figure, [*images, *lines, *titles])
        return self._painter.pixels()


def _show(axes: Axes, matrix: np.ndarray) -> None:
    """The matrix as an image, roots of its numbers as colours so that weak ones can be seen too.

    A later matrix replaces the first one, which is faster than drawing anew.
    """
    roots = np.sqrt(np.clip(matrix, 0, None))
    image = axes.images[0] if axes.images else axes.imshow(roots, cmap="magma")
    image.set_data(roots)
    image.set_clim(0, max(roots.max(), 1e-6))


def _label_steps(axes: Axes, labels: str) -> None:
    steps = range(len(labels))
    size = 10 if len(labels) < 20 else 7
    axes.set_xticks(steps, labels, family="monospace", fontsize=size)
    axes.set_yticks(steps, labels, family="monospace", fontsize=size)
    axes.set_xlabel("… attends to each earlier step")


def look_inside(
    model: Network, inputs: Tensor
) -> tuple[np.ndarray, np.ndarray, list[int], list[float]]:
    """For inputs (N, T) the attention (N, T, T), the last memory (N, H, H), the guessed classes,
    and how sure it is of each, 0 to 1."""
    assert has_memory(model)
    with evaluating(model):
        encoded = model.encoder(inputs)
        attention = model.core.attention(encoded)
        _, state = model.core(encoded)
        memory = state.memory.matrix()[0]
        confidences, guesses = model(inputs).softmax(-1).max(-1)
    numbers = attention.float().cpu().numpy(), memory.float().cpu().numpy()
    return *numbers, guesses.tolist(), confidences.tolist()
