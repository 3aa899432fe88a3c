from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.output.plan import (
    UNIT_BYTES,
    Plan,
    StoredPlan,
    Unit,
    batches,
    count_requests,
    extend_plan,
    limit_units,
    load_plan,
    make_plan,
    retry_plan,
    store_plan,
    unit_size,
)
from pipelines.records.scan import InputSet, request_counts, scan_inputs
from pipelines.records.schema import output_schema
from pipelines.store.decoded import HELD_BYTES
from pipelines.store.location import locate
from vimaedit.errors import ConfigError


def write_input(folder: Path, name: str, targets: list[object], kind: pa.DataType | None = None) -> None:
    count = len(targets)
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"image": [b"x"] * count, "source_prompt": ["a"] * count, "target_prompt": pa.array(targets, kind)}
    pq.write_table(pa.table(columns), folder / name, row_group_size=5)


def plan_of(inputs: InputSet, batch_size: int, requests_per_unit: int) -> Plan:
    return make_plan(inputs, batch_size=batch_size, requests_per_unit=requests_per_unit, settled={"model_digest": "m"})


def test_scalar_targets_are_cut_at_fixed_offsets_of_each_file(tmp_path: Path) -> None:
    write_input(tmp_path, "a.parquet", ["t"] * 17)
    write_input(tmp_path, "b.parquet", ["t"] * 3)
    plan = plan_of(scan_inputs(str(tmp_path), {}), 3, 6)
    cut = [(unit.id, unit.first_row, unit.first_edit, unit.count) for unit in plan.units]
    assert cut == [
        ("00000-000000000", 0, 0, 6),
        ("00000-000000006", 6, 0, 6),
        ("00000-000000012", 12, 0, 5),
        ("00001-000000000", 0, 0, 3),
    ]
    assert plan.num_requests == 20


def test_small_files_in_a_row_share_units(tmp_path: Path) -> None:
    for name, count in zip("abcdefghij", (2, 1, 0, 3, 1, 8, 2, 6, 0, 5), strict=True):
        write_input(tmp_path, f"{name}.parquet", ["t"] * count)
    (tmp_path / "ib.parquet").write_bytes(b"no Parquet")
    inputs = scan_inputs(str(tmp_path), {})
    plan = plan_of(inputs, 2, 6)
    assert [(unit.id, unit.files, unit.count, unit.take) for unit in plan.units] == [
        ("00000-000000000", 4, 6, 6),  # the empty third file lies among them
        ("00004-000000000", 1, 1, 1),
        ("00005-000000000", 1, 6, 6),
        ("00005-000000006", 1, 2, 2),
        ("00006-000000000", 1, 2, 2),
        ("00007-000000000", 1, 6, 6),
        ("00009-000000000", 1, 1, 1),  # an unreadable one
        ("00010-000000000", 1, 5, 5),
    ]
    assert [file.path for file in plan.units[0].files_of(inputs.files)] == [f"{name}.parquet" for name in "abcd"]
    assert [unit.take for unit in limit_units(plan.units, 5)] == [5]


def test_a_plan_of_an_earlier_version_keeps_its_units(tmp_path: Path) -> None:
    """It had none of several files, and no column for how many they are."""
    for name in "ab":
        write_input(tmp_path / "in", f"{name}.parquet", ["t"] * 2)
    inputs, output = scan_inputs(str(tmp_path / "in"), {}), locate(str(tmp_path / "out"))
    stored = stored_plan(inputs, 2, 4)
    units = tuple(Unit(file=file, start=0, first_row=0, first_edit=0, count=2, take=2) for file in range(2))
    before = dataclasses.replace(stored, plan=dataclasses.replace(stored.plan, units=units))
    store_plan(output, before, inputs)
    place = tmp_path / "out" / "plan" / "units.parquet"
    pq.write_table(pq.read_table(place).drop_columns(["files"]), place)
    loaded = load_plan(output)
    assert loaded is not None and loaded.plan == before.plan


def test_lists_of_targets_count_as_many_requests_and_may_be_split(tmp_path: Path) -> None:
    targets: list[object] = [["p"], ["q"] * 5, [], None, ["r", "s"], ["t"] * 7]
    write_input(tmp_path, "a.parquet", targets, pa.list_(pa.string()))
    inputs = scan_inputs(str(tmp_path / "a.parquet"), {})
    assert request_counts(locate(str(tmp_path / "a.parquet")), "target_prompt").tolist() == [1, 5, 1, 1, 2, 7]
    assert count_requests(inputs) == 17
    cut = [(unit.first_row, unit.first_edit, unit.count) for unit in plan_of(inputs, 2, 4).units]
    assert cut == [(0, 0, 4), (1, 3, 4), (4, 0, 4), (5, 2, 4), (5, 6, 1)]


def test_an_unreadable_file_is_one_request_and_moves_no_other(tmp_path: Path) -> None:
    write_input(tmp_path, "b.parquet", ["t"] * 5)
    before = plan_of(scan_inputs(str(tmp_path), {}), 2, 4)
    (tmp_path / "c.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-13])
    inputs = scan_inputs(str(tmp_path), {})
    after = plan_of(inputs, 2, 4)
    assert after.units[: len(before.units)] == before.units
    assert (after.units[-1].first_row, after.units[-1].count) == (-1, 1)
    assert inputs.files[1].error is not None and "does not end as a Parquet file does" in inputs.files[1].error
    assert after.digest != before.digest


@pytest.mark.parametrize(
    ("row_bytes", "row_seconds", "actors", "requests"),
    [
        (1.0, None, 2, 12_496),  # a quarter of an actor's share of 100003, in whole batches of 16
        (UNIT_BYTES / 100, None, 2, 96),  # 128 MB
        (1.0, 6.0, 2, 96),  # ten minutes: 100 requests
        (1e12, 1e6, 2, 16),  # one batch at least
    ],
)
def test_unit_size_is_the_smallest_of_three_rules(
    row_bytes: float, row_seconds: float | None, actors: int, requests: int
) -> None:
    got = unit_size(num_requests=100_003, batch_size=16, actors=actors, row_bytes=row_bytes, row_seconds=row_seconds)
    assert got == requests


def test_a_unit_holds_so_much_input_at_most() -> None:
    got = unit_size(
        num_requests=10**6, batch_size=8, actors=1, row_bytes=1.0, row_seconds=None, input_row_bytes=HELD_BYTES / 50
    )
    assert got == 48


def test_the_last_batch_is_padded_to_a_power_of_two_up_to_the_batch_size() -> None:
    assert list(batches(13, 8)) == [(range(0, 8), 8), (range(8, 13), 8)]
    assert list(batches(11, 8)) == [(range(0, 8), 8), (range(8, 11), 4)]
    assert list(batches(6, 5)) == [(range(0, 5), 5), (range(5, 6), 1)]
    assert list(batches(3, 3)) == [(range(0, 3), 3)]


def test_a_limit_cuts_the_last_unit_and_keeps_its_planned_size(tmp_path: Path) -> None:
    write_input(tmp_path, "a.parquet", ["t"] * 17)
    plan = plan_of(scan_inputs(str(tmp_path), {}), 3, 6)
    limited = limit_units(plan.units, 7)
    assert [(unit.take, unit.count) for unit in limited] == [(6, 6), (1, 6)]
    assert limit_units(plan.units, None) == plan.units
    assert sum(unit.take for unit in limit_units(plan.units, 1000)) == 17


def stored_plan(inputs: InputSet, batch_size: int, requests_per_unit: int) -> StoredPlan:
    settled = {"model_digest": "m", "requests_per_unit": requests_per_unit}
    others = {"options": {"steps": 7}, "row_seconds": 0.25}
    plan = make_plan(inputs, batch_size=batch_size, requests_per_unit=requests_per_unit, settled=settled, **others)
    return StoredPlan(plan=plan, files=inputs.files, schema=output_schema(inputs.schema, inputs.columns))


def test_the_plan_is_stored_compactly_commits_with_its_last_object_and_comes_back(tmp_path: Path) -> None:
    write_input(tmp_path / "in", "a.parquet", ["t"] * 17)
    write_input(tmp_path / "in", "b.parquet", [["p"] * 2, ["q"]], pa.list_(pa.string()))
    (tmp_path / "in" / "c.parquet").write_bytes(b"no Parquet")
    inputs = scan_inputs(str(tmp_path / "in"), {})
    stored = stored_plan(inputs, 3, 6)
    output = locate(str(tmp_path / "out"))
    assert load_plan(output) is None
    store_plan(output, stored, inputs)
    summary = json.loads((tmp_path / "out/plan/plan.json").read_text())
    assert (summary["digest"], summary["requests"], summary["batch_size"]) == (stored.plan.digest, 21, 3)
    units = pq.read_table(tmp_path / "out/plan/units.parquet")
    assert units.column_names == ["unit", "file", "files", "start", "first_row", "first_edit", "count", "generation"]
    assert units.column("count").to_pylist() == [6, 6, 5, 3, 1]
    loaded = load_plan(output)
    assert loaded is not None and loaded.plan == stored.plan and loaded.files == stored.files
    assert loaded.schema.equals(stored.schema, check_metadata=True)
    (tmp_path / "out/plan/plan.json").unlink()
    assert load_plan(output) is None


def test_files_are_appended_behind_those_that_are_planned(tmp_path: Path) -> None:
    write_input(tmp_path / "in", "m.parquet", ["t"] * 5)
    stored = stored_plan(scan_inputs(str(tmp_path / "in"), {}), 2, 4)
    write_input(tmp_path / "in", "a.parquet", ["t"] * 7)
    inputs = scan_inputs(str(tmp_path / "in"), {})
    extended = extend_plan(stored, inputs)
    assert [file.path for file in extended.files] == ["m.parquet", "a.parquet"]
    assert extended.plan.units[:2] == stored.plan.units
    assert [(unit.id, unit.count) for unit in extended.plan.units[2:]] == [("00001-000000000", 4), ("00001-000000004", 3)]
    assert (extended.plan.digest, extended.plan.revision) == (stored.plan.digest, 2)
    output = locate(str(tmp_path / "out"))
    store_plan(output, stored, inputs)
    committed = (tmp_path / "out/plan/plan.json").read_bytes()
    store_plan(output, extended, inputs)
    assert load_plan(output).plan == extended.plan  # type: ignore[union-attr]
    (tmp_path / "out/plan/plan.json").write_bytes(committed)  # as if it had not come to the last object
    assert load_plan(output).plan == stored.plan  # type: ignore[union-attr]


def test_a_raised_generation_is_that_of_some_units_and_of_what_is_written_from_now_on(tmp_path: Path) -> None:
    write_input(tmp_path / "in", "a.parquet", ["t"] * 5)
    plan = stored_plan(scan_inputs(str(tmp_path / "in"), {}), 2, 2).plan
    raised = retry_plan(plan, {"00000-000000002"}, ["quarantined", "failed", "failed"])
    assert [unit.generation for unit in raised.units] == [1, 2, 1]
    assert (raised.generation, raised.revision, raised.retry_statuses) == (2, 2, ("failed", "quarantined"))
    assert raised.digest == plan.digest
    assert [unit.generation for unit in retry_plan(raised, {"00000-000000004"}, ["failed"]).units] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("plan.json", b'{"digest": "d"}', "revision is missing"),
        ("plan.json", b"[]", "a list"),
        ("plan.json", None, "a folder stands there"),
        ("units.parquet", b"PAR1", "Parquet"),
        ("units.parquet", None, "."),
        ("files.parquet", b"", "Parquet"),
        ("schema.arrow", b"x", "."),
    ],
)
def test_a_damaged_plan_names_the_object_and_what_helps(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    write_input(tmp_path / "in", "a.parquet", ["t"] * 3)
    inputs = scan_inputs(str(tmp_path / "in"), {})
    output = locate(str(tmp_path / "out"))
    store_plan(output, stored_plan(inputs, 2, 2), inputs)
    place = tmp_path / "out" / "plan" / name
    place.unlink()
    if content is None:
        place.mkdir()
    else:
        place.write_bytes(content)
    with pytest.raises(
        ConfigError, match=rf"got {place}, which is damaged \(.*{reason}.*\); allowed: .* \(put a copy of it back, or"
    ):
        load_plan(output)


def test_files_whose_rows_are_large_once_decoded_have_small_units(tmp_path: Path) -> None:
    value = pa.DictionaryArray.from_arrays(pa.array([0] * 30, pa.int32()), pa.array([bytes(HELD_BYTES // 7)]))
    columns = {"image": value, "source_prompt": ["a"] * 30, "target_prompt": ["b"] * 30}
    pq.write_table(pa.table(columns), tmp_path / "bomb.parquet", dictionary_pagesize_limit=2**30, store_schema=False)
    write_input(tmp_path, "other.parquet", ["t"] * 30)
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000_000
    plan = plan_of(scan_inputs(str(tmp_path), {}), 3, 30)
    assert [unit.count for unit in plan.units] == [6] * 5 + [30]


def test_no_plan_is_stored_among_the_input(tmp_path: Path) -> None:
    write_input(tmp_path / "in", "a.parquet", ["t"] * 3)
    inputs = scan_inputs(str(tmp_path / "in"), {})
    with pytest.raises(ConfigError, match="output: got .* with input=.*: one would lie in the other"):
        store_plan(locate(str(tmp_path / "in" / "out")), stored_plan(inputs, 2, 2), inputs)
    assert not (tmp_path / "in" / "out").exists()


def test_the_digest_covers_batch_size_and_what_was_settled(tmp_path: Path) -> None:
    write_input(tmp_path, "a.parquet", ["t"] * 17)
    inputs = scan_inputs(str(tmp_path), {})
    digest = plan_of(inputs, 3, 6).digest
    assert plan_of(inputs, 3, 6).digest == digest
    assert plan_of(inputs, 6, 6).digest != digest
    assert make_plan(inputs, batch_size=3, requests_per_unit=6, settled={"model_digest": "n"}).digest != digest
