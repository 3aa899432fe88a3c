"""The synthesis: captions -> pairs -> candidates -> scores -> selection -> data set, going on where an attempt has ended."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

import vimaedit
from pipelines.cluster.losses import losses_from_json, losses_lines
from pipelines.cluster.place import Placement
from pipelines.cluster.progress import ProgressCallback
from pipelines.cluster.workers import join
from pipelines.edit.edit import run_edit
from pipelines.exits import EXIT_LOSSES
from pipelines.output.finish import RUN_FILE, read_run
from pipelines.output.plan import StoredPlan, load_plan
from pipelines.output.summary import RunSummary
from pipelines.store.listing import named_inputs
from pipelines.store.location import Location, put_json, withdraw_success, write_success
from pipelines.store.lock import Lock, hold_lock
from pipelines.store.masking import mask_urls
from pipelines.store.parquet import read_footer
from pipelines.synthesis.begin import (
    BegunSynthesis,
    SynthesisSummary,
    begin_synthesis,
    editing_job,
    find_finished,
    find_selected,
    selection_digest,
    store_settings,
)
from pipelines.synthesis.card import Account, write_card
from pipelines.synthesis.columns import PAIR_FIELDS
from pipelines.synthesis.config import SynthesizeConfig, score_settings
from pipelines.synthesis.dataset import write_dataset
from pipelines.synthesis.filters import make_bounds
from pipelines.synthesis.input import CaptionSet, cut_chunks
from pipelines.synthesis.making import Making
from pipelines.synthesis.pairs import make_pairs
from pipelines.synthesis.report import EXAMPLES, write_report
from pipelines.synthesis.scoring import score_parts
from pipelines.synthesis.selection import SPLITS, Selected, Selecting, make_groups, select
from pipelines.synthesis.truth import measure_truth, truth_table

logger = logging.getLogger(__name__)


def run_synthesis(
    config: SynthesizeConfig,
    progress: ProgressCallback | None = None,
    on_started: Callable[[], None] | None = None,
    begun: BegunSynthesis | None = None,
) -> SynthesisSummary:
    """Make a data set, or go on with what the output holds.

    `on_started` is called right after Ray has started (the place to install signal handlers). `begun`: the first look, where it was
    taken already; a synthesis that is finished needs no Ray.

    Raises: ConfigError (exit 2) before any work; anything else is a bug or infrastructure (exit 1).
    """
    started = time.monotonic()
    begun = begun or begin_synthesis(config)
    if (finished := find_finished(begun)) is not None:
        return finished
    config, output, making = begun.config, begun.output, begun.making
    placement = join(config, on_started, compiled=config.compile)
    with hold_lock(output) as lock:
        edited = None
        if making is not None:
            making = settle(making, placement)
            limits = store_settings(output, making)
            make_pairs(making, cut_chunks(making.captions, limits), placement)
            edited = run_edit(editing_job(config, output), progress)
            if edited.stop_reason is not None:
                return SynthesisSummary(
                    exit_code=edited.exit_code,
                    seconds=time.monotonic() - started,
                    places=(edited.data,),
                    warnings=(*edited.warnings, *edited.reasons()),
                    stop_reason=edited.stop_reason,
                )
        return _select(config, output, placement, lock, edited, None if making is None else making.captions, started)


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
    captions: CaptionSet | None,
    started: float,
) -> SynthesisSummary:
    """Score, select, and write the data set with its card and report."""
    stored = load_plan(output / "candidates")
    assert stored is not None
    units = stored.plan.units
    bounds, warnings = make_bounds(config.filters, score_settings(config))
    run = read_run(output / "candidates") or {}
    if (before := find_selected(config, output)) is not None:
        return before
    score_parts(config, units, placement, "cuda" if placement.use_gpu else "cpu")
    lock.check()
    withdraw_success(output)
    groups = make_groups([file.path for file in stored.files], units)
    selecting = Selecting(output=output.url, config=config, groups=groups, bounds=tuple(bounds))
    selected = select(selecting, EXAMPLES)
    passed = _passed_types(output, stored)
    lock.check()
    shards, unwritten = write_dataset(selecting, selected, passed)
    left_out = () if captions is None else captions.left_out
    warnings += [
        *_losses(config, run, selected, unwritten),
        *(() if captions is None else captions.warnings),
        *(each.text() for each in left_out),
    ]
    account = Account(
        selecting=selecting,
        selected=selected,
        shards=shards,
        warnings=warnings,
        provenance=_provenance(config, run),
        truth=truth_table(measure_truth(config.output, config.filters.max_unsafe)) if config.truth else None,
    )
    write_card(account)
    write_report(account)
    total = sum(selected.counts.values())
    code = edited.exit_code if edited is not None else run.get("exit_code", 0)
    without, fraction = selected.counts["pair"], config.max_rejected_fraction
    if without > fraction * total:
        code = EXIT_LOSSES
        warnings.append(f"{without} of {total} candidates have no pair, more than max_rejected_fraction={fraction:g}")
    facts: dict[str, Any] = {
        "exit_code": code,
        "digest": selection_digest(config, run),
        "counts": dict(selected.counts),
        "records": {split: selected.records(split) for split in SPLITS},
        "places": [mask_urls((output / name).url) for name in ("data", "README.md", "report.html")],
        "warnings": warnings,
        "left_out": [dataclasses.asdict(each) for each in left_out],
        "truth": None if account.truth is None else account.truth.text(),
        "version": vimaedit.__version__,
        "seconds": round(time.monotonic() - started, 3),
        "config": dataclasses.asdict(config),
    }
    lock.check()
    put_json(output / RUN_FILE, facts)
    write_success(output)
    return SynthesisSummary.of(facts)


def _losses(config: SynthesizeConfig, run: Mapping[str, Any], selected: Selected, unwritten: int) -> list[str]:
    """Say what the data set lacks: instructions, scores, candidates."""
    warnings = []
    if unwritten:
        warnings.append(
            f"rewrite: the instruction of {unwritten} records stayed as it was, for {config.rewrite} gave none that can be used"
        )
    if config.judge.model is not None and selected.unjudged:
        warnings.append(f"judge: {selected.unjudged} edits have no score, and pass its filter")
    warnings += run.get("warnings", [])
    if run.get("exit_reason"):
        warnings += [*losses_lines(losses_from_json(run.get("losses"))), f"candidates: {run['exit_reason']}"]
    return warnings


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
        "input": named_inputs(config.input),
        "edited": json.dumps(run.get("counts", {})),
    }
