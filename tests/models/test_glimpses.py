"""Glimpses: which pixels they show, in which order, and at which resolution."""

import pytest
import torch

from fwrnn.interfaces import Images
from fwrnn.models.glimpses import boxes, cut, in_order, patch_size


@pytest.mark.parametrize("size", [8, 28, 48])
def test_every_glimpse_shows_its_box(size):
    images = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    seen = in_order(cut(images))
    patch = size // 4
    assert seen.shape == (24, 3, patch * patch)
    for glimpse, box in zip(seen, boxes(size), strict=True):
        rows, columns = slice(box.top, box.top + box.side), slice(box.left, box.left + box.side)
        shown = images[:, rows, columns].double() / 255
        if box.coarse:
            shown = sum(shown[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
        torch.testing.assert_close(glimpse, shown.flatten(1).float())


def test_order_is_coarse_four_fine_and_the_same_coarse_again():
    coarse = [box.coarse for box in boxes(28)]
    assert coarse == [True, False, False, False, False, True] * 4
    assert boxes(28)[0] == boxes(28)[5] == (0, 0, 14, True)
    assert [box[:2] for box in boxes(28)[1:5]] == [(0, 0), (0, 7), (7, 0), (7, 7)]
    assert [box[:2] for box in boxes(28)[::6]] == [(0, 0), (0, 14), (14, 0), (14, 14)]


def test_fine_glimpses_cover_the_image_once():
    covered = torch.zeros(28, 28)
    for box in boxes(28):
        if not box.coarse:
            covered[box.top : box.top + box.side, box.left : box.left + box.side] += 1
    assert (covered == 1).all()


def test_odd_sizes_say_so():
    with pytest.raises(ValueError, match="multiple of 4, got 27"):
        patch_size(Images(27))
