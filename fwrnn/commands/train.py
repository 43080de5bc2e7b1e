"""``fwrnn train``: the story of a run, from a configuration to a tested model.

``train`` is a plain function of a configuration and a folder; everything above it is the command
line's.
"""

import logging
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from itertools import count
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING

from fwrnn.commands.composition import Job, planned, run_with_hydra, settings
from fwrnn.commands.sweeps import Sweep
from fwrnn.config import Config, changed, migrated, read_config
from fwrnn.console import in_file, on_terminal
from fwrnn.errors import Interrupted, RunFailed, UserError, suggestion
from fwrnn.files import quoted
from fwrnn.learning.claim import Taken, claimed, holder

if TYPE_CHECKING:
    from fwrnn.learning.run_folder import RunFolder

log = logging.getLogger("fwrnn")


def main(argv: list[str]) -> int:
    """Run or resume, once or as a sweep, as ``argv`` says."""
    if "--help" in argv or "-h" in argv:
        from fwrnn.commands.train_help import help_text

        print(help_text([word for word in argv if word not in ("--help", "-h")]))
        return 0
    given = [word for word in argv if word.lstrip("+").startswith("resume=")]
    run = given[-1].partition("=")[2] if given else "null"
    if {"-m", "--multirun"} & set(argv) and run == "null":
        return _sweep(argv)
    with on_terminal():
        if run == "null":
            run_with_hydra(_start, argv)
        else:
            _resume(run, [word for word in argv if word not in given])
    return 0


def _start(job: Job) -> None:
    """Train, in the folder that was chosen or in one that nobody else has."""
    config = read_config(job.config)
    for k in count(1):
        folder = job.folder if k == 1 else job.folder.with_name(f"{job.folder.name}_{k}")
        try:
            train(config, folder)
            return
        except Taken:
            if job.chosen:
                raise


def _sweep(argv: list[str]) -> int:
    """Do the jobs that are not done yet, and say what became of all."""
    begun: list[Sweep] = []
    _interrupted.clear()

    def begin(folder: Path, apart: bool) -> None:
        sweep = Sweep(folder)
        sweep.begin(argv, planned(argv))
        begun.append(sweep)
        if apart:
            ending.enter_context(sweep.saving_first())

    try:
        with ExitStack() as ending:
            run_with_hydra(_job_of_sweep, argv, begin)
    except KeyboardInterrupt as error:
        words = begun[0].summary()[0] if begun else "interrupted"
        raise Interrupted(words, getattr(error, "signal", SIGINT)) from error
    except UserError:
        if begun:
            begun[0].take_back()
        raise
    except RunFailed as error:  # killed, or out of memory; those beside it may go on
        if not begun:
            raise
        print(f"fwrnn: {error}", file=sys.stderr)
        begun[0].settle()
    if not begun:
        return 0  # somebody asked for the configuration alone
    words, status = begun[0].summary()
    print(words, file=sys.stderr)
    return status


def _job_of_sweep(job: Job) -> float:
    assert job.sweep is not None  # as it is of one
    if _interrupted:  # whoever started this process gave it the next job before it knew
        raise _interrupted[0]
    with on_terminal():  # which another process has not set up yet
        try:
            sweep = Sweep(job.sweep)
            done = sweep.is_done(job.overrides)
            return sweep.work(job.overrides, job.folder, lambda: _start_or_go_on(job, done))
        except KeyboardInterrupt as error:
            _interrupted.append(error)
            raise


_interrupted: list[KeyboardInterrupt] = []
"""What stopped a job of the sweep in this process."""


def _start_or_go_on(job: Job, done: bool) -> float:
    """A job of a sweep: what is done is kept, what was begun goes on."""
    from fwrnn.learning.run_folder import RunFolder

    config, run = read_config(job.config), RunFolder(job.folder)
    if job.among_others:
        config.threads = config.threads or 1
        config.device = "cpu" if config.device == "auto" else config.device  # one GPU is not many
    begun = run.has_begun and run.config.is_file()
    if begun:
        saved = read_config(migrated(run.read_config()))
        if done or run.metrics_before.exists():  # and then gone on with, for more updates
            config.trainer = saved.trainer
        if computed(saved) != computed(config):
            raise Taken(
                f"'{job.folder}' holds a run of another configuration; choose another "
                "hydra.sweep.dir"
            )
    metrics = run.read_metrics() or train(config, run.path, resume=begun)
    return objective(config, metrics)


def computed(config: Config) -> dict:
    """What decides what comes out: not where it is computed, nor where arrays are kept."""
    values = asdict(config)
    for of, key in ((values, "device"), (values, "threads"), (values["task"], "cache_dir")):
        of.pop(key, None)
    return values


def objective(config: Config, metrics: dict) -> float:
    """What a Hydra sweeper minimises: the validation error, or the reward that was missed."""
    from fwrnn.learning.kinds import kind_of

    kind = kind_of(config.task)
    value = metrics[f"val_{kind.score}"]
    return value if kind.lower_is_better else -value


def _resume(run: str, argv: list[str]) -> None:
    """Go on with a run; what cannot be is refused before anything is touched."""
    from fwrnn.learning.run_folder import RunFolder

    if not run:
        raise UserError("resume needs the folder of a run: resume=outputs/runs/RUN")
    if any(word in ("-m", "--multirun") for word in argv):
        raise UserError("resume goes on with one run; leave -m out")
    folder = RunFolder(latest() if run == "latest" else run)
    config = resumed_config(folder.read_config(), argv)
    if not folder.has_begun:
        raise UserError(
            f"'{folder.path}' cannot go on: it has no {folder.last.relative_to(folder.path)}"
        )
    train(config, folder.path, resume=True)


def latest() -> Path:
    """The run below outputs/ that was worked on last, has not ended, and is not worked on now."""
    from fwrnn.learning.run_folder import RunFolder

    now, found = time.time(), []
    for checkpoint in Path("outputs").rglob("checkpoints/last.pt"):
        folder, when = checkpoint.parents[1], checkpoint.stat().st_mtime
        if not RunFolder(folder).metrics.exists() and holder(folder) is None:
            found.append((when <= now, when, folder))  # the future: the clock was set back since
    if not found:
        raise UserError("no run below outputs/ could go on; give a folder: resume=RUN")
    return max(found)[-1]


def resumed_config(saved: dict, argv: list[str]) -> Config:
    """The configuration that a run began with, and the keys that ``argv`` gives anew."""
    for word in argv:
        if not word.lstrip("+").startswith(CHANGEABLE):
            raise UserError(
                f"resume goes on with a run as it was configured; '{word}' cannot change, only "
                "keys of the trainer, device, threads and where data lie can"
            )
    from fwrnn.learning.assembly import with_own_cache

    saved, changes = migrated(saved), settings([word.lstrip("+") for word in argv])
    began = read_config(saved)
    groups = "trainer", "task"
    known = {f"{group}.{key}" for group in groups for key in vars(getattr(began, group))}
    for key in changes.keys() - known - {"device", "threads"}:
        # Here and now, as the configuration's own words would be to choose another trainer.
        raise UserError(f"unknown key '{key}' of this run{suggestion(key, known)}")
    config = read_config(changed(saved, changes))
    return config if "task.cache_dir" in changes else with_own_cache(config)


CHANGEABLE = ("trainer.", "device=", "threads=", "task.data_dir=", "task.cache_dir=")


def train(config: Config, folder: str | Path, resume: bool = False) -> dict:
    """Train one model, test it once, and leave everything in ``folder``.

    Returns the metrics, as ``metrics.json`` holds them.

    Raises:
        UserError: the configuration asks for what cannot be, or the folder already holds a run.
        RunFailed: training diverged, or a file could not be written.
        Interrupted: Ctrl-C or termination, after the state was saved.
    """
    from fwrnn.learning.assembly import own_threads
    from fwrnn.learning.run_folder import RunFolder

    run = RunFolder(folder)
    with claimed(run.path):
        if not resume and (run.has_begun or run.metrics.exists()):
            raise Taken(
                f"'{folder}' already holds a run; go on with it by resume={quoted(folder)}, or "
                "choose another hydra.run.dir"
            )
        run.clear_away()
        with in_file(run.path / "train.log"), own_threads():
            return _train(config, run, resume)


def _train(config: Config, run: "RunFolder", resume: bool) -> dict:
    from fwrnn.learning.assembly import assemble
    from fwrnn.learning.record import code, describe
    from fwrnn.learning.signals import Stopped, StopRequest
    from fwrnn.learning.tracking import Tracker

    assembly = assemble(config)
    _, kind, task, model, device = assembly
    trainer = config.trainer.build(model, task, config.seed, device, run)
    if resume:
        trainer.restore()
    if (ours := code()) not in trainer.progress.commits:
        trainer.progress.commits.append(ours)
    run.write_config(config)
    trainer.save()  # a run can go on from wherever it is stopped, its beginning included
    if trainer.progress.update < config.trainer.max_updates:
        run.set_metrics_aside()
    log.info(describe(config, model, device))
    place = quoted(run.path)
    log.info(f"in {run.path}; watch it with: tensorboard --logdir {place}")
    if resume:
        log.info(f"going on after update {trainer.progress.update:,}")

    with StopRequest() as stop, Tracker(run.path, trainer.progress.update + 1) as tracker:
        tracker.text("configuration", f"```yaml\n{run.config.read_text(encoding='utf-8')}```")
        drawing = kind.drawing(task, model, device)
        progress = trainer.progress  # with the trainer, its network would stay when all is done
        drawn = {}  # with the best weights, by their update

        def show(model, update: int) -> None:
            if drawing is not None:
                name, draw = drawing
                with stop.at_once():
                    pixels = draw(model)
                tracker.picture(name, pixels, update)
                if update == progress.best_update:
                    drawn.clear()
                    drawn[update] = pixels

        try:
            reason = trainer.fit(stop, tracker, on_validation=show)
            if reason == "interrupted":
                raise Stopped
            metrics = conclude(assembly, trainer, run, stop, tracker, drawing, drawn, reason)
        except Stopped:
            assert stop.signal is not None  # nothing else stops
            raise Interrupted(
                f"stopped after update {trainer.progress.update:,}, nothing is lost; "
                f"go on with: fwrnn train resume={place}",
                stop.signal,
            ) from None
    if stop.signal is not None:  # too late for this run, in time for what a sweep would begin next
        _interrupted.append(Interrupted("interrupted", stop.signal))
    return metrics


ENDS = {
    "solved": "solved, so training ended after update {:,}",
    "no progress": "no progress any more, so training ended after update {:,}",
    "out of updates": "all {:,} updates done",
}


def conclude(assembly, trainer, run, stop, tracker, drawing, drawn, reason: str) -> dict:
    """Test the best weights, once, and record what came out.

    Raises:
        Stopped: a signal came before there was anything to record.
    """
    from fwrnn.learning.record import compared_settings, metrics_of
    from fwrnn.learning.run_folder import write_pictures

    config, kind, task, model, device = assembly
    progress = trainer.progress
    model.load_state_dict(run.read_checkpoint(run.best)["model"])
    with stop.at_once():
        outcome = kind.test(task, model, device, kind.question(config.trainer), {})
        still, moving = outcome.draw()
        at_work = {}
        if drawing is not None:
            name, draw = drawing
            best = drawn.get(progress.best_update)  # missing where the run was resumed since
            at_work[name] = draw(model) if best is None else best
    tested = {f"test_{name}": value for name, value in outcome.measured.items()}
    tested |= kind.curve_metrics(config.trainer, progress.curve)
    metrics = metrics_of(config, model, device, progress, reason, tested)
    run.write_metrics(metrics)
    compared = (f"test_{kind.score}", f"val_{kind.score}", "updates")
    results = {name: metrics[name] for name in compared}
    tracker.hyperparameters(compared_settings(config), results, progress.update)
    for name, pixels in still.items():
        tracker.picture(name, pixels, progress.update)
    for name, gif in moving.items():
        tracker.animation(name, gif, progress.update)
    write_pictures(run.pictures, still | at_work, moving)
    log.info(
        f"test {outcome.words}, with the weights of update {metrics['best_update']:,}; "
        f"{ENDS[reason].format(metrics['updates'])}, {metrics['seconds']:.0f} s"
    )
    log.info(f"test it again with: fwrnn evaluate {quoted(run.path)}")
    return metrics
