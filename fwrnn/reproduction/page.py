"""RESULTS.md: a page whose tables are made here, and whose words are not.

A line ``<!-- fwrnn reproduce TARGET --markdown -->`` stands before each table.
"""

import re
from collections.abc import Callable, Collection

from fwrnn.reproduction.extras import with_extras
from fwrnn.reproduction.results import Result, result_of
from fwrnn.reproduction.targets import TARGETS, kept_folder
from fwrnn.reproduction.words import markdown

TABLE = re.compile(r"(<!-- fwrnn reproduce (\w+) --markdown -->\n\n)(?:\|.*\n)*")


def recorded(name: str) -> list[Result]:
    """A target's results from the runs that ship, as they recorded them."""
    results = (result_of(cell, kept_folder(), shipped=False) for cell in TARGETS[name].cells)
    return [with_extras(name, result, None) for result in results]


def table(name: str) -> str:
    """Their table, with a line's end."""
    return markdown(TARGETS[name], recorded(name)) + "\n"


def updated(page: str, but_for: Collection[str] = (), made: Callable[[str], str] = table) -> str:
    """The page with its tables made anew, but for those of some targets."""
    return TABLE.sub(
        lambda found: found[0] if found[2] in but_for else found[1] + made(found[2]), page
    )
