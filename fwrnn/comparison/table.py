"""A comparison as text, Markdown, CSV and JSON, and the folders that give no row."""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fwrnn.comparison.cells import Column, columns, heading, note, plain_word, text
from fwrnn.comparison.found import Run, Trouble
from fwrnn.comparison.rows import ABSENT, FIRST, Comparison, Row
from fwrnn.errors import printable
from fwrnn.reading import is_number

GAP = "  "
PLAIN = re.compile(r"[A-Za-z /%]+")
"""What means nothing to Markdown."""


def terminal(comparisons: Sequence[Comparison], troubles: Sequence[Trouble], width: int) -> str:
    """For people; columns that do not fit into ``width`` are left out and named."""
    parts = []
    for comparison in comparisons:
        kept, left_out = _fitting(columns(comparison), width)
        parts += [heading(comparison), "\n".join(aligned(kept))]
        if left_out:
            parts[-1] += f"\nNot shown for want of room: {', '.join(left_out)}"
    parts.append(note(comparisons))
    lines = trouble_lines(troubles)
    states = {trouble.state for trouble in troubles}
    if states & {"unfinished", "interrupted"}:
        lines.append("An unfinished run goes on with: fwrnn train resume=FOLDER")
    if "waiting" in states:
        lines.append("Jobs that wait begin with: fwrnn sweep resume FOLDER")
    parts.append("\n".join(lines))
    return "\n\n".join(part for part in parts if part)


def _fitting(table: list[Column], width: int) -> tuple[list[Column], list[str]]:
    left_out = []
    while _width(table) > width and any(column.spare for column in table):
        least = max(table, key=lambda column: column.spare)
        table = [column for column in table if column is not least]
        left_out.insert(0, least.name)
    return table, left_out


def _width(table: list[Column]) -> int:
    return sum(map(_column_width, table)) + len(GAP) * (len(table) - 1)


def _column_width(column: Column) -> int:
    return max(map(len, [*_broken(column.name), *column.cells]))


def _broken(name: str) -> list[str]:
    """A heading in several lines: words of a key, which may be longer than what is below it."""
    return re.findall(r"[^_. ]+[_. %]*", name) or [name]


def aligned(table: list[Column]) -> list[str]:
    """Lines for a terminal: headings, a rule, and a line per row."""
    widths = [_column_width(column) for column in table]
    headings = [_broken(column.name) for column in table]
    height = max(map(len, headings))
    filled = ([""] * (height - len(words)) + words for words in headings)
    lines = [*zip(*filled, strict=True), ["─" * width for width in widths]]
    lines += zip(*(column.cells for column in table), strict=True)
    sides = [str.ljust if column.is_text else str.rjust for column in table]
    padded = (
        [side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)]
        for line in lines
    )
    return [GAP.join(line).rstrip() for line in padded]


def trouble_lines(troubles: Iterable[Trouble]) -> list[str]:
    """A line each."""
    return [f"{t.state}: {printable(t.folder)}: {printable(t.words)}" for t in troubles]


def markdown(comparisons: Sequence[Comparison], troubles: Sequence[Trouble]) -> str:
    """Tables for a README, columns aligned so that they read as text too."""
    parts = []
    for comparison in comparisons:
        parts += [_code_span(heading(comparison)), _piped(columns(comparison))]
    parts.append(note(comparisons))
    lines = (
        f"- {t.state}: {_code_span(printable(t.folder))}: {_code_span(printable(t.words))}"
        for t in troubles
    )
    parts.append("\n".join(lines))
    return "\n\n".join(part for part in parts if part)


def _piped(table: list[Column]) -> str:
    headings = [c.name if PLAIN.fullmatch(c.name) else _code_span(c.name) for c in table]
    cells = [_code(column) for column in table]
    widths = [max(3, *map(len, [h, *col])) for h, col in zip(headings, cells, strict=True)]
    rules = [
        "-" * (width - 1) + ("-" if column.is_text else ":")
        for width, column in zip(widths, table, strict=True)
    ]
    lines = [headings, rules, *zip(*cells, strict=True)]
    rows = ([cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _code(column: Column) -> list[str]:
    if not column.is_text:
        return column.cells
    return [cell if cell == ABSENT else _code_span(cell) for cell in column.cells]


def _code_span(words: str) -> str:
    """Text that Markdown leaves alone: only backticks and bars have a meaning there."""
    plain = words.replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"


def as_csv(comparison: Comparison) -> str:
    """For spreadsheets: plain numbers, errors in per cent, and no cell that is a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    splits = ("test", "val")
    scores = [(split, name) for name in comparison.scores for split in splits]
    heads = [*map(_no_formula, map(text, comparison.names.values())), "seeds", "runs"]
    for split, name in scores:
        called = text(f"{split}_{name}{'_percent' * (name == 'error')}")
        heads += [called, f"{called}_interval"]
    writer.writerow([*heads, "updates", "updates_per_second", "commit"])
    for row in comparison.rows:
        cells = [_no_formula(_csv_value(row.settings[key])) for key in comparison.names]
        cells += [len(row.seeds), len(row.runs)]
        for split, name in scores:
            cells += _csv_score(row, split, name)
        for name in ("updates", "updates_per_second"):
            found = row.measured(name)
            cells.append("" if found is None else round(found.mean, 6))
        writer.writerow([*cells, _no_formula(" ".join(map(text, row.commits)))])
    return out.getvalue().rstrip("\n")


def _csv_value(value: Any) -> Any:
    if value == ABSENT:
        return ""
    return value if is_number(value) else printable(plain_word(value))


def _no_formula(value: Any) -> Any:
    """A text that a spreadsheet would compute gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def _csv_score(row: Row, split: str, name: str) -> list:
    found = row.measured(f"{split}_{name}") if row.score.name == name else None
    if found is None:
        return ["", ""]
    factor = 100 if name == "error" else 1
    return ["" if number is None else round(factor * number, 9) for number in found]


def as_json(comparison: Comparison) -> str:
    """For machines: a list of rows; errors are fractions, as in metrics.json."""
    return json.dumps([_json_row(row) for row in comparison.rows], indent=1, ensure_ascii=True)


def _json_row(row: Row) -> dict:
    measured = {}
    for name in (f"test_{row.score.name}", f"val_{row.score.name}", "updates_per_second"):
        found = row.measured(name)
        measured[name] = None if found is None else found._asdict()
    every = row.runs[0].settings
    return {
        "settings": {key: every[key] for key in (*FIRST, *row.settings) if key in every},
        "score": row.score.name,
        "seeds": row.seeds,
        **measured,
        "commits": row.commits,
        "runs": [_json_run(run) for run in row.runs],
    }


def _json_run(run: Run) -> dict:
    names = (f"test_{run.score.name}", f"val_{run.score.name}", "updates", "updates_per_second")
    numbers = {name: run.metrics.get(name) for name in names}
    plain = {name: value if is_number(value) else None for name, value in numbers.items()}
    return {"folder": str(run.folder), "seed": run.seed, **plain}
