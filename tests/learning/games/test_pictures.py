"""Pictures of play: a still strip and an animation, of models with and without a memory."""

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from fwrnn.learning.assembly import assemble
from fwrnn.learning.games import pictures
from fwrnn.learning.games.pictures import animation, record, strip
from tests.commands.compose import compose


@pytest.mark.parametrize("model", ["fast_weights", "lstm"])
def test_games_are_drawn_frame_by_frame_with_what_the_memory_attends_to(model):
    config = compose("task=catch", "task.size=6", f"model={model}", "model.hidden_size=8")
    _, _, task, network, device = assemble(config)
    played = record(network, task, device, games=3)
    assert played.frames.shape == (3, 6, 48, 48, 3)
    assert (played.attention is None) == (model == "lstm")
    still = strip(played)
    side = 24 + 8
    rows = 0 if model == "lstm" else 5 * (side // 4)
    assert still.shape[1:] == (6 * side, 3) and still.dtype == np.uint8
    assert len(still) > side + rows  # the words
    moments = list(ImageSequence.Iterator(Image.open(io.BytesIO(animation(played)))))
    assert len(moments) == 6
    assert moments[0].size[0] == 3 * 56
    if model == "fast_weights":
        later = np.triu(np.ones((5, 5), dtype=bool))
        assert not played.attention[:, later].any() and played.attention.any()
        brightest = still[-rows :: side // 4, : 5 * side : side].sum(-1).argmax(1)
        assert brightest[1:].tolist() == played.attention[0][1:].argmax(1).tolist()


def test_pictures_say_whether_the_ball_was_caught():
    _, _, task, network, device = assemble(compose("task=catch", "model.hidden_size=8"))
    played = record(network, task, device, games=1)
    won, lost = (played._replace(scores=np.array([score])) for score in (1.0, -1.0))
    green, red = (0, 120, 40), (200, 20, 20)
    for recording, there, not_there in ((won, green, red), (lost, red, green)):
        picture = strip(recording)
        assert (picture == there).all(-1).any() and not (picture == not_there).all(-1).any()
    assert animation(won) != animation(lost)


def test_pictures_say_what_the_game_is_and_what_bright_means(monkeypatch):
    _, _, task, network, device = assemble(compose("task=catch", "model.hidden_size=8"))
    played, said = record(network, task, device, games=1), []
    real = pictures._text

    def heard(words, *more):
        said.append(words)
        return real(words, *more)

    monkeypatch.setattr(pictures, "_text", heard)
    for draw in (strip, animation):
        said.clear()
        draw(played)
        for part in ("orange ball falls", "Grey: ", "the brighter"):
            assert any(part in words for words in said), part


def test_last_frame_shows_where_the_ball_landed():
    _, _, task, network, device = assemble(compose("task=catch", "model.hidden_size=8"))
    played = record(network, task, device, games=8)
    ball = (200, 160, 90)
    for frames, score in zip(played.frames, played.scores, strict=True):
        landed = (frames[-1][-4] == ball).all(-1)
        paddle = (frames[-1][-4] == (170, 170, 170)).all(-1)
        assert landed.sum() == 8
        assert paddle.sum() == (8 if score > 0 else 16)  # the ball hides half of it
