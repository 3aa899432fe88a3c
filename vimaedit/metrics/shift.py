"""How far a picture was moved as a whole: editors that draw a picture anew tend to shift it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vimaedit.types import UInt8Array

MIN_SIDE_PX = 16
LEAST_PEAK = 6.0  # of the correlation, in standard deviations of that of unrelated pictures: below it the pictures do not say


def shift_px(source: UInt8Array, edited: UInt8Array) -> float | None:
    """Estimate by phase correlation how many pixels the edited picture lies beside its source (Kuglin and Hines 1975).

    The peak of the inverse transform of F G* / |F G*|, of brightness under a Hann window. None where no shift stands out, and for
    sides under 16 px.

    Shapes: `source`, `edited` (height, width, 3).
    """
    if min(source.shape[:2]) < MIN_SIDE_PX:
        return None
    first, second = (np.fft.rfft2(_windowed(picture)) for picture in (source, edited))
    cross = first * second.conj()
    size = np.abs(cross)
    correlation = np.fft.irfft2(cross / np.maximum(size, 1e-9 * max(float(size.max()), 1e-9)), s=source.shape[:2])
    peak = np.unravel_index(int(correlation.argmax()), correlation.shape)
    if correlation[peak] * np.sqrt(correlation.size) < LEAST_PEAK:
        return None
    offsets = [min(int(at), length - int(at)) for at, length in zip(peak, correlation.shape, strict=True)]
    return float(np.hypot(*offsets))


def _windowed(picture: UInt8Array) -> NDArray[np.float64]:
    grey = picture.astype(np.float64).mean(axis=-1)
    height, width = grey.shape
    windowed: NDArray[np.float64] = (grey - grey.mean()) * np.hanning(height)[:, None] * np.hanning(width)
    return windowed
