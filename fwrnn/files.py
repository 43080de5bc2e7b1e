"""Writing files so that none is ever half-written."""

import os
from contextlib import suppress
from pathlib import Path

from fwrnn.errors import RunFailed


def write_whole(path: Path, content) -> None:
    """Write beside the file, then replace it: a kill or a full disk leaves the old one.

    Raises:
        RunFailed: it could not be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise RunFailed(
            f"could not write {path}: {error.strerror}; what was there before is intact"
        ) from error
