"""Pictures of the memory, and what a run says of itself."""

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fwrnn import __version__
from fwrnn.interfaces import Symbols, TaskSpec
from fwrnn.learning import record
from fwrnn.learning.record import commit, compared_settings
from fwrnn.learning.supervised.figures import pixels_of
from fwrnn.learning.supervised.memory import MemoryPicture, look_inside
from fwrnn.models.network import has_memory
from tests.commands.compose import compose, model_config

SPEC = TaskSpec(Symbols(vocabulary=37), labels=tuple("0123456789"))


def test_picture_has_a_column_per_sequence_and_can_be_drawn_again():
    model = model_config("model.hidden_size=8").classifier(SPEC)
    inputs = torch.randint(0, 37, (2, 5))
    picture = MemoryPicture(inputs, ["a1??a", "b2??b"], ["1", "2"], SPEC.labels)
    first = picture.pixels(model)
    assert first.shape[2] == 3 and (picture.pixels(model) == first).all()
    with torch.no_grad():
        for parameter in model.core.parameters():
            parameter.add_(torch.randn_like(parameter))
    again = picture.pixels(model)
    assert (again != first).any()
    anew = MemoryPicture(inputs, ["a1??a", "b2??b"], ["1", "2"], SPEC.labels).draw(model)
    differ = np.abs(again.astype(int) - pixels_of(anew)).max(axis=-1)
    assert (differ > 0).sum() < 50 and differ.max() < 30  # corners of the frames alone


def test_look_inside_agrees_with_the_model():
    model = model_config("model.hidden_size=8").classifier(SPEC).train()
    inputs = torch.randint(0, 37, (3, 11))
    attention, memory, guesses, confidences = look_inside(model, inputs)
    assert attention.shape == (3, 11, 11)
    assert memory.shape == (3, 8, 8)
    assert guesses == model(inputs).argmax(-1).tolist()
    assert confidences == pytest.approx(model(inputs).softmax(-1).max(-1).values.tolist())
    assert model.training


def test_answers_are_called_by_their_names_with_what_is_right():
    model = model_config("model.hidden_size=8").classifier(TaskSpec(Symbols(26), tuple("xyz")))
    inputs = torch.randint(0, 26, (1, 5))
    _, _, (guess,), (confidence,) = look_inside(model, inputs)
    for right in "xyz":
        figure = MemoryPicture(inputs, ["qxbzq"], [right], "xyz").draw(model)
        (heading,) = (axes.get_title() for axes in figure.axes if axes.get_title())
        end = "(right)" if right == "xyz"[guess] else f"(right: {right})"
        assert heading == f"qxbzq\nanswers {'xyz'[guess]}, {100 * confidence:.1f} % sure {end}"


def test_only_models_that_write_a_memory_have_one():
    def remembers(*overrides):
        return has_memory(model_config(*overrides).classifier(SPEC))

    assert remembers("model=fast_weights")
    assert remembers("control=folded")
    assert not remembers("control=no_memory")
    assert not remembers("model=lstm")


def test_runs_are_compared_by_what_people_change():
    settings = compared_settings(compose("control=folded"))
    assert sorted(settings)[:5] == ["Learning rate", "Model", "Seed", "Task", "Units"]
    assert settings["Model"] == "fast_weights_folded"
    assert settings["pairs"] == 4


def test_code_is_a_short_commit_or_the_version_of_what_is_installed(monkeypatch):
    assert commit() is None or len(commit().rstrip("+")) == 12
    monkeypatch.setattr(record.subprocess, "run", raises(FileNotFoundError))  # no git
    source = SimpleNamespace(read_text=lambda name: None)
    monkeypatch.setattr(record, "distribution", lambda name: source)
    assert (commit(), record.code()) == (None, f"v{__version__}")
    source.read_text = lambda name: '{"url": "…", "vcs_info": {"commit_id": "0123456789abcdef"}}'
    assert record.code() == "0123456789ab"
    monkeypatch.setattr(record, "distribution", raises(PackageNotFoundError))
    assert record.code() == f"v{__version__}"


def raises(error):
    def function(*given, **named):
        raise error

    return function
