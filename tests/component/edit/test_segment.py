"""The stage that gives requests their masks, as an actor runs it: a unit's rows in place, each on its own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipelines.edit.blocks import UnitRows, from_block, to_block
from pipelines.edit.segment import SegmentActor
from pipelines.output.config import EditJobConfig
from pipelines.output.plan import Unit
from pipelines.records.row import Row
from pipelines.records.scan import InputFile
from tests.contexts import make_context, make_row
from tests.segmenters import red_and_blue, write_owlvit
from vimaedit.methods.options import Segmenter
from vimaedit.models.files import ModelFacts
from vimaedit.scenes.render import render_scene
from vimaedit.types import EditRequest, Status, UInt8Array

PICTURE = render_scene(red_and_blue(), 96)


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory, facts: ModelFacts) -> SegmentActor:
    folder = write_owlvit(tmp_path_factory.mktemp("segmenter") / "colours", sees_colours=True)
    options = Segmenter(detector=str(folder), model=None, threshold=0.5)
    job = EditJobConfig(input="in", output="out", grounding="segmenter", segmenter=options)
    return SegmentActor(make_context(job, facts))


@pytest.fixture(scope="module")
def facts() -> ModelFacts:
    return ModelFacts(name="m", family="f", canvas_size=96, granularity=8, clip_side=8, warning=None)


def row(number: int, source: str, image: UInt8Array = PICTURE) -> Row:
    request = EditRequest(id=f"r{number}", image=image, source_prompt=source, target_prompt="a")
    return make_row(f"r{number}", input_row=number, request=request)


def unit(count: int) -> Unit:
    return Unit(file=0, start=0, first_row=0, first_edit=0, take=count, count=count)


def test_each_row_is_looked_at_on_its_own(actor: SegmentActor) -> None:
    broken = np.zeros((9, 9, 5), dtype=np.uint8)  # no picture has five channels
    rows = [row(0, "a red square"), row(1, "a red square", broken), row(2, "a green star"), row(3, "a blue circle")]
    rejected = row(4, "a red square")
    rejected.stop(Status.REJECTED, "read", "x", "bad")
    rows.append(rejected)
    actor.fill(unit(5), rows)
    found, failed, missed, other, kept = rows
    assert found.status is None and found.request is not None and found.request.given_mask is not None
    assert other.request is not None and other.request.given_mask is not None
    assert not (found.request.given_mask & other.request.given_mask).any() and found.warnings == other.warnings == []
    assert failed.status is Status.FAILED and failed.result is not None and failed.result.error_stage == "segment"
    assert failed.result.message is not None and failed.result.message.startswith("record 'r1': ")
    assert (
        missed.request is not None and missed.request.given_mask is None and missed.warnings[0].startswith("segmenter_missed: ")
    )
    assert (
        kept.result is not None
        and kept.result.message == "bad"
        and kept.request is not None
        and kept.request.given_mask is None
    )


def test_a_block_goes_on_with_its_masks(actor: SegmentActor) -> None:
    import pyarrow as pa

    file = InputFile(path="a.parquet", rows=2, size=1)
    rows = [row(0, "a red square"), row(1, "a blue circle")]
    given = UnitRows(unit=unit(2), file=file, rows=rows, passed=pa.table({"x": [1, 2]}))
    (read,) = from_block(actor(to_block(given)))
    masks = [each.request.given_mask for each in read.rows if each.request is not None]
    actor.fill(unit(2), rows)
    again = [each.request.given_mask for each in rows if each.request is not None]
    assert len(masks) == 2 and all(one is not None and (one == two).all() for one, two in zip(masks, again, strict=True))
    assert read.passed.equals(given.passed) and dataclasses.asdict(read.unit) == dataclasses.asdict(given.unit)
