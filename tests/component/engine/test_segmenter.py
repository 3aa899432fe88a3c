"""Masks from outside, by real networks of transformers: tiny ones with random weights, and one whose weights see colours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.segmenters import red_and_blue, write_grounding_dino, write_owlvit, write_sam
from vimaedit.config import EditConfig
from vimaedit.engine.segmenter import Segmenter, find_segmenter, segmenter_digest, sought_phrases
from vimaedit.errors import ConfigError, RequestError
from vimaedit.methods.options import Segmenter as Options
from vimaedit.scenes.render import object_pixels, render_scene
from vimaedit.types import BlendPhrase, EditRequest

SIDE = 128
SCENE = red_and_blue()
PICTURE = render_scene(SCENE, SIDE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("segmenters")
    colours, random = (write_owlvit(root / name, sees_colours=name == "colours") for name in ("colours", "random"))
    return {"colours": colours, "random": random, "sam": write_sam(root / "sam")}


@pytest.fixture(scope="module")
def colours(folders: dict[str, Path]) -> Segmenter:
    """A segmenter that can be trusted: it marks the cells whose colour is named."""
    return Segmenter(configured(detector=str(folders["colours"]), model=None, threshold=0.5))


def configured(**options: Any) -> EditConfig:
    return EditConfig(grounding="segmenter", segmenter=Options(**options))


def ask(source: str, target: str, **fields: Any) -> EditRequest:
    return EditRequest(id="a", image=PICTURE, source_prompt=source, target_prompt=target, **fields)


def overlap(found: Any, index: int) -> float:
    truth = object_pixels(SCENE, index, SIDE)
    return float((found & truth).sum() / (found | truth).sum())


def test_what_changes_is_found_in_a_drawn_scene(colours: Segmenter) -> None:
    for index, name in enumerate(("red square", "blue circle")):
        mask, warnings = colours.find(PICTURE, ask(f"a {name}", "a green star"))
        assert mask is not None and mask.shape == (SIDE, SIDE) and warnings == ()
        # Its boxes are of 4 px, and the library centres them at the cells' far corners.
        assert overlap(mask, index) > 0.75 and overlap(mask, 1 - index) < 0.02
    both, _ = colours.find(
        PICTURE,
        ask("", "", blend=(BlendPhrase(source="red square", target="cat"), BlendPhrase(source="blue circle", target=None))),
    )
    found = [colours.find(PICTURE, ask(f"a {name}", "a"))[0] for name in ("red square", "blue circle")]
    assert both is not None and (both == np.logical_or(*found)).all()


def test_a_mask_depends_on_picture_and_phrase_alone(colours: Segmenter) -> None:
    asked = ask("a red square", "a dog")
    before, _ = colours.find(PICTURE, asked)
    other = np.ascontiguousarray(PICTURE[:, ::-1])
    mirrored, _ = colours.find(other, asked)
    colours.kept.clear()
    again, _ = colours.find(PICTURE, dataclasses.replace(asked, blend=(BlendPhrase(source="red square", target=None),)))
    assert len(colours.kept) == 1
    cached, _ = colours.find(PICTURE.copy(), asked)
    assert len(colours.kept) == 1 and (before == again).all() and (cached == again).all() and (mirrored != again).any()


def test_what_is_not_found_is_said(colours: Segmenter, folders: dict[str, Path]) -> None:
    mask, warnings = colours.find(PICTURE, ask("a green star", "a dog"))
    assert mask is None
    assert warnings == ("segmenter_missed: 'green star', not seen in the picture; the mask is the method's own",)
    one = ask("", "", blend=(BlendPhrase(source="red square", target=None), BlendPhrase(source="green star", target=None)))
    mask, warnings = colours.find(PICTURE, one)
    assert mask is not None and warnings == ("segmenter_missed: 'green star', not seen in the picture",)
    assert colours.find(PICTURE, ask("a", "a cat"))[1] == (
        "segmenter_missed: no words of what is in the picture; the mask is the method's own",
    )
    _, warnings = colours.find(PICTURE, ask("a", "a cat", instruction="red square " * 20))
    assert warnings[0] == f"segmenter_phrase_cut: of {'red square ' * 20!r} the detector reads the beginning"
    strict = Segmenter(configured(detector=str(folders["colours"]), model=None, threshold=0.5, missing="reject"))
    with pytest.raises(
        RequestError, match="segmenter: got 'green star', not seen in the picture; allowed: words of what the picture"
    ):
        strict.find(PICTURE, ask("a green star", "a dog"))


def test_words_that_change_are_sought_before_the_instruction() -> None:
    config = configured()
    made = ask("a red square", "a blue square", instruction="make it blue")
    assert sought_phrases(made, config) == ("red",)
    assert sought_phrases(dataclasses.replace(made, blend=(BlendPhrase(source="square", target="x"),)), config) == ("square",)
    assert sought_phrases(made, dataclasses.replace(config, blend="given")) == ("make it blue",)
    assert sought_phrases(ask("a square", "a square with a hat"), config) == ()
    assert sought_phrases(ask("a square", "a square with a hat", instruction="add a hat"), config) == ("add a hat",)


def test_boxes_and_outlines_are_those_of_the_stock_calls(folders: dict[str, Path]) -> None:
    import transformers

    threshold = 0.4
    segmenter = Segmenter(configured(detector=str(folders["random"]), model=str(folders["sam"]), threshold=threshold))
    picture = PICTURE[:, :96]
    mask, _ = segmenter.find(picture, ask("a red square", "a dog"))
    image = Image.fromarray(picture)
    detector = transformers.pipeline("zero-shot-object-detection", model=str(folders["random"]), device="cpu")
    boxes = segmenter._boxes(picture, "red square")
    expected = detector(image, candidate_labels=["red square"], threshold=threshold)
    assert [[int(value) for value in box] for box in boxes] == [list(each["box"].values()) for each in expected]
    model, processor = (kind.from_pretrained(folders["sam"]) for kind in (transformers.SamModel, transformers.SamProcessor))
    outlined = np.zeros((SIDE, 96), dtype=np.bool_)
    assert len(boxes) > 1
    with torch.no_grad():
        for box in boxes:  # one by one here, together there
            inputs = processor(image, input_boxes=[[box]], return_tensors="pt")
            outputs = model(**inputs, multimask_output=False)
            (found,) = processor.image_processor.post_process_masks(
                outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
            )
            outlined |= found[0, 0].numpy()
    assert mask is not None and 0 < outlined.mean() < 1 and (mask != outlined).mean() < 0.001


def test_a_grounding_dino_is_asked_in_its_own_way(tmp_path: Path) -> None:
    segmenter = Segmenter(configured(detector=str(write_grounding_dino(tmp_path / "dino")), model=None, threshold=0.2))
    mask, _ = segmenter.find(PICTURE, ask("a red square", "a blue square"))
    assert mask is not None and mask.any()
    asked = segmenter._boxes(PICTURE, "Red square")
    assert asked == segmenter._boxes(PICTURE, "red square.") and asked


def test_other_networks_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"segmenter.detector: got .*sam', which does not work .*allowed: a zero-shot object detector"
    ):
        Segmenter(configured(detector=str(folders["sam"]), model=None))
    with pytest.raises(ConfigError, match=r"segmenter.model: got .*random', which does not work .*allowed: SAM or one like it"):
        Segmenter(configured(detector=str(folders["random"]), model=str(folders["random"])))
    with pytest.raises(ConfigError, match=r"segmenter.detector: got '\./nothing', which is no file or folder here"):
        Segmenter(configured(detector="./nothing", model=None))
    with pytest.raises(ConfigError, match="segmenter.detector: .*holds no weights"):
        segmenter_digest(find_segmenter(Options(detector=str(tmp_path), model=None)))


def test_the_digest_is_that_of_contents(folders: dict[str, Path], tmp_path: Path, copied: Callable[..., Path]) -> None:
    options = Options(detector=str(folders["random"]), model=str(folders["sam"]))
    digest = segmenter_digest(find_segmenter(options))
    moved = copied(folders["random"], tmp_path / "moved")
    assert segmenter_digest(find_segmenter(dataclasses.replace(options, detector=str(moved)))) == digest
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    assert segmenter_digest(find_segmenter(dataclasses.replace(options, detector=str(moved)))) != digest
    assert segmenter_digest(find_segmenter(dataclasses.replace(options, model=None))) != digest


@pytest.fixture
def copied() -> Callable[..., Path]:
    import shutil

    return lambda source, target: Path(shutil.copytree(source, target))
