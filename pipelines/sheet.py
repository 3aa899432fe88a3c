"""The picture sheet: the first results as one PNG that a person opens."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from pipelines.plan import Unit
from pipelines.sink import part_name
from pipelines.storage import Location, open_reader, put_atomic

COLUMNS = (("image", "source"), ("edit_mask", "edit mask"), ("critical_mask", "critical mask"), ("edited_image", "edited"))
TEXT_COLUMNS = ("id", "edit_index", "source_prompt", "target_prompt", "status", "error_message", "warnings")
CELL_PX = 256
GAP_PX = 8
FONT_PX = 15
LINE_PX = 20
HEADER_PX = 32
BACKGROUND = (255, 255, 255)
INK = (20, 20, 20)
EMPTY = (228, 228, 228)


def write_sheet(output: Location, units: Sequence[Unit], num_results: int) -> str:
    """Draw the first results of a finished run as `sheet.png` and return its URL."""
    rows = list(_first_rows(output, units, num_results))
    place = output / "sheet.png"
    buffer = io.BytesIO()
    draw_sheet(rows).save(buffer, format="PNG")
    put_atomic(place, buffer.getvalue())
    return place.url


def draw_sheet(rows: Sequence[dict[str, Any]]) -> Image.Image:
    """Draw results: source | edit mask | critical mask | edited, and under them id, prompts and status."""
    font = ImageFont.load_default(FONT_PX)
    width = len(COLUMNS) * (CELL_PX + GAP_PX) + GAP_PX
    characters = int((width - 2 * GAP_PX) / font.getlength("n"))
    texts = [[part for line in _lines(row) for part in textwrap.wrap(line, characters) or [""]] for row in rows]
    heights = [CELL_PX + len(lines) * LINE_PX + 3 * GAP_PX for lines in texts]
    sheet = Image.new("RGB", (width, HEADER_PX + sum(heights)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, (_, title) in enumerate(COLUMNS):
        draw.text((GAP_PX + column * (CELL_PX + GAP_PX), GAP_PX), title, fill=INK, font=font)
    top = HEADER_PX
    for row, lines, height in zip(rows, texts, heights, strict=True):
        for column, (name, _) in enumerate(COLUMNS):
            _draw_cell(sheet, draw, font, row[name], (GAP_PX + column * (CELL_PX + GAP_PX), top))
        for number, line in enumerate(lines):
            draw.text((GAP_PX, top + CELL_PX + GAP_PX + number * LINE_PX), line, fill=INK, font=font)
        top += height
    return sheet


def _draw_cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, font: Any, value: Any, corner: tuple[int, int]) -> None:
    left, top = corner
    draw.rectangle((left, top, left + CELL_PX - 1, top + CELL_PX - 1), fill=EMPTY)
    if value is None or value["bytes"] is None:
        draw.text((left + CELL_PX // 2, top + CELL_PX // 2), "none", fill=INK, font=font, anchor="mm")
        return
    picture = Image.open(io.BytesIO(value["bytes"])).convert("RGB")
    scale = CELL_PX / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    sheet.paste(picture, (left + (CELL_PX - size[0]) // 2, top + (CELL_PX - size[1]) // 2))


def _lines(row: dict[str, Any]) -> list[str]:
    lines = [
        f"{row['id']} [{row['edit_index']}]  {row['status']}",
        f"from: {row['source_prompt']}",
        f"to:   {row['target_prompt']}",
    ]
    if row["error_message"]:
        lines.append(row["error_message"])
    lines += [f"warning: {warning}" for warning in row["warnings"] or []]
    return lines


def _first_rows(output: Location, units: Sequence[Unit], num_results: int) -> Iterator[dict[str, Any]]:
    left = num_results
    for unit in units:
        with open_reader(output / "data" / part_name(unit.id)) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(
                batch_size=16, columns=[*TEXT_COLUMNS, *(name for name, _ in COLUMNS)]
            ):
                for row in batch.to_pylist():
                    if left == 0:
                        return
                    left -= 1
                    yield row
