"""Pipelines of diffusers as editors: the stock pipeline row by row is the judge, whatever the batch."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.hosted import write_pix2pix
from vimaedit.config import Canvas, ModelConfig
from vimaedit.engine.hosted import HostedEditor, load_hosted_editor
from vimaedit.engine.hosted_files import find_pipeline, hosted_digest, hosted_facts
from vimaedit.errors import ConfigError
from vimaedit.images import paste_back
from vimaedit.methods.options import Segmenter
from vimaedit.miniature.random_bundle import random_bundle
from vimaedit.models.files import recipe_config
from vimaedit.recipes import method_config
from vimaedit.types import EditRequest, EditResult, RequestOverrides

INSTRUCTIONS = ("make it blue", None, "turn it into a house")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pix2pix(tmp_path_factory.mktemp("pix2pix"))


@pytest.fixture(scope="module")
def hosted(folder: Path) -> HostedEditor:
    return load_hosted_editor(config(), ModelConfig(model=str(folder), device="cpu"))


def config(**options: Any) -> Any:
    arguments = {"arguments": {"image_guidance_scale": 1.3}, **options.pop("pipeline", {})}
    return method_config("pipeline", **{"steps": 3, "pipeline": arguments, **options})


def request(number: int, **options: Any) -> EditRequest:
    blobs = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(blobs).resize((128, 128), Image.Resampling.BICUBIC))
    given = {"instruction": INSTRUCTIONS[number % 3], "seed": 2**40 + number, **options}
    return EditRequest(id=f"r{number}", image=image, source_prompt="a cat", target_prompt="a dog", **given)


def stock(pipe: Any, asked: EditRequest, **options: Any) -> np.ndarray:
    with torch.inference_mode():
        (picture,) = pipe(
            prompt=asked.instruction or "make it a dog",
            image=Image.fromarray(asked.image),
            num_inference_steps=3,
            image_guidance_scale=1.3,
            generator=torch.Generator("cpu").manual_seed(asked.seed),
            **{"guidance_scale": 7.5, **options},
        ).images
    return np.asarray(picture)


def difference(result: EditResult | None, other: np.ndarray) -> int:
    assert result is not None and result.image is not None
    return int(np.abs(result.image.astype(int) - other).max())


def test_edits_are_those_of_the_stock_pipeline(hosted: HostedEditor) -> None:
    assert hosted.facts.batches and (hosted.facts.canvas_size, hosted.facts.granularity) == (128, 16)
    requests = [request(0), None, request(1), request(2, overrides=RequestOverrides(target_guidance=500.0))]
    first, hole, second, wrong = hosted(requests)
    assert hole is None and wrong is not None and wrong.error_type == "override_out_of_range"
    for result, asked in ((first, request(0)), (second, request(1))):
        assert difference(result, stock(hosted.pipe, asked)) <= 1
        assert result is not None and result.mask_source == "difference" and result.edit_mask is not None
    (alone,) = hosted([request(0)])
    assert difference(alone, stock(hosted.pipe, request(0))) == 0
    own = hosted([request(0), request(1, overrides=RequestOverrides(target_guidance=3.0))])
    beside = hosted([request(0), None])[0]  # whatever its neighbour asks for
    assert beside is not None and beside.image is not None and difference(own[0], beside.image) == 0
    assert difference(own[1], stock(hosted.pipe, request(1), guidance_scale=3.0)) == 0


def test_a_mask_that_marks_nothing_lets_nothing_be_pasted(hosted: HostedEditor) -> None:
    empty = np.zeros((128, 128), dtype=np.bool_)
    outside = {"grounding": "segmenter", "segmenter": Segmenter(combine="intersection")}
    for options, mask in (({"grounding": "given"}, empty), ({**outside, "pipeline": {"mask_threshold": 1.0}}, ~empty)):
        (result,) = HostedEditor(hosted.pipe, config(**options), hosted.facts, batches=False)([request(0, given_mask=mask)])
        assert result is not None and result.edit_mask is not None and not result.edit_mask.any()
        assert result.mask_source == options["grounding"] and result.warnings[0].startswith("given_mask_empty: ")
        pasted = paste_back(request(0).image, result.image, result.edit_mask, (0, 0, 128, 128))
        np.testing.assert_array_equal(pasted, request(0).image)


def test_a_pipeline_whose_batches_are_wrong_is_asked_one_by_one(hosted: HostedEditor) -> None:
    kind = type(hosted.pipe)

    class OneGenerator(kind):
        """As pipelines are that draw a batch's noise with its first generator."""

        @functools.wraps(kind.__call__)
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            if isinstance(options["generator"], list):
                options["generator"] = options["generator"][0]
            return super().__call__(*arguments, **options)

    class OnePicture(kind):
        """As pipelines are that take no lists."""

        @functools.wraps(kind.__call__)
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            if isinstance(options["image"], list):
                raise ValueError("one picture")
            return super().__call__(*arguments, **options)

    for wrong in (OneGenerator, OnePicture):
        assert inspect.signature(wrong.__call__) == inspect.signature(kind.__call__)
        editor = HostedEditor(wrong(**hosted.pipe.components, requires_safety_checker=False), config(), hosted.facts)
        editor.pipe.set_progress_bar_config(disable=True)
        assert not editor.facts.batches
        for result, asked in zip(editor([request(0), request(1)]), (request(0), request(1)), strict=True):
            assert difference(result, stock(hosted.pipe, asked)) == 0
    assert not HostedEditor(hosted.pipe, config(pipeline={"batch": "never"}), hosted.facts).facts.batches
    assert not HostedEditor(hosted.pipe, config(), hosted.facts, batches=False).facts.batches  # as it was settled elsewhere


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline": {"arguments": {"strength": 1}}}, "pipeline.arguments.strength: got 'strength', which a StableDiffusionInstructPix2Pix"),
        ({"pipeline": {"guidance": "true_cfg"}}, "pipeline.guidance: got 'true_cfg', which a .* does not take; allowed: callback_on"),
        ({"pipeline": {"batch": "always"}}, "pipeline.batch: got 'always'; allowed: auto, never"),
        ({"grounding": "vimaedit"}, "grounding: got vimaedit with method=pipeline; allowed: difference"),
    ],
)  # fmt: skip
def test_what_is_refused(hosted: HostedEditor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        HostedEditor(hosted.pipe, config(**options), hosted.facts)


def test_a_model_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    def load(model: str, **options: Any) -> None:
        load_hosted_editor(method_config("pipeline"), ModelConfig(model=model, device="cpu", **options))

    with pytest.raises(
        ConfigError, match="model: got a StableDiffusionPipeline, which takes no image; allowed: pipelines that edit"
    ):
        load(str(random_bundle() / "sd"))
    with pytest.raises(ConfigError, match="^clip: got 'x' with method=pipeline; allowed: nothing, for a hosted pipeline"):
        load(str(folder), clip="x")
    with pytest.raises(ConfigError, match="without model_index.json; allowed: a diffusers folder"):
        load(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionInstructPix2PixPipeline"}')
    with pytest.raises(ConfigError, match="a StableDiffusionInstructPix2PixPipeline that does not load"):
        load(str(tmp_path))


def test_a_folder_says_what_it_is_published_with_and_its_digest_what_is_in_it(folder: Path, tmp_path: Path) -> None:
    published = recipe_config(str(folder), "pipeline")
    assert (published.steps, published.target_guidance) == (100, 7.5) and recipe_config(str(folder)).steps == 50
    files = find_pipeline(ModelConfig(model=str(folder)))
    assert hosted_facts(files).family == "StableDiffusionInstructPix2PixPipeline"
    before = hosted_digest(files)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert hosted_digest(files) != before
    weights.write_bytes(data)
    assert hosted_digest(files) == before
    words = folder / "tokenizer" / "merges.txt"  # which says how texts are cut, as configs do
    words.write_text("#version: 0.2\n")
    assert hosted_digest(files) != before


@pytest.mark.parametrize(
    ("part", "changes", "outcome"),
    [
        ("unet", {"sample_size": [16, 24]}, 16 * 2),
        ("unet", {"sample_size": None}, 1024),
        ("unet", {"sample_size": -1}, "unet/config.json has sample_size: -1; allowed: a whole number above 0, or several"),
        ("unet", {"sample_size": 10**9}, "whose configs give a canvas that does not fit"),
        ("vae", {"block_out_channels": 5}, "vae/config.json has block_out_channels: 5; allowed: whole numbers above 0"),
    ],
)
def test_a_folder_says_its_canvas_in_any_form(part: str, changes: dict[str, Any], outcome: int | str, tmp_path: Path) -> None:
    configs: dict[str, dict[str, Any]] = {
        "unet": {"sample_size": 16, "block_out_channels": [1]},
        "vae": {"block_out_channels": [1, 2]},
    }
    configs[part] |= changes
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "model_index.json").write_text('{"_class_name": "APipeline"}')
    files = find_pipeline(ModelConfig(model=str(tmp_path)))
    if isinstance(outcome, int):
        assert hosted_facts(files).fit(Canvas()).size == outcome
        return
    with pytest.raises(ConfigError, match=outcome):
        hosted_facts(files).fit(Canvas())
