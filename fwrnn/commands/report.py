"""``fwrnn report FOLDER…``: what came of many runs, side by side.

``--json`` prints a list of rows, the best first. Each is an object of

    settings        those that differ among the rows, by their keys in the configuration
    score           error, reward or the like: what follows as test_… and val_…
    seeds           of the runs, each once
    test_…, val_…   an object: mean over seeds, and half of its 95 % interval (null of one seed);
                    errors are fractions
    updates_per_second   likewise
    commits         of the code that trained
    runs            objects: folder, seed, test_…, val_…, updates, updates_per_second
"""

import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from fwrnn.commands.arguments import Parser
from fwrnn.comparison import table
from fwrnn.comparison.found import Run, Trouble, find
from fwrnn.comparison.rows import Comparison, by_task, compare, sort_by
from fwrnn.errors import UserError
from fwrnn.files import write_whole

DESCRIPTION = """\
Finds the runs at any depth below the folders and puts them side by side: a row per setting that
differs, over seeds the mean ± its 95 % interval, the best first. Runs that are still running,
unfinished, interrupted, failed or broken, and jobs that wait, are listed below."""


def parser() -> Parser:
    parser = Parser("fwrnn report", description=DESCRIPTION)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="such as outputs/sweeps/SWEEP")
    parser.add_argument(
        "--sort", metavar="KEY", help="a setting or a metric; default: the score, best first"
    )
    form = parser.add_mutually_exclusive_group()
    for name, words in (
        ("csv", "for spreadsheets"),
        ("markdown", "for a README"),
        ("json", "for machines: a list of rows, each with its runs"),
    ):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=words)
    parser.add_argument("--png", metavar="FILE", help="curves and final scores as a picture")
    parser.add_argument("--html", metavar="FILE", help="all of it as one page, to open offline")
    return parser


def main(argv: list[str]) -> int:
    """Find, compare, draw, print, write."""
    options = parser().parse_args(argv)
    check(options)
    runs, troubles = collect(options.folders)
    for_machines = options.form in ("csv", "json")
    drawn = by_task(runs)
    tables = [compare(runs)] if for_machines else drawn
    if options.sort and runs:
        tables = sort_by(tables, options.sort)
        with suppress(UserError):  # among the runs of one task it may not differ
            drawn = sort_by(drawn, options.sort)
    files = {}
    if options.png or options.html:
        files, broken = pictures(drawn, troubles, options)
        troubles += broken
    print(shown(tables, troubles, options.form), flush=True)
    if for_machines:
        for line in table.trouble_lines(troubles):
            print(line, file=sys.stderr)
    for file, content in files.items():
        write_whole(Path(file), content)
        print(f"in {file}", file=sys.stderr if for_machines else sys.stdout)
    return 0


def check(options) -> None:
    """Raises UserError for a folder that is not there, or a file that could not be written."""
    for folder in options.folders:
        if not Path(folder).is_dir():
            what = "is a file" if Path(folder).exists() else "is not there"
            raise UserError(f"'{folder}' {what}; give folders with runs, such as outputs/sweeps")
    for option in ("png", "html"):
        file = getattr(options, option)
        if file is not None and (not file or Path(file).is_dir()):
            raise UserError(f"--{option} needs the name of a file to write, got '{file}'")


def collect(folders: Sequence[str]) -> tuple[list[Run], list[Trouble]]:
    """The finished runs below the folders, and what the others have come to.

    Raises:
        UserError: there is neither.
    """
    bar = tqdm(find(folders), desc="reading", unit=" runs", disable=None, leave=False)
    found = list(bar)
    if not found:
        raise UserError(
            f"no run below {', '.join(map(str, folders))}; a run is a folder with config.yaml and "
            "metrics.json, as fwrnn train writes"
        )
    runs = [each for each in found if isinstance(each, Run)]
    return runs, [each for each in found if isinstance(each, Trouble)]


def shown(tables: list[Comparison], troubles: list[Trouble], form: str | None) -> str:
    """What goes to standard output; of forms for machines the only table."""
    if form == "csv":
        return table.as_csv(tables[0])
    if form == "json":
        return table.as_json(tables[0])
    if form == "markdown":
        return table.markdown(tables, troubles)
    return table.terminal(tables, troubles, shutil.get_terminal_size().columns)


def pictures(
    drawn: list[Comparison], troubles: list[Trouble], options
) -> tuple[dict[str, bytes], list[Trouble]]:
    """The contents of the files that were asked for, and what was wrong with curves."""
    from fwrnn.comparison import chart, page

    runs = [run for comparison in drawn for run in comparison.runs]
    bar = tqdm(runs, desc="curves", unit=" runs", disable=None, leave=False)
    curves, broken = chart.read_curves(bar)
    files = {}
    if options.png:
        files[options.png] = chart.png(drawn, curves)
    if options.html:
        picture = chart.svg(drawn, curves) if drawn else ""
        title = f"fwrnn report {shlex.join(options.folders)}"
        text = page.page(drawn, [*troubles, *broken], picture, title)
        files[options.html] = text.encode("utf-8", "replace")
    return files, broken
