"""What our runs of a cell came to, tested again where there are weights, and the verdict."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fwrnn.comparison.rows import commits_of
from fwrnn.intervals import Interval, interval, wilson
from fwrnn.reproduction import targets
from fwrnn.reproduction.targets import Cell

BETTER, EQUAL, WORSE = "better", "equal within noise", "worse"


@dataclass(frozen=True)
class Run:
    """One training: its folder, its seed, what it recorded, and what a test says today.

    ``tested`` is what ``evaluated`` returned of it, None where that has not been asked.
    """

    folder: Path
    seed: int
    metrics: dict[str, Any]
    tested: dict[str, Any] | None = None

    @property
    def has_weights(self) -> bool:
        return (self.folder / "checkpoints" / "best.pt").is_file()

    def score(self, name: str) -> float:
        """The test's result today, else as recorded; errors in per cent."""
        found = self.metrics[f"test_{name}"] if self.tested is None else self.tested[name]
        return 100 * found if name == "error" else found

    @property
    def holds(self) -> bool:
        """Whether what was recorded is what the code computes today, but for rounding.

        Another processor or version of PyTorch may tip a few examples; a change of the code is one
        that Wilson's interval around the recorded number does not hold.
        """
        if self.tested is None or self.tested.get("reproduced", True):
            return True
        if "error" not in self.tested:
            low, high = self.metrics["test_reward_low"], self.metrics["test_reward_high"]
            return low <= self.tested["reward"] <= high
        low, high = wilson(self.metrics["test_error"], self.tested["examples"], 0, 1)
        return low <= self.tested["error"] <= high


class Extra(NamedTuple):
    """Something more that is told of a cell: its name in JSON, its value, and as a table has it."""

    name: str
    value: Any
    heading: str
    text: str


@dataclass(frozen=True)
class Result:
    """A cell and its runs, by seed, and what more is told of them."""

    cell: Cell
    runs: tuple[Run, ...]
    extras: tuple[Extra, ...] = ()

    @property
    def numbers(self) -> list[float]:
        return [run.score(self.cell.score) for run in self.runs]

    @property
    def measured(self) -> Interval | None:
        """The mean over seeds ± its 95 % interval."""
        return interval(self.numbers) if self.runs else None

    @property
    def best(self) -> float | None:
        choose = min if self.cell.score == "error" else max
        return choose(self.numbers, default=None)

    @property
    def missing(self) -> list[int]:
        """Seeds that belong to the cell and are not there."""
        there = {run.seed for run in self.runs}
        return [seed for seed in range(self.cell.seeds) if seed not in there]

    @property
    def verdict(self) -> str | None:
        """How ours is beside the paper's, as far as the seeds tell; None where there are no two."""
        if self.cell.paper is None or self.measured is None:
            return None
        mean, half = self.measured
        half = self._half_of_one() if half is None else half
        margin = max(half, self.cell.slack)
        ahead = self.cell.paper - mean if self.cell.score == "error" else mean - self.cell.paper
        if abs(ahead) <= margin:
            return EQUAL
        return BETTER if ahead > 0 else WORSE

    def _half_of_one(self) -> float:
        """How far the test of a single run can be trusted."""
        metrics = self.runs[0].metrics
        if self.cell.score == "error":
            low, high = wilson(metrics["test_error"], metrics["test_examples"], 0, 1)
            return 50 * (high - low)
        return (metrics["test_reward_high"] - metrics["test_reward_low"]) / 2


def result_of(
    cell: Cell, own: Path, shipped: bool = True, wanted: Callable[[Path], bool] = lambda _: True
) -> Result:
    """The runs that have ended: of each seed the one below ``own`` if ``wanted``, or what ships."""
    found: dict[int, Run] = {}
    for root in ([targets.kept_folder()] if shipped else []) + [own]:
        for path in (root / cell.folder).glob("seed*/metrics.json"):
            try:
                metrics = json.loads(path.read_text(encoding="utf-8"))
                run = Run(path.parent, metrics["seed"], metrics)
                run.score(cell.score)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # unfinished or broken: missing
            aside = path.parent.name != f"seed{run.seed}"
            if not aside and (root != own or wanted(run.folder)):
                found[run.seed] = run
    return Result(cell, tuple(found[seed] for seed in sorted(found)))


def tested(run: Run, data_dir: str | None, device: str | None) -> Run:
    """The run, its weights tested again if they are there.

    Raises:
        UserError: its data are missing, or it is broken.
    """
    from fwrnn.learning.retest import evaluated

    if not run.has_weights:
        return run
    result, _ = evaluated(str(run.folder), device=device, data_dir=data_dir)
    return replace(run, tested=result)


def as_object(target: str, result: Result, stand_in: bool) -> dict[str, Any]:
    """A cell for machines; errors in per cent."""
    cell, runs = result.cell, result.runs
    mean, half = result.measured or (None, None)
    tested_again = [run for run in runs if run.tested is not None]
    found = {
        "target": target,
        "model": cell.model,
        "column": cell.column,
        "paper": cell.paper,
        "mean": mean,
        "ci95": half,
        "best": result.best,
        "seeds": [run.seed for run in runs],
        "each": result.numbers,
        "missing": result.missing,
        "updates": [run.metrics.get("updates") for run in runs],
        "commits": commits_of(run.metrics for run in runs),
        "tested_again": [run.seed for run in tested_again],
        "as_recorded": all(run.holds for run in tested_again) if tested_again else None,
        "verdict": None if stand_in else result.verdict,
    }
    return found | {extra.name: extra.value for extra in result.extras}
