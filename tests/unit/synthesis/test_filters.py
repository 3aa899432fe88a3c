"""Filters of candidates: each with its threshold, its reason and its place in the funnel."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from pipelines.synthesis.columns import SCORES
from pipelines.synthesis.config import Filters
from pipelines.synthesis.filters import best_score, choose_best, judge, make_bounds, outcomes, rank_of
from pipelines.synthesis.scoring import pixel_scores
from pipelines.synthesis.selection import find_preferences, find_turns, split_of

ALL = {"scoring_clip": "clip", "lpips": "net", "lpips_heads": None, "aesthetic": "head", "safety": "head"}
GOOD: dict[str, Any] = {
    **dict.fromkeys(SCORES),
    "status": "ok",
    "error_type": None,
    "has_words": True,
    "has_mask": True,
    "pair_id": "p",
    "candidate": 0,
    "change": 0.2,
    "mask_fraction": 0.3,
    "background_psnr": 31.0,
    "background_lpips": 0.05,
    "clip_source": 0.3,
    "clip_target": 0.3,
    "clip_image": 0.8,
    "clip_direction": 0.4,
    "aesthetic": 6.0,
    "unsafe": -0.4,
}


def test_a_good_candidate_passes_and_the_funnel_has_an_order() -> None:
    filters = Filters(min_aesthetic=5.0)
    bounds, warnings = make_bounds(filters, ALL)
    assert judge(GOOD, filters, bounds) is None and warnings == []
    assert outcomes(filters, bounds) == [
        *("pair", "edit", "unchanged", "no_mask", "mask_size", "background_psnr", "background_lpips"),
        *(
            "clip_source",
            "clip_target",
            "clip_image",
            "clip_direction",
            "aesthetic",
            "unsafe",
            "best_of_pair",
            "duplicate",
            "kept",
        ),
    ]


@pytest.mark.parametrize(
    ("changes", "outcome", "reason"),
    [
        ({"status": "failed", "error_type": "ValueError"}, "edit", "failed: ValueError"),
        ({"change": 0.01}, "unchanged", "change 0.01 < 0.03"),
        ({"has_mask": False}, "no_mask", "words say what changes, but they gave no mask"),
        ({"mask_fraction": 0.001}, "mask_size", "mask_fraction 0.001 < 0.002"),
        ({"mask_fraction": 0.95}, "mask_size", "mask_fraction 0.95 > 0.9"),
        ({"background_psnr": 12.25}, "background_psnr", "background_psnr 12.25 < 20"),
        ({"background_lpips": 0.3}, "background_lpips", "background_lpips 0.3 > 0.2"),
        ({"clip_source": 0.1}, "clip_source", "clip_source 0.1 < 0.2"),
        ({"clip_target": 0.1}, "clip_target", "clip_target 0.1 < 0.2"),
        ({"clip_image": 0.5}, "clip_image", "clip_image 0.5 < 0.7"),
        ({"clip_image": 0.99}, "clip_image", "clip_image 0.99 > 0.95"),
        ({"clip_direction": -0.1}, "clip_direction", "clip_direction -0.1 < 0.2"),
        ({"clip_direction": math.nan}, "clip_direction", "clip_direction is not a number"),
        ({"aesthetic": 4.0}, "aesthetic", "aesthetic 4 < 5"),
        ({"unsafe": 0.1}, "unsafe", "unsafe 0.1 > 0"),
        ({"change": 0.0, "clip_image": 0.1}, "unchanged", "change 0 < 0.03"),  # the first that it fails counts
    ],
)
def test_each_filter_takes_out_what_it_is_for(changes: dict[str, Any], outcome: str, reason: str) -> None:
    filters = Filters(min_aesthetic=5.0, max_clip_image=0.95)
    bounds, _ = make_bounds(filters, ALL)
    assert judge({**GOOD, **changes}, filters, bounds) == (outcome, reason)


def test_what_does_not_apply_passes_and_what_is_off_is_off() -> None:
    filters = Filters()
    bounds, _ = make_bounds(filters, ALL)
    style = {
        **GOOD,
        "has_words": False,
        "has_mask": False,
        "mask_fraction": None,
        "background_psnr": None,
        "background_lpips": None,
    }
    assert judge(style, filters, bounds) is None
    none = Filters(**{field.name: None for field in dataclasses.fields(Filters) if field.name[:4] in ("min_", "max_")})
    none = dataclasses.replace(none, require_mask=False)
    bounds, warnings = make_bounds(none, ALL)
    assert bounds == [] and warnings == [] and outcomes(none, bounds) == ["pair", "edit", "best_of_pair", "kept"]
    assert judge({**GOOD, "change": 0.0, "has_mask": False}, none, bounds) is None


def test_a_filter_without_its_network_is_off_by_name() -> None:
    bounds, warnings = make_bounds(Filters(), {**ALL, "scoring_clip": None, "lpips": None, "safety": None})
    assert [bound.name for bound in bounds] == ["unchanged", "mask_size", "background_psnr"]
    assert warnings == [
        "filter background_lpips is off: lpips names no network",
        *(f"filter clip_{name} is off: scoring_clip names no network" for name in ("source", "target", "image", "direction")),
    ]
    assert best_score(Filters(), {"scoring_clip": None}) == "background_psnr"
    assert best_score(Filters(), ALL) == "clip_direction" and best_score(Filters(best_by="clip_target"), ALL) == "clip_target"


def test_the_best_of_a_pair_among_those_that_passed() -> None:
    rows = [{**GOOD, "pair_id": pair, "candidate": n} for n, pair in enumerate("aaabb")]
    ranks = [0.1, 0.9, 0.5, 0.3, 0.3]
    assert choose_best(rows, [0, 2, 3, 4], ranks, 1) == {2, 3}  # 1 did not pass; of equals the first wins
    assert choose_best(rows, [0, 1, 2, 3], ranks, 2) == {1, 2, 3}
    assert rank_of({**GOOD, "background_psnr": math.inf}, "background_psnr") == 1e9
    assert rank_of({**GOOD, "background_psnr": None}, "background_psnr") == -math.inf
    assert rank_of({**GOOD, "clip_direction": math.nan}, "clip_direction") == -math.inf


def test_the_change_counts_in_the_mask_and_the_background_outside_it() -> None:
    source = np.full((7, 11, 3), 100, dtype=np.uint8)
    edited = source.copy()
    mask = np.zeros((7, 11), dtype=np.bool_)
    mask[2:4, 3:8] = True
    edited[mask] = 151
    edited[0, 0] = 151
    scores = pixel_scores(source, edited, mask)
    assert scores["change"] == pytest.approx(51 / 255)
    assert scores["background_psnr"] == pytest.approx(-10 * math.log10(0.04 / 67))  # one of 67 pixels
    whole = pixel_scores(source, edited, None)
    assert whole["change"] == pytest.approx(51 / 255 * 11 / 77) and whole["background_psnr"] is None


def test_a_picture_has_one_split() -> None:
    splits = [split_of(f"picture {n}", 0, 0.3) for n in range(500)]
    assert 110 < splits.count("validation") < 190 and splits == [split_of(f"picture {n}", 0, 0.3) for n in range(500)]
    assert splits != [split_of(f"picture {n}", 1, 0.3) for n in range(500)]
    assert {split_of(f"{n}", 0, 0.0) for n in range(50)} == {"train"}
    assert {split_of(f"{n}", 0, 1.0) for n in range(50)} == {"validation"}


def test_preferences_pair_the_best_with_the_worst_that_is_safe() -> None:
    def decision(pair: str, candidate: int, rank: float | None, outcome: str, unsafe: float | None = -0.4) -> dict[str, Any]:
        return {"pair_id": pair, "candidate": candidate, "rank": rank, "outcome": outcome, "unsafe": unsafe}

    decisions = [
        decision("a", 0, 0.9, "kept"),
        decision("a", 1, 0.1, "clip_direction", unsafe=0.3),  # another filter took it out first
        decision("a", 2, 0.4, "best_of_pair"),
        decision("b", 0, 0.5, "kept"),
        decision("b", 1, 0.5, "best_of_pair"),
        decision("c", 0, 0.7, "mask_size"),
        decision("c", 1, 0.2, "mask_size"),
        decision("d", 0, 0.7, "kept"),
        decision("d", 1, None, "pair"),
        decision("d", 2, -math.inf, "edit"),
    ]
    assert [(best["candidate"], worst["candidate"]) for best, worst in find_preferences(decisions, 0.0)] == [(0, 2)]
    assert [(best["candidate"], worst["candidate"]) for best, worst in find_preferences(decisions, None)] == [(0, 1)]


def test_turns_join_the_best_edits_of_one_picture() -> None:
    def decision(row: int, pair: str, candidate: int, rank: float, outcome: str = "kept", digest: str = "x") -> dict[str, Any]:
        own = {"caption_file": "f", "caption_row": row, "source_digest": digest}
        return {**own, "pair_id": pair, "candidate": candidate, "rank": rank, "outcome": outcome}

    decisions = [
        *(decision(0, "a", 0, 0.3), decision(0, "a", 1, 0.8), decision(0, "c", 0, 0.1), decision(0, "b", 0, 0.9)),
        decision(0, "d", 0, 0.9, outcome="duplicate"),
        *(decision(1, "e", 0, 0.3), decision(1, "f", 0, 0.3, digest="y")),  # of two pictures
    ]
    found = [[(row["pair_id"], row["candidate"]) for row in turn] for turn in find_turns(decisions)]
    assert found == [[("a", 1), ("b", 0)], [("b", 0), ("c", 0)]]
