"""``fwrnn ask``: what it prints, for people and for machines, and where a question is wrong."""

import json
import re

import pytest

import fwrnn
from fwrnn.cli import main
from fwrnn.commands.answer_text import Style, text_of
from fwrnn.commands.ask import ask
from fwrnn.commands.train import train
from fwrnn.learning.run_folder import RunFolder
from tests.commands.compose import compose
from tests.conftest import TINY

LONGEST = "".join(f"{chr(97 + k)}{k * 7 % 10}" for k in range(26)) + "??q"
PLAIN, BLOCKS, COLOURS = Style(False, False), Style(False, True), Style(True, True)


@pytest.fixture(scope="module")
def retrieval():
    return fwrnn.load("retrieval")


@pytest.mark.parametrize(("question", "answer"), [
    ("c9k8j3f1??c", "9"), ("a1??a", "1"), (LONGEST, "2"),
])  # fmt: skip
def test_the_network_that_ships_answers_from_one_to_26_pairs(retrieval, question, answer):
    result = ask(retrieval, question)
    assert result["answer"] == result["expected"] == answer
    assert result["confidence"] > 0.99
    assert result["pairs"] == (len(question) - 3) // 2
    assert result["trained_pairs"] == 4


def test_attention_is_that_of_the_layer_and_goes_to_the_pair_asked_for(retrieval):
    attention = ask(retrieval, "c9k8j3f1??c")["attention"]
    assert [[c, k] for c, k, _ in attention] == [[c, k] for k, c in enumerate("c9k8j3f1??")]
    strengths = [strength for *_, strength in attention]
    assert strengths == retrieval.attention("c9k8j3f1??c")[-1, :-1].tolist()
    assert sum(strengths[:2]) > sum(strengths) / 2


def test_every_other_value_of_every_pair_is_tried(retrieval):
    edits = ask(retrieval, "c9k8??c")["edits"]
    assert len({edit["question"] for edit in edits}) == 2 * 9
    for edit in edits:
        assert edit["answer"] == (edit["value"] if edit["pair"] == "c9" else "9")
        assert edit["expected"] == edit["answer"] == retrieval(edit["question"]).label
        assert edit["pair"][0] + edit["value"] in edit["question"]


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("style", [PLAIN, BLOCKS, COLOURS])
def test_text_fits_its_width_and_its_terminal(retrieval, style, width):
    text = text_of(ask(retrieval, LONGEST), "a network, trained on 4 pairs", style, width)
    bare = re.sub("\x1b\\[[0-9;]*m", "", text)
    assert (bare != text) == style.colour
    assert text.isascii() == (style == PLAIN)
    lines = bare.splitlines()
    assert max(len(line) for line in lines if line.startswith(" ")) <= width
    assert width < 80 or max(map(len, lines)) <= width
    shown = re.findall(r"^(?:  [a-z0-9?](?:  |$))+$", bare, re.M)
    assert "".join("".join(shown).split()) == LONGEST[:-1]


def test_a_wrong_answer_is_marked_without_colour():
    edits = [{"pair": "a1", "value": "2", "answer": "3", "expected": "2"}] + [
        {"pair": "a1", "value": v, "answer": v, "expected": v} for v in "03456789"
    ]
    result = {
        "question": "a1??a", "answer": "7", "confidence": 0.5, "expected": "1", "pairs": 1,
        "trained_pairs": 4, "attention": None, "edits": edits,
    }  # fmt: skip
    text = text_of(result, "lstm-8, trained on 4 pairs", PLAIN, 80)
    assert "a1??a -> 7 (should be 1)   50.00 % sure" in text
    assert " a1  0 .!3 3 4" in text
    assert "Right in 8 of 9" in text
    assert "no fast memory" in text


def test_a_run_without_a_memory_says_so(tmp_path, capsys):
    train(compose(*TINY, "model=lstm"), tmp_path / "run")
    capsys.readouterr()
    png = tmp_path / "answer.png"
    assert main(["ask", "a1b2??a", "--run", str(tmp_path / "run"), "--png", str(png)]) == 0
    assert "no fast memory" in capsys.readouterr().out
    assert png.read_bytes().startswith(b"\x89PNG")
    assert main(["ask", "a1b2??a", "--run", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["attention"] is None


def test_json_and_picture(tmp_path, capsys):
    png = tmp_path / "answer.png"
    assert main(["ask", "c9k8j3f1??c", "--json", "--png", str(png)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["answer"] == "9"
    assert len(result["attention"]) == 10
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_pipe_gets_no_escape_codes(capsys):
    assert main(["ask", "a1??a"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_malformed_question_has_a_caret_under_its_first_mistake(capsys):
    assert main(["ask", "c9k8j3f1?c"]) == 2
    message, quoted, caret = capsys.readouterr().err.splitlines()
    assert "expected a second '?' as character 10, got 'c'" in message
    assert quoted[caret.index("^")] == "c"
    assert quoted[: caret.index("^")].strip() == "'c9k8j3f1?"
    assert main(["ask", "c9\x1b[2J"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_run_of_another_task_is_refused_before_its_data_are_looked_for(tmp_path, capsys):
    config = compose("task=mnist_glimpses", f"task.data_dir={tmp_path / 'nowhere'}")
    RunFolder(tmp_path).write_config(config)
    for words in (["ask", "a1??a", "--run"], ["evaluate", "--pairs", "3"]):
        assert main([*words, str(tmp_path)]) == 2
        assert "mnist_glimpses" in capsys.readouterr().err
