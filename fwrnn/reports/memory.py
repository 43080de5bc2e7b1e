"""A picture of the fast memory: which earlier step each step attends to, and A as a heat map."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from fwrnn.layers import FastWeightsRNN
from fwrnn.models import SequenceClassifier


class MemoryPicture:
    """Draws the memory of a fast-weights model on a few fixed sequences.

    Args:
        inputs: the sequences, (N, T).
        labels: per sequence, what to write beside each of its T steps.
        answers: per sequence, the right answer.
    """

    def __init__(self, inputs: Tensor, labels: list[str], answers: list[str]):
        self.inputs, self.labels, self.answers = inputs, labels, answers

    def draw(self, model: SequenceClassifier, title: str = "") -> Figure:
        """One column per sequence: its attention above, its memory after the last step below."""
        attention, memory, guesses = look_inside(model, self.inputs)
        count = len(self.inputs)
        figure = Figure(figsize=(3.6 * count, 7), layout="constrained", dpi=80)
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, count, squeeze=False, height_ratios=[1.15, 1])
        for k in range(count):
            heading = f"{self.labels[k]} → {guesses[k]}"
            if str(guesses[k]) != self.answers[k]:
                heading += f"  (should be {self.answers[k]})"
            self._draw_attention(axes[0, k], attention[k], self.labels[k], heading)
            self._draw_memory(axes[1, k], memory[k])
        axes[0, 0].set_ylabel("a step …")
        if title:
            figure.suptitle(title)
        return figure

    def pixels(self, model: SequenceClassifier) -> np.ndarray:
        """The drawing as (height, width, 3) bytes."""
        canvas = self.draw(model).canvas
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]

    @staticmethod
    def _draw_attention(axes, weights: np.ndarray, labels: str, heading: str) -> None:
        largest = np.abs(weights).max() or 1.0
        axes.imshow(weights, cmap="magma", vmin=min(weights.min(), 0), vmax=largest)
        steps = range(len(labels))
        axes.set_xticks(steps, labels, family="monospace")
        axes.set_yticks(steps, labels, family="monospace")
        axes.set_xlabel("… attends to each earlier step")
        axes.set_title(heading, family="monospace", fontsize=10)

    @staticmethod
    def _draw_memory(axes, memory: np.ndarray) -> None:
        order = np.argsort(-np.diagonal(memory))
        axes.imshow(memory[np.ix_(order, order)], cmap="magma")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("memory A: unit × unit, by strength")


def look_inside(model: SequenceClassifier, inputs: Tensor) -> tuple[np.ndarray, np.ndarray, list]:
    """Attention (N, T, T), the last memory (N, H, H) and the guessed classes for inputs (N, T)."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        encoded = model.encoder(inputs.transpose(0, 1))
        attention = model.core.attention(encoded)
        _, state = model.core(encoded)
        guesses = model(inputs).argmax(-1).tolist()
    model.train(was_training)
    return attention.float().cpu().numpy(), state.memory[0].float().cpu().numpy(), guesses


def has_memory(model: SequenceClassifier) -> bool:
    """Whether there is a fast memory to draw."""
    return isinstance(model.core, FastWeightsRNN) and model.core.fast_lr != 0
