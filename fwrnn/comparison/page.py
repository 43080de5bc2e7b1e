"""A comparison as one page that needs nothing else: tables to sort, the picture, every run."""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from typing import Any

from fwrnn.comparison.cells import (
    Column,
    columns,
    heading,
    note,
    score_name,
    score_number,
    text,
    whole,
)
from fwrnn.comparison.found import Run, Trouble
from fwrnn.comparison.rows import ABSENT, Comparison, short
from fwrnn.errors import printable
from fwrnn.reading import is_number

STYLE = """
:root { color-scheme: light; font: 15px/1.45 system-ui, sans-serif; color: #222; }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1.2rem; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; }
td.path { white-space: normal; overflow-wrap: anywhere; text-align: left; }
thead th { border-bottom: 2px solid #888; padding: 0; }
tbody tr:nth-child(even) { background: #f5f5f5; }
tbody tr:hover { background: #e8f0fa; }
th button { all: unset; cursor: pointer; font-weight: 600; padding: .28rem .7rem; }
th button:focus-visible { outline: 2px solid #0072b2; }
th[aria-sort] button::after { content: " ▲"; font-size: .7em; }
th[aria-sort=descending] button::after { content: " ▼"; }
svg { width: 100%; height: auto; }
.note, summary { color: #555; } summary { cursor: pointer; margin: .8rem 0; }
.unfinished, .interrupted, .waiting { color: #8a5a00; } .failed, .broken { color: #a40000; }
"""

SCRIPT = """
for (const button of document.querySelectorAll("th button"))
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), at = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[at].dataset.value ?? "";
    const number = (text) => (text === "" ? NaN : Number(text));
    const order = (one, two) => {
      const a = value(one), b = value(two), x = number(a), y = number(b);
      if (a === "" || b === "") return (a === "") - (b === "");
      const texts = isNaN(x) - isNaN(y) || (a < b ? -1 : a > b);
      return (down ? -1 : 1) * (isNaN(x) || isNaN(y) ? texts : x - y);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  });
"""


def page(
    comparisons: Sequence[Comparison], troubles: Sequence[Trouble], picture: str, title: str
) -> str:
    """The whole page; ``picture`` is an SVG element, or empty."""
    body = [f"<h1>{escape(printable(title))}</h1>"]
    for comparison in comparisons:
        body += [f"<h2>{escape(heading(comparison))}</h2>", _table(_numbered(comparison))]
        every = _table(_run_columns(comparison))
        body.append(f"<details><summary>Every run</summary>{every}</details>")
    body.append(f'<p class="note">{escape(note(comparisons))}</p>')
    if picture:
        body.append(f'<h2>Learning curves and final scores</h2><div class="wide">{picture}</div>')
    body.append(_troubles(troubles))
    return PAGE.format(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_hash(SCRIPT)}'",
        title=escape(printable(title)),
        style=STYLE,
        body="\n".join(body),
        script=SCRIPT,
    )


PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def _hash(script: str) -> str:
    """By which the page's own script may run, and nothing that a file brought."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _numbered(comparison: Comparison) -> list[Column]:
    """The table, with the numbers that the picture gives its rows."""
    numbers = list(range(1, len(comparison.rows) + 1))
    return [Column("#", list(map(str, numbers)), numbers), *columns(comparison)]


def _run_columns(comparison: Comparison) -> list[Column]:
    """A line per run: the row that it is in, its seed and scores, and where it lies."""
    runs = [(k, run) for k, row in enumerate(comparison.rows, start=1) for run in row.runs]
    table = [_run_column("#", [k for k, _ in runs])]
    table.append(_run_column("seed", [run.seed for _, run in runs]))
    for name in comparison.scores:
        for split in ("test", "val"):
            values = [run.metrics[f"{split}_{name}"] for _, run in runs if run.score.name == name]
            if len(values) == len(runs):
                cells = [score_number(value, name) for value in values]
                table.append(Column(score_name(split, name), cells, values))
    for name in ("updates", "seconds", "stopped", "commit"):
        table.append(_run_column(name, [_metric(run, name) for _, run in runs]))
    folders = [printable(run.folder) for _, run in runs]
    return [*table, Column("folder", folders, folders)]


def _metric(run: Run, name: str) -> Any:
    value = run.metrics.get(name)
    if name == "commit" and isinstance(value, str):
        return " ".join(map(short, value.split()))
    return value if is_number(value) or isinstance(value, str) else None


def _run_column(name: str, values: list) -> Column:
    cells = [
        ABSENT if v is None else whole(v) if is_number(v) and name != "seed" else text(v)
        for v in values
    ]
    return Column(name, cells, values)


def _table(table: Sequence[Column]) -> str:
    sides = [' class="text"' if column.is_text else "" for column in table]
    head = "".join(
        f'<th scope="col"{side}><button>{escape(column.name)}</button></th>'
        for side, column in zip(sides, table, strict=True)
    )
    rows = (
        "".join(
            f'<td{side} data-value="{escape(_sorted_by(column.values[k]))}">'
            f"{escape(column.cells[k])}</td>"
            for side, column in zip(sides, table, strict=True)
        )
        for k in range(len(table[0].cells))
    )
    lines = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def _sorted_by(value: Any) -> str:
    return "" if value is None or value == ABSENT else printable(value)


def _troubles(troubles: Sequence[Trouble]) -> str:
    if not troubles:
        return ""
    rows = "\n".join(
        f'<tr><td class="text {escape(t.state)}">{escape(t.state)}</td>'
        f'<td class="path">{escape(printable(t.folder))}</td>'
        f'<td class="path">{escape(printable(t.words))}</td></tr>'
        for t in troubles
    )
    return f"<h2>Unfinished, failed and broken runs</h2><table><tbody>\n{rows}\n</tbody></table>"
