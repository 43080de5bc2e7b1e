"""The command from its folders to its files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fwrnn.cli import main
from tests.comparison.runs import write_game, write_run

KEPT = Path(__file__).parents[2] / "outputs" / "paper"


@pytest.fixture
def folder(tmp_path) -> Path:
    top = tmp_path / "runs"
    for seed in (0, 1):
        write_run(top / f"lstm{seed}", ("seed", seed), error=0.1 + seed / 10)
        write_run(top / f"irnn{seed}", ("seed", seed), ("model.name", "irnn"), error=0.05)
    (write_run(top / "half") / "metrics.json").write_text("{")
    return top


def test_table_for_people(folder, capsys):
    assert main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert shown.index("irnn") < shown.index("lstm")
    assert "15.00 ± 63.53" in shown
    assert f"broken: {folder / 'half'}: metrics.json: it is not JSON" in shown
    main(["report", str(folder), "--sort", "model", "--markdown"])
    assert "| `irnn` |" in capsys.readouterr().out


def test_machines_may_sort_by_what_differs_between_tasks_alone(folder, tmp_path, capsys):
    write_game(folder / "game", 0.5)
    for form in ("--csv", "--json"):
        assert main(["report", str(folder), form, "--sort", "task"]) == 0
        assert "catch" in capsys.readouterr().out
    assert main(["report", str(folder), "--csv", "--sort", "nothing"]) == 2


def test_forms_for_machines_are_alone_on_standard_output(folder, tmp_path, capsys):
    picture = tmp_path / "new" / "x.png"
    assert main(["report", str(folder), "--json", "--png", str(picture)]) == 0
    shown = capsys.readouterr()
    assert [row["settings"]["model.name"] for row in json.loads(shown.out)] == ["irnn", "lstm"]
    assert "broken: " in shown.err
    assert f"in {picture}" in shown.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["report", str(folder), "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_page_is_written_and_its_place_is_said_last(folder, tmp_path, capsys):
    page = tmp_path / "x.html"
    assert main(["report", str(folder), "--html", str(page)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"in {page}"
    text = page.read_text(encoding="utf-8")
    assert "15.00 ± 63.53" in text
    assert "<svg" in text
    assert str(folder / "half") in text


@pytest.mark.parametrize("form", [[], ["--csv"], ["--json"], ["--markdown"]])
def test_nothing_finished_is_no_error(form, folder, tmp_path, capsys):
    files = ["--png", str(tmp_path / "x.png"), "--html", str(tmp_path / "x.html")]
    assert main(["report", str(folder / "half"), "--sort", "x", *form, *files]) == 0
    shown = capsys.readouterr()
    assert "metrics.json: it is not JSON" in shown.out + shown.err
    assert (tmp_path / "x.png").exists()


@pytest.mark.parametrize("words, parts", [
    (["nowhere"], ["'nowhere' is not there"]),
    (["file"], ["'file' is a file"]),
    (["empty"], ["no run below empty", "config.yaml and metrics.json"]),
    ([], ["FOLDER", "fwrnn report --help"]),
    (["runs", "--csv", "--json"], ["not allowed with"]),
    (["runs", "--sort", "modle"], ["no 'modle', did you mean 'model'?"]),
    (["runs", "--png", "empty"], ["--png needs the name of a file", "'empty'"]),
    (["runs", "--html", ""], ["--html needs the name of a file"]),
])  # fmt: skip
def test_mistake_is_one_line_and_status_2(words, parts, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    Path("empty").mkdir()
    Path("file").touch()
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in parts:
        assert part in error


def test_picture_that_cannot_be_written_is_one_line(folder, capsys):
    assert main(["report", str(folder), "--png", str(folder / "half" / "curve.csv" / "x")]) == 1
    shown = capsys.readouterr()
    assert "could not write" in shown.err
    assert "irnn" in shown.out  # what was found is not lost


def test_torch_is_imported_for_checkpoints_only(folder, tmp_path):
    program = "import sys; from fwrnn.cli import main\nassert main(sys.argv[1:]) == 0\n"
    program += "assert 'torch' not in sys.modules"
    files = ["--png", str(tmp_path / "x.png"), "--html", str(tmp_path / "x.html")]
    command = [sys.executable, "-c", program, "report", str(folder), *files]
    subprocess.run(command, check=True, capture_output=True)


def test_kept_runs_give_the_numbers_of_the_readme(capsys):
    assert main(["report", str(KEPT / "table2"), str(KEPT / "figure5" / "rnn-n24"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    best, *_, game = rows
    assert best["settings"]["model.name"] == "multilevel"
    assert best["settings"]["model.hidden_size"] == 200
    assert f"{100 * best['test_error']['mean']:.2f}" == "0.83"
    assert f"{game['test_reward']['mean']:.3f}" == "-0.597"


def test_tasks_have_tables_of_their_own(folder, capsys):
    write_game(folder / "game", 0.5)
    assert main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "4 runs, 2 settings of task=assoc_retrieval" in shown
    assert "1 run, 1 setting of task=catch" in shown
