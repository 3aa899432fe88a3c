"""Edit one picture from the shell: writes the edited PNG and, beside it, a sheet with the masks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jobs._main import EXIT_DONE, run_job
from jobs._progress import ProgressLine
from pipelines.config import FRAMES
from pipelines.sheet import draw_sheet
from vimaedit import BlendPhrase, ConfigError, EditConfig, ModelConfig, ViMAEditOutput, ViMAEditPipeline
from vimaedit.config import check_choice
from vimaedit.images import decode_mask, encode_image, encode_mask, paste_back, paste_mask, read_picture
from vimaedit.types import Status, UInt8Array

logger = logging.getLogger("jobs.edit_image")

REQUIRED = ("image", "source_prompt", "target_prompt", "output")


@dataclass(frozen=True, kw_only=True)
class EditImageConfig(EditConfig, ModelConfig):
    """`jobs.edit_image`: one picture's record, the edit and the model, flat."""

    image: str = ""  # local picture file
    source_prompt: str = ""  # what the picture shows
    target_prompt: str = ""  # what it shall show
    output: str = ""  # local .png file; NAME_sheet.png goes beside it
    blend_words: str = ""  # what changes: "cat dog", or [{source: tabby cat, target: dog}]; nothing: see `blend`
    given_mask: str | None = None  # local picture file, non-zero = edit; for grounding=given
    frame: str = "canvas"  # canvas: what the model saw; original: pasted back into the whole picture

    def __post_init__(self) -> None:
        EditConfig.__post_init__(self)
        ModelConfig.__post_init__(self)
        check_choice("frame", self.frame, FRAMES)
        if Path(self.output).suffix.lower() != ".png":
            raise ConfigError(f"output: got {self.output!r}; allowed: a file name that ends in .png")
        if (self.given_mask is None) == (self.grounding == "given"):
            raise ConfigError(
                f"given_mask: got {self.given_mask!r} with grounding={self.grounding}; allowed: both given_mask=FILE and "
                "grounding=given, or neither"
            )


def parse_blend_words(text: str) -> str | list[BlendPhrase]:
    """Read `cat dog` as it stands and `[{source: ..., target: ...}]` as phrases.

    Raises: ConfigError for a list of another form.
    """
    if not text.lstrip().startswith("["):
        return text
    error = ConfigError(f"blend_words: got {text!r}; allowed: two words, or [{{source: PHRASE, target: PHRASE}}, ...]")
    try:
        # BaseLoader leaves every word as text, so that a phrase may be `no` or `7`.
        entries = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as cause:
        raise error from cause
    for entry in entries:
        if not isinstance(entry, dict) or not entry or not entry.keys() <= {"source", "target"}:
            raise error
        if not all(isinstance(phrase, str) for phrase in entry.values()):
            raise error
    return [BlendPhrase(source=entry.get("source"), target=entry.get("target")) for entry in entries]


def _sheet_row(config: EditImageConfig, output: ViMAEditOutput) -> dict[str, Any]:
    """Return the result as a row of the picture sheet, in the frame that was asked for."""
    source, edited = np.asarray(output.sources[0]), np.asarray(output.images[0])
    masks = [mask if mask is None else np.asarray(mask) > 0 for mask in (output.masks[0], output.critical_masks[0])]
    if config.frame == "original":
        source = read_picture(config.image)
        size = (source.shape[1], source.shape[0])
        edited = paste_back(source, edited, output.crop_box)
        masks = [mask if mask is None else paste_mask(mask, size, output.crop_box) for mask in masks]
    edit_mask, critical_mask = (mask if mask is None else {"bytes": encode_mask(mask)} for mask in masks)
    return {
        "id": Path(config.image).name,
        "edit_index": 0,
        "status": Status.OK,
        "source_prompt": config.source_prompt,
        "target_prompt": config.target_prompt,
        "error_message": None,
        "warnings": output.warnings,
        "image": {"bytes": encode_image(source, "png")},
        "edited_image": {"bytes": encode_image(edited, "png")},
        "edit_mask": edit_mask,
        "critical_mask": critical_mask,
    }


def _edit(config: EditImageConfig) -> int:
    pipe = ViMAEditPipeline(config, config)
    progress = ProgressLine(sys.stderr, unit="steps")
    output = pipe(
        config.image,
        config.source_prompt,
        config.target_prompt,
        blend=parse_blend_words(config.blend_words),
        mask=None if config.given_mask is None else _read_mask(Path(config.given_mask)),
        callback_on_step_end=lambda pipe, step, timestep, state: progress(step + 1, config.steps),
    )
    progress.close()
    row = _sheet_row(config, output)
    path = Path(config.output)
    sheet_path = path.with_name(f"{path.stem}_sheet.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(row["edited_image"]["bytes"])
    draw_sheet([row]).save(sheet_path)
    for warning in output.warnings:
        logger.warning("%s", warning)
    changes = ", ".join(f"{phrase.source or '(nothing)'} -> {phrase.target or '(nothing)'}" for phrase in output.blend)
    print(f"changed: {changes or 'the whole picture'}\nedited:  {path}\nsheet:   {sheet_path}")
    return EXIT_DONE


def _read_mask(path: Path) -> UInt8Array:
    if not path.is_file():
        raise ConfigError(f"given_mask: got {str(path)!r}; allowed: a file that exists")
    return decode_mask(path.read_bytes()).astype(np.uint8)


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(EditImageConfig, _edit, words, name="edit_image", summary=__doc__ or "", required=REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
