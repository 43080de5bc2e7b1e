"""What all tasks on images share: splits in memory, and random changes to the training images."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fwrnn.interfaces import Examples, Images, TaskSpec

_CHUNK = 4096  # images moved at once; bounds the memory that this takes


class ImageTask:
    """Images and their classes, whole in memory as bytes.

    Args:
        splits: the examples of "train", "val" and "test"; inputs (N, S, S) uint8.
        labels: the names of the classes.
        shift: augmentation, off at 0: every epoch moves each training image by up to so many
            pixels each way.
        rotation: augmentation, off at 0: and turns it by up to so many degrees either way.
        seed: of the augmentation; every seed and epoch has a stream of its own.
        held_out: whether the validation images are kept out of training.

    Raises:
        ValueError: a negative ``shift`` or ``rotation``.
    """

    def __init__(
        self,
        splits: Mapping[str, Examples],
        labels: tuple[str, ...],
        shift: float = 0.0,
        rotation: float = 0.0,
        seed: int = 0,
        held_out: bool = True,
    ):
        for name, value in {"shift": shift, "rotation": rotation}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {value}; 0 turns it off")
        self.spec = TaskSpec(Images(splits["train"].inputs.shape[-1]), labels)
        self.resample = shift > 0 or rotation > 0
        self.held_out = held_out
        self._splits, self._shift, self._rotation, self._seed = splits, shift, rotation, seed

    def split(self, name: str, epoch: int = 0) -> Examples:
        """The examples of "train", "val" or "test"; only "train" is ever augmented."""
        examples = self._splits[name]
        if name != "train" or not self.resample:
            return examples
        rng = np.random.default_rng([self._seed, epoch])
        return Examples(moved(examples.inputs, self._shift, self._rotation, rng), examples.targets)


def moved(images: Tensor, shift: float, rotation: float, rng: np.random.Generator) -> Tensor:
    """Each of the images (N, S, S) uint8, shifted and turned at random; black comes in.

    ``shift`` is in pixels and uniform in ± for each direction, ``rotation`` in degrees and uniform
    in ±. Pixels are interpolated bilinearly.
    """
    count, size = len(images), images.shape[-1]
    angles = np.deg2rad(rng.uniform(-rotation, rotation, count))
    offsets = rng.uniform(-shift, shift, (count, 2)) * 2 / size  # the image is 2 wide for torch
    cos, sin = np.cos(angles), np.sin(angles)
    rows = [np.stack([cos, -sin, offsets[:, 0]], 1), np.stack([sin, cos, offsets[:, 1]], 1)]
    maps = torch.from_numpy(np.stack(rows, 1).astype(np.float32))
    out = torch.empty_like(images)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        source = images[part, None].float()
        grid = F.affine_grid(maps[part], list(source.shape), align_corners=False)
        out[part] = F.grid_sample(source, grid, align_corners=False).squeeze(1).round().byte()
    return out
