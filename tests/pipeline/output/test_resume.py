"""Going on in an output: after a limit, a kill, with failed rows done again, with new input files, and what is refused."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.cluster.progress import ProgressState
from pipelines.edit.edit import plan_dry_run, run_edit
from pipelines.output.config import EditJobConfig
from pipelines.output.parts import part_name
from pipelines.output.plan import load_plan
from pipelines.store.location import locate, put_atomic, read_bytes
from pipelines.store.lock import LockLost
from tests.pipeline.conftest import MakeJob, MakePicture, pixels, write_records
from tests.pipeline.job_server import environment, get_json, job_server, submit
from tests.pipeline.output.drivers import Drivers, make_drivers
from vimaedit.errors import ConfigError

__all__ = ["environment", "job_server", "make_drivers"]  # fixtures

pytestmark = pytest.mark.timeout(600)

PICTURES = ("image", "edited_image", "edit_mask", "critical_mask")
TARGETS = ("a blue cat on the lawn", "a red dog on the lawn")


def records(numbers: range, make_picture: MakePicture) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{number}",
            "image": {"bytes": make_picture(number), "path": None},
            "source_prompt": "a red cat on the lawn",
            "target_prompt": TARGETS[number % 2],
        }
        for number in numbers
    ]


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


@pytest.fixture(scope="module")
def undisturbed(cluster: None, tmp_path_factory: pytest.TempPathFactory, make_picture: MakePicture) -> list[dict[str, Any]]:
    """The rows of a run that nothing has disturbed, of the first eleven records in batches of two."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_records(folder / "in" / "a.parquet", records(range(11), make_picture))
    places = {"input": str(folder / "in"), "output": str(folder / "out")}
    run_edit(EditJobConfig(**places, model="random", steps=1, actors=1, threads=1, batch_size=2))
    return rows_of(folder / "out")


def test_a_plan_is_continued_beyond_its_limit_and_nothing_else_is(
    tmp_path: Path,
    make_job: MakeJob,
    make_picture: MakePicture,
    undisturbed: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_records(tmp_path / "in" / "a.parquet", records(range(11), make_picture))
    output = tmp_path / "out"
    with pytest.raises(
        ConfigError, match="^resume: got always, but .*out holds no run to go on with; allowed: if-possible, never$"
    ):
        run_edit(make_job(resume="always"))
    first = run_edit(make_job(batch_size=2, limit=5))
    assert (first.rows, first.edited, first.units, first.was_finished) == (5, 5, 3, False)
    before = contents(output / "data")

    states: list[ProgressState] = []
    with caplog.at_level(logging.INFO):
        second = run_edit(make_job(batch_size=4, resume="always"), states.append)
    assert (second.rows, second.edited, second.units) == (11, 7, 6)  # the cut unit of two is done again whole
    assert states[-1] == ProgressState(done=7, total=7, counts={"ok": 7})
    stands = "batch_size: got 4, but the plan in the output has 2, which stands"
    assert second.warnings.count(stands) == 1 and sum(stands in message for message in caplog.messages) == 1
    assert "going on: 2 of 6 units are done" in caplog.messages
    after = contents(output / "data")
    assert {name for name in before if after[name] != before[name]} == {part_name("00000-000000004")}
    assert same_pictures(rows_of(output), undisturbed)
    run = json.loads((output / "run.json").read_text())
    assert (run["rows"], run["rows_edited"], run["batch_size"], run["exit_code"]) == (11, 7, 2, 0)
    assert pq.read_table(output / "manifest.parquet").column("rows").to_pylist() == [2, 2, 2, 2, 2, 1]

    finished = contents(output)
    again = run_edit(make_job(limit=3))
    assert again.was_finished and (again.rows, again.edited, again.exit_code, again.counts["ok"]) == (11, 0, 0, 11)
    retried = run_edit(make_job(resume="retry-failed"))
    assert retried.was_finished and retried.rows == 11
    (output / "run.json").write_text(json.dumps({**run, "exit_code": 3}))
    assert run_edit(make_job()).exit_code == 3
    (output / "run.json").write_text(json.dumps(run, indent=2))
    assert {**contents(output), "state/lock.json": b""} == {**finished, "state/lock.json": b""}

    with pytest.raises(
        ConfigError, match="^resume: got never, but .*out holds a run's plan; allowed: if-possible, which goes on, or"
    ):
        run_edit(make_job(resume="never"))
    with pytest.raises(ConfigError) as refused:
        run_edit(make_job(steps=2, seed=7))
    assert str(refused.value) == (
        f"output: got {output}, which holds a run of other settings: seed=7, was 0, steps=2, was 1; allowed: those it was begun "
        "with, or another output (nothing is deleted)"
    )
    write_records(tmp_path / "in" / "b.parquet", records(range(2), make_picture))
    with pytest.raises(
        ConfigError, match="which is not what the plan in the output was made of: new b.parquet; allowed: .*extend"
    ):
        run_edit(make_job())
    write_records(tmp_path / "in" / "a.parquet", records(range(7), make_picture))
    with pytest.raises(ConfigError, match=r"made of: changed a.parquet \(\d+ bytes, was \d+\); allowed: the planned files; or"):
        run_edit(make_job(resume="extend"))
    (tmp_path / "in" / "a.parquet").unlink()
    with pytest.raises(
        ConfigError, match="made of: missing a.parquet, new b.parquet; allowed: the planned files; or another output"
    ):
        run_edit(make_job())
    assert {**contents(output), "state/lock.json": b""} == {**finished, "state/lock.json": b""}


def test_rows_are_done_again_each_in_its_own_slot_and_the_others_stay(
    tmp_path: Path, make_job: MakeJob, make_picture: MakePicture, undisturbed: list[dict[str, Any]]
) -> None:
    named = records(range(7), make_picture)
    late = {number: named[number]["image"]["bytes"] for number in (1, 4)}
    for number in late:
        named[number]["image"] = {"bytes": None, "path": f"pictures/{number}.png"}
    named[6]["source_prompt"] = ""
    write_records(tmp_path / "in" / "a.parquet", named[:4])
    write_records(tmp_path / "in" / "b.parquet", named[4:])
    options: dict[str, Any] = {"batch_size": 2, "max_rejected_fraction": 0.2}
    first = run_edit(make_job(**options))
    assert (first.exit_code, first.counts["rejected"]) == (3, 3)
    output = tmp_path / "out"
    before, old_rows = contents(output / "data"), rows_of(output)

    (tmp_path / "in" / "pictures").mkdir()
    for number, picture in late.items():
        (tmp_path / "in" / "pictures" / f"{number}.png").write_bytes(picture)
    again: dict[str, Any] = {**options, "resume": "retry-failed", "retry_statuses": ["rejected"]}
    planned = plan_dry_run(make_job(**again))
    assert (planned.requests, planned.units) == (3, 3)
    states: list[ProgressState] = []
    second = run_edit(make_job(**again), states.append)
    assert (second.exit_code, second.edited, second.rows, second.counts) == (
        *(0, 2, 7),
        {"ok": 6, "rejected": 1, "failed": 0, "quarantined": 0},
    )
    assert states[-1] == ProgressState(done=3, total=3, counts={"ok": 2, "rejected": 1})
    rows = rows_of(output)
    assert list(map(pixels, rows[:6])) == list(map(pixels, undisturbed[:6])) and rows[6]["status"] == "rejected"
    for number in (0, 2, 3, 5):
        assert rows[number] == old_rows[number]
    after = contents(output / "data")
    assert [after[name] == before[name] for name in sorted(before)] == [False, True, False, False]
    manifest = pq.read_table(output / "manifest.parquet").to_pylist()
    assert [row["generation"] for row in manifest] == [2, 1, 2, 2]
    stored = load_plan(locate(str(output)))
    assert stored is not None and (stored.plan.generation, stored.plan.retry_statuses) == (2, ("rejected",))

    # A driver that was thought dead puts a part of the first generation back, after the end.
    put_atomic(locate(str(output)) / "data" / part_name("00000-000000000"), before[part_name("00000-000000000")])
    third = run_edit(make_job(**options))
    assert (third.edited, third.counts["ok"], third.was_finished) == (1, 6, False)
    assert same_pictures(rows_of(output), rows)


def test_new_files_are_appended_and_move_nothing(
    bucket: str, tmp_path: Path, make_job: MakeJob, make_picture: MakePicture
) -> None:
    def put(name: str, numbers: range, **others: Any) -> None:
        write_records(tmp_path / name, [{**record, **others} for record in records(numbers, make_picture)])
        put_atomic(locate(f"{bucket}/extended") / name, (tmp_path / name).read_bytes())

    job: dict[str, Any] = {"input": f"{bucket}/extended", "output": f"{bucket}/extended-out", "batch_size": 2}
    put("m.parquet", range(3), score=1.5, group="old")
    run_edit(make_job(**job))
    output = locate(job["output"])
    place = output / "data" / part_name("00000-000000000")
    before = read_bytes(place)
    put("a.parquet", range(3, 6), group="new", score=2.5)
    extended = run_edit(make_job(**job, resume="extend"))
    assert (extended.rows, extended.edited) == (6, 3)
    assert read_bytes(place) == before
    manifest = pq.read_table(io.BytesIO(read_bytes(output / "manifest.parquet"))).column("unit").to_pylist()
    assert manifest == ["00000-000000000", "00000-000000002", "00001-000000000", "00001-000000002"]
    parts = [pq.read_table(io.BytesIO(read_bytes(output / "data" / part_name(unit)))) for unit in manifest]
    assert all(part.schema.equals(parts[0].schema) for part in parts)
    rows = [row for part in parts for row in part.to_pylist()]
    assert [(row["input_file"], row["id"], row["group"], row["score"]) for row in rows] == [
        *(("m.parquet", f"r{number}", "old", 1.5) for number in range(3)),
        *(("a.parquet", f"r{number}", "new", 2.5) for number in range(3, 6)),
    ]
    assert run_edit(make_job(**job)).was_finished
    put("z.parquet", range(1), score=1.5, group="old", other=1)
    with pytest.raises(
        ConfigError, match="a run of other settings: column other int64, was missing; allowed: those it was begun"
    ):
        run_edit(make_job(**job, resume="extend"))


def test_what_a_killed_driver_has_left_is_finished_by_a_submitted_job(
    make_drivers: Callable[..., Drivers],
    repository: Path,
    environment: dict[str, str],
    job_server: str,
    tmp_path: Path,
    make_picture: MakePicture,
    undisturbed: list[dict[str, Any]],
) -> None:
    write_records(tmp_path / "in" / "a.parquet", records(range(11), make_picture))
    drivers = make_drivers("batch_size=2", "steps=1")
    first = drivers.start()
    drivers.wait_for(lambda: drivers.num_parts() >= 1, first)
    first.kill()
    first.communicate()
    before = contents(drivers.output / "data")
    written = {name: data for name, data in before.items() if name.startswith("part-")}
    assert 1 <= len(written) < 6 and not (drivers.output / "manifest.parquet").exists()
    assert drivers.lock()["released"] is False

    done = submit(job_server, environment, repository, "edit-demo", "python", "-m", "jobs.edit", *drivers.words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert get_json(f"{job_server}/api/jobs/edit-demo")["status"] == "SUCCEEDED"
    edited = json.loads((drivers.output / "run.json").read_text())["rows_edited"]
    # Less may be left than was seen: the killed driver's workers may have written one more.
    assert 1 <= edited <= 11 - sum(pq.read_metadata(io.BytesIO(data)).num_rows for data in written.values())
    assert f"{edited} of 11 rows in " in done.stdout
    assert re.search(r"going on: [1-5] of 6 units are done", done.stdout + done.stderr)
    after = contents(drivers.output / "data")
    assert all(after[name] == data for name, data in written.items())
    assert same_pictures(rows_of(drivers.output), undisturbed)
    assert drivers.lock()["released"] is True and (drivers.output / "_SUCCESS").is_file()


@pytest.mark.faults
def test_what_is_missing_at_the_end_and_a_lost_lock_are_noticed(
    tmp_path: Path, make_job: MakeJob, make_picture: MakePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / "in" / "a.parquet", records(range(3), make_picture))
    output = tmp_path / "out"
    part, lock = output / "data" / part_name("00000-000000000"), output / "state" / "lock.json"

    def lose_part(state: ProgressState) -> None:
        if state.done == state.total:  # also said at the very end
            part.unlink(missing_ok=True)

    def lose_lock(state: ProgressState) -> None:
        if state.done == state.total:
            lock.write_text(json.dumps({"token": "other", "host": "elsewhere", "pid": 7, "started_at": 0.0, "released": True}))

    monkeypatch.setattr("pipelines.edit.edit.ROUNDS", 1)
    with pytest.raises(
        RuntimeError, match="out/data: 1 of 2 units, unit 00000-000000000 the first, are not there or not the plan's after"
    ):
        run_edit(make_job(batch_size=2), lose_part)
    with pytest.raises(
        LockLost, match="lock.json: held by process 7 on elsewhere, .* now; this run ends here and commits nothing"
    ):
        run_edit(make_job(batch_size=2), lose_lock)
    assert part.exists() and not (output / "manifest.parquet").exists() and not (output / "run.json").exists()
    again = run_edit(make_job(batch_size=2))
    assert (again.rows, again.edited, again.exit_code) == (3, 0, 0) and (output / "_SUCCESS").exists()
