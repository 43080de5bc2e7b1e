"""One process to a run's folder, whoever else wants it."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fwrnn.errors import UserError
from fwrnn.files import WINDOWS, unwritable
from fwrnn.reading import read_json

LOCK, ABOUT = "run.lock", ".run.lock.json"
INSTEAD = "hydra.run.dir=DIR chooses another folder; to resume a run, copy it to one"


class Taken(UserError):
    """Somebody works in the folder, or it holds a run already."""


@contextmanager
def claimed(folder: Path, instead: str = INSTEAD) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go when this process ends, however it ends.

    ``instead`` is what to do where the folder cannot be written.

    Raises:
        Taken: another process holds it; says which.
        UserError: the folder cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0.5, poll_interval=0.05)  # ``holder`` may be looking
    except Timeout:
        raise Taken(f"'{folder}' is being worked on by {_told(folder)}") from None
    except OSError as error:
        raise unwritable(folder, error, instead) from error
    about = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    try:
        with suppress(OSError):  # it is for people, and the disk may be full
            (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            (folder / ABOUT).unlink()
        lock.release()


def holder(folder: Path) -> str | None:
    """Who works in the folder, in words; None when nobody does. Writes nothing there."""
    if WINDOWS:  # where one cannot look without taking it for a moment
        return _told(folder) if (folder / ABOUT).is_file() and _is_locked(folder) else None
    import fcntl

    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _told(folder)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(handle)
    return None


def _is_locked(folder: Path) -> bool:
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _told(folder: Path) -> str:
    try:
        about = read_json(folder / ABOUT)
        return f"process {about['process']} on {about['host']}, since {about['since']}"[:200]
    except (OSError, UserError, KeyError):
        return "another process"
