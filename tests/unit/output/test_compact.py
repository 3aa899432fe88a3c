"""Shards, and what is compacted at all; the whole way through a run is in tests/pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.compact import main
from pipelines.edit.write import encode_row
from pipelines.output.compact import CompactConfig, compact, cut_shards
from pipelines.output.config import EditJobConfig
from pipelines.output.context import RunContext
from pipelines.output.finish import write_manifest, write_run
from pipelines.output.parts import part_bytes, part_name, read_parts
from pipelines.store.location import Location, locate, put_atomic, write_success
from tests.contexts import make_context
from tests.unit.edit.test_write import finished
from vimaedit.errors import ConfigError
from vimaedit.models.files import ModelFacts

ROWS = {"00000-000000000": 3, "00000-000000003": 3, "00001-000000000": 1, "00002-000000000": 5, "00002-000000005": 2}


def make_run(folder: Path) -> RunContext:
    """Write a finished run of five units, out of the order in which their names sort."""
    facts = ModelFacts(name="tiny", family="sd1", canvas_size=16, granularity=8, clip_side=7, warning=None)
    context = make_context(EditJobConfig(input="in", output=str(folder)), facts)
    output, number = locate(str(folder)), 0
    for unit, count in ROWS.items():
        rows = []
        for _ in range(count):
            row = finished((19, 17))
            row.id, number = f"r{number}", number + 1
            rows.append(encode_row(context, unit, row))
        put_atomic(output / "data" / part_name(unit), part_bytes(context, unit, pa.Table.from_pylist(rows, context.schema)))
    parts = read_parts(output, ROWS, context.plan_digest)
    write_manifest(output, [parts[unit] for unit in reversed(ROWS)])
    write_run(output, context, {"rows": 14})
    write_success(output)
    return context


@pytest.mark.parametrize(
    ("sizes", "shard_bytes", "expected"),
    [
        ([10, 10, 10, 10, 10, 10], 30, ["abc", "def"]),
        ([10, 10, 10, 10, 10, 10], 1000, ["abcdef"]),
        ([100, 1, 1, 1, 1, 1], 35, ["a", "bcdef"]),  # a part is never cut
        ([1, 1, 1, 1, 1, 100], 35, ["abcde", "f"]),
        ([7, 7, 7, 7, 7, 7], 7, ["a", "b", "c", "d", "e", "f"]),
        ([], 7, []),
    ],
)
def test_shards_are_consecutive_and_about_equal(sizes: list[int], shard_bytes: int, expected: list[str]) -> None:
    assert ["".join(shard) for shard in cut_shards("abcdef"[: len(sizes)], sizes, shard_bytes)] == expected


def test_a_finished_run_becomes_shards_in_its_own_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_run(tmp_path / "run")
    bytes_of_all = sum(path.stat().st_size for path in (tmp_path / "run" / "data").iterdir())
    monkeypatch.setattr("pipelines.output.compact.MEGABYTE", bytes_of_all / 2)
    done = compact(CompactConfig(input=str(tmp_path / "run"), output=str(tmp_path / "shards"), shard_mb=1))
    assert (done.shards, done.rows, done.data) == (2, 14, str(tmp_path / "shards" / "data"))
    files = sorted((tmp_path / "shards" / "data").iterdir())
    assert [file.name for file in files] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert done.bytes == sum(file.stat().st_size for file in files)
    tables = [pq.read_table(file) for file in files]
    rows = [row for table in tables for row in table.to_pylist()]
    expected = [
        row for unit in reversed(ROWS) for row in pq.read_table(tmp_path / "run" / "data" / part_name(unit)).to_pylist()
    ]
    assert rows == expected and len(rows) == 14
    for file, table in zip(files, tables, strict=True):
        assert table.schema.metadata == context.schema.metadata  # the features, and nothing of a unit
        assert json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["edited_image"] == {"_type": "Image"}
        assert pq.ParquetFile(file).num_row_groups == 1  # small parts share one
    assert (tmp_path / "shards" / "run.json").read_bytes() == (tmp_path / "run" / "run.json").read_bytes()
    assert (tmp_path / "shards" / "_SUCCESS").exists()


def test_what_is_not_compacted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, shards = tmp_path / "run", tmp_path / "shards"
    make_run(run)
    (run / "_SUCCESS").unlink()
    assert main([f"input={run}", f"output={shards}"]) == 2
    assert capsys.readouterr().err == (
        f"jobs.compact: input: got {run}, which has no _SUCCESS; allowed: the output of a run that has come to its end\n"
    )
    write_success(locate(str(run)))
    shards.mkdir()
    (shards / "readme.txt").write_text("mine")
    assert main([f"input={run}", f"output={shards}"]) == 2
    assert f"output: got {shards}, which is not empty; allowed: a new or empty folder" in capsys.readouterr().err
    assert main([f"input={run}", f"output={run / 'data' / 'more'}"]) == 2
    assert "one would lie in the other" in capsys.readouterr().err
    assert main([f"input={run}", f"output={shards}", "shard_mb=0"]) == 2
    assert "shard_mb: got 0; allowed: 1 to 100000" in capsys.readouterr().err
    assert main([f"input={run}", "output="]) == 2
    assert "output: got nothing; it is required: output=PATH_OR_URL" in capsys.readouterr().err
    (run / "data" / part_name("00001-000000000")).unlink()
    with pytest.raises(
        ConfigError, match="where 1 of 5 parts are not those of the manifest, part-00001-000000000.parquet the first; a"
    ):
        compact(CompactConfig(input=str(run), output=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_the_job_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run")
    assert main([f"input={tmp_path / 'run'}", f"output={tmp_path / 'shards'}"]) == 0
    size = (tmp_path / "shards" / "data" / "train-00000-of-00001.parquet").stat().st_size
    assert capsys.readouterr().out == f"14 rows in 1 shards, {size / 1e6:.1f} MB: {tmp_path / 'shards' / 'data'}\n"


def test_a_part_with_large_row_groups_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.store.parquet.row_groups.__defaults__", (2, 10**9))
    make_run(tmp_path / "run")
    monkeypatch.setattr("pipelines.output.compact.GROUP_ROWS", 4)
    compact(CompactConfig(input=str(tmp_path / "run"), output=str(tmp_path / "shards")))
    file = pq.ParquetFile(tmp_path / "shards" / "data" / "train-00000-of-00001.parquet")
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert sum(groups) == 14 and max(groups) <= 2


def test_an_output_in_another_store(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    compact(CompactConfig(input=str(tmp_path / "run"), output="memory://compacted"))
    place: Location = locate("memory://compacted") / "data" / "train-00000-of-00001.parquet"
    with place.fs.open(place.path, "rb") as stream:
        assert pq.read_table(stream).num_rows == 14
