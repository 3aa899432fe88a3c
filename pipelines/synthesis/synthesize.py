"""The synthesis: captions -> pairs -> candidates -> scores -> selection -> data set, going on where an attempt has ended."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

import vimaedit
from pipelines.cluster.place import Placement, place
from pipelines.cluster.progress import ProgressCallback
from pipelines.cluster.session import connect, look_at_cluster
from pipelines.cluster.workers import await_worker
from pipelines.edit.edit import RunSummary, run_edit
from pipelines.exits import EXIT_LOSSES
from pipelines.output.config import EditJobConfig
from pipelines.output.finish import read_run
from pipelines.output.plan import StoredPlan, load_plan
from pipelines.store.listing import refuse_output_in_input
from pipelines.store.location import (
    Location,
    check_writable,
    is_complete,
    list_files,
    locate,
    put_atomic,
    withdraw_success,
    write_success,
)
from pipelines.store.lock import Lock, hold_lock
from pipelines.store.masking import mask_urls, without_secrets
from pipelines.store.parquet import read_footer
from pipelines.synthesis.card import write_card
from pipelines.synthesis.columns import PAIR_FIELDS, TAKEN
from pipelines.synthesis.config import SynthesizeConfig, score_settings
from pipelines.synthesis.dataset import write_dataset
from pipelines.synthesis.filters import make_bounds
from pipelines.synthesis.input import cut_chunks, scan_captions
from pipelines.synthesis.making import Making
from pipelines.synthesis.pairs import check_settings, make_pairs, pair_source
from pipelines.synthesis.report import EXAMPLES, write_report
from pipelines.synthesis.scoring import score_parts
from pipelines.synthesis.selection import SPLITS, Selecting, make_groups, select
from pipelines.synthesis.truth import measure_truth, truth_table
from vimaedit.errors import ConfigError
from vimaedit.synthesis.lexicon import load_lexicon

logger = logging.getLogger(__name__)

SELECTION_OPTIONS = ("filters", "validation_fraction", "keep_rejected", "shard_mb", "seed", "truth")


@dataclass(frozen=True, kw_only=True)
class SynthesisSummary:
    """What a synthesis came to. `counts`: outcome -> candidates, `records`: split -> records; places are URLs."""

    exit_code: int
    counts: Mapping[str, int]
    records: Mapping[str, int]
    seconds: float
    places: tuple[str, ...]
    warnings: tuple[str, ...]
    stop_reason: str | None = None
    was_finished: bool = False
    truth: str | None = None  # table


def run_synthesis(
    config: SynthesizeConfig, progress: ProgressCallback | None = None, on_started: Callable[[], None] | None = None
) -> SynthesisSummary:
    """Make a data set, or go on with what the output holds.

    `on_started` is called right after Ray has started (the place to install signal handlers).

    Raises: ConfigError (exit 2) before any work; anything else is a bug or infrastructure (exit 1).
    """
    started = time.monotonic()
    output = locate(config.output)
    config = dataclasses.replace(config, output=output.url)
    refuse_output_in_input(output, config.input)
    check_writable(output)
    making = None if config.select_only else prepare_making(config)
    if making is None and not is_complete(output / "candidates"):
        raise ConfigError(
            f"select_only: got true, but {mask_urls((output / 'candidates').url)} holds no finished candidates; allowed: false, which "
            "makes them"
        )
    connect(config)
    if on_started is not None:
        on_started()
    placement = place(config, look_at_cluster(config), compiled=config.compile)
    await_worker(placement)
    with hold_lock(output) as lock:
        edited = None
        if making is not None:
            making = settle(making, placement)
            limits = check_settings(output, config, making.captions, making.lexicon)
            make_pairs(making, cut_chunks(making.captions, limits), placement)
            edited = run_edit(_editing_job(config, output), progress)
            if edited.stop_reason is not None:
                return SynthesisSummary(
                    exit_code=edited.exit_code,
                    counts={},
                    records={},
                    seconds=time.monotonic() - started,
                    places=(edited.data,),
                    warnings=edited.warnings,
                    stop_reason=edited.stop_reason,
                )
        return _select(config, output, placement, lock, edited, started)


def prepare_making(config: SynthesizeConfig) -> Making:
    """Look at the input and read the word lists; nothing is settled yet that only the cluster tells.

    Raises: ConfigError.
    """
    captions = scan_captions(config.input, config.columns, TAKEN)
    if not captions.num_rows:
        raise ConfigError(f"input: got {mask_urls(config.input)!r}, whose files hold no records; allowed: at least one")
    source = pair_source(config, captions)
    return Making(
        config=config,
        captions=captions,
        lexicon=load_lexicon(config.words) if source == "rules" else None,
        source=source,
        device="cpu",
        dtype="float32",
        threads=1,
    )


def _editing_job(config: SynthesizeConfig, output: Location) -> EditJobConfig:
    """Return the run that edits the candidates; where a larger limit has added pairs to its input, it takes them in."""
    job, stored = config.editing_job(), load_plan(output / "candidates")
    pairs = {name for name, _ in list_files(output / "pairs", ".parquet")}
    if stored is None or pairs <= {file.path for file in stored.files}:
        return job
    if config.resume == "retry-failed":
        raise ConfigError("limit: got a larger one with resume=retry-failed; allowed: one after the other")
    return dataclasses.replace(job, resume="extend")


def settle(making: Making, placement: Placement) -> Making:
    """Settle device, precision and threads by where the work is placed."""
    dtype = making.config.dtype
    if dtype == "auto":
        dtype = "float16" if placement.use_gpu else "float32"
    return dataclasses.replace(making, device="cuda" if placement.use_gpu else "cpu", dtype=dtype, threads=placement.threads)


def _select(
    config: SynthesizeConfig,
    output: Location,
    placement: Placement,
    lock: Lock,
    edited: RunSummary | None,
    started: float,
) -> SynthesisSummary:
    """Score, select, and write the data set with its card and report."""
    stored = load_plan(output / "candidates")
    assert stored is not None
    units = stored.plan.units
    bounds, warnings = make_bounds(config.filters, score_settings(config))
    run = read_run(output / "candidates") or {}
    digest = _digest(config, run)
    before = read_run(output) if is_complete(output) else None
    if before is not None and before["digest"] == digest:
        return _again(before, edited)
    score_parts(config, units, placement, "cuda" if placement.use_gpu else "cpu")
    lock.check()
    withdraw_success(output)
    groups = make_groups([file.path for file in stored.files], units)
    selecting = Selecting(output=output.url, config=config, groups=groups, bounds=tuple(bounds))
    selected = select(selecting, EXAMPLES)
    passed = _passed_types(output, stored)
    lock.check()
    shards = write_dataset(selecting, selected, passed)
    warnings += run.get("warnings", [])
    provenance = _provenance(config, run)
    truth = truth_table(measure_truth(config.output)) if config.truth else None
    write_card(output, config, bounds, selected, shards, warnings, provenance, truth)
    write_report(selecting, selected, warnings, provenance, truth)
    total = sum(selected.counts.values())
    code = edited.exit_code if edited is not None else run.get("exit_code", 0)
    if selected.counts["pair"] > config.max_rejected_fraction * total:
        code = EXIT_LOSSES
    facts: dict[str, Any] = {
        "exit_code": code,
        "digest": digest,
        "counts": dict(selected.counts),
        "records": {split: selected.records(split) for split in SPLITS},
        "places": [mask_urls((output / name).url) for name in ("data", "README.md", "report.html")],
        "warnings": warnings,
        "truth": None if truth is None else truth.text(),
        "version": vimaedit.__version__,
        "seconds": round(time.monotonic() - started, 3),
        "config": dataclasses.asdict(config),
    }
    lock.check()
    put_atomic(output / "run.json", json.dumps(without_secrets(facts), indent=2).encode())
    write_success(output)
    return SynthesisSummary(
        exit_code=code,
        counts=facts["counts"],
        records=facts["records"],
        seconds=time.monotonic() - started,
        places=tuple(facts["places"]),
        warnings=tuple(warnings),
        truth=facts["truth"],
    )


def _again(before: Mapping[str, Any], edited: RunSummary | None) -> SynthesisSummary:
    """Say of a finished synthesis what it came to."""
    return SynthesisSummary(
        exit_code=before["exit_code"],
        counts=before["counts"],
        records=before["records"],
        seconds=0.0,
        places=tuple(before["places"]),
        warnings=tuple(before["warnings"]),
        was_finished=True,
        truth=before["truth"],
    )


def _digest(config: SynthesizeConfig, run: Mapping[str, Any]) -> str:
    """Digest what the data set depends on besides the candidates, and which state of them it was."""
    values = dataclasses.asdict(config)
    options = {name: values[name] for name in SELECTION_OPTIONS}
    state = {name: run.get(name) for name in ("plan_digest", "generation", "counts")}
    text = json.dumps([options, dict(score_settings(config)), state], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _passed_types(output: Location, stored: StoredPlan) -> dict[str, pa.DataType]:
    """Return the passed-through columns of the pairs, by name."""
    own = {field.name for field in PAIR_FIELDS}
    schema = read_footer(output / "pairs" / stored.files[0].path).schema.to_arrow_schema()
    return {field.name: field.type for field in schema if field.name not in own}


def _provenance(config: SynthesizeConfig, run: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: run.get(name) for name in ("model", "model_digest", "config_digest", "version")}
    return {
        **facts,
        "method": config.method,
        "steps": config.steps,
        "seed": config.seed,
        "pairs": config.pairs,
        "candidates of a pair": config.candidates,
        "input": mask_urls(config.input),
        "edited": json.dumps(run.get("counts", {})),
    }
