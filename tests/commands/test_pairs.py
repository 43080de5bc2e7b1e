"""``fwrnn evaluate RUN --pairs`` and ``--data -``."""

import io
import json
from pathlib import Path

import pytest

from fwrnn.cli import main
from fwrnn.commands.pairs import numbers
from fwrnn.commands.train import train
from fwrnn.learning.assembly import load_run
from fwrnn.learning.retest import evaluate_pairs
from fwrnn.learning.supervised.scoring import evaluate
from fwrnn.tasks.assoc_retrieval import AssocRetrieval
from tests.commands.compose import compose
from tests.conftest import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "run"
    train(compose(*TINY, "seed=3"), folder)
    return str(folder)


def test_numbers_of_pairs_are_ranges_and_lists():
    assert numbers("4") == [4]
    assert numbers("1,8,16") == [1, 8, 16]
    assert numbers("1-3,2,26") == [1, 2, 3, 26]


def test_each_number_of_pairs_is_the_tasks_own_split(run):
    rows = list(evaluate_pairs(run, [1, 4, 9]))
    (_, _, _, model, _), _ = load_run(run)
    for row in rows:
        split = AssocRetrieval(row["pairs"], test_size=128, seed=3).split("test")
        assert row["error"] == evaluate(model, split).error
        assert row["error_low"] < row["error"] < row["error_high"]
        assert row["trained_pairs"] == 4
    assert [row.get("reproduced") for row in rows] == [None, True, None]


def test_pairs_set_to_another_number_are_not_those_of_the_training(run):
    (row,) = evaluate_pairs(run, [2], changes={"task.pairs": 2})
    assert (row["pairs"], row["trained_pairs"]) == (2, 4)


def test_rows_for_people_and_for_machines(run, capsys):
    assert main(["evaluate", run, "--pairs", "1-5"]) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    assert "trained on 4 pairs" in text
    assert text.count("as recorded, exactly") == 1
    assert len(text.splitlines()) == 3 + 5
    assert main(["evaluate", run, "--pairs", "2,3", "--examples", "50", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["pairs"], row["examples"]) for row in rows] == [(2, 50), (3, 50)]


def test_another_setting_changes_the_network_and_is_not_compared(run, capsys):
    words = ["evaluate", run, "--set", "model.fast_lr=0", "--set", "model.decay=0.5"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (_, _, task, model, _), _ = load_run(run, changes={"model.fast_lr": 0})
    assert result["error"] == evaluate(model, task.split("test")).error
    assert result["loss"] != json.loads((Path(run) / "metrics.json").read_text())["test_loss"]
    assert result["set"] == {"model.fast_lr": 0, "model.decay": 0.5}
    assert "reproduced" not in result
    assert main([*words, "--pairs", "4", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["loss"] == result["loss"]
    assert "reproduced" not in row
    assert main([*words, "--pairs", "4"]) == 0
    assert "with model.fast_lr=0, with model.decay=0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.fast_lrr=1", "did you mean 'fast_lr'"),
        ("model.decay=2", "must lie in [0, 1], got 2.0"),
        ("model.hidden_size=9", "config.yaml with model.hidden_size=9"),
        ("trainer.seed=1", "model.KEY, got 'trainer.seed'"),
        ("model.decay", "'model.decay' is not a setting; settings are written KEY=VALUE"),
        ("model.decay=[1", "cannot read 'model.decay=[1'"),
        ("model.name=lstm", "model.name only names what was trained"),
    ],
)
def test_a_setting_that_does_not_fit_is_told(run, change, said, capsys):
    assert main(["evaluate", run, "--set", change]) == 2
    assert said in capsys.readouterr().err


def test_a_task_without_pairs_says_so(tmp_path, capsys):
    settings = ["task=catch", "task.size=6", "model.hidden_size=8", "trainer.max_updates=1"]
    settings += ["trainer.games=4", "trainer.val_games=4", "trainer.test_games=4"]
    train(compose(*settings), tmp_path)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path), "--pairs", "3"]) == 2
    assert "task catch has no pairs" in capsys.readouterr().err


class Piped:
    def __init__(self, content: bytes):
        self.buffer = io.BytesIO(content)


def test_standard_input_is_answered_line_by_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Piped(b"c9k8??c\na1??a\t1\nj3k8??j\n"))
    assert main(["evaluate", "retrieval", "--data", "-"]) == 0
    first, second, score = capsys.readouterr().out.splitlines()
    assert (first, second) == ("c9k8??c\t9", "j3k8??j\t3")
    assert "on standard input: error 0.00 % (0 of 1)" in score
    monkeypatch.setattr("sys.stdin", Piped(b"c9k8??c\na1??a\t2\n"))
    assert main(["evaluate", "retrieval", "--data", "-", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    told = [(p["input"], p["answer"], p["expected"]) for p in result["predictions"]]
    assert told == [("c9k8??c", "9", None), ("a1??a", "1", "2")]
    assert result["wrong"] == result["examples"] == 1


def test_only_questions_leave_only_answers(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Piped(b"c9k8??c\n"))
    assert main(["evaluate", "retrieval", "--data", "-"]) == 0
    assert capsys.readouterr().out == "c9k8??c\t9\n"
    monkeypatch.setattr("sys.stdin", Piped(b""))
    assert main(["evaluate", "retrieval", "--data", "-"]) == 2
    assert "standard input holds no example" in capsys.readouterr().err
