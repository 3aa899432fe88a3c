"""One picture, edited on this machine without Ray: its settings, the files that are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.edit.sheet import draw_sheet
from pipelines.options import Frame, check_bases
from pipelines.store.location import check_writable, locate
from pipelines.store.masking import mask_urls
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.decoding import read_picture
from vimaedit.errors import ConfigError, RequestError
from vimaedit.images import encode_image, encode_mask
from vimaedit.marks import COMPOSITE, GENERATED, make_mark, mark_options
from vimaedit.mask_decoding import read_mask
from vimaedit.types import Status

if TYPE_CHECKING:
    from vimaedit import BlendPhrase, ViMAEditOutput, ViMAEditPipeline


@dataclass(frozen=True, kw_only=True)
class EditImageConfig(Frame, EditConfig, ModelConfig):
    """`jobs.edit_image`: one picture's record, the edit and the model, flat."""

    image: str = ""  # local picture file
    source_prompt: str = ""  # what the picture shows
    target_prompt: str = ""  # what it shall show
    output: str = ""  # local .png file; NAME_sheet.png goes beside it
    blend_words: str = ""  # what changes: "cat dog", or [{source: tabby cat, target: dog}]; nothing: see `blend`
    given_mask: str | None = None  # local picture file, white = edit; for grounding=given
    instruction: str | None = None  # what a hosted pipeline is asked for; unset: pipeline.template of the prompts

    def __post_init__(self) -> None:
        check_bases(self, EditImageConfig)
        if Path(self.output).suffix.lower() != ".png" or "://" in self.output:  # a URL would be a folder named `s3:`
            raise ConfigError(f"output: got {self.output!r}; allowed: a file name that ends in .png")
        if (self.given_mask is None) == (self.grounding == "given"):
            raise ConfigError(
                f"given_mask: got {self.given_mask!r} with grounding={self.grounding}; allowed: both given_mask=FILE and "
                "grounding=given, or neither"
            )


@dataclass(frozen=True, kw_only=True)
class PictureSummary:
    """What one edit came to."""

    edited: Path
    sheet: Path
    blend: Sequence[BlendPhrase]
    warnings: Sequence[str]

    def text(self) -> str:
        """Say what changed, and where the files are."""
        changes = ", ".join(f"{phrase.source or '(nothing)'} -> {phrase.target or '(nothing)'}" for phrase in self.blend)
        return f"changed: {changes or 'the whole picture'}\nedited:  {self.edited}\nsheet:   {self.sheet}"


@dataclass(frozen=True, kw_only=True, eq=False)
class OnePicture:
    """A picture that may be edited, and what changes; checked without a model."""

    config: EditImageConfig
    blend: Sequence[BlendPhrase]
    is_generated: bool = False  # its mark says that a model has drawn it

    @property
    def mark(self) -> bytes:
        """What an edit of it, or a sheet of edits, carries."""
        return make_mark(GENERATED if self.is_generated else COMPOSITE, model=mask_urls(self.config.model))

    def edit(self, pipe: ViMAEditPipeline, on_step: Callable[..., None] | None = None) -> ViMAEditOutput:
        """Edit it; the model is loaded with the first edit.

        Raises: ConfigError for what cannot be edited: the one record is the command line.
        """
        config = self.config
        try:
            return pipe(
                config.image,
                config.source_prompt,
                config.target_prompt,
                blend=self.blend,
                mask=config.given_mask,
                instruction=config.instruction,
                frame=config.frame,
                paste=config.paste,
                callback_on_step_end=on_step,
            )
        except RequestError as error:
            raise ConfigError(str(error)) from error


def look_at(config: EditImageConfig, blend: Sequence[BlendPhrase], written: Sequence[Path]) -> OnePicture:
    """Read the picture and its mask, and look at the places that will be written.

    Raises: ConfigError where that cannot be done, or would write over what is read.
    """
    for name in ("image", "given_mask"):
        read = getattr(config, name)
        if read is not None and Path(read).resolve() in [path.resolve() for path in written]:
            raise ConfigError(f"output: got {config.output!r}, which writes over {name}={read}; allowed: another file name")
    if Path(config.output).is_dir():
        raise ConfigError(f"output: got {config.output!r}, which is a folder; allowed: a file name that ends in .png")
    check_writable(locate(str(Path(config.output).parent)))
    try:
        is_generated = read_picture(config.image).is_generated
        if config.given_mask is not None:
            read_mask(config.given_mask)
    except RequestError as error:
        raise ConfigError(str(error)) from error
    return OnePicture(config=config, blend=blend, is_generated=is_generated)


def places(config: EditImageConfig) -> tuple[Path, Path]:
    """Return where the edited picture goes, and its sheet."""
    path = Path(config.output)
    return path, path.with_name(f"{path.stem}_sheet.png")


def edit_picture(picture: OnePicture, progress: Callable[[int, int], None]) -> PictureSummary:
    """Edit the picture, and write the result and its sheet; `progress` is told steps done, of how many.

    Raises: ConfigError.
    """
    from vimaedit import ViMAEditPipeline

    config = picture.config
    path, sheet_path = places(config)
    pipe = ViMAEditPipeline(config, config)
    output = picture.edit(pipe, lambda pipe, step, timestep, state: progress(step + 1, config.steps))
    row = _sheet_row(picture, output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(row["edited_image"]["bytes"])
    sheet, _ = draw_sheet([row])
    sheet.save(sheet_path, **mark_options(picture.mark, "png"))
    return PictureSummary(edited=path, sheet=sheet_path, blend=output.blend, warnings=output.warnings)


def _sheet_row(picture: OnePicture, output: ViMAEditOutput) -> dict[str, Any]:
    """Return the result as a row of the picture sheet, in the frame that was asked for."""
    config = picture.config
    source, edited = np.asarray(output.sources[0]), np.asarray(output.images[0])
    masks = [mask if mask is None else np.asarray(mask) > 0 for mask in (output.masks[0], output.critical_masks[0])]
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
        "edited_image": {"bytes": encode_image(edited, "png", picture.mark)},
        "edit_mask": edit_mask,
        "critical_mask": critical_mask,
    }
