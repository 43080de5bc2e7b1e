"""``fwrnn ask 'c9k8j3f1??c'``: a trained network's answer, what it attended to, and what if.

``--json`` prints one object:

    question, answer, confidence (0 to 1), expected (what the string says)
    pairs, trained_pairs   how many pairs it has, and those of training had
    attention    [character, position from 0, strength] of every character before the last: the
                 factor of its state in what the last step retrieves (equation 4); null for a
                 network without a fast memory
    edits        one per pair and other value: pair, value (the other one), question,
                 expected, answer, confidence
"""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwrnn.commands.arguments import Parser
from fwrnn.errors import UserError, printable
from fwrnn.files import json_text, write_whole

if TYPE_CHECKING:
    from fwrnn.learning.trained import Trained

EXAMPLE = "c9k8j3f1??c"


def parser() -> Parser:
    parser = Parser(
        prog="fwrnn ask",
        description="Ask a trained network, see which characters its memory attended to, and what "
        "it answers when a value is another.",
    )
    parser.add_argument(
        "question",
        metavar="QUESTION",
        help=f"1 to 26 pairs of a letter and a digit, ?? and one of the letters: '{EXAMPLE}' "
        "(quoted: some shells read ? as a pattern)",
    )
    parser.add_argument(
        "--run",
        metavar="RUN",
        default="retrieval",
        help="a folder that fwrnn train wrote; default: retrieval, the network that ships",
    )
    parser.add_argument("--png", metavar="FILE", help="draw it, too")
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    return parser


def main(argv: list[str]) -> int:
    """Parse, ask, print."""
    options = parser().parse_args(argv)
    from fwrnn.learning.assembly import config_of
    from fwrnn.learning.trained import load

    task = config_of(options.run).task.name  # before its data are looked for
    if task != "assoc_retrieval":
        raise UserError(
            f"'{options.run}' was trained on {task}; fwrnn ask is for runs of task assoc_retrieval"
        )
    trained = load(options.run, backend="attention")  # of so little, before a kernel is read
    result = ask(trained, options.question)
    if options.png is not None:
        _draw(result, options.png)
    if options.json:
        print(json_text(result))
    else:
        from fwrnn.commands.answer_text import Style, text_of
        from fwrnn.learning.record import label

        width = max(40, min(shutil.get_terminal_size().columns, 100))
        print(text_of(result, label(trained.config), Style.of(sys.stdout), width))
    return 0


def ask(trained: "Trained", question: str) -> dict:
    """What this module says of ``--json``.

    Raises:
        UserError: the question is malformed; what is shown below it points to where.
    """
    try:
        trained.encode(question)
    except ValueError as error:
        raise UserError(
            f"this is no question: {error}; write one such as {EXAMPLE}", _pointed(question, error)
        ) from None
    edits = _edits(question)
    first, *answers = trained([question, *(edit["question"] for edit in edits)])
    for edit, answer in zip(edits, answers, strict=True):
        edit |= {"answer": answer.label, "confidence": answer.confidence}
    attention = matrix = trained.attention(question)
    if matrix is not None:
        row = matrix[-1, :-1].tolist()
        attention = [[question[k], k, strength] for k, strength in enumerate(row)]
    return {
        "question": question,
        "answer": first.label,
        "confidence": first.confidence,
        "expected": _expected(question),
        "pairs": (len(question) - 3) // 2,
        "trained_pairs": trained.config.task.pairs,
        "attention": attention,
        "edits": edits,
    }


def _edits(question: str) -> list[dict[str, Any]]:
    """Every other value of every pair, and the question that it makes."""
    edits = []
    for k in range(0, len(question) - 3, 2):
        for value in "0123456789".replace(question[k + 1], ""):
            changed = question[: k + 1] + value + question[k + 2 :]
            about = {"pair": question[k : k + 2], "value": value, "question": changed}
            edits.append(about | {"expected": _expected(changed)})
    return edits


def _expected(question: str) -> str:
    return question[question.index(question[-1]) + 1]


def _pointed(question: str, error: ValueError) -> str:
    """The question, and a caret below the first character that is wrong."""
    return f"  '{printable(question[:70])}'\n   {' ' * getattr(error, 'at', 0)}^"


def _draw(result: dict, file: str) -> None:
    from fwrnn.learning.supervised.answer_picture import png

    if Path(file).is_dir() or not Path(file).name:
        raise UserError(f"--png needs the name of a file, and '{file}' is a folder")
    write_whole(Path(file), png(result))
