"""From scored edits of drawn scenes to the benchmark's numbers: means, intervals, paired differences, verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.scenes.marks import AttributeReading, RoundTripScore, SceneScore
from vimaedit.metrics.statistics import CONFIDENCE, RESAMPLES, Interval, paired_bootstrap, wilson_interval
from vimaedit.scenes.reading.judge_compare import Comparison
from vimaedit.types import Status

DEFAULT = "default"  # the variant that the others are compared with
BOOTSTRAP_SEED = 0
MEASURES = {  # of each edit, more is better: what two variants are compared by
    "success": "success",
    "background_psnr": "background PSNR",
    "mask_iou": "mask IoU",
    "clip": "CLIP",
}
MEANS = (
    *("mask_iou", "mask_precision", "mask_recall", "background_psnr", "target_psnr", "target_psnr_inside"),
    *("source_psnr", "source_psnr_inside", "clip", "seconds"),
)
VERDICTS = {1: "better", -1: "worse", 0: "undecided"}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the method's paper says of an ablation: which measure gets better (1) or worse (-1) than the full method's."""

    variant: str
    measures: tuple[str, ...]
    direction: int
    text: str


PAPER = (
    Claim(
        variant="no-image-guidance",
        measures=("background_psnr",),
        direction=-1,
        text="without image guidance the background is kept less well",
    ),
    Claim(
        variant="no-image-guidance",
        measures=("success", "clip"),
        direction=-1,
        text="without image guidance edits follow the prompt less",
    ),
    Claim(
        variant="cross-attention",
        measures=("success", "background_psnr", "mask_iou", "clip"),
        direction=-1,
        text="cross-attention alone grounds worse by every measure",
    ),
    Claim(
        variant="zero-variance",
        measures=("success", "clip"),
        direction=-1,
        text="without injected noise edits follow the prompt less",
    ),
    Claim(
        variant="uniform-variance",
        measures=("success", "clip"),
        direction=1,
        text="noise everywhere makes edits follow the prompt more",
    ),
    Claim(
        variant="uniform-variance",
        measures=("background_psnr",),
        direction=-1,
        text="noise everywhere costs background",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """How many of `total` pictures a CLIP gave their own caption among all of them."""

    name: str
    found: int
    total: int


def make_numbers(
    *,
    scores: Mapping[str, Sequence[SceneScore]],
    trips: Sequence[RoundTripScore],
    drawn: Sequence[Comparison],
    found: Sequence[Found],
    source_clip: Sequence[float] | None,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that the tables show, as plain values. Shares are 0 to 1; an interval is value, low, high."""
    default = scores[DEFAULT]
    variants = [
        {
            "variant": name,
            **summarise(rows),
            "background_to_round_trip": difference(
                [row.background_psnr for row in rows], [trip.background_psnr for trip in trips]
            ),
            "differences": {} if name == DEFAULT else {measure: compare(rows, default, measure) for measure in MEASURES},
        }
        for name, rows in scores.items()
    ]
    return {
        "facts": {**facts, "confidence": CONFIDENCE, "resamples": RESAMPLES, "bootstrap_seed": BOOTSTRAP_SEED},
        "variants": variants,
        "categories": [
            {"category": name, **summarise([row for row in default if row.category == name])}
            for name in sorted({row.category for row in default})
        ],
        "model": {
            "round_trip": {
                "psnr": mean(trip.psnr for trip in trips),
                "least_psnr": min(trip.psnr for trip in trips),
                "background_psnr": mean(trip.background_psnr for trip in trips),
            },
            "reader": reader_shares(trips),
            "text_to_image": text_to_image_shares(drawn),
            "retrieval": [{"clip": each.name, "total": each.total, **share(each.found, each.total)} for each in found],
            "source_clip": mean(source_clip or []),
        },
        "verdicts": [
            {"variant": each["variant"], **{measure: verdict(found) for measure, found in each["differences"].items()}}
            for each in variants
            if each["variant"] != DEFAULT
        ],
        "claims": [judged for claim in PAPER if claim.variant in scores for judged in judge_claim(claim, variants)],
    }


def trade(variants: Sequence[Mapping[str, Any]], editors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Set what each variant takes beside what it gives. `front`: no other takes no more time and is nowhere worse.

    `editors`: the method and model of each variant.
    """
    measures = ("success", "target_psnr", "background_psnr")
    rows = []
    for each in variants:
        values = {"success": each["success"]["value"], **{name: each[name] for name in measures[1:]}}
        rows.append({"variant": each["variant"], "editor": editors[each["variant"]], "seconds": each["seconds"], **values})

    def dominates(other: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
        ours, theirs = ([-each["seconds"], *[each[name] for name in measures]] for each in (other, row))
        return all(a >= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs

    known = [row for row in rows if None not in row.values()]
    return [{**row, "front": row in known and not any(dominates(other, row) for other in known)} for row in rows]


def summarise(rows: Sequence[SceneScore]) -> dict[str, Any]:
    """Return counts, shares of all rows with their intervals, and means over the rows that have the value."""
    statuses = [row.status for row in rows]
    return {
        "rows": len(rows),
        "statuses": {str(status): statuses.count(status) for status in Status if status in statuses},
        "not_ok": sum(status != Status.OK for status in statuses),
        "local": sum(row.local for row in rows),
        "determined": sum(row.determined for row in rows),
        **{
            name: share(sum(getattr(row, name) for row in rows), len(rows))
            for name in ("success", "edited_right", "others_unchanged")
        },
        **{name: mean(getattr(row, name) for row in rows) for name in MEANS},
    }


def compare(rows: Sequence[SceneScore], default: Sequence[SceneScore], measure: str) -> dict[str, Any] | None:
    """Return the mean paired difference of a measure to the default's with its interval; None without pairs."""
    assert [row.id for row in rows] == [row.id for row in default]
    return difference([getattr(row, measure) for row in rows], [getattr(row, measure) for row in default])


def difference(ours: Sequence[float | None], theirs: Sequence[float | None]) -> dict[str, Any] | None:
    """Return the mean of the paired differences with its interval, over the pairs of which both values are there."""
    pairs = [float(a) - float(b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    return {**asdict(paired_bootstrap(pairs, seed=BOOTSTRAP_SEED)), "pairs": len(pairs)} if pairs else None


def verdict(found: Mapping[str, Any] | None) -> str | None:
    """Say whether a difference's interval lies above or below zero: better, worse, undecided; None where there is none."""
    return None if found is None else VERDICTS[_sign(found)]


def judge_claim(claim: Claim, variants: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Say of each measure that a claim speaks of whether it holds here: holds, does not hold, undecided."""
    differences = next(each["differences"] for each in variants if each["variant"] == claim.variant)
    for measure in claim.measures:
        found = differences[measure]
        if found is not None:
            outcome = {1: "holds", -1: "does not hold", 0: "undecided"}[_sign(found) * claim.direction]
            yield {"claim": claim.text, "variant": claim.variant, "measure": measure, "difference": found, "here": outcome}


def share(count: int, total: int) -> dict[str, Any]:
    """Return a share with Wilson's interval."""
    return asdict(wilson_interval(count, total))


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are there; None for none."""
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present else None


def reader_shares(trips: Sequence[RoundTripScore]) -> list[dict[str, Any]]:
    """Say per kind of attribute how often the reader is right on pictures as drawn, and after a round trip."""
    rows: dict[str, dict[str, list[bool]]] = {}
    for trip in trips:
        for place, readings in (("rendered", trip.rendered), ("returned", trip.returned)):
            for reading in readings:
                row = rows.setdefault(_kind(reading), {"rendered": [], "returned": []})
                row[place].append(reading.wanted == reading.read)
    return [
        {"attribute": kind, "readings": len(row["rendered"]), **{place: statistics.fmean(row[place]) for place in row}}
        for kind, row in rows.items()
    ]


def text_to_image_shares(drawn: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Say per number of objects asked for how often all is right, each attribute is, and objects are missing or too many."""
    rows = []
    for count in sorted({len(each.objects) for each in drawn}):
        pictures = [each for each in drawn if len(each.objects) == count]
        objects = [each for picture in pictures for each in picture.objects]
        attributes = {name: statistics.fmean(each.scene[name] for each in pictures) for name in pictures[0].scene}
        attributes |= {name: statistics.fmean(each[name] for each in objects) for name in objects[0]}
        rows.append(
            {
                "objects": count,
                "pictures": len(pictures),
                "all_right": share(sum(picture.all_right for picture in pictures), len(pictures)),
                "missing": statistics.fmean(picture.num_missing > 0 for picture in pictures),
                "extra": statistics.fmean(picture.num_extra > 0 for picture in pictures),
                "attributes": attributes,
            }
        )
    return rows


def _kind(reading: AttributeReading) -> str:
    """Name the kind of an attribute: objects.2.shape is a shape."""
    return reading.name.split(".", 2)[2] if reading.name.startswith("objects.") else reading.name


def _sign(found: Mapping[str, Any]) -> int:
    return Interval(value=found["value"], low=found["low"], high=found["high"]).sign
