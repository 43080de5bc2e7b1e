"""TensorBoard, and nothing else that writes to it."""

from pathlib import Path

import numpy as np
from tensorboard.compat.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]  (made when the module is imported)
)
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class Tracker:
    """Writes a run's events into its folder.

    Args:
        folder: the run's folder.
        first_update: events from this update on, of a process that was stopped, are hidden.
    """

    def __init__(self, folder: Path, first_update: int = 1):
        self._writer = SummaryWriter(str(folder), purge_step=first_update)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *exception) -> None:
        self._writer.close()

    def scalars(self, values: dict[str, float], update: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, update)

    def picture(self, name: str, pixels: np.ndarray, update: int) -> None:
        """``pixels`` are (height, width, 3) bytes. Named so that the curves come first."""
        self._writer.add_image(f"work/{name}", pixels, update, dataformats="HWC")

    def animation(self, name: str, gif: bytes, update: int) -> None:
        """``gif`` is a GIF file's content, which TensorBoard plays among its images."""
        width, height = (int.from_bytes(gif[k : k + 2], "little") for k in (6, 8))
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        summary = Summary(value=[Summary.Value(tag=f"work/{name}", image=image)])
        self._add(summary, update)

    def text(self, name: str, markdown: str) -> None:
        self._writer.add_text(name, markdown)

    def hyperparameters(self, settings: dict, results: dict[str, float], update: int) -> None:
        """One row of the HPARAMS tab.

        ``SummaryWriter.add_hparams`` would open a second run for it; its summaries written to this
        run's own events make one run one row.
        """
        for summary in hparams(settings, results):
            self._add(summary)
        self.scalars(results, update)  # the row's results are the last of these

    def _add(self, summary: Summary, update: int | None = None) -> None:
        """Write what ``SummaryWriter`` has no method for."""
        file = self._writer.file_writer
        assert file is not None  # until it is closed
        file.add_summary(summary, update)
