"""``fwrnn train``: the story of a run, from a configuration to a tested model.

``train`` is a plain function of a configuration and a folder; everything above it is the command
line's.
"""

import logging
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from fwrnn.commands.composition import default_help, read_config, run_with_hydra
from fwrnn.config import Config
from fwrnn.errors import Interrupted, UserError

log = logging.getLogger("fwrnn")


def main(argv: list[str]) -> int:
    """Run or resume, once or as a sweep, as ``argv`` says."""
    if argv in (["--help"], ["-h"]):
        print(default_help())
        return 0
    given = [word for word in argv if word.lstrip("+").startswith("resume=")]
    run = given[-1].partition("=")[2] if given else "null"
    if run == "null":
        run_with_hydra(lambda composed, folder, _: _start(composed, folder), argv)
        return 0
    check_resumable(run, argv)
    # The path itself stays out of Hydra's sight, whose grammar gives many characters a meaning.
    quoted = run.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${")
    others = [word for word in argv if word not in given]
    run_with_hydra(
        lambda composed, folder, overrides: _resume(Path(run), overrides),
        [*others, f"hydra.run.dir='{quoted}'"],
    )
    return 0


def check_resumable(run: str, argv: list[str]) -> None:
    """Raises UserError when there is nothing to go on with, before anything is touched."""
    from fwrnn.training.run_folder import RunFolder

    if not run:
        raise UserError("resume needs the folder of a run: resume=outputs/runs/RUN")
    if any(word in ("-m", "--multirun") for word in argv):
        raise UserError("resume goes on with one run; leave -m out")
    folder = RunFolder(run)
    folder.read_config()
    if not folder.last.is_file():
        raise UserError(f"'{run}' cannot go on: it has no {folder.last.relative_to(folder.path)}")


def _start(composed: DictConfig, folder: Path) -> float:
    return objective(train(read_config(composed), folder))


def _resume(folder: Path, overrides: list[str]) -> float:
    return objective(train(resumed_config(folder, overrides), folder, resume=True))


def objective(metrics: dict) -> float:
    """What a Hydra sweeper minimises: the validation error, or the reward that was missed."""
    return metrics["val_error"] if "val_error" in metrics else -metrics["val_reward"]


def resumed_config(folder: Path, overrides: list[str]) -> Config:
    """The configuration that the run in ``folder`` began with, and any key given anew."""
    from fwrnn.training.run_folder import RunFolder

    saved = RunFolder(folder).read_config()
    changes = [override.lstrip("+") for override in overrides]
    for override in changes:
        if not override.startswith(("trainer.", "device=", "threads=")):
            raise UserError(
                f"resume goes on with a run as it was configured; '{override}' cannot change, "
                "only keys of the trainer, device and threads can"
            )
    merged = OmegaConf.merge(saved, OmegaConf.from_dotlist(changes))
    assert isinstance(merged, DictConfig)  # as the saved one is
    return read_config(merged)


def train(config: Config, folder: str | Path, resume: bool = False) -> dict:
    """Train one model, test it once, and leave everything in ``folder``.

    Returns the metrics, as ``metrics.json`` holds them.

    Raises:
        UserError: the configuration asks for what cannot be, or the folder already holds a run.
        RunFailed: training diverged, or a file could not be written.
        Interrupted: Ctrl-C or termination, after the state was saved.
    """
    from fwrnn.commands.assembly import assemble, build_trainer
    from fwrnn.reports.pictures import while_learning
    from fwrnn.reports.results import commit, describe
    from fwrnn.training.run_folder import RunFolder
    from fwrnn.training.signals import StopRequest
    from fwrnn.training.tracking import Tracker

    run = RunFolder(folder)
    if not resume and (run.last.exists() or run.metrics.exists()):
        raise UserError(
            f"'{folder}' already holds a run; go on with it by resume={folder}, or choose "
            "another hydra.run.dir"
        )
    code = commit()
    _, task, model, device = assemble(config)
    trainer = build_trainer(config, task, model, device, run)
    if resume:
        trainer.restore()
    run.write_config(config)
    trainer.save()  # a run can go on from wherever it is stopped, its beginning included
    log.info(describe(config, model, device))
    log.info(f"in {folder}; watch it with: tensorboard --logdir {folder}")
    if resume:
        log.info(f"going on after update {trainer.progress.update:,}")

    with StopRequest() as stop, Tracker(run.path, trainer.progress.update + 1) as tracker:
        tracker.text("configuration", f"```yaml\n{run.config.read_text()}```")
        drawing = while_learning(task, model, device)
        drawn: dict[int, np.ndarray] = {}  # with the best weights, by their update

        def show(model, update: int) -> None:
            if drawing is not None:
                name, draw = drawing
                pixels = draw(model)
                tracker.picture(name, pixels, update)
                if update == trainer.progress.best_update:
                    drawn.clear()
                    drawn[update] = pixels

        reason = trainer.fit(stop, tracker, on_validation=show)
        if reason == "interrupted":
            assert stop.signal is not None  # nothing else interrupts
            raise Interrupted(
                f"stopped after update {trainer.progress.update:,}, nothing is lost; "
                f"go on with: fwrnn train resume={folder}",
                stop.signal,
            )
        return conclude(trainer, run, config, task, tracker, drawing, drawn, reason, code)


def conclude(
    trainer, run, config: Config, task, tracker, drawing, drawn, reason: str, code: str | None
) -> dict:
    """Test the best weights, once, and record what came out."""
    from fwrnn.reports.results import flat_settings, metrics_of, test

    model, device, progress = trainer.model, trainer.device, trainer.progress
    model.load_state_dict(run.read_checkpoint(run.best, device)["model"])
    outcome = test(config, task, model, device, progress.curve)
    metrics = metrics_of(config, model, device, progress, reason, outcome.metrics, code)
    run.write_metrics(metrics)
    results = {name: metrics[name] for name in (*outcome.headline, "updates")}
    tracker.hyperparameters(flat_settings(config), results, progress.update)
    pictures = dict(outcome.pictures)
    for name, pixels in pictures.items():
        tracker.picture(name, pixels, progress.update)
    if drawing is not None:
        name, draw = drawing
        best = drawn.get(progress.best_update)  # missing where the run was resumed since
        pictures[name] = draw(model) if best is None else best
    for name, pixels in pictures.items():
        run.write_picture(name, pixels)
    for name, gif in outcome.animations.items():
        tracker.animation(name, gif, progress.update)
        run.write_animation(name, gif)
    log.info(
        f"{outcome.words} with the weights of update {metrics['best_update']:,}; "
        f"stopped after update {metrics['updates']:,} ({reason}), {metrics['seconds']:.0f} s"
    )
    log.info(f"test it again with: fwrnn evaluate {run.path}")
    return metrics
