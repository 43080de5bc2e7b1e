"""A MNIST of a few random images, with the files, the sizes and the checks of the real one."""

import gzip
import hashlib
from pathlib import Path

import numpy as np

from fwrnn.tasks import mnist_files, mnist_glimpses

TRAIN, TEST, VALIDATION = 40, 12, 10


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def small_mnist(monkeypatch) -> dict[str, bytes]:
    """The content of the four files by their names; from now on these are what MNIST holds."""
    rng = np.random.default_rng(0)
    contents = {}
    for name in mnist_files.MD5:
        count = TRAIN if name.startswith("train") else TEST
        shape, top = ((count, 28, 28), 256) if "images" in name else ((count,), 10)
        contents[name] = idx(rng.integers(0, top, shape, dtype=np.uint8))
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(mnist_files, "MD5", sums)
    monkeypatch.setattr(mnist_glimpses, "_VALIDATION", VALIDATION)
    return contents


def write(folder: Path, contents: dict[str, bytes], gzipped: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if gzipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
