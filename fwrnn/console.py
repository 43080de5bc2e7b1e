"""Log messages that do not tear the progress bar."""

import logging
import sys

from tqdm import tqdm


class ProgressBarHandler(logging.Handler):
    """Writes to standard error through tqdm, which moves its bars out of the way."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)
