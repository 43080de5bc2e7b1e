"""A run's folder: what is in it, and reading and writing it so that nothing is half-written.

::

    config.yaml          the resolved configuration
    metrics.json         the results, once the run has ended; fractions from 0 to 1
    curve.csv            a row per validation
    pictures/*.png       the memory, the glimpses or a game at work, and what the test confused
    pictures/*.gif       games, played
    checkpoints/best.pt  the best weights by validation
    checkpoints/last.pt  everything needed to go on, the best weights too
    checkpoints/last-1.pt  the one before, in case that the last one is damaged
    weights.npz          of a network that ships, in the place of the checkpoints
    run.lock             held by the process that works on the run
    train.log            the messages
    events.out.tfevents… TensorBoard
"""

import csv
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from fwrnn.errors import RunFailed, UserError

FORMAT = 1


class RunFolder:
    """The files of one run below ``path``; a write replaces the old file whole or not at all."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.json"
        self.curve = self.path / "curve.csv"
        self.best = self.path / "checkpoints" / "best.pt"
        self.last = self.path / "checkpoints" / "last.pt"
        self.before_last = self.path / "checkpoints" / "last-1.pt"
        self.plain = self.path / "weights.npz"

    def write_config(self, config) -> None:
        write_whole(self.config, OmegaConf.to_yaml(OmegaConf.structured(config)).encode())

    def write_metrics(self, metrics: dict) -> None:
        """What is not a finite number becomes null: NaN is no JSON."""
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        write_whole(self.metrics, (json.dumps(plain, indent=2, allow_nan=False) + "\n").encode())

    def write_curve(self, rows: Sequence[dict]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.curve, text.getvalue().encode())

    def write_picture(self, name: str, pixels: np.ndarray) -> None:
        """``pixels`` (height, width, 3) bytes, as pictures/NAME.png."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        write_whole(self.path / "pictures" / f"{name}.png", buffer.getbuffer())

    def write_animation(self, name: str, gif: bytes) -> None:
        """``gif`` is the content of pictures/NAME.gif."""
        write_whole(self.path / "pictures" / f"{name}.gif", gif)

    def write_checkpoint(self, path: Path, content: dict) -> None:
        """``content`` as ``path``; the ``last`` one before stays beside it, as ``before_last``."""
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
            values = OmegaConf.to_container(OmegaConf.load(self.config))
        except FileNotFoundError:
            raise UserError(f"'{self.path}' is not a run: it has no config.yaml") from None
        except Exception as error:
            raise UserError(f"{self.config} is broken: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"{self.config} is broken: it holds no keys")
        for key, value in _leaves(values):
            if isinstance(value, str) and "${" in value:  # which might read whoever tests it
                raise UserError(
                    f"{self.config} is not resolved, as a run's is: {key} is {value[:80]!r}"
                )
        return values

    def read_metrics(self) -> dict:
        """The results, empty when the run has not ended.

        Raises:
            UserError: the file is broken.
        """
        try:
            metrics = json.loads(self.metrics.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self.metrics} is broken: {error}") from None
        if not isinstance(metrics, dict):
            raise UserError(f"{self.metrics} is broken: it holds no keys")
        return metrics

    @property
    def weights(self) -> Path:
        """The file that holds the best weights."""
        return self.plain if self.plain.exists() else self.best

    def read_best(self, device: torch.device) -> dict:
        """The best weights as ``model``, and their ``update``; no code in the file is run.

        Raises:
            UserError: the file is missing or broken.
        """
        if self.weights == self.best:
            return self.read_checkpoint(self.best, device)
        try:
            with np.load(self.plain, allow_pickle=False) as arrays:
                model = {name: torch.from_numpy(arrays[name]).to(device) for name in arrays.files}
        except Exception:  # numpy and zipfile raise anything on damaged files
            raise UserError(f"{self.plain} does not hold plain arrays, or is broken") from None
        return {"model": model, "update": self.read_metrics().get("best_update")}

    def read_checkpoint(self, path: Path, device: torch.device) -> dict:
        """A checkpoint's content; no code in the file is run.

        Raises:
            UserError: the file is missing, broken, or no checkpoint of this program.
        """
        try:
            check_archive(path)
            content = torch.load(path, map_location=device, weights_only=True)
        except FileNotFoundError:
            raise UserError(f"there is no checkpoint at {path}") from None
        except Exception:  # torch.load raises whatever the bytes lead it to
            raise UserError(f"{path} is not a checkpoint of fwrnn, or is broken") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{path} is not a checkpoint of fwrnn: its format is unknown")
        return content


def _leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """All values of a nested dictionary, with dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield from (
                (f"{prefix}{key}", item) for item in (value if isinstance(value, list) else [value])
            )


def check_archive(path: Path) -> None:
    """Compare a checkpoint's parts with their checksums; it is a zip archive of stored parts.

    Raises:
        ValueError: a part is damaged, or would take more memory than the file has bytes.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
        if not stored or sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        if archive.testzip() is not None:
            raise ValueError("a checksum differs")


def write_whole(path: Path, content, keep: Path | None = None) -> None:
    """Write beside the file, then replace it: a kill or a full disk leaves the old one.

    What was at ``path`` stays as ``keep``, if that is given.

    Raises:
        RunFailed: it could not be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:  # noqa: PTH123  (a test dies in each of these calls)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(_another_name(path), keep)  # noqa: PTH105
        os.replace(beside, path)  # noqa: PTH105
        _sync_folder(path.parent)
    except OSError as error:
        raise RunFailed(
            f"could not write {path}: {error.strerror}; what was there before is intact"
        ) from error
    finally:  # a second Ctrl-C comes here too
        beside.unlink(missing_ok=True)


def _another_name(path: Path) -> Path:
    """A second name for a file, or a copy where the file system has no such names."""
    other = path.with_name(f".{path.name}.{os.getpid()}.kept.tmp")
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)  # noqa: PTH136
    except OSError:
        shutil.copyfile(path, other)
    return other


def _sync_folder(folder: Path) -> None:
    """Have the new names in a folder outlast a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems do not
        pass
    finally:
        os.close(handle)
