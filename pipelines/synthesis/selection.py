"""The selection: scores -> one decision per requested candidate, below `<output>/selection`. Edits nothing, reads no pictures."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.cluster.session import set_engine
from pipelines.cluster.tasks import numbered, run_through
from pipelines.output.parts import part_name
from pipelines.output.plan import Unit
from pipelines.store.location import Location, exists, locate, retry_remote
from pipelines.store.parquet import put_table, read_table
from pipelines.synthesis.columns import DECISION_SCHEMA, SCORES
from pipelines.synthesis.config import SynthesizeConfig
from pipelines.synthesis.filters import (
    BEST_SCHEMA,
    KEPT,
    Bound,
    best_score,
    choose_best,
    explode_bands,
    find_duplicates,
    judge,
    rank_of,
)

SPLITS = ("train", "validation")
GROUP_SECONDS = 600.0
PARTITION_ROWS = 100_000  # of a shuffle, about
MOST_PARTITIONS = 4096
BINS = 40
SHOWN = 2  # examples of each outcome that a group offers to the report
# Where the bars of a score's histogram begin and end; what lies outside counts in the last bar on its side.
SPANS = {
    "change": (0.0, 0.5),
    "changed_fraction": (0.0, 1.0),
    "mask_fraction": (0.0, 1.0),
    "background_psnr": (10.0, 60.0),
    "background_lpips": (0.0, 0.6),
    "clip_source": (0.0, 1.0),
    "clip_target": (0.0, 1.0),
    "clip_image": (0.0, 1.0),
    "clip_direction": (-0.4, 1.0),
    "aesthetic": (0.0, 10.0),
    "unsafe": (-1.0, 1.0),
    "judge": (0.0, 10.0),
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """One object of `<output>/pairs` with the parts of its candidates: all candidates of a pair are in one group."""

    name: str
    parts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Selecting:
    """What workers must know to select."""

    output: str
    config: SynthesizeConfig
    groups: tuple[Group, ...]
    bounds: tuple[Bound, ...]


@dataclass(kw_only=True)
class Selected:
    """What the selection came to.

    `counts`: outcome -> candidates; `by_category`: category -> outcome -> candidates; `kept`: split -> group -> (records, bytes);
    `histograms`: score -> (of all scored, of kept), bins of `SPANS`; `examples`: outcome -> (part, row) of a few. `preferences`:
    split -> pairs of a better and a worse candidate; `unjudged`: edits without a score of the judge; `seconds`: that devices took for the edits of all candidates.
    """

    counts: Counter[str] = field(default_factory=Counter)
    by_category: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    kept: dict[str, dict[int, tuple[int, int]]] = field(default_factory=lambda: {split: {} for split in SPLITS})
    histograms: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    preferences: Counter[str] = field(default_factory=Counter)
    unjudged: int = 0
    seconds: float = 0.0
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))

    def records(self, split: str) -> int:
        """Count the records of a split."""
        return sum(rows for rows, _ in self.kept[split].values())


def make_groups(files: Sequence[str], units: Sequence[Unit]) -> tuple[Group, ...]:
    """Group the parts of the editing run by the object of `<output>/pairs` that they come from."""
    parts: dict[int, list[str]] = defaultdict(list)
    for unit in units:
        parts[unit.file].append(part_name(unit.id))
    return tuple(Group(name=name, parts=tuple(parts[index])) for index, name in enumerate(files))


def select(selecting: Selecting, num_examples: int) -> Selected:
    """Decide on every candidate and write the decisions, one object per group.

    Where the kept records are so few that validation would get less than one, all of them are for training.
    """
    config, output = selecting.config, locate(selecting.output)
    set_engine(unit_seconds=GROUP_SECONDS)
    clear_folder(output / "selection")
    count = len(selecting.groups)
    if config.filters.max_distance is not None:
        best = numbered(count, _best_of_groups, selecting=selecting)
        _write_duplicates(output, best.materialize(), config.filters.max_distance)
    selected = _decide(selecting, num_examples)
    if selected.records("validation") and config.validation_fraction * selected.counts[KEPT] < 1:
        selected = _decide(replace(selecting, config=replace(config, validation_fraction=0.0)), num_examples)
    return selected


def _decide(selecting: Selecting, num_examples: int) -> Selected:
    decided = run_through(numbered(len(selecting.groups), _decide_groups, selecting=selecting))
    selected = Selected()
    summaries = [json.loads(row["summary"]) for row in decided]
    for summary in sorted(summaries, key=lambda summary: summary["group"]):
        _add(selected, summary, num_examples)
    return selected


def split_of(source_digest: str, seed: int, validation_fraction: float) -> str:
    """Return the split of a source picture: all records of one picture are in the same, whatever else the data set holds."""
    digest = hashlib.blake2b(f"{seed}:{source_digest}".encode(), digest_size=8).digest()
    return SPLITS[int.from_bytes(digest, "big") < validation_fraction * 2**64]


def read_decisions(output: Location, group: Group) -> list[dict[str, Any]]:
    """Read the decisions of a group."""
    return _read_rows(output / "selection" / group.name)


def _best_of_groups(batch: pa.Table, selecting: Selecting) -> pa.Table:
    """Give the candidates that are kept unless they are duplicates."""
    found = []
    for index in batch.column("id").to_pylist():
        rows, results = _judge_group(selecting, selecting.groups[index])
        for row, (outcome, _, rank) in zip(rows, results, strict=True):
            if outcome == KEPT:
                target = " ".join(row["target_prompt"].casefold().split())
                own = {name: row[name] for name in ("part", "part_row", "looks", "source_digest")}
                found.append({**own, "group": index, "rank": rank, "target": target})
    return pa.Table.from_pylist(found, schema=BEST_SCHEMA)


def _judge_group(selecting: Selecting, group: Group) -> tuple[list[dict[str, Any]], list[tuple[str, str, float]]]:
    """Return a group's scored candidates, and of each its outcome so far, the reason and its rank."""
    output, filters = locate(selecting.output), selecting.config.filters
    rows = [row for part in group.parts for row in _read_rows(output / "scores" / part)]
    score = best_score(filters, vars(selecting.config))
    ranks = [rank_of(row, score) for row in rows]
    failed = [judge(row, filters, selecting.bounds) for row in rows]
    best = choose_best(rows, [n for n, found in enumerate(failed) if found is None], ranks, filters.per_pair)
    results = []
    for index, found in enumerate(failed):
        if found is None:
            found = (KEPT, "") if index in best else ("best_of_pair", f"others of its pair have a higher {score}")
        results.append((*found, ranks[index]))
    return rows, results


def _write_duplicates(output: Location, best: Any, distance: int) -> None:
    """Find duplicates by one shuffle over the bands of the hashes, and write them by one over the groups."""
    rows = best.count()
    if rows < 2:
        return
    partitions = min(MOST_PARTITIONS, -(-rows * (distance + 1) // PARTITION_ROWS))
    bands = best.map_batches(functools.partial(explode_bands, distance=distance), batch_size=None, batch_format="pyarrow")
    dropped = bands.groupby("band", num_partitions=partitions).map_groups(
        functools.partial(find_duplicates, distance=distance), batch_format="pyarrow"
    )
    dropped = dropped.materialize()
    if num_dropped := dropped.count():
        partitions = min(MOST_PARTITIONS, -(-num_dropped // PARTITION_ROWS))
        write = functools.partial(_write_group, output=output.url)
        run_through(dropped.groupby("group", num_partitions=partitions).map_groups(write, batch_format="pyarrow"))


def _write_group(dropped: pa.Table, output: str) -> pa.Table:
    (group,) = set(dropped.column("group").to_pylist())
    place = locate(output) / "selection" / "_duplicates" / f"{group:08d}.parquet"
    put_table(place, dropped.sort_by([("part", "ascending"), ("part_row", "ascending")]))
    return pa.table({"group": [group]})


def _decide_groups(batch: pa.Table, selecting: Selecting) -> pa.Table:
    """Write the decisions of groups; only numbers and a few places of examples go back."""
    summaries = [json.dumps(_decide_group(selecting, index)) for index in batch.column("id").to_pylist()]
    return pa.table({"summary": summaries})  # as text, so that empty lists have the type of full ones


def _decide_group(selecting: Selecting, index: int) -> dict[str, Any]:
    output, config, group = locate(selecting.output), selecting.config, selecting.groups[index]
    rows, results = _judge_group(selecting, group)
    duplicates = _duplicates(output, index)
    decisions: list[dict[str, Any]] = []
    for row, (outcome, reason, rank) in zip(rows, results, strict=True):
        like = duplicates.get((row["part"], row["part_row"]))
        if outcome == KEPT and like is not None:
            outcome, reason = "duplicate", f"looks like {like}"
        split = split_of(row["source_digest"], config.seed, config.validation_fraction) if outcome == KEPT else None
        decisions.append({**row, "rank": rank, "outcome": outcome, "reason": reason, "split": split})
    sizes = {split: [row["bytes"] for row in decisions if row["split"] == split] for split in SPLITS}
    for row in _read_rows(output / "pairs_rejected" / group.name):
        for candidate in range(row["candidates"]):
            whole = dict.fromkeys(DECISION_SCHEMA.names)
            own = {name: row[name] for name in ("id", "pair_id", "caption_file", "caption_row")}
            decisions.append(
                {
                    **whole,
                    **own,
                    "candidate": candidate,
                    "outcome": "pair",
                    "reason": f"{row['stage']}: {row['reason']}: {row['message']}",
                }
            )
    put_table(output / "selection" / group.name, pa.Table.from_pylist(decisions, schema=DECISION_SCHEMA))
    counts = Counter((row["category"] or "", row["outcome"]) for row in decisions)
    return {
        "group": index,
        "counts": [
            {"category": category, "outcome": outcome, "rows": rows} for (category, outcome), rows in sorted(counts.items())
        ],
        "kept": [{"split": split, "rows": len(found), "bytes": sum(found)} for split, found in sizes.items()],
        "histograms": [{"score": score, **_histogram(decisions, score)} for score in SCORES],
        "examples": _examples(decisions),
        "preferences": Counter(best["split"] for best, _ in find_preferences(decisions, config.filters.max_unsafe)),
        "seconds": _editing_seconds(output, group),
        "unjudged": sum(row["source_digest"] is not None and row["judge"] is None for row in decisions),
    }


def find_preferences(
    decisions: Sequence[Mapping[str, Any]], max_unsafe: float | None
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return of each pair with a kept candidate the best kept one and the worst that was edited and is safe to show, by rank; none
    where they are equal."""
    by_pair: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in decisions:
        # The first filter that it did not pass may be another one.
        is_safe = max_unsafe is None or row["unsafe"] is None or row["unsafe"] <= max_unsafe
        if row["rank"] is not None and math.isfinite(row["rank"]) and row["outcome"] != "edit" and is_safe:
            by_pair[row["pair_id"]].append(row)
    found = []
    for rows in by_pair.values():
        kept = [row for row in rows if row["outcome"] == KEPT]
        best = max(kept, key=lambda row: (row["rank"], -row["candidate"]), default=None)
        worst = min(rows, key=lambda row: (row["rank"], row["candidate"]))
        if best is not None and worst["rank"] < best["rank"]:
            found.append((best, worst))
    return found


def _editing_seconds(output: Location, group: Group) -> float:
    columns = [read_table(output / "candidates" / "data" / part, ["seconds"]).column("seconds") for part in group.parts]
    return float(sum(value for column in columns for value in column.to_pylist() if value is not None))


def _examples(decisions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the places of the first few edited candidates of each outcome."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in decisions:
        if row["source_digest"] is not None and len(found[row["outcome"]]) < SHOWN:
            found[row["outcome"]].append({name: row[name] for name in ("outcome", "reason", "part", "part_row")})
    return [each for rows in found.values() for each in rows]


def _histogram(decisions: Sequence[Mapping[str, Any]], score: str) -> dict[str, list[int]]:
    low, high = SPANS[score]
    counts = {}
    for name, wanted in (("all", None), ("kept", KEPT)):
        values = [row[score] for row in decisions if row[score] is not None and wanted in (None, row["outcome"])]
        clipped = np.clip(np.array(values, dtype=np.float64), low, high)
        counts[name] = np.histogram(clipped, bins=BINS, range=(low, high))[0].tolist()
    return counts


def _duplicates(output: Location, index: int) -> dict[tuple[str, int], str]:
    """Return which candidates of a group look like a better one: (part, row) -> the best of those, as text."""
    place = output / "selection" / "_duplicates" / f"{index:08d}.parquet"
    rows = _read_rows(place) if exists(place) else []
    found: dict[tuple[str, int], str] = {}
    for row in sorted(rows, key=lambda row: (-row["like_rank"], row["like"])):
        found.setdefault((row["part"], row["part_row"]), row["like"])
    return found


def _add(selected: Selected, row: Mapping[str, Any], num_examples: int) -> None:
    """Add what a group came to."""
    for each in row["counts"]:
        selected.counts[each["outcome"]] += each["rows"]
        selected.by_category[each["category"]][each["outcome"]] += each["rows"]
    for each in row["kept"]:
        if each["rows"]:
            selected.kept[each["split"]][row["group"]] = (each["rows"], each["bytes"])
    selected.preferences.update(row["preferences"])
    selected.seconds += row["seconds"]
    selected.unjudged += row["unjudged"]
    for each in row["histograms"]:
        before = selected.histograms.get(each["score"], ([0] * BINS, [0] * BINS))
        sums = [
            [one + other for one, other in zip(old, each[name], strict=True)]
            for old, name in zip(before, ("all", "kept"), strict=True)
        ]
        selected.histograms[each["score"]] = (sums[0], sums[1])
    for each in row["examples"]:
        if len(selected.examples[each["outcome"]]) < num_examples:
            selected.examples[each["outcome"]].append(each)


def _read_rows(place: Location) -> list[dict[str, Any]]:
    """Read a small object's rows."""
    rows: list[dict[str, Any]] = read_table(place).to_pylist()
    return rows


def clear_folder(folder: Location) -> None:
    """Remove a folder of this run's own making with everything in it, where it is there."""
    if exists(folder):
        retry_remote(folder, lambda: folder.fs.rm(folder.path, recursive=True))
