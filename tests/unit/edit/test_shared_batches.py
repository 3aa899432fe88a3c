"""Batches of edits that share a source: the edits of one record stand together, whatever their number."""

import pytest

from pipelines.cluster.place import auto_batch_size
from pipelines.edit.actor import unit_batches
from pipelines.output.config import EditJobConfig
from pipelines.output.plan import Unit
from pipelines.records.row import Row
from tests.contexts import make_picture, make_row
from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError
from vimaedit.types import Status


def rows_of(*counts: int) -> list[Row]:
    """Return rows of records with so many targets each."""
    return [
        make_row(f"{record}-{edit}", edit_index=edit, input_row=record)
        for record, count in enumerate(counts)
        for edit in range(count)
    ]


def slots_of(rows: list[Row], batch_size: int, *, keep_shape: bool = False) -> list[list[str | None]]:
    unit = Unit(file=0, start=0, first_row=0, first_edit=0, count=len(rows), take=len(rows))
    batches = list(unit_batches(unit, rows, batch_size, keep_shape=keep_shape, targets_per_source=2))
    assert [row for batch in batches for row in batch.rows] == (
        rows if not keep_shape else [r for b in batches for r in b.rows]
    )
    return [[None if row is None else row.id for row in batch.slots] for batch in batches]


def test_a_record_begins_with_a_group_of_its_own() -> None:
    assert slots_of(rows_of(2, 3, 1), 4) == [["0-0", "0-1", "1-0", "1-1"], ["1-2", None, "2-0", None]]
    assert slots_of(rows_of(1), 4) == [["0-0", None]]


def test_rows_of_one_number_in_two_files_are_two_records() -> None:
    rows = [*rows_of(1), *rows_of(1)]
    rows[1].input_file = "b"
    assert slots_of(rows, 4) == [["0-0", None, "0-0", None]]


def test_a_rejected_edit_leaves_a_hole_in_its_group() -> None:
    rows = rows_of(2, 2)
    rows[1].stop(Status.REJECTED, "prepare", "kind", "text")
    assert slots_of(rows, 4) == [["0-0", None, "1-0", "1-1"]]


def test_groups_are_formed_within_each_shape() -> None:
    rows = rows_of(1, 2, 1)
    for row, size in zip(rows, (8, 16, 16, 8), strict=True):
        row.picture = make_picture((size, 8))
    assert slots_of(rows, 4, keep_shape=True) == [["0-0", None, "2-0", None], ["1-0", "1-1"]]


def test_batches_hold_whole_groups() -> None:
    assert auto_batch_size(None, 8) == 8 and auto_batch_size(40.0, 8) == 16 and auto_batch_size(40.0) == 12
    with pytest.raises(ConfigError) as refused:
        EditJobConfig(input="a", output="b", batch_size=6, targets_per_source=4)
    assert str(refused.value) == "batch_size: got 6 with targets_per_source=4; allowed: a multiple of it, or auto"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets_per_source": 3}, "targets_per_source: got 3; allowed: 1, 2, 4, ... 64"),
        (
            {"targets_per_source": 2, "method": "p2p", "grounding": "local-blend"},
            "targets_per_source: got 2 with method=p2p; allowed: 1, or vimaedit, locatedit, virtual-p2p",
        ),
        (
            {"source_variance": False, "method": "masactrl", "grounding": "local-blend"},
            "source_variance: got false with method=masactrl; allowed: true, or vimaedit, locatedit",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        EditConfig(**options)
    assert str(refused.value) == message
