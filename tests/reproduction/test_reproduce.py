"""The paper beside ours: cells, verdicts, training what is missing, and the page of results."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fwrnn.cli import main
from fwrnn.commands.composition import compose_config
from fwrnn.reproduction import drawing, targets
from fwrnn.reproduction.extras import interquartile_mean
from fwrnn.reproduction.page import updated
from fwrnn.reproduction.results import BETTER, EQUAL, WORSE, Result, Run, result_of
from fwrnn.reproduction.retrain import Job, train
from fwrnn.reproduction.targets import TARGETS, Cell, Target

PAGE = Path(__file__).parents[2] / "RESULTS.md"
CELLS = {cell.folder: cell for target in TARGETS.values() for cell in target.cells}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_what_trains_a_cell_makes_the_network_that_it_names(cell):
    config = compose_config(*cell.train, "seed=0")
    label = config.model.name + (f"_{config.control}" if config.control != "none" else "")
    assert cell.model.split(",")[0] == label
    if isinstance(cell.column, int):
        assert config.model.hidden_size == cell.column
    else:
        assert cell.column == f"n{config.task.size}"


def run(seed=0, error=0.1, **tested):
    metrics = {"seed": seed, "test_error": error, "test_examples": 20000, "updates": 5}
    return Run(Path(f"seed{seed}"), seed, metrics, tested or None)


@pytest.mark.slow
def test_shipped_weights_come_out_as_recorded(tmp_path, capsys):
    names = ["table1", "table3", "figure5"]
    assert main(["reproduce", *names, "--json", "--output", str(tmp_path)]) == 0
    cells = json.loads(capsys.readouterr().out)
    assert {cell["target"] for cell in cells} == set(names)
    trained = [cell for cell in cells if cell["seeds"]]
    assert len(trained) > 10
    for cell in trained:
        assert cell["as_recorded"] and cell["tested_again"], cell
        assert cell["best"] in cell["each"]
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in names}


@pytest.mark.parametrize(
    ("errors", "paper", "verdict"),
    [
        ([0.018, 0.0182, 0.0179], 1.81, EQUAL),
        ([0.01, 0.011, 0.012], 1.81, BETTER),
        ([0.03, 0.031, 0.032], 1.81, WORSE),
        ([0.0, 0.0, 0.0], 0.0, EQUAL),
        ([0.0, 0.5, 0.0], 1.81, EQUAL),  # so wide an interval says nothing
        ([0.0182], 1.81, EQUAL),  # within what a test of 20,000 can tell
        ([0.03], 1.81, WORSE),
        ([0.1, 0.1], None, None),
        ([], 1.81, None),
    ],
)
def test_verdicts_know_how_far_the_seeds_tell(errors, paper, verdict):
    cell = Cell("lstm", 20, "table1/lstm-20", (), 3, paper)
    found = Result(cell, tuple(run(k, error) for k, error in enumerate(errors)))
    assert found.verdict == verdict
    assert found.missing == list(range(len(errors), 3))


def test_pictures_name_every_line_and_cut_no_mark(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    drawing.DRAWERS["figure2"](figure, TARGETS["figure2"], [])
    (axes,) = figure.axes
    assert len(axes.get_legend().get_texts()) == len(axes.lines) == 5  # four curves, and solved
    cell = Cell("lstm", 20, "table1/lstm-20", (), 3, 62.11)
    found = Result(cell, (run(0, 0.0), run(1, 53.0)))
    figure = Figure()
    drawing._cells(figure, TARGETS["table1"], [found])
    (axes,) = figure.axes
    assert axes.get_xlim()[1] > 1.2 * 62.11
    assert axes.get_ylabel() == "network, units"
    drawing.draw(TARGETS["table1"], [found], tmp_path / "new" / "table1.png")
    assert (tmp_path / "new" / "table1.png").stat().st_size > 1000


def test_a_number_that_moved_by_rounding_holds_and_one_that_moved_by_more_does_not():
    again = {"examples": 20000, "reproduced": False}
    assert run(error=0.1, error_=1).holds
    assert Run(Path(), 0, run().metrics, {**again, "error": 0.1005}).holds
    changed = Run(Path(), 0, run().metrics, {**again, "error": 0.11})
    assert not changed.holds
    assert changed.score("error") == pytest.approx(11)  # what the code computes today


@pytest.mark.parametrize(
    ("numbers", "middle"), [([1, 2, 3, 10], 2.5), ([5], 5), ([0, 1, 2], 1), ([0] * 9 + [9], 0)]
)
def test_the_interquartile_mean_is_that_of_the_middle_half(numbers, middle):
    found, low, high = interquartile_mean(numbers)
    assert found == pytest.approx(middle)
    assert min(numbers) <= low <= found <= high <= max(numbers)
    assert interquartile_mean(numbers) == (found, low, high)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two cells that train in a second, and the words that do it."""
    cells = tuple(
        Cell(model, 8, f"small/{model}", ("experiment=table1", f"model={model}"), seeds, 50.0)
        for model, seeds in (("rnn", 2), ("lstm", 1))
    )
    monkeypatch.setitem(TARGETS, "small", Target("small", "Small", "units", cells))
    monkeypatch.setattr(targets, "kept_folder", lambda: tmp_path / "nothing")
    settings = [
        "task.train_size=64", "task.val_size=32", "task.test_size=32", "model.embedding_size=4",
        "model.hidden_size=8", "trainer.max_updates=4", "trainer.evaluate_every=2",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    return ["reproduce", "small", "--retrain", "--output", str(tmp_path / "own"), *words]


@pytest.mark.slow
def test_retraining_does_what_is_missing_or_changed_and_nothing_twice(
    small, tmp_path, capsys, monkeypatch
):
    assert main([*small, "--seeds", "1", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [cell["seeds"] for cell in first] == [[0], [0]]
    assert all(cell["as_recorded"] for cell in first)
    kept, changed = (tmp_path / "own" / "small" / name / "seed0" for name in ("lstm", "rnn"))
    when = (kept / "metrics.json").stat().st_mtime_ns
    metrics = json.loads((changed / "metrics.json").read_text())
    (changed / "metrics.json").write_text(json.dumps(metrics | {"test_error": 0.0}))
    assert main([*small, "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert [cell["seeds"] for cell in second] == [[0, 1], [0]]
    assert [cell["each"][0] for cell in second] == [cell["each"][0] for cell in first]
    assert (kept / "metrics.json").stat().st_mtime_ns == when
    assert (changed.with_name("seed0-outdated1") / "metrics.json").is_file()
    plain = ["reproduce", "small", "--output", str(tmp_path / "own"), "--json"]
    assert main(plain) == 0  # of which they are not the cell's own
    out, err = capsys.readouterr()
    assert [cell["seeds"] for cell in json.loads(out)] == [[], []]
    assert "seed1 and 1 more: left out, as trained with other settings; --retrain trains" in err
    alone = replace(TARGETS["small"], cells=TARGETS["small"].cells[1:])
    monkeypatch.setitem(TARGETS, "small", alone)
    longer = [word.replace("max_updates=4", "max_updates=6") for word in small]
    for _ in range(2):
        assert main([*longer, "--json"]) == 0
        assert [cell["updates"] for cell in json.loads(capsys.readouterr().out)] == [[6]]
    assert len(list(kept.parent.glob("seed*"))) == 2  # the one before, and nothing twice


def test_what_ships_is_without_what_is_set(small, tmp_path, monkeypatch):
    ships = tmp_path / "ships" / "small" / "rnn" / "seed0"
    ships.mkdir(parents=True)
    measured = {"seed": 0, "test_error": 0.5, "test_examples": 32, "updates": 1, "commit": "abc"}
    (ships / "metrics.json").write_text(json.dumps(measured))
    monkeypatch.setattr(targets, "kept_folder", lambda: tmp_path / "ships")
    trained = []
    record = lambda jobs, n, done: trained.append([(j.cell.model, j.seed) for j in jobs])  # noqa: E731
    monkeypatch.setattr("fwrnn.commands.reproduce.train", record)
    for words in (small, small[: small.index("--set")]):
        assert main([*words, "--seeds", "1", "--json"]) == 0
    assert trained == [[("rnn", 0), ("lstm", 0)], [("lstm", 0)]]


def test_trainings_are_as_many_at_once_as_the_job_may_use_processors(small, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3}, raising=False)
    seen = []
    monkeypatch.setattr("fwrnn.commands.reproduce.train", lambda jobs, n, done: seen.append(n))
    main([*small, "--seeds", "1", "--json"])
    assert seen == [1]


def test_what_a_training_says_may_be_in_any_encoding(tmp_path, monkeypatch):
    program = "import os; os.write(2, b'M\\xfcller\\n')"
    monkeypatch.setattr(Job, "command", property(lambda job: [sys.executable, "-c", program]))
    told = []
    train([Job(CELLS["figure2/lstm-50"], 0, tmp_path)], 1, lambda job, fault: told.append(fault))
    assert told == ["M\N{REPLACEMENT CHARACTER}ller"]


@pytest.mark.slow
def test_a_training_that_fails_is_told_and_the_others_are_done(small, capsys):
    assert main([*small, "--seeds", "1", "--set", "trainer.learning_rate=1e30"]) == 1
    told = capsys.readouterr().err
    assert "small/rnn seed 0" in told
    assert "diverged" in told
    assert "2 trainings failed" in told


def test_a_mistake_is_told_once_and_before_anything_is_done(small, tmp_path, capsys):
    assert main([*small, "--set", "trainer.learning_rat=1"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "did you mean 'trainer.learning_rate'" in told
    for option in ("--set=seed=1", "--seeds=2", "--jobs=1"):
        assert main(["reproduce", "small", option]) == 2
        assert "--retrain" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["reproduce", "small", "--output", str(tmp_path / "file" / "own")]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_what_has_no_data_is_skipped_in_one_line(tmp_path, capsys):
    words = ["--data-dir", str(tmp_path / "none"), "--output", str(tmp_path)]
    assert main(["reproduce", "table2", "controls", *words]) == 0
    shown = capsys.readouterr()
    assert "one thing changed" in shown.out
    assert shown.err.count("\n") <= 3
    assert "table2: skipped: " in shown.err
    assert "MNIST's files" in shown.err


def test_the_page_of_results_has_the_tables_of_the_kept_runs():
    page = PAGE.read_text(encoding="utf-8")
    assert updated(page, but_for=["lengths"]) == page
    assert updated(page, made=lambda name: "") != page


def test_broken_runs_are_missing_ones(tmp_path):
    cell = Cell("lstm", 20, "cell", (), 2)
    for name, text in (("seed0", '{"seed": 0}'), ("seed1", "{")):
        (tmp_path / "cell" / name).mkdir(parents=True)
        (tmp_path / "cell" / name / "metrics.json").write_text(text)
    assert result_of(cell, tmp_path).missing == [0, 1]
