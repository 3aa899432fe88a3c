"""When two pictures are nearly the same: a perceptual hash in luma and colour."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vimaedit.types import UInt8Array

SIDE = 32  # px of the reduced picture
KEPT = 8  # lowest frequencies in either direction
FLAT = 0.5  # levels; a frequency with less amplitude is noise
PLANES = ("Y", "Cb", "Cr")
HASH_BYTES = len(PLANES) * KEPT**2 // 8
MIX = np.uint64(0x9E3779B97F4A7C15)  # an odd number, half of its bits set
BLOCK = 512  # hashes on either side that are compared at a time


def perceptual_hash(picture: UInt8Array) -> bytes:
    """Hash a picture (height, width, 3) so that pictures that look the same differ in few of 192 bits: 24 bytes.

    Each plane of YCbCr is reduced to 32 x 32 px and transformed by a cosine transform; a bit says whether one of the 64 lowest
    frequencies exceeds their median (Zauner 2010). Frequencies of hardly any amplitude count as none, so that flat planes
    have stable bits. The plane's mean is told against mid grey.
    """
    small = Image.fromarray(picture).convert("YCbCr").resize((SIDE, SIDE), Image.Resampling.BOX)
    planes = np.asarray(small, dtype=np.float64).transpose(2, 0, 1) - 128
    basis = _cosines()
    frequencies = (basis @ planes @ basis.T).reshape(len(PLANES), -1)
    frequencies[np.abs(frequencies) < FLAT * SIDE / 2] = 0
    levels = np.median(frequencies[:, 1:], axis=1, keepdims=True)
    bits = frequencies > levels
    bits[:, 0] = frequencies[:, 0] > 0
    return np.packbits(bits).tobytes()


def band_keys(hashes: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Give hashes (n, bytes) a key for each of `count` bands of their bits, at most 128: (n, count).

    Two hashes that differ in fewer than `count` bits have at least one key in common (others may by chance). A band takes every
    `count`-th bit: a band in one plane of colour would be the same for all pictures that are flat there.
    """
    bits = np.unpackbits(hashes, axis=1)
    keys = np.empty((len(hashes), count), dtype=np.uint64)
    for band in range(count):
        packed = np.packbits(bits[:, band::count], axis=1)
        words = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)
        key = np.zeros(len(hashes), dtype=np.uint64)
        for word in words.T:
            key = key * MIX + word  # wraps around
        keys[:, band] = key << np.uint64(7) | np.uint64(band)
    return keys.view(np.int64)


def find_near(
    hashes: NDArray[np.uint8], distance: int, sources: NDArray[np.int64], targets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Find for each hash (n, bytes: a multiple of 8) the first before it that differs in at most `distance` bits; -1: none.

    Two of one source and different targets are never near. Memory is that of `BLOCK`^2 comparisons, however many hashes there are.
    """
    words = np.ascontiguousarray(hashes).view(np.uint64)
    found = np.full(len(hashes), -1, dtype=np.int64)
    for start in range(1, len(hashes), BLOCK):
        todo = np.arange(start, min(start + BLOCK, len(hashes)))
        for first in range(0, int(todo[-1]), BLOCK):
            others = np.arange(first, min(first + BLOCK, int(todo[-1])))
            bits = np.zeros((len(todo), len(others)), dtype=np.uint16)
            for own, other in zip(words[todo].T, words[others].T, strict=True):
                bits += np.bitwise_count(own[:, None] ^ other)
            near = (bits <= distance) & (others < todo[:, None])
            near &= (sources[todo][:, None] != sources[others]) | (targets[todo][:, None] == targets[others])
            hit = near.any(axis=1)
            found[todo[hit]] = first + near[hit].argmax(axis=1)
            todo = todo[~hit]
            if not len(todo):
                break
    return found


@functools.cache
def _cosines() -> NDArray[np.float64]:
    """Return the lowest rows of the orthonormal cosine transform (DCT-II), (KEPT, SIDE)."""
    rows = np.arange(KEPT)[:, None]
    basis: NDArray[np.float64] = np.cos(np.pi * (np.arange(SIDE) + 0.5) * rows / SIDE) * np.sqrt(2 / SIDE)
    basis[0] /= np.sqrt(2)
    return basis
