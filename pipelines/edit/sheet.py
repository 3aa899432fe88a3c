"""The picture sheet: the first results as one PNG that a person opens."""

from __future__ import annotations

import io
import logging
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipelines.output.parts import part_name
from pipelines.output.plan import Unit
from pipelines.store.location import Location, put_atomic
from pipelines.store.masking import cut, mask_urls
from pipelines.store.parquet import read_batches
from vimaedit.marks import COMPOSITE, make_mark, mark_options

logger = logging.getLogger(__name__)

COLUMNS = (("image", "source"), ("edit_mask", "edit mask"), ("critical_mask", "critical mask"), ("edited_image", "edited"))
TEXT_COLUMNS = ("id", "edit_index", "source_prompt", "target_prompt", "status", "error_message", "warnings")
CELL_PX = 256
GAP_PX = 8
MAX_SIDE_PX = 30_000  # what common viewers open
FONT_PX = 15
LINE_PX = 20
HEADER_PX = 32
BACKGROUND = (255, 255, 255)
INK = (20, 20, 20)
EMPTY = (228, 228, 228)
NAME_CHARACTERS = 100
TEXT_CHARACTERS = 400
MAX_WARNINGS = 5
BUFFER_BYTES = 1024 * 1024


def try_sheet(output: Location, units: Sequence[Unit], num_results: int) -> tuple[str | None, list[str]]:
    """Draw the sheet, where one is asked for: its URL, and what to warn of. The run is finished with or without it."""
    if not num_results or not units:
        return None, []
    try:
        url, num_drawn = write_sheet(output, units, num_results)
    except Exception as error:
        logger.warning("no sheet", exc_info=True)
        return None, [f"sheet: {type(error).__name__}: {error}; there is none"]
    wanted = min(num_results, sum(unit.take for unit in units))
    return mask_urls(url), [f"sheet: {num_drawn} of {wanted} results have room on it"] if num_drawn < wanted else []


def write_sheet(output: Location, units: Sequence[Unit], num_results: int) -> tuple[str, int]:
    """Draw the first results of a run as `sheet.png`, as many as have room; return its URL and how many are on it."""
    sheet, num_drawn = draw_sheet(_first_rows(output, units, num_results))
    place = output / "sheet.png"
    put_sheet(place, sheet)
    return place.url, num_drawn


def put_sheet(place: Location, sheet: Image.Image) -> None:
    """Write a sheet as PNG."""
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", **mark_options(make_mark(COMPOSITE), "png"))
    put_atomic(place, buffer.getvalue())


def draw_sheet(
    rows: Iterable[dict[str, Any]], max_height: int = MAX_SIDE_PX, columns: Sequence[tuple[str, str]] = COLUMNS
) -> tuple[Image.Image, int]:
    """Draw results: source | edit mask | critical mask | edited, or what `columns` (name, title) say, and under them id, prompts and status.

    Rows are taken one by one until no further one has room: returns the sheet and how many are on it.
    """
    font = ImageFont.load_default(FONT_PX)
    width = _left(len(columns))
    header = Image.new("RGB", (width, HEADER_PX), BACKGROUND)
    for column, (_, title) in enumerate(columns):
        ImageDraw.Draw(header).text((_left(column), GAP_PX), title, fill=INK, font=font)
    strips = [header]
    height = HEADER_PX
    for row in rows:
        strip = _draw_row(row, font, [name for name, _ in columns])
        if height + strip.height > max_height:
            break
        strips.append(strip)
        height += strip.height
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet, len(strips) - 1


def _draw_row(row: dict[str, Any], font: Any, columns: Sequence[str]) -> Image.Image:
    width = _left(len(columns))
    characters = int((width - 2 * GAP_PX) / font.getlength("n"))
    lines = [part for line in _lines(row) for part in textwrap.wrap(line, characters) or [""]]
    strip = Image.new("RGB", (width, CELL_PX + len(lines) * LINE_PX + 3 * GAP_PX), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for column, name in enumerate(columns):
        value = row[name]
        coded = None if value is None else value["bytes"]
        picture = None if coded is None else Image.open(io.BytesIO(coded)).convert("RGB")
        paste(strip, picture, (_left(column), 0), CELL_PX)
    for number, line in enumerate(lines):
        draw.text((GAP_PX, CELL_PX + GAP_PX + number * LINE_PX), line, fill=INK, font=font)
    return strip


def _left(column: int) -> int:
    return GAP_PX + column * (CELL_PX + GAP_PX)


def paste(sheet: Image.Image, picture: Image.Image | None, corner: tuple[int, int], side: int, nothing: str = "none") -> None:
    """Paste a picture into a square, as large as it fits there; without one the square says so."""
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left, top, left + side - 1, top + side - 1), fill=EMPTY)
    if picture is None:
        font = ImageFont.load_default(FONT_PX)
        draw.text((left + side // 2, top + side // 2), nothing, fill=INK, font=font, anchor="mm")
        return
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    resized = picture.convert("RGB").resize(size, Image.Resampling.NEAREST if picture.mode == "L" else Image.Resampling.LANCZOS)
    sheet.paste(resized, (left + (side - size[0]) // 2, top + (side - size[1]) // 2))


def _lines(row: dict[str, Any]) -> list[str]:
    lines = [
        f"{cut(row['id'], NAME_CHARACTERS)} [{row['edit_index']}]  {row['status']}",
        f"from: {cut(str(row['source_prompt']), TEXT_CHARACTERS)}",
        f"to:   {cut(str(row['target_prompt']), TEXT_CHARACTERS)}",
    ]
    if row["error_message"]:
        lines.append(cut(row["error_message"], TEXT_CHARACTERS))
    warnings = row["warnings"] or []
    lines += [f"warning: {cut(warning, TEXT_CHARACTERS)}" for warning in warnings[:MAX_WARNINGS]]
    if len(warnings) > MAX_WARNINGS:
        lines.append(f"and {len(warnings) - MAX_WARNINGS} more warnings")
    return lines


def _first_rows(output: Location, units: Sequence[Unit], num_results: int) -> Iterator[dict[str, Any]]:
    """Read results one by one, so that of a part's pictures only those are read and held that are drawn."""
    left = num_results
    columns = [*TEXT_COLUMNS, *(name for name, _ in COLUMNS)]
    for unit in units:
        for batch in read_batches(output / "data" / part_name(unit.id), columns, rows=1, buffer_bytes=BUFFER_BYTES):
            yield from batch.to_pylist()
            left -= 1
            if left == 0:
                return
