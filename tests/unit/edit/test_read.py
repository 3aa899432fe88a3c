"""Reading a unit: the right rows from the right row groups, and rows for whatever cannot be read."""

from __future__ import annotations

import dataclasses
import io
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.edit import read as source
from pipelines.edit.blocks import UnitRows, from_block, to_block
from pipelines.edit.read import read_unit
from pipelines.edit.write import encode_unit
from pipelines.output.config import EditJobConfig
from pipelines.output.context import RunContext
from pipelines.output.parts import part_bytes, part_name, read_parts
from pipelines.output.plan import limit_units, make_plan
from pipelines.records.pictures import RecordPicture, decode_picture, fetch_picture
from pipelines.records.rules import RecordRules
from pipelines.records.scan import InputSet, scan_inputs
from pipelines.records.schema import output_schema
from pipelines.store import location as storage
from pipelines.store.fetch import ReferenceRules
from pipelines.store.location import locate, put_atomic, read_bytes
from tests.contexts import make_context
from vimaedit.config import Canvas
from vimaedit.errors import RequestError
from vimaedit.models.files import ModelFacts
from vimaedit.types import EditResult, Status

FACTS = ModelFacts(name="tiny", family="sd1", canvas_size=16, granularity=8, clip_side=7, warning=None)


def picture(number: int, size: tuple[int, int] = (23, 19)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (number, 2 * number, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def context_of(inputs: InputSet, **options: Any) -> RunContext:
    return make_context(
        EditJobConfig(input=inputs.root, output="out", **options),
        FACTS,
        columns=inputs.columns,
        schema=output_schema(inputs.schema, inputs.columns),
        input_root=inputs.root,
    )


def read_all(folder: Path, limit: int | None = None, requests_per_unit: int = 4, **options: Any) -> list[UnitRows]:
    inputs = scan_inputs(str(folder), {})
    plan = make_plan(inputs, batch_size=2, requests_per_unit=requests_per_unit, settled={})
    context = context_of(inputs, **options)
    return [read_unit(context, unit.files_of(inputs.files), unit) for unit in limit_units(plan.units, limit)]


def write(path: Path, columns: dict[str, Any], row_group_size: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size, compression="snappy")


def records(count: int) -> dict[str, Any]:
    texts = [f"target {number}" for number in range(count)]
    return {"image": [picture(n) for n in range(count)], "source_prompt": ["a"] * count, "target_prompt": texts}


@pytest.mark.parametrize("row_group_size", [1, 3, 100])
def test_units_hold_their_rows_whatever_the_row_groups_are(tmp_path: Path, row_group_size: int) -> None:
    write(tmp_path / "a.parquet", {**records(37), "score": list(range(37))}, row_group_size)
    units = read_all(tmp_path)
    assert [len(unit.rows) for unit in units] == [4] * 9 + [1]
    rows = [row for unit in units for row in unit.rows]
    assert [(row.input_row, row.target_prompt) for row in rows] == [(n, f"target {n}") for n in range(37)]
    assert [row.picture.image[0, 0, 0] for row in rows if row.picture is not None] == list(range(37))
    assert [value for unit in units for value in unit.passed.column("score").to_pylist()] == list(range(37))
    limited = read_all(tmp_path, limit=21)
    assert [row.input_row for unit in limited for row in unit.rows] == list(range(21))


def test_lists_are_split_between_units_and_carry_their_columns(tmp_path: Path) -> None:
    targets = [["p"], [f"q{n}" for n in range(7)], [], ["r", "s"]]
    write(
        tmp_path / "a.parquet",
        {"image": [picture(n) for n in range(4)], "source_prompt": ["a"] * 4, "target_prompt": targets}
        | {"score": [0, 10, 20, 30]},
    )
    units = read_all(tmp_path, requests_per_unit=4)
    places = [[(row.input_row, row.edit_index) for row in unit.rows] for unit in units]
    assert places == [[(0, 0), (1, 0), (1, 1), (1, 2)], [(1, 3), (1, 4), (1, 5), (1, 6)], [(2, 0), (3, 0), (3, 1)]]
    assert units[1].passed.column("score").to_pylist() == [10] * 4
    assert [row.target_prompt for row in units[1].rows] == ["q3", "q4", "q5", "q6"]


def test_a_broken_page_rejects_the_rows_of_its_unit_only(tmp_path: Path) -> None:
    count = 17
    noise = np.random.default_rng(5).integers(0, 255, (count, 2000), dtype=np.uint8)
    write(tmp_path / "a.parquet", {**records(count), "blob": [row.tobytes() for row in noise]}, row_group_size=8)
    path = tmp_path / "a.parquet"
    chunk = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + 12] = b"\xff" * 12
    path.write_bytes(data)
    units = read_all(tmp_path)
    statuses = [[row.status for row in unit.rows] for unit in units]
    rejected = Status.REJECTED
    assert statuses == [[None] * 4, [None] * 4, [rejected] * 4, [rejected] * 4, [None]]
    broken = units[2].rows[1]
    assert (broken.id, broken.input_row, broken.result.error_stage, broken.result.error_type) == (
        "a.parquet#9",
        9,
        "read",
        "unreadable_file",
    )
    assert broken.result.message is not None and "input: got a.parquet: " in broken.result.message
    assert "; allowed: a whole Parquet file" in broken.result.message
    assert units[2].passed.column("blob").to_pylist() == [None] * 4


def test_a_broken_row_group_rejects_its_own_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {**records(9), "target_prompt": [["p", "q"]] * 9, "score": list(range(9))}, 3)
    chunk = pq.read_metadata(tmp_path / "a.parquet").row_group(1).column(1)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + 12] = b"\xff" * 12
    (tmp_path / "a.parquet").write_bytes(data)
    (unit,) = read_all(tmp_path, requests_per_unit=18)
    assert [(row.input_row, row.edit_index) for row in unit.rows] == [(n, edit) for n in range(9) for edit in range(2)]
    assert [row.status for row in unit.rows] == [None] * 6 + [Status.REJECTED] * 6 + [None] * 6
    scores = unit.passed.column("score").to_pylist()
    assert scores == [0, 0, 1, 1, 2, 2] + [None] * 6 + [6, 6, 7, 7, 8, 8]
    split = [(row.input_row, row.edit_index) for unit in read_all(tmp_path, requests_per_unit=5) for row in unit.rows]
    assert split == [(n, edit) for n in range(9) for edit in range(2)]


def test_a_planned_file_that_is_gone_or_changed_is_no_bad_input(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", records(3))
    inputs = scan_inputs(str(tmp_path), {})
    (unit,) = make_plan(inputs, batch_size=2, requests_per_unit=4, settled={}).units
    write(tmp_path / "a.parquet", records(5))
    with pytest.raises(RuntimeError, match=r"a.parquet: got 5 rows on node .+; planned were 3: the input must not change"):
        read_unit(context_of(inputs), inputs.files[:1], unit)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(
        RuntimeError, match=r"a.parquet: planned, but not there on node .+; every worker must see the input under"
    ):
        read_unit(context_of(inputs), inputs.files[:1], unit)


def test_an_interruption_of_the_network_repeats_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", {**records(37), "score": list(range(37))}, 8)
    reads: list[int] = []

    class Interrupted(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            reads.append(1)
            if len(reads) % 7 == 0:
                raise ConnectionResetError("the peer is gone")
            return super().read(size)

    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(storage.Location, "is_local", property(lambda place: False))
    inputs = scan_inputs(str(tmp_path), {})
    (unit,) = make_plan(inputs, batch_size=2, requests_per_unit=40, settled={}).units
    monkeypatch.setattr("pipelines.records.read.open_reader", lambda place: Interrupted(place.path))
    read = read_unit(context_of(inputs), inputs.files[:1], unit)
    assert len(reads) > 14
    assert [row.input_row for row in read.rows] == read.passed.column("score").to_pylist() == list(range(37))


def test_a_text_that_is_none_rejects_its_row_and_passes_through_elsewhere(tmp_path: Path) -> None:
    offsets = pa.array([0, 5, 7, 12], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a cat\xff\xfea cat")])
    write(tmp_path / "a.parquet", {**records(3), "source_prompt": texts, "note": texts})
    (unit,) = read_all(tmp_path)
    assert [row.status for row in unit.rows] == [None, Status.REJECTED, None]
    assert unit.rows[1].result.message is not None
    assert "source_prompt: got a value of type string that cannot be read (UnicodeDecodeError: " in unit.rows[1].result.message
    assert unit.passed.column("note").cast(pa.binary()).to_pylist() == [b"a cat", b"\xff\xfe", b"a cat"]


def test_passed_columns_are_repeated_in_pieces_and_views_among_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "TAKE_BYTES", 300)
    columns = {**records(2), "target_prompt": [["p"] * 7, ["q"] * 5], "blob": [b"x" * 100, b"y" * 100]}
    write(tmp_path / "a.parquet", {**columns, "note": pa.array(["m", "n"], pa.string_view())})
    (unit,) = read_all(tmp_path, requests_per_unit=12)
    assert unit.passed.column("blob").num_chunks > 4
    assert unit.passed.column("blob").to_pylist() == [b"x" * 100] * 7 + [b"y" * 100] * 5
    assert unit.passed.column("note").to_pylist() == ["m"] * 7 + ["n"] * 5


def test_targets_in_list_views_are_all_edited(tmp_path: Path) -> None:
    targets = pa.array([["p", "q"], None, ["r"]], pa.list_view(pa.string()))
    write(tmp_path / "a.parquet", {**records(3), "target_prompt": targets})
    (unit,) = read_all(tmp_path)
    assert [(row.input_row, row.target_prompt) for row in unit.rows] == [(0, "p"), (0, "q"), (1, None), (2, "r")]


def test_pictures_are_fetched_a_few_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    ahead: list[int] = []

    def fetch(rules: ReferenceRules, reference: str) -> bytes:
        fetched.append(reference)
        return picture(1)

    def decode(rules: RecordRules, record: Any, image: Any) -> RecordPicture:
        ahead.append(len(fetched) - len(ahead))
        return RecordPicture(path=None, stage="decode", error=RequestError("none", field="image", got="", allowed=""))

    monkeypatch.setattr(source, "fetch_picture", fetch)
    monkeypatch.setattr(source, "decode_picture", decode)
    write(tmp_path / "a.parquet", {**records(131), "image": [f"{number}.png" for number in range(131)]})
    (unit,) = read_all(tmp_path, requests_per_unit=132)
    assert len(fetched) == len(unit.rows) == 131 and max(ahead) <= source.FETCHED_AHEAD


def test_large_pictures_are_fetched_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, most = 0, 0
    (tmp_path / "large.png").write_bytes(picture(1) + bytes(100_000))

    def fetch(rules: ReferenceRules, reference: str) -> bytes:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return fetch_picture(rules, reference)

    def decode(rules: RecordRules, record: Any, image: Any) -> RecordPicture:
        nonlocal held
        held -= 1
        if record.get("id") == "last":
            raise RuntimeError("no decoder")
        return decode_picture(rules, record, image)

    monkeypatch.setattr(source, "FETCHED_BYTES", 250_000)
    monkeypatch.setattr(source, "fetch_picture", fetch)
    monkeypatch.setattr(source, "decode_picture", decode)
    write(tmp_path / "a.parquet", {**records(40), "image": ["large.png"] * 40})
    (unit,) = read_all(tmp_path, requests_per_unit=40, frame="original")
    assert len(unit.rows) == 40 and most <= 3  # two have room, beside the one that is waited for
    assert len({id(row.coded) for row in unit.rows}) == 1
    write(tmp_path / "a.parquet", {**records(40), "image": ["large.png"] * 40, "id": ["last"] * 40})
    with pytest.raises(RuntimeError, match="no decoder"):  # and nobody waits for ever
        read_all(tmp_path, requests_per_unit=40)


def test_rows_whose_group_may_change_are_warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    images = pa.array([{"bytes": picture(1), "path": None}, {"bytes": None, "path": "http://127.0.0.1:9/a.png"}])
    write(tmp_path / "a.parquet", {**records(2), "image": images})
    options: dict[str, Any] = {"allow_http": True, "http_hosts": ["127.0.0.1"]}
    (unit,) = read_all(tmp_path, canvas=Canvas(fit="keep"), **options)
    assert [row.status for row in unit.rows] == [None, Status.FAILED]
    (warning,) = unit.rows[0].warnings
    assert warning.startswith("regrouped: with canvas.fit=keep the picture of record 'a.parquet#1' could not be had")
    (unit,) = read_all(tmp_path, **options)
    assert unit.rows[0].warnings == []


def test_files_may_lack_columns_and_differ_in_types(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {**records(2), "score": pa.array([1, 2], pa.int32())})
    write(tmp_path / "b.parquet", {"image": ["none.png"], "source_prompt": ["a"], "score": pa.array([0.5])})
    (unit,) = read_all(tmp_path)
    assert unit.passed.schema.field("score").type == pa.float64() and unit.passed.column("score").to_pylist() == [1.0, 2.0, 0.5]
    row = unit.rows[2]
    assert row.result.message == (
        "record 'b.parquet#0': target_prompt: got null; allowed: a string that is not empty, or a list of such strings"
    )


def test_the_first_reason_stands_and_the_picture_is_shown_all_the_same(tmp_path: Path) -> None:
    columns = records(2)
    columns["target_prompt"][0] = ""
    columns["image"][1] = b"no picture"
    write(tmp_path / "a.parquet", columns)
    (unit,) = read_all(tmp_path)
    prompt, undecodable = unit.rows
    assert (prompt.result.error_type, prompt.picture.size) == ("empty_prompt", (23, 19)) and prompt.request is None
    assert (undecodable.result.error_type, undecodable.result.error_stage) == ("image_undecodable", "decode")


def test_what_the_infrastructure_does_to_a_picture_fails_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    write(tmp_path / "a.parquet", {**records(1), "image": ["http://127.0.0.1:9/a.png"]})
    (unit,) = read_all(tmp_path, allow_http=True, http_hosts=["127.0.0.1"])
    (row,) = unit.rows
    assert (row.status, row.result.error_stage, row.result.error_type) == (Status.FAILED, "fetch", "ConnectionRefusedError")
    assert row.result.message is not None and row.result.message.startswith(
        "record 'a.parquet#0': image: ConnectionRefusedError"
    )


def test_a_given_mask_is_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {**records(1), "given_mask": ["mask.png"]})
    (unit,) = read_all(tmp_path, grounding="given")
    assert unit.rows[0].result.message is not None
    assert "given_mask: got the path 'mask.png'; allowed: binary, or {bytes, path} with bytes" in unit.rows[0].result.message


def test_a_block_carries_a_unit_whole_and_no_array_twice(tmp_path: Path) -> None:
    given = io.BytesIO()
    Image.new("L", (23, 19), 255).save(given, "PNG")
    write(tmp_path / "a.parquet", {**records(2), "target_prompt": [["p", "q"]] * 2, "given_mask": [given.getvalue()] * 2})
    (unit,) = read_all(tmp_path, grounding="given")
    first, second, third, last = unit.rows
    mask = np.random.default_rng(0).random((13, 11)) < 0.5
    edited = np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8)
    masks = {"edit_mask": mask, "critical_mask": ~mask[:5]}
    first.take(EditResult(id=first.id, status=Status.OK, source=first.picture.image + 1, image=edited, **masks))
    last.request = None
    block = to_block(unit)
    assert block.num_rows == 1
    (back,) = from_block(block)
    assert back.unit == unit.unit and [row.id for row in back.rows] == [row.id for row in unit.rows]
    assert all((a.picture.image == b.picture.image).all() for a, b in zip(back.rows, unit.rows, strict=True))
    own = back.rows[0]
    for name, expected in masks.items():
        found = getattr(own.result, name)
        assert found.dtype == bool and found.flags.writeable and np.array_equal(found, expected)
    assert own.result.source is None and np.array_equal(own.result.image, edited) and back.rows[1].result is None
    for row in back.rows[:3]:
        assert (
            row.request.image is row.picture.image and row.request.given_mask.shape == (16, 16) and row.request.given_mask.all()
        )
    assert own.picture is back.rows[1].picture and own.request.given_mask is back.rows[1].request.given_mask
    assert own.request.clip_image is back.rows[1].request.clip_image and back.rows[3].request is None


def test_a_part_says_whose_it_is_and_a_foreign_or_broken_one_counts_for_nothing(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.parquet", {**records(3), "image": [b"bad"] * 3, "score": [1, 2, 3]})
    inputs = scan_inputs(str(tmp_path / "in"), {})
    (unit,) = make_plan(inputs, batch_size=2, requests_per_unit=4, settled={}).units
    context = context_of(inputs)
    table = encode_unit(context, read_unit(context, inputs.files[:1], unit))
    assert table.schema.equals(context.schema) and table.column("score").to_pylist() == [1, 2, 3]
    output = locate(str(tmp_path / "out"))
    put_atomic(output / "data" / part_name(unit.id), part_bytes(context, unit.id, table))
    (part,) = read_parts(output, [unit.id, "00001-000000000"], "p").values()
    assert (part.unit, part.generation, part.rows, part.counts) == (unit.id, 1, 3, {"rejected": 3})
    assert read_parts(output, [unit.id], "q") == {} and read_parts(output / "nowhere", [unit.id], "p") == {}
    whole = read_bytes(output / "data" / part_name(unit.id))
    put_atomic(output / "data" / part_name("00001-000000000"), whole)  # the part of another unit
    put_atomic(output / "data" / part_name(unit.id), whole[:-9])  # broken
    assert read_parts(output, [unit.id, "00001-000000000"], "p") == {}


def test_times_texts_and_field_metadata_pass_through_unchanged(tmp_path: Path) -> None:
    """What a column holds comes out as it went in, whatever its type; of a file's own numbering of columns nothing is said."""
    moments = [datetime(9999, 12, 31, 23, 59, 59, 999999), None, datetime(1, 1, 1)]
    columns = {
        "far": pa.array(moments, pa.timestamp("us")),
        "near": pa.array([1577836800123456789, None, -1], pa.timestamp("ns")),
        "zoned": pa.array([1577836800123, None, -1], pa.timestamp("ms", tz="Asia/Kolkata")),
        "span": pa.array([1, None, -(2**62)], pa.duration("ns")),
        "clock": pa.array([1, None, 86_399_999_999_999], pa.time64("ns")),
        "exact": pa.array([Decimal("-0.001"), None, Decimal("12345678901234567890.123")], pa.decimal128(38, 3)),
        "wide": pa.array([Decimal(10) ** 70, None, Decimal(-1)], pa.decimal256(76, 0)),
        "unsigned": pa.array([2**64 - 1, None, 0], pa.uint64()),
        "half": pa.array([1.5, None, -0.0], pa.float16()),
        "single": pa.array([float("nan"), None, float("-inf")], pa.float32()),
        "large": pa.array(["a", None, ""], pa.large_string()),
        "nested": pa.array(
            [[{"a": [1], "b": None}], None, []], pa.list_(pa.struct([("a", pa.list_(pa.int8())), ("b", pa.null())]))
        ),
        "fixed": pa.array([[1, 2], None, [3, None]], pa.list_(pa.int8(), 2)),
        "word": pa.array(["x", None, "y"]).dictionary_encode(),
        "label": pa.array([UUID(int=7).bytes, None, UUID(int=8).bytes], pa.uuid()),
    }
    table = pa.table({**records(3), **columns})
    for name in columns:
        place = table.schema.get_field_index(name)
        table = table.set_column(
            place, pa.field(name, table.schema.field(name).type, metadata={"unit": name}), table.column(name)
        )
    for store_schema in (True, False):
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=2, store_schema=store_schema)
        stored = pq.read_table(tmp_path / "a.parquet").select(list(columns))
        inputs = scan_inputs(str(tmp_path), {})
        (unit,) = read_all(tmp_path)
        for name in columns:
            read, written = unit.passed.column(name), inputs.schema.field(name)
            assert read.type == written.type
            bare = stored.column(name).combine_chunks()
            bare = bare.storage if isinstance(bare, pa.ExtensionArray) else bare
            assert read.combine_chunks().equals(bare.cast(written.type)) or name == "single"
            assert read.to_pylist()[1] is None and str(read.to_pylist()[2]) == str(bare.to_pylist()[2])
            assert written.metadata == ({b"unit": name.encode()} if store_schema else None)
        assert output_schema(inputs.schema, inputs.columns).field("near").metadata == (
            {b"unit": b"near"} if store_schema else None
        )


def test_columns_of_folders_pass_through(tmp_path: Path) -> None:
    write(tmp_path / "style=oil%20paint" / "n=7" / "a.parquet", records(2))
    write(tmp_path / "n=08" / "b.parquet", {**records(1), "style": ["ink"]})
    (unit,) = read_all(tmp_path)
    assert unit.passed.select(["style", "n"]).to_pylist() == [
        {"style": "ink", "n": 8},
        *[{"style": "oil paint", "n": 7}] * 2,
    ]


def test_pictures_lie_beside_the_input_that_names_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name / "a.parquet", {**records(1), "image": ["p.png"]})
        (tmp_path / name / "p.png").write_bytes(picture(len(name) if name == "one" else 7))
    write(tmp_path / "three" / "a.parquet", {**records(1), "image": ["../one/p.png"]})
    inputs = scan_inputs([str(tmp_path / name) for name in ("one", "two", "three")], {})
    plan = make_plan(inputs, batch_size=2, requests_per_unit=4, settled={})
    context = dataclasses.replace(context_of(inputs), input_roots=inputs.roots)
    (unit,) = plan.units
    rows = read_unit(context, unit.files_of(inputs.files), unit).rows
    assert [row.input_file for row in rows] == ["one/a.parquet", "three/a.parquet", "two/a.parquet"]
    found = [None if row.picture is None else int(row.picture.image[0, 0, 0]) for row in rows]
    assert found == [3, None, 7] and rows[1].result is not None and rows[1].result.error_type == "reference_not_allowed"


def test_a_unit_of_several_small_files_has_all_their_rows_in_order(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {**records(2), "score": pa.array([0, 1], pa.int16())})
    write(tmp_path / "b.parquet", records(0))
    targets = {"target_prompt": pa.array([["p", "q"], ["r"]])}
    write(tmp_path / "n=7" / "c.parquet", {**records(2), **targets, "score": [2.5, 3.5]})
    (unit,) = read_all(tmp_path, requests_per_unit=6)
    assert (unit.unit.files, unit.unit.count) == (3, 5)
    assert [(row.input_file, row.input_row, row.edit_index, row.target_prompt) for row in unit.rows] == [
        ("a.parquet", 0, 0, "target 0"),
        ("a.parquet", 1, 0, "target 1"),
        ("n=7/c.parquet", 0, 0, "p"),
        ("n=7/c.parquet", 0, 1, "q"),
        ("n=7/c.parquet", 1, 0, "r"),
    ]
    assert unit.passed.to_pydict() == {"score": [0.0, 1.0, 2.5, 2.5, 3.5], "n": [None, None, 7, 7, 7]}
    for limit in range(1, 5):
        (cut,) = read_all(tmp_path, limit=limit, requests_per_unit=6)
        assert [row.target_prompt for row in cut.rows] == [row.target_prompt for row in unit.rows][:limit]
