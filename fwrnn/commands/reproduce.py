"""``fwrnn reproduce table1``: the paper beside ours, cell by cell.

``--json`` prints a list of cells. Each is an object of

    target, model, column    which cell; the column is units, features or a game
    paper                    the paper's number, null where it has none
    mean, ci95, best, each   ours over seeds: errors in per cent, rewards from -1 to 1
    seeds, missing, updates  of each run; seeds that belong to the cell and are not trained
    commits                  of the code that trained
    tested_again             seeds whose weights were tested now; as_recorded: whether all came out
                             as recorded, but for rounding
    verdict                  better, equal within noise, worse, or null
    frames_to_0.9            of games
    pairs                    of lengths: the error by the number of pairs
"""

import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from signal import SIGINT

from tqdm import tqdm

from fwrnn.commands.arguments import Parser, positive
from fwrnn.commands.composition import compose_config
from fwrnn.commands.train import computed
from fwrnn.config import Config, migrated, read_config
from fwrnn.errors import Interrupted, RunFailed, UserError
from fwrnn.files import check_folder, json_text
from fwrnn.learning.claim import holder
from fwrnn.machine import cores
from fwrnn.reproduction import results, words
from fwrnn.reproduction.results import Result, Run, result_of
from fwrnn.reproduction.retrain import Job, set_aside, train
from fwrnn.reproduction.targets import TARGETS, Cell, Target

DESCRIPTION = """\
Puts the paper's numbers beside ours. By default it tests the weights that ship, and says whether
they come out as recorded; --retrain trains what is missing, or no longer comes out so."""


def parser() -> Parser:
    parser = Parser("fwrnn reproduce", description=DESCRIPTION)
    parser.add_argument(
        "targets", metavar="TARGET", nargs="+", choices=[*TARGETS, "all"],
        help=f"one or more of {', '.join(TARGETS)}, or all",
    )  # fmt: skip
    parser.add_argument(
        "--retrain", action="store_true",
        help="train every cell that is missing, or whose weights no longer give what was recorded; "
        "killed at any point and called again, it goes on",
    )  # fmt: skip
    parser.add_argument(
        "--fresh", action="store_true", help="train every cell, whatever ships; implies --retrain"
    )
    parser.add_argument(
        "--seeds", type=positive, metavar="N", help="of each cell; default: as many as it has"
    )
    parser.add_argument(
        "--jobs", type=positive, metavar="N",
        help="trainings at once, a thread each; default: one per processor",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="train every cell with another setting, such as trainer.max_updates=1000; may be "
        "given again",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("outputs/reproduce"),
        help="where runs that are trained go, and figures; default: outputs/reproduce",
    )  # fmt: skip
    parser.add_argument("--data-dir", metavar="DIR", help="where MNIST lies, else it is downloaded")
    parser.add_argument("--device", help="to test on; default: as the runs were configured")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--markdown", action="store_true", help="tables for a page such as RESULTS.md"
    )
    form.add_argument("--json", action="store_true", help="one list of cells, for machines")
    return parser


def main(argv: list[str]) -> int:
    """Verify, train if asked to, print and draw."""
    options = parser().parse_args(argv)
    _check(options)
    names = list(TARGETS) if "all" in options.targets else list(dict.fromkeys(options.targets))
    objects, skipped, failed = [], [], []
    for name in names:
        target = TARGETS[name]
        try:
            found, wrong = reproduced(target, options)
        except UserError as error:
            skipped.append(f"{name}: skipped: {error}")
            continue
        failed += wrong
        objects += [results.as_object(name, result, target.stand_in) for result in found]
        if not options.json:
            show = words.markdown if options.markdown else words.terminal
            print(show(target, found), end="\n\n", flush=True)
    if options.json:
        print(json_text(objects, indent=1))
    for line in [*skipped, *failed]:
        print(f"fwrnn: {line}", file=sys.stderr)
    if failed:
        raise RunFailed(f"{len(failed)} trainings failed; the same command tries them again")
    return 2 if skipped and not objects else 0


def _check(options) -> None:
    """Raises UserError for what cannot be, before anything is tested."""
    options.retrain = options.retrain or options.fresh
    for name in ("set", "seeds", "jobs"):
        if getattr(options, name) and not options.retrain:
            raise UserError(f"--{name} is for training; add --retrain, or leave it out")
    check_folder(options.output, "--output DIR chooses another folder")


def reproduced(target: Target, options) -> tuple[list[Result], list[str]]:
    """A target's results, and what went wrong in training.

    Raises:
        UserError: its data are missing.
    """
    from fwrnn.reproduction.drawing import draw
    from fwrnn.reproduction.extras import with_extras

    if target.needs is None:
        options = Namespace(**{**vars(options), "data_dir": None})
    found = [_result_of(cell, options) for cell in target.cells]
    found = [_tested(result, options) for result in _shown(found, target.name, "testing")]
    wrong: list[str] = []
    if options.retrain:
        wrong = _retrain(found, options)
        again = [_result_of(result.cell, options) for result in found]
        known = {run.folder: run for result in found for run in result.runs if run.holds}
        found = [_tested(result, options, known) for result in again]
    shown = _shown(found, target.name, "looking into")
    found = [with_extras(target.name, result, options.device) for result in shown]
    picture = options.output / f"{target.name}.png"
    draw(target, found, picture)
    if not options.json and not options.markdown:
        print(f"drawn in {picture}\n", file=sys.stderr)
    return found, wrong


def _result_of(cell: Cell, options) -> Result:
    """The cell's runs: ours, where they have its settings and those of --set, else what ships."""
    others = []

    def as_asked(folder: Path) -> bool:
        if not (same := _settings_of(folder) == _settings((*cell.train, *options.set))):
            others.append(folder)
        return same

    shipped = not (options.fresh or options.set)  # which was trained without those
    result = result_of(cell, options.output, shipped, as_asked)
    if others and not options.retrain:
        where = others[0] if len(others) == 1 else f"{others[0]} and {len(others) - 1} more"
        words = "left out, as trained with other settings; --retrain trains anew"
        print(f"fwrnn: {where}: {words}", file=sys.stderr)
    return result


@cache
def _settings(words: tuple[str, ...]) -> dict:
    """What decides what comes out of a training with these words, but for its seed."""
    return _compared(compose_config(*words))


def _settings_of(folder: Path) -> dict | None:
    """The same of a run; None of one that cannot be read."""
    from fwrnn.learning.run_folder import RunFolder

    try:
        return _compared(read_config(migrated(RunFolder(folder).read_config())))
    except UserError:
        return None


def _compared(config: Config) -> dict:
    values = computed(config)
    del values["seed"]
    values["task"].pop("data_dir", None)
    return values


def _tested(result: Result, options, known: dict[Path, Run] | None = None) -> Result:
    """The cell with its runs tested again, but for those that ``known`` has."""
    logging.disable(logging.WARNING)  # of what stands in for what: the titles say so
    try:
        runs = [
            (known or {}).get(run.folder) or results.tested(run, options.data_dir, options.device)
            for run in result.runs
        ]
    finally:
        logging.disable(logging.NOTSET)
    return replace(result, runs=tuple(runs))


def _shown(found: list[Result], name: str, what: str) -> Iterator[Result]:
    """Each in turn, with a bar on a terminal."""
    return iter(tqdm(found, f"{what} {name}", leave=False, disable=None))


def _retrain(found: list[Result], options) -> list[str]:
    """Train what is missing or changed; returns a line for each training that failed."""
    data = [f"task.data_dir={options.data_dir}"] if options.data_dir else []
    more, jobs = (*options.set, *data), []
    for result in found:
        seeds = range(options.seeds or result.cell.seeds)
        good = {run.seed for run in result.runs if run.holds}
        jobs += [Job(result.cell, s, options.output, more) for s in seeds if s not in good]
    for job in jobs:
        asked = _settings((*job.cell.train, *options.set))
        other = _settings_of(job.folder) not in (None, asked)
        if (other or (job.folder / "metrics.json").exists()) and not holder(job.folder):
            set_aside(job.folder)
    if not jobs:
        return []
    compose_config(*jobs[0].cell.train, *more)  # a mistake in it is told once, not by every job
    failed = []
    with tqdm(total=len(jobs), desc="training", unit="run", disable=None) as bar:

        def done(job: Job, fault: str | None) -> None:
            if fault is not None:
                failed.append(f"{job.cell.folder} seed {job.seed}: {fault}")
            bar.set_postfix_str(f"{job.cell.folder} seed {job.seed}")
            bar.update()

        try:
            train(jobs, options.jobs or cores(), done)
        except KeyboardInterrupt as error:
            words = "stopped, nothing is lost; the same command goes on"
            raise Interrupted(words, getattr(error, "signal", SIGINT)) from None
    return failed
