"""What the model's card asks besides edits: how it is counted, and the whole of it on the random model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vimaedit.config import EditConfig, ModelConfig
from vimaedit.images import clip_view
from vimaedit.metrics.clip import ClipScore
from vimaedit.miniature.training.card import main, num_found, read_attributes, reader_rows, round_trip, text_to_image_row
from vimaedit.miniature.training.data import captioned_scene
from vimaedit.models.backbone import Backbone
from vimaedit.models.files import ModelFiles, resolve_model
from vimaedit.models.networks import load_networks
from vimaedit.scenes.benchmark import benchmark_seed
from vimaedit.scenes.reading.judge_compare import Comparison
from vimaedit.scenes.render import render_scene

CAPTIONS = ("a red star on a blue background", "two hearts", "a sketch of a circle")


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


def test_captioned_scenes_follow_from_their_seed() -> None:
    seeds = [benchmark_seed("validation", 0, index) for index in range(5)]
    first, again = ([captioned_scene(seed) for seed in seeds] for _ in range(2))
    assert first == again and len({caption for _, caption in first}) == 5
    assert any(scene.objects[0].shape in caption for scene, caption in first)


def test_the_reader_is_counted_by_kind_of_attribute() -> None:
    scene, _ = captioned_scene(benchmark_seed("validation", 0, 0))
    rows = dict.fromkeys(kind for kind, _ in read_attributes(scene, render_scene(scene, 128)))
    assert {"style", "shape", "colour", "material"} <= rows.keys() and "objects.0.shape" not in rows
    drawn = [[("shape", True), ("shape", True), ("style", True)]]
    returned = [[("shape", False), ("shape", True), ("style", True)]]
    assert reader_rows(drawn, returned) == [("shape", "2", "100.0", "50.0"), ("style", "1", "100.0", "100.0")]


def test_drawn_pictures_are_counted_by_what_is_right_of_them() -> None:
    def drawn(*objects: dict[str, bool], style: bool = True, num_missing: int = 0, num_extra: int = 0) -> Comparison:
        matches = (0,) * len(objects)
        return Comparison(
            scene={"style": style}, objects=objects, matches=matches, num_missing=num_missing, num_extra=num_extra
        )

    found = [
        drawn({"shape": True, "colour": True}),
        drawn({"shape": True, "colour": False}),
        drawn({"shape": True, "colour": True}, style=False),
        drawn({"shape": True, "colour": True}, num_extra=1),
    ]
    assert text_to_image_row(1, found) == ("1", "4", "25.0 [4.6, 69.9]", "75.0", "100.0", "75.0", "0.0", "25.0")


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split=all"]) == 2
    assert capsys.readouterr().err == "vimaedit.miniature.training.card: split: got 'all'; allowed: train, validation, test\n"


@pytest.mark.slow
def test_a_card_has_all_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=random", "split=validation", "count=3", "pictures=1", "steps=1", f"output={tmp_path}/card.md"]
    assert main(words) == 0
    text = (tmp_path / "card.md").read_text()
    assert text in capsys.readouterr().out
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert [title.split(",")[0] for title in titles] == [
        "## Autoencoder round trip",
        "## Attribute reader",
        "## Text to image",
        "## Retrieval",
    ]
    assert "| shape |" in text and "| steering CLIP | 3 |" in text
