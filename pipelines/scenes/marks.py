"""Scores of single edits of drawn scenes: what was read, how the mask lies, how near the pictures are; in Ray tasks."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipelines.cluster.session import get
from pipelines.store.location import Location, list_files, open_reader, put_atomic, retry_remote
from vimaedit.images import MAX_PIXELS, decode_image, decode_mask
from vimaedit.scenes.reading.agreement import MaskAgreement, compare_masks, region_psnr, true_cells
from vimaedit.scenes.reading.judge import judge_edit
from vimaedit.scenes.reading.reader import attributes_of, layout_of, read_scene
from vimaedit.scenes.render import render_scene
from vimaedit.scenes.scenes import scene_from_json
from vimaedit.types import Status, UInt8Array

TASK_ROWS = 8  # scored by one task
NO_MASK = MaskAgreement(iou=0.0, precision=0.0, recall=0.0)
RESULT_COLUMNS = ("input_row", "edited_image", "edit_mask", "status", "error_message", "grounded", "seconds")

Record = Mapping[str, Any]  # a row of the benchmark
Result = Mapping[str, Any]  # the output row of its edit


@dataclass(frozen=True, kw_only=True)
class AttributeReading:
    """One attribute of a scene by its name, as it should be and as it was read; None where it could not be."""

    name: str
    wanted: str
    read: str | None


@dataclass(frozen=True, kw_only=True)
class SceneScore:
    """One edit against its exact answer. A row that is not `ok` has no picture: no success, an empty mask, no distances.

    PSNR in dB: `background_psnr` against the source outside the true mask, `target_psnr` against the exact target where the
    captions settle it, `source_psnr` likewise of the source picture, had it been returned unedited; `_inside`: within the true
    mask only. Mask values are None unless a single object is edited (`local`). `clip`: 100 times the cosine between picture and
    target prompt, None without a scoring CLIP.
    """

    id: str
    category: str
    status: str
    error_message: str | None
    local: bool
    determined: bool
    grounded: bool | None = None
    edited_right: bool = False
    others_unchanged: bool = False
    success: bool = False
    mask_iou: float | None = None
    mask_precision: float | None = None
    mask_recall: float | None = None
    background_psnr: float | None = None
    target_psnr: float | None = None
    target_psnr_inside: float | None = None
    source_psnr: float | None = None
    source_psnr_inside: float | None = None
    clip: float | None = None
    seconds: float | None = None
    attributes: list[AttributeReading] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RoundTripScore:
    """A source picture that went through the autoencoder and back: PSNR in dB, whole and outside the edit's true mask.

    `rendered`, `returned`: the reader's errors on the picture as drawn and as it came back, and what it read right.
    """

    id: str
    psnr: float
    background_psnr: float | None
    rendered: list[AttributeReading]
    returned: list[AttributeReading]


READINGS = pa.list_(pa.struct([(name, pa.string()) for name in ("name", "wanted", "read")]))
KINDS = {"str": pa.string(), "bool": pa.bool_(), "float": pa.float64(), "list[AttributeReading]": READINGS}


def schema_of(score_type: type) -> pa.Schema:
    """Return the Arrow schema of a score."""
    return pa.schema([(each.name, KINDS[str(each.type).removesuffix(" | None")]) for each in dataclasses.fields(score_type)])


def write_scores(place: Location, score_type: type, scores: Sequence[Any]) -> None:
    """Write scores as one Parquet file."""
    table = pa.Table.from_pylist([dataclasses.asdict(score) for score in scores], schema=schema_of(score_type))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    put_atomic(place, buffer.getvalue())


def read_results(run: Location) -> list[Result]:
    """Read what scoring needs of a finished run's rows, in the order of the records."""
    rows: list[Result] = []
    for name, _ in list_files(run / "data", ".parquet"):
        place = run / "data" / name

        def read(place: Location = place) -> list[Result]:
            with open_reader(place) as stream:
                result: list[Result] = pq.read_table(stream, columns=list(RESULT_COLUMNS)).to_pylist()
                return result

        rows += retry_remote(place, read)
    return sorted(rows, key=lambda row: row["input_row"])


def score_results(
    records: Sequence[Record], results: Sequence[Result], clip: Sequence[float | None], cell: int
) -> list[SceneScore]:
    """Score the results of all records, several tasks side by side. `cell`: side of a latent in px.

    Raises: RuntimeError unless every record has its one result.
    """
    rows = [result["input_row"] for result in results]
    if rows != list(range(len(records))):
        raise RuntimeError(f"got results of {len(rows)} rows; expected one of each of the {len(records)} records")
    tasks = [
        ray.remote(_score_rows).remote(records[start:stop], results[start:stop], clip[start:stop], cell)
        for start, stop in _chunks(len(records))
    ]
    return [score for scores in get(tasks) for score in scores]


def score_round_trips(records: Sequence[Record], pictures: Sequence[UInt8Array]) -> list[RoundTripScore]:
    """Score the round trips of all records' source pictures, several tasks side by side."""
    tasks = [
        ray.remote(_score_trips).remote(records[start:stop], pictures[start:stop]) for start, stop in _chunks(len(records))
    ]
    return [score for scores in get(tasks) for score in scores]


def score_row(record: Record, result: Result, clip: float | None, cell: int) -> SceneScore:
    """Score one result."""
    edited_object = record["edited_object"]
    local = edited_object["source"] is not None or edited_object["target"] is not None
    mask = decode_mask(record["reference_mask"]["bytes"])
    source, target = decode_picture(record["image"]), decode_picture(record["reference_image"])
    score = SceneScore(
        id=record["id"],
        category=record["category"],
        status=result["status"],
        error_message=result["error_message"],
        local=local,
        determined=record["target_determined"],
        grounded=result["grounded"],
        clip=clip,
    )
    if score.determined:
        whole, inside = (region_psnr(source, target, region) for region in (None, mask))
        score = dataclasses.replace(score, source_psnr=whole, source_psnr_inside=inside)
    if local:
        found = NO_MASK
        if result["edit_mask"] is not None:
            # The editor's mask is constant on every latent's pixels.
            cells = decode_mask(result["edit_mask"]["bytes"])[::cell, ::cell]
            found = compare_masks(cells, true_cells(mask, cell))
        score = dataclasses.replace(score, mask_iou=found.iou, mask_precision=found.precision, mask_recall=found.recall)
    if result["status"] != Status.OK:
        return score
    edited = decode_picture(result["edited_image"])
    if score.determined:
        whole, inside = (region_psnr(edited, target, region) for region in (None, mask))
        score = dataclasses.replace(score, target_psnr=whole, target_psnr_inside=inside)
    verdict = judge_edit(
        edited,
        scene_from_json(record["source_scene"]),
        scene_from_json(record["target_scene"]),
        edited_object["source"],
        edited_object["target"],
    )
    return dataclasses.replace(
        score,
        edited_right=verdict.edited_right,
        others_unchanged=verdict.others_unchanged,
        success=verdict.success,
        background_psnr=region_psnr(edited, source, ~mask),
        seconds=result["seconds"],
        attributes=[
            AttributeReading(name=name, wanted=wanted, read=verdict.read.get(name)) for name, wanted in verdict.wanted.items()
        ],
    )


def decode_picture(struct: Mapping[str, Any]) -> UInt8Array:
    """Decode a picture of a record or result."""
    return decode_image(struct["bytes"], min_side_px=1, max_pixels=MAX_PIXELS)


def _score_rows(
    records: Sequence[Record], results: Sequence[Result], clip: Sequence[float | None], cell: int
) -> list[SceneScore]:
    return [score_row(*each, cell) for each in zip(records, results, clip, strict=True)]


def _score_trips(records: Sequence[Record], pictures: Sequence[UInt8Array]) -> list[RoundTripScore]:
    scores = []
    for record, picture in zip(records, pictures, strict=True):
        scene = scene_from_json(record["source_scene"])
        source = render_scene(scene, len(picture))
        whole, background = (region_psnr(picture, source, region) for region in (None, ~decode_mask(_mask_bytes(record))))
        assert whole is not None
        wanted = attributes_of(scene)
        readings = []
        for image in (source, picture):
            read = attributes_of(read_scene(image, layout_of(scene)))
            readings.append([AttributeReading(name=name, wanted=wanted[name], read=read[name]) for name in wanted])
        scores.append(
            RoundTripScore(id=record["id"], psnr=whole, background_psnr=background, rendered=readings[0], returned=readings[1])
        )
    return scores


def _mask_bytes(record: Record) -> bytes:
    data: bytes = record["reference_mask"]["bytes"]
    return data


def _chunks(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + TASK_ROWS, count)) for start in range(0, count, TASK_ROWS)]
