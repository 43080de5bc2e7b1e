"""Nothing is lost: deaths at every write, damaged files, two processes, a full disk."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fwrnn import files
from fwrnn.commands.composition import Job, composed
from fwrnn.commands.train import _start, train
from fwrnn.errors import RunFailed, UserError
from fwrnn.files import write_whole
from fwrnn.learning import claim
from fwrnn.learning.claim import Taken, claimed
from fwrnn.learning.loop import Trainer
from fwrnn.learning.retest import evaluated
from fwrnn.learning.run_folder import RunFolder
from tests.commands.compose import compose

ROOT = Path(__file__).parents[2]


def weights(folder) -> dict:
    return torch.load(RunFolder(folder).best, weights_only=True)["model"]


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def lasting(metrics: dict) -> dict:
    return {n: x for n, x in metrics.items() if n not in ("seconds", "updates_per_second")}


class Dead(BaseException):
    """This process would be no more."""


class Mortal:
    """Counts the steps of writing, and lets the process die before a given one, or half-way."""

    STEPS = ("fsync", "replace", "link")

    def __init__(self, last: int):
        self.last, self.steps = last, 0

    def __getattr__(self, name):
        real = getattr(os, name)
        return self.counted(real) if name in self.STEPS else real

    def counted(self, real):
        def step(*arguments, **options):
            if self.steps >= self.last:
                raise Dead
            self.steps += 1
            return real(*arguments, **options)

        return step

    def open_file(self, path, mode):
        file = self.counted(open)(path, mode)
        write = file.write

        def half(content):
            if self.steps >= self.last:
                write(bytes(content)[: len(content) // 2])
                raise Dead
            self.steps += 1
            return write(content)

        class File:
            __enter__, fileno, flush = lambda _: _, file.fileno, file.flush
            write = staticmethod(half)

            def __exit__(self, *exception):
                file.close()

        return File()


def go_on(config, folder):
    """Call it again, as a person would."""
    return train(config, folder, resume=RunFolder(folder).last.is_file())


@pytest.mark.slow
def test_a_run_that_died_at_any_write_ends_in_the_same_weights(tiny, tmp_path, monkeypatch):
    config = compose(*tiny, "trainer.max_updates=4", "trainer.evaluate_every=2", "model=rnn")
    undisturbed = train(config, tmp_path / "undisturbed")
    wanted = weights(tmp_path / "undisturbed")
    unlink = Path.unlink
    last, died = 0, True
    while died:
        folder = tmp_path / str(last)
        mortal = Mortal(last)
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", mortal)
            patch.setattr(files, "open", mortal.open_file, raising=False)
            # The dead do not clean up either.
            alive = lambda *a, m=mortal, **o: None if m.steps >= m.last else unlink(*a, **o)  # noqa: E731
            patch.setattr(Path, "unlink", alive)
            try:
                train(config, folder)
                died = False
            except Dead:
                pass
        if died:
            metrics = RunFolder(folder).read_metrics() or go_on(config, folder)
            assert metrics["test_loss"] == undisturbed["test_loss"], f"died at step {last}"
            assert same(weights(folder), wanted)
            shutil.rmtree(folder)
        last += 1
    assert last > 40


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fast_weights"])
def test_runs_that_are_killed_at_random_end_in_the_same_weights(tiny, tmp_path, model):
    """FWRNN_KILLS=30 kills 30 of them."""
    settings = [*tiny, f"model={model}", "trainer.max_updates=200", "trainer.evaluate_every=20"]
    metrics = train(compose(*settings), tmp_path / "undisturbed")
    wanted = weights(tmp_path / "undisturbed")
    draw = torch.Generator().manual_seed(0)
    for k in range(int(os.environ.get("FWRNN_KILLS", "2"))):
        folder = tmp_path / f"killed{k}"
        command = [sys.executable, "-m", "fwrnn", "train", *settings, f"hydra.run.dir={folder}"]
        running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while not RunFolder(folder).last.is_file() and running.poll() is None:
            time.sleep(0.01)
        time.sleep(torch.rand((), generator=draw).item())
        running.kill()
        running.wait()
        if not RunFolder(folder).metrics.is_file():
            train(compose(*settings), folder, resume=True)
        assert same(weights(folder), wanted)
        assert lasting(RunFolder(folder).read_metrics()) == lasting(metrics)


def test_a_damaged_checkpoint_falls_back_to_the_one_before_it(tiny, tmp_path, caplog):
    config = compose(*tiny)
    train(config, tmp_path / "undisturbed")
    folder = RunFolder(tmp_path / "run")
    train(compose(*tiny, "trainer.max_updates=10"), folder.path)
    content = bytearray(folder.last.read_bytes())
    middle = content.index(b"PK", 500) - 100  # among the numbers
    content[middle] ^= 1
    folder.last.write_bytes(bytes(content))
    folder.metrics.unlink()
    with caplog.at_level("WARNING"):
        train(compose(*tiny, "trainer.max_updates=10"), folder.path, resume=True)
    assert "going on with the one before it" in caplog.text
    for path in (folder.last, folder.before_last):
        path.write_bytes(b"PK broken")
    with pytest.raises(UserError, match="last-1.pt is not a checkpoint"):
        train(config, folder.path, resume=True)


def test_flipped_bits_are_found_in_checkpoints(tiny, tmp_path):
    train(compose(*tiny, "model=rnn"), tmp_path)
    best = RunFolder(tmp_path).best
    intact = best.read_bytes()
    before = evaluated(str(tmp_path))[0]["loss"]
    for place in range(40, len(intact), len(intact) // 60):
        best.write_bytes(intact[:place] + bytes([intact[place] ^ 16]) + intact[place + 1 :])
        try:
            assert evaluated(str(tmp_path))[0]["loss"] == before  # padding between the parts
        except UserError as error:
            assert "best.pt" in str(error)


def test_best_weights_and_progress_agree_after_a_kill_between_them(tiny, tmp_path):
    config = compose(*tiny)
    metrics = train(config, tmp_path)
    folder = RunFolder(tmp_path)
    wanted = weights(tmp_path)
    newer = {"format": 1, "update": 999, "model": {n: x + 1 for n, x in wanted.items()}}
    torch.save(newer, folder.best)
    folder.metrics.unlink()
    again = train(config, tmp_path, resume=True)
    assert again["test_loss"] == metrics["test_loss"]
    assert same(weights(tmp_path), wanted)


def test_what_killed_writes_left_is_cleared_away(tiny, tmp_path):
    train(compose(*tiny, "model=rnn"), tmp_path)
    for name in ("checkpoints/.last.pt.123.tmp", ".metrics.json.456.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".mine.tmp").touch()
    train(compose(*tiny, "model=rnn", "trainer.max_updates=25"), tmp_path, resume=True)
    assert [path.name for path in tmp_path.rglob(".*.tmp")] == [".mine.tmp"]


def test_a_folder_is_for_one_process(tiny, tmp_path):
    config = compose(*tiny)
    with claimed(tmp_path):
        with pytest.raises(Taken, match=f"worked on by process {os.getpid()} on .*, since"):
            train(config, tmp_path)
        with pytest.raises(Taken, match="worked on by process"):
            train(config, tmp_path, resume=True)
    train(config, tmp_path)
    with pytest.raises(Taken, match="already holds a run"):
        train(config, tmp_path)


@pytest.mark.slow
def test_runs_of_the_same_second_have_folders_of_their_own(tiny, tmp_path, monkeypatch):
    program = "import sys; from pathlib import Path; from fwrnn.commands.train import _start; "
    program += "from fwrnn.commands.composition import Job, composed; "
    program += "_start(Job(composed(sys.argv[1:]), Path('second'), [], False, None, False))"
    program += "; assert 'torch._dynamo' not in sys.modules"  # as long to import as all the rest
    short = [*tiny, "trainer.max_updates=1"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, *short, f"seed={seed}"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
        )
        for seed in range(2)
    ]  # fmt: skip
    for process in running:
        _, error = process.communicate()
        assert process.returncode == 0, error.decode()
    monkeypatch.chdir(tmp_path)
    _start(Job(composed([*short, "seed=2"]), Path("second"), [], False, None, False))
    metrics = sorted(tmp_path.rglob("metrics.json"))
    assert [path.parent.name for path in metrics] == ["second", "second_2", "second_3"]
    seeds = {json.loads(path.read_text(encoding="utf-8"))["seed"] for path in metrics}
    assert seeds == {0, 1, 2}


def test_metrics_are_json_that_any_parser_reads(tmp_path):
    RunFolder(tmp_path).write_metrics({"a": float("nan"), "b": float("inf"), "c": 0.5})
    text = RunFolder(tmp_path).metrics.read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": None, "c": 0.5}


def test_a_file_that_somebody_looks_into_is_replaced_when_he_is_done(tmp_path, monkeypatch):
    path, refusals = tmp_path / "file", [PermissionError(13, "open in Excel")] * 2
    write_whole(path, b"old")
    replace = os.replace

    def refuse(*arguments):
        if refusals:
            raise refusals.pop()
        replace(*arguments)

    monkeypatch.setattr(files.os, "replace", refuse)
    monkeypatch.setattr(files, "WINDOWS", True)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and not refusals


def test_who_works_in_a_folder_is_seen_where_locks_cannot_be_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "WINDOWS", True)
    assert claim.holder(tmp_path) is None
    (tmp_path / claim.ABOUT).write_text("{}")  # of a process that was killed
    assert claim.holder(tmp_path) is None
    with claimed(tmp_path):
        program = "from fwrnn.learning import claim; claim.WINDOWS = True; print(claim.holder(F))"
        program = program.replace("F)", f"__import__('pathlib').Path({str(tmp_path)!r}))")
        command = [sys.executable, "-c", program]
        told = subprocess.check_output(
            command, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        assert told.startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_random_numbers_of_every_device_go_on(kind, monkeypatch):
    state = torch.arange(3, dtype=torch.uint8)
    module = SimpleNamespace(
        get_rng_state=lambda *device: state.clone(),
        set_rng_state=lambda new, *device: state.copy_(new),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    trainer = SimpleNamespace(device=torch.device(kind))
    trainer._whose = lambda: Trainer._whose(trainer)
    before = Trainer._random_states(trainer)
    state.zero_()
    Trainer._set_random_states(trainer, before)
    assert state.tolist() == [0, 1, 2] and f"{kind}_rng" in before


@pytest.mark.parametrize(("windows", "mark"), [(True, '"'), (False, "'")])
def test_paths_are_printed_as_the_shell_at_hand_takes_them(windows, mark, monkeypatch):
    monkeypatch.setattr(files, "WINDOWS", windows)
    assert files.quoted("a b\\c") == f"{mark}a b\\c{mark}"


def test_a_folder_on_another_drive_is_shown_whole(monkeypatch):
    def nowhere(*paths):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(files.os.path, "relpath", nowhere)
    assert files.from_here("/d/runs") == Path("/d/runs")


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "getpid", lambda: 1)  # as in two containers
    sync, writers = os.fsync, [b"second"]

    def meanwhile(handle):
        sync(handle)
        if writers:
            write_whole(tmp_path / "file", writers.pop())

    monkeypatch.setattr(files.os, "fsync", meanwhile)
    write_whole(tmp_path / "file", b"first")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunFailed, match="No space left on device; what was there before is intact"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))


def test_parts_larger_than_the_file_are_refused_before_they_take_memory(tmp_path):
    import zipfile

    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(50_000_000))
    with pytest.raises(UserError, match="is broken"):
        RunFolder(tmp_path).read_checkpoint(path)
