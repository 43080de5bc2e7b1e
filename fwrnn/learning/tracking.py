"""TensorBoard, and nothing else that writes to it."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]  (made when the module is imported)
)
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

log = logging.getLogger("fwrnn")


class Tracker:
    """Writes a run's events into its folder; where that cannot be done the run goes on without.

    Args:
        folder: the run's folder.
        first_update: events from this update on, of a process that was stopped, are hidden.
    """

    def __init__(self, folder: Path, first_update: int = 1):
        self._hook = threading.excepthook
        threading.excepthook = self._in_thread
        self._writer: SummaryWriter | None = None
        try:
            self._writer = SummaryWriter(str(folder), purge_step=first_update)
        except (OSError, UnicodeError) as error:  # it takes no folder whose name is not UTF-8
            self._go_without(error)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *exception) -> None:
        self._tell(lambda writer: writer.close())
        threading.excepthook = self._hook

    def _tell(self, what: Callable[[SummaryWriter], object]) -> None:
        if self._writer is not None:
            try:
                what(self._writer)
            except OSError as error:
                self._go_without(error)

    def _go_without(self, error: OSError | UnicodeError) -> None:
        self._writer = None
        reason = getattr(error, "strerror", error)
        log.warning(f"nothing more for TensorBoard: {reason}; the run goes on without")

    def _in_thread(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread, whose errors come back at the next call."""
        theirs = type(failure.thread).__module__.startswith("tensorboard")
        if not (theirs and issubclass(failure.exc_type, OSError)):
            self._hook(failure)

    def scalars(self, values: dict[str, float], update: int) -> None:
        for name, value in values.items():
            self._tell(lambda writer, n=name, x=value: writer.add_scalar(n, x, update))

    def picture(self, name: str, pixels: np.ndarray, update: int) -> None:
        """``pixels`` are (height, width, 3) bytes. Named so that the curves come first."""
        where = f"work/{name}", pixels, update
        self._tell(lambda writer: writer.add_image(*where, dataformats="HWC"))

    def animation(self, name: str, gif: bytes, update: int) -> None:
        """``gif`` is a GIF file's content, which TensorBoard plays among its images."""
        width, height = (int.from_bytes(gif[k : k + 2], "little") for k in (6, 8))
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        summary = Summary(value=[Summary.Value(tag=f"work/{name}", image=image)])
        self._add(summary, update)

    def text(self, name: str, markdown: str) -> None:
        self._tell(lambda writer: writer.add_text(name, markdown))

    def hyperparameters(self, settings: dict, results: dict[str, float], update: int) -> None:
        """One row of the HPARAMS tab.

        ``SummaryWriter.add_hparams`` would open a second run for it; its summaries written to this
        run's own events make one run one row. Its results are named so that the curves come first.
        """
        results = {f"verdict/{name}": value for name, value in results.items()}
        for summary in hparams(settings, results):
            self._add(summary)
        self.scalars(results, update)  # the row's results are the last of these

    def _add(self, summary: Summary, update: int | None = None) -> None:
        """Write what ``SummaryWriter`` has no method for."""
        self._tell(lambda writer: writer._get_file_writer().add_summary(summary, update))
