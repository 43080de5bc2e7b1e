"""How values look, whoever shows them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from fwrnn.comparison.rows import ABSENT, Comparison, Row
from fwrnn.errors import printable
from fwrnn.intervals import Interval

LONGEST = 40


class Column(NamedTuple):
    """What a column is called, its cells, and the numbers or texts to sort them by.

    ``spare`` is how readily it is left out where there is no room; 0 is never.
    """

    name: str
    cells: list[str]
    values: list[Any]
    spare: int = 0

    @property
    def is_text(self) -> bool:
        return any(isinstance(value, str) and value != ABSENT for value in self.values)


def columns(comparison: Comparison) -> list[Column]:
    """The table: the settings that differ, then what came of them."""
    rows = comparison.rows
    table = []
    for key, name in comparison.names.items():
        values = [row.settings[key] for row in rows]
        table.append(Column(text(name), setting_cells(values), values))
    seeds = [len(row.seeds) for row in rows]
    table.append(Column("seeds", [_seeds_cell(row) for row in rows], seeds))
    for name in comparison.scores:
        for split, spare in (("test", 0), ("val", 1)):
            table.append(_score_column(rows, split, name, spare))
    updates = [row.numbers("updates") for row in rows]
    means = [row.measured("updates") for row in rows]
    table.append(Column("updates", [range_cell(found) for found in updates], _means(means), 3))
    rates = [row.measured("updates_per_second") for row in rows]
    cells = [ABSENT if rate is None else three_digits(rate.mean) for rate in rates]
    table.append(Column("updates/s", cells, _means(rates), 2))
    commits = [" ".join(map(text, row.commits)) or ABSENT for row in rows]
    table.append(Column("commit", commits, commits, 4))
    return table


def _score_column(rows: Sequence[Row], split: str, name: str, spare: int) -> Column:
    found = [row.measured(f"{split}_{name}") if row.score.name == name else None for row in rows]
    cells = [ABSENT if each is None else score_cell(each, name) for each in found]
    return Column(score_name(split, name), cells, _means(found), spare)


def score_name(split: str, name: str) -> str:
    return f"{split} {text(name)}{' %' * (name == 'error')}"


def score_cell(measured: Interval, name: str) -> str:
    """The mean ± the half of the interval: of errors in per cent, else as it was recorded."""
    shown = score_number(measured.mean, name)
    return shown if measured.half is None else f"{shown} ± {score_number(measured.half, name)}"


def score_number(value: float, name: str) -> str:
    """Two decimals of per cent, or three where two would show none."""
    shown, decimals = (100 * value, 2) if name == "error" else (value, 3)
    if abs(shown) >= 1e5:
        return f"{shown:.4g}"
    return f"{shown:.3f}" if 0 < shown < 0.01 else f"{shown:.{decimals}f}"


def setting_cells(values: Sequence[Any]) -> list[str]:
    """As on the command line, numbers in four digits where those tell them all apart."""
    numbers = {value for value in values if isinstance(value, float)}
    digits = next(
        (n for n in (4, 6, 9) if len({f"{x:.{n}g}" for x in numbers}) == len(numbers)), 17
    )
    return [f"{v:.{digits}g}" if isinstance(v, float) else setting_cell(v) for v in values]


def setting_cell(value: Any) -> str:
    return text(plain_word(value))


def plain_word(value: Any) -> Any:
    """null, true and false as the command line spells them; any other value as it is."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else value


def text(value: Any) -> str:
    """Whatever a file held, in one short line that steers no terminal."""
    line = printable(str(value)[: 2 * LONGEST])
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def three_digits(value: float) -> str:
    return whole(value) if value >= 100 else f"{value:.{1 if value >= 10 else 2}f}"


def whole(value: float) -> str:
    """A count, with commas as far as one can read it."""
    return f"{value:,.0f}" if abs(value) < 1e12 else f"{value:.3g}"


def _seeds_cell(row: Row) -> str:
    runs = f" ({len(row.runs)} runs)" if len(row.runs) > len(row.seeds) else ""
    return f"{len(row.seeds)}{runs}"


def range_cell(numbers: Sequence[float]) -> str:
    """A count, or the lowest and the highest of several that differ."""
    if not numbers:
        return ABSENT
    low, high = min(numbers), max(numbers)
    return whole(low) if low == high else f"{whole(low)}–{whole(high)}"


def _means(found: Iterable[Interval | None]) -> list[float | None]:
    return [None if each is None else each.mean for each in found]


def row_labels(comparison: Comparison) -> list[str]:
    """Rows in a few words: what is learned by what, then no more settings than tell them apart."""
    rows = comparison.rows
    names = [key for key in comparison.names if key in ("task.name", "model.name", "control")]
    chosen = [*names, *({"model.hidden_size"} & set(comparison.names))]
    others = set(comparison.names) - set(chosen)
    while _told_apart(rows, chosen) < len(rows):
        best = max(sorted(others), key=lambda key: _told_apart(rows, [*chosen, key]))
        chosen.append(best)
        others.remove(best)
    cells = {key: setting_cells([row.settings[key] for row in rows]) for key in chosen}
    bare = {*names, "model.hidden_size"} if names else set()
    return [
        " ".join(
            cells[key][k] if key in bare else f"{text(comparison.names[key])}={cells[key][k]}"
            for key in chosen
            if row.settings[key] != ABSENT and (key, row.settings[key]) != ("control", "none")
        )
        or "none"  # the network as it is, where nothing but the control differs
        for k, row in enumerate(rows)
    ]


def _told_apart(rows: Sequence[Row], keys: Sequence[str]) -> int:
    """How many different rows there are, to who looks at these settings alone."""
    return len({(row.score, *(repr(row.settings[key]) for key in keys)) for row in rows})


def heading(comparison: Comparison) -> str:
    """How much there is, and what all of it has in common."""
    rows, runs = len(comparison.rows), len(comparison.runs)
    common = " ".join(f"{text(k)}={setting_cell(v)}" for k, v in comparison.common.items())
    counts = f"{runs:,} run{'s' * (runs != 1)}, {rows:,} setting{'s' * (rows != 1)}"
    return f"{counts}{' of ' * bool(common)}{common}"


def note(comparisons: Iterable[Comparison]) -> str:
    """What ± means, where it is shown."""
    several = any(len(row.seeds) > 1 for each in comparisons for row in each.rows)
    return "Mean over seeds ± 95 % interval (Student's t)." if several else ""
