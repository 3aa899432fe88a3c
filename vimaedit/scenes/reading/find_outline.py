"""Where in a map of unexplained pixels an object's outline fits, for every shape, pose and size at once, by FFT."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from vimaedit.scenes.reading.templates import Float32Array, halve
from vimaedit.scenes.sampling import MAX_SIZES, MIN_SIZE
from vimaedit.scenes.scenes import POSES, SHAPES, UPSIDE_DOWN
from vimaedit.scenes.shapes import object_layers

NUM_SIZES = 7
_TILT = 32  # degrees; stands for all tilts
_ANGLES = {"upright": 0, "upside-down": UPSIDE_DOWN, "tilted right": _TILT, "tilted left": 360 - _TILT}


def best_outlines(votes: Float32Array, count: int) -> list[tuple[float, int, int, int]]:
    """Return the best outlines of up to `count` shapes and poses, best first: pixels won, centre and side (won, x, y, side).

    What an outline wins is the sum of the votes under it, in pixels of the picture; the best outline has the largest product of
    that and its share of the area. Beyond the picture every vote is -1.

    Shapes: `votes` (size, size), 1 for pixels of an object, -1 for others, 0 for undecided; an even size.
    """
    size = len(votes)
    spectra, areas, sides, kinds, padded = _outline_spectra(size)
    ground = np.full((padded, padded), -1, dtype=np.float32)
    ground[: size // 2, : size // 2] = halve(votes[..., None])[..., 0]
    scores = np.fft.irfft2(np.fft.rfft2(ground) * spectra, s=(padded, padded))[:, : size // 2, : size // 2]
    flat = scores.reshape(len(scores), -1)
    won = np.maximum(flat.max(axis=1), 0)
    chosen: dict[int, tuple[float, int, int, int]] = {}
    for n in np.argsort(-(won**2) / areas).tolist():
        if int(kinds[n]) not in chosen:
            y, x = divmod(int(flat[n].argmax()), size // 2)
            chosen[int(kinds[n])] = (4 * float(won[n]), 2 * x, 2 * y, int(sides[n]))
        if len(chosen) == count:
            break
    return list(chosen.values())


@functools.lru_cache(maxsize=2)
def _outline_spectra(
    size: int,
) -> tuple[NDArray[np.complex64], Float32Array, NDArray[np.intp], NDArray[np.intp], int]:
    """Return of all outlines, at half of the resolution, the conjugate spectra and areas, sides in px, kinds, and the grid's side."""
    padded = 3 * size // 4 + 4
    steps = (max(MAX_SIZES.values()) / MIN_SIZE) ** (np.arange(NUM_SIZES) / (NUM_SIZES - 1))
    all_sides = sorted({max(3, round(MIN_SIZE * step * size / 1000)) for step in steps.tolist()})
    outlines = [(shape, _ANGLES[pose]) for shape in SHAPES for pose in POSES[shape]]
    masks, sides, kinds = [], [], []
    for kind, (shape, angle) in enumerate(outlines):
        for side in all_sides:
            coverage = np.asarray(object_layers(shape, "plain", None, side, angle, 0).coverage, dtype=np.float32)
            # An even number of pixels on either side of the centre, so that halving keeps it.
            spare = len(coverage) // 2 % 2
            tile = halve(np.pad(coverage / np.float32(255), spare)[..., None])[..., 0]
            mask = np.zeros((padded, padded), dtype=np.float32)
            mask[: len(tile), : len(tile)] = tile
            masks.append(np.roll(mask, (-len(tile) // 2, -len(tile) // 2), axis=(0, 1)))
            sides.append(side)
            kinds.append(kind)
    stack = np.stack(masks)
    spectra = np.conj(np.fft.rfft2(stack)).astype(np.complex64)
    return spectra, stack.sum(axis=(1, 2)), np.array(sides), np.array(kinds), padded
