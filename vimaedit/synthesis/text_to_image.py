"""Pictures from captions, with the stock pipeline of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vimaedit.errors import ConfigError
from vimaedit.models.networks import load_pipeline, quiet_libraries
from vimaedit.types import UInt8Array

if TYPE_CHECKING:
    from vimaedit.models.files import ModelFiles

BATCH = 8  # pictures at a time


def load_text_to_image(files: ModelFiles, device: str, dtype: str) -> Any:
    """Load a model as the stock pipeline with its own scheduler, no safety checker.

    Raises: ConfigError for a folder that is no whole pipeline.
    """
    try:
        with quiet_libraries():
            pipe, _ = load_pipeline(files, getattr(torch, dtype))
    except ConfigError as error:
        raise ConfigError(
            f"model: got {files.name!r}, which does not load as a whole pipeline: {str(error).strip()}; allowed: a bundle or diffusers "
            "folder with all its parts"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def draw_pictures(pipe: Any, captions: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float) -> list[UInt8Array]:
    """Draw a picture of each caption from the noise of its own seed, (side, side, 3) each."""
    drawn: list[UInt8Array] = []
    for start in range(0, len(captions), BATCH):
        batch = slice(start, start + BATCH)
        output = pipe(
            prompt=list(captions[batch]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[batch]],
            output_type="np",
        )
        drawn.extend((output.images * 255).round().astype(np.uint8))
    return drawn
