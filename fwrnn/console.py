"""Log messages that do not tear the progress bar, and are kept in a file."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm


class ProgressBarHandler(logging.Handler):
    """Writes to standard error through tqdm, which moves its bars out of the way."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """While open, messages go above the progress bar on the terminal, and into ``file``.

    Raises:
        OSError: the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    terminal, kept = ProgressBarHandler(), logging.FileHandler(file, encoding="utf-8")
    terminal.setFormatter(logging.Formatter("%(message)s"))
    kept.setFormatter(logging.Formatter("[%(asctime)s][%(levelname)s] %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    for handler in (terminal, kept):
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in (terminal, kept):
            root.removeHandler(handler)
        kept.close()
