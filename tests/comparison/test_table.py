"""A comparison as text, Markdown, CSV and JSON, of runs that somebody meant ill with."""

import csv
import io
import json

from fwrnn.comparison import table
from fwrnn.comparison.found import Trouble, find
from fwrnn.comparison.rows import compare
from tests.comparison.runs import write_run

EVIL = "=HYPERLINK(`x`|<b>)\x1b[31m\u202e\nnext"
BROKEN = Trouble("a|`b`<i>\n\x1b[31m", "broken", "config.yaml: <script>|`\x07")  # type: ignore


def comparison(folder):
    return compare(list(find([folder])))


def test_terminal_table_fits_and_says_what_it_left_out(tmp_path):
    for seed in (0, 1):
        for size in (20, 50):
            write_run(tmp_path / f"{seed}-{size}", ("seed", seed), ("model.hidden_size", size))
    both = comparison(tmp_path)
    text = table.terminal([both], [], 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "4 runs, 2 settings of task=assoc_retrieval model=lstm" in text
    assert "10.00 ± 0.00  5.00 ± 0.00      100       50.0  0123456" in text
    narrow = table.terminal([both], [], 50)
    assert max(map(len, narrow.splitlines())) <= 54  # the sentence on what is not shown
    assert "Not shown for want of room: updates/s, updates, commit" in narrow


def test_terminal_is_not_steered_by_what_files_hold(tmp_path):
    write_run(tmp_path / "a", ("model.name", EVIL))
    write_run(tmp_path / "b", (f"model.{EVIL}", 1))
    write_run(tmp_path / "c", (f"model.{EVIL}", 2))
    text = table.terminal([comparison(tmp_path)], [BROKEN], 80)
    assert all(line.isprintable() for line in text.splitlines())
    assert "next" in text


def test_markdown_leaves_what_files_hold_as_text(tmp_path):
    write_run(tmp_path / "a", ("model.name", EVIL), ("model.a|<b>", 1))
    write_run(tmp_path / "b", ("model.a|<b>", 2))
    text = table.markdown([comparison(tmp_path)], [BROKEN])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    bars = {line.replace("\\|", "").count("|") for line in lines}
    assert len(lines) == 4
    assert len(bars) == 1
    for line in text.splitlines():
        outside = "".join(line.split("`")[::2])
        assert "<" not in outside, line


def test_csv_holds_plain_numbers_and_no_formulas(tmp_path):
    write_run(tmp_path / "a", ("model.name", EVIL), ("seed", 1), error=0.25)
    write_run(tmp_path / "b", ("model.name", "-1+1"), error=0.5)
    write_run(tmp_path / "c", ("model.name", "@x"), ("task.data_dir", "x"), error=0.75)
    first, second, third = csv.DictReader(io.StringIO(table.as_csv(comparison(tmp_path))))
    assert first["model"].startswith("'=HYPERLINK")
    assert second["model"] == "'-1+1"
    assert third["model"] == "'@x"
    assert float(first["test_error_percent"]) == 25
    assert first["test_error_percent_interval"] == ""
    assert float(first["val_error_percent"]) == 12.5
    assert "data_dir" not in first


def test_csv_keeps_negative_numbers(tmp_path):
    write_run(tmp_path / "a", ("task.x", -1.5))
    write_run(tmp_path / "b", ("task.x", None))
    write_run(tmp_path / "c")
    rows = csv.DictReader(io.StringIO(table.as_csv(comparison(tmp_path))))
    assert sorted(row["x"] for row in rows) == ["", "-1.5", "null"]


def test_json_is_a_list_of_rows_with_their_runs(tmp_path):
    a = write_run(tmp_path / "a", error=0.1)
    b = write_run(tmp_path / "b", ("seed", 1), error=0.2, updates_per_second=None)
    write_run(tmp_path / "c", ("model.hidden_size", 50), error=0.3)
    first, second = json.loads(table.as_json(comparison(tmp_path)))
    assert [run["folder"] for run in first["runs"]] == [str(a), str(b)]
    assert first["seeds"] == [0, 1]
    assert first["test_error"]["mean"] == 0.15000000000000002
    assert first["updates_per_second"] == {"mean": 50.0, "half": None}
    assert first["runs"][1]["updates_per_second"] is None
    assert second["settings"] == {
        "task.name": "assoc_retrieval", "model.name": "lstm", "control": "none",
        "model.hidden_size": 50,
    }  # fmt: skip


def test_numbers_that_nobody_can_read_stay_short(tmp_path):
    write_run(tmp_path / "a", error=9e98, updates=10**80, updates_per_second=1e90)
    text = table.terminal([comparison(tmp_path)], [], 80)
    assert max(map(len, text.splitlines())) < 80
    assert "1e+80" in text and "1e+90" in text  # and are not left out


def test_settings_that_differ_late_are_told_apart(tmp_path):
    for k, rate in enumerate((0.12345678, 0.12345679)):
        write_run(tmp_path / str(k), ("trainer.learning_rate", rate))
    text = table.terminal([comparison(tmp_path)], [], 80)
    assert "0.12345678" in text
    assert "0.12345679" in text
