"""The selection: scores -> one decision per requested candidate, below `<output>/selection`. Edits nothing, reads no pictures."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import pickle
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
    PLACE,
    Bound,
    best_row,
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
MOST_SHARES = 1024
MOST_PARTITIONS = 4096
BINS = 40
SHOWN = 2  # examples of each outcome that a group offers to the report


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
    `histograms`: score -> (of all scored, of kept), bins over the spans of `SCORES`; `examples`: outcome -> (part, row) of a few. `preferences`:
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
    if config.filters.max_distance is not None:
        best = numbered(len(_shares(selecting)), _best_of_shares, selecting=selecting)
        _write_duplicates(selecting, best.materialize(), config.filters.max_distance)
    selected = _decide(selecting, num_examples)
    if selected.records("validation") and config.validation_fraction * selected.counts[KEPT] < 1:
        selected = _decide(replace(selecting, config=replace(config, validation_fraction=0.0)), num_examples)
    return selected


def _decide(selecting: Selecting, num_examples: int) -> Selected:
    decided = run_through(numbered(len(_shares(selecting)), _decide_shares, selecting=selecting, num_examples=num_examples))
    selected = Selected()
    for row in sorted(decided, key=lambda row: int(row["share"])):
        _add(selected, pickle.loads(row["selected"]), num_examples)
    return selected


def _shares(selecting: Selecting) -> list[range]:
    """Cut the groups into shares, each the work of one task: a group each, or more where there are very many."""
    count = len(selecting.groups)
    size = max(1, -(-count // MOST_SHARES))
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def split_of(source_digest: str, seed: int, validation_fraction: float) -> str:
    """Return the split of a source picture: all records of one picture are in the same, whatever else the data set holds."""
    digest = hashlib.blake2b(f"{seed}:{source_digest}".encode(), digest_size=8).digest()
    return SPLITS[int.from_bytes(digest, "big") < validation_fraction * 2**64]


def read_decisions(output: Location, group: Group) -> list[dict[str, Any]]:
    """Read the decisions of a group."""
    return _read_rows(output / "selection" / group.name)


def _best_of_shares(batch: pa.Table, selecting: Selecting) -> pa.Table:
    """Give the candidates that are kept unless they are duplicates."""
    found = []
    shares = _shares(selecting)
    for index in (index for share in batch.column("id").to_pylist() for index in shares[share]):
        group = selecting.groups[index]
        rows, results = _judge_group(selecting, group)
        for row, (outcome, _, rank) in zip(rows, results, strict=True):
            if outcome == KEPT:
                found.append(best_row((index, group.parts.index(row["part"]), row["part_row"]), row, rank))
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


def _write_duplicates(selecting: Selecting, best: Any, distance: int) -> None:
    """Find duplicates by one shuffle over the bands of the hashes, and write them by one over the shares.

    A task holds the rows of some bands, about `PARTITION_ROWS`, or of the one that most rows share.
    """
    rows = best.count()
    if rows < 2:
        return
    partitions = min(MOST_PARTITIONS, -(-rows * (distance + 1) // PARTITION_ROWS))
    bands = best.map_batches(functools.partial(explode_bands, distance=distance), batch_size=None, batch_format="pyarrow")
    dropped = bands.repartition(partitions, keys=["band"]).map_batches(
        functools.partial(find_duplicates, distance=distance), batch_size=None, batch_format="pyarrow"
    )
    dropped = dropped.materialize()
    if num_dropped := dropped.count():
        partitions = min(MOST_PARTITIONS, -(-num_dropped // PARTITION_ROWS))
        shares = _shares(selecting)
        write = functools.partial(_write_share, output=selecting.output)
        add = functools.partial(_add_share, groups_per_share=len(shares[0]))
        shared = dropped.map_batches(add, batch_size=None, batch_format="pyarrow")
        run_through(shared.groupby("share", num_partitions=partitions).map_groups(write, batch_format="pyarrow"))


def _add_share(dropped: pa.Table, groups_per_share: int) -> pa.Table:
    return dropped.append_column("share", pa.array(dropped.column("group").to_numpy() // groups_per_share))


def _write_share(dropped: pa.Table, output: str) -> pa.Table:
    share = dropped.column("share")[0].as_py()
    put_table(locate(output) / "selection" / "_duplicates" / f"{share:05d}.parquet", dropped)
    return pa.table({"share": [share]})


def _decide_shares(batch: pa.Table, selecting: Selecting, num_examples: int) -> pa.Table:
    """Write the decisions of groups; only numbers and a few places of examples go back."""
    shares, numbers, found = _shares(selecting), batch.column("id").to_pylist(), []
    for share in numbers:
        duplicates = _duplicates(selecting, share)
        selected = Selected()
        for index in shares[share]:
            _add(selected, _decide_group(selecting, index, duplicates[index]), num_examples)
        found.append(pickle.dumps(selected))
    return pa.table({"share": numbers, "selected": found})


def _decide_group(selecting: Selecting, index: int, duplicates: Mapping[tuple[str, int], str]) -> Selected:
    output, config, group = locate(selecting.output), selecting.config, selecting.groups[index]
    rows, results = _judge_group(selecting, group)
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
    by_category: dict[str, Counter[str]] = defaultdict(Counter)
    for row in decisions:
        by_category[row["category"] or ""][row["outcome"]] += 1
    return Selected(
        counts=Counter(row["outcome"] for row in decisions),
        by_category=by_category,
        kept={split: {index: (len(found), sum(found))} if found else {} for split, found in sizes.items()},
        histograms={score: _histogram(decisions, score) for score in SCORES},
        examples=_examples(decisions),
        preferences=Counter(best["split"] for best, _ in find_preferences(decisions, config.filters.max_unsafe)),
        seconds=_editing_seconds(output, group),
        unjudged=sum(row["source_digest"] is not None and row["judge"] is None for row in decisions),
    )


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


def find_turns(decisions: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return kept candidates of different edits of one source picture two by two, each edit's best with that of the next, in their order."""
    by_source: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in sorted((row for row in decisions if row["outcome"] == KEPT), key=lambda row: (-row["rank"], row["candidate"])):
        by_source[row["caption_file"], row["caption_row"], row["source_digest"]].setdefault(row["pair_id"], row)
    found = []
    for source in sorted(by_source):
        rows = [by_source[source][pair] for pair in sorted(by_source[source])]
        found += list(itertools.pairwise(rows))
    return found


def _editing_seconds(output: Location, group: Group) -> float:
    columns = [read_table(output / "candidates" / "data" / part, ["seconds"]).column("seconds") for part in group.parts]
    return float(sum(value for column in columns for value in column.to_pylist() if value is not None))


def _examples(decisions: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the places of the first few edited candidates of each outcome."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in decisions:
        if row["source_digest"] is not None and len(found[row["outcome"]]) < SHOWN:
            found[row["outcome"]].append({name: row[name] for name in ("outcome", "reason", "part", "part_row")})
    return found


def _histogram(decisions: Sequence[Mapping[str, Any]], score: str) -> tuple[list[int], list[int]]:
    low, high = SCORES[score]
    counts = []
    for wanted in (None, KEPT):
        values = [row[score] for row in decisions if row[score] is not None and wanted in (None, row["outcome"])]
        clipped = np.clip(np.array(values, dtype=np.float64), low, high)
        counts.append(np.histogram(clipped, bins=BINS, range=(low, high))[0].tolist())
    return counts[0], counts[1]


def _duplicates(selecting: Selecting, share: int) -> dict[int, dict[tuple[str, int], str]]:
    """Return which candidates of a share look like a better one: group -> (part, row) -> the best of those, as text."""
    place = locate(selecting.output) / "selection" / "_duplicates" / f"{share:05d}.parquet"
    found: dict[int, dict[tuple[str, int], str]] = defaultdict(dict)
    likes = [f"like_{name}" for name in PLACE]
    for row in sorted(
        _read_rows(place) if exists(place) else [], key=lambda row: (-row["like_rank"], *(row[name] for name in likes))
    ):
        (part, number), (like, like_number) = (
            (selecting.groups[row[f"{side}group"]].parts[row[f"{side}part"]], row[f"{side}part_row"]) for side in ("", "like_")
        )
        found[row["group"]].setdefault((part, number), f"{like}#{like_number}")
    return found


def _add(selected: Selected, more: Selected, num_examples: int) -> None:
    """Add what later groups came to."""
    selected.counts.update(more.counts)
    for category, counts in more.by_category.items():
        selected.by_category[category].update(counts)
    for split, kept in more.kept.items():
        selected.kept[split].update(kept)
    selected.preferences.update(more.preferences)
    selected.seconds += more.seconds
    selected.unjudged += more.unjudged
    for score, histograms in more.histograms.items():
        before = selected.histograms.get(score, ([0] * BINS, [0] * BINS))
        every, of_kept = (
            [one + other for one, other in zip(*pair, strict=True)] for pair in zip(before, histograms, strict=True)
        )
        selected.histograms[score] = (every, of_kept)
    for outcome, examples in more.examples.items():
        selected.examples[outcome] += examples[: num_examples - len(selected.examples[outcome])]


def _read_rows(place: Location) -> list[dict[str, Any]]:
    """Read a small object's rows."""
    rows: list[dict[str, Any]] = read_table(place).to_pylist()
    return rows


def clear_folder(folder: Location) -> None:
    """Remove a folder of this run's own making with everything in it, where it is there."""
    if exists(folder):
        retry_remote(folder, lambda: folder.fs.rm(folder.path, recursive=True))
