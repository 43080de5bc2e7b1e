"""RESULTS.md: a page whose tables are made here, and whose words are not.

A line ``<!-- fwrnn reproduce TARGET --markdown -->`` stands before each table.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path

from fwrnn.reproduction.extras import with_extras
from fwrnn.reproduction.results import result_of
from fwrnn.reproduction.targets import TARGETS
from fwrnn.reproduction.words import markdown

TABLE = re.compile(r"(<!-- fwrnn reproduce (\w+) --markdown -->\n\n)(?:\|.*\n)*")


def table(name: str) -> str:
    """A target's table from the runs that ship, as they recorded it, with a line's end."""
    target = TARGETS[name]
    results = [result_of(cell, Path("outputs/none")) for cell in target.cells]
    return markdown(target, [with_extras(name, result, None) for result in results]) + "\n"


def updated(page: str, but_for: Collection[str] = (), made: Callable[[str], str] = table) -> str:
    """The page with its tables made anew, but for those of some targets."""
    return TABLE.sub(
        lambda found: found[0] if found[2] in but_for else found[1] + made(found[2]), page
    )
