"""What may be gone on with, what is refused with which words, and what is left to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.output.config import EditJobConfig
from pipelines.output.context import RunContext
from pipelines.output.digest import config_digest
from pipelines.output.parts import Part
from pipelines.output.plan import Plan, StoredPlan, Unit, make_plan
from pipelines.output.resume import (
    check_inputs,
    check_mode,
    check_options,
    check_weights,
    find_work,
    plan_options,
    raise_generation,
    settle,
)
from pipelines.records.scan import READING, InputSet, scan_inputs
from pipelines.records.schema import output_schema
from pipelines.store.location import locate
from tests.contexts import make_context
from vimaedit.config import Thresholds
from vimaedit.errors import ConfigError
from vimaedit.models.files import ModelFacts

FACTS = ModelFacts(name="tiny", family="sd1", canvas_size=16, granularity=8, clip_side=7, warning=None)


def write_input(folder: Path, name: str, count: int, **others: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"image": [b"x"] * count, "source_prompt": ["a"] * count, "target_prompt": ["b"] * count}
    pq.write_table(pa.table({**columns, **{key: [value] * count for key, value in others.items()}}), folder / name)


def context_of(inputs: InputSet, **options: Any) -> RunContext:
    job = EditJobConfig(**{"input": inputs.inputs, "output": "out", "device": "cpu", "dtype": "float32", **options})
    return make_context(
        job,
        FACTS,
        columns=inputs.columns,
        schema=output_schema(inputs.schema, inputs.columns),
        config_digest=config_digest(job),
    )


def store(inputs: InputSet, context: RunContext) -> StoredPlan:
    settled = {"config_digest": context.config_digest, "model_digest": context.model_digest, "threads": 3}
    settled |= {"device": context.job.device, "dtype": context.job.dtype, "requests_per_unit": 4}
    settled |= {"compile": False, "reading": READING}
    options = plan_options(context.job)
    plan = make_plan(inputs, batch_size=2, requests_per_unit=4, settled=settled, options=options)
    return StoredPlan(plan=plan, files=inputs.files, schema=context.schema)


@pytest.fixture
def inputs(tmp_path: Path) -> InputSet:
    write_input(tmp_path / "in", "a.parquet", 11, score=1)
    write_input(tmp_path / "in", "b.parquet", 3, score=2)
    return scan_inputs(str(tmp_path / "in"), {})


def test_modes_ask_for_an_empty_output_or_for_one_with_a_plan(tmp_path: Path, inputs: InputSet) -> None:
    output = locate(str(tmp_path / "out"))
    stored = store(inputs, context_of(inputs))
    for resume in ("if-possible", "never"):
        check_mode(output, resume, None)
    for resume in ("if-possible", "always", "retry-failed", "extend"):
        check_mode(output, resume, stored)
    for resume in ("always", "retry-failed", "extend"):
        with pytest.raises(
            ConfigError, match=f"^resume: got {resume}, but .*/out holds no run to go on with; allowed: if-possible, ne"
        ):
            check_mode(output, resume, None)
    with pytest.raises(
        ConfigError, match="^resume: got never, but .*/out holds a run's plan; allowed: if-possible, which goes on, or a"
    ):
        check_mode(output, "never", stored)
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "part-0.parquet").write_bytes(b"x")
    with pytest.raises(
        ConfigError, match="^output: got .*/out, which holds data but no plan of a run; allowed: a new or empty folder$"
    ):
        check_mode(output, "if-possible", None)


def test_what_the_plan_has_settled_stands(inputs: InputSet) -> None:
    plan = store(inputs, context_of(inputs)).plan
    job, warnings = settle(EditJobConfig(input="in", output="out"), plan)
    assert (job.batch_size, job.threads, job.device, job.dtype, warnings) == (2, 3, "cpu", "float32", [])
    same = EditJobConfig(input="in", output="out", batch_size=2, threads=3)
    assert settle(same, plan)[1] == []
    compiled = dataclasses.replace(plan, settled={**plan.settled, "compile": True})
    job, warnings = settle(EditJobConfig(input="in", output="out", device="cuda"), compiled)
    assert job.compile and warnings == []
    job, warnings = settle(EditJobConfig(input="in", output="out", device="cuda", compile=True), plan)
    assert not job.compile and warnings == ["compile: got true, but the plan in the output has false, which stands"]
    job, warnings = settle(
        EditJobConfig(input="in", output="out", batch_size=7, threads=1, device="cuda", dtype="float16"), plan
    )
    assert (job.batch_size, job.threads, job.device, job.dtype) == (2, 3, "cuda", "float16")  # what is said is not settled
    assert warnings == [
        "batch_size: got 7, but the plan in the output has 2, which stands",
        "threads: got 1, but the plan in the output has 3, which stands",
    ]


def test_another_input_is_refused_with_its_differences(tmp_path: Path, inputs: InputSet) -> None:
    stored = store(inputs, context_of(inputs))
    check_inputs(stored, scan_inputs(str(tmp_path / "in"), {}), extend=False)
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    check_inputs(stored, scan_inputs(str(tmp_path / "elsewhere"), {}), extend=False)  # paths are relative to the root
    (tmp_path / "elsewhere").rename(tmp_path / "in")
    for number in range(7):
        write_input(tmp_path / "in", f"c{number}.parquet", 1)
    more = scan_inputs(str(tmp_path / "in"), {})
    check_inputs(stored, more, extend=True)
    with pytest.raises(ConfigError) as refused:
        check_inputs(stored, more, extend=False)
    assert str(refused.value) == (
        f"input: got '{tmp_path / 'in'}', which is not what the plan in the output was made of: new c0.parquet, new c1.parquet, "
        "new c2.parquet, new c3.parquet, new c4.parquet and 2 more; allowed: the planned files; resume=extend for new ones beside "
        "them; or another output"
    )
    size = (tmp_path / "in" / "b.parquet").stat().st_size
    write_input(tmp_path / "in", "b.parquet", 3, score=3)
    assert (tmp_path / "in" / "b.parquet").stat().st_size == size
    (tmp_path / "in" / "a.parquet").unlink()
    with pytest.raises(
        ConfigError, match=r"changed b.parquet \(another footer\), missing a.parquet; allowed: the planned files; or another"
    ):
        check_inputs(stored, scan_inputs(str(tmp_path / "in"), {}), extend=True)


def test_other_settings_weights_and_columns_are_refused_by_name(
    tmp_path: Path, inputs: InputSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(inputs, model="s3://ann:hush@bucket/model")
    stored = store(inputs, context)

    def check(other: RunContext) -> None:
        check_options(stored, other.job, other.schema)
        check_weights(stored, other)

    check(context)
    check(dataclasses.replace(context, batch_size=5, plan_digest="q", generation=7))
    other = context_of(inputs, model=context.job.model, steps=7, thresholds=Thresholds(edit=0.25), http_hosts=["a"])
    with pytest.raises(ConfigError) as refused:
        check(other)
    assert str(refused.value) == (
        'output: got out, which holds a run of other settings: http_hosts=["a"], was [], steps=7, was 50, '
        f"thresholds.edit=0.25, was {context.job.thresholds.edit}; allowed: those it was begun with, or another output (nothing is "
        "deleted)"
    )
    with monkeypatch.context() as patch:
        for module in ("digest", "resume"):
            patch.setattr(f"pipelines.output.{module}.RESULTS_VERSION", 99)
        with pytest.raises(
            ConfigError, match=r"results_version=99, was \d+ \(this version makes other pictures of some records"
        ):
            check(context)
    with pytest.raises(ConfigError, match="settings: options in what is not shown: credentials in URLs; allowed") as refused:
        check(context_of(inputs, model="s3://ann:hiss@bucket/model"))
    with pytest.raises(ConfigError) as refused:
        check(dataclasses.replace(context, model_digest="n"))
    assert "settings: model_digest n, was m: model=s3://***@bucket/model has other weights; allowed: " in str(refused.value)
    assert "hush" not in str(refused.value)
    write_input(tmp_path / "in", "c.parquet", 2, score=3, label="x")
    wider = scan_inputs(str(tmp_path / "in"), {})
    with pytest.raises(ConfigError, match="settings: column label string, was missing; allowed"):
        check(context_of(wider, model=context.job.model))


def parts_of(plan: Plan, *entries: tuple[int, int, dict[str, int]]) -> dict[str, Part]:
    """Make parts: of which unit, generation, counts."""
    made = [
        Part(unit=plan.units[number].id, generation=generation, rows=sum(counts.values()), counts=counts)
        for number, generation, counts in entries
    ]
    return {part.unit: part for part in made}


def cut(units: tuple[Unit, ...]) -> list[tuple[str, int]]:
    return [(unit.id, unit.take) for unit in units]


def test_a_part_counts_with_its_rows_and_its_generation(inputs: InputSet) -> None:
    plan = store(inputs, context_of(inputs)).plan  # units of 4, 4, 3 and 3
    ids = [unit.id for unit in plan.units]
    parts = parts_of(plan, (0, 1, {"ok": 4}), (1, 1, {"ok": 1, "failed": 1}), (3, 1, {"ok": 3}))
    work = find_work(plan, parts, None)
    assert cut(work.units) == [(ids[0], 4), (ids[1], 4), (ids[2], 3), (ids[3], 3)] and work.num_rows == 14
    assert cut(work.todo) == [(ids[1], 4), (ids[2], 3)]
    assert [part.unit for part in work.done_parts()] == [ids[0], ids[3]]
    assert work.rows_to_do(plan) == {ids[1]: 4, ids[2]: 3}
    # A limit that cuts where a part was cut before, or earlier, takes nothing away.
    for limit in (6, 5, 1):
        limited = find_work(plan, parts, limit)
        assert cut(limited.units) == [(ids[0], 4), (ids[1], 2), (ids[3], 3)] and limited.todo == ()
    assert cut(find_work(plan, parts, 7).todo) == [(ids[1], 3)]
    assert cut(find_work(plan, {}, 5).todo) == [(ids[0], 4), (ids[1], 1)]
    too_many = parts_of(plan, (0, 1, {"ok": 5}))
    assert cut(find_work(plan, too_many, 4).todo) == [(ids[0], 4)]


def test_a_generation_is_raised_where_there_are_such_rows(inputs: InputSet) -> None:
    plan = store(inputs, context_of(inputs)).plan
    ids = [unit.id for unit in plan.units]
    parts = parts_of(
        plan, (0, 1, {"ok": 4}), (1, 1, {"ok": 1, "failed": 1, "quarantined": 2}), (3, 1, {"ok": 1, "rejected": 2})
    )
    work = find_work(plan, parts, None)
    assert raise_generation(plan, find_work(plan, parts_of(plan, (0, 1, {"ok": 4})), None), ["failed"]) is plan
    raised = raise_generation(plan, work, ["failed", "quarantined"])
    assert [unit.generation for unit in raised.units] == [1, 2, 1, 1] and raised.generation == 2
    after = find_work(raised, parts, None)
    assert cut(after.todo) == [(ids[1], 4), (ids[2], 3)] and after.rows_to_do(raised) == {ids[1]: 3, ids[2]: 3}

    # Interrupted, the same command goes on; asked for more, it does that too and forgets nothing.
    assert raise_generation(raised, after, ["failed"]) is raised
    both = raise_generation(raised, after, ["rejected"])
    assert [unit.generation for unit in both.units] == [1, 2, 1, 3]
    assert both.retry_statuses == ("failed", "quarantined", "rejected")
    # Finished, it is another round.
    done = {**parts, **parts_of(plan, (1, 2, {"ok": 3, "failed": 1}), (2, 2, {"ok": 3}))}
    third = raise_generation(raised, find_work(raised, done, None), ["failed"])
    assert [unit.generation for unit in third.units] == [1, 3, 1, 1] and third.retry_statuses == ("failed",)
