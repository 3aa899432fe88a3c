"""Metrics that ride along in an editing run: the values that `jobs.score` has of its output, without Ray."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines.edit.actor import edit_batch
from pipelines.edit.read import read_unit
from pipelines.edit.riding import RidingMetrics
from pipelines.edit.write import encode_unit
from pipelines.output.config import EditJobConfig
from pipelines.output.parts import part_bytes
from pipelines.output.plan import Unit
from pipelines.records.scan import scan_inputs
from pipelines.records.schema import output_schema
from pipelines.score.config import ScoreConfig
from pipelines.score.networks import Measurer, MetricNetworks
from pipelines.score.pairs import find_pairs
from pipelines.score.read import load_pairs
from tests.contexts import make_context
from tests.pipeline.conftest import write_records
from vimaedit.config import ModelConfig
from vimaedit.engine.load import load_editor
from vimaedit.metrics.dino import KeyNetwork
from vimaedit.metrics.lpips import WIDTHS, LpipsNetwork
from vimaedit.metrics.names import RIDING_GROUPS, columns_of
from vimaedit.models.files import model_facts, resolve_model
from vimaedit.types import Editor

COLUMNS = columns_of(RIDING_GROUPS)
MODEL = "random"


@pytest.fixture(scope="module")
def editor() -> Editor:
    job = EditJobConfig(input="in", output="out", model=MODEL, steps=1, device="cpu", dtype="float32")
    return load_editor(job, job)


@pytest.fixture
def networks(tmp_path: Path) -> dict[str, str]:
    """Write small random networks of the metrics' kinds; the CLIP is that of the random model."""
    torch.manual_seed(0)
    torch.save(KeyNetwork(width=24, hidden=17, depth=2, patch=8, num_positions=785).state_dict(), tmp_path / "dino.pth")
    torch.save({f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1) for n, width in enumerate(WIDTHS)}, tmp_path / "heads.pth")
    tensors = {key: value for key, value in LpipsNetwork().state_dict().items() if key.startswith("features.")}
    torch.save(tensors, tmp_path / "squeeze.pth")
    clip = str(resolve_model(ModelConfig(model="random")).clip)
    files = {"dino": "dino.pth", "lpips": "squeeze.pth", "lpips_heads": "heads.pth"}
    return {"scoring_clip": clip, **{name: str(tmp_path / file) for name, file in files.items()}}


def coded(number: int, size: tuple[int, int], mode: str = "RGB") -> bytes:
    """Return smooth blobs as a PNG, the same for the same number."""
    blobs = np.random.default_rng(number).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def records_of() -> list[dict[str, Any]]:
    """Three records that can be scored in all ways, by the prompts alone, and not at all."""
    prompts = {"source_prompt": "a cat on a lawn", "target_prompt": "a dog on a lawn"}
    plain = {"reference_mask": None, "reference_image": None, "target_determined": None}
    picture = coded(1, (151, 131))
    whole = {"reference_mask": coded(3, (59, 51), "1"), "reference_image": coded(2, (151, 131))}
    return [
        {"id": "whole", "image": picture, **prompts, **plain, **whole},
        {"id": "bare", "image": coded(4, (97, 173)), **prompts, **plain},
        {"id": "broken", "image": picture, **prompts, **plain, "reference_mask": b"no picture"},
    ]


def as_floats(values: dict[str, float | None]) -> dict[str, float]:
    """Return scores with null as NaN: both say that there is no number."""
    return {name: math.nan if (value := values[name]) is None else value for name in COLUMNS}


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_what_rides_along_is_what_a_later_scoring_says(
    tmp_path: Path, editor: Editor, networks: dict[str, str], image_format: str
) -> None:
    write_records(tmp_path / "in" / "a.parquet", records_of())
    inputs = scan_inputs(str(tmp_path / "in"), {})
    places = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "model": MODEL}
    options = {"image_format": image_format, "metrics": [*RIDING_GROUPS], "device": "cpu", "dtype": "float32"}
    job = EditJobConfig(**places, **options, **networks)
    facts = model_facts(resolve_model(job, image_guidance=True))
    schema = output_schema(inputs.schema, inputs.columns, job.riding)
    context = make_context(job, facts, columns=inputs.columns, schema=schema, input_root=inputs.root)
    unit = Unit(file=0, start=0, first_row=0, first_edit=0, count=3, take=3)
    unit_rows = read_unit(context, inputs.files[:1], unit)
    for row in unit_rows.rows:
        row.seed = 7
    edit_batch(editor, [*unit_rows.rows])
    RidingMetrics(context)(unit_rows.rows)
    table = encode_unit(context, unit_rows)
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "part-0.parquet").write_bytes(part_bytes(context, unit.id, table))

    config = ScoreConfig(
        benchmark=job.input, edited=job.output, output=str(tmp_path / "scores"), metrics=[*RIDING_GROUPS], **networks
    )
    pairs = find_pairs(config)
    later = load_pairs(config, pairs.places, list(enumerate(pairs.pairs)))
    measure = Measurer(MetricNetworks.of(config, config.groups), batch_size=8, threads=1, use_gpu=False, absent=())
    scores = measure([item.sample for item in later if item.sample is not None])
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 3 and len(scores) == 2
    for row, scored in zip(rows[:2], scores, strict=True):
        own = as_floats(row["metrics"])
        assert own == pytest.approx(as_floats(scored), rel=1e-4, abs=1e-5, nan_ok=True) and own["lpips_whole"] > 0
    assert all(rows[0]["metrics"][name] is not None for name in COLUMNS)
    assert [name for name in COLUMNS if rows[1]["metrics"][name] is None] == ["background_lpips", "clip_edited", "target_lpips"]
    assert all(rows[2]["metrics"][name] is None for name in COLUMNS) and rows[2]["metrics"]["changed_fraction"] > 0
    (said,) = [text for text in rows[2]["warnings"] if text.startswith("unmeasured")]
    assert said.startswith("unmeasured: reference_mask: got 10 bytes: no picture format known")
    assert later[2].problem is not None and said.removeprefix("unmeasured: ") in later[2].problem


def test_a_measurement_that_fails_costs_no_other(
    tmp_path: Path, editor: Editor, networks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / "in" / "a.parquet", records_of()[:2])
    inputs = scan_inputs(str(tmp_path / "in"), {})
    job = EditJobConfig(
        input=inputs.inputs, output="out", model=MODEL, metrics=["clip"], device="cpu", dtype="float32", **networks
    )
    context = make_context(
        job,
        model_facts(resolve_model(job, image_guidance=True)),
        columns=inputs.columns,
        schema=output_schema(inputs.schema, inputs.columns, job.riding),
        input_root=inputs.root,
    )
    unit = Unit(file=0, start=0, first_row=0, first_edit=0, count=2, take=2)
    rows = read_unit(context, inputs.files[:1], unit).rows
    for row in rows:
        row.seed = 7
    edit_batch(editor, [*rows])
    riding = RidingMetrics(context)
    suite = riding.measurer.suite

    def measure(samples: list[Any]) -> Any:
        if any(sample.reference_mask is None for sample in samples):
            raise RuntimeError("out of room")
        return suite(samples)

    monkeypatch.setattr(riding.measurer, "suite", measure)
    riding(rows)
    assert rows[0].measured["clip_whole"] is not None and rows[1].measured == {}
    assert rows[1].warnings[-1] == "unmeasured: out of room" and rows[0].references is None
