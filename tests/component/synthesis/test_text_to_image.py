"""Pictures drawn from captions by the stock pipeline, on the random model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from vimaedit.config import ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.models.files import ModelFiles, resolve_model
from vimaedit.synthesis.text_to_image import draw_pictures, load_text_to_image

CAPTIONS = ("a red star on a blue background", "two moons", "a sketch of a house")


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return resolve_model(ModelConfig(model="random"))


def test_a_picture_depends_on_its_caption_and_its_own_seed(files: ModelFiles) -> None:
    pipe = load_text_to_image(files, "cpu", "float32")
    options = {"steps": 2, "guidance": 3.0}
    first, second = draw_pictures(pipe, CAPTIONS[:2], [7, 8], **options)
    assert first.shape == (128, 128, 3) and first.dtype == np.uint8
    (alone,) = draw_pictures(pipe, CAPTIONS[1:2], [8], **options)
    assert np.abs(second.astype(int) - alone.astype(int)).max() <= 1
    (other,) = draw_pictures(pipe, CAPTIONS[1:2], [9], **options)
    assert (other != alone).any()


def test_a_folder_without_a_pipeline_is_refused(files: ModelFiles, tmp_path: Path) -> None:
    message = f"model: got {str(tmp_path)!r}, which does not load as a whole pipeline: "
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}(.|\n)*folder with all its parts$"):
        load_text_to_image(dataclasses.replace(files, name=str(tmp_path), diffusers=tmp_path), "cpu", "float32")
