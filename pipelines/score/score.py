"""Score edited pictures against a benchmark: match -> Ray Data (read | measure) -> rows, means, comparison.

Written below the output: `scores/<name>.parquet`, a row per request of the benchmark in its order (columns: `SCORE_FIELDS`), then
`scores/<name>.json`, what they come to. Several runs of one benchmark lie side by side under their names.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

import vimaedit
from pipelines.cluster.place import Placement
from pipelines.cluster.progress import ProgressCallback, ProgressState
from pipelines.cluster.session import set_engine
from pipelines.cluster.weights import with_absolute_names
from pipelines.cluster.workers import join
from pipelines.score.begin import BegunScore, ScoreSummary, begin_score, compare, find_kept, summarize
from pipelines.score.config import UNSCORED, ScoreConfig
from pipelines.score.judging import AskingJudge, calibrate, judge_facts
from pipelines.score.networks import Measurer, MetricNetworks, absent_warnings, find_absent
from pipelines.score.pairs import Pairs, Places
from pipelines.score.read import Loaded, load_pairs
from pipelines.score.table import (
    Numbers,
    count_statuses,
    judge_absent,
    overall,
    per_category,
    score_row,
    seconds_per_edit,
    write_scores,
    write_summary,
)
from pipelines.store.location import locate
from pipelines.store.masking import mask_urls, without_secrets
from vimaedit.types import Status

logger = logging.getLogger(__name__)

UNIT_PAIRS = 16  # read and measured together; at 512 px some 40 MB
UNIT_SECONDS = 600.0  # the longest they may take, on a slow CPU with all networks
SHOWN_UNMATCHED = 20


def run_score(
    config: ScoreConfig,
    progress: ProgressCallback | None = None,
    on_started: Callable[[], None] | None = None,
    begun: BegunScore | None = None,
) -> ScoreSummary:
    """Score edited pictures. Scores of the same settings and pictures that are there already are kept.

    `on_started` is called right after Ray has started (the place to install signal handlers). `begun`: the first look, where it was
    taken already; scores that are kept need no Ray.

    Raises: ConfigError (exit 2) before any work; anything else is a bug or infrastructure (exit 1).
    """
    started = time.monotonic()
    begun = begun or begin_score(config)
    if (kept := find_kept(begun)) is not None:
        return kept
    name, pairs, output = begun.name, begun.pairs, begun.output
    config = with_absolute_names(config)
    placement = join(config, on_started)
    absent = find_absent(MetricNetworks.of(config, config.groups), placement)
    warnings = [*pairs.warnings, *absent_warnings(absent)]
    if pairs.unmatched:
        names = ", ".join(repr(each) for each in pairs.unmatched[:SHOWN_UNMATCHED])
        warnings.append(f"edited: {len(pairs.unmatched)} pictures belong to no request of the benchmark: {names}")
    if begun.kept is not None and begun.kept[0]["absent"] == absent:
        logger.info("%s holds these scores of %s already", mask_urls(output.url), name)
        seconds, table = begun.kept[0]["seconds"], begun.kept[1]
    else:
        rows = measure(config, name, pairs, placement, absent, progress)
        table = write_scores(output, name, rows)
        seconds = time.monotonic() - started
    judged = judge_facts(table, calibrate(config.judge, output.url, placement)) if "judge" in config.groups else None
    numbers: Numbers = {
        "judge": judged,
        "name": name,
        "method": next((pair.edited.method for pair in pairs.pairs if pair.edited is not None), None),
        "settings": without_secrets(dataclasses.asdict(config)),
        "digest": begun.digest,
        "version": vimaedit.__version__,
        "records": table.num_rows,
        "statuses": count_statuses(table),
        "unmatched": len(pairs.unmatched),
        "unmatched_names": pairs.unmatched[:SHOWN_UNMATCHED],
        "absent": absent,
        "seconds_per_edit": seconds_per_edit(table),
        "overall": overall(table),
        "categories": per_category(table),
        "compared": compare(begun, table),
        "warnings": [mask_urls(warning) for warning in warnings],
        "seconds": seconds,
    }
    write_summary(output, name, numbers)
    return summarize(begun, numbers)


def measure(
    config: ScoreConfig,
    name: str,
    pairs: Pairs,
    placement: Placement,
    absent: Mapping[str, str],
    progress: ProgressCallback | None,
) -> list[dict[str, Any]]:
    """Measure every request that has an edited picture; return all rows in the benchmark's order."""
    rows = [score_row(name, pair) for pair in pairs.pairs]
    wanted = [number for number, row in enumerate(rows) if row["status"] == Status.OK]
    counts = Counter(row["status"] for row in rows if row["status"] != Status.OK)
    for item in _measured(config, pairs, wanted, placement, absent):
        row = rows[item.position]
        row |= item.values
        if item.problem is not None:
            row |= {"status": UNSCORED, "message": item.problem}
            logger.warning("%s", item.problem)
        counts[row["status"]] += 1
        if progress is not None:
            progress(ProgressState(done=counts.total(), total=len(rows), counts=dict(counts)))
    judge_absent(rows)
    return rows


def _measured(
    config: ScoreConfig, pairs: Pairs, wanted: Sequence[int], placement: Placement, absent: Mapping[str, str]
) -> Iterator[Loaded]:
    """Measure the requests at the wanted positions, in any order; what comes back holds no pictures."""
    units = [wanted[start : start + UNIT_PAIRS] for start in range(0, len(wanted), UNIT_PAIRS)]
    if not units:
        return
    set_engine(UNIT_SECONDS)
    # A worker's current folder may be another.
    root = None if config.image_root is None else locate(config.image_root).url
    payloads = [{"unit": pickle.dumps([(position, pairs.pairs[position]) for position in unit])} for unit in units]
    size = min(placement.num_actors or placement.likely_actors, len(units))
    read: Any = _read_units  # Ray's types know no further arguments
    measured = (
        ray.data.from_items(payloads, override_num_blocks=len(payloads))
        .map_batches(
            read,
            fn_kwargs={"config": dataclasses.replace(config, image_root=root), "places": pairs.places},
            batch_size=1,
            batch_format="pyarrow",
        )
        .map_batches(
            ScoreActor,
            fn_constructor_args=(
                dataclasses.replace(config, output=locate(config.output).url),
                placement.threads,
                placement.use_gpu,
                dict(absent),
            ),
            batch_size=1,  # a block of one row is one unit
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
            num_cpus=placement.num_cpus,
            num_gpus=placement.num_gpus or None,
        )
    )
    batches: Iterator[pa.Table] = iter(measured.iter_batches(batch_size=None, batch_format="pyarrow"))
    for batch in batches:
        for unit in batch.column("unit"):
            yield from pickle.loads(unit.as_buffer())


def _read_units(block: pa.Table, config: ScoreConfig, places: Places) -> pa.Table:
    """Read the records and edited pictures of a block's units and bring them to one frame."""
    return _to_block([load_pairs(config, places, pickle.loads(unit.as_buffer())) for unit in block.column("unit")])


class ScoreActor:
    """Hosts the metrics' networks; called by Ray Data with the block of one unit."""

    def __init__(self, config: ScoreConfig, threads: int, use_gpu: bool, absent: dict[str, str]) -> None:
        networks = MetricNetworks.of(config, config.groups)
        device = "cuda" if use_gpu else "cpu"
        self.judge = AskingJudge(config.judge, config.output, device) if "judge" in config.groups else None
        self.measurer = Measurer(networks, batch_size=config.batch_size, threads=threads, use_gpu=use_gpu, absent=list(absent))

    def __call__(self, block: pa.Table) -> pa.Table:
        units = [pickle.loads(unit.as_buffer()) for unit in block.column("unit")]
        for unit in units:
            self.measure(unit)
        return _to_block(units)

    def measure(self, items: Sequence[Loaded]) -> None:
        """Measure the samples among the items in place, and let go of their pictures."""
        ready = [item for item in items if item.sample is not None]
        samples = [sample for item in ready if (sample := item.sample) is not None]
        judged = [{}] * len(samples) if self.judge is None else self.judge(samples)
        for item, values, said in zip(ready, self.measurer(samples), judged, strict=True):
            item.values = {**values, **said, **item.values}
            item.sample = None


def _to_block(units: Sequence[Any]) -> pa.Table:
    return pa.table({"unit": pa.array([pickle.dumps(unit, protocol=5) for unit in units], pa.large_binary())})
