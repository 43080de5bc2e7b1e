"""The command from its options to its files, with sizes that take no time."""

import json
import re
import signal

import pytest
import torch

from fwrnn.benchmarks import suites
from fwrnn.cli import main
from fwrnn.commands import bench
from fwrnn.commands.options import conf_dir
from tests.benchmarks.tiny import TINY
from tests.conftest import TINY as TINY_RUN

TABLES = (
    "steps", "small", "cells", "one_thread", "growth", "growth_ratios", "share", "updates",
)  # fmt: skip
FILES = ("bench.json", "bench.md", "bench.png")


@pytest.fixture(scope="module")
def measured():
    """One real measurement, of networks and of sizes that are tiny."""
    small = tuple(word for word in TINY_RUN if word.startswith(("model.", "task.")))
    before = torch.get_num_threads()
    yield bench.bench(TINY, threads=1, overrides=small)
    torch.set_num_threads(before)


@pytest.fixture
def quick(measured, monkeypatch) -> dict:
    """What the command measures, without measuring it again."""
    monkeypatch.setattr(bench, "bench", lambda *arguments: measured)
    return measured


def documented_keys() -> set[str]:
    """The words before the wide gap of each line of the docstring, "like, these" split up."""
    lines = re.findall(r"^    (\S.*?)(?:   ?\S.*)$", bench.__doc__, re.M)
    return {word for line in lines for word in re.findall(r"\w+", line.split("  ")[0])}


def test_result_has_every_documented_key_and_no_other(measured):
    found = set(measured)
    assert measured["one_thread"] == []  # it was measured on one
    for table in set(TABLES) - {"one_thread"}:
        assert measured[table], table
        assert len({tuple(row) for row in measured[table]}) == 1, f"rows of {table} differ"
        found |= set(measured[table][0])
    assert found == documented_keys()
    for key in measured["machine"]:
        assert re.search(rf"\b{key}\b", bench.__doc__), key


def test_json_is_all_that_is_printed(quick, tmp_path, capsys):
    assert main(["bench", "--json", "--output", str(tmp_path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((tmp_path / "bench.json").read_text()) == quick


def test_files_are_written_and_their_place_is_said_last(quick, tmp_path, capsys):
    folder = tmp_path / "new" / "bench"
    assert main(["bench", "--output", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == f"in {folder}: bench.json, bench.md, bench.png"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    page = (folder / "bench.md").read_text()
    assert page.startswith("# fwrnn bench") and shown.startswith(page)
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_options_reach_the_measurement(measured, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "bench", lambda *arguments: asked.append(arguments) or measured)
    main(["bench", "--output", str(tmp_path)])
    full = ["--full", "--device", "cpu", "--threads", "1", "--seed", "3"]
    main(["bench", "--output", str(tmp_path), *full])
    assert asked == [(suites.QUICK, "auto", None, 0), (suites.FULL, "cpu", 1, 3)]


def test_every_model_is_updated(measured):
    models = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
    assert [row["model"] for row in measured["updates"]] == models
    skipped = {row["model"] for row in measured["updates"] if row["skipped"]}
    assert skipped == {"convnet", "multilevel"}  # which look at images
    for row in measured["updates"]:
        assert row["skipped"] or row["updates_per_second"] == pytest.approx(1000 / row["ms"])


def test_interrupted_bench_writes_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(suites, "unavailable", interrupted)
    folder = tmp_path / "bench"
    assert main(["bench", "--output", str(folder)]) == 128 + signal.SIGINT
    assert capsys.readouterr().out == ""
    assert not folder.exists()


def test_full_disk_keeps_what_was_there(quick, tmp_path, monkeypatch, capsys):
    def full(handle):
        raise OSError(28, "No space left on device")

    (tmp_path / "bench.json").write_text("before")
    monkeypatch.setattr("os.fsync", full)
    assert main(["bench", "--output", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "No space left on device" in shown.err
    assert "# fwrnn bench" in shown.out  # what was measured is not lost
    assert (tmp_path / "bench.json").read_text() == "before"
    assert not list(tmp_path.rglob("*.tmp"))


def test_busy_machine_is_told_of():
    def table(q3):
        return [{"ms": 1.0, "ms_q1": 1.0, "ms_q3": q3, "samples": 9}] * 5

    quiet = dict.fromkeys(bench.MEASURED, table(1.01))
    assert bench.warnings(quiet) == []
    (warning,) = bench.warnings({**quiet, "steps": table(2.0)})
    assert "5 of 35 timings" in warning
    assert "100%" in warning
