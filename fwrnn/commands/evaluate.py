"""``fwrnn evaluate RUN``: rebuild a trained model from its folder and test it."""

from itertools import islice
from pathlib import Path

from fwrnn.commands import pairs
from fwrnn.commands.arguments import Parser, positive
from fwrnn.errors import UserError, printable
from fwrnn.files import json_text, quoted

MOST_LISTED = 50
BEGUN = {"unfinished", "interrupted", "running"}


def parser() -> Parser:
    parser = Parser(
        prog="fwrnn evaluate",
        description="Test the best weights of a run, and compare with what it recorded.",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a folder that fwrnn train wrote; or retrieval, the network that ships",
    )
    examples = parser.add_mutually_exclusive_group()
    examples.add_argument(
        "--split", choices=["test", "val", "train"], default="test", help="default: test"
    )
    examples.add_argument(
        "--data",
        metavar="FILE",
        help="your own examples instead, - for standard input: lines such as c9k8j3f1??c<TAB>9; "
        "those without an answer get the model's",
    )
    parser.add_argument(
        "--pairs",
        metavar="N",
        type=pairs.numbers,
        help="associative retrieval with so many pairs, each in turn: 4, 1,8,16 or 1-26",
    )
    parser.add_argument(
        "--examples",
        metavar="N",
        type=positive,
        help="of each number of pairs; default: as many as the run's split has",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where the task's data lie here, instead of where they lay in the run (task.data_dir)",
    )
    parser.add_argument(
        "--games",
        metavar="N",
        type=positive,
        help="games to play; default: as many as the run did",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="test it with another setting than it was trained with, such as model.fast_lr=0.25; "
        "may be given again",
    )
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="draw again what training drew at its end, and replace what is in RUN/pictures",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="where --pictures go instead, such as of what ships"
    )
    parser.add_argument("--device", help="instead of the one the run was configured with")
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    return parser


def main(argv: list[str]) -> int:
    """Parse, test, print."""
    options = parser().parse_args(argv)
    if options.pairs:
        return _over_pairs(options)
    if options.examples:
        raise UserError("--examples goes with --pairs; see fwrnn evaluate --help")
    if not options.json and (runs := _runs_of(options.run)):
        print("\n".join(map(printable, runs)))
        return 2  # nothing was tested
    if options.output is not None and not options.pictures:
        raise UserError("--output goes with --pictures; see fwrnn evaluate --help")
    if options.pictures and options.data is not None:
        raise UserError("--pictures are of a split, not of --data: leave one out")
    if options.pictures and options.output is None and (options.set or options.split != "test"):
        raise UserError(
            "RUN/pictures are of the run as it was trained, and of its test; choose a folder for "
            "others by --output DIR"
        )
    from fwrnn.learning.kinds import Question
    from fwrnn.learning.retest import evaluated, pictures_of

    question = Question(options.split, options.data, options.games)
    pictures = pictures_of(options.run, options.output) if options.pictures else None
    changes = _changes(options)
    result, words = evaluated(
        options.run, question, options.device, options.data_dir, pictures, changes
    )
    print(json_text(result) if options.json else words)
    return 0


def _changes(options) -> dict:
    if not options.set:
        return {}
    from fwrnn.commands.composition import settings  # which has Hydra read them

    return settings(options.set)


def _runs_of(folder: str) -> list[str]:
    """A line for each run below a folder that is none itself, with the command that tests it."""
    if not Path(folder).is_dir() or (Path(folder) / "config.yaml").exists():
        return []
    from fwrnn.comparison.found import Run, find

    found = (one for one in find([folder]) if isinstance(one, Run) or one.state in BEGUN)
    lines = [
        f"fwrnn evaluate {quoted(one.folder)}" + ("" if isinstance(one, Run) else "  # not ended")
        for one in islice(found, MOST_LISTED + 1)
    ]
    count = "1 run" if len(lines) == 1 else f"{len(lines)} runs"
    if len(lines) > MOST_LISTED:
        count, lines[-1] = f"more than {MOST_LISTED} runs", "…"
    heading = f"'{folder}' holds {count}. Choose one, or: fwrnn report {quoted(folder)}"
    return [heading, *lines] if lines else []


def _over_pairs(options) -> int:
    for name in ("data", "data_dir", "games", "pictures", "output"):
        if getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')} does not go with --pairs: leave one out")
    from fwrnn.learning.retest import evaluate_pairs

    rows = evaluate_pairs(
        options.run,
        options.pairs,
        options.split,
        options.examples,
        options.device,
        _changes(options),
    )
    if options.json:
        print(json_text(list(rows)))
    else:
        pairs.print_rows(rows)
    return 0
