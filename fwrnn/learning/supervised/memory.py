"""A picture of the fast memory: which earlier step each step attends to, and A as a heat map."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from fwrnn.models.network import Network, has_memory

_WHY = (
    "Bright: a step finds much of that earlier state in the memory. It finds states like its own, "
    "so the second ? finds\nthe first whatever is asked. What counts is the bottom row, the "
    "question: does it find the letter and the digit asked for?"
)


class MemoryPicture:
    """Draws the memory of a fast-weights model on a few fixed sequences.

    Args:
        inputs: the sequences, (N, T).
        labels: per sequence, what to write beside each of its T steps.
        answers: per sequence, the right answer.
    """

    def __init__(self, inputs: Tensor, labels: list[str], answers: list[str]):
        self.inputs, self.labels, self.answers = inputs, labels, answers
        count = len(inputs)
        self._figure = Figure(figsize=(3.4 * count, 6.6), layout="constrained", dpi=80)
        self._canvas = FigureCanvasAgg(self._figure)
        self._figure.supxlabel(_WHY, fontsize=9)
        self._axes = self._figure.subplots(2, count, squeeze=False, height_ratios=[1.15, 1])

    def draw(self, model: Network) -> Figure:
        """One column per sequence: its attention above, its memory after the last step below."""
        attention, memory, guesses = look_inside(model, self.inputs)
        for k, (above, below) in enumerate(self._axes.T):
            heading = f"{self.labels[k]}: answers {guesses[k]}"
            if str(guesses[k]) != self.answers[k]:
                heading += f", right is {self.answers[k]}"
            _show(above, attention[k])
            _label_steps(above, self.labels[k])
            above.set_title(heading, family="monospace", fontsize=10)
            order = np.argsort(-np.diagonal(memory[k]))
            _show(below, memory[k][np.ix_(order, order)])
            below.set(xticks=[], yticks=[], xlabel="memory A, unit × unit, strongest first")
        self._axes[0, 0].set_ylabel("a step …")
        return self._figure

    def pixels(self, model: Network) -> np.ndarray:
        """The drawing as (height, width, 3) bytes."""
        self.draw(model)
        self._canvas.draw()
        self._figure.set_layout_engine("none")  # the first drawing settled it for all
        return np.array(self._canvas.buffer_rgba())[..., :3]  # a copy: the canvas is drawn on again


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
    axes.set_xticks(steps, labels, family="monospace")
    axes.set_yticks(steps, labels, family="monospace")
    axes.set_xlabel("… attends to each earlier step")


def look_inside(model: Network, inputs: Tensor) -> tuple[np.ndarray, np.ndarray, list]:
    """Attention (N, T, T), the last memory (N, H, H) and the guessed classes for inputs (N, T)."""
    assert has_memory(model)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        encoded = model.encoder(inputs)
        attention = model.core.attention(encoded)
        _, state = model.core(encoded)
        memory = state.memory.matrix()[0]
        guesses = model(inputs).argmax(-1).tolist()
    model.train(was_training)
    return attention.float().cpu().numpy(), memory.float().cpu().numpy(), guesses
