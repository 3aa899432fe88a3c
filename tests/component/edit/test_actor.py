"""The editing actor on the built-in random model: what it reports, in which order, and when it ends a run."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from pipelines.cluster.counter import ProgressCounter
from pipelines.cluster.losses import Outcome
from pipelines.edit.actor import EditActor, StoppedEarly
from pipelines.output.config import EditJobConfig
from pipelines.output.plan import Unit
from pipelines.records.row import Row
from tests.contexts import make_context, make_picture, make_row, with_picture
from vimaedit.models.files import model_facts, resolve_model
from vimaedit.types import EditRequest, EditResult, Status

ROWS = 61  # of a unit
ACTORS = 64


@pytest.fixture(scope="module")
def actor() -> EditActor:
    facts = model_facts(resolve_model(EditJobConfig(input="in", output="out"), image_guidance=True))
    job = EditJobConfig(input="in", output="out", steps=1, device="cpu", dtype="float32")
    context = make_context(job, facts, batch_size=3)
    return EditActor(context)


def unit_of(number: int) -> Unit:
    return Unit(file=0, start=number * ROWS, first_row=number * ROWS, first_edit=0, count=ROWS, take=ROWS)


def rows_of(actor: EditActor, stopped: Mapping[int, Status]) -> list[Row]:
    """Return a unit's rows, of which some were stopped while reading."""
    size, clip_side = actor.context.facts.canvas_size, actor.context.facts.clip_side
    rows = []
    for position in range(ROWS):
        row = make_row(str(position), input_row=position, source_prompt="a cat", target_prompt="a dog")
        if position in stopped:
            row.stop(stopped[position], "fetch", "kind", "text")
        else:
            view = np.full((clip_side, clip_side, 3), position, np.uint8)
            with_picture(row, make_picture((size, size), position), clip_image=view)
        rows.append(row)
    return rows


def reports_of(actor: EditActor, unit: Unit, rows: list[Row]) -> list[tuple[int, list[Outcome]]]:
    reports: list[tuple[int, list[Outcome]]] = []

    def report(unit_id: str, start: int, outcomes: Sequence[Outcome]) -> str | None:
        assert unit_id == unit.id
        reports.append((start, list(outcomes)))
        return None

    actor.report = report
    actor.edit_rows(unit, rows)
    return reports


def test_stopped_rows_are_reported_in_their_place_among_the_others(actor: EditActor) -> None:
    stopped = {position: Status.REJECTED for position in range(ROWS)}
    stopped[5] = Status.FAILED
    del stopped[3], stopped[37]
    rows = rows_of(actor, stopped)
    reports = reports_of(actor, unit_of(0), rows)
    assert [row.id for row in rows if row.status == Status.OK] == ["3", "37"]
    assert [start for start, _ in reports] == list(range(0, ROWS, 3))
    statuses = [status for _, batch in reports for status, _, _ in batch]
    assert [(place, status) for place, status in enumerate(statuses) if status != "rejected"] == [
        (3, "ok"),
        (5, "failed"),
        (37, "ok"),
    ]


def invert(requests: Sequence[EditRequest | None]) -> list[EditResult | None]:
    return [None if each is None else EditResult(id=each.id, status=Status.OK, image=255 - each.image) for each in requests]


@pytest.mark.parametrize("bad", [Status.REJECTED, Status.FAILED])
def test_many_actors_that_start_at_once_end_no_healthy_run(
    actor: EditActor, monkeypatch: pytest.MonkeyPatch, bad: Status
) -> None:
    """One row of five is bad and every fourth unit whole; what has nothing to edit takes no time, everything else one second."""
    monkeypatch.setattr(actor, "editor", invert)
    units = [unit_of(number) for number in range(4 * ACTORS)]
    reports = []
    for number, unit in enumerate(units):
        stopped = {position: bad for position in range(ROWS) if number % 4 == 1 or position % 5 == 2}
        reports.append(reports_of(actor, unit, rows_of(actor, stopped)))
    counter = ProgressCounter({unit.id: ROWS for unit in units}, stop_failed_fraction=0.5)
    waiting = iter(range(len(units)))
    work = [(0.0, next(waiting), 0) for _ in range(ACTORS)]  # when, which unit, which of its reports
    while work:
        now, number, index = heapq.heappop(work)
        if index == len(reports[number]):
            following = next(waiting, None)
            if following is not None:
                heapq.heappush(work, (now, following, 0))
            continue
        start, statuses = reports[number][index]
        assert counter.add(units[number].id, start, statuses) is None
        following_costs = index + 1 < len(reports[number]) and "ok" in reports[number][index + 1][1]
        heapq.heappush(work, (now + following_costs, number, index + 1))
    assert counter.state().done == counter.total


def test_a_hopeless_run_ends(actor: EditActor) -> None:
    units = [unit_of(number) for number in range(5)]
    counter = ProgressCounter({unit.id: ROWS for unit in units}, stop_failed_fraction=0.5)
    actor.report = counter.add
    with pytest.raises(StoppedEarly, match="^the first 200 rows were all rejected$"):
        for unit in units:
            actor.edit_rows(unit, rows_of(actor, dict.fromkeys(range(ROWS), Status.REJECTED)))
    assert counter.state().done == 201  # the batch in which it was seen
