"""Drivers that are killed: the same command again ends with one row per request and the pictures of an undisturbed run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.edit.edit import run_edit
from pipelines.output.parts import part_name
from tests.pipeline.conftest import MakeJob, MakePicture, write_records
from tests.pipeline.output.drivers import Drivers, make_drivers
from tests.pipeline.output.test_resume import records

__all__ = ["make_drivers"]  # a fixture

pytestmark = pytest.mark.faults

PICTURES = ("image", "edited_image", "edit_mask", "critical_mask")


def rows_of(output: Path) -> list[dict[str, Any]]:
    """Read all rows by their identity; no request may have two."""
    rows = [row for part in sorted((output / "data").glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    assert len({(row["input_file"], row["input_row"], row["edit_index"]) for row in rows}) == len(rows)
    return rows


def same_pictures(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    return [row["id"] for row in rows] == [row["id"] for row in others] and all(
        row[name] == other[name] for row, other in zip(rows, others, strict=True) for name in PICTURES
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def committed(output: Path) -> dict[str, bytes]:
    """Return what only a driver that holds the lock writes."""
    return {name: data for name, data in contents(output).items() if not name.startswith(("data/", "state/"))}


@pytest.mark.timeout(1500)
def test_a_driver_may_be_killed_between_any_two_steps(
    make_drivers: Callable[..., Drivers], tmp_path: Path, make_job: MakeJob, make_picture: MakePicture
) -> None:
    write_records(tmp_path / "in" / "a.parquet", records(range(7), make_picture))
    drivers = make_drivers("batch_size=2", "steps=1")
    output = drivers.output
    assert drivers.is_killed("pipelines.store.lock:_create:1") and not (output / "state").exists()
    assert drivers.is_killed("pipelines.edit.edit:store_plan:1") and not (output / "plan").exists()
    assert drivers.is_killed("pipelines.output.plan:put_json:1")  # everything but plan.json, which commits it
    assert sorted(path.name for path in (output / "plan").iterdir()) == ["files.parquet", "schema.arrow", "units.parquet"]
    assert drivers.is_killed("pipelines.edit.edit:start_ledger:1") and drivers.num_parts() == 0
    assert drivers.is_killed("pipelines.edit.edit:write_manifest:1") and drivers.num_parts() == 4
    before = contents(output / "data")
    (output / "data" / part_name("00000-000000006")).unlink()  # as if killed before the last unit
    assert drivers.is_killed("pipelines.edit.edit:write_run:1") and (output / "manifest.parquet").exists()
    assert drivers.is_killed("pipelines.edit.edit:write_success:1") and (output / "run.json").exists()
    code, text, errors = drivers.run()
    assert code == 0, errors
    assert "0 of 7 rows in" in text and (output / "_SUCCESS").exists()
    run_edit(make_job(batch_size=2, output=str(tmp_path / "clean")))
    assert same_pictures(rows_of(output), rows_of(tmp_path / "clean"))
    assert {name: data for name, data in contents(output / "data").items() if name != part_name("00000-000000006")} == {
        name: data for name, data in before.items() if name != part_name("00000-000000006")
    }
    code, text, errors = drivers.run()
    assert code == 0 and text.startswith("finished before, nothing to do: 7 rows: 7 ok, 0 rejected"), errors


@pytest.mark.timeout(1500)
def test_a_retry_and_an_extension_may_be_killed_too(
    make_drivers: Callable[..., Drivers], tmp_path: Path, make_job: MakeJob, make_picture: MakePicture
) -> None:
    named = records(range(6), make_picture)
    pictures = {number: named[number]["image"]["bytes"] for number in (1, 4)}
    for number in pictures:
        named[number]["image"] = {"bytes": None, "path": f"{number}.png"}
    write_records(tmp_path / "in" / "m.parquet", named)
    drivers = make_drivers("batch_size=2", "steps=1")
    output = drivers.output
    code, _, errors = drivers.run()
    assert code == 0, errors
    before = contents(output / "data")
    for number, picture in pictures.items():
        (tmp_path / "in" / f"{number}.png").write_bytes(picture)

    retry = ("resume=retry-failed", "retry_statuses=[rejected]")
    assert drivers.is_killed("pipelines.edit.edit:store_plan:1", *retry)  # _SUCCESS went first, the generation is as it was
    assert drivers.is_killed("pipelines.output.plan:put_json:1", *retry) and contents(output / "data") == before
    assert drivers.is_killed("pipelines.edit.edit:start_ledger:1", *retry)  # the generation is raised
    (output / "data" / part_name("00000-000000004")).unlink()  # to be done again whole
    assert drivers.is_killed("pipelines.edit.edit:write_manifest:1")  # the plain command goes on with what was asked for
    code, _, errors = drivers.run(*retry)
    assert code == 0, errors
    run_edit(make_job(batch_size=2, output=str(tmp_path / "clean")))
    assert same_pictures(rows_of(output), rows_of(tmp_path / "clean"))
    generations = [row["generation"] for row in pq.read_table(output / "manifest.parquet").to_pylist()]
    assert generations == [2, 1, 2]
    kept = rows_of(output)

    write_records(tmp_path / "in" / "a.parquet", records(range(6, 9), make_picture))
    assert drivers.is_killed("pipelines.edit.edit:store_plan:1", "resume=extend")
    assert drivers.is_killed("pipelines.output.plan:put_json:1", "resume=extend")
    assert drivers.is_killed("pipelines.edit.edit:write_manifest:1", "resume=extend")
    code, _, errors = drivers.run("resume=extend")
    assert code == 0, errors
    rows = rows_of(output)
    assert rows[:6] == kept and [row["id"] for row in rows] == [f"r{number}" for number in range(9)]
    assert all(row["status"] == "ok" for row in rows)


@pytest.mark.timeout(600)
def test_of_two_drivers_the_second_leaves_and_one_that_slept_commits_nothing(
    make_drivers: Callable[..., Drivers], tmp_path: Path, make_picture: MakePicture
) -> None:
    write_records(tmp_path / "in" / "a.parquet", records(range(40), make_picture))
    drivers = make_drivers("batch_size=2", "steps=15")
    first = drivers.start()
    drivers.wait_for((drivers.output / "plan" / "plan.json").exists, first)
    code, _, errors = drivers.run()
    assert code == 2 and f"which is held by process {first.pid} on " in errors, errors
    assert first.poll() is None

    first.send_signal(signal.SIGSTOP)  # as where a machine is suspended; its workers go on
    code, text, errors = drivers.run()
    assert code == 0, errors
    assert f"lock: taken over from process {first.pid} on " in errors
    finished, rows = committed(drivers.output), rows_of(drivers.output)
    first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 1
    assert "this run ends here and commits nothing" in errors
    assert committed(drivers.output) == finished
    # A unit that its workers had in hand may have been written once more, with the same pictures.
    assert len(rows) == 40 and same_pictures(rows_of(drivers.output), rows)
