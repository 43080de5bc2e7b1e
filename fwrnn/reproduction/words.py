"""A target's table, for a terminal and for Markdown."""

from collections.abc import Sequence

from fwrnn.comparison.cells import Column, range_cell
from fwrnn.comparison.rows import commits_of
from fwrnn.comparison.table import aligned
from fwrnn.reproduction.results import Result
from fwrnn.reproduction.targets import Target

NONE = "–"


def columns(target: Target, results: Sequence[Result]) -> list[Column]:
    """The table of a target: the paper's, ours, and where ours come from."""
    cells = {
        "model": [result.cell.model for result in results],
        target.column: [str(result.cell.column) for result in results],
        "the paper's": [number(r.cell.paper, r.cell.score) for r in results],
        "ours": [measured(result) for result in results],
        "seed by seed": [
            ", ".join(number(each, r.cell.score) for each in r.numbers) or NONE for r in results
        ],
    }
    for heading in dict.fromkeys(extra.heading for r in results for extra in r.extras):
        cells[heading] = [
            next((extra.text for extra in r.extras if extra.heading == heading), NONE)
            for r in results
        ]
    cells["updates"] = [
        range_cell([run.metrics.get("updates") or 0 for run in result.runs]) for result in results
    ]
    commits = [commits_of(run.metrics for run in result.runs) for result in results]
    cells["commit"] = [" ".join(each) or NONE for each in commits]
    if not target.stand_in:
        cells["verdict"] = [verdict(result) for result in results]
    right = (target.column, "the paper's", "updates")
    return [
        Column(name, texts, [0 if name in right else text for text in texts])
        for name, texts in cells.items()
    ]


def terminal(target: Target, results: Sequence[Result]) -> str:
    """For people: title, table, and what was tested again and what is missing."""
    return "\n".join([target.title, "", *aligned(columns(target, results)), "", *notes(results)])


def markdown(target: Target, results: Sequence[Result]) -> str:
    """The table alone; names and commits as code, what is not there left empty."""
    table = columns(target, results)
    lines = [[column.name for column in table], ["---"] * len(table)]
    for row in zip(*(column.cells for column in table), strict=True):
        named = zip(row, table, strict=True)
        lines.append([
            "" if cell == NONE else f"`{cell}`" if column.name in ("model", "commit") else cell
            for cell, column in named
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, score: str) -> str:
    """Per cent with two decimals, or three where two would show none; a reward with three."""
    if value is None:
        return NONE
    if score == "reward":
        return f"{value:.3f}"
    return f"{value:.3f}" if 0 < value < 0.01 else f"{value:.2f}"


def measured(result: Result) -> str:
    if result.measured is None:
        return "not trained"
    mean, half = result.measured
    text = number(mean, result.cell.score)
    return text if half is None else f"{text} ± {number(half, result.cell.score)}"


def verdict(result: Result) -> str:
    changed = [run for run in result.runs if not run.holds]
    words = result.verdict or NONE
    return f"{words}; not as recorded" if changed else words


def notes(results: Sequence[Result]) -> list[str]:
    """What was tested again and came out otherwise, and which runs there are not."""
    runs = [run for result in results for run in result.runs]
    again = [run for run in runs if run.tested is not None]
    exactly = [run for run in again if run.tested and run.tested.get("reproduced")]
    lines = []
    if any(len(result.runs) > 1 for result in results):
        lines.append("Mean over seeds ± its 95 % interval (Student's t).")
    if again:
        lines.append(
            f"Tested again, with the weights that are kept: {len(again)} of {len(runs)} runs, "
            f"{len(exactly)} of them as recorded, exactly."
        )
    for run in again:
        if run not in exactly:
            size = "" if run.holds else ", more than another machine explains"
            lines.append(f"Not as recorded: {run.folder}{size}")
    missing = [f"{r.cell.folder} ({len(r.missing)})" for r in results if r.missing]
    if missing:
        named = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        count = sum(len(result.missing) for result in results)
        lines.append(f"Not trained yet: {count} runs, {named}; --retrain trains them.")
    return lines
