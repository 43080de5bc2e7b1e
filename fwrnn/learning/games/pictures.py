"""Pictures of play: the frames of a game, and what the memory attends to in each of them."""

import io
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from gymnasium.vector import VectorWrapper
from PIL import Image, ImageDraw, ImageFont

from fwrnn.interfaces import GameTask
from fwrnn.learning.games.play import play
from fwrnn.models.network import Network, evaluating, has_memory

GAMES = 4
_GAP = 8  # pixels
_LINE = 16  # pixels of a line of text
_BLACK, _GREEN, _RED = (0, 0, 0), (0, 120, 40), (200, 20, 20)
_GAME = "The orange ball falls, and the paddle at the bottom is to be where it lands."
_GREY = "Grey: the network is shown a blank screen; ball and paddle are drawn there for you alone."


class Recording(NamedTuple):
    """Played games: ``frames`` (N, T + 1, S, S, 3) bytes, the attention of each of the T moves,
    (N, T, T), to the screens before it, or None without a memory, and the ``scores`` (N)."""

    frames: np.ndarray
    attention: np.ndarray | None
    scores: np.ndarray


def record(model: Network, task: GameTask, device: torch.device, games: int = GAMES) -> Recording:
    """The first validation games, played greedily; in eval mode."""
    players, attention = _Watched(task.games(games)), None
    with evaluating(model):
        episodes = play(model, players, task.seed_of("val"), device, greedy=True)
        if has_memory(model):
            attention = model.core.attention(model.encoder(episodes.screens))
            attention = attention.float().cpu().numpy()
    frames = np.stack(players.frames, axis=1)
    return Recording(frames, attention, episodes.scores.cpu().numpy())


class _Watched(VectorWrapper):
    """Keeps a rendering of every frame since the last reset."""

    def reset(self, **options):
        result = super().reset(**options)
        self.frames = [self._rendered()]
        return result

    def step(self, actions):
        result = super().step(actions)
        self.frames.append(self._rendered())
        return result

    def _rendered(self) -> np.ndarray:
        """All games as they stand, (N, S, S, 3) bytes."""
        pictures = self.env.render()
        assert pictures is not None  # tasks make games that can be seen
        return np.stack(pictures)


def strip(recording: Recording, index: int = 0) -> np.ndarray:
    """One game as a still picture, (height, width, 3) bytes.

    What it shows in words; its frames from left to right; below, a row per move, brightest below
    the screen that the memory attends to most.
    """
    frames = recording.frames[index, :, ::2, ::2]  # small enough to stand side by side
    picture = np.concatenate([_framed(frame) for frame in frames], axis=1)
    width, side = picture.shape[1], picture.shape[0]
    word, colour = _ended(recording.scores[index])
    about = f"{_GAME} Time runs from left to right, {len(frames)} frames. {_GREY}"
    parts = [_text(f"The ball is {word}.", width, colour), _text(about, width), picture]
    if recording.attention is not None:
        cells = _colours(recording.attention[index])
        below = cells.repeat(max(1, side // 4), axis=0).repeat(side, axis=1)
        margin = np.full((len(below), width - below.shape[1], 3), 255, dtype=np.uint8)
        words = (
            "What the memory attends to: a row per move, the first at the top; the brighter below "
            "a frame, the more the move attends to it."
        )
        parts += [_text(words, width), np.concatenate([below, margin], axis=1)]
    return np.concatenate(parts)


def animation(recording: Recording, seconds: float = 0.25) -> bytes:
    """All games side by side as a GIF; below each, the attention of the moves made so far."""
    moments = [_moment(recording, moment) for moment in range(recording.frames.shape[1])]
    images = [Image.fromarray(moment) for moment in moments]
    durations = [int(1000 * seconds)] * (len(images) - 1) + [2500]
    buffer = io.BytesIO()
    images[0].save(
        buffer, "gif", save_all=True, append_images=images[1:], duration=durations, loop=0
    )
    return buffer.getvalue()


def _moment(recording: Recording, moment: int) -> np.ndarray:
    last = recording.frames.shape[1] - 1
    columns = []
    for index, frames in enumerate(recording.frames):
        word, colour = f"frame {moment + 1} of {last + 1}", _BLACK
        if moment == last:
            word, colour = _ended(recording.scores[index])
        picture = _framed(frames[moment])
        parts = [_text(word, picture.shape[1], colour), picture]
        if recording.attention is not None:
            made = recording.attention[index].copy()
            made[moment + 1 :] = 0
            parts.append(_stretched(_colours(made), picture))
        columns.append(np.concatenate(parts))
    body = np.concatenate(columns, axis=1)
    words = f"{_GAME} {_GREY}"
    if recording.attention is not None:
        words += (
            " Below each game what its memory attends to: a row per move, a column per frame; the "
            "brighter, the more the move attends to the frame."
        )
    return np.concatenate([_text(words, body.shape[1]), body])


def _ended(score: float) -> tuple[str, tuple[int, int, int]]:
    return ("caught", _GREEN) if score > 0 else ("missed", _RED)


def _text(words: str, width: int, colour: tuple[int, int, int] = _BLACK) -> np.ndarray:
    """Words on white, in as many lines as this ``width`` asks for; (height, width, 3) bytes."""
    font = ImageFont.load_default(_LINE - 4)
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 4:
            lines.append(word)
        else:
            lines[-1] = longer
    image = Image.new("RGB", (width, _LINE * len(lines) + 4), "white")
    drawing = ImageDraw.Draw(image)
    for k, line in enumerate(lines):
        drawing.text((2, k * _LINE), line, fill=colour, font=font)
    return np.asarray(image)


def _colours(attention: np.ndarray) -> np.ndarray:
    """Strengths (moves, screens) as (moves, screens, 3) bytes, each move's highest the brightest.

    Roots are shown, so that weak ones can be seen too.
    """
    roots = np.sqrt(np.clip(attention, 0, None))
    shares = roots / roots.max(axis=1, keepdims=True).clip(min=1e-6)
    return matplotlib.colormaps["magma"](shares, bytes=True)[..., :3]


def _stretched(cells: np.ndarray, like: np.ndarray) -> np.ndarray:
    size = (like.shape[1] - _GAP, like.shape[1] - _GAP)
    return _framed(np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)))


def _framed(frame: np.ndarray) -> np.ndarray:
    return np.pad(frame, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
