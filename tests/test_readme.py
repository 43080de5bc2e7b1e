"""What the README promises in its first screens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_quick_start_is_two_command_lines():
    section = README.split("## Quick start")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)\n```", section, re.S)
    assert len(blocks) == 2
    assert all("\n" not in block for block in blocks)
    assert "fwrnn train task=assoc_retrieval" in blocks[0]
    assert "pytest" in blocks[1]


def test_layer_in_five_lines_runs():
    program = re.search(r"```python\n(.*?)\n```", README, re.S).group(1)
    assert len([line for line in program.splitlines() if line]) == 5
    names = {}
    exec(program, names)
    assert names["output"].shape == (5, 128, 50)
    assert names["state"].memory.matrix().shape == (1, 128, 50, 50)


def test_games_are_made_as_shown():
    program = re.findall(r"```python\n(.*?)\n```", README, re.S)[1]
    names = {}
    exec(program, names)
    assert names["games"].reset(seed=0)[0].shape == (4096, 16, 16)


def test_pictures_exist():
    for name in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / name).is_file()


@pytest.mark.parametrize(
    "words", ["table.py table1", "table.py table2", "table.py table3", "figure5.py"]
)
def test_tables_are_those_of_the_kept_runs(words, tmp_path):
    script, *arguments = words.split()
    if script == "figure5.py":
        arguments = ["--picture", tmp_path / "figure5.png"]
    command = [sys.executable, ROOT / "scripts" / script, *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.split("\n\n")[0].strip() in README
