"""From runs to rows: what differs among them, seeds gathered, the best first."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fwrnn.comparison.found import Run, Score
from fwrnn.errors import UserError, suggestion
from fwrnn.intervals import Interval, interval
from fwrnn.reading import is_number

NOT_COMPARED = {
    "seed", "device", "threads", "resume", "experiment", "trial", "task.cache_dir",
}  # fmt: skip
"""Keys that say which of several equal runs it is, and where it was computed."""
FIRST = ("task.name", "model.name", "control", "model.hidden_size")
ABSENT = "–"
"""What a run has that does not know a setting at all."""


@dataclass(frozen=True)
class Row:
    """Runs with the same settings, which differ in their seeds.

    ``settings`` are those that differ among all rows; a run without one has ``ABSENT``.
    """

    settings: dict[str, Any]
    runs: list[Run]

    @property
    def score(self) -> Score:
        return self.runs[0].score

    @property
    def seeds(self) -> list:
        return list(dict.fromkeys(run.seed for run in self.runs))

    @property
    def commits(self) -> list[str]:
        """Of the code that trained them."""
        return commits_of(run.metrics for run in self.runs)

    def numbers(self, name: str) -> list[float]:
        """A metric of the runs that have it."""
        return [run.metrics[name] for run in self.runs if is_number(run.metrics.get(name))]

    def measured(self, name: str) -> Interval | None:
        """A metric over seeds; a seed that was run twice counts once, with its mean."""
        by_seed: dict[Any, list[float]] = {}
        for run in self.runs:
            if is_number(run.metrics.get(name)):
                by_seed.setdefault(run.seed, []).append(run.metrics[name])
        return interval([fmean(numbers) for numbers in by_seed.values()]) if by_seed else None


def commits_of(recorded: Iterable[Mapping[str, Any]]) -> list[str]:
    """What runs recorded, each once, shortened as git does; "+" says that code was changed."""
    found = (str(metrics.get("commit") or "").split() for metrics in recorded)
    return list(dict.fromkeys(short(commit) for commits in found for commit in commits))


def short(commit: str) -> str:
    return f"{commit[:7]}{'+' * (len(commit) > 7 and commit.endswith('+'))}"


@dataclass(frozen=True)
class Comparison:
    """Rows; the settings that differ, by their keys, as they are called; and those in common."""

    rows: list[Row]
    names: dict[str, str]
    common: dict[str, Any]

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    @property
    def scores(self) -> list[str]:
        """The names of the scores, of which there are several where tasks are."""
        return list(dict.fromkeys(row.score.name for row in self.rows))


def compare(runs: Sequence[Run]) -> Comparison:
    """Gather runs into rows, the best first."""
    values = _values_by_key(runs)
    differing = _order(key for key, found in values.items() if len(found) > 1)
    differing = [key for key in differing if not _repeats(key, differing, runs)]
    rows: dict[tuple, list[Run]] = {}
    for run in runs:
        cell = [_value(run, key) for key in differing]
        rows.setdefault((*map(_exact, cell), run.score), []).append(run)
    gathered = [
        Row({key: _value(found[0], key) for key in differing}, _by_seed(found))
        for found in rows.values()
    ]
    names = short_names(values)
    common = [key for key in FIRST if len(values.get(key, ())) == 1 and key != "control"]
    gathered.sort(key=lambda row: [_rank(value) for value in row.settings.values()])
    return Comparison(
        sorted(gathered, key=_goodness),
        {key: names[key] for key in differing},
        {names[key]: next(iter(values[key].values())) for key in common},
    )


def _values_by_key(runs: Iterable[Run]) -> dict[str, dict]:
    """Per key that is compared, its different values."""
    values: dict[str, dict] = {}
    for run in runs:
        for key in run.settings:
            value = _value(run, key)
            if key not in NOT_COMPARED and value != ABSENT:
                values.setdefault(key, {})[_exact(value)] = value
    return values


def _value(run: Run, key: str) -> Any:
    """What a run is compared by; where the data lie only if they are the user's own."""
    if key == "task.data_dir" and run.settings.get("task.layout") != "folders":
        return ABSENT
    return run.settings.get(key, ABSENT)


def _exact(value: Any) -> tuple:
    """Tells true from 1, which are equal to Python."""
    return type(value).__name__ if isinstance(value, bool) else "", value


def _order(keys: Iterable[str]) -> list[str]:
    """What a network is first, then as in the configuration."""
    return sorted(keys, key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST))


def _repeats(key: str, differing: list[str], runs: Sequence[Run]) -> bool:
    """Whether a ``core`` only says again what the ``name`` beside it says."""
    group, _, last = key.rpartition(".")
    return (
        last == "core"
        and f"{group}.name" in differing
        and len({(run.settings.get(f"{group}.name"), run.settings.get(key)) for run in runs})
        == len({run.settings.get(f"{group}.name") for run in runs})
    )


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Keys as on the command line, task for task.name, without the group where one key alone ends
    so."""
    whole = {key: key.removesuffix(".name") for key in keys}
    ends = Counter(name.rpartition(".")[2] for name in whole.values())
    return {
        key: last if ends[last := name.rpartition(".")[2]] == 1 else name
        for key, name in whole.items()
    }


def _by_seed(runs: list[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: _rank(run.seed))


def _rank(value: Any) -> tuple:
    """Orders whatever a setting can be: numbers, then texts, then what is absent."""
    return value == ABSENT, not is_number(value), value if is_number(value) else str(value)


def _goodness(row: Row) -> tuple:
    """Smaller for better rows; of equal ones the better validated; scores of one name together."""
    name, lower_is_better = row.score
    found = [row.measured(f"{split}_{name}") for split in ("test", "val")]
    means = [each.mean if each else 0.0 for each in found]
    return name, *(means if lower_is_better else [-mean for mean in means])


def by_task(runs: Sequence[Run]) -> list[Comparison]:
    """A comparison per task: scores of different ones do not compare."""
    tasks: dict[str, list[Run]] = {}
    for run in runs:
        tasks.setdefault(run.settings["task.name"], []).append(run)
    return [compare(found) for found in tasks.values()]


def sort_by(comparisons: Sequence[Comparison], key: str) -> list[Comparison]:
    """Rows by a setting or a metric instead, its smallest value first; a score's best first.

    Raises:
        UserError: nowhere does a setting of this name differ, or is a metric called so.
    """
    options = [name for each in comparisons for name in (*each.names.values(), *_metrics(each))]
    if not any(key in (*each.names, *each.names.values(), *_metrics(each)) for each in comparisons):
        raise UserError(
            f"--sort knows no '{key}'{suggestion(key, options)} It takes a setting that differs "
            "among these runs, or a metric that they record: "
            f"{', '.join(dict.fromkeys(options))}"
        )
    return [
        Comparison(sorted(each.rows, key=_place_by(each, key)), each.names, each.common)
        for each in comparisons
    ]


def _metrics(comparison: Comparison) -> list[str]:
    """The numbers that its runs recorded."""
    metrics = (run.metrics.items() for run in comparison.runs)
    return list(dict.fromkeys(n for each in metrics for n, v in each if is_number(v)))


def _place_by(comparison: Comparison, key: str) -> Callable[[Row], tuple]:
    """What rows are sorted by, nothing where the key is unknown; those without a value are last."""
    whole = {name: key for key, name in comparison.names.items()}.get(key, key)

    def by_setting(row: Row) -> tuple:
        return _rank(row.settings[whole])

    def by_metric(row: Row) -> tuple:
        found = row.measured(key)
        is_score = key.partition("_")[2] == row.score.name
        sign = -1 if is_score and not row.score.lower_is_better else 1
        return found is None, sign * found.mean if found else 0.0

    return by_setting if whole in comparison.names else by_metric
