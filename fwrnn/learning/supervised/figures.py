"""What the drawings of a run share: their words, and how they become pixels."""

import textwrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_SIZE = 9  # points


def explain(figure: Figure, words: str) -> None:
    """Put ``words`` below a figure, in as many lines as its width asks for.

    A picture is often seen without the page that it came with.
    """
    inches = 0.55 * _SIZE / 72  # of a character, on the average and a little more
    lines = textwrap.wrap(words, int(0.97 * figure.get_figwidth() / inches))
    figure.supxlabel("\n".join(lines), x=0.02, ha="left", fontsize=_SIZE)


def sure(confidence: float) -> str:
    """A confidence, 0 to 1, in few characters that do not round it to certainty."""
    return "> 99.9 % sure" if confidence > 0.999 else f"{100 * confidence:.1f} % sure"


def verdict(answer: str, confidence: float, right: str) -> str:
    """An answer, how sure the network is of it, and what is ``right``."""
    judged = "right" if answer == right else f"right: {right}"
    return f"answers {answer}, {sure(confidence)} ({judged})"


def pixels_of(figure: Figure) -> np.ndarray:
    """A figure as (height, width, 3) bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
