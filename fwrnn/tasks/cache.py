"""Where files that can be made or downloaded again are kept."""

import os
from pathlib import Path

from fwrnn.errors import UserError


def cache_dir(name: str) -> Path:
    """The folder NAME of the user's cache: $XDG_CACHE_HOME/fwrnn/NAME, else ~/.cache/fwrnn/NAME.

    It need not exist.

    Raises:
        UserError: the user has no home folder, as in some containers.
    """
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "fwrnn" / name
    try:
        return Path.home() / ".cache" / "fwrnn" / name
    except RuntimeError:
        raise UserError(
            "there is no home folder to keep files in; set XDG_CACHE_HOME to a folder"
        ) from None
