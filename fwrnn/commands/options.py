"""The YAML files that configurations are composed from: where they are, and what can be chosen."""

from pathlib import Path

from fwrnn.config import GROUPS
from fwrnn.registry import brought_configurations

INTERNALS = {"name", "core"}
"""Keys that choosing an option sets."""


def conf_dir() -> Path:
    """The folder of the shipped configurations: inside an installed package, else beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def conf_dirs() -> tuple[Path, ...]:
    """That one, and those that other packages bring."""
    return conf_dir(), *brought_configurations()


def group_options() -> dict[str, list[str]]:
    """What can be chosen of each group, brought by other packages too."""
    found = {}
    for group in (*GROUPS, "control", "experiment"):
        folders = (folder / group for folder in conf_dirs())
        found[group] = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    return found
