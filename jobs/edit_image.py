"""Edit one picture from the shell: writes the edited PNG and, beside it, a sheet with the masks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._cli.signals import exit_on_signals

# What takes seconds to import is imported where it is used, see jobs/edit.py.
if TYPE_CHECKING:
    from pipelines.edit.picture import EditImageConfig

logger = logging.getLogger("jobs.edit_image")

REQUIRED = ("image", "source_prompt", "target_prompt", "output")


def _edit(config: EditImageConfig) -> int:
    from jobs._cli.cluster import warn
    from jobs._cli.progress import progress_line
    from jobs._cli.values import parse_blend_words
    from pipelines.edit.picture import edit_picture, look_at, places

    picture = look_at(config, parse_blend_words(config.blend_words), places(config))
    logger.info("loading model %s, %d steps, image %s", config.model, config.steps, config.image)
    line = progress_line("text", "steps")
    try:
        summary = edit_picture(picture, line)
    finally:
        line.close()
    warn(summary.warnings)
    print(summary.text())
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job
    from pipelines.edit.picture import EditImageConfig

    return run_job(EditImageConfig, _edit, words, name="edit_image", summary=__doc__ or "", required=REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
