"""What planning and finishing ten million rows takes of the driver: footers made up, everything else as it is."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.output.config import EditJobConfig
from pipelines.output.finish import count_statuses, write_manifest
from pipelines.output.parts import part_bytes, part_name, read_parts
from pipelines.output.plan import StoredPlan, Unit, count_requests, load_plan, make_plan, store_plan
from pipelines.output.resume import find_work, raise_generation
from pipelines.records.scan import InputFile, InputSet
from pipelines.records.schema import map_columns, output_schema
from pipelines.store.location import locate
from tests.contexts import make_context
from vimaedit.models.files import ModelFacts

FILES, ROWS = 1000, 10_000  # of each file
UNIT_REQUESTS = 128  # as for pictures of 512 px
UNIT_NAME = "@@@@@-@@@@@@@@@"


def make_inputs(folder: Path) -> InputSet:
    """Make up an input of which every tenth file has lists of one to three targets."""
    random = np.random.default_rng(0)
    paths = [f"part-{number:05d}.parquet" for number in range(FILES)]
    lists = set(paths[::10])
    texts = ("source_prompt", "target_prompt", "category")
    schema = pa.schema([("image", pa.binary()), *((name, pa.string()) for name in texts)])
    return InputSet(
        inputs=str(folder / "in"),
        root=str(folder / "in"),
        roots=(str(folder / "in"),),
        files=tuple(
            InputFile(path=path, size=10**9, rows=ROWS, footer_digest="f" * 32, target_is_list=path in lists) for path in paths
        ),
        schema=schema,
        columns=map_columns(schema.names, {}),
        column_bytes={"image": FILES * ROWS * 150_000},
        counts={path: random.integers(1, 4, ROWS, dtype=np.uint8) for path in paths if path in lists},
        largest_rows=dict.fromkeys(paths, 150_000.0),
        warnings=(),
    )


def write_parts(folder: Path, stored: StoredPlan) -> None:
    """Write a part for every unit: real footers over rows that hold nothing."""
    facts = ModelFacts(name="tiny", family="sd1", canvas_size=16, granularity=8, clip_side=7, warning=None)
    job = EditJobConfig(input="in", output=str(folder / "out"))
    context = make_context(job, facts, schema=stored.schema, plan_digest=stored.plan.digest)
    (folder / "out" / "data").mkdir()
    made: dict[int, bytes] = {}

    def part(unit: Unit) -> bytes:
        if unit.count not in made:
            statuses = [{"status": "ok" if number % 7 else "failed"} for number in range(unit.count)]
            made[unit.count] = part_bytes(context, UNIT_NAME, pa.Table.from_pylist(statuses, stored.schema))
        return made[unit.count].replace(UNIT_NAME.encode(), unit.id.encode())

    for unit in stored.plan.units:
        (folder / "out" / "data" / part_name(unit.id)).write_bytes(part(unit))


def measure(folder: Path) -> None:
    """Plan, store, load, count, plan a retry; print what it took. Seconds of the processor, without those of making things up."""
    (folder / "in").mkdir()
    inputs, output = make_inputs(folder), locate(str(folder / "out"))
    started = time.process_time()
    requests = count_requests(inputs)
    plan = make_plan(inputs, batch_size=16, requests_per_unit=UNIT_REQUESTS, settled={"requests_per_unit": UNIT_REQUESTS})
    store_plan(output, StoredPlan(plan=plan, files=inputs.files, schema=output_schema(inputs.schema, inputs.columns)), inputs)
    stored = load_plan(output)
    seconds = time.process_time() - started
    assert stored is not None and stored.plan == plan
    write_parts(folder, stored)
    started = time.process_time()
    parts = read_parts(output, (unit.id for unit in stored.plan.units), stored.plan.digest)
    work = find_work(stored.plan, parts, None)
    counts = count_statuses(work.done_parts())
    write_manifest(output, work.done_parts())
    raised = raise_generation(stored.plan, work, ["failed"])
    seconds += time.process_time() - started
    facts = {"requests": requests, "counted": sum(counts.values()), "units": len(work.units), "todo": len(work.todo)}
    facts |= {"to_retry": sum(find_work(raised, parts, None).rows_to_do(raised).values()), "failed": counts["failed"]}
    facts |= {"seconds": seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    print(json.dumps(facts))


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_ten_million_rows_are_planned_and_counted_in_a_gigabyte_and_two_minutes(repository: Path, tmp_path: Path) -> None:
    measured = "from tests.pipeline.output.test_resume_memory import measure; measure(Path(sys.argv[1]))"
    code = f"import sys; from pathlib import Path; {measured}"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["requests"] == facts["counted"] > FILES * ROWS and facts["todo"] == 0
    assert facts["to_retry"] == facts["failed"] > 0
    assert facts["mib"] < 1024 and facts["seconds"] < 120, facts
