"""A run's folder: what is in it, and reading and writing it so that nothing is half-written.

::

    config.yaml          the resolved configuration
    metrics.json         the results, once the run has ended; fractions from 0 to 1
    metrics-before.json  those of before it went on, for more updates
    curve.csv            a row per validation
    pictures/*.png       the memory, the glimpses or a game at work, and what the test confused
    pictures/*.gif       games, played
    checkpoints/best.pt  the best weights by validation
    checkpoints/last.pt  everything needed to go on, the best weights too
    checkpoints/last-1.pt  the one before, in case that the last one is damaged
    run.lock             held by the process that works on the run
    train.log            the messages
    events.out.tfevents… TensorBoard
"""

import csv
import io
import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from fwrnn.errors import UserError
from fwrnn.files import json_text, write_whole
from fwrnn.reading import is_number, read_json, read_yaml

log = logging.getLogger("fwrnn")

FORMAT = 1


class RunFolder:
    """The files of one run below ``path``; a write replaces the old file whole or not at all."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.json"
        self.metrics_before = self.path / "metrics-before.json"
        self.curve = self.path / "curve.csv"
        self.best = self.path / "checkpoints" / "best.pt"
        self.last = self.path / "checkpoints" / "last.pt"
        self.before_last = self.path / "checkpoints" / "last-1.pt"
        self.pictures = self.path / "pictures"
        self._written: bytes | None = None

    @property
    def has_begun(self) -> bool:
        """Whether it has a state to go on from."""
        return self.last.is_file() or self.before_last.is_file()

    def clear_away(self) -> None:
        """What writes of these files left that a kill cut short; for who holds the folder's lock.

        The folder may have been there before, with files of somebody else's, which stay.
        """
        for file in (self.config, self.metrics, self.curve, self.best, self.last):
            for remains in file.parent.glob(f".{file.name}.*.tmp"):
                with suppress(OSError):
                    remains.unlink()

    def set_metrics_aside(self) -> None:
        """The run goes on: the results are no more those of its weights."""
        with suppress(FileNotFoundError):
            self.metrics.replace(self.metrics_before)

    def write_config(self, config) -> None:
        self._written = OmegaConf.to_yaml(OmegaConf.structured(config)).encode()
        write_whole(self.config, self._written)

    def write_metrics(self, metrics: dict) -> None:
        write_whole(self.metrics, (json_text(metrics, indent=2) + "\n").encode())

    def write_curve(self, rows: Sequence[dict]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.curve, text.getvalue().encode())

    def write_checkpoint(self, path: Path, content: dict) -> None:
        """``content`` as ``path``; the ``last`` one before stays beside it, as ``before_last``.

        Where somebody removed the folder, the configuration comes back too: the run is whole.
        """
        if self._written is not None and not self.config.exists():
            log.warning(f"{self.config} had been removed; it is written again")
            write_whole(self.config, self._written)
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **content}, buffer)
        write_whole(path, buffer.getbuffer(), keep=self.before_last if path == self.last else None)

    def read_config(self) -> dict:
        """The resolved configuration as plain containers.

        Raises:
            UserError: there is no such run, or its configuration cannot be read.
        """
        if not self.path.is_dir():
            raise UserError(f"there is no run at '{self.path}'; give a folder that train wrote")
        try:
            values = read_yaml(self.config)
        except FileNotFoundError:
            raise UserError(f"'{self.path}' is not a run: it has no config.yaml") from None
        except (OSError, UserError) as error:
            raise UserError(f"{self.config} is broken: {error}") from None
        for key, value in _leaves(values):
            if isinstance(value, str) and "${" in value:  # which might read whoever tests it
                raise UserError(
                    f"{self.config} is not resolved, as a run's is: {key} is {value[:80]!r}"
                )
        return values

    def read_metrics(self) -> dict:
        """The results, empty when the run has not ended.

        Raises:
            UserError: the file is broken, or what it says was measured is no number.
        """
        try:
            metrics = read_json(self.metrics)
        except FileNotFoundError:
            return {}
        except (OSError, UserError) as error:
            raise UserError(f"{self.metrics} is broken: {error}") from None
        for name, value in metrics.items():
            measured = name.startswith(("test_", "val_", "train_"))
            if measured and not isinstance(value, float | None) and not is_number(value):
                raise UserError(f"{self.metrics} is broken: {name} is {str(value)[:80]!r}")
        return metrics

    def read_checkpoint(self, path: Path) -> dict:
        """A checkpoint's content, on the CPU; no code in the file is run.

        Raises:
            UserError: the file is missing, broken, or no checkpoint of this program.
        """
        try:
            check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"there is no checkpoint at {path}") from None
        except Exception:  # torch.load raises whatever the bytes lead it to
            raise UserError(f"{path} is not a checkpoint of fwrnn, or is broken") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{path} is not a checkpoint of fwrnn: its format is unknown")
        return content


def write_pictures(folder: Path, still: dict[str, np.ndarray], moving: dict[str, bytes]) -> list:
    """FOLDER/NAME.png of (height, width, 3) bytes, FOLDER/NAME.gif of GIF files; their names."""
    contents = {}
    for name, pixels in still.items():
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        contents[f"{name}.png"] = buffer.getbuffer()
    contents |= {f"{name}.gif": gif for name, gif in moving.items()}
    for name, content in contents.items():
        write_whole(folder / name, content)
    return list(contents)


def _leaves(values: object, key: str = "") -> Iterator[tuple[str, object]]:
    """All values of nested dictionaries and lists, with dotted keys."""
    if isinstance(values, dict | list):
        inside = values.items() if isinstance(values, dict) else enumerate(values)
        for name, value in inside:
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, values


def check_archive(path: Path) -> None:
    """Compare a checkpoint's parts with their checksums; it is a zip archive of stored parts.

    Raises:
        FileNotFoundError: it is not there, or no file.
        ValueError: a part is damaged, or would take more memory than the file has bytes.
    """
    if not path.is_file():  # nobody waits for the writer of a pipe
        raise FileNotFoundError(path)
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
        if not stored or sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        if archive.testzip() is not None:
            raise ValueError("a checksum differs")
