"""Going on in an output: after a limit, an end without a mark, with failed rows done again, with new files, and what is refused."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest

from pipelines.cluster.progress import ProgressCallback, ProgressState
from pipelines.edit.edit import plan_dry_run, run_edit
from pipelines.output.config import EditJobConfig
from pipelines.output.parts import part_name
from pipelines.output.plan import load_plan
from pipelines.output.summary import RunSummary
from pipelines.store.location import is_complete, list_files, locate, put_atomic, read_bytes
from pipelines.store.lock import LockLost
from tests.pipeline.conftest import MakeJob, MakePicture, pixels, write_records
from tests.pipeline.job_server import environment, get_json, job_server, submit
from vimaedit.errors import ConfigError

__all__ = ["environment", "job_server"]  # fixtures

pytestmark = pytest.mark.timeout(600)

TARGETS = ("a blue cat on the lawn", "a red dog on the lawn")


def records(numbers: Iterable[int], make_picture: MakePicture) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{number}",
            "image": {"bytes": make_picture(number), "path": None},
            "source_prompt": "a red cat on the lawn",
            "target_prompt": TARGETS[number % 2],
        }
        for number in numbers
    ]


class Story:
    """The input and the output of the runs below in a bucket: rows 1 and 8 name pictures that come late, row 10 can never be edited,
    and from row 6 on the rows are the first ones over again, in the same slots, so that their pictures have to be the same."""

    job: ClassVar[dict[str, Any]] = {"batch_size": 2, "max_rejected_fraction": 0.2}

    def __init__(self, bucket: str, folder: Path, make_job: MakeJob, make_picture: MakePicture) -> None:
        self.input, self.output = locate(f"{bucket}/resumed"), locate(f"{bucket}/resumed-out")
        self.folder, self.make_job, self.make_picture = folder, make_job, make_picture
        self.records = [
            {**record, "id": f"r{number}", "seed": number % 6, "score": 1.5, "group": "old"}
            for number, record in enumerate(records([number % 6 for number in range(11)], make_picture))
        ]
        self.late = {f"pictures/{number}.png": self.records[number]["image"]["bytes"] for number in (1, 8)}
        for number, name in zip((1, 8), self.late, strict=True):
            self.records[number]["image"] = {"bytes": None, "path": name}
        self.records[10]["source_prompt"] = ""

    def put(self, name: str, rows: list[dict[str, Any]]) -> None:
        write_records(self.folder / "file.parquet", rows)
        put_atomic(self.input / name, (self.folder / "file.parquet").read_bytes())

    def run(self, progress: ProgressCallback | None = None, **options: Any) -> RunSummary:
        return run_edit(self.make(**options), progress)

    def make(self, **options: Any) -> EditJobConfig:
        return self.make_job(input=self.input.url, output=self.output.url, **{**self.job, **options})

    def read(self) -> dict[str, Any]:
        return dict(json.loads(read_bytes(self.output / "run.json")))

    def parts(self) -> dict[str, bytes]:
        return {name: data for name, data in self.contents().items() if name.startswith("data/")}

    def contents(self) -> dict[str, bytes]:
        """Return all that is there but the lock."""
        found = {name: read_bytes(self.output / name) for name, _ in list_files(self.output)}
        return {name: data for name, data in found.items() if name != "state/lock.json"} | (
            {"_SUCCESS": b""} if is_complete(self.output) else {}
        )

    def manifest(self, column: str) -> list[Any]:
        table = pq.read_table(io.BytesIO(read_bytes(self.output / "manifest.parquet")))
        return list(table.column(column).to_pylist())

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows in the order of the plan; no request may have two."""
        stored = load_plan(self.output)
        assert stored is not None
        places = [self.output / "data" / part_name(unit.id) for unit in stored.plan.units]
        tables = [pq.read_table(io.BytesIO(read_bytes(place))) for place in places if place.fs.exists(place.path)]
        assert all(table.schema.equals(tables[0].schema) for table in tables)
        rows = [row for table in tables for row in table.to_pylist()]
        assert len({(row["input_file"], row["input_row"], row["edit_index"]) for row in rows}) == len(rows)
        return rows


@pytest.fixture
def story(bucket: str, tmp_path: Path, make_job: MakeJob, make_picture: MakePicture) -> Story:
    return Story(bucket, tmp_path, make_job, make_picture)


def test_a_run_is_gone_on_with_by_a_submitted_job_with_rows_done_again_and_with_new_files(
    story: Story, repository: Path, environment: dict[str, str], job_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    _begins_with_a_limit(story)
    _is_finished_by_a_submitted_job(story, repository, environment, job_server)
    _is_left_alone(story)
    _other_words_are_refused(story)
    _rows_are_done_again_each_in_its_own_slot(story, caplog)
    _new_files_are_appended_and_move_nothing(story)


def _begins_with_a_limit(story: Story) -> None:
    story.put("m.parquet", story.records)
    with pytest.raises(
        ConfigError, match="^resume: got always, but .*resumed-out holds no run to go on with; allowed: if-possible, never$"
    ):
        story.run(resume="always")
    first = story.run(limit=5)
    assert (first.rows, first.edited, first.units, first.was_finished) == (5, 4, 3, False)
    assert [row["status"] for row in story.rows()] == ["ok", "rejected", "ok", "ok", "ok"]


def _is_finished_by_a_submitted_job(story: Story, repository: Path, environment: dict[str, str], job_server: str) -> None:
    before, rows = story.parts(), story.rows()
    # As one that was killed before its end leaves it: no mark of success, and a lock that a dead process holds.
    for name in ("_SUCCESS", "run.json", "manifest.parquet"):
        story.output.fs.rm((story.output / name).path)
    lock = json.loads(read_bytes(story.output / "state" / "lock.json"))
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    put_atomic(story.output / "state" / "lock.json", json.dumps({**lock, "pid": dead.pid, "released": False}).encode())

    words = [f"input={story.input.url}", f"output={story.output.url}", "batch_size=4", "resume=always"]
    words += ["max_rejected_fraction=0.5", "model=random", "steps=1", "actors=1", "threads=1"]
    done = submit(job_server, environment, repository, "edit-demo", "python", "-m", "jobs.edit", *words)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert get_json(f"{job_server}/api/jobs/edit-demo")["status"] == "SUCCEEDED"
    assert "going on: 2 of 6 units are done" in said  # the unit of two that the limit has cut is done again whole
    assert "5 of 11 rows in " in done.stdout and "batch_size: got 4, but the plan in the output has 2, which stands" in said
    after = story.parts()
    assert {name for name in before if after[name] != before[name]} == {f"data/{part_name('00000-000000004')}"}
    assert story.rows()[:4] == rows[:4]
    rows = story.rows()
    assert all(pixels(rows[number]) == pixels(rows[number + 6]) for number in (0, 3))
    run = story.read()
    assert (run["rows"], run["rows_edited"], run["batch_size"], run["exit_code"]) == (11, 5, 2, 0)
    assert story.manifest("rows") == [2, 2, 2, 2, 2, 1]
    assert json.loads(read_bytes(story.output / "state" / "lock.json"))["released"] is True and is_complete(story.output)


def _is_left_alone(story: Story) -> None:
    finished = story.contents()
    again = story.run(limit=3)
    assert again.was_finished and (again.rows, again.edited, again.exit_code, again.counts["ok"]) == (11, 0, 0, 8)
    retried = story.run(resume="retry-failed")
    assert retried.was_finished and retried.rows == 11
    put_atomic(story.output / "run.json", json.dumps({**story.read(), "exit_code": 3}).encode())
    assert story.run().exit_code == 3
    put_atomic(story.output / "run.json", finished["run.json"])
    assert story.contents() == finished


def _other_words_are_refused(story: Story) -> None:
    finished, output = story.contents(), story.output.url

    def refuses(message: str, **options: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            story.run(**options)

    refuses("^resume: got never, but .*out holds a run's plan; allowed: if-possible, which goes on, or", resume="never")
    refuses(
        f"^output: got {output}, which holds a run of other settings: seed=7, was 0, steps=2, was 1; allowed: those it was begun "
        r"with, or another output \(nothing is deleted\)$",
        steps=2,
        seed=7,
    )
    story.put("a.parquet", story.records[:2])
    refuses("which is not what the plan in the output was made of: new a.parquet; allowed: .*extend")
    story.put("m.parquet", story.records[:7])
    refuses(r"made of: changed m.parquet \(\d+ bytes, was \d+\); allowed: the planned files; or", resume="extend")
    story.input.fs.rm((story.input / "m.parquet").path)
    refuses("made of: missing m.parquet, new a.parquet; allowed: the planned files; or another output")
    assert story.contents() == finished
    story.put("m.parquet", story.records)
    story.input.fs.rm((story.input / "a.parquet").path)


def _rows_are_done_again_each_in_its_own_slot(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    before, old = story.contents(), story.rows()
    for name, picture in story.late.items():
        put_atomic(story.input / name, picture)
    again: dict[str, Any] = {"resume": "retry-failed", "retry_statuses": ["rejected"], "max_rejected_fraction": 0.05}
    planned = plan_dry_run(story.make(**again, dry_run=True))
    assert (planned.files, planned.requests, planned.units, planned.batch_size) == (1, 3, 3, 2)
    assert planned.rows_per_hour is not None and 0 < planned.rows_per_hour < 1e6
    assert planned.output_gb is not None and 3 * 1e4 < planned.output_gb * 1e9 < 3 * 1e6
    assert story.contents() == before

    states: list[ProgressState] = []
    with caplog.at_level(logging.INFO):
        second = story.run(states.append, **again, batch_size=4)
    stands = "batch_size: got 4, but the plan in the output has 2, which stands"
    assert second.warnings.count(stands) == 1 and sum(stands in message for message in caplog.messages) == 1
    assert (second.exit_code, second.edited, second.rows, second.counts) == (
        *(3, 2, 11),
        {"ok": 10, "rejected": 1, "failed": 0, "quarantined": 0},
    )
    assert states[-1] == ProgressState(done=3, total=3, counts={"ok": 2, "rejected": 1})
    rows = story.rows()
    assert list(map(pixels, rows[:4])) == list(map(pixels, rows[6:10])) and rows[10]["status"] == "rejected"
    assert all(rows[number] == old[number] for number in (0, *range(2, 8), 9))
    after = story.parts()
    assert [after[name] == before[name] for name in sorted(after)] == [False, True, True, True, False, False]
    assert story.manifest("generation") == [2, 1, 1, 1, 2, 2]
    stored = load_plan(story.output)
    assert stored is not None and (stored.plan.generation, stored.plan.retry_statuses) == (2, ("rejected",))

    # A driver that was thought dead puts a part of the first generation back, after the end.
    name = f"data/{part_name('00000-000000000')}"
    put_atomic(story.output / name, before[name])


def _new_files_are_appended_and_move_nothing(story: Story) -> None:
    before = story.parts()
    new = [
        {**{name: row[name] for name in ("group", "score", *row)}, "group": "new", "score": 2.5} for row in story.records[2:5]
    ]
    new[0]["image"] = story.records[8]["image"]  # the same picture by its name
    story.put("a.parquet", new)  # before the other one by its name, and with its columns in another order
    extended = story.run(resume="extend")
    assert (extended.rows, extended.edited, extended.counts["ok"], extended.was_finished) == (14, 4, 13, False)
    after = story.parts()
    assert {name for name in before if after[name] != before[name]} == {f"data/{part_name('00000-000000000')}"}
    units = [*(f"00000-{number:09}" for number in range(0, 11, 2)), "00001-000000000", "00001-000000002"]
    assert story.manifest("unit") == units
    rows = story.rows()
    assert [(row["input_file"], row["id"], row["group"], row["score"]) for row in rows] == [
        *(("m.parquet", f"r{number}", "old", 1.5) for number in range(11)),
        *(("a.parquet", f"r{number}", "new", 2.5) for number in range(2, 5)),
    ]
    assert list(map(pixels, rows[:4])) == list(map(pixels, rows[6:10]))
    assert list(map(pixels, rows[11:13])) == list(map(pixels, rows[2:4]))  # the last is alone in its unit, in a smaller batch
    assert story.run().was_finished
    story.put("z.parquet", [{**row, "other": 1} for row in story.records[:2]])
    with pytest.raises(
        ConfigError, match="a run of other settings: column other int64, was missing; allowed: those it was begun"
    ):
        story.run(resume="extend")


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
