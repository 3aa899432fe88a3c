"""Scores of single edits: what counts for which, and what becomes of rows without a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.scenes.benchmark import ScenesConfig, scene_record
from pipelines.scenes.marks import SceneScore, decode_picture, schema_of, score_row
from vimaedit.images import decode_mask, encode_image, encode_mask
from vimaedit.scenes.reading.agreement import region_psnr

SIZE, CELL = 128, 8
CONFIG = ScenesConfig(output="out", split="validation", count=7, size=SIZE)


def record(category: str, index: int = 0) -> dict[str, Any]:
    return scene_record(CONFIG, index, category)


def result(edited: np.ndarray, mask: np.ndarray | None, **values: Any) -> dict[str, Any]:
    base = {"status": "ok", "error_message": None, "grounded": mask is not None, "seconds": 0.25}
    base["edited_image"] = {"bytes": encode_image(edited, "png")}
    base["edit_mask"] = None if mask is None else {"bytes": encode_mask(mask)}
    return {**base, **values}


def cells(mask: np.ndarray, least: float = 0.5) -> np.ndarray:
    """Return a mask as the editor writes it: whole cells, those that the true mask fills to this share."""
    shares = mask.reshape(SIZE // CELL, CELL, SIZE // CELL, CELL).mean(axis=(1, 3))
    return np.kron(shares >= least, np.ones((CELL, CELL), dtype=bool)).astype(bool)


def test_the_exact_answer_has_the_best_scores() -> None:
    row = record("change_attribute_color")
    mask = decode_mask(row["reference_mask"]["bytes"])
    score = score_row(row, result(decode_picture(row["reference_image"]), cells(mask)), 21.5, CELL)
    assert score.success and score.edited_right and score.others_unchanged
    assert (score.mask_iou, score.mask_precision, score.mask_recall) == (1.0, 1.0, 1.0)
    assert score.target_psnr == score.target_psnr_inside == score.background_psnr == pytest.approx(58.92, abs=0.01)
    assert score.source_psnr is not None and score.source_psnr < 40 and score.clip == 21.5
    assert score.local and score.determined and score.grounded and score.seconds == 0.25
    assert score.id == "validation-0-000000" and score.category == "6_change_attribute_color"


def test_the_source_returned_is_no_success() -> None:
    row = record("change_attribute_color")
    source = decode_picture(row["image"])
    score = score_row(row, result(source, None), None, CELL)
    assert not score.success and not score.edited_right and score.others_unchanged
    assert (score.mask_iou, score.mask_precision, score.mask_recall, score.grounded) == (0.0, 0.0, 0.0, False)
    assert (score.target_psnr, score.target_psnr_inside) == (score.source_psnr, score.source_psnr_inside)


def test_the_background_is_what_the_true_mask_leaves() -> None:
    row = record("change_object")
    mask = decode_mask(row["reference_mask"]["bytes"])
    edited = decode_picture(row["reference_image"])
    edited[~mask] //= 2
    score = score_row(row, result(edited, ~cells(mask, 1e-9)), None, CELL)
    assert score.background_psnr == region_psnr(edited, decode_picture(row["image"]), ~mask)
    assert score.mask_iou == score.mask_precision == score.mask_recall == 0.0
    assert (
        score.target_psnr is not None and score.target_psnr < 30 and score.target_psnr_inside == pytest.approx(58.92, abs=0.01)
    )


@pytest.mark.parametrize("category", ["change_background", "change_style"])
def test_only_edits_of_one_object_have_mask_scores(category: str) -> None:
    row = record(category)
    score = score_row(row, result(decode_picture(row["reference_image"]), None), None, CELL)
    assert not score.local and score.mask_iou is None and score.success
    assert (score.background_psnr is None) == (category == "change_style")


def test_an_open_target_has_no_distance() -> None:
    row = record("add_object", 1)
    score = score_row(row, result(decode_picture(row["reference_image"]), None), None, CELL)
    assert not score.determined and score.success
    assert score.target_psnr is score.source_psnr is score.target_psnr_inside is score.source_psnr_inside is None


@pytest.mark.parametrize("status", ["failed", "rejected", "quarantined"])
def test_a_row_without_a_picture_is_no_success(status: str) -> None:
    row = record("change_object")
    failed = {"status": status, "error_message": "boom", "edited_image": None, "grounded": None, "seconds": 0.0}
    score = score_row(row, result(decode_picture(row["image"]), None, **failed), None, CELL)
    assert (score.status, score.error_message, score.success, score.mask_iou) == (status, "boom", False, 0.0)
    assert score.background_psnr is score.target_psnr is score.seconds is None and score.source_psnr is not None


def test_the_schema_names_every_field() -> None:
    schema = schema_of(SceneScore)
    assert schema.names == list(SceneScore.__dataclass_fields__)
    assert str(schema.field("success").type) == "bool" and str(schema.field("mask_iou").type) == "double"
