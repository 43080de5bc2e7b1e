"""``fwrnn battery``: does the layer, with its defaults, learn wherever torch.nn.RNN does?"""

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fwrnn.commands.arguments import Parser, positive, rate
from fwrnn.errors import RunFailed, UserError
from fwrnn.files import WINDOWS
from fwrnn.machine import cores
from fwrnn.reading import is_number

DESCRIPTION = """\
Trains FastWeightsRNN with its defaults and torch.nn.RNN on small tasks that a program makes up
(text, adding, copying, retrieval), at several lengths, sizes and depths, in the same budget, and
compares what they end at. All of it takes some hours; every network that is done is kept, so that
it can be stopped at any time and goes on where it was. With fewer seeds it is shorter."""

PARTS = [
    ("task", str, "TASK", "only this one; may be given again"),
    ("steps", positive, "T", "only this length; likewise"),
    ("layers", positive, "L", "only networks with so many; likewise"),
    ("units", positive, "H", "only layers of so many; likewise"),
    ("nonlinearity", str, "F", "only tanh, or relu"),
]


def parser() -> Parser:
    parser = Parser("fwrnn battery", description=DESCRIPTION)
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--updates", type=positive, default=3000, metavar="N", help="of each; default: 3000"
    )
    parser.add_argument(
        "--learning-rate", type=rate, default=3e-3, metavar="RATE", help="of Adam; default: 0.003"
    )
    for name, of, metavar, told in PARTS:
        parser.add_argument(f"--{name}", action="append", type=of, metavar=metavar, help=told)
    parser.add_argument(
        "--jobs", type=positive, default=cores(), metavar="N",
        help="networks at once, a thread each; default: one per processor",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the cells as JSON, for machines")
    parser.add_argument(
        "--output", metavar="DIR", default="outputs/battery", help="default: outputs/battery"
    )
    return parser


def main(argv: list[str]) -> int:
    """Train what is not done yet, and print the table of all that is."""
    options = parser().parse_args(argv)

    from fwrnn.benchmarks import battery
    from fwrnn.files import json_text, write_whole
    from fwrnn.learning.claim import claimed

    wanted = battery.trials(options.seeds, options.updates, options.learning_rate)
    for name, *_ in PARTS:
        chosen = getattr(options, name)
        for value in chosen or ():
            if value not in battery.SETTINGS[name]:
                allowed = ", ".join(map(str, battery.SETTINGS[name]))
                raise UserError(f"--{name} must be one of {allowed}, got {value!r}")
        wanted = [trial for trial in wanted if not chosen or getattr(trial, name) in chosen]
    folder = Path(options.output)
    file = folder / "battery.jsonl"
    with claimed(folder, "--output DIR chooses another folder"):
        cells = battery.cells(train(wanted, file, options.jobs))
        print(json_text(cells) if options.json else battery.markdown(cells), flush=True)
        # What was trained before, too, in the same budget.
        budget = options.updates, options.learning_rate
        kept = [x for x in read(file) if (x["updates"], x["learning_rate"]) == budget]
        kept = battery.markdown(battery.cells(kept))
        write_whole(folder / "battery.md", (kept + "\n").encode())
    return 0


def train(trials: list, file: Path, jobs: int) -> list[dict]:
    """The results of all trials: those kept in ``file``, one JSON object a line, and the others.

    A line that is broken, as a full disk leaves one, is left out of the file and trained again.

    Raises:
        RunFailed: a process was killed, as one is when memory runs out.
    """
    from torch import multiprocessing

    from fwrnn.benchmarks import battery
    from fwrnn.files import write_whole
    from fwrnn.learning.record import commit
    from fwrnn.learning.signals import leave_to_parent

    names = _settings()
    known = {tuple(result[name] for name in names): result for result in read(file)}
    write_whole(file, "".join(json.dumps(result) + "\n" for result in known.values()).encode())
    about = {"commit": commit()}
    keys = [tuple(getattr(trial, name) for name in names) for trial in trials]
    missing = [trial for trial, key in zip(trials, keys, strict=True) if key not in known]
    context = multiprocessing.get_context("spawn")
    workers = min(jobs, len(missing), 61 if WINDOWS else jobs) or 1  # it waits for no more there
    with (
        tqdm(total=len(trials), initial=len(trials) - len(missing), disable=None) as bar,
        ProcessPoolExecutor(workers, context, leave_to_parent) as pool,
    ):
        try:
            for trained in as_completed([pool.submit(battery.run, trial) for trial in missing]):
                result = trained.result() | about
                keep(result, file)
                known[tuple(result[name] for name in names)] = result
                bar.set_description(f"{result['task']}, T={result['steps']}")
                bar.update()
        except BrokenProcessPool as error:
            raise RunFailed(
                "a process ended early, maybe killed as memory ran out; the same command goes on, "
                "and --jobs N has fewer at once"
            ) from error
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.kill()
            pool.shutdown(cancel_futures=True)
            raise
    return [known[key] for key in keys]


def keep(result: dict, file: Path) -> None:
    """Raises RunFailed: it could not be written, as on a full disk."""
    try:
        with file.open("a", encoding="utf-8") as kept:
            kept.write(json.dumps(result) + "\n")
    except OSError as error:
        raise RunFailed(
            f"could not write {file}: {error.strerror}; once it can be, the same command goes on"
        ) from error


def read(file: Path) -> list[dict]:
    """The results in ``file``, which need not exist; what else it has is left out."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    results = []
    for line in text.splitlines():
        try:
            result = json.loads(line)
        except ValueError:
            continue
        if isinstance(result, dict):
            result = {"learning_rate": 3e-3} | result  # which was the only one
            if _is_result(result):
                results.append(result)
    return results


def _is_result(result: dict[str, Any]) -> bool:
    """Whether it is what ``battery.run`` returns."""
    return (
        all(isinstance(result.get(name), str | int) for name in _settings()[:-1])
        and is_number(result["learning_rate"])
        and is_number(result.get("blank"))
        and (is_number(loss := result.get("loss", "none")) or loss is None)
    )


def _settings() -> list[str]:
    """What tells trials apart."""
    from fwrnn.benchmarks import battery

    return [field.name for field in fields(battery.Trial)]
