"""What a synthesis would be: rows, GPU hours and bytes, from a measured sample. Writes nothing into the output."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.cluster.place import auto_batch_size
from pipelines.cluster.session import get
from pipelines.cluster.weights import with_local_weights
from pipelines.cluster.workers import join, on_worker
from pipelines.edit.actor import edit_batch
from pipelines.records.parse import parse_record
from pipelines.records.pictures import decode_picture
from pipelines.records.row import Row
from pipelines.records.rules import RecordRules
from pipelines.synthesis.begin import BegunSynthesis, begin_synthesis
from pipelines.synthesis.columns import pair_file, pair_schema
from pipelines.synthesis.config import SynthesizeConfig, score_settings
from pipelines.synthesis.filters import make_bounds
from pipelines.synthesis.input import Chunk, cut_chunks
from pipelines.synthesis.making import Maker, Making
from pipelines.synthesis.scoring import Scorer, network_names
from vimaedit.config import Canvas
from vimaedit.errors import ConfigError
from vimaedit.images import encode_image, encode_mask
from vimaedit.models.files import ModelFacts
from vimaedit.types import Status

SAMPLE_RECORDS = 4


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured sample: seconds of drawing a source picture, editing and scoring a candidate, and bytes of each object."""

    records: int
    pairs: int
    candidates: int
    drawing_s: float
    editing_s: float
    scoring_s: float
    pair_bytes: float
    candidate_bytes: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a synthesis would be. `data_gb`: if every pair keeps as many candidates as it may."""

    files: int
    records: int
    chunks: int
    candidates: float
    actors: int
    device: str
    dtype: str
    batch_size: int
    sample: Measured | None
    warnings: tuple[str, ...]
    kept_at_most: float
    seconds: dict[str, float]

    @property
    def device_hours(self) -> float:
        return sum(self.seconds.values()) / 3600

    @property
    def gigabytes(self) -> dict[str, float]:
        if self.sample is None:
            return {}
        pairs, rows = self.sample.pair_bytes * self.candidates, self.sample.candidate_bytes * self.candidates
        return {"pairs": pairs / 1e9, "candidates": rows / 1e9, "data": self.sample.candidate_bytes * self.kept_at_most / 1e9}


def estimate_synthesis(
    config: SynthesizeConfig, on_started: Callable[[], None] | None = None, begun: BegunSynthesis | None = None
) -> Estimate:
    """Measure a few records on a worker of the editing kind, and say what the whole would take.

    Raises: ConfigError as the synthesis itself.
    """
    from pipelines.synthesis.synthesize import settle

    begun = begun or begin_synthesis(config)
    config, making = begun.config, begun.making
    assert making is not None  # a dry run estimates what is made
    placement = join(config, on_started, compiled=config.compile)
    making = settle(making, placement)
    chunks = cut_chunks(making.captions, [config.limit])
    records = sum(chunk.count for chunk in chunks)
    measure = on_worker(_measure, placement)
    batch_size, sample = get(measure.remote(making, chunks))
    candidates = kept = 0.0
    seconds: dict[str, float] = {}
    if sample is not None:
        pairs = records * sample.pairs / sample.records
        candidates, kept = pairs * config.candidates, pairs * min(config.candidates, config.filters.per_pair)
        seconds = {
            "drawing sources": records * sample.drawing_s,
            "editing": candidates * sample.editing_s,
            "scoring": candidates * sample.scoring_s,
        }
    _, warnings = make_bounds(config.filters, score_settings(config))
    return Estimate(
        files=len(making.captions.files),
        records=records,
        chunks=len(chunks),
        candidates=candidates,
        actors=min(placement.likely_actors, max(1, len(chunks))),
        device=making.device,
        dtype=making.dtype,
        batch_size=batch_size,
        sample=sample,
        warnings=tuple(warnings),
        kept_at_most=kept,
        seconds=seconds,
    )


def estimate_text(estimate: Estimate) -> str:
    """Say what a synthesis would be."""
    lines = [
        f"input:  {estimate.files} files, {estimate.records} records, {estimate.chunks} chunks",
        f"place:  {estimate.actors} actors, {estimate.device}, {estimate.dtype}, batches of {estimate.batch_size}",
    ]
    if estimate.sample is None:
        lines.append("sample: nothing could be measured")
        return "\n".join([*lines, "dry run: nothing was written"])
    sample, unit = estimate.sample, "GPU" if estimate.device == "cuda" else "CPU actor"
    lines += [
        f"sample: {sample.records} records gave {sample.pairs} pairs; {sample.candidates} candidates: drawing a source {sample.drawing_s:.2f} s, "
        f"editing {sample.editing_s:.2f} s, scoring {sample.scoring_s:.2f} s",
        f"rows:   {estimate.candidates:.0f} candidates, of which at most {estimate.kept_at_most:.0f} are kept",
        f"time:   {estimate.device_hours:.2f} {unit} hours ({_listed(estimate.seconds, 3600, 'h')}), {estimate.device_hours / estimate.actors:.2f} h here",
        f"bytes:  {_listed(estimate.gigabytes, 1, 'GB')}",
    ]
    return "\n".join([*lines, "dry run: nothing was written"])


def _listed(values: dict[str, float], unit: float, name: str) -> str:
    return ", ".join(f"{key} {value / unit:.3f} {name}" for key, value in values.items())


def _measure(making: Making, chunks: Sequence[Chunk]) -> tuple[int, Measured | None]:
    """Make, edit and score the first few records, after a warm-up; nothing is written."""
    import torch

    from vimaedit.engine.load import load_editor
    from vimaedit.models.files import model_facts, resolve_model, weights_gib

    if making.config.parts.hosts_pipeline:
        raise ConfigError(
            "dry_run: got true with a hosted pipeline; allowed: false, or a small limit, whose time tells the rate"
        )
    torch.set_num_threads(making.threads)
    config = dataclasses.replace(making.config, device=making.device, dtype=making.dtype)
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30 if making.device == "cuda" else None
    local = with_local_weights(config)
    files = resolve_model(local, image_guidance=local.image_guidance)
    facts = model_facts(files)
    batch_size = (
        config.batch_size
        if isinstance(config.batch_size, int)
        else auto_batch_size(
            gib, canvas_px=config.canvas.size or facts.canvas_size, weights_gib=weights_gib(files, making.dtype, config.offload)
        )
    )
    if not chunks:
        return batch_size, None
    first = dataclasses.replace(chunks[0], count=min(SAMPLE_RECORDS, chunks[0].count))
    maker = Maker(making)
    if making.draws_sources:
        maker.make(first)
    made = maker.make(first)
    if not made.rows:
        return batch_size, None
    rules = _rules(config, facts)
    editor = load_editor(local, local, files)
    requests = [_row(rules, values) for values in made.rows[:batch_size]]
    chosen = [(values, row) for values, row in zip(made.rows, requests, strict=False) if row is not None]
    if not chosen:
        return batch_size, None
    edit_batch(editor, [dataclasses.replace(row) for _, row in chosen])  # a warm-up
    started = time.perf_counter()
    edit_batch(editor, [row for _, row in chosen])
    editing_s = (time.perf_counter() - started) / len(chosen)
    outputs = [_output(values, row) for values, row in chosen]
    scorer = Scorer(network_names(config), making.device)
    scorer.score_rows(outputs, "", 0)
    started = time.perf_counter()
    scorer.score_rows(outputs, "", 0)
    scoring_s = (time.perf_counter() - started) / len(outputs)
    pictures = [len(row[name]["bytes"]) for row in outputs for name in ("image", "edited_image", "edit_mask") if row[name]]
    schema = pair_schema(making.captions.passed_types)
    return batch_size, Measured(
        records=first.count,
        pairs=made.num_pairs,
        candidates=len(outputs),
        drawing_s=made.drawing_s / max(1, made.num_drawn),
        editing_s=editing_s,
        scoring_s=scoring_s,
        pair_bytes=len(pair_file(made.rows, made.passed, schema)) / len(made.rows),
        candidate_bytes=sum(pictures) / len(outputs),
    )


def _rules(config: SynthesizeConfig, facts: ModelFacts) -> RecordRules:
    return RecordRules(
        min_side_px=config.min_side_px,
        max_pixels=config.max_pixels,
        canvas=facts.fit(Canvas(size=config.canvas.size)),
        clip_side=facts.clip_side,
        seed=config.seed,
        reads_masks=False,
        keeps_coded=False,
    )


def _row(rules: RecordRules, values: dict[str, Any]) -> Row | None:
    """Read a candidate as the editing run will; None where it cannot be edited."""
    picture = decode_picture(rules, values, values["image"]["bytes"])
    place = {"input_file": values["caption_file"], "input_row": values["caption_row"]}
    (row,) = parse_record(rules, values, picture, blends_per_target=False, first_edit=0, count=1, **place)
    return row if row.request is not None else None


def _output(values: dict[str, Any], row: Row) -> dict[str, Any]:
    """Return a candidate as the editing run would have written it, as far as scoring reads it."""
    result, picture = row.result, row.picture
    assert result is not None and picture is not None
    edited = result.image if result.status == Status.OK else None
    mask = result.edit_mask if edited is not None else None
    return {
        **values,
        "status": str(result.status),
        "error_type": result.error_type,
        "image": None if edited is None else {"bytes": encode_image(picture.image, "png")},
        "edited_image": None if edited is None else {"bytes": encode_image(edited, "png")},
        "edit_mask": None if mask is None else {"bytes": encode_mask(mask)},
        "blend_words_used": list(result.blend_used),
        "metrics": None,
    }
