"""Edit one picture from the shell: writes the edited PNG and, beside it, a sheet with the masks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs._cli.signals import exit_on_signals
from pipelines.options import Frame, check_bases
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.errors import ConfigError, RequestError

# What takes seconds to import is imported where it is used, so that a signal finds the job's handlers in place before.
if TYPE_CHECKING:
    from vimaedit import BlendPhrase, ViMAEditOutput
    from vimaedit.types import UInt8Array

logger = logging.getLogger("jobs.edit_image")

REQUIRED = ("image", "source_prompt", "target_prompt", "output")


@dataclass(frozen=True, kw_only=True)
class EditImageConfig(Frame, EditConfig, ModelConfig):
    """`jobs.edit_image`: one picture's record, the edit and the model, flat."""

    image: str = ""  # local picture file
    source_prompt: str = ""  # what the picture shows
    target_prompt: str = ""  # what it shall show
    output: str = ""  # local .png file; NAME_sheet.png goes beside it
    blend_words: str = ""  # what changes: "cat dog", or [{source: tabby cat, target: dog}]; nothing: see `blend`
    given_mask: str | None = None  # local picture file, non-zero = edit; for grounding=given

    def __post_init__(self) -> None:
        check_bases(self, EditImageConfig)
        if Path(self.output).suffix.lower() != ".png":
            raise ConfigError(f"output: got {self.output!r}; allowed: a file name that ends in .png")
        if (self.given_mask is None) == (self.grounding == "given"):
            raise ConfigError(
                f"given_mask: got {self.given_mask!r} with grounding={self.grounding}; allowed: both given_mask=FILE and "
                "grounding=given, or neither"
            )


def parse_blend_words(text: str) -> tuple[BlendPhrase, ...]:
    """Read `cat dog` or `[{source: ..., target: ...}]`; a null side is None.

    Raises: ConfigError for another form.
    """
    from vimaedit.words.phrases import parse_blend

    try:
        return parse_blend(_read_list(text) if text.lstrip().startswith("[") else text)
    except RequestError as error:
        raise ConfigError(str(error)) from error


def _read_list(text: str) -> list[dict[str, str | None]]:
    import yaml

    from jobs._cli.values import NULL_TAG, compose_yaml

    error = ConfigError(f"blend_words: got {text!r}; allowed: two words, or [{{source: PHRASE, target: PHRASE}}, ...]")
    try:
        node = compose_yaml(text)
    except yaml.YAMLError as cause:
        raise error from cause
    phrases: list[dict[str, str | None]] = []
    for entry in node.value if isinstance(node, yaml.SequenceNode) else [None]:
        pairs = entry.value if isinstance(entry, yaml.MappingNode) else []
        if not all(isinstance(side, yaml.ScalarNode) for pair in pairs for side in pair):
            raise error
        # The nodes' own text, so that a phrase may be `no` or `7`.
        sides = {side.value: None if phrase.tag == NULL_TAG else phrase.value for side, phrase in pairs}
        if not sides or not sides.keys() <= {"source", "target"}:
            raise error
        phrases.append(sides)
    return phrases


def _sheet_row(config: EditImageConfig, output: ViMAEditOutput) -> dict[str, Any]:
    """Return the result as a row of the picture sheet, in the frame that was asked for."""
    import numpy as np

    from vimaedit.images import encode_image, encode_mask, paste_back, paste_mask, read_picture
    from vimaedit.types import Status

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


def _check_places(config: EditImageConfig) -> tuple[Path, Path]:
    """Return where the picture and the sheet go.

    Raises: ConfigError where they cannot be written, or would overwrite what is read.
    """
    from pipelines.store.location import check_writable, locate

    path = Path(config.output)
    sheet_path = path.with_name(f"{path.stem}_sheet.png")
    for name in ("image", "given_mask"):
        read = getattr(config, name)
        for written in (path, sheet_path):
            if read is not None and Path(read).resolve() == written.resolve():
                raise ConfigError(f"output: got {config.output!r}, which writes over {name}={read}; allowed: another file name")
    if path.is_dir():
        raise ConfigError(f"output: got {config.output!r}, which is a folder; allowed: a file name that ends in .png")
    check_writable(locate(str(path.parent)))
    return path, sheet_path


def _edit(config: EditImageConfig) -> int:
    from jobs._cli.progress import ProgressLine
    from pipelines.edit.sheet import draw_sheet
    from vimaedit import ViMAEditPipeline

    path, sheet_path = _check_places(config)
    blend = parse_blend_words(config.blend_words)
    pipe = ViMAEditPipeline(config, config)
    progress = ProgressLine(sys.stderr, unit="steps")
    try:
        output = pipe(
            config.image,
            config.source_prompt,
            config.target_prompt,
            blend=blend,
            mask=None if config.given_mask is None else read_given_mask(Path(config.given_mask)),
            callback_on_step_end=lambda pipe, step, timestep, state: progress(step + 1, config.steps),
        )
        progress.close()
        row = _sheet_row(config, output)
    except RequestError as error:  # the one record is the command line
        raise ConfigError(str(error)) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(row["edited_image"]["bytes"])
    sheet, _ = draw_sheet([row])
    sheet.save(sheet_path)
    for warning in output.warnings:
        logger.warning("%s", warning)
    changes = ", ".join(f"{phrase.source or '(nothing)'} -> {phrase.target or '(nothing)'}" for phrase in output.blend)
    print(f"changed: {changes or 'the whole picture'}\nedited:  {path}\nsheet:   {sheet_path}")
    return 0


def read_given_mask(path: Path) -> UInt8Array:
    """Read a mask file: non-zero where it marks the edit.

    Raises: ConfigError where there is none.
    """
    import numpy as np

    from vimaedit.images import decode_mask

    if not path.is_file():
        raise ConfigError(f"given_mask: got {str(path)!r}; allowed: a file that exists")
    return decode_mask(path.read_bytes()).astype(np.uint8)


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    exit_on_signals()
    from jobs._cli.main import run_job

    return run_job(EditImageConfig, _edit, words, name="edit_image", summary=__doc__ or "", required=REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
