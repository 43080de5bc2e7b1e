"""An answer and what led to it, in the characters of a terminal."""

import os
from dataclasses import dataclass
from typing import TextIO

from fwrnn.learning.trained import sureness

_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_BARS = " .:#"
_ROWS = 3  # of a bar
_CELL = 5  # columns of a character and its bar
_TABLE = 26  # columns of a table of edits


@dataclass(frozen=True)
class Style:
    """What the output can show: colours, and characters beyond ASCII."""

    colour: bool
    blocks: bool

    @staticmethod
    def of(stream: TextIO) -> "Style":
        """Colours on a terminal alone and unless NO_COLOR is set; blocks where it has them."""
        terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        try:
            ("→·" + _BARS).encode(stream.encoding or "ascii")
            blocks = True
        except (UnicodeEncodeError, LookupError):
            blocks = False
        return Style(terminal and not os.environ.get("NO_COLOR"), blocks)

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def good(self, text: str) -> str:
        return self.paint(text, "1;32")

    def bad(self, text: str) -> str:
        return self.paint(text, "1;31")

    def dim(self, text: str) -> str:
        return self.paint(text, "2")

    @property
    def arrow(self) -> str:
        return "→" if self.blocks else "->"


def text_of(result: dict, network: str, style: Style, width: int) -> str:
    """The answer, the attention and the edits, in ``width`` columns."""
    trained = result["trained_pairs"]
    right = result["answer"] == result["expected"]
    answer = (style.good if right else style.bad)(result["answer"])
    verdict = "" if right else f" (should be {result['expected']})"
    lines = [
        f"{result['question']} {style.arrow} {answer}{verdict}   {sureness(result['confidence'])}",
        style.dim(
            f"{network}, trained on {trained} pair{'s' * (trained > 1)}; this has {result['pairs']}"
        ),
        "",
        *_attention(result, style, width),
        "",
        *_edits(result, style, width),
    ]
    return "\n".join(lines)


def _attention(result: dict, style: Style, width: int) -> list[str]:
    """Bars of what the question attends to, as many side by side as there is room for."""
    if result["attention"] is None:
        return ["This network has no fast memory: there is no attention to show."]
    question = result["question"]
    place = question.index(question[-1])
    strengths = [strength for *_, strength in result["attention"]]
    total = sum(map(abs, strengths)) or 1.0
    shares = [strength / total for strength in strengths]
    lines = ["What the question attends to, of all that its memory returns:", ""]
    per_line = width // _CELL // 2 * 2  # whole pairs
    for start in range(0, len(shares), per_line):
        places = range(start, min(start + per_line, len(shares)))
        lines += [*_band(question, shares, places, (place, place + 1), style), ""]
    got = 100 * (shares[place] + shares[place + 1])
    return [*lines, f"The pair asked for, {question[place : place + 2]}, gets {got:.0f} % of it."]


def _band(
    question: str, shares: list[float], places: range, asked: tuple[int, int], style: Style
) -> list[str]:
    """Some characters side by side: their bars, themselves, and their shares."""
    most = max(*shares, 1e-9)
    rows = [[3 * _bar(shares[k] / most, row, style) for k in places] for row in range(_ROWS)]
    rows = [row for row in reversed(rows) if "".join(row).strip()]
    rows += [[f" {question[k]} " for k in places], [f"{100 * shares[k]:.0f}%" for k in places]]
    lines = []
    for row in rows:
        cells = ((text.center(_CELL), k in asked) for text, k in zip(row, places, strict=True))
        line = "".join(style.good(text) if marked else text for text, marked in cells)
        lines.append(line if style.colour else line.rstrip())
    return lines


def _bar(height: float, row: int, style: Style) -> str:
    """The character of a bar of this height, 0 to 1, in a row counted from below."""
    levels = _BARS if style.blocks else _PLAIN_BARS
    steps = len(levels) - 1
    return levels[max(0, min(steps, round(height * steps * _ROWS) - row * steps))]


def _edits(result: dict, style: Style, width: int) -> list[str]:
    """A table: a row per pair, a column per value, and what would be answered."""
    rows: dict[str, dict[str, dict]] = {}
    for edit in result["edits"]:
        rows.setdefault(edit["pair"], {})[edit["value"]] = edit
    asked = result["question"][-1]
    blocks = [_row(pair, edits, asked, style) for pair, edits in rows.items()]
    heads = f"{'':4}" + "".join(f"{value:>2}" for value in range(10)) + "  "
    columns = max(1, min(width // _TABLE, -(-len(blocks) // 4)))
    deep = -(-len(blocks) // columns)
    lines = [
        "The answer if one pair had another value (down: the pair, across: the value):",
        "",
        style.dim((heads * columns).rstrip()),
    ]
    lines += ["".join(blocks[k::deep]).rstrip() for k in range(deep)]
    wrong = [edit for edit in result["edits"] if edit["answer"] != edit["expected"]]
    return [*lines, "", _verdict(result, asked, wrong)]


def _row(pair: str, edits: dict[str, dict], asked: str, style: Style) -> str:
    cells = ""
    for value in "0123456789":
        if value == pair[1]:
            cells += style.dim(" ·" if style.blocks else " .")
            continue
        edit = edits[value]
        wrong = edit["answer"] != edit["expected"]
        cells += style.bad("!" + edit["answer"]) if wrong else f" {edit['answer']}"
    name = style.good(pair) if pair[0] == asked else pair
    return f" {name} {cells}  "


def _verdict(result: dict, asked: str, wrong: list[dict]) -> str:
    total = len(result["edits"])
    if not wrong:
        return f"It follows the value of {asked} and no other: right in {total} of {total}."
    return f"Right in {total - len(wrong)} of {total}; ! marks an answer that is wrong."
