"""The command line: every mistake is one line on standard error and exit status 2."""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fwrnn import __version__
from fwrnn.cli import is_shared, main
from fwrnn.commands.composition import planned
from fwrnn.commands.options import group_options
from fwrnn.commands.train import train
from fwrnn.commands.train_help import help_text
from fwrnn.learning.shipped import FOLDER
from tests.commands.compose import compose
from tests.conftest import TINY


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(compose(*TINY), folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A run of a test's own, which it may break."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def one_line(capsys) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    assert error.startswith("fwrnn: ")
    return error


@pytest.mark.parametrize(("words", "parts"), [
    (["trian"], ["unknown command 'trian'", "'train'"]),
    (["train", "task=asoc"], ["unknown task 'asoc'", "did you mean 'assoc_retrieval'?"]),
    (["train", "hydra.run.dir="], ["hydra.run.dir needs a folder"]),
    (["sweep", "status", __file__], ["there is no sweep at"]),
    (["train", "model=fast_weight"], ["unknown model 'fast_weight'", "'fast_weights'"]),
    (["train", "tsk=assoc_retrieval"], ["unknown key 'tsk'", "'task'"]),
    (["train", "model.hiden_size=3"], ["'model.hiden_size'", "'model.hidden_size'"]),
    (["train", "hidden_size=3"], ["'hidden_size'", "'model.hidden_size'"]),
    (["train", "+model.foo=1"], ["'model.foo'"]),
    (["train", "+foo=1"], ["'foo'"]),
    (["train", "model.hidden_size=abc"], ["model.hidden_size", "'abc'"]),
    (["train", "model.hidden_size=0"], ["model.hidden_size must be 1 or more, got 0"]),
    (["train", "model.hidden_size=2.5"], ["model.hidden_size", "2.5"]),
    (["train", "model.backend=magic"], ["model.backend", "magic", "attention"]),
    (["train", "model.decay=1.5"], ["model.decay", "[0, 1], got 1.5"]),
    (["train", "model.fast_lr=nan"], ["model.fast_lr", "got nan"]),
    (["train", "model.inner_steps=-1"], ["model.inner_steps", "got -1"]),
    (["train", "model=associative_lstm", "model.hidden_size=7"], ["even, got 7"]),
    (["train", "task.pairs=27"], ["task.pairs must lie in 1 … 26", "got 27"]),
    (["train", "task.pairs=0"], ["task.pairs", "got 0"]),
    (["train", "trainer.learning_rate=-1"], ["trainer.learning_rate must be positive, got -1"]),
    (["train", "trainer.max_updates=0"], ["trainer.max_updates must be 1 or more, got 0"]),
    (["train", "trainer.schedule=step"], ["trainer.schedule", "step", "cosine"]),
    (["train", "seed=-1"], ["seed must be 0 or more", "got -1"]),
    (["train", "seed=99999999999999999999"], ["seed must be"]),
    (["train", "seed=${nothing}"], ["nothing"]),
    (["train", "threads=100000"], ["threads must lie in 1 … 1024, got 100000"]),
    (["train", "device=meta"], ["device 'meta'"]),
    (["train", "device=cpu:99"], ["device 'cpu:99'"]),
    (["train", "model=lstm", "model.decay=0.9"], ["'model.decay'"]),
    (["train", "model.hidden_size=1000000000"], ["the model cannot be made here"]),
    (["train", "~task"], ["task needs an option"]),
    (["train", "=3"], ["'=3' is not a setting"]),
    (["train", "--cfg"], ["argument --cfg/-c: expected one argument"]),
    (["train", "--cfg", "nonsense"], ["--cfg", "nonsense"]),
    (["train", "--package", "model=lstm"], ["argument --package/-p: expected one argument"]),
    (["train", "--multi", "seed=0,1"], ["unrecognized arguments: --multi"]),
    (["train", "++hydra.run.dir="], ["hydra.run.dir needs a folder"]),
    (["train", "resume="], ["resume needs the folder"]),
    (["train", "+resume=nowhere"], ["no run at 'nowhere'"]),
    (["train", "-m", "resume=nowhere"], ["leave -m out"]),
    (["evaluate", ".", "--data", "x", "--split", "val"], ["not allowed with"]),
    (["train", "seed=x"], ["seed", "'x'"]),
    (["train", "device=gpu"], ["device 'gpu'"]),
    (["train", "task=null"], ["task"]),
    (["train", "model.hidden_size="], ["model.hidden_size"]),
    (["train", "nonsense"], ["'nonsense' is not a setting", "KEY=VALUE"]),
    (["train", "--fast"], ["unrecognized arguments: --fast"]),
    (["train", "model.hidden_size=[1,2"], ["model.hidden_size=[1,2"]),
    (["train", "resume=nowhere"], ["no run at 'nowhere'"]),
    (["train", "--help", "task=asoc"], ["unknown task 'asoc'"]),
    (["train", "seed=0,1"], ["'seed=0,1'", "put -m before"]),
    (["train", "--cfg", "job", "model=x"], ["unknown model 'x'"]),
    (["train", "experiment=search"], ["experiment/search", "choose it with hydra/sweeper=NAME"]),
    (["evaluate"], ["RUN", "fwrnn evaluate --help"]),
    (["evaluate", "nowhere"], ["no run at 'nowhere'"]),
    (["evaluate", "nowhere", "--splt"], ["--splt"]),
    (["evaluate", "."], ["is not a run"]),
    (["train", "model=multilevel"], ["multilevel looks at images", "task=mnist_glimpses"]),
    (["train", "model=convnet"], ["convnet looks at images", "task=mnist_glimpses"]),
    (["train", "model.head_dropout=1"], ["model.head_dropout must lie in [0, 1), got 1"]),
    (["train", "model.input_dropout=0.1"], ["model.input_dropout is for pixels"]),
    (["train", "trainer.weight_decay=-1"], ["trainer.weight_decay must be 0 or more, got -1"]),
    (["train", "trainer.label_smoothing=1"], ["trainer.label_smoothing", "got 1"]),
    (["train", "task=mnist_glimpses", "task.dataset=cifar"], ["task.dataset", "cifar", "digits"]),
    (["train", "task=mnist_glimpses", "task.data_dir=nowhere"], ["no folder 'nowhere'"]),
    (["train", "task=mnist_glimpses", "task.data_dir=.", "task.shift=-1"], ["MNIST", "digits"]),
    (["train", "task=facial_expression", "task.layout=multi_pie"], ["data_dir", "synthetic"]),
    (["train", "task=facial_expression", "task.layout=folders", "task.data_dir=."], ["image"]),
    (["ask"], ["QUESTION", "fwrnn ask --help"]),
    (["ask", "a1??a", "--run", "nowhere"], ["no run at 'nowhere'", "retrieval"]),
    (["ask", "a1??a", "--png", "."], ["--png needs the name of a file", "'.'"]),
    (["evaluate", "retrieval", "--pairs", "0-3"], ["--pairs", "from 1 to 26", "'0-3'"]),
    (["evaluate", "retrieval", "--pairs", "27"], ["--pairs", "from 1 to 26", "'27'"]),
    (["evaluate", "retrieval", "--pairs", "8-4"], ["--pairs", "less to more", "'8-4'"]),
    (["evaluate", "retrieval", "--pairs", "4", "--data", "x"], ["--data does not go with --pairs"]),
    (["evaluate", "retrieval", "--examples", "4"], ["--examples goes with --pairs"]),
    (["bench", "--fast"], ["unrecognized arguments: --fast", "fwrnn bench --help"]),
    (["bench", "--threads", "0"], ["--threads must lie in 1 … 1024, got 0"]),
    (["bench", "--threads", "x"], ["--threads", "'x'", "fwrnn bench --help"]),
    (["bench", "--seed", "-1"], ["--seed must be 0 or more", "got -1"]),
    (["bench", "--output", __file__], ["--output needs a folder", "test_cli.py"]),
    (["bench", "--device", "gpu"], ["device 'gpu'"]),
], ids=lambda value: " ".join(value) if value and " " not in value[0] else "")  # fmt: skip
def test_mistake_is_one_line_and_status_2(words, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fwrnn.tasks.mnist_files.MIRRORS", ())
    assert main(words) == 2
    error = one_line(capsys)
    for part in parts:
        assert part in error


def test_a_strangers_run_steers_no_terminal(run, monkeypatch, capsys):
    saved = (run / "config.yaml").read_text().replace("name: fast_weights", 'name: "x\\e[2Jy"', 1)
    (run / "config.yaml").write_text(saved)
    main(["evaluate", str(run)])
    main(["ask", "a1b2??a", "--run", str(run)])
    if os.name == "posix":  # where folders may be called so
        shutil.copytree(run, run.parent / "a\x1b[2J" / "run")
    main(["evaluate", str(run.parent)])
    main(["\x1b[2J"])
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err


def test_hydras_options_may_stand_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])  # to which Hydra adds one, for good
    words = ["seed=1", "--config-dir", "mine", "-m", "task.pairs=2,3"]
    assert planned(words) == [["seed=1", "task.pairs=2"], ["seed=1", "task.pairs=3"]]
    assert main(["train", "--help", "--cfg", "job"]) == 0
    assert "task.pairs=" in capsys.readouterr().out
    assert main(["train", "-i", "defaults", "seed=1"]) == 0
    assert main(["train", "-i", "seed=1"]) == 0
    assert not list(tmp_path.iterdir())


def test_to_look_at_an_experiment_makes_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "experiment=table1", "--cfg", "job"]) == 0
    assert "associative" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_task_brings_what_was_chosen_for_it_and_the_command_line_overrules_it():
    assert compose().model.core == "fast_weights"
    images = compose("task=mnist_glimpses")
    assert images.model.core == "multilevel"
    assert images.model.integration_dropout == 0.3
    assert images.trainer.max_updates == 11700
    assert compose("task=mnist_glimpses", "task.dataset=digits").trainer.max_updates == 4000
    assert compose("task=mnist_glimpses", "trainer.max_updates=7").trainer.max_updates == 7
    other = compose("task=mnist_glimpses", "model=lstm", "model.head_dropout=0")
    assert other.model.core == "lstm"
    assert other.model.head_dropout == 0
    assert other.model.encoding_dropout == images.model.encoding_dropout


@pytest.mark.parametrize(("table", "core"), [
    ("table1", "fast_weights"), ("table2", "multilevel"), ("table3", "multilevel"),
])  # fmt: skip
def test_experiments_repeat_their_cells(table, core):
    assert compose(f"experiment={table}").model.core == core
    assert compose(f"experiment={table}", "model=irnn", "seed=3").model.core == "irnn"


def test_evaluate_prints_for_people_and_for_machines(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    assert "as recorded, exactly" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reproduced"] is True


def test_evaluate_reads_files_of_examples(run, tmp_path, capsys):
    file = tmp_path / "mine.tsv"
    file.write_text("c9k8j3f1??c\t9\na1b2??a\t1\n")
    assert main(["evaluate", str(run), "--data", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 2
    file.write_text("c9k8j3f1??c\t9\na1b2??a 1\n")
    assert main(["evaluate", str(run), "--data", str(file)]) == 2
    assert "line 2" in one_line(capsys)
    assert main(["evaluate", str(run), "--data", "nowhere.tsv"]) == 2
    assert "nowhere.tsv" in one_line(capsys)


def test_evaluate_takes_the_place_of_the_data_from_its_option(tmp_path, monkeypatch, capsys):
    from tests.tasks.mnist import small_mnist, write

    contents = small_mnist(monkeypatch)
    write(tmp_path / "here", contents)
    write(tmp_path / "there", contents, gzipped=True)
    settings = ["task=mnist_glimpses", "model=convnet", "model.hidden_size=8", "threads=1"]
    settings += [f"task.data_dir={tmp_path / 'here'}", "trainer.max_updates=2"]
    train(compose(*settings), tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "gone")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "no folder" in one_line(capsys)
    assert main(["evaluate", str(tmp_path / "run"), "--data-dir", str(tmp_path / "there")]) == 0
    assert "as recorded, exactly" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--data", "mine.tsv"]) == 2
    assert "no folder" in one_line(capsys)
    pictures = tmp_path / "run" / "pictures"
    drawn = {path.name: path.read_bytes() for path in pictures.iterdir()}
    assert sorted(drawn) == ["confusion.png", "glimpses.png", "mistakes.png"]
    shutil.rmtree(pictures)
    words = ["evaluate", str(tmp_path / "run"), "--data-dir", str(tmp_path / "there")]
    assert main([*words, "--pictures"]) == 0
    assert f"in {pictures}: confusion.png, mistakes.png, glimpses.png" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == drawn


def test_games_are_drawn_again_where_they_are_asked_for(tmp_path, capsys):
    settings = ["task=catch", "task.size=6", "model=rnn", "model.hidden_size=8", "threads=1"]
    settings += ["trainer.max_updates=1", "trainer.test_games=8", "trainer.val_games=8"]
    train(compose(*settings), tmp_path / "run")
    words = ["evaluate", str(tmp_path / "run"), "--pictures", "--output", str(tmp_path / "a" / "b")]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    files = [str(tmp_path / "a" / "b" / name) for name in ("game.png", "games.gif")]
    assert json.loads(capsys.readouterr().out)["pictures"] == files
    for file in files:
        again = Path(file)
        assert again.read_bytes() == (tmp_path / "run" / "pictures" / again.name).read_bytes()


def test_pictures_that_cannot_be_written_are_one_line_before_anything_is_tested(
    run, monkeypatch, capsys
):
    shutil.rmtree(run / "pictures")
    (run / "pictures").touch()  # which the superuser cannot write in, either
    monkeypatch.setattr("fwrnn.learning.supervised.predict", None)
    for words, said in (
        (["--pictures"], f"cannot write to '{run / 'pictures'}'"),
        (["--output", "there"], "--output goes with --pictures"),
        (["--pictures", "--data", "mine.tsv"], "leave one out"),
        (["--pictures", "--pairs", "2"], "leave one out"),
        (["--pictures", "--split", "val"], "by --output DIR"),
        (["--pictures", "--set", "model.fast_lr=0"], "by --output DIR"),
    ):
        assert main(["evaluate", str(run), *words]) == 2
        assert said in one_line(capsys)


@pytest.mark.parametrize("name", ["retrieval", str(FOLDER / "retrieval")])
def test_what_ships_is_not_written_to(name, capsys):
    assert main(["evaluate", name, "--pictures"]) == 2
    assert "by --output DIR" in one_line(capsys)
    assert not (FOLDER / "retrieval" / "pictures").exists()


def test_tasks_without_data_take_no_folder_of_them(run, capsys):
    assert main(["evaluate", str(run), "--data-dir", "."]) == 2
    assert "leave --data-dir out" in one_line(capsys)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None, "half", "foreign", "other"])
def test_broken_checkpoint_is_one_line_and_status_2(run, capsys, content):
    path = run / "checkpoints" / "best.pt"
    match content:
        case None:
            path.unlink()
        case "half":
            path.write_bytes(path.read_bytes()[:2000])
        case "foreign":
            torch.save({"weights": torch.ones(3)}, path)
        case "other":
            torch.save({"format": 1, "update": 1, "model": {"x": torch.ones(3)}}, path)
        case _:
            path.write_bytes(content)
    assert main(["evaluate", str(run)]) == 2
    assert "best.pt" in one_line(capsys)


@pytest.mark.parametrize("text", ["[1]", "{", "null"])
def test_broken_metrics_are_one_line_and_status_2(run, capsys, text):
    (run / "metrics.json").write_text(text)
    assert main(["evaluate", str(run)]) == 2
    assert "metrics.json" in one_line(capsys)


def test_runs_of_another_trainer_can_be_evaluated(run, capsys):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("learning_rate:", "long_gone:"))
    assert main(["evaluate", str(run)]) == 0


def test_checkpoint_cannot_run_code(run, capsys):
    class Evil:
        def __reduce__(self):
            return print, ("arbitrary code ran",)

    torch.save({"format": 1, "model": Evil()}, run / "checkpoints" / "best.pt")
    assert main(["evaluate", str(run)]) == 2
    assert "arbitrary code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "a: [", "a: 1", "- 1"])
def test_broken_configuration_is_one_line_and_status_2(run, capsys, text):
    (run / "config.yaml").write_text(text)
    assert main(["evaluate", str(run)]) == 2
    one_line(capsys)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["train", "--help"],
        ["evaluate", "--help"],
        ["bench", "--help"],
        ["report", "--help"],
        ["ask", "--help"],
    ],
)
def test_help_reads_well_and_does_not_import_torch(words):
    program = "import sys; from fwrnn.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit:"
    program += " pass\nassert 'torch' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True
    )
    assert "fwrnn" in result.stdout
    assert "$" not in result.stdout


OPTIONS = [
    *(f"{group}={name}" for group in ("task", "model") for name in group_options()[group]),
    *("task=catch trainer=a3c", "experiment=table1", "control=folded"),
]


@pytest.mark.parametrize("words", OPTIONS)
def test_help_explains_every_key_as_one_would_set_it_and_lists_no_internals(words):
    text = help_text(words.split())
    keys = re.findall(r"^  ((?:task|model|trainer)\.\w+)=(\S+) *(# .+)?$", text, re.M)
    assert len(keys) > 20
    assert [key for key, _, comment in keys if not comment] == []
    assert not {"task.name", "model.core", "model.name", "trainer.name"} & {k for k, *_ in keys}
    assert "@package" not in text
    if words.startswith("task="):
        compose(*words.split(), *(f"{key}={value}" for key, value, _ in keys))


@pytest.mark.parametrize("words", [
    "model=multilevel control=folded task=mnist_glimpses", "model=multilevel control=folded",
    "task=catch model=convnet", "task=assoc_retrieval model=convnet", "control=folded model=lstm",
    "model.decay=7", "seed=-1", "+foo=1", "task=catch trainer=supervised",
])  # fmt: skip
def test_help_of_what_cannot_be_trained_is_the_error_that_training_has(words, capsys):
    assert main(["train", *words.split()]) == 2
    error = one_line(capsys)
    assert main(["train", "--help", *words.split()]) == 2
    assert one_line(capsys) == error


@pytest.mark.parametrize(("words", "task"), [
    ("model=multilevel", "mnist_glimpses"), ("trainer=a2c", "catch"),
])  # fmt: skip
def test_help_is_with_a_task_that_the_choice_is_for(words, task):
    text = help_text([words])
    assert f"Shown with task={task}, as without it: " in text
    assert f"\ntask={task}: " in text and f"\n{words}: " in text


def test_help_of_a_sweep_is_about_its_first_job(capsys):
    assert main(["train", "-m", "--help", "seed=3,1", "model=lstm,rnn"]) == 0
    assert "\nmodel=lstm: " in (text := capsys.readouterr().out) and "  seed=3 " in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fwrnn {__version__}\n"


@pytest.mark.parametrize(
    "text, shared",
    [
        ("0.70 0.43 0.88 3/93 30897\n", True),
        ("0.70 0.43 0.88 1/93 30897\n", False),
        ("0.70\n", False),
        (None, False),
    ],
)
def test_others_at_work_are_noticed(text, shared, tmp_path):
    if text is not None:
        (tmp_path / "loadavg").write_text(text)
    assert is_shared(tmp_path / "loadavg") is shared


@pytest.mark.skipif(os.name != "posix", reason="bash is another system's there")
def test_closed_pipe_is_quiet():
    command = f"{sys.executable} -m fwrnn train --help | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_a_run_that_has_not_ended_says_so_and_which_update_it_has(run, capsys):
    (run / "metrics.json").unlink()
    assert main(["evaluate", str(run)]) == 0
    assert "has not ended: its best weights so far, of update" in capsys.readouterr().out


def test_a_folder_of_runs_lists_the_commands_that_test_them(trained, tmp_path, capsys):
    for name in ("of mine/one", "of mine/two"):
        shutil.copytree(trained, tmp_path / name)
    (tmp_path / "of mine/two/metrics.json").unlink()
    assert main(["evaluate", str(tmp_path)]) == 2
    said = capsys.readouterr()
    heading, *lines = said.out.splitlines()
    assert "2 runs" in heading and "fwrnn report" in heading and not said.err
    for name, line in zip(("one", "two"), lines, strict=True):
        words = shlex.split(line, comments=True)
        assert words == ["fwrnn", "evaluate", str(tmp_path / "of mine" / name)]
    assert "not ended" in lines[1] and "not ended" not in lines[0]
    assert main(["evaluate", str(tmp_path), "--json"]) == 2
    assert "is no run but holds 2" in one_line(capsys)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "checkpoints/best.pt"])
def test_errors_name_the_folder_once(run, name, capsys):
    (run / name).write_text("[")
    assert main(["evaluate", str(run)]) == 2
    assert one_line(capsys).count(str(run)) == 1
