"""Log messages: above the progress bar, and in a file."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

# Another among processes would be a file of the system, and stay when they are killed.
tqdm.set_lock(threading.RLock())

PROGRESS = "fwrnn.progress"
"""The logger of what a progress bar shows too: for files, and where there is no terminal."""


class ProgressBarHandler(logging.Handler):
    """Writes to standard error through tqdm, which moves its bars out of the way."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == PROGRESS and sys.stderr.isatty():
            return  # the bar shows it
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class FileHandler(logging.FileHandler):
    """A log that is silent where it cannot be written: what must be, says so itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def messages_to(handler: logging.Handler, form: str) -> Iterator[None]:
    """While open, ``handler`` takes all messages, written as ``form`` says."""
    handler.setFormatter(logging.Formatter(form))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        with suppress(OSError):
            handler.close()


def on_terminal():
    """While open, messages go to standard error."""
    return messages_to(ProgressBarHandler(), "%(message)s")


def in_file(file: Path):
    """While open, messages go into ``file`` too, with their times."""
    handler = FileHandler(file, encoding="utf-8", errors="backslashreplace")
    return messages_to(handler, "[%(asctime)s][%(levelname)s] %(message)s")
