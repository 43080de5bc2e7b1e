"""Runs at any depth below some folders: the finished ones, and what is wrong with the others."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fwrnn.config import GROUPS, Config, keys_of, migrated
from fwrnn.errors import UserError
from fwrnn.learning.claim import holder
from fwrnn.reading import LARGEST_SWEEP, is_number, read_curve, read_json, read_yaml

LARGEST_CHECKPOINT = 2**30
MOST_SETTINGS = 500
DEEPEST_JOB = 3  # folders below its sweep's
OWN_FOLDERS = {"checkpoints", "pictures", "__pycache__"}
BETTER_IF_MORE = {"reward", "accuracy", "return", "score", "won"}


class Score(NamedTuple):
    """What runs are compared by: recorded as test_``name`` and val_``name``."""

    name: str
    lower_is_better: bool


@dataclass(frozen=True)
class Run:
    """A finished run: its settings as one level of dotted keys, and its flat metrics."""

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, Any]
    score: Score

    @property
    def seed(self) -> Any:
        return self.settings.get("seed", _plain(self.metrics.get("seed")))


@dataclass(frozen=True)
class Trouble:
    """A folder that gives no row, and ``words`` about why.

    ``state`` is running while a process works on it, else interrupted or failed where its sweep
    says so, else unfinished; waiting is a sweep with jobs that have not begun; broken is the rest.
    """

    folder: Path
    state: str
    words: str


def find(folders: Iterable[str | Path]) -> Iterator[Run | Trouble]:
    """What is found below the folders, each run once, in the order of their names."""
    seen: set[tuple[int, int]] = set()
    for folder in folders:
        for path, names in _walk(Path(folder), seen):
            if isinstance(names, OSError):
                words = f"the folder cannot be read: {names.strerror}"
                yield Trouble(path, "broken", words)
                continue
            if names & {"config.yaml", "metrics.json"}:
                yield _read(path, names)
            if "sweep.json" in names:
                yield from _without_folders(path)


def _walk(top: Path, seen: set) -> Iterator[tuple[Path, set[str] | OSError]]:
    """Folders and the names in them, or why there are none; links are followed, loops are not."""
    waiting = [top]
    while waiting:
        path = waiting.pop()
        try:
            about = path.stat()
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(path) as entries:
                inside = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            yield path, error
            continue
        yield path, {entry.name for entry in inside}
        waiting += [path / entry.name for entry in inside if _may_hold_runs(entry)]


def _may_hold_runs(entry: os.DirEntry) -> bool:
    try:
        is_folder = entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
    return is_folder and entry.name not in OWN_FOLDERS and not entry.name.startswith(".")


def _read(folder: Path, names: set[str]) -> Run | Trouble:
    """The run in a folder that holds the files ``names``."""
    reading = "config.yaml"
    try:
        settings = settings_of(read_yaml(folder / reading))
        if "metrics.json" not in names:
            return _without_metrics(folder, settings)
        reading = "metrics.json"
        metrics = read_json(folder / reading)
    except FileNotFoundError:
        return Trouble(folder, "broken", f"there is no {reading}")
    except OSError as error:
        return Trouble(folder, "broken", f"{reading} cannot be read: {error.strerror}")
    except UserError as error:
        return Trouble(folder, "broken", f"{reading}: {error}")
    score = score_of(metrics)
    if score is None:
        return Trouble(folder, "broken", "metrics.json: no test_error, test_reward or the like")
    for name in (f"test_{score.name}", f"val_{score.name}"):
        if not is_number(metrics.get(name)):
            value = json.dumps(metrics.get(name))[:80]
            return Trouble(folder, "failed", f"{name} is {value}")
    return Run(folder, settings, metrics, score)


def settings_of(values: dict) -> dict[str, Any]:
    """A saved configuration as dotted keys, with what earlier versions spelled otherwise or did
    without; numbers that are equal are the same number, 1.0 and 1.

    Raises:
        UserError: it is not one of this program.
    """
    for group in ("task", "model"):
        chosen = values.get(group)
        if not isinstance(chosen, dict) or not isinstance(chosen.get("name"), str):
            raise UserError(f"it is not of fwrnn: it has no {group}.name")
    values = migrated(values)
    settings = {"control": keys_of(Config)["control"].default}
    for group, (key, schemas) in GROUPS.items():
        settings |= _defaults(group, schemas, values.get(group), key)
    settings |= _flat(values)
    if len(settings) > MOST_SETTINGS:
        raise UserError(f"it has more than {MOST_SETTINGS} settings")
    return settings


def _defaults(group: str, schemas, values: Any, key: str) -> dict[str, Any]:
    """The settings that came later than others, as runs from before had them."""
    name = values.get(key) if isinstance(values, dict) else None
    try:
        schema = schemas[name] if isinstance(name, str) and name in schemas else None
    except UserError:  # of an installed package that cannot be imported
        schema = None
    known = keys_of(schema).items() if schema else ()
    later = {name: f.default for name, f in known if f.default is not MISSING}
    return {f"{group}.{name}": _plain(value) for name, value in later.items()}


def _flat(values: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    """A value that JSON has and that equals only its own kind; lists and the like as text."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return json.dumps(value, default=str, ensure_ascii=False, skipkeys=True)
    return str(value)


def score_of(metrics: dict) -> Score | None:
    """What a run is compared by: its error or its reward, else what was both validated and
    tested."""
    tested = [name.removeprefix("test_") for name in metrics if name.startswith("test_")]
    paired = [name for name in tested if f"val_{name}" in metrics and name != "games"]
    for name in ("error", "reward", *paired):
        if name in paired:
            return Score(name, name not in BETTER_IF_MORE)
    return None


def _without_metrics(folder: Path, settings: dict) -> Trouble:
    """A run that has not come to its end; who works on it, or what the record of its sweep has."""
    words, worker = _progress(folder, settings), holder(folder)
    if worker is not None:
        return Trouble(folder, "running", f"{words}, by {worker}")
    for sweep in folder.parents[:DEEPEST_JOB]:
        for job in _jobs(sweep):
            if folder in places(sweep, job):
                if job.get("state") == "failed":
                    return Trouble(folder, "failed", f"{_cause(job)} ({words})")
                if job.get("state") == "interrupted":
                    return Trouble(folder, "interrupted", words)
    return Trouble(folder, "unfinished", words)


def _without_folders(sweep: Path) -> Iterator[Trouble]:
    """The jobs of a sweep that left no run: those that wait, and those that failed before."""
    jobs = _jobs(sweep)
    for job in jobs:
        if job.get("state") != "failed" or not (below := places(sweep, job)):
            continue
        # A Path raises an error for a name that is too long.
        if not any(os.path.isfile(place / "config.yaml") for place in below):  # noqa: PTH113
            yield Trouble(below[0], "failed", _cause(job))
    waiting = sum(job.get("state") == "waiting" for job in jobs)
    if waiting:
        jobs_have = "1 job has" if waiting == 1 else f"{waiting:,} jobs have"
        yield Trouble(sweep, "waiting", f"{jobs_have} not begun")


def places(sweep: Path, job: dict) -> list[Path]:
    """Where a job's folder may lie, which is noted as whoever worked on it saw it, maybe from
    elsewhere: SWEEP/RUN, or deeper, as SWEEP/LABEL/SEED."""
    noted = job.get("folder")
    parts = Path(noted).parts if isinstance(noted, str) else ()
    return [sweep.joinpath(*parts[-depth:]) for depth in range(1, DEEPEST_JOB + 1) if parts]


def _cause(job: dict) -> str:
    """Why it failed, in a sentence."""
    return str(job.get("cause")).partition(". ")[0][:200]


@lru_cache(maxsize=8)
def _jobs(sweep: Path) -> list[dict]:
    """The jobs that a sweep's record has; none where there is no such record."""
    try:
        jobs = read_json(sweep / "sweep.json", LARGEST_SWEEP).get("jobs")
    except (OSError, UserError):
        return []
    found = jobs.values() if isinstance(jobs, dict) else ()
    return [job for job in found if isinstance(job, dict)]


def _progress(folder: Path, settings: dict) -> str:
    """How far an unfinished run has come."""
    most = settings.get("trainer.max_updates")
    of = f" of {most:,}" if is_number(most) and most < 1e12 else ""
    try:
        return f"at update {_saved_update(folder):,}{of}"
    except UserError as error:
        saved = str(error)
    try:
        points, _ = read_curve(folder / "curve.csv", "updates")
    except (OSError, UserError):
        points = []
    return f"past update {points[-1][0]:,.0f}{of}; {saved}" if points else saved


def _saved_update(folder: Path) -> int:
    """The update that a run would go on from. Raises UserError where it could not."""
    last = folder / "checkpoints" / "last.pt"
    try:
        if not last.is_file() and last.with_name("last-1.pt").is_file():
            last = last.with_name("last-1.pt")
        size = last.stat().st_size if last.is_file() else None
    except OSError as error:
        raise UserError(f"last.pt cannot be read: {error.strerror}") from None
    if size is None:
        raise UserError("there is no last.pt to go on from")
    if size > LARGEST_CHECKPOINT:
        raise UserError(f"last.pt is larger than {LARGEST_CHECKPOINT >> 20:,} MiB")
    from fwrnn.learning.run_folder import RunFolder  # with PyTorch, longer than all else here

    try:
        update = RunFolder(folder).read_checkpoint(last)["update"]
        return int(update)
    except (KeyError, TypeError, ValueError, UserError):
        raise UserError("last.pt is broken, or of another program") from None
