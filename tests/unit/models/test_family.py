"""What is said of a family, and how one is told from a model's files."""

from __future__ import annotations

import pickle
import re

import pytest

from vimaedit.errors import ConfigError
from vimaedit.models.family import reduction, unet_sizes
from vimaedit.models.files import family_of
from vimaedit.models.sd1 import SD1
from vimaedit.models.sd3 import SD3

UNET = {"sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768}
AUTOENCODER = {"block_out_channels": [128, 256, 512, 512]}


@pytest.mark.parametrize("named", ["StableDiffusionPipeline", "LatentConsistencyModelPipeline"])
def test_a_pipeline_is_of_the_family_that_it_is_laid_out_like(named: str) -> None:
    assert family_of({"_class_name": named}) is SD1


@pytest.mark.parametrize(("index", "got"), [({"_class_name": "KandinskyPipeline"}, "KandinskyPipeline"), ({}, "None")])
def test_another_kind_of_pipeline_is_refused_by_its_name(index: dict[str, str], got: str) -> None:
    text = f"model_config: got a {got}; allowed: models of the Stable Diffusion 1.x layout (StableDiffusionPipeline), "
    with pytest.raises(ConfigError, match=f"^{re.escape(text)}.*, by the _class_name of their model_index.json$"):
        family_of(index, "model_config")


def test_sizes_follow_from_the_configs() -> None:
    assert reduction(AUTOENCODER) == 8
    assert unet_sizes(UNET, AUTOENCODER) == (512, 64)
    assert unet_sizes({**UNET, "sample_size": [64, 48]}, AUTOENCODER) == (384, 64)
    assert SD3.sizes({"sample_size": [96, 128]}, AUTOENCODER) == (768, 16) and SD3.sizes({}, AUTOENCODER) == (1024, 16)
    assert SD3.largest_side is not None and SD3.largest_side({}, AUTOENCODER) == 96 * 16
    assert unet_sizes({"sample_size": 16, "block_out_channels": [48, 96, 96]}, AUTOENCODER) == (128, 32)


def test_the_public_adapter_fits_models_of_its_width() -> None:
    assert SD1.fits_image_prompt(UNET)
    assert not SD1.fits_image_prompt({**UNET, "cross_attention_dim": 1024})
    assert not SD1.fits_image_prompt({})


def test_a_family_goes_from_process_to_process() -> None:
    assert pickle.loads(pickle.dumps(SD1)) == SD1
