"""One picture edited with every value of one or two options: a labelled grid, each result with its two masks below it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipelines.edit.picture import EditImageConfig, OnePicture
from pipelines.edit.sheet import BACKGROUND, FONT_PX, GAP_PX, INK, MAX_SIDE_PX, paste
from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError
from vimaedit.marks import mark_options

PICTURE_PX = 256
MASK_PX = PICTURE_PX // 2
LABEL_PX = 24
MAX_OPTIONS = 2


@dataclass(frozen=True, kw_only=True)
class SweepConfig(EditImageConfig):
    """`jobs.sweep`: the settings of `jobs.edit_image`, and which of them take several values."""

    output: str = ""  # local .png file: the grid
    sweep: str = ""  # KEY=VALUE,VALUE,... of one option of the edit or, after a blank, of two: columns, then rows

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frame != "canvas":
            raise ConfigError(f"frame: got {self.frame}; allowed: canvas, which a grid shows")
        parse_sweep(self.sweep)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One edit: the picture and its masks, None where there was none."""

    picture: Image.Image
    edit_mask: Image.Image | None
    critical_mask: Image.Image | None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which option takes which values in the columns, and which in the rows; the latter may be none."""

    column_key: str
    columns: list[str]
    row_key: str = ""
    rows: list[str] = dataclasses.field(default_factory=lambda: [""])

    def options(self, column: str, row: str) -> list[tuple[str, str]]:
        """Return the options of a cell; the method first, since it brings options of its own along."""
        pairs = [(self.column_key, column), *([(self.row_key, row)] if self.row_key else [])]
        return sorted(pairs, key=lambda option: option[0] != "method")


def parse_sweep(text: str) -> Sweep:
    """Read `thresholds.edit=0.3,0.5 windows.self=0.4,0.6`: options and the texts of their values.

    Raises: ConfigError for another form, more than two options, or a grid that is too large to be looked at.
    """
    options: list[tuple[str, list[str]]] = []
    for part in text.split():
        key, _, values = part.partition("=")
        texts = values.split(",") if values else []
        if "" in texts:
            raise ConfigError(f"sweep: got a value of {key} that is empty, {values!r}; allowed: KEY=VALUE,VALUE,...")
        if key.split(".")[0] not in {field.name for field in dataclasses.fields(EditConfig)}:
            raise ConfigError(f"sweep: got the key {key!r}; allowed: options of the edit, such as thresholds.edit (see --help)")
        if not texts:
            raise ConfigError(f"sweep: got no values for {key}; allowed: KEY=VALUE,VALUE,...")
        options.append((key, texts))
    if not 1 <= len(options) <= MAX_OPTIONS or len({key for key, _ in options}) < len(options):
        raise ConfigError(f"sweep: got {text!r}; allowed: KEY=VALUE,VALUE,... of one option, or of two different ones")
    (key, columns), *second = options
    sweep = Sweep(column_key=key, columns=columns)
    if second:
        sweep = dataclasses.replace(sweep, row_key=second[0][0], rows=second[0][1])
    if max(grid_size(len(sweep.columns), len(sweep.rows))) > MAX_SIDE_PX:
        raise ConfigError(
            f"sweep: got {len(sweep.columns)} x {len(sweep.rows)} edits; allowed: a grid of up to {MAX_SIDE_PX} px a side"
        )
    return sweep


def sweep_picture(
    picture: OnePicture, sweep: Sweep, variants: Sequence[EditConfig], path: Path, progress: Callable[[int, int], None]
) -> None:
    """Edit the picture with every variant, row by row, and write the grid; `progress` is told edits done, of how many.

    Raises: ConfigError.
    """
    from vimaedit import ViMAEditPipeline

    config = picture.config
    pipe = ViMAEditPipeline(config, config)
    cells, source = [], None
    for number, variant in enumerate(variants):
        pipe.config = variant
        output = picture.edit(pipe)
        source = output.sources[0]
        cells.append(Cell(picture=output.images[0], edit_mask=output.masks[0], critical_mask=output.critical_masks[0]))
        progress(number + 1, len(variants))
    assert source is not None
    width = len(sweep.columns)
    grid = draw_grid(
        source,
        [cells[start : start + width] for start in range(0, len(cells), width)],
        [f"{sweep.column_key}={value}" for value in sweep.columns],
        [f"{sweep.row_key}={value}" if sweep.row_key else "" for value in sweep.rows],
        f"{config.source_prompt} -> {config.target_prompt}",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path, **mark_options(picture.mark, "png"))


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
        paste(sheet, source, (_left(0), top), PICTURE_PX)
        lines = [label, *_wrap(caption, font)] if index == 0 else [label]
        for number, line in enumerate(line for line in lines if line):
            draw.text((_left(0), top + PICTURE_PX + 4 + number * 20), line, fill=INK, font=font)
        for number, cell in enumerate(row, start=1):
            left = _left(number)
            paste(sheet, cell.picture, (left, top), PICTURE_PX, nothing="no mask")
            paste(sheet, cell.edit_mask, (left, top + PICTURE_PX), MASK_PX, nothing="no mask")
            paste(sheet, cell.critical_mask, (left + MASK_PX, top + PICTURE_PX), MASK_PX, nothing="no mask")
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
