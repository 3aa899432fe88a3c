"""Time an editing run from start to end: `python -m tests.timing.pipeline_run '{"rows": 96, ...}'` prints one line of JSON.

A process of its own, as `python -m jobs.edit` is one: what starting takes is part of what is measured.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import logging
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.edit.actor import EditActor
from pipelines.edit.begin import begin
from pipelines.edit.edit import run_edit
from pipelines.edit.prepare import prepare
from pipelines.edit.read import read_unit
from pipelines.output import plan
from pipelines.output.config import EditJobConfig
from tests.timing.pictures import grainy_picture
from tests.timing.process import MemorySample, memory_sample
from tests.timing.traced import SleepingEditor, Trace, TracedEditor, read_trace
from vimaedit.config import Canvas
from vimaedit.images import encode_image
from vimaedit.types import Editor

PICTURES = 16  # different ones in the input, in turn
MEMORY_UNIT_ROWS = (
    100  # at most, where memory is watched: what is held for a unit is given back a hundred times, what leaks is not
)
SAMPLE_S = 1.0
# Until this program is imported, Ray runs, the plan is stored, the first actor is ready, has its first batch, the last batch is done,
# its rows are written, and the run says so.
PHASES = ("imports", "ray", "plan", "actor", "wait", "edit", "write", "finish")


@dataclass(frozen=True, kw_only=True)
class TimingSettings:
    """One run of `rows` records. `seconds`: what a sleeping editor takes for a batch; None: the model edits, in `steps` steps.

    `launched`: when the process was started, seconds since the epoch. `loop`: call the same actor in a plain loop afterwards. `memory`: look at the processes' memory meanwhile.
    """

    rows: int
    batch: int
    actors: int
    size: int | None
    image_format: str
    model: str
    steps: int
    seconds: float | None
    launched: float
    loop: bool
    memory: bool


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one run took. `steady_rows_s`: the rate while all actors were at work, from the last one's first batch to the first
    one's last; `whole_rows_s`: from the first batch to the last written row; `loop_rows_s`: of the plain loop.

    `phases`: seconds, in order, see `PHASES`. `gap_s`: the median time that an actor had nothing to do between two batches.
    """

    whole_rows_s: float
    steady_rows_s: float | None
    loop_rows_s: float | None
    gap_s: float | None
    phases: dict[str, float]
    memory: list[MemorySample]


def make_traced(job: EditJobConfig, *, folder: Path, seconds: float | None) -> Editor:
    """Make the editor of an actor: the job's own or a sleeping one, traced."""
    from vimaedit.engine.load import load_editor

    return TracedEditor(load_editor(job, job) if seconds is None else SleepingEditor(seconds), folder)


def write_input(folder: Path, rows: int, size: int, file_rows: int) -> None:
    """Write records with JPEG pictures as hard to decode as photographs, in files of `file_rows`."""
    folder.mkdir()
    pictures = [encode_image(grainy_picture(number, size), "jpeg") for number in range(min(rows, PICTURES))]
    for first in range(0, rows, file_rows):
        numbers = range(first, min(first + file_rows, rows))
        table = pa.table(
            {
                "image": pa.array([pictures[row % len(pictures)] for row in numbers], pa.binary()),
                "source_prompt": pa.array(["a red circle on a white background"] * len(numbers)),
                "target_prompt": pa.array(["a red star on a white background"] * len(numbers)),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        (folder / f"{first // file_rows:05d}.parquet").write_bytes(buffer.getvalue())


def time_run(settings: TimingSettings, folder: Path) -> Timing:
    """Run, and take the times from what the editors noted and when files were written."""
    imported = time.time()
    trace_folder, output = folder / "trace", folder / "out"
    trace_folder.mkdir()
    file_rows = MEMORY_UNIT_ROWS if settings.memory else settings.rows
    write_input(folder / "records", settings.rows, settings.size or 128, file_rows)
    began = time.time()
    job = EditJobConfig(
        input=str(folder / "records"),
        output=str(output),
        model=settings.model,
        steps=settings.steps,
        canvas=Canvas(size=settings.size),
        image_format=settings.image_format,
        actors=settings.actors,
        batch_size=settings.batch,
        threads=1,
        ray_address="local",
    )
    maker = functools.partial(make_traced, folder=trace_folder, seconds=settings.seconds)
    connected = began

    def on_started() -> None:
        from ray.data import DataContext

        nonlocal connected
        connected = time.time()
        DataContext.get_current().enable_progress_bars = False

    if settings.memory:
        plan.UNITS_PER_ACTOR = max(1, settings.rows // (MEMORY_UNIT_ROWS * settings.actors))
    with _sampling(trace_folder) if settings.memory else _nothing() as samples:
        summary = run_edit(job, on_started=on_started, make_editor=maker)
        finished = time.time()
    if summary.exit_code or summary.rows != settings.rows:
        raise RuntimeError(f"the run ended with exit code {summary.exit_code} and {summary.counts}")
    trace = read_trace(trace_folder)
    first, last = min(call.began for call in trace.calls), max(call.ended for call in trace.calls)
    written = max(part.stat().st_mtime for part in (output / "data").glob("*.parquet"))
    planned, ready = (output / "plan" / "plan.json").stat().st_mtime, min(trace.ready.values())
    marks = [settings.launched + began - imported, began, connected, planned, ready, first, last, written, finished]
    return Timing(
        whole_rows_s=settings.rows / (written - first),
        steady_rows_s=steady_rate(trace),
        loop_rows_s=_loop_rate(job, maker) if settings.loop else None,
        gap_s=median_gap(trace),
        phases={name: end - start for name, start, end in zip(PHASES, marks, marks[1:], strict=False)},
        memory=samples,
    )


def steady_rate(trace: Trace) -> float | None:
    """Return the edits per second of all processes together while every one of them was at work; None where that never was."""
    processes = {call.process for call in trace.calls}
    own = {process: [call for call in trace.calls if call.process == process] for process in processes}
    start = max(calls[0].began for calls in own.values())
    end = min(calls[-1].ended for calls in own.values())
    if end <= start:
        return None
    done = 0.0
    for call in trace.calls:
        within = min(call.ended, end) - max(call.began, start)
        done += call.edits * max(0.0, within) / (call.ended - call.began)
    return done / (end - start)


def median_gap(trace: Trace) -> float | None:
    """Return the median seconds between two calls of a process; None where no process was called twice."""
    gaps = []
    for process in trace.ready:
        own = [call for call in trace.calls if call.process == process]
        gaps += [after.began - before.ended for before, after in itertools.pairwise(own)]
    return statistics.median(gaps) if gaps else None


def _loop_rate(job: EditJobConfig, maker: Any) -> float:
    """Return the rate of the very actor in a loop of this process, over units that are read already."""
    prepared = prepare(begin(job), None, measure_always=False, make_editor=maker)
    actor = EditActor(prepared.context)
    units = prepared.stored.plan.units[:: job.actors if isinstance(job.actors, int) else 1]  # one actor's share
    read = [read_unit(prepared.context, unit.files_of(prepared.inputs.files), unit) for unit in units]
    started = time.perf_counter()
    for each in read:
        actor.edit_rows(each.unit, each.rows)
    return sum(len(each.rows) for each in read) / (time.perf_counter() - started)


@contextmanager
def _nothing() -> Iterator[list[MemorySample]]:
    yield []


@contextmanager
def _sampling(trace_folder: Path) -> Iterator[list[MemorySample]]:
    """Look at the memory of this process and its workers about once a second, from a thread."""
    samples: list[MemorySample] = []
    finished = threading.Event()

    def look() -> None:
        while not finished.wait(SAMPLE_S):
            trace = read_trace(trace_folder)
            samples.append(memory_sample(sum(call.edits for call in trace.calls), trace.ready.keys()))

    thread = threading.Thread(target=look, name="memory", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        finished.set()
        thread.join()


def main(words: Sequence[str]) -> None:
    """Time the run that a line of JSON describes."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    with TemporaryDirectory() as folder:
        timing = time_run(TimingSettings(**json.loads(words[0])), Path(folder))
    print(json.dumps(dataclasses.asdict(timing)))


if __name__ == "__main__":
    # By its name: what an actor is handed must be found in the module, not in `__main__`.
    from tests.timing import pipeline_run

    pipeline_run.main(sys.argv[1:])
