"""MNIST seen in glimpses (section 4.2 and table 2 of the paper), and a small stand-in for it.

A 28×28 digit is looked at in 24 glimpses of 7×7 pixels: of every quadrant the whole at half the
resolution, its four quarters at full resolution, and the whole again. Here are the images; the
models cut the glimpses (``fwrnn/models/glimpses.py``).

Of MNIST's 60,000 training images the last 10,000 are for validation, as was usual in the paper's
time. "digits" are the 1,797 handwritten digits of 8×8 pixels that ship inside scikit-learn and need
no download: a fixed random fifth of them is for the test, a tenth for validation.
"""

import logging
from typing import Any, cast

import numpy as np
import torch

from fwrnn.errors import UserError
from fwrnn.interfaces import Examples
from fwrnn.rule import one_of
from fwrnn.tasks.images import ImageTask
from fwrnn.tasks.mnist_files import load_mnist
from fwrnn.tasks.schema import DATASETS

log = logging.getLogger("fwrnn")

_VALIDATION = 10_000


class MnistGlimpses(ImageTask):
    """Handwritten digits and their ten classes.

    Args:
        dataset: "mnist" or "digits".
        data_dir: the folder of MNIST's four files, gzipped or not; those that it lacks are
            downloaded into it. None: a folder of the user's cache.
        train_on_all: train on the validation images too, for a last run once everything has been
            chosen; the validation error then means nothing, and the last weights are tested.
        shift, rotation, seed: of the augmentation, off by default; see ``ImageTask``.

    Raises:
        ValueError: a setting out of range.
        UserError: the files are missing and cannot be downloaded, or are broken; or scikit-learn is
            not installed.
    """

    def __init__(
        self,
        dataset: str = "mnist",
        data_dir: str | None = None,
        train_on_all: bool = False,
        shift: float = 0.0,
        rotation: float = 0.0,
        seed: int = 0,
    ):
        one_of("dataset", dataset, DATASETS)
        if dataset == "digits" and data_dir is not None:
            log.warning("the digits ship inside scikit-learn: task.data_dir is not looked at")
        splits = load_digits() if dataset == "digits" else _three(*load_mnist(data_dir))
        if train_on_all:
            both = zip(splits["train"], splits["val"], strict=True)
            splits["train"] = Examples(*(torch.cat(parts) for parts in both))
        labels = tuple("0123456789")
        super().__init__(splits, labels, shift, rotation, seed, held_out=not train_on_all)


def _three(training: Examples, test: Examples) -> dict[str, Examples]:
    """The paper's split: the last 10,000 training images are for validation."""
    first = len(training.targets) - _VALIDATION
    return {
        "train": Examples(*(part[:first] for part in training)),
        "val": Examples(*(part[first:] for part in training)),
        "test": test,
    }


def load_digits() -> dict[str, Examples]:
    """scikit-learn's digits, 8×8, their 17 grey levels stretched to bytes.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise UserError(
            "task.dataset=digits needs scikit-learn, which is not installed; "
            "pip install 'fwrnn[digits]' (in a checkout: pip install '.[digits]')"
        ) from None
    digits = cast(Any, datasets.load_digits())  # typed as a tuple too, which it can be asked for
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = (digits.images[order] * (255 / 16)).round().astype(np.uint8)
    targets = digits.target[order].astype(np.int64)
    cuts = np.array([0.7, 0.8]) * len(order)
    parts = [np.split(array, cuts.astype(int)) for array in (images, targets)]
    names = ("train", "val", "test")
    return {
        name: Examples(torch.from_numpy(x), torch.from_numpy(y))
        for name, x, y in zip(names, *parts, strict=True)
    }
