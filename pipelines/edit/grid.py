"""A labelled grid of edits of one picture: each edited picture with its two masks below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PICTURE_PX = 256
MASK_PX = PICTURE_PX // 2
GAP_PX = 8
FONT_PX = 15
LABEL_PX = 24
BACKGROUND = (255, 255, 255)
INK = (20, 20, 20)
EMPTY = (228, 228, 228)
MAX_SIDE_PX = 30_000  # what common viewers open


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One edit: the picture and its masks, None where there was none."""

    picture: Image.Image
    edit_mask: Image.Image | None
    critical_mask: Image.Image | None


def grid_size(columns: int, rows: int) -> tuple[int, int]:
    """Return width and height in px of a grid with the source picture as a first column of its own."""
    return (columns + 1) * (PICTURE_PX + GAP_PX) + GAP_PX, LABEL_PX + rows * _row_height() + GAP_PX


def draw_grid(
    source: Image.Image, cells: Sequence[Sequence[Cell]], columns: Sequence[str], rows: Sequence[str], caption: str
) -> Image.Image:
    """Draw `cells` row by row under the labels of their columns; the source stands at the left, with the row's label and, in the
    first row, the caption."""
    font = ImageFont.load_default(FONT_PX)
    sheet = Image.new("RGB", grid_size(len(columns), len(cells)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, label in enumerate(["source", *columns]):
        draw.text((_left(number), 4), label, fill=INK, font=font)
    for index, (row, label) in enumerate(zip(cells, rows, strict=True)):
        top = LABEL_PX + index * _row_height()
        _paste(sheet, draw, source, (_left(0), top), PICTURE_PX)
        lines = [label, *_wrap(caption, font)] if index == 0 else [label]
        for number, line in enumerate(line for line in lines if line):
            draw.text((_left(0), top + PICTURE_PX + 4 + number * 20), line, fill=INK, font=font)
        for number, cell in enumerate(row, start=1):
            left = _left(number)
            _paste(sheet, draw, cell.picture, (left, top), PICTURE_PX)
            _paste(sheet, draw, cell.edit_mask, (left, top + PICTURE_PX), MASK_PX)
            _paste(sheet, draw, cell.critical_mask, (left + MASK_PX, top + PICTURE_PX), MASK_PX)
    return sheet


def _left(column: int) -> int:
    return GAP_PX + column * (PICTURE_PX + GAP_PX)


def _row_height() -> int:
    return PICTURE_PX + MASK_PX + GAP_PX


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break a text into lines as wide as a picture, as many as have room beside it."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= PICTURE_PX:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines[: (MASK_PX - 24) // 20]


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image | None, corner: tuple[int, int], side: int
) -> None:
    left, top = corner
    draw.rectangle((left, top, left + side - 1, top + side - 1), fill=EMPTY)
    if picture is None:
        draw.text((left + side // 2, top + side // 2), "no mask", fill=INK, font=ImageFont.load_default(FONT_PX), anchor="mm")
        return
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    resized = picture.convert("RGB").resize(size, Image.Resampling.NEAREST if picture.mode == "L" else Image.Resampling.LANCZOS)
    sheet.paste(resized, (left + (side - size[0]) // 2, top + (side - size[1]) // 2))
