"""Make the tables of RESULTS.md anew from the runs kept in outputs/paper, and its figures.

python scripts/update_results.py [TARGET …]     # default: all of them, some minutes
"""

import sys
from pathlib import Path

from fwrnn.reproduction.drawing import draw
from fwrnn.reproduction.page import recorded, updated
from fwrnn.reproduction.targets import TARGETS, kept_folder

PAGE = Path(__file__).parents[1] / "RESULTS.md"


def main(names: list[str]) -> None:
    if unknown := set(names) - TARGETS.keys():
        sys.exit(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    wanted = names or list(TARGETS)
    others = TARGETS.keys() - set(wanted)
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), others), encoding="utf-8")
    for name in ("figure2", "figure5", "lengths", "controls"):
        if name in wanted:
            draw(TARGETS[name], recorded(name), kept_folder() / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
