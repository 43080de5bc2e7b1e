"""Ctrl-C: at the first nobody waits for what can be done anew, and nothing is lost; a second ends
the process at once, and leaves nothing behind."""

import os
import signal
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from fwrnn import cli, files
from fwrnn.cli import main
from fwrnn.commands import sweeps
from fwrnn.commands.sweeps import Sweep
from fwrnn.commands.train import train
from fwrnn.errors import Interrupted
from fwrnn.layers.kernels import trial
from fwrnn.learning.claim import ABOUT, claimed, holder
from fwrnn.learning.games import a3c, actor_critic
from fwrnn.learning.games.actor_critic import A2CTrainer
from fwrnn.learning.run_folder import RunFolder
from fwrnn.learning.signals import Stopped, StopRequest
from fwrnn.learning.supervised import Supervised
from fwrnn.learning.supervised.trainer import SupervisedTrainer
from fwrnn.reproduction import retrain
from tests.commands.compose import compose
from tests.signals import press

GAME = ["task=catch", "task.size=5", "model.hidden_size=8", "model.encoding_size=8", "threads=1"]
GAME += ["trainer.max_updates=6", "trainer.games=4", "trainer.val_games=4", "trainer.warmup=0.5"]
GAME += ["trainer.test_games=4", "trainer.evaluate_every=2", "trainer.log_every=2"]


def pressing(call, at: int, patch, owner, name: str) -> None:
    """Have ``call``, known as ``owner.name``, press Ctrl-C at the end of its ``at``-th work."""
    calls = []

    def then_press(*arguments, **options):
        result = call(*arguments, **options)
        calls.append(1)
        if len(calls) == at:
            press()
            pytest.fail("it was waited for")
        return result

    patch.setattr(owner, name, then_press)


def outcome(folder) -> tuple:
    """What a run came to, but for its times."""
    run = RunFolder(folder)
    rows = [line.rsplit(",", 1)[0] for line in run.curve.read_text("utf-8").splitlines()]
    weights = torch.load(run.last, weights_only=True)["model"]
    metrics = {n: x for n, x in run.read_metrics().items() if n.startswith(("test_", "val_"))}
    return rows, {name: x.tolist() for name, x in weights.items()}, metrics


POSIX = pytest.mark.skipif(os.name != "posix", reason="forks, or sends signals of POSIX")
LINES = ["trainer.max_updates=8", "trainer.evaluate_every=4", "model=rnn", "trainer.warmup=0.5"]
LINES += ["model.head_dropout=0.5"]  # which draws random numbers in an update


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (SupervisedTrainer, "validate", 1),
        (SupervisedTrainer, "validate", 2),  # after the last update
        (SupervisedTrainer, "_backward", 3),
        (SupervisedTrainer, "_backward", 1),
        (Supervised, "test", 1),
        (A2CTrainer, "validate", 2),
        (actor_critic, "play", 3),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_was_given_up_is_done_when_the_run_goes_on(
    tiny, tmp_path, monkeypatch, capsys, owner, name, at
):
    words = GAME if owner in (A2CTrainer, actor_critic) else [*tiny, *LINES]
    train(compose(*words), tmp_path / "straight")
    with monkeypatch.context() as patch:
        pressing(getattr(owner, name), at, patch, owner, name)
        assert main(["train", *words, f"hydra.run.dir={tmp_path / 'stopped'}"]) == 130
    said = capsys.readouterr().err
    assert "nothing is lost; go on with: fwrnn train resume=" in said
    assert not RunFolder(tmp_path / "stopped").metrics.exists()
    assert main(["train", f"resume={tmp_path / 'stopped'}"]) == 0
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "straight")


def test_at_the_second_signal_a_run_leaves_nothing_behind(tiny, tmp_path, monkeypatch, capsys):
    words, folder = [*tiny, "model=rnn"], tmp_path / "run"
    train(compose(*words), tmp_path / "straight")
    sync, update = os.fsync, SupervisedTrainer.update

    def pressing_again(handle):
        sync(handle)
        press()
        pytest.fail("it was waited for")

    def pressing_first(self):
        if self.progress.update == 7:
            press()
            patch.setattr(files.os, "fsync", pressing_again)  # while it saves
            patch.setattr(type(folder), "unlink", pressing_on)
        return update(self)

    unlink = type(folder).unlink

    def pressing_on(path, *arguments, **options):
        if path.suffix == ".tmp":
            press()  # which is not to keep anybody from this
        unlink(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "update", pressing_first)
        assert main(["train", *words, f"hydra.run.dir={folder}"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err.rstrip().endswith("fwrnn: interrupted")
    assert not list(folder.rglob("*.tmp")) and not (folder / ABOUT).exists()
    assert holder(folder) is None
    assert main(["train", f"resume={folder}"]) == 0
    assert outcome(folder) == outcome(tmp_path / "straight")


def test_a_signal_at_the_end_of_a_job_is_in_time_for_the_next(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fwrnn.learning.run_folder.write_pictures", lambda *given: press())
    words = ["train", "-m", *tiny, "model=rnn", "seed=0,1,2", "hydra.sweep.dir=sweep"]
    assert main(words) == 130
    assert [job["state"] for job in Sweep("sweep").read()["jobs"].values()] == [
        "done", "waiting", "waiting",
    ]  # fmt: skip


def test_a_signal_that_came_before_gives_up_what_would_come():
    with StopRequest() as stop:
        press()
        with pytest.raises(Stopped), stop.at_once():
            pytest.fail("it was begun")


def test_who_waits_for_workers_looks_whether_to_stop(tmp_path, monkeypatch):
    config = compose(*GAME, "trainer=a3c")
    trainer = config.trainer.build(
        torch.nn.Linear(1, 1), None, 0, torch.device("cpu"), RunFolder(tmp_path)
    )
    trainer._workers = {object(): None}
    trainer.stop.signal = signal.SIGINT
    monkeypatch.setattr(a3c, "wait", lambda connections, seconds: [])
    with pytest.raises(Stopped):
        trainer.update()


@POSIX
def test_workers_are_ended_in_the_middle_of_their_work():
    context = torch.multiprocessing.get_context("fork")
    worker = context.Process(target=signal.pause, daemon=True)
    worker.start()
    trainer = SimpleNamespace(_workers={context.Pipe()[0]: worker})
    a3c.A3CTrainer.close(trainer)  # pyright: ignore[reportArgumentType]
    assert worker.exitcode == -signal.SIGKILL and not trainer._workers


@POSIX
def test_a_lock_among_processes_is_had_by_one():
    lock = a3c.PipeLock(torch.multiprocessing.get_context("spawn"))
    with lock:
        assert not lock.acquire(timeout=0)
    assert lock.acquire(timeout=0)
    lock.release()


@pytest.mark.parametrize("presses", [1, 2])
def test_a_sweep_ends_when_its_jobs_have_saved(tmp_path, monkeypatch, presses):
    sweep, looks = Sweep(tmp_path), []
    sweep.begin(["-m"], [["seed=0"]])
    sweep.set(["seed=0"], state="running", folder=str(tmp_path / "run"))
    monkeypatch.setattr(sweeps, "A_MOMENT", 0)

    def look(seconds):
        looks.append(holder(tmp_path / "run"))
        if presses == 2 and len(looks) == 3:
            press()
        elif len(looks) == 5:
            sweep.set(["seed=0"], state="interrupted")

    monkeypatch.setattr(sweeps.time, "sleep", look)
    with claimed(tmp_path / "run"), pytest.raises(KeyboardInterrupt), sweep.saving_first():
        press()
    assert len(looks) == {1: 5, 2: 3}[presses]


def test_a_training_that_waits_for_another_is_not_begun_any_more(tmp_path, monkeypatch):
    job = retrain.Job(SimpleNamespace(folder="cell", train=()), 0, tmp_path)  # pyright: ignore[reportArgumentType]

    class Pressed(threading.Event):
        def wait(self, timeout=None):
            self.set()
            return True

    monkeypatch.setattr(retrain.subprocess, "Popen", lambda *a, **o: pytest.fail("it was begun"))
    with claimed(job.folder):
        assert retrain._run(job, set(), Pressed()) == "stopped"


def test_nobody_waits_for_a_compiler(monkeypatch):
    done, ended = threading.Event(), []

    def compiling():
        press()
        assert done.wait(20)

    try:
        with pytest.raises(KeyboardInterrupt):
            trial._in_a_thread(compiling)
        (left,) = (each for each in threading.enumerate() if each.name == "fwrnn compiler")
        monkeypatch.setattr(cli, "_dispatch", lambda argv: press())
        monkeypatch.setattr(cli, "_collect_less_garbage", lambda: None)
        monkeypatch.setattr(cli.sys, "argv", ["fwrnn", "report"])
        monkeypatch.setattr(cli.os, "_exit", ended.append)
        before = signal.getsignal(signal.SIGINT)
        try:
            assert main() == 130 and ended == [130]
            assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        finally:
            signal.signal(signal.SIGINT, before)
    finally:
        done.set()
    left.join()


@pytest.fixture
def termination():
    """SIGTERM as it was: a run that a batch system takes back has it ignored."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR2)
    yield
    for number, handler in zip((signal.SIGTERM, signal.SIGUSR2), before, strict=True):
        signal.signal(number, handler)


def warned_at(update: int, patch, *signals) -> None:
    """Have the batch system tell the run at an update that its time is nearly over."""
    plain = SupervisedTrainer.update

    def update_and_signal(self):
        if self.progress.update == update:
            for number in signals:
                os.kill(os.getpid(), number)
        return plain(self)

    patch.setattr(SupervisedTrainer, "update", update_and_signal)


@POSIX
@pytest.mark.parametrize("timed_out", [False, True])
def test_a_job_that_is_taken_back_saves_is_queued_again_and_goes_on(
    tiny, tmp_path, monkeypatch, termination, timed_out
):
    environment = pytest.importorskip("submitit.core.job_environment")
    utils = pytest.importorskip("submitit.core.utils")
    words, run = [*tiny, "model=rnn"], RunFolder(tmp_path / "sweep" / "job")
    queued = []

    class Work:
        def __call__(self):
            pass

        def checkpoint(self):
            saved = torch.load(run.last, weights_only=True)["update"]
            queued.append(("saved", saved, holder(run.path) is None))
            return utils.DelayedSubmission(self)

    def requeue(countdown):
        # SLURM terminates who asks it, too.
        queued.append(("queued", countdown, signal.getsignal(signal.SIGTERM) == signal.SIG_IGN))

    delayed = utils.DelayedSubmission(Work())
    delayed.set_timeout(0 if timed_out else 1000, 3)
    batch = SimpleNamespace(global_rank=0, _requeue=requeue)
    paths = SimpleNamespace(submitted_pickle=tmp_path / "submitted.pkl")
    handler = environment.SignalHandler(batch, paths, delayed)
    signal.signal(signal.SIGUSR2, handler.checkpoint_and_try_requeue)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        warned_at(7, patch, signal.SIGUSR2)
        folders = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweep.subdir=job"]
        main(["train", "-m", *words, *folders])
    assert queued == [("saved", 7, False), ("queued", 3 - timed_out, True)]
    assert [job["state"] for job in Sweep(tmp_path / "sweep").read()["jobs"].values()] == [
        "interrupted"
    ]
    assert main(["sweep", "resume", str(tmp_path / "sweep")]) == 0
    train(compose(*words), tmp_path / "straight")
    assert outcome(run.path) == outcome(tmp_path / "straight")


@POSIX
@pytest.mark.parametrize(
    ("signals", "ends"),
    [
        (["SIGTERM"], Interrupted),
        (["SIGUSR2", "SIGINT"], KeyboardInterrupt),
        ([], None),
    ],
    ids=["terminated", "impatient", "undisturbed"],
)
def test_a_job_that_was_not_taken_back_is_not_queued_again(
    tiny, tmp_path, monkeypatch, termination, signals, ends
):
    for number in (signal.SIGUSR2, signal.SIGTERM):  # submitit has one for each
        signal.signal(number, lambda *arguments: pytest.fail("somebody else's handler was called"))
    warned_at(7, monkeypatch, *(getattr(signal, name) for name in signals))
    with pytest.raises(ends) if ends else nullcontext() as raised:
        train(compose(*tiny, "model=rnn"), tmp_path)
    assert raised is None or raised.type is ends
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_IGN
