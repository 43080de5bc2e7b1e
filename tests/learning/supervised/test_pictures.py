"""Pictures of glimpses, confusions and mistakes."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fwrnn.interfaces import Examples, Images, Symbols, TaskSpec
from fwrnn.learning.supervised.glimpses import GlimpsePicture, look
from fwrnn.learning.supervised.memory import MemoryPicture
from fwrnn.learning.supervised.mistakes import confusion, draw_confusion, draw_worst
from fwrnn.models.glimpses import boxes
from tests.commands.compose import model_config

LABELS = ("calm", "glad", "cross")
SPEC = TaskSpec(Images(size=12), LABELS)


def built(name, *overrides):
    return model_config(f"model={name}", "model.hidden_size=8", *overrides).classifier(SPEC)


@pytest.mark.parametrize(("name", "panels"), [
    ("multilevel", 4), ("fast_weights", 4), ("lstm", 2), ("convnet", 2),
])  # fmt: skip
def test_retrieval_is_drawn_for_models_with_a_memory(name, panels):
    images = torch.randint(0, 256, (2, 12, 12), dtype=torch.uint8)
    picture = GlimpsePicture(images, ["calm", "glad"], LABELS)
    figure = picture.draw(built(name))
    assert len(figure.axes) == 2 * panels
    assert picture.pixels(built(name)).shape[2] == 3


@pytest.mark.parametrize("size", [8, 12, 28, 48])
def test_frames_and_numbers_lie_in_their_glimpses(size):
    images = torch.zeros(1, size, size, dtype=torch.uint8)
    spec = TaskSpec(Images(size), LABELS)
    model = model_config("model=lstm", "model.hidden_size=8").classifier(spec)
    figure = GlimpsePicture(images, ["calm"], LABELS).draw(model)
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    for frame, box in zip(axes.patches, boxes(size), strict=True):
        left, top, side = *frame.get_xy(), frame.get_width()
        assert 0.7 * box.side < side < box.side
        assert box.left - 0.5 < left and left + side < box.left + box.side - 0.5
        assert box.top - 0.5 < top and top + side < box.top + box.side - 0.5
    fine = [frame for frame, box in zip(axes.patches, boxes(size), strict=True) if not box.coarse]
    for text, frame in zip(axes.texts, fine, strict=True):
        inside = frame.get_window_extent()
        for corner in text.get_window_extent().corners():
            assert inside.contains(*corner), text.get_text()


def test_looking_reports_each_second_coarse_look_and_leaves_the_model_as_it_was():
    images = torch.randint(0, 256, (2, 12, 12), dtype=torch.uint8)
    for name, written in (("multilevel", 4), ("fast_weights", 24)):
        model = built(name, "model.head_dropout=0.5").train()
        guesses, confidences, strengths = look(model, images)
        assert model.training
        assert len(guesses) == 2
        sure = model.eval()(images).softmax(-1).max(-1).values
        np.testing.assert_allclose(confidences, sure.detach(), rtol=1e-5)
        assert strengths.shape == (2, 4, written)
        full = model.core.attention(model.eval().encoder(images)).detach().numpy()
        expected = full if written == 4 else full[:, 5::6]
        np.testing.assert_allclose(strengths, expected, rtol=1e-5, atol=1e-6)


def test_confusion_counts_rows_of_what_is_and_columns_of_what_was_said():
    logits = torch.eye(3)[[0, 1, 1, 2, 0]]
    counts = confusion(logits, torch.tensor([0, 0, 1, 2, 2]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    figure = draw_confusion(counts, LABELS, "val")
    assert figure.axes[0].get_title() == "2 of 5 validation examples wrong: 40.00 %"


def test_words_below_a_picture_fit_its_width_and_are_all_there():
    counts = np.ones((3, 3), dtype=int)
    images = torch.zeros(2, 12, 12, dtype=torch.uint8)
    for figure in (
        draw_confusion(counts, LABELS, "test"),
        draw_worst(Examples(images, torch.ones(2).long()), torch.eye(3)[:2], LABELS),
        GlimpsePicture(images, ["calm", "glad"], LABELS).draw(built("multilevel")),
        MemoryPicture(torch.zeros(1, 5).long(), ["a1??a"], ["1"], "0123456789").draw(
            model_config("model.hidden_size=8").classifier(TaskSpec(Symbols(37), tuple("01")))
        ),
    ):
        FigureCanvasAgg(figure).draw()
        words = figure._supxlabel.get_window_extent()
        assert len(figure.get_supxlabel()) > 80
        assert words.x0 >= 0 and words.x1 <= figure.bbox.width
        assert words.y0 >= 0 and words.y1 < figure.axes[0].bbox.y1
        heading = figure.axes[0].title.get_window_extent()
        assert heading.y1 <= figure.bbox.height  # not cut


def test_worst_mistakes_come_first_and_right_answers_never():
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1).expand(4, 12, 12)
    logits = torch.tensor([[9.0, 0, 0], [0.1, 0, 0], [2.0, 0, 0], [9.0, 0, 0]])
    figure = draw_worst(Examples(images, torch.tensor([0, 1, 2, 1])), logits, LABELS)
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    sure = ["> 99.9 % sure", "78.7 % sure", "35.6 % sure"]
    answers = ["glad → calm", "cross → calm", "glad → calm"]
    assert titles == [f"{a}\n{s}" for a, s in zip(answers, sure, strict=True)]
    assert figure.get_supxlabel().startswith("3 of 4 images are mistaken: all, those first")
    assert [int(axes.images[0].get_array()[0, 0]) for axes in figure.axes if axes.images] == [
        3, 2, 1,
    ]  # fmt: skip
    assert draw_worst(Examples(images, torch.zeros(4).long()), logits, LABELS) is None
