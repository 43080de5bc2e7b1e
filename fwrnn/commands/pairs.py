"""``fwrnn evaluate RUN --pairs 1-26``: other numbers of pairs than those of training."""

import argparse
from collections.abc import Iterator
from dataclasses import replace

from fwrnn.config import network_label
from fwrnn.errors import UserError

LEAST, MOST = 1, 26  # letters, which are the keys


def numbers(word: str) -> list[int]:
    """The type of the option: "4", "1,8,16" or "1-26", in the order given."""
    found: list[int] = []
    for part in word.split(","):
        first, dash, last = part.partition("-")
        ends = [end.strip() for end in ((first, last) if dash else (first, first))]
        if not all(end.isdecimal() and LEAST <= int(end) <= MOST for end in ends):
            raise argparse.ArgumentTypeError(
                f"must be numbers from {LEAST} to {MOST}, as in 4, 1,8,16 or 1-26, got '{word}'"
            )
        low, high = map(int, ends)
        if low > high:
            raise argparse.ArgumentTypeError(f"goes from less to more, as in 1-26, got '{part}'")
        found += range(low, high + 1)
    return list(dict.fromkeys(found))


def evaluate_pairs(
    run: str, pairs: list[int], split: str = "test", examples: int | None = None,
    device: str | None = None,
) -> Iterator[dict]:  # fmt: skip
    """The score of a run's best weights on each number of pairs, as it is known.

    The examples are those that the task makes with the run's seed, as many as its split has or
    ``examples``. A flat dictionary each: ``pairs`` and ``trained_pairs``; ``error``, a fraction,
    and its 95 % interval ``error_low`` to ``error_high``; ``loss``, ``wrong`` and ``examples``; and
    ``recorded_error`` and ``reproduced`` where the run recorded this number.

    Raises:
        UserError: no such run, a broken one, or one of a task that has no pairs.
    """
    from fwrnn.learning.assembly import config_of, load_run
    from fwrnn.learning.intervals import wilson
    from fwrnn.learning.kinds import Question
    from fwrnn.learning.run_folder import RunFolder
    from fwrnn.learning.shipped import place_of

    settings = config_of(run).task  # before its data are looked for
    if not hasattr(settings, "pairs"):
        raise UserError(
            f"--pairs is for runs of associative retrieval, and task {settings.name} has no pairs"
        )
    trained = settings.pairs
    (config, kind, _, model, where), update = load_run(run, device)
    if examples is not None:
        settings = replace(settings, **{f"{split}_size": examples})
    recorded = RunFolder(place_of(run)).read_metrics()
    for count in pairs:
        task = replace(settings, pairs=count).build(config.seed)
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
        if count == trained and examples is None and known is not None:
            row |= {"recorded_error": known, "reproduced": known == measured["error"]}
        yield row


def print_rows(rows: Iterator[dict]) -> None:
    """A line for each number of pairs, as soon as it is known."""
    for k, row in enumerate(rows):
        if k == 0:
            name, trained = network_label(row["model"], row["control"]), row["trained_pairs"]
            print(f"{name}-{row['hidden_size']}, trained on {trained} pairs; {row['data']}\n")
            print("pairs    error    95 % interval        wrong", flush=True)
        low, high = 100 * row["error_low"], 100 * row["error_high"]
        interval, wrong = f"{low:.2f} to {high:.2f} %", f"{row['wrong']:,} of {row['examples']:,}"
        print(
            f"{row['pairs']:5} {100 * row['error']:6.2f} %    {interval:<18}   {wrong}{_note(row)}",
            flush=True,
        )


def _note(row: dict) -> str:
    """What the line of the trained number of pairs says besides."""
    if row["pairs"] != row["trained_pairs"]:
        return ""
    if "reproduced" not in row:
        return "   as in training"
    if row["reproduced"]:
        return "   as in training: as recorded, exactly"
    return f"   as in training: recorded was {100 * row['recorded_error']:.2f} %"
