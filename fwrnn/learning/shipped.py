"""Trained networks that ship with the package, by name.

``fwrnn/weights/NAME`` is a run's folder without what only training needs: its ``config.yaml``,
``metrics.json``, and its best weights. To add one: ``python scripts/ship_weights.py RUN NAME``.
"""

from pathlib import Path

from fwrnn.errors import UserError, suggestion

MOST_NAMED = 6
FOLDER = Path(__file__).resolve().parents[1] / "weights"


def shipped() -> list[str]:
    """The names of the networks that ship."""
    return sorted(config.parent.name for config in FOLDER.glob("*/config.yaml"))


def place_of(run: str | Path) -> Path:
    """The folder of a run, or of the shipped network of that name where there is no such folder.

    Raises:
        UserError: there is neither, or it is a folder of runs: then it names them.
    """
    if (folder := Path(run)).is_dir():
        below = sorted(config.parent for config in folder.glob("**/config.yaml"))
        if below and folder not in below:
            named = ", ".join(map(str, below[:MOST_NAMED])) + ", …" * (len(below) > MOST_NAMED)
            raise UserError(f"'{run}' is no run but holds {len(below)}; give one of {named}")
        return folder
    known = shipped()
    if str(run) not in known:
        raise UserError(
            f"there is no run at '{run}'{suggestion(str(run), known)} Give a folder that fwrnn "
            f"train wrote, or a network that ships: {', '.join(known)}"
        )
    return FOLDER / str(run)
