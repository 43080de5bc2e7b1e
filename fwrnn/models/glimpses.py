"""How an image is looked at: 24 glimpses, cut out on the fly (sections 4.2 and 4.3 of the paper).

An image of 4P×4P pixels has four quadrants of 2P×2P. A glimpse is P×P: a quadrant at half the
resolution (coarse), or one of its quarters (fine). Per quadrant: coarse, four fine ones in raster
order, the same coarse again.

Ours, where the paper is silent: the quadrants come in raster order, and a coarse pixel is the mean
of the four that it stands for.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fwrnn.interfaces import Images

QUADRANTS = 4
FINE = 4
_DISTINCT = 1 + FINE  # glimpses per quadrant, the repeated one counted once
STEPS = QUADRANTS * (_DISTINCT + 1)


class Box(NamedTuple):
    """What a glimpse covers, in pixels of the image."""

    top: int
    left: int
    side: int
    coarse: bool


def patch_size(inputs: Images) -> int:
    """P, the side of a glimpse.

    Raises:
        ValueError: the images' side is no multiple of 4.
    """
    if inputs.size % 4:
        raise ValueError(f"glimpses need images whose side is a multiple of 4, got {inputs.size}")
    return inputs.size // 4


def cut(images: Tensor) -> Tensor:
    """The 20 distinct glimpses of images (B, 4P, 4P) uint8: (20, B, P·P), black 0 to white 1."""
    batch, size = images.shape[:2]
    patch = size // 4
    pixels = images.float() / 255
    # (B, quadrant row, its rows, quadrant column, its columns) → (quadrant, B, rows, columns)
    quadrants = pixels.view(batch, 2, 2 * patch, 2, 2 * patch).permute(1, 3, 0, 2, 4)
    quadrants = quadrants.reshape(QUADRANTS, batch, 2 * patch, 2 * patch)
    coarse = F.avg_pool2d(quadrants, 2).unsqueeze(1)
    fine = quadrants.view(QUADRANTS, batch, 2, patch, 2, patch).permute(0, 2, 4, 1, 3, 5)
    fine = fine.reshape(QUADRANTS, FINE, batch, patch, patch)
    return torch.cat([coarse, fine], dim=1).flatten(0, 1).flatten(2)


def in_order(distinct: Tensor) -> Tensor:
    """From the 20 distinct glimpses, or anything made of each, to the sequence of 24."""
    quadrants = distinct.unflatten(0, (QUADRANTS, _DISTINCT))
    return torch.cat([quadrants, quadrants[:, :1]], dim=1).flatten(0, 1)


def boxes(size: int) -> list[Box]:
    """Where each of the 24 glimpses lies on an image of ``size`` × ``size`` pixels."""
    patch = size // 4
    found = []
    for quadrant in range(QUADRANTS):
        top, left = (2 * patch * k for k in divmod(quadrant, 2))
        coarse = Box(top, left, 2 * patch, coarse=True)
        fine = [
            Box(top + patch * row, left + patch * column, patch, coarse=False)
            for row in (0, 1)
            for column in (0, 1)
        ]
        found += [coarse, *fine, coarse]
    return found
