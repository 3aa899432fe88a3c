"""The scoring CLIP, round trips and pictures drawn from captions, on the random model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.scenes.models import captioned_scene
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.images import clip_view
from vimaedit.metrics.clip import ClipScore
from vimaedit.models.backbone import Backbone
from vimaedit.models.files import ModelFiles, resolve_model
from vimaedit.models.networks import load_networks
from vimaedit.scenes.benchmark import benchmark_seed
from vimaedit.scenes.reading.models import draw_pictures, load_text_to_image, num_found, round_trip
from vimaedit.scenes.render import render_scene

CAPTIONS = ("a red star on a blue background", "two moons", "a sketch of a house")


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return resolve_model(ModelConfig(model="random"))


@pytest.fixture(scope="module")
def backbone(files: ModelFiles) -> Backbone:
    return Backbone(load_networks(files, ModelConfig(model="random")), EditConfig())


@pytest.fixture(scope="module")
def clip(files: ModelFiles) -> ClipScore:
    return ClipScore(str(files.clip))


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (len(CAPTIONS), 128, 128, 3), dtype=np.uint8))


def test_the_clip_embeds_as_the_editor_does(backbone: Backbone, clip: ClipScore) -> None:
    views = np.stack([clip_view(each, clip.side) for each in pictures()])
    for ours, theirs in (
        (clip.embed_images(pictures()), backbone.embed_images(views)),
        (clip.embed_texts(CAPTIONS), backbone.embed_texts(CAPTIONS)),
    ):
        torch.testing.assert_close(ours, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-6, rtol=0)


def test_a_picture_is_found_by_its_nearest_text(clip: ClipScore) -> None:
    nearest = (clip.embed_images(pictures()) @ clip.embed_texts(CAPTIONS).T).argmax(dim=1).tolist()
    own = [CAPTIONS[n] for n in nearest]
    assert num_found(clip, pictures(), CAPTIONS) == sum(n == place for place, n in enumerate(nearest))
    if len(set(own)) < len(own):  # equal texts are one
        assert num_found(clip, pictures(), [own[0]] * 3) == 3


def test_a_round_trip_decodes_what_was_encoded(backbone: Backbone) -> None:
    images = pictures()
    expected, _ = backbone.decode_latents(backbone.encode_images(images[2][None]))
    returned = round_trip(backbone, images)
    assert len(returned) == 3 and returned[2].dtype == np.uint8
    assert np.abs(returned[2].astype(int) - expected[0].astype(int)).max() <= 1


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
    message = f"text_to_image: got {str(tmp_path)!r}, which does not load: "
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}(.|\n)*or text_to_image=0$"):
        load_text_to_image(dataclasses.replace(files, name=str(tmp_path), diffusers=tmp_path), "cpu", "float32")


def test_captioned_scenes_follow_from_their_seed() -> None:
    seeds = [benchmark_seed("validation", 0, index) for index in range(5)]
    first, again = ([captioned_scene(seed) for seed in seeds] for _ in range(2))
    assert first == again and len({each.caption for each in first}) == 5
    assert any(each.scene.objects[0].shape in each.caption for each in first)
    assert render_scene(first[0].scene, 64).shape == (64, 64, 3)
