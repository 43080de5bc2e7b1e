"""``fwrnn evaluate RUN``: rebuild a trained model from its folder and test it."""

import json
from typing import TYPE_CHECKING

from fwrnn.commands import pairs
from fwrnn.commands.arguments import Parser, positive
from fwrnn.errors import UserError

if TYPE_CHECKING:
    from fwrnn.learning.kinds import Question


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
    from fwrnn.learning.kinds import Question

    question = Question(options.split, options.data, options.games)
    result, words = _evaluated(options.run, question, options.device, options.data_dir)
    print(json.dumps(result) if options.json else words)
    return 0


def _over_pairs(options) -> int:
    for name in ("data", "data_dir", "games"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} does not go with --pairs: leave one out")
    rows = pairs.evaluate_pairs(
        options.run, options.pairs, options.split, options.examples, options.device
    )
    if options.json:
        print(json.dumps(list(rows)))
    else:
        pairs.print_rows(rows)
    return 0


def evaluate_run(
    run: str,
    split: str = "test",
    data: str | None = None,
    device: str | None = None,
    data_dir: str | None = None,
    games: int | None = None,
) -> dict:
    """The score of a run's best weights on a split, or on a file of examples.

    Returns a flat dictionary with what the task's kind measures: ``error`` (a fraction), ``loss``
    (nats), ``wrong`` and ``examples``; of a file also ``predictions``, a dictionary per line, and
    these alone where no line has an answer; of a game ``reward``, its 95 % interval ``reward_low``
    to ``reward_high``, ``won`` (a fraction) and ``games``. ``recorded_…`` and ``reproduced`` follow
    where the run recorded this number.

    Raises:
        UserError: no such run, a broken checkpoint, or a file that cannot be read.
    """
    from fwrnn.learning.kinds import Question

    return _evaluated(run, Question(split, data, games), device, data_dir)[0]


def _evaluated(
    run: str, question: "Question", device: str | None, data_dir: str | None
) -> tuple[dict, str]:
    """The result, and a line or two about it for people."""
    from fwrnn.learning.assembly import load_run
    from fwrnn.learning.record import label
    from fwrnn.learning.run_folder import RunFolder
    from fwrnn.learning.shipped import place_of

    (config, kind, task, model, where), update = load_run(run, device, data_dir)
    recorded, split = RunFolder(place_of(run)).read_metrics(), question.split
    outcome = kind.test(task, model, where, question, recorded)
    same = question.file is None and question.games in (None, recorded.get(f"{split}_games"))
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
    }
    words = f"{label(config)} on {data}: {outcome.words}" if outcome.words else ""
    words = "\n".join([*outcome.lines, *filter(None, [words])])
    if known is not None:
        reproduced = known == outcome.measured[kind.score]
        result |= {f"recorded_{kind.score}": known, "reproduced": reproduced}
        words += "\n" + ("as recorded, exactly" if reproduced else DIFFERS.format(known))
    return result, words


DIFFERS = (
    "recorded was {:.6g}: not the same, as can happen with another machine, device or version of "
    "PyTorch"
)
