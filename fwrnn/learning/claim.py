"""One process to a run's folder, whoever else wants it."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fwrnn.errors import UserError


class Taken(UserError):
    """Somebody works in the folder, or it holds a run already."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go when this process ends, however it ends.

    Raises:
        Taken: another process holds it; says which.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, about = FileLock(folder / "run.lock"), folder / ".run.lock.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Taken(f"'{folder}' is being worked on by {_holder(about)}") from None
    try:
        holder = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        about.write_text(json.dumps(holder), encoding="utf-8")
        yield
    finally:
        about.unlink(missing_ok=True)
        lock.release()


def _holder(about: Path) -> str:
    try:
        holder = json.loads(about.read_text(encoding="utf-8"))
        return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
