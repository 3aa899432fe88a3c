"""Figures that papers state for PIE-Bench (700 pictures), and the conditions under which they were measured."""

from __future__ import annotations

from dataclasses import dataclass

FIGURES = ("structure", "psnr", "lpips", "mse", "ssim", "clip_whole", "clip_edited")  # in the scales of method.md 9

CONDITIONS = (
    "All 700 pictures of PIE-Bench at 512 px, 50 steps, annotated masks with their frame.",
    "Every result was saved as JPEG of quality 75 before it was scored: lossless results give other background values.",
    "Rows of the P2P family were run on SD 1.4, PnP and ViMAEdit on SD 1.5, InfEdit on a fine-tune, ViMAEdit-XL on SDXL: "
    "a board on one model will not match them all.",
    "Means skip pictures without background (style edits annotated whole).",
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row: structure x1e3, PSNR in dB, LPIPS x1e3, MSE x1e4, SSIM x1e2, CLIP raw; `source` says who states it.

    `repeats`: the same editor stands in another source's rows too, with nearly the same figures.
    """

    method: str
    source: str
    repeats: bool
    structure: float
    psnr: float
    lpips: float
    mse: float
    ssim: float
    clip_whole: float
    clip_edited: float


def _rows(source: str, rows: dict[str, tuple[float, ...]], repeats: tuple[str, ...] = ()) -> tuple[Published, ...]:
    return tuple(
        Published(method=method, source=source, repeats=method in repeats, **dict(zip(FIGURES, row, strict=True)))
        for method, row in rows.items()
    )


PUBLISHED = (
    *_rows(
        "ViMAEdit's paper",
        {
            "P2P-Zero": (51.13, 21.23, 143.87, 135.00, 77.23, 23.36, 21.03),
            "MasaCtrl": (24.47, 22.78, 87.38, 79.91, 81.36, 24.42, 21.38),
            "PnP": (24.29, 22.64, 106.06, 80.45, 79.68, 25.41, 22.62),
            "P2P": (11.64, 27.19, 54.44, 33.15, 84.71, 25.03, 22.13),
            "InfEdit": (13.78, 28.51, 47.58, 32.09, 85.66, 25.03, 22.22),
            "ViMAEdit": (12.43, 28.49, 44.39, 29.12, 86.38, 25.97, 22.85),
            "ViMAEdit-XL": (12.06, 29.65, 48.75, 24.50, 92.30, 25.98, 22.89),
        },
        repeats=("P2P-Zero", "MasaCtrl", "PnP", "P2P"),  # those with Direct Inversion below
    ),
    *_rows(
        "PnPInversion",
        {
            "DDIM + P2P": (69.43, 17.87, 208.80, 219.88, 71.14, 25.01, 22.44),
            "NTI + P2P": (13.44, 27.03, 60.67, 35.86, 84.11, 24.75, 21.86),
            "NPI + P2P": (16.17, 26.21, 69.01, 39.73, 83.40, 24.61, 21.87),
            "StyleDiffusion + P2P": (11.65, 26.05, 66.10, 38.63, 83.42, 24.78, 21.72),
            "DI + P2P": (11.65, 27.22, 54.55, 32.86, 84.76, 25.02, 22.10),
            "DDIM + MasaCtrl": (28.38, 22.17, 106.62, 86.97, 79.67, 23.96, 21.16),
            "DI + MasaCtrl": (24.70, 22.64, 87.94, 81.09, 81.33, 24.38, 21.35),
            "DDIM + P2P-Zero": (61.68, 20.44, 172.22, 144.12, 74.67, 22.80, 20.54),
            "DI + P2P-Zero": (49.22, 21.53, 138.98, 127.32, 77.05, 23.31, 21.05),
            "DDIM + PnP": (28.22, 22.28, 113.46, 83.64, 79.05, 25.41, 22.55),
            "DI + PnP": (24.29, 22.46, 106.06, 80.45, 79.68, 25.41, 22.62),
        },
    ),
)
