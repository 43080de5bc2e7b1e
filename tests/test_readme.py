"""What the README promises, and the pages that it leads to."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.compose import compose

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "RESULTS.md", "CONTRIBUTING.md", "docs/CHOICES.md", "docs/SWEEPS.md")
}
README = PAGES["README.md"]
SETTINGS = {
    words.strip()
    for text in PAGES.values()
    for words in re.findall(r"^ {4}.*\bfwrnn train ([^#\n]*)", text, re.M)
    if not words.startswith("resume=")
}


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


@pytest.mark.slow
def test_the_layer_alone_imports_nothing_of_the_experiments():
    program = "import sys, torch, fwrnn; fwrnn.FastWeightsRNN(2, 3)(torch.ones(4, 1, 2))"
    command = [sys.executable, "-c", f"{program}; print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "numba" in loaded.split()
    assert not {"hydra", "tensorboard", "gymnasium", "matplotlib"} & {*loaded.split()}


def test_games_are_made_as_shown():
    program = re.findall(r"```python\n(.*?)\n```", README, re.S)[1]
    names = {}
    exec(program, names)
    assert names["games"].reset(seed=0)[0].shape == (4096, 16, 16)


@pytest.mark.parametrize("page", PAGES)
def test_pages_and_pictures_that_are_linked_to_exist(page):
    for name in re.findall(r"\]\(([^():#]+)(?:#[\w-]+)?\)", PAGES[page]):
        assert ((ROOT / page).parent / name).exists(), name


def test_sections_of_the_results_that_are_linked_to_exist():
    headings = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", PAGES["RESULTS.md"], re.M)
    }
    linked = re.findall(r"\(RESULTS\.md#([\w-]+)\)", README)
    assert linked
    assert {*linked} <= headings


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md"])
def test_every_picture_has_its_command_beside_it(page):
    blocks = PAGES[page].split("\n\n")
    for here, block in enumerate(blocks):
        if block.startswith("!["):
            assert any(
                re.match(r" {4}(fwrnn|python scripts/)", near)
                for near in blocks[max(here - 1, 0) : here + 3]
            ), block


@pytest.mark.parametrize("words", sorted(SETTINGS))
def test_settings_are_those_of_the_program(words):
    """Of a sweep the first of each key's values."""
    overrides = [word for word in shlex.split(words) if word != "-m"]
    first = [re.sub(r"range\((\d+),.*", r"\1", word).partition(",")[0] for word in overrides]
    compose(*first)
