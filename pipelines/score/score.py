"""Score edited pictures against a benchmark: match -> Ray Data (read | measure) -> rows, means, comparison.

Written below the output: `scores/<name>.parquet`, a row per request of the benchmark in its order (columns: `SCORE_FIELDS`), then
`scores/<name>.json`, what they come to. Several runs of one benchmark lie side by side under their names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import pickle
import posixpath
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

import vimaedit
from pipelines.cluster.place import Placement, place
from pipelines.cluster.progress import ProgressCallback, ProgressState
from pipelines.cluster.session import connect, look_at_cluster, set_engine
from pipelines.cluster.workers import await_worker
from pipelines.exits import EXIT_LOSSES
from pipelines.options import Place, option_names
from pipelines.score.config import MISSING, UNSCORED
from pipelines.score.config import ScoreConfig as ScoreConfig
from pipelines.score.networks import Measurer, MetricNetworks, absent_warnings, find_absent
from pipelines.score.pairs import Pair, Pairs, find_pairs
from pipelines.score.read import Loaded, ScoreContext, load_pairs
from pipelines.score.table import (
    FOLDER,
    Numbers,
    compare_tables,
    count_statuses,
    overall,
    per_category,
    read_scores,
    read_summary,
    score_row,
    write_scores,
    write_summary,
)
from pipelines.store.location import Location, check_writable, locate
from pipelines.store.masking import mask_urls, without_secrets
from vimaedit.errors import ConfigError
from vimaedit.metrics.names import METRICS
from vimaedit.types import Status

logger = logging.getLogger(__name__)

UNIT_PAIRS = 16  # read and measured together; at 512 px some 40 MB
UNIT_SECONDS = 600.0  # the longest they may take, on a slow CPU with all networks
SHOWN_UNMATCHED = 20
# Where work is placed, and when a run counts as a failure.
CHANGE_NO_SCORE = option_names(Place) | {"output", "name", "against", "max_missing_fraction", "batch_size"}


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What scoring came to: exit code, the content of `scores/<name>.json`, the URLs of what was written, warnings."""

    exit_code: int
    name: str
    aggregates: Numbers
    places: tuple[str, ...]
    warnings: tuple[str, ...]


def run_score(
    config: ScoreConfig, progress: ProgressCallback | None = None, on_started: Callable[[], None] | None = None
) -> ScoreSummary:
    """Score edited pictures. Scores of the same settings and pictures that are there already are kept.

    `on_started` is called right after Ray has started (the place to install signal handlers).

    Raises: ConfigError (exit 2) before any work; anything else is a bug or infrastructure (exit 1).
    """
    started = time.monotonic()
    output = locate(config.output)
    check_writable(output)
    if config.against and read_summary(output, config.against) is None:
        raise ConfigError(
            f"against: got {config.against!r}, which {mask_urls(output.url)} has no scores of; allowed: a name scored there before"
        )
    pairs = find_pairs(config)
    name = config.name or default_name(config, pairs.pairs)
    if name == config.against:
        raise ConfigError(
            f"against: got {name!r}, these scores themselves; allowed: the name of other scores, or another name="
        )
    connect(config)
    if on_started is not None:
        on_started()
    placement = place(config, look_at_cluster(config))
    await_worker(placement)
    absent = find_absent(MetricNetworks.of(config, config.groups), placement)
    warnings = [*pairs.warnings, *absent_warnings(absent)]
    if pairs.unmatched:
        names = ", ".join(repr(each) for each in pairs.unmatched[:SHOWN_UNMATCHED])
        warnings.append(f"edited: {len(pairs.unmatched)} pictures belong to no request of the benchmark: {names}")
    digest = settings_digest(config, pairs.digest)
    kept = read_summary(output, name)
    table = read_scores(output, name) if kept is not None else None
    if kept is None or table is None or kept.get("digest") != digest or kept.get("absent") != absent:
        rows = measure(config, name, pairs, placement, absent, progress)
        table = write_scores(output, name, rows)
        seconds = time.monotonic() - started
    else:
        logger.info("%s holds these scores of %s already", mask_urls(output.url), name)
        seconds = kept["seconds"]
    statuses = count_statuses(table)
    summary: Numbers = {
        "name": name,
        "method": next((pair.edited.method for pair in pairs.pairs if pair.edited is not None), None),
        "settings": without_secrets(dataclasses.asdict(config)),
        "digest": digest,
        "version": vimaedit.__version__,
        "records": table.num_rows,
        "statuses": statuses,
        "unmatched": len(pairs.unmatched),
        "unmatched_names": pairs.unmatched[:SHOWN_UNMATCHED],
        "absent": absent,
        "overall": overall(table),
        "categories": per_category(table),
        "compared": compared(output, config.against, table),
        "warnings": [mask_urls(warning) for warning in warnings],
        "seconds": seconds,
    }
    write_summary(output, name, summary)
    lost = table.num_rows - statuses[Status.OK]
    return ScoreSummary(
        exit_code=EXIT_LOSSES if lost > config.max_missing_fraction * table.num_rows else 0,
        name=name,
        aggregates=summary,
        places=tuple(mask_urls((output / FOLDER / f"{name}.{kind}").url) for kind in ("parquet", "json")),
        warnings=tuple(summary["warnings"]),
    )


def default_name(config: ScoreConfig, pairs: Sequence[Pair]) -> str:
    """Name scores after the method that made the pictures, else after the place where they lie."""
    methods = {pair.edited.method for pair in pairs if pair.edited is not None and pair.edited.method}
    if len(methods) == 1:
        return str(methods.pop())
    return posixpath.splitext(locate(config.edited).path.rstrip("/").rsplit("/", 1)[-1])[0].strip("._*") or "edited"


def settings_digest(config: ScoreConfig, content: str) -> str:
    """Digest what scores depend on: the settings, and the `content` that is scored."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in CHANGE_NO_SCORE}
    made_by = {"version": vimaedit.__version__, "metrics_known": list(METRICS)}
    text = json.dumps({"content": content, **made_by, **settings}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def compared(output: Location, against: str, table: pa.Table) -> Numbers | None:
    """Compare with the scores of that name; None for no name."""
    if not against:
        return None
    other = read_scores(output, against)
    assert other is not None  # checked before any work
    return {"against": against, "metrics": compare_tables(table, other)}


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
    context = ScoreContext.of(dataclasses.replace(config, image_root=root), pairs)
    payloads = [{"unit": pickle.dumps([(position, pairs.pairs[position]) for position in unit])} for unit in units]
    size = min(placement.num_actors or placement.likely_actors, len(units))
    read: Any = _read_units  # Ray's types know no further arguments
    measured = (
        ray.data.from_items(payloads, override_num_blocks=len(payloads))
        .map_batches(read, fn_kwargs={"context": context}, batch_size=1, batch_format="pyarrow")
        .map_batches(
            ScoreActor,
            fn_constructor_args=(config, placement.threads, placement.use_gpu, dict(absent)),
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


def _read_units(block: pa.Table, context: ScoreContext) -> pa.Table:
    """Read the records and edited pictures of a block's units and bring them to one frame."""
    return _to_block([load_pairs(context, pickle.loads(unit.as_buffer())) for unit in block.column("unit")])


class ScoreActor:
    """Hosts the metrics' networks; called by Ray Data with the block of one unit."""

    def __init__(self, config: ScoreConfig, threads: int, use_gpu: bool, absent: dict[str, str]) -> None:
        networks = MetricNetworks.of(config, config.groups)
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
        for item, values in zip(ready, self.measurer(samples), strict=True):
            item.values = {**values, **item.values}
            item.sample = None


def _to_block(units: Sequence[Any]) -> pa.Table:
    return pa.table({"unit": pa.array([pickle.dumps(unit, protocol=5) for unit in units], pa.large_binary())})


__all__ = ["MISSING", "UNSCORED", "ScoreConfig", "ScoreSummary", "run_score"]
