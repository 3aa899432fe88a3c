"""The front door for one picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.component.conftest import picture
from vimaedit import BlendPhrase, ConfigError, RequestError, ViMAEditPipeline

PROMPTS = ("a red circle on a blue background", "a red star on a blue background")


@pytest.fixture(scope="module")
def pipe() -> ViMAEditPipeline:
    return ViMAEditPipeline.from_pretrained("random", device="cpu", dtype="float32")


def test_one_call_gives_pictures_and_masks(pipe: ViMAEditPipeline) -> None:
    output = pipe(Image.fromarray(picture(1, 160)), *PROMPTS, num_inference_steps=3, generator=7)
    assert output.images[0].size == output.sources[0].size == (128, 128) and output.crop_box == (0, 0, 160, 160)
    mask = output.masks[0]
    assert mask is not None and mask.mode == "L" and set(np.unique(mask)) <= {0, 255}
    assert output.blend == (BlendPhrase(source="circle", target="star"),)
    assert any("mean nothing" in warning for warning in output.warnings)


def test_pictures_come_in_any_form(pipe: ViMAEditPipeline, tmp_path: Path) -> None:
    array = picture(2)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    (tmp_path / "picture.png").write_bytes(buffer.getvalue())
    forms: list[Any] = [array, Image.fromarray(array), tmp_path / "picture.png", str(tmp_path / "picture.png")]
    results = [np.asarray(pipe(form, *PROMPTS, num_inference_steps=1).images[0]) for form in forms]
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_the_generator_gives_the_seed(pipe: ViMAEditPipeline) -> None:
    def edit(generator: torch.Generator | int | None) -> np.ndarray:
        return np.asarray(pipe(picture(3), *PROMPTS, num_inference_steps=2, generator=generator).images[0])

    same = edit(torch.Generator().manual_seed(11))
    assert (
        np.array_equal(same, edit(11))
        and np.array_equal(same, edit(np.int64(11)))
        and not np.array_equal(same, edit(12))
        and np.array_equal(edit(None), edit(0))
    )
    with pytest.raises(ConfigError, match=r"generator: got the seed -1; allowed: 0 to 2\*\*63 - 1"):
        edit(-1)


def test_the_callback_sees_every_step(pipe: ViMAEditPipeline) -> None:
    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def watch(own: ViMAEditPipeline, step: int, timestep: int, state: dict[str, Any]) -> None:
        assert own is pipe and state["masks"].edit.shape == (1, 1, 16, 16)
        seen.append((step, timestep, tuple(state["latents"].shape)))

    pipe(picture(3), *PROMPTS, num_inference_steps=3, callback_on_step_end=watch)
    assert seen == [(0, 667, (2, 1, 4, 16, 16)), (1, 334, (2, 1, 4, 16, 16)), (2, 1, (2, 1, 4, 16, 16))]


def test_given_masks_phrases_and_weights(pipe: ViMAEditPipeline) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 9
    opaque = Image.merge("RGBA", [*[Image.fromarray(mask)] * 3, Image.new("L", (64, 64), 255)])  # alpha does not count
    output = pipe(picture(4), *PROMPTS, num_inference_steps=2, mask=opaque, grounding="given")
    own = output.masks[0]
    assert own is not None and np.asarray(own)[:64].all() and not np.asarray(own)[64:].any()
    plain = pipe(picture(4), *PROMPTS, num_inference_steps=2, blend=[("red circle", "red star")])
    assert plain.blend == (BlendPhrase(source="red circle", target="red star"),)
    weighted = pipe(picture(4), *PROMPTS, num_inference_steps=2, blend=[("red circle", "red star")], reweight={"star": 5.0})
    assert not np.array_equal(plain.images[0], weighted.images[0])


def test_a_picture_of_any_kind_is_edited_in_its_own_frame(pipe: ViMAEditPipeline, tmp_path: Path) -> None:
    large = np.asarray(Image.fromarray(picture(4)).resize((200, 140), Image.Resampling.BICUBIC))
    soft = np.zeros((70, 100), np.uint8)
    soft[20:50, 40:70], soft[50, 40:70] = 255, 99
    path = tmp_path / "mask.png"
    Image.fromarray(soft).save(path)
    options = {"num_inference_steps": 2, "grounding": "given", "frame": "original"}
    output = pipe(large, *PROMPTS, mask=path, **options)
    edited, mask = np.asarray(output.images[0]), np.asarray(output.masks[0]) > 0
    assert (np.asarray(output.sources[0]) == large).all() and output.crop_box == (0, 0, 200, 140)
    assert 0 < mask.sum() < mask.size / 3
    assert (edited[~mask] == large[~mask]).all() and (edited[mask] != large[mask]).any()
    assert [warning.partition(":")[0] for warning in output.warnings][0] == "mask_not_black_and_white"
    frame = np.asarray(pipe(large, *PROMPTS, mask=path, paste="frame", **options).images[0])
    assert (frame[:, 30:170][~mask[:, 30:170]] != large[:, 30:170][~mask[:, 30:170]]).any()
    assert (frame[:, :30] == large[:, :30]).all()
    with pytest.raises(RequestError, match="^given_mask: got 100x100 px for a picture of 200x140 px; allowed: any size of the"):
        pipe(large, *PROMPTS, mask=np.eye(100), **options)


def test_what_is_wrong_is_said(pipe: ViMAEditPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="options: got stepz; allowed: auxiliary, blend"):
        pipe(picture(1), *PROMPTS, stepz=3)
    with pytest.raises(ConfigError, match="from_pretrained: got torch_dtype; allowed: clip, compile, device, dtype"):
        ViMAEditPipeline.from_pretrained("random", torch_dtype="float32")
    with pytest.raises(ConfigError, match="mask: got one with grounding=vimaedit; allowed: grounding='given'"):
        pipe(picture(1), *PROMPTS, mask=picture(1)[..., 0])
    with pytest.raises(RequestError, match=r"mask: got an array of shape \(8,\); allowed: \(height, width\)"):
        pipe(picture(1), *PROMPTS, mask=np.ones(8, np.uint8), grounding="given")
    with pytest.raises(RequestError, match="source_prompt: got NoneType; allowed: a text"):
        pipe(picture(1), None, "a dog")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="generator: got str; allowed: a torch.Generator, or a seed"):
        pipe(picture(1), *PROMPTS, generator="7")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="target_prompt: got ''"):
        pipe(picture(1), "a cat", "")
    with pytest.raises(RequestError, match="image: got '.*none.png'; allowed: a file that exists"):
        pipe(tmp_path / "none.png", *PROMPTS)
    with pytest.raises(RequestError, match=r"image: got float64 \(8, 8\); allowed: uint8"):
        pipe(np.zeros((8, 8)), *PROMPTS)  # type: ignore[arg-type]


def test_image_guidance_can_be_switched_on_later() -> None:
    pipe = ViMAEditPipeline.from_pretrained("random", device="cpu")
    without = pipe(picture(1), *PROMPTS, num_inference_steps=1, image_guidance=False)
    assert without.images[0].size == (128, 128)
    assert pipe(picture(1), *PROMPTS, num_inference_steps=1).images[0].size == (128, 128)
