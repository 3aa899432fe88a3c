"""Shards, and what is compacted at all; the whole way through a run is in tests/pipeline."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.compact import main
from jobs.status import main as status
from pipelines.edit.write import encode_row
from pipelines.output.compact import CompactConfig, compact, cut_shards
from pipelines.output.config import EditJobConfig
from pipelines.output.context import RunContext
from pipelines.output.finish import write_manifest, write_run
from pipelines.output.parts import part_bytes, part_name, read_parts
from pipelines.store.location import locate, put_atomic, write_success
from pipelines.store.lock import hold_lock
from tests.contexts import flip_byte, make_context
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
            row.id, row.input_row, number = f"r{number}", number, number + 1
            rows.append(encode_row(context, unit, row))
        put_atomic(output / "data" / part_name(unit), part_bytes(context, unit, pa.Table.from_pylist(rows, context.schema)))
    parts = read_parts(output, ROWS, context.plan_digest)
    write_manifest(output, [parts[unit] for unit in reversed(ROWS)])
    write_run(output, context, {"rows": 14, "exit_code": 0, "units": 5, "counts": {"ok": 14}})
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
    state = json.loads((tmp_path / "shards" / "state" / "compact.json").read_text())
    assert set(state) == {"plan_digest", "shard_mb", "parts"}  # by which outputs begun before are known again


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
    expected = f"output: got {shards}, which holds readme.txt, no shard of this run; allowed: a new or empty folder"
    assert expected in capsys.readouterr().err
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


KILLED = """
import os, sys
from pipelines.output import compact as module
from pipelines.store.location import new_file
module.MEGABYTE = int(sys.argv[3])
write, made = module._write_shard, []
def killed(work, files, path):
    if made:
        open(path, "wb").write(b"half")
        os.kill(os.getpid(), 9)
    made.append(path)
    return write(work, files, path)
module._write_shard = killed
module.compact(module.CompactConfig(input=sys.argv[1], output=sys.argv[2], shard_mb=1, format=sys.argv[4]))
"""


@pytest.fixture
def small_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A finished run, of which shards hold a third each; returns how many bytes that is."""
    make_run(tmp_path / "run")
    third = sum(path.stat().st_size for path in (tmp_path / "run" / "data").iterdir()) // 3
    monkeypatch.setattr("pipelines.output.compact.MEGABYTE", third)
    return third


@pytest.mark.parametrize(("form", "suffix"), [("parquet", "parquet"), ("webdataset", "tar")])
def test_it_goes_on_after_a_kill(
    form: str, suffix: str, tmp_path: Path, small_shards: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run, shards, whole = tmp_path / "run", tmp_path / "shards", tmp_path / "whole"
    words = [f"input={run}", "shard_mb=1", f"format={form}"]
    assert main([*words, f"output={whole}"]) == 0  # never disturbed
    command = [sys.executable, "-c", KILLED, str(run), str(shards), str(small_shards), form]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    (first,) = (shards / "data").glob(f"*.{suffix}")
    assert len(list((shards / "data").iterdir())) == 2  # what was half written is nobody's yet
    written = first.stat().st_mtime_ns
    capsys.readouterr()
    assert main([*words, f"output={shards}"]) == 0
    assert capsys.readouterr().out.startswith("14 rows in 3 shards, ")
    assert first.stat().st_mtime_ns == written
    files = sorted((shards / "data").iterdir())
    assert [file.name for file in files] == [f"train-{n:05d}-of-00003.{suffix}" for n in range(3)]
    assert [file.read_bytes() for file in files] == [(whole / "data" / file.name).read_bytes() for file in files]
    assert main([*words, f"output={shards}"]) == 0  # as every finished run
    assert capsys.readouterr().out.startswith("finished before, nothing to do: 14 rows in 3 shards, ")
    for other in ("shard_mb=2", f"format={'parquet' if form == 'webdataset' else 'webdataset'}"):
        (name, _) = other.split("=")
        assert main([*(word for word in words if not word.startswith(name)), other, f"output={shards}"]) == 2
        text = (
            "which holds shards of another run, of another state of this one, or of another shard_mb or format; allowed: a new"
        )
        assert text in capsys.readouterr().err
    assert status([f"output={shards}"]) == 2
    assert "which holds no run; allowed: the output of jobs.edit" in capsys.readouterr().err
    assert main([f"input={shards}", f"output={tmp_path / 'again'}"]) == 2
    assert "which jobs.compact has written; allowed: the output that it was made of" in capsys.readouterr().err


def test_of_two_at_once_one_is_told_of_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run")
    shards = locate(str(tmp_path / "shards"))
    with hold_lock(shards) as lock:
        lock.renew()
        thread = threading.Timer(0.5, lock.renew)
        thread.start()
        assert main([f"input={tmp_path / 'run'}", f"output={shards.path}"]) == 2
        thread.join()
    assert "/state/lock.json, which is held by process" in capsys.readouterr().err
    assert not (tmp_path / "shards" / "data").exists()


def test_a_broken_part_is_named_with_what_helps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run")
    part = tmp_path / "run" / "data" / part_name("00001-000000000")
    flip_byte(part)
    assert main([f"input={tmp_path / 'run'}", f"output={tmp_path / 'shards'}"]) == 2
    error = capsys.readouterr().err
    assert f"jobs.compact: input: got {part}, which is damaged (" in error
    assert "; allowed: a whole part (remove it, then jobs.edit with the same options edits its unit again)" in error
    assert not list((tmp_path / "shards").rglob("*.parquet*"))


def test_what_is_no_part_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run(tmp_path / "run")
    shutil.copy(tmp_path / "run" / "manifest.parquet", tmp_path / "run" / "data" / "mine.parquet")
    assert main([f"input={tmp_path / 'run'}", f"output={tmp_path / 'shards'}"]) == 0
    assert any("data/ holds 'mine.parquet', no part of this run" in text for text in caplog.messages)
    assert pq.read_table(tmp_path / "shards" / "data").num_rows == 14


@pytest.mark.parametrize(("name", "content"), [("run.json", b"{}"), ("manifest.parquet", b"PAR1"), ("manifest.parquet", None)])
def test_a_damaged_account_is_named(
    tmp_path: Path, name: str, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    if content is not None:
        (tmp_path / "run" / name).write_bytes(content)
    assert main([f"input={tmp_path / 'run'}", f"output={tmp_path / 'shards'}"]) == 2
    assert f"input: got {tmp_path / 'run' / name}, which is damaged (" in capsys.readouterr().err
