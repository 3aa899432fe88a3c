"""One finished request -> one output row: what cannot be coded is that row's error, and texts stay readable."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.edit.write import encode_row
from pipelines.output.config import EditJobConfig
from pipelines.output.context import RunContext
from pipelines.output.digest import config_digest, digested_options
from pipelines.output.finish import write_run
from pipelines.output.parts import part_bytes
from pipelines.records.row import Row
from pipelines.records.schema import IMAGE_COLUMNS, REQUIRED_COLUMNS, map_columns, output_schema
from pipelines.records.types import IMAGE
from pipelines.store.location import locate
from pipelines.store.masking import cut, cut_quotes, without_secrets
from tests.contexts import make_context, make_picture, make_row
from vimaedit.errors import ConfigError
from vimaedit.images import CanvasSpec, encode_image, fit_image
from vimaedit.marks import COMPOSITE, read_mark
from vimaedit.methods.options import Segmenter
from vimaedit.models.files import ModelFacts
from vimaedit.types import EditResult, Status

SECRET = "s3://ann:hush@bucket/model"


def context_of(**options: Any) -> RunContext:
    facts = ModelFacts(name="tiny", family="sd1", canvas_size=16, granularity=8, clip_side=7, warning=None)
    return make_context(EditJobConfig(input="in", output="out", **options), facts)


def finished(shape: tuple[int, int] = (7, 5)) -> Row:
    row = make_row(attempts=1, picture=make_picture(shape))
    edited, mask = np.full((*shape, 3), 13, np.uint8), np.ones(shape, bool)
    row.take(EditResult(id="a", status=Status.OK, source=row.picture.image, image=edited, edit_mask=mask))
    return row


def test_a_picture_that_the_format_cannot_hold_is_a_rejected_row() -> None:
    row = encode_row(context_of(image_format="webp"), "u", finished((3, 16411)))
    assert (row["status"], row["error_stage"], row["error_type"]) == ("rejected", "encode", "image_too_wide")
    assert row["error_message"].startswith("record 'a': image_format: got webp for 16411x3 px; allowed: up to ")
    assert all(row[name] is None for name in ("image", "edited_image", "edit_mask", "critical_mask", "metrics"))
    assert row["blend_words_used"] is None and row["grounded"] is None


def test_any_other_error_of_coding_is_a_failed_row() -> None:
    broken = finished()
    broken.result = dataclasses.replace(broken.result, image=np.zeros((3, 3, 3), np.uint8))
    row = encode_row(context_of(), "u", broken)
    assert (row["status"], row["error_stage"], row["error_type"]) == ("failed", "encode", "ValueError")


def test_a_source_without_a_path_is_warned_of() -> None:
    context = context_of(keep_source="path", frame="original")
    row = encode_row(context, "u", finished())
    assert row["image"] is None and row["warnings"] == [
        "source_not_kept: keep_source=path, but the record's picture has no path, so image is null"
    ]
    named = finished()
    named.image_path = "a.png"
    row = encode_row(context, "u", named)
    assert row["image"] == {"bytes": None, "path": "a.png"} and row["warnings"] == []


@pytest.mark.parametrize(("status", "tries"), [(Status.FAILED, 1), (Status.REJECTED, 0)])
def test_a_row_that_failed_before_the_editor_was_tried_once(status: Status, tries: int) -> None:
    row = make_row()
    row.stop(status, "fetch", "kind", "text")
    assert encode_row(context_of(), "u", row)["attempts"] == tries


def test_no_column_shows_credentials() -> None:
    row = finished()
    row.stop(Status.REJECTED, "fetch", "kind", f"image: got 'x'; allowed: a path under {SECRET}")
    values = encode_row(context_of(model=SECRET), "u", row)
    assert values["model"] == "s3://***@bucket/model" and "hush" not in values["error_message"]


def test_the_runs_own_record_shows_no_credentials(tmp_path: Path) -> None:
    context = context_of(model=SECRET, image_root="https://host/a?X-Amz-Signature=hush&x=1")
    write_run(locate(str(tmp_path)), context, {"warnings": [f"{SECRET}: unreadable"]})
    text = (tmp_path / "run.json").read_text()
    assert "hush" not in text
    assert json.loads(text)["config"]["image_root"] == "https://host/a?X-Amz-Signature=***&x=1"


def test_long_values_are_cut_in_error_messages() -> None:
    row = finished()
    row.stop(Status.REJECTED, "edit", "kind", f"record 'a': blend_words: got '{'x' * 5000}'; allowed: \"{'y' * 200}\"")
    message = encode_row(context_of(), "u", row)["error_message"]
    assert message == f"record 'a': blend_words: got '{'x' * 200}...'; allowed: \"{'y' * 200}\""


def test_texts_are_cut_and_masked() -> None:
    assert cut("abcdefg", 7) == "abcdefg" and cut("abcdefgh", 7) == "abcd..."
    assert cut_quotes("it's fine") == "it's fine"
    config = {"model": SECRET, "lora": [{"path": SECRET, "scale": 0.5}], "limit": None}
    masked = "s3://***@bucket/model"
    assert without_secrets(config) == {"model": masked, "lora": [{"path": masked, "scale": 0.5}], "limit": None}


def test_an_edit_is_pasted_back_where_its_mask_is_and_measured_before() -> None:
    original = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    edited, mask = np.full((16, 16, 3), 255, np.uint8), np.zeros((16, 16), bool)
    mask[4:12, 4:12] = True
    rows = {}
    for frame, paste in (("canvas", "mask"), ("original", "mask"), ("original", "frame")):
        row = make_row(attempts=1, picture=fit_image(original, CanvasSpec(fit="crop", size=16, granularity=8)))
        row.coded = encode_image(original, "png") if frame == "original" else None
        row.take(EditResult(id="a", status=Status.OK, source=row.picture.image, image=edited, edit_mask=mask))
        rows[frame, paste] = encode_row(context_of(frame=frame, paste=paste), "u", row)
    marks = [read_mark(row["edited_image"]["bytes"]) for row in rows.values()]
    context = context_of()
    assert [mark["DigitalSourceType"] for mark in marks] == [COMPOSITE] * 3
    assert marks[0]["run"] == context.config_digest and marks[0]["model"] == context.model_digest
    assert marks[0]["row"] == f"{row.input_file}#{row.input_row}/{row.edit_index}"
    by_mask, by_frame = (
        np.asarray(Image.open(io.BytesIO(rows["original", paste]["edited_image"]["bytes"]))) for paste in ("mask", "frame")
    )
    inside = np.asarray(Image.open(io.BytesIO(rows["original", "mask"]["edit_mask"]["bytes"]))) > 0
    assert inside[8:24, 16:32].all() and inside.sum() == 16 * 16
    assert (by_mask[~inside] == original[~inside]).all() and (by_mask[inside] != original[inside]).mean() > 0.8
    assert (by_frame[:, 8:40] == 255).all() and (by_frame[:, :8] == original[:, :8]).all()
    assert rows["canvas", "mask"]["metrics"] == rows["original", "mask"]["metrics"] == rows["original", "frame"]["metrics"]
    assert rows["canvas", "mask"]["metrics"]["background_psnr"] < 99


def test_how_to_paste_is_of_the_digest_where_something_is_pasted() -> None:
    def digest(**options: Any) -> str:
        return config_digest(EditJobConfig(input="in", output="out", **options))

    assert "paste" not in digested_options(EditJobConfig(input="in", output="out"))
    assert digest(frame="original") != digest(frame="original", paste="frame")
    with pytest.raises(ConfigError, match="^paste: got frame with frame=canvas; allowed: mask, or frame=original$"):
        digest(paste="frame")


@pytest.mark.parametrize(
    ("options", "coding"), [({}, "webp"), ({"frame": "original"}, "png"), ({"image_format": "jpeg"}, "jpeg")]
)
def test_pictures_are_written_as_is_best_for_their_frame(options: dict, coding: str) -> None:
    assert EditJobConfig(input="a", output="b", **options).picture_coding == coding


def test_only_pictures_that_were_coded_here_are_left_uncompressed() -> None:
    """Whatever a column of the input says that it holds, it may be the same 20 MB in every row."""
    passed = {"blob": pa.binary(), "reference_image": IMAGE, "text": pa.string()}
    fields = [pa.field(name, pa.string()) for name in REQUIRED_COLUMNS]
    given = pa.schema([*fields, *(pa.field(name, kind) for name, kind in passed.items())])
    context = dataclasses.replace(context_of(), schema=output_schema(given, map_columns(given.names, {})))
    value = bytes(200_000)
    row = {"status": "ok", "blob": value, "reference_image": {"bytes": value, "path": None}, "text": "a"}
    row |= {name: {"bytes": encode_image(np.zeros((8, 8, 3), np.uint8), "png"), "path": None} for name in IMAGE_COLUMNS}
    data = part_bytes(context, "u", pa.Table.from_pylist([row] * 20, context.schema))
    group = pq.read_metadata(io.BytesIO(data)).row_group(0)
    chunks = [group.column(index) for index in range(group.num_columns)]
    left = {chunk.path_in_schema for chunk in chunks if chunk.compression == "UNCOMPRESSED"}
    assert left == {f"{name}.bytes" for name in IMAGE_COLUMNS} and len(data) < 100_000


def test_a_segmenter_counts_in_the_digest_where_it_is_used_and_its_place_never() -> None:
    def digest(grounding: str, **options: Any) -> str:
        return config_digest(EditJobConfig(input="in", output="out", grounding=grounding, segmenter=Segmenter(**options)))

    assert digest("vimaedit") == digest("vimaedit", threshold=0.3, actors=2)
    assert digest("segmenter") == digest("segmenter", actors=2, gpu_share=0.5)
    different = [{"threshold": 0.3}, {"combine": "union"}, {"missing": "reject"}, {"device": "cuda"}, {"model": None}]
    assert len({digest("segmenter"), *(digest("segmenter", **each) for each in different)}) == 1 + len(different)
