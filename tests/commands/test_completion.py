"""Tab completion: what is offered, and a real shell that asks."""

import os
import shutil
import subprocess
import sys

import pytest

from fwrnn.cli import main
from fwrnn.commands.completion import SCRIPTS, candidates


@pytest.mark.parametrize(("line", "offered"), [
    ("fwrnn tr", ["train"]),
    ("fwrnn train task=as", ["task=assoc_retrieval"]),
    ("fwrnn train model=lstm,ir", ["model=lstm,irnn"]),
    ("fwrnn train -m control=fo", ["control=folded"]),
    ("fwrnn train model.hidden", ["model.hidden_size="]),
    ("fwrnn train experiment=table1_s", ["experiment=table1_search"]),
    ("fwrnn sweep re", ["resume"]),
    ("fwrnn bench ", []),
])  # fmt: skip
def test_words_are_completed(line, offered):
    assert candidates(line) == offered


def test_folders_of_runs_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "runs" / "one").mkdir(parents=True)
    (tmp_path / "outputs" / "runs" / "one" / "config.yaml").touch()
    (tmp_path / ".hidden").mkdir()
    assert candidates("fwrnn evaluate out") == ["outputs/"]
    assert candidates("fwrnn evaluate ./") == ["./outputs/"]
    assert candidates("fwrnn evaluate ./out") == ["./outputs/"]
    assert candidates("fwrnn evaluate outputs/runs/") == ["outputs/runs/one"]
    assert candidates("fwrnn train resume=outputs/runs/o") == [
        "resume=outputs/runs/one",
        "resume=latest",
    ]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_say_where_to_put_them(shell, capsys):
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert f"fwrnn completion {shell}" in said and said.endswith(SCRIPTS[shell])


@pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="no bash here")
def test_bash_completes_behind_the_equals_sign(tmp_path):
    here = tmp_path / "fwrnn"
    here.write_text(f'#!/bin/sh\nexec {sys.executable} -m fwrnn "$@"\n', encoding="utf-8")
    here.chmod(0o755)
    program = """
    eval "$(fwrnn completion bash)"
    ask() {
      COMP_LINE="$1"; COMP_POINT=${#1}; COMPREPLY=()
      _fwrnn 2>/dev/null; echo "${COMPREPLY[@]}"
    }
    ask "fwrnn train task=cat"; ask "fwrnn train model.dec"
    """
    done = subprocess.run(
        ["bash", "-c", program],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["catch", "model.decay="]


def test_hydras_own_completion_names_ours(capsys):
    assert main(["train", "-sc", "install=bash"]) == 2
    assert "fwrnn completion bash" in capsys.readouterr().err
