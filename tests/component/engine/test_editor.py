"""The editor on a real small model: batches, holes, options and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.component.conftest import picture, request
from vimaedit.config import Canvas, Thresholds, Windows
from vimaedit.engine.batch import StepState
from vimaedit.engine.editor import BatchEditor
from vimaedit.errors import RequestError
from vimaedit.methods.options import Segmenter
from vimaedit.step.rows import SOURCE, TARGET
from vimaedit.types import EditRequest, RequestOverrides, Status

MakeEditor = Callable[..., BatchEditor]


def latents(editor: BatchEditor, requests: list[EditRequest]) -> torch.Tensor:
    edits = [editor.prepare(r) for r in requests]
    return editor.run(editor.encode(edits), edits).latents


@pytest.mark.parametrize(("solver", "guidance"), [("ddim", 7.5), ("dpmsolver++", 2.0)])
def test_a_batch_equals_its_edits_one_by_one_in_any_order(make_editor: MakeEditor, solver: str, guidance: float) -> None:
    """Given masks, where no threshold can flip: latents within 1e-4 though every request has its own settings.

    DPM-Solver++ starts at the last level, where random weights under full guidance make latents of 50 and more; less guidance
    keeps them at the size for which the absolute tolerance is meant.
    """
    editor = make_editor(grounding="given", solver=solver, steps=5, target_guidance=guidance)
    overrides = [
        RequestOverrides(),
        RequestOverrides(target_guidance=3.0, image_strength=0.9),
        RequestOverrides(self_window=0.2, text_window=1.0, image_window=0.5),
        RequestOverrides(self_window=0.0, text_window=0.0, target_guidance=1.0),
        RequestOverrides(image_strength=0.0, self_window=1.0),
    ]
    requests = [request(n, overrides=o) for n, o in enumerate(overrides)]
    together = latents(editor, requests)
    shuffled = [3, 0, 4, 1, 2]
    reordered = latents(editor, [requests[n] for n in shuffled])
    for n, single in enumerate(requests):
        alone = latents(editor, [single])[:, 0]
        torch.testing.assert_close(together[:, n], alone, atol=1e-4, rtol=0)
        torch.testing.assert_close(reordered[:, shuffled.index(n)], alone, atol=1e-4, rtol=0)


def test_a_request_keeps_its_pixels_whatever_stands_in_the_other_slots(make_editor: MakeEditor) -> None:
    editor = make_editor()
    full = editor([request(0), request(1), request(2), request(3)])
    holes = editor([request(0), None, request(2), None])
    assert holes[1] is None and holes[3] is None
    for n in (0, 2):
        own, other = full[n], holes[n]
        assert own is not None and other is not None
        assert np.array_equal(own.image, other.image) and np.array_equal(own.edit_mask, other.edit_mask)


def test_results_are_in_order_and_in_one_frame(make_editor: MakeEditor) -> None:
    results = make_editor()([request(n) for n in (2, 0, 1)])
    assert [r.id for r in results if r] == ["record-2", "record-0", "record-1"]
    for result in results:
        assert result is not None and result.status is Status.OK and result.grounded is True and result.seconds > 0
        assert (
            result.image is not None and result.source is not None and result.image.shape == result.source.shape == (64, 64, 3)
        )
        assert result.edit_mask is not None and result.critical_mask is not None
        assert result.edit_mask.shape == result.critical_mask.shape == (64, 64)
        assert 0 < result.edit_mask.mean() < 1 and not (result.critical_mask & ~result.edit_mask).any()
        assert any("pictures mean nothing" in warning for warning in result.warnings)


def test_a_rejected_request_leaves_its_neighbours_alone(make_editor: MakeEditor) -> None:
    editor = make_editor()
    bad = request(1, target_prompt=" ")
    results = editor([request(0), bad, request(2)])
    assert results[1] is not None and results[1].status is Status.REJECTED and results[1].error_type == "prompt_empty"
    assert results[1].message is not None and results[1].message.startswith(
        "record 'record-1': target_prompt: got ' '; allowed:"
    )
    alone = editor([request(0), None, request(2)])
    assert results[0] is not None and alone[0] is not None and np.array_equal(results[0].image, alone[0].image)
    assert [r.status for r in editor([bad, bad]) if r] == [Status.REJECTED] * 2


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (
            {"overrides": RequestOverrides(edit_threshold=7.0)},
            "override_out_of_range",
            r"overrides.thresholds.edit: got 7.0; allowed: -1.0 to 1.0",
        ),
        (
            {"overrides": RequestOverrides(self_window=-1.0)},
            "override_out_of_range",
            r"overrides.windows.self: got -1.0; allowed: 0.0 to 1.0",
        ),
        (
            {"overrides": RequestOverrides(target_guidance=float("nan"))},
            "override_out_of_range",
            r"overrides.target_guidance: got nan; allowed: 0.0 to 100.0",
        ),
        ({"given_mask": None}, "given_mask_missing", r"given_mask: got null; allowed: a mask, with grounding=given"),
        (
            {"given_mask": np.ones((3, 5, 7), bool)},
            "mask_shape",
            r"given_mask: got an array of shape \(3, 5, 7\); allowed: \(height",
        ),
        (
            {"clip_image": picture(1)[:7, :7], "image": picture(1)[:64]},
            "image_shape",
            r"image: got 128x64 px beside clip_image; allowed: the canvas, 64x64 px",
        ),
        (
            {"clip_image": picture(1)[:7, :7], "image": picture(1, 64), "given_mask": np.ones((3, 5), bool)},
            "mask_shape",
            r"given_mask: got 5x3 px beside clip_image; allowed: the canvas, 64x64 px",
        ),
        ({"seed": -1}, "seed_out_of_range", r"seed: got -1; allowed: 0 to 2\*\*63 - 1"),
    ],
)
def test_what_a_request_may_not_say(make_editor: MakeEditor, options: dict[str, Any], code: str, text: str) -> None:
    with pytest.raises(RequestError, match=text) as caught:
        make_editor(grounding="given").prepare(request(0, **options))
    assert caught.value.code == code


def test_the_source_ends_where_it_began_and_the_mask_bounds_the_edit(make_editor: MakeEditor) -> None:
    editor = make_editor(grounding="given", steps=10)
    edit = editor.prepare(request(0))
    batch = editor.encode([edit])
    final = editor.run(batch, [edit])
    torch.testing.assert_close(final.latents[SOURCE], batch.x0, atol=2e-5, rtol=0)
    assert batch.given_mask is not None
    outside = ~batch.given_mask[:, None].expand_as(batch.x0)
    torch.testing.assert_close(final.latents[TARGET][outside], batch.x0[outside], atol=2e-5, rtol=0)
    assert float((final.latents[TARGET] - batch.x0)[~outside].abs().max()) > 0.1


def test_grounding_starts_at_its_step_and_sums_up(make_editor: MakeEditor) -> None:
    editor = make_editor(steps=10, grounding_start=0.4)
    edits = [editor.prepare(request(0)), editor.prepare(request(1))]
    states: list[StepState] = []
    editor.run(editor.encode(edits), edits, states.append)
    assert [state.map_sum is not None for state in states] == [False] * 3 + [True] * 7
    sums = [state.map_sum for state in states if state.map_sum is not None]
    assert all((later >= earlier).all() and (later > earlier).any() for earlier, later in zip(sums, sums[1:], strict=False))


BASE: dict[str, Any] = {"steps": 3, "thresholds": Thresholds(edit=0.3, critical=0.5), "blend": "given"}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "zero variance": {"variance": "zero"},
    "uniform variance": {"variance": "uniform"},
    "cross-attention grounding": {"grounding": "cross-attention"},
    "given mask": {"grounding": "given"},
    "no mask": {"blend": "none"},
    "image embedding alone": {"text_guidance": False},
    "no image embedding": {"image_guidance": False},
    "image strength 0": {"image_strength": 0.0},
    "conventional order": {"image_order": "conventional"},
    "guided source": {"source_guidance": 2.0},
    "dpm": {"solver": "dpmsolver++"},
    "replace": {"text_control": "replace"},
    "reweighted words": {"blend_weight": 3.0},
    "no windows": {"windows": Windows(self=0.0, text=0.0, image=0.0)},
}


def test_every_option_runs_and_tells_in_the_picture(make_editor: MakeEditor) -> None:
    from vimaedit.words.phrases import parse_blend

    pictures: dict[str, np.ndarray] = {}
    for name, options in VARIANTS.items():
        (result,) = make_editor(**{**BASE, **options})([request(0, blend=parse_blend("circle star"))])
        assert result is not None and result.status is Status.OK, (name, result)
        assert result.image is not None
        pictures[name] = result.image
    # The image prompt switched off and scaled by zero is the same edit; every other pair differs.
    assert np.array_equal(pictures.pop("image strength 0"), pictures["no image embedding"])
    for name, own in pictures.items():
        for other, compared in pictures.items():
            assert name == other or not np.array_equal(own, compared), f"{name!r} and {other!r} give the same picture"


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++"])
def test_few_steps(make_editor: MakeEditor, steps: int, solver: str) -> None:
    (result,) = make_editor(steps=steps, solver=solver)([request(0)])
    assert result is not None and result.status is Status.OK and result.edit_mask is not None


def test_words_that_give_no_mask_are_reported(make_editor: MakeEditor) -> None:
    editor = make_editor(steps=2)
    edit = editor.prepare(request(0))
    silent = dataclasses.replace(edit, words=dataclasses.replace(edit.words, word_mask=np.zeros_like(edit.words.word_mask)))
    batch = editor.encode([silent])
    (result,) = editor.finish([silent], batch, editor.run(batch, [silent]))
    assert result.status is Status.OK and result.grounded is False and result.edit_mask is None and result.critical_mask is None
    assert any(warning.startswith("ungrounded") for warning in result.warnings)


@pytest.mark.parametrize("value", [float("inf"), 3e38])
def test_overflow_is_a_failed_row_not_a_black_picture(make_editor: MakeEditor, value: float) -> None:
    """Whether the latents are infinite already, or only the decoder makes them so."""
    editor = make_editor(steps=2)
    edits = [editor.prepare(request(0)), editor.prepare(request(1))]
    batch = editor.encode(edits)
    final = editor.run(batch, edits)
    broken = final.latents.clone()
    broken[TARGET, 1] = value
    first, second = editor.finish(edits, batch, dataclasses.replace(final, latents=broken))
    assert first.status is Status.OK and second.status is Status.FAILED and second.error_type == "not_finite"
    assert second.message is not None and "overflowed in torch.float32" in second.message


def test_an_empty_given_mask_is_reported_and_changes_nothing(make_editor: MakeEditor) -> None:
    editor = make_editor(grounding="given", steps=5)
    edit = editor.prepare(request(0, given_mask=np.zeros((9, 9), dtype=bool)))
    batch = editor.encode([edit])
    final = editor.run(batch, [edit])
    (result,) = editor.finish([edit], batch, final)
    torch.testing.assert_close(final.latents[TARGET], batch.x0, atol=2e-5, rtol=0)
    assert any(warning.startswith("given_mask_empty") for warning in result.warnings)


def test_a_given_mask_marks_the_cells_whose_centres_it_covers(make_editor: MakeEditor) -> None:
    mask = np.zeros((128, 128), dtype=bool)
    mask[13:45, 64:] = True  # rows 13 to 44: the cells with their centres (4, 12, 20, ...) inside are 2, 3, 4 and 5
    editor = make_editor(grounding="given", canvas=Canvas())
    batch = editor.encode([editor.prepare(request(0, given_mask=mask))])
    assert batch.given_mask is not None
    assert batch.given_mask[0].any(1).nonzero().flatten().tolist() == [2, 3, 4, 5]
    assert batch.given_mask[0].any(0).nonzero().flatten().tolist() == list(range(8, 16))


def test_non_square_pictures_keep_their_shape(make_editor: MakeEditor) -> None:
    wide = np.concatenate([picture(1), picture(2)], axis=1)
    (result,) = make_editor(canvas=Canvas(fit="keep"))([request(0, image=wide, given_mask=None)])
    assert result is not None and result.image is not None and result.edit_mask is not None
    height, width = result.image.shape[:2]
    assert width > height and result.edit_mask.shape == (height, width)


def test_masks_of_a_segmenter_are_joined_with_those_of_the_method(make_editor: MakeEditor) -> None:
    """At the first step the attention is that of the method alone, so its mask is known."""
    first: dict[str, Any] = {"steps": 1, "grounding_start": 0.0, "canvas": Canvas()}
    plain = make_editor(**first)
    edits = [plain.prepare(request(n)) for n in range(2)]
    attention = plain.run(plain.encode(edits), edits).masks.edit[:, 0]
    for combine, missing in (("replace", "ignore"), ("replace", "reject"), ("union", "ignore"), ("intersection", "ignore")):
        options = Segmenter(combine=combine, missing=missing)
        editor = make_editor(**first, grounding="segmenter", segmenter=options)
        assert editor.config.reads_words is (missing == "ignore")
        found = request(0, image=edits[0].image, clip_image=edits[0].clip_image)
        requests = [found, request(1, given_mask=None)] if missing == "ignore" else [found]
        prepared = [editor.prepare(each) for each in requests]
        batch = editor.encode(prepared)
        final = editor.run(batch, prepared)
        assert batch.given_mask is not None
        given = batch.given_mask[0]
        joined = {"replace": given, "union": given | attention[0], "intersection": given & attention[0]}[combine]
        assert torch.equal(final.masks.edit[0, 0], joined)
        results = editor.finish(prepared, batch, final)
        assert results[0].mask_source == "segmenter"
        if missing == "ignore":
            assert torch.equal(final.masks.edit[1, 0], attention[1]) and results[1].mask_source == "attention"


def test_what_a_segmenter_found_may_be_too_small_to_count(make_editor: MakeEditor) -> None:
    speck = np.zeros((128, 128), dtype=bool)
    speck[0, 0] = True
    (result,) = make_editor(grounding="segmenter")([request(0, given_mask=speck)])
    assert result is not None and result.mask_source == "attention"
    assert any(warning.startswith("segmenter_mask_small: ") for warning in result.warnings)
