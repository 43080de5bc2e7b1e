"""What the shipped configurations promise: controls, tuning, and how paths are read."""

from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fwrnn.cli import main
from fwrnn.commands.options import conf_dir
from fwrnn.commands.train import resumed_config, train
from fwrnn.config import CORES, TASKS, migrated, read_config
from fwrnn.errors import UserError
from fwrnn.learning.retest import evaluated
from fwrnn.learning.run_folder import RunFolder
from tests.commands.compose import compose

CONF = conf_dir()
CONTROLS = sorted(path.stem for path in (CONF / "control").glob("*.yaml"))


def flat(config) -> dict:
    container = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return {
        f"{group}.{key}": value
        for group in ("task", "model", "trainer")
        for key, value in container[group].items()
    }


@cache
def uncontrolled(task):
    return compose(f"task={task}", "model=fast_weights")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("control", [name for name in CONTROLS if name != "none"])
def test_a_control_changes_one_thing_of_the_network_on_every_task(task, control):
    network = uncontrolled(task)
    less = compose(f"task={task}", "model=fast_weights", f"control={control}")
    assert (network.control, less.control) == ("none", control)
    differing = {key for key, value in flat(less).items() if value != flat(network)[key]}
    assert len(differing) == 1, differing
    assert differing.pop().startswith("model.")


def test_every_file_of_tuning_is_for_something_that_exists():
    models = {path.stem for path in (CONF / "model").glob("*.yaml")}
    experiments = {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    known = {
        "task": set(TASKS),
        "pair": {f"{task}-{model}" for task in TASKS for model in models},
        "search": {f"{name}-{model}" for name in experiments for model in models},
    }
    for path in (CONF / "tuned").rglob("*.yaml"):
        assert path.stem in known[path.parent.name], f"{path} is never read"
    assert {path.stem for path in (CONF / "task").glob("*.yaml")} == set(TASKS)
    assert models == set(CORES)


@pytest.mark.parametrize("value", [
    "/data/José", "/d/lr=1", "/a b/c", "/it's", "/d,e/(f)", "/$x", r"/a\b", r"\\nas\x", "/a b\\",
    r"/it\'s",
])  # fmt: skip
def test_paths_are_taken_as_written(value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "task=mnist_glimpses", f"task.data_dir={value}"]) == 2
    assert f"there is no folder '{value}'" in capsys.readouterr().err


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, capsys):
    for name in ("HOME", "USERPROFILE"):  # the latter on Windows
        monkeypatch.setenv(name, str(tmp_path))
    assert main(["train", "task=mnist_glimpses", "task.data_dir=~/mnist"]) == 2
    assert f"there is no folder '{tmp_path / 'mnist'}'" in capsys.readouterr().err


def test_a_run_can_be_in_a_folder_of_any_name(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *tiny, "hydra.run.dir=out/lr=0.1 é"]) == 0
    assert (tmp_path / "out" / "lr=0.1 é" / "metrics.json").is_file()
    assert main(["train", "trainer.max_updates=25", "resume=out/lr=0.1 é"]) == 0


def test_resuming_takes_the_keys_of_the_runs_own_trainer_and_where_its_data_lie():
    saved = OmegaConf.to_container(OmegaConf.structured(compose("task=catch")), enum_to_str=True)
    assert resumed_config(saved, ["trainer.games=128"]).trainer.games == 128
    images = compose("task=mnist_glimpses", "task.data_dir=here")
    saved = OmegaConf.to_container(OmegaConf.structured(images), enum_to_str=True)
    assert resumed_config(saved, ["task.data_dir=/now/José"]).task.data_dir == "/now/José"
    for word in ("seed=3", "task.shift=2", "model.hidden_size=3"):
        with pytest.raises(UserError, match=f"'{word}' cannot change"):
            resumed_config(saved, [word])
    with pytest.raises(UserError, match="'trainer.games'"):
        resumed_config(saved, ["trainer.games=128"])
    with pytest.raises(UserError, match="not one value"):
        resumed_config(saved, ["trainer.max_updates=1,2"])


def test_configurations_of_earlier_versions_are_read():
    saved = OmegaConf.to_container(OmegaConf.structured(compose()), enum_to_str=True)
    del saved["control"], saved["model"]["read_gain"], saved["trainer"]["warmup"]
    saved["model"]["name"], saved["trainer"]["warmup_updates"] = "fast_weights_folded", 4000
    config = read_config(migrated(saved))
    assert (config.model.name, config.control) == ("fast_weights", "folded")
    assert (config.trainer.warmup, config.model.read_gain) == (0.1, "fixed")


def test_nothing_in_a_foreign_configuration_is_resolved(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "7")
    train(compose(*tiny), tmp_path)
    file = RunFolder(tmp_path).config
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("hidden_size: 8", "hidden_size: ${oc.env:SECRET}"), "utf-8")
    with pytest.raises(UserError, match=r"model.hidden_size is '\$\{oc.env:SECRET\}'"):
        evaluated(str(tmp_path))


def test_metrics_name_every_commit_that_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("fwrnn.learning.record.commit", lambda: "first")
    train(compose(*tiny), tmp_path)
    monkeypatch.setattr("fwrnn.learning.record.commit", lambda: "second")
    longer = compose(*tiny, "trainer.max_updates=25")
    assert train(longer, tmp_path, resume=True)["commit"] == "first second"


def test_help_is_readable_where_there_is_no_greek(monkeypatch):
    import os
    import subprocess
    import sys

    for words in (["--help"], ["train", "--help"], ["train", "model.decay=2"]):
        done = subprocess.run(
            [sys.executable, "-m", "fwrnn", *words], capture_output=True, text=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii"}, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert "Traceback" not in done.stderr
