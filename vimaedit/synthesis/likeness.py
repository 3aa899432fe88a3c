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


def distances(hashes: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the bits in which hashes differ from another one: (n, bytes), (bytes,) -> (n,)."""
    found: NDArray[np.int64] = np.bitwise_count(hashes ^ other).sum(axis=1, dtype=np.int64)
    return found


def hash_bands(code: bytes, count: int) -> list[bytes]:
    """Cut a hash into `count` bands of nearly equal numbers of bits.

    Two hashes that differ in fewer than `count` bits agree in at least one band.
    """
    bits = np.unpackbits(np.frombuffer(code, dtype=np.uint8))
    return [np.packbits(part).tobytes() for part in np.array_split(bits, count)]


@functools.cache
def _cosines() -> NDArray[np.float64]:
    """Return the lowest rows of the orthonormal cosine transform (DCT-II), (KEPT, SIDE)."""
    rows = np.arange(KEPT)[:, None]
    basis: NDArray[np.float64] = np.cos(np.pi * (np.arange(SIDE) + 0.5) * rows / SIDE) * np.sqrt(2 / SIDE)
    basis[0] /= np.sqrt(2)
    return basis
