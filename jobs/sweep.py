"""Edit one picture with every value of one or two options and draw the results as a labelled grid."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs._cli.signals import exit_on_signals
from jobs.edit_image import EditImageConfig
from vimaedit.errors import ConfigError

REQUIRED = ("image", "source_prompt", "target_prompt", "output", "sweep")
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


def parse_sweep(text: str) -> list[tuple[str, list[str]]]:
    """Read `thresholds.edit=0.3,0.5 windows.self=0.4,0.6` as options and the texts of their values.

    Raises: ConfigError for another form, or more than two options.
    """
    from dataclasses import fields

    from vimaedit.config import EditConfig

    options = []
    for part in text.split():
        key, _, values = part.partition("=")
        texts = [value for value in values.split(",") if value]
        if key.split(".")[0] not in {field.name for field in fields(EditConfig)}:
            raise ConfigError(f"sweep: got the key {key!r}; allowed: options of the edit, such as thresholds.edit (see --help)")
        if not texts:
            raise ConfigError(f"sweep: got no values for {key}; allowed: KEY=VALUE,VALUE,...")
        options.append((key, texts))
    if not 1 <= len(options) <= MAX_OPTIONS or len({key for key, _ in options}) < len(options):
        raise ConfigError(f"sweep: got {text!r}; allowed: KEY=VALUE,VALUE,... of one option, or of two different ones")
    return options


def _sweep(config: SweepConfig) -> int:
    from jobs._cli.options import with_option
    from jobs._cli.progress import ProgressLine
    from jobs.edit_image import parse_blend_words, read_given_mask
    from pipelines.edit.grid import MAX_SIDE_PX, Cell, draw_grid, grid_size
    from pipelines.store.location import check_writable, locate
    from vimaedit import ViMAEditPipeline
    from vimaedit.config import EditConfig
    from vimaedit.errors import RequestError

    (first, columns), *second = parse_sweep(config.sweep)
    row_key, rows = second[0] if second else ("", [""])
    if max(grid_size(len(columns), len(rows))) > MAX_SIDE_PX:
        raise ConfigError(f"sweep: got {len(columns)} x {len(rows)} edits; allowed: a grid of up to {MAX_SIDE_PX} px a side")
    # Every combination is checked before the first is edited.
    variants: list[EditConfig] = []
    for row, column in itertools.product(rows, columns):
        variant: Any = config
        # The method first: it brings options of its own along.
        for key, value in sorted([(first, column), (row_key, row)], key=lambda option: option[0] != "method"):
            variant = with_option(variant, key, value) if key else variant
        variants.append(variant)
    path = Path(config.output)
    check_writable(locate(str(path.parent)))
    blend = parse_blend_words(config.blend_words)
    mask = None if config.given_mask is None else read_given_mask(Path(config.given_mask))
    pipe = ViMAEditPipeline(config, config)
    progress = ProgressLine(sys.stderr, unit="edits")
    cells, source = [], None
    for number, variant in enumerate(variants):
        pipe.config = variant
        try:
            output = pipe(config.image, config.source_prompt, config.target_prompt, blend=blend, mask=mask)
        except RequestError as error:  # the one record is the command line
            raise ConfigError(str(error)) from error
        source = output.sources[0]
        cells.append(
            Cell(picture=output.images[0], edit_mask=output.masks[0], critical_mask=output.critical_masks[0]),
        )
        progress(number + 1, len(variants))
    progress.close()
    assert source is not None
    grid = draw_grid(
        source,
        [cells[start : start + len(columns)] for start in range(0, len(cells), len(columns))],
        [f"{first}={value}" for value in columns],
        [f"{row_key}={value}" if row_key else "" for value in rows],
        f"{config.source_prompt} -> {config.target_prompt}",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
    print(f"{len(cells)} edits: {path}\nbelow each picture: edit mask, critical mask")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job

    return run_job(SweepConfig, _sweep, words, name="sweep", summary=__doc__ or "", required=REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
