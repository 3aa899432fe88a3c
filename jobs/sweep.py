"""Edit one picture with every value of one or two options and draw the results as a labelled grid."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs._cli.signals import exit_on_signals

# What takes seconds to import is imported where it is used, see jobs/edit.py.
if TYPE_CHECKING:
    from pipelines.edit.grid import SweepConfig

logger = logging.getLogger("jobs.sweep")

REQUIRED = ("image", "source_prompt", "target_prompt", "output", "sweep")


def _sweep(config: SweepConfig) -> int:
    from jobs._cli.options import with_option
    from jobs._cli.progress import progress_line
    from jobs._cli.values import parse_blend_words
    from pipelines.edit.grid import parse_sweep, sweep_picture
    from pipelines.edit.picture import look_at

    sweep = parse_sweep(config.sweep)
    variants = []  # every combination is checked before the first is edited
    for row, column in itertools.product(sweep.rows, sweep.columns):
        variant = config
        for key, value in sweep.options(column, row):
            variant = with_option(variant, key, value)
        variants.append(variant)
    path = Path(config.output)
    picture = look_at(config, parse_blend_words(config.blend_words), [path])
    logger.info("loading model %s, %d edits, image %s", config.model, len(variants), config.image)
    line = progress_line("text", "edits")
    try:
        sweep_picture(picture, sweep, variants, path, line)
    finally:
        line.close()
    print(f"{len(variants)} edits: {path}\nbelow each picture: edit mask, critical mask")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job
    from pipelines.edit.grid import SweepConfig

    return run_job(SweepConfig, _sweep, words, name="sweep", summary=__doc__ or "", required=REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
