"""A run's best weights, tested again: what ``fwrnn evaluate`` and ``fwrnn reproduce`` ask for."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fwrnn import __version__
from fwrnn.errors import UserError
from fwrnn.files import check_folder
from fwrnn.intervals import wilson
from fwrnn.learning.assembly import NOTHING, config_of, load_run, own_threads, words_of
from fwrnn.learning.kinds import Question
from fwrnn.learning.record import code, label
from fwrnn.learning.run_folder import RunFolder, write_pictures
from fwrnn.learning.shipped import FOLDER as SHIPPED
from fwrnn.learning.shipped import place_of

TEST = Question()


@own_threads()
def evaluated(
    run: str,
    question: Question = TEST,
    device: str | None = None,
    data_dir: str | None = None,
    pictures: Path | None = None,
    changes: Mapping[str, Any] = NOTHING,
) -> tuple[dict, str]:
    """The score of a run's best weights, and a line or two about it for people.

    It is a flat dictionary with what the task's kind measures: ``error`` (a fraction), ``loss``
    (nats), ``wrong`` and ``examples``; of a file also ``predictions``, a dictionary per line, and
    these alone where no line has an answer; of a game ``reward``, its 95 % interval ``reward_low``
    to ``reward_high``, ``won`` (a fraction) and ``games``. ``fwrnn``, ``commit`` and ``torch`` are
    those that trained it, None where it has not ended; ``recorded_…`` and ``reproduced`` follow
    where the run recorded this number, and there are no ``changes``, see ``config_of``. With a
    folder of ``pictures`` what a run draws at its end is drawn there, and ``pictures`` of the
    result are the files.

    Raises:
        UserError: no such run, a broken checkpoint, or a file that cannot be read.
    """
    (config, kind, task, model, where), update = load_run(run, device, data_dir, changes)
    recorded, split = RunFolder(place_of(run)).read_metrics(), question.split
    if pictures is not None:  # before a test that may take minutes
        check_folder(pictures, "--output DIR chooses another folder")
    outcome = kind.test(task, model, where, question, recorded)
    same = question.file is None and question.games in (None, recorded.get(f"{split}_games"))
    same = same and not changes
    known = recorded.get(f"{split}_{kind.score}") if same else None
    data = split if question.file is None else question.file
    data = "standard input" if data == "-" else data
    result = {
        "run": str(run),
        "model": config.model.name,
        "control": config.control,
        "hidden_size": config.model.hidden_size,
        "task": config.task.name,
        "data": data,
        **outcome.measured,
        "best_update": update,
        "ended": bool(recorded),
        **{name: recorded.get(name) for name in ("fwrnn", "commit", "torch")},
    }
    if changes:
        result["set"] = dict(changes)
    name = " ".join([label(config), *(["with", *words_of(changes)] if changes else [])])
    words = f"{name} on {data}: {outcome.words}" if outcome.words else ""
    words = "\n".join([*outcome.lines, *filter(None, [words])])
    if known is not None:
        reproduced = known == outcome.measured[kind.score]
        result |= {f"recorded_{kind.score}": known, "reproduced": reproduced}
        words += "\n" + ("as recorded, exactly" if reproduced else _differs(known, recorded))
    if not recorded:
        words += f"\nthe run has not ended: its best weights so far, of update {update:,}"
    if pictures is not None:
        still, moving = outcome.draw()
        if (drawing := kind.drawing(task, model, where)) is not None:
            still[drawing[0]] = drawing[1](model)
        names = write_pictures(pictures, still, moving)
        result["pictures"] = [str(pictures / name) for name in names]
        words += f"\nin {pictures}: {', '.join(names) or 'nothing, as there is nothing to draw'}"
    return result, words


def pictures_of(run: str, output: str | None) -> Path:
    """Where a run's pictures go: to ``output``, else where its training left them.

    Raises:
        UserError: no such run, or one that ships: the package's folder is not ours to write to.
    """
    folder = place_of(run)
    if output is None and folder.resolve().is_relative_to(SHIPPED):
        raise UserError(
            f"'{run}' is a part of the package, where nothing is written; choose a folder for its "
            "pictures by --output DIR"
        )
    return RunFolder(folder).pictures if output is None else Path(output)


def _differs(known: float, recorded: dict) -> str:
    """What is said of a number that is not as recorded, and whose code and machine recorded it."""
    then = f"fwrnn {recorded.get('fwrnn')} ({recorded.get('commit')}), PyTorch"
    return (
        f"recorded was {known:.6g}: not the same, as can happen with another machine, device or "
        f"version of PyTorch; recorded by {then} {recorded.get('torch')}, tested by fwrnn "
        f"{__version__} ({code()}), PyTorch {torch.__version__}"
    )


def evaluate_pairs(
    run: str, pairs: list[int], split: str = "test", examples: int | None = None,
    device: str | None = None, changes: Mapping[str, Any] = NOTHING,
) -> Iterator[dict]:  # fmt: skip
    """The score of a run's best weights on each number of pairs, as it is known.

    The examples are those that the task makes with the run's seed, as many as its split has or
    ``examples``. A flat dictionary each: ``pairs`` and ``trained_pairs``; ``error``, a fraction,
    and its 95 % interval ``error_low`` to ``error_high``; ``loss``, ``wrong`` and ``examples``; and
    ``recorded_error`` and ``reproduced`` where the run recorded this number. ``changes`` are those
    of ``config_of``, under ``set``.

    Raises:
        UserError: no such run, a broken one, or one of a task that has no pairs.
    """
    settings = config_of(run, changes).task  # before its data are looked for
    if not hasattr(settings, "pairs"):
        raise UserError(
            f"--pairs is for runs of associative retrieval, and task {settings.name} has no pairs"
        )
    trained = config_of(run).task.pairs
    (config, kind, _, model, where), update = load_run(run, device, changes=changes)
    if examples is not None:
        settings = replace(settings, **{f"{split}_size": examples})
    recorded = RunFolder(place_of(run)).read_metrics()
    for count in pairs:
        try:
            task = replace(settings, pairs=count).build(config.seed)
        except ValueError as error:  # of so many examples
            raise UserError(str(error)) from None
        measured = kind.test(task, model, where, Question(split), recorded).measured
        low, high = wilson(measured["error"], measured["examples"], 0, 1)
        row = {
            "run": str(run),
            "model": config.model.name,
            "control": config.control,
            "hidden_size": config.model.hidden_size,
            "task": settings.name,
            "data": split,
            "trained_pairs": trained,
            "pairs": count,
            **measured,
            "error_low": low,
            "error_high": high,
            "best_update": update,
        }
        known = recorded.get(f"{split}_error")
        if changes:
            row["set"] = dict(changes)
        elif count == trained and examples is None and known is not None:
            row |= {"recorded_error": known, "reproduced": known == measured["error"]}
        yield row
