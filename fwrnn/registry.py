"""What can be chosen by name: what ships here, and what other installed packages bring.

A package brings a class by an entry point, and the YAML that goes with it in a folder ``conf``
inside of its top-level package::

    [project.entry-points."fwrnn.tasks"]
    copying = "my_package.copying:Copying"
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fwrnn.errors import UserError

GROUPS = ("fwrnn.tasks", "fwrnn.cores", "fwrnn.trainers", "fwrnn.kinds", "fwrnn.controls")


class Registry(Mapping[str, Any]):
    """Names and what they stand for, which is imported when it is first asked for.

    Args:
        group: of entry points, by which other packages add to it.
        shipped: what ships here, by name, as "module:attribute". No package can replace it.
    """

    def __init__(self, group: str, shipped: dict[str, str]):
        self.group = group
        self._shipped = {name: EntryPoint(name, where, group) for name, where in shipped.items()}

    def __getitem__(self, name: str) -> Any:
        entry = self._entries()[name]
        if name in self._shipped:
            return entry.load()
        try:
            return entry.load()
        except Exception as error:
            raise UserError(
                f"'{name}' of the package {entry.module.partition('.')[0]} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def _entries(self) -> dict[str, EntryPoint]:
        return {**_brought(self.group), **self._shipped}


@cache
def _brought(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


@cache
def brought_configurations() -> tuple[Path, ...]:
    """The folders of YAML that other packages bring, none of which is imported for it."""
    packages = {entry.module.partition(".")[0] for g in GROUPS for entry in _brought(g).values()}
    specs = (find_spec(package) for package in sorted(packages))
    places = (place for spec in specs if spec for place in spec.submodule_search_locations or ())
    return tuple(conf for place in places if (conf := Path(place) / "conf").is_dir())
