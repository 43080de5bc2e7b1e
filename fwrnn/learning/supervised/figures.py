"""What the drawings of a run share: their words, and how they become pixels."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_SIZE = 9  # points


class Painter:
    """Paints a figure again and again, in a sixth of the time: of all artists only some change.

    Args:
        figure: laid out at its first painting, for all.
        changing: what is painted every time, above the rest, the lowest first.
    """

    def __init__(self, figure: Figure, changing: Sequence[Artist]):
        self._changing, self._canvas = changing, FigureCanvasAgg(figure)
        for artist in changing:
            artist.set_animated(True)  # so that a figure's own drawing leaves it out
        self._canvas.draw()
        figure.set_layout_engine("none")
        self._still = self._canvas.copy_from_bbox(figure.bbox)

    def pixels(self) -> np.ndarray:
        """As (height, width, 3) bytes."""
        self._canvas.restore_region(self._still)
        for artist in self._changing:
            artist.draw(self._canvas.get_renderer())
        return np.array(self._canvas.buffer_rgba())[..., :3]


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
