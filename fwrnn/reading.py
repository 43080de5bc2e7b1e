"""Files that anybody may have written: read up to a size, and parsed without being believed."""

import csv
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from fwrnn.errors import UserError

LARGEST = 2**18
"""Bytes of a configuration or of metrics; those of a run have 2,000."""
LARGEST_CURVE = 2**25
LARGEST_SWEEP = 2**23
DEEPEST, LONGEST = 20, 2000


_Fastest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first by ten times


class Loader(_Fastest):
    """Reads 1e-3 as a number, as OmegaConf does."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file; of a pipe or a device nothing is read.

    Raises:
        OSError: it cannot be read.
        UserError: it is no file, or holds more than ``most`` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # of a folder, os.fdopen says something else
        os.close(descriptor)
        raise UserError("it is not a file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"it is larger than {most // 1024:,} KiB")
    return content


def read_yaml(path: Path) -> dict:
    """A configuration as plain containers; ``${…}`` stays the text that it is.

    Raises:
        OSError: it cannot be read.
        UserError: it is too large, too deep, no YAML, or holds no keys.
    """
    content = read_bytes(path, LARGEST)
    try:
        _check_shape(content)
        values = yaml.load(content, Loader)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"it is not YAML: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError("it holds no keys")
    return values


def _check_shape(content: bytes) -> None:
    """Refuse what would overflow the stack of the parser, or grow without end when it is walked."""
    depth = 0
    for event in yaml.parse(content, Loader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError("it uses YAML's aliases, which no run's does")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST:
            raise ValueError(f"a value of more than {LONGEST:,} characters")  # such as 0xFFF…
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise UserError("it is nested too deeply")


def read_json(path: Path, most: int = LARGEST) -> dict:
    """Metrics. Raises OSError or UserError as ``read_yaml`` does."""
    try:
        values = json.loads(read_bytes(path, most))
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is not JSON: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError("it holds no keys")
    return values


def read_curve(path: Path, name: str) -> tuple[list[tuple[float, float]], int]:
    """The points (updates, ``name``) of a curve.csv, and how many lines were broken.

    Raises:
        OSError: it cannot be read.
        UserError: it is too large, or has no such columns.
    """
    text = read_bytes(path, LARGEST_CURVE).decode("utf-8", "replace").replace("\0", "\ufffd")
    lines = csv.reader(text.splitlines())
    points, broken = [], 0
    try:
        header = next(lines, [])
        if "updates" not in header or name not in header:
            raise UserError(f"it has no columns updates and {name}")
        places = header.index("updates"), header.index(name)
        for line in lines:
            point = _numbers(line, places) if len(line) == len(header) else None
            broken += point is None
            points += [] if point is None else [point]
    except csv.Error as error:
        raise UserError(f"it is not CSV: {error}") from None
    return points, broken


def _numbers(line: list[str], places: tuple[int, int]) -> tuple[float, float] | None:
    try:
        x, y = (float(line[place]) for place in places)
    except ValueError:
        return None
    return (x, y) if is_number(x) and is_number(y) else None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it can be counted with: no NaN, no infinity, nothing beyond a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -1e300 < value < 1e300


def _first_line(error: Exception) -> str:
    """What is wrong, in one line, with the place where it is known."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"{getattr(error, 'problem', None)} in line {mark.line + 1}"
    return str(error).partition("\n")[0][:200]
