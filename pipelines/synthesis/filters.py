"""Which candidates are kept: every filter with its threshold, its score and the reason it gives; near-duplicates across the whole
data set, found by shuffles on Ray: never are all hashes in one place.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.synthesis.config import Filters
from vimaedit.synthesis.likeness import HASH_BYTES, band_keys, find_near
from vimaedit.types import Status

KEPT = "kept"
# What a candidate may come to, in the order of the funnel; the threshold filters stand between.
BEFORE = ("pair", "edit")
AFTER = ("best_of_pair", "duplicate", KEPT)
NEEDS = {  # score -> the option that brings its network
    "background_lpips": "lpips",
    "clip_source": "scoring_clip",
    "clip_target": "scoring_clip",
    "clip_image": "scoring_clip",
    "clip_direction": "scoring_clip",
    "aesthetic": "aesthetic",
    "unsafe": "safety",
    "judge": "judge",
}

# What is compared for near-duplicates, in few bytes, since it goes through a shuffle once for each band.
PLACE = ("group", "part", "part_row")  # of a candidate: its group, which of the group's parts, row in it
BEST_SCHEMA = pa.schema(
    [
        *((name, pa.int32()) for name in PLACE),
        ("rank", pa.float64()),
        ("looks", pa.binary()),
        *((name, pa.int64()) for name in ("source", "target")),  # digests
    ]
)


@dataclass(frozen=True)
class Bound:
    """A filter: a score has to lie between two bounds. Scores that do not apply to a candidate pass.

    `meaning`: what a candidate that it takes out is, for people.
    """

    name: str
    score: str
    low: float | None
    high: float | None
    meaning: str

    def reason(self, value: float) -> str | None:
        """Say why a value does not pass; None where it does."""
        if math.isnan(value):
            return f"{self.score} is not a number"
        if self.low is not None and value < self.low:
            return f"{self.score} {value:.4g} < {self.low:g}"
        if self.high is not None and value > self.high:
            return f"{self.score} {value:.4g} > {self.high:g}"
        return None


def make_bounds(filters: Filters, available: Mapping[str, Any]) -> tuple[list[Bound], list[str]]:
    """Return the filters by scores, in the funnel's order, and a warning for each that is off for want of its network.

    `available`: option -> what it names, None where it names none.
    """
    own = filters
    wanted = [
        Bound("unchanged", "change", own.min_change, None, "the result hardly differs from its source"),
        Bound("mask_size", "mask_fraction", own.min_mask, own.max_mask, "the mask is too small or too large"),
        Bound("background_psnr", "background_psnr", own.min_background_psnr, None, "its background differs too much (PSNR)"),
        Bound(
            "background_lpips", "background_lpips", None, own.max_background_lpips, "its background differs too much (LPIPS)"
        ),
        Bound("clip_source", "clip_source", own.min_clip_source, None, "the source picture does not show its prompt"),
        Bound("clip_target", "clip_target", own.min_clip_target, None, "the edited picture does not show its prompt"),
        Bound(
            "clip_image", "clip_image", own.min_clip_image, own.max_clip_image, "its pictures are too far apart, or too near"
        ),
        Bound(
            "clip_direction", "clip_direction", own.min_clip_direction, None, "its picture changes otherwise than its prompts"
        ),
        Bound("aesthetic", "aesthetic", own.min_aesthetic, None, "the edited picture is not good enough to look at"),
        Bound("unsafe", "unsafe", None, own.max_unsafe, "a picture is not safe"),
        Bound("judge", "judge", own.min_judge, None, "the judge does not think enough of the edit"),
    ]
    asked = [bound for bound in wanted if bound.low is not None or bound.high is not None]
    absent = [bound for bound in asked if bound.score in NEEDS and available.get(NEEDS[bound.score]) is None]
    # Nobody asks for safety by leaving its threshold alone.
    warnings = [
        f"filter {bound.name} is off: {NEEDS[bound.score]} names no network" for bound in absent if bound.name != "unsafe"
    ]
    return [bound for bound in asked if bound not in absent], warnings


def outcomes(filters: Filters, bounds: Sequence[Bound]) -> list[str]:
    """Return everything that a candidate may come to, in the funnel's order."""
    names = [bound.name for bound in bounds]
    if filters.require_mask:
        names.insert(1 if names[:1] == ["unchanged"] else 0, "no_mask")
    last = AFTER if filters.max_distance is not None else tuple(name for name in AFTER if name != "duplicate")
    return [*BEFORE, *names, *last]


def best_score(filters: Filters, available: Mapping[str, Any]) -> str:
    """Return the score by which the best candidate of a pair is chosen."""
    if filters.best_by != "auto":
        return filters.best_by
    return "clip_direction" if available.get("scoring_clip") is not None else "background_psnr"


def judge(row: Mapping[str, Any], filters: Filters, bounds: Sequence[Bound]) -> tuple[str, str] | None:
    """Return the first filter that a scored candidate does not pass, and why; None where it passes all."""
    if row["status"] != Status.OK:
        return "edit", f"{row['status']}: {row['error_type']}"
    for name in outcomes(filters, bounds)[len(BEFORE) :]:
        if name == "no_mask" and row["has_words"] and not row["has_mask"]:
            return name, "words say what changes, but they gave no mask"
        for bound in bounds:
            value = row[bound.score]
            if bound.name == name and value is not None and (reason := bound.reason(value)) is not None:
                return name, reason
    return None


def rank_of(row: Mapping[str, Any], score: str) -> float:
    """Return what a candidate is compared by; one without the score comes last."""
    value = row[score]
    return -math.inf if value is None or math.isnan(value) else min(float(value), 1e9)


def choose_best(rows: Sequence[Mapping[str, Any]], passed: Sequence[int], ranks: Sequence[float], count: int) -> set[int]:
    """Return those of the passed rows that are among the `count` best of their pair; on equal rank the first wins."""
    by_pair: dict[str, list[int]] = defaultdict(list)
    for index in passed:
        by_pair[rows[index]["pair_id"]].append(index)
    best: set[int] = set()
    for members in by_pair.values():
        best.update(sorted(members, key=lambda n: (-ranks[n], rows[n]["candidate"]))[:count])
    return best


def best_row(place: Sequence[int], row: Mapping[str, Any], rank: float) -> dict[str, Any]:
    """Return of a candidate what is compared for near-duplicates."""
    target = " ".join(row["target_prompt"].casefold().split())
    digests = {"source": _number(row["source_digest"]), "target": _number(target)}
    return {**dict(zip(PLACE, place, strict=True)), "rank": rank, "looks": row["looks"], **digests}


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def explode_bands(batch: pa.Table, distance: int) -> pa.Table:
    """Give every row once for each band of its hash: rows within `distance` bits of each other share one."""
    keys = band_keys(_hashes(batch), distance + 1)
    rows = np.repeat(np.arange(batch.num_rows), distance + 1)
    return batch.take(pa.array(rows)).append_column("band", pa.array(keys.reshape(-1)))


def find_duplicates(rows: pa.Table, distance: int) -> pa.Table:
    """Return the rows that lie within `distance` bits of a better one in the same band, with the best such one's place and rank.

    A row is a duplicate if any better one is so near, whether or not that one is kept: so the answer depends neither on the
    bands nor on an order. Edits of one picture to different prompts are none, however small the change.
    """
    columns = {name: rows.column(name).to_numpy() for name in ("band", *PLACE, "rank", "source", "target")}
    order = np.lexsort((*(columns[name] for name in reversed(PLACE)), -columns["rank"], columns["band"]))
    band = columns["band"][order]
    bounds = (0, *(np.flatnonzero(band[1:] != band[:-1]) + 1).tolist(), rows.num_rows)
    hashes = _hashes(rows)
    dropped, likes = [], []
    for first, end in itertools.pairwise(bounds):
        if end - first > 1:
            run = order[first:end]
            found = find_near(hashes[run], distance, columns["source"][run], columns["target"][run])
            dropped.append(run[found >= 0])
            likes.append(run[found[found >= 0]])
    own, like = (np.concatenate([np.empty(0, np.int64), *each]) for each in (dropped, likes))
    places = {name: columns[name][own] for name in PLACE}
    return pa.table(places | {f"like_{name}": columns[name][like] for name in (*PLACE, "rank")})


def _hashes(rows: pa.Table) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows.column("looks").to_pylist()), dtype=np.uint8).reshape(-1, 2 * HASH_BYTES)
