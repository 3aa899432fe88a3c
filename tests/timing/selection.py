"""What selecting takes: made-up scores and hashes of many candidates, without pictures, through the product's own selection.

`python -m tests.timing.selection key=value ...`
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import DataContext

from pipelines.cluster.session import connect, set_engine
from pipelines.cluster.tasks import numbered, run_through
from pipelines.synthesis import selection
from pipelines.synthesis.columns import SCORE_SCHEMA, SCORES, UNPAIRED_SCHEMA
from pipelines.synthesis.config import SynthesizeConfig, score_settings
from pipelines.synthesis.filters import make_bounds
from pipelines.synthesis.selection import PARTITION_ROWS, Group, Selected, Selecting, select
from pipelines.tables import Table
from tests.timing.process import descendants, private_mb, shared_mb
from tests.timing.report import run_suite, say
from vimaedit.config import check_range, check_types
from vimaedit.types import Status

SAMPLE_S = 1.0
TASKS = 256  # that make the input up, at most
FOLDERS = ("scores", "candidates/data", "pairs_rejected")
PLANE = 8  # bytes of a hash for each plane of colour; three of the source, three of the edited picture
COPIED, GREY = 0.1, 0.1  # share of the pairs that look like one of others, and of those whose pictures have no colour
ALIKE = 0.1  # of those that look like the other edit of their source picture: no duplicates
ORIGINALS = 100  # pairs for each look that is copied
FLIPS = 10  # bits, at most, in which a copy differs from what it is a copy of


@dataclass(frozen=True, kw_only=True)
class SelectionBenchConfig:
    """How many candidates are selected from."""

    output: str = ""  # Markdown file to whose end the tables are added
    folder: str = ""  # where the candidates are written meanwhile: about 0.6 GB a million; none: where temporary files go
    rows: list[int] = field(default_factory=lambda: [20_000, 1_000_000, 10_000_000])  # candidates, one run each
    candidates: int = 4  # of a pair, of which the best is compared with all others
    part_rows: int = 512  # candidates of one part of the editing run
    brute_rows: int = 20_000  # up to so many candidates, every one is compared with every other too

    def __post_init__(self) -> None:
        check_types(self)
        for rows in self.rows:
            check_range("rows", rows, 2, 10**9)
        check_range("candidates", self.candidates, 1, 1000)
        check_range("part_rows", self.part_rows, self.candidates, 10**6)


def measure(config: SelectionBenchConfig) -> Iterator[Table]:
    """Measure and yield the table."""
    lines = []
    for rows in config.rows:
        say(f"{rows} candidates")
        with TemporaryDirectory(dir=config.folder or None) as folder:
            try:
                lines.append(_line(config, rows, Path(folder)))
            finally:
                ray.shutdown()
    yield Table(
        title="Selecting",
        columns=(
            *("candidates", "compared", "duplicates", "kept", "seconds", "candidates a second"),
            *("driver (MB)", "largest worker (MB)", "all workers (MB)", "object store (MB)", "brute force"),
        ),
        rows=tuple(lines),
        note="Scores to decisions, as written. Compared: those that pass the filters and are the best of their pair. Memory: peaks, each of its own; private, "
        "and of the object store what lies in memory (the rest is spilled).",
    )


def _line(config: SelectionBenchConfig, rows: int, folder: Path) -> tuple[str, ...]:
    job = SynthesizeConfig(
        input="-", output=str(folder), candidates=config.candidates, scoring_clip="miniature", ray_address="local"
    )
    connect(job)
    DataContext.get_current().enable_progress_bars = False
    bounds, _ = make_bounds(job.filters, score_settings(job))
    names = [f"{number:05d}-000000000.parquet" for number in range(-(-rows // config.part_rows))]
    groups = tuple(Group(name=name, parts=(name,)) for name in names)
    selecting = Selecting(output=str(folder), config=job, groups=groups, bounds=tuple(bounds))
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    set_engine(unit_seconds=600)
    run_through(numbered(min(TASKS, len(groups)), _make_up, selecting=selecting, rows=rows, part_rows=config.part_rows))
    is_compared = rows <= config.brute_rows
    selection.PARTITION_ROWS = (
        max(1, rows // 10) if is_compared else PARTITION_ROWS
    )  # few rows go through several partitions too
    with _peaks() as peaks:
        started = time.perf_counter()
        selected = select(selecting, 2)
        seconds = time.perf_counter() - started
    assert sum(selected.counts.values()) == rows
    counts = {name: selected.counts[name] for name in ("duplicate", "kept")}
    verdict = _beside_brute_force(selecting, selected) if is_compared else ""
    numbers = [rows, sum(counts.values()), *counts.values(), seconds, rows / seconds, *peaks.values()]
    return (*(f"{number:,.0f}" for number in numbers), verdict)


def _make_up(batch: pa.Table, selecting: Selecting, rows: int, part_rows: int) -> pa.Table:
    """Write the scores, the seconds and the rejected pairs of every `TASKS`-th group."""
    groups, folder = selecting.groups, Path(selecting.output)
    for first in batch.column("id").to_pylist():
        for index in range(first, len(groups), TASKS):
            count = min(part_rows, rows - index * part_rows)
            values = made_up(index, count, selecting.config.candidates, originals=max(1, rows // ORIGINALS))
            whole = {name: values.get(name, pa.nulls(count, SCORE_SCHEMA.field(name).type)) for name in SCORE_SCHEMA.names}
            name = groups[index].name
            tables = (
                pa.table(whole, schema=SCORE_SCHEMA),
                pa.table({"seconds": np.ones(count)}),
                UNPAIRED_SCHEMA.empty_table(),
            )
            for place, table in zip(FOLDERS, tables, strict=True):
                pq.write_table(table, folder / place / name)
    return pa.table({"rows": [0]})


def made_up(index: int, count: int, candidates: int, originals: int) -> dict[str, Any]:
    """Make the scores of a group's candidates up: about half of them pass the filters; some look like others, some are grey."""
    draws = np.random.default_rng([1, index])
    pairs = -(-count // candidates)
    pair = np.arange(count) // candidates
    looks = draws.integers(0, 256, (pairs, 6 * PLANE), dtype=np.uint8)
    kind = draws.random(pairs)
    for row in np.flatnonzero(kind < COPIED):
        looks[row] = np.random.default_rng([2, int(draws.integers(originals))]).integers(0, 256, 6 * PLANE, dtype=np.uint8)
    grey = np.flatnonzero(kind > 1 - GREY)
    looks.reshape(pairs, 6, PLANE)[grey[:, None], [1, 2, 4, 5]] = 0
    source = np.arange(pairs) // 2 * 2  # two edits of one picture each, some of which are hardly seen
    alike = np.flatnonzero((kind > 0.5 - ALIKE) & (kind < 0.5))
    looks[alike] = looks[source[alike]]
    looks = looks[pair]
    bits = draws.integers(0, 48 * 8, (count, FLIPS))
    for flip in range(FLIPS):
        chosen = np.flatnonzero(draws.random(count) < 0.5)
        looks[chosen, bits[chosen, flip] // 8] ^= np.left_shift(1, bits[chosen, flip] % 8).astype(np.uint8)
    low = {"background_psnr": 15.0, "mask_fraction": 0.0, "change": 0.0}
    high = {"background_psnr": 60.0, "change": 0.5}
    scores = {
        name: draws.uniform(low.get(name, 0.15), high.get(name, 1.0), count)
        for name in SCORES
        if name not in ("aesthetic", "unsafe", "judge")
    }
    texts = [f"{index}-{number}" for number in range(pairs)]
    return {
        **scores,
        "part": [f"{index:05d}-000000000.parquet"] * count,
        "part_row": pa.array(np.arange(count), pa.int32()),
        **{
            name: [texts[number] for number in pair]
            for name in ("id", "pair_id", "source_prompt", "target_prompt", "source_digest")
        },
        "caption_file": ["captions.parquet"] * count,
        "caption_row": pair,
        "candidate": pa.array(np.arange(count) % candidates, pa.int32()),
        "category": ["change_object"] * count,
        "status": [str(Status.OK)] * count,
        **{name: [True] * count for name in ("has_words", "has_mask")},
        "looks": [look.tobytes() for look in looks],
        "bytes": [100_000] * count,
    }


@contextmanager
def _peaks() -> Iterator[dict[str, float]]:
    """Look every second at the memory of this process and of those that it has started."""
    peaks = dict.fromkeys(("driver", "worker", "workers", "store"), 0.0)
    finished = threading.Event()

    def look() -> None:
        while not finished.wait(SAMPLE_S):
            others = descendants(os.getpid())
            private = [private_mb(each) for each in others]
            shared = [shared_mb(each) for each in others]
            now = (private_mb(os.getpid()), max(private), sum(private), max(shared))
            peaks.update({name: max(before, value) for (name, before), value in zip(peaks.items(), now, strict=True)})

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        finished.set()
        thread.join()


def _beside_brute_force(selecting: Selecting, selected: Selected) -> str:
    """Say in how many of all candidates the decisions differ from those of comparing every one with every other."""
    folder = Path(selecting.output)
    scores, decisions = (
        [row for group in selecting.groups for row in pq.read_table(folder / place / group.name).to_pylist()]
        for place in ("scores", "selection")
    )
    expected = brute_force(scores, selecting)
    found = [row["reason"] if row["outcome"] == "duplicate" else row["outcome"] for row in decisions]
    wrong = sum(one != two for one, two in zip(found, expected, strict=True))
    if expected.count("kept") != selected.counts["kept"]:
        wrong = max(1, wrong)
    return f"{wrong} of {len(expected)} differ" if wrong else "equal"


def brute_force(rows: list[Mapping[str, Any]], selecting: Selecting) -> list[str]:
    """Decide on every candidate by plain comparisons of all with all: its outcome, or for a duplicate what it looks like."""
    outcomes = []
    for row in rows:
        failed = [bound.name for bound in selecting.bounds if row[bound.score] is not None and bound.reason(row[bound.score])]
        outcomes.append(failed[0] if failed else "")
    best: dict[str, int] = {}
    for index, row in enumerate(rows):
        if not outcomes[index]:
            outcomes[index] = "best_of_pair"
            if row["clip_direction"] > rows[best.setdefault(row["pair_id"], index)]["clip_direction"]:
                best[row["pair_id"]] = index
    order = sorted(best.values(), key=lambda index: -rows[index]["clip_direction"])
    codes = np.array([np.frombuffer(rows[index]["looks"], dtype=np.uint8) for index in order])
    for place, index in enumerate(order):
        near = np.flatnonzero(
            np.bitwise_count(codes[:place] ^ codes[place]).sum(axis=1) <= selecting.config.filters.max_distance
        )
        like = rows[order[near[0]]] if len(near) else None
        outcomes[index] = f"looks like {like['part']}#{like['part_row']}" if like else "kept"
    return outcomes


main = functools.partial(run_suite, "selection", SelectionBenchConfig, measure)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
