from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vimaedit.images import change_mask
from vimaedit.metrics.shift import shift_px


def picture(seed: int, cells: int = 23) -> np.ndarray:
    blobs = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blobs).resize((151, 131), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("offset", [(0, 0), (3, -4), (-8, 6), (0, 5)])
def test_a_moved_picture_is_found_also_where_a_part_is_edited(offset: tuple[int, int]) -> None:
    source = picture(1)
    moved = np.roll(source, offset, axis=(0, 1)).copy()
    moved[40:80, 50:100] = (255, 0, 0)
    assert shift_px(source, moved) == pytest.approx(np.hypot(*offset))


def test_other_pictures_and_small_ones_say_nothing() -> None:
    assert shift_px(picture(1, 131), picture(2, 131)) is None
    assert shift_px(picture(1)[:15], picture(1)[:15]) is None
    flat = np.full((64, 64, 3), 7, np.uint8)
    assert shift_px(flat, flat) in (None, 0.0)


def test_the_change_is_where_pictures_differ() -> None:
    source = picture(3)
    edited = source.copy()
    edited[30:90, 40:120] = 255 - edited[30:90, 40:120]
    mask = change_mask(source, edited, 0.1)
    assert mask.shape == source.shape[:2] and mask[40:80, 50:110].mean() > 0.8
    assert not mask[:25].any() and not mask[:, :35].any()
    assert not change_mask(source, source, 0.0).any()
