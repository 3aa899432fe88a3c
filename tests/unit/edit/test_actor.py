from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from pipelines.edit.actor import edit_batch, unit_batches
from pipelines.output.plan import Unit
from pipelines.records.row import Row
from tests.contexts import make_picture, make_row, with_picture
from vimaedit.types import EditRequest, EditResult, Status


def unit(count: int) -> Unit:
    return Unit(file=0, start=0, first_row=0, first_edit=0, count=count, take=count)


def row(name: str, shape: tuple[int, int] | None = (7, 5), status: Status | None = None) -> Row:
    made = make_row(name)
    if shape is not None:
        made = with_picture(made, make_picture(shape))
    if status is not None:
        made.stop(status, "decode", "kind", "text")
    return made


def names(slots: Sequence[Row | None]) -> list[str | None]:
    return [None if entry is None else entry.id for entry in slots]


def cut(
    rows: list[Row], count: int, batch_size: int, keep_shape: bool = False
) -> list[tuple[list[str | None], list[str | None]]]:
    batches = unit_batches(unit(count), rows, batch_size, keep_shape=keep_shape)
    return [(names(batch.slots), names(batch.rows)) for batch in batches]


def test_rejected_requests_leave_holes_move_nobody_and_finish_in_their_place() -> None:
    rows = [row(name) for name in "abcdefg"]
    for place in (1, 6):
        rows[place].stop(Status.REJECTED, "decode", "kind", "text")
    assert cut(rows, 7, 4) == [(["a", None, "c", "d"], ["a", "b", "c", "d"]), (["e", "f", None, None], ["e", "f", "g"])]


def test_a_batch_without_anything_to_edit_has_holes_only() -> None:
    rows = [row("a"), row("b"), row("c", None, Status.REJECTED)]
    assert cut(rows, 3, 2) == [(["a", "b"], ["a", "b"]), ([None], ["c"])]


def test_a_limit_changes_neither_slots_nor_shape() -> None:
    rows = [row(name) for name in "abcde"]
    assert cut(rows, 7, 4) == [(["a", "b", "c", "d"], ["a", "b", "c", "d"]), (["e", None, None, None], ["e"])]


def test_canvas_shapes_are_grouped_in_input_order_and_each_group_padded() -> None:
    wide, tall = (5, 7), (7, 5)
    rows = [row("a", wide), row("b", tall), row("c", wide), row("d", None, Status.REJECTED), row("e", wide), row("f", tall)]
    rows.append(row("g", None, Status.FAILED))
    rows[2].stop(Status.REJECTED, "decode", "kind", "text")
    assert cut(rows, 7, 4, keep_shape=True) == [
        (["a", None, "e", None], ["a", "c", "d", "e"]),
        (["b", "f"], ["b", "f"]),
        ([], ["g"]),
    ]


class Inverter:
    """An editor that inverts pictures and raises where it meets a name it was told of; remembers what it was given."""

    def __init__(self, *poison: str) -> None:
        self.poison = set(poison)
        self.calls: list[list[str | None]] = []

    def __call__(self, requests: Sequence[EditRequest | None]) -> list[EditResult | None]:
        self.calls.append([None if request is None else request.id for request in requests])
        if self.poison & set(self.calls[-1]):
            raise FloatingPointError("latents overflowed")
        return [
            None if request is None else EditResult(id=request.id, status=Status.OK, image=255 - request.image, seconds=0.5)
            for request in requests
        ]


def test_a_batch_is_edited_at_once() -> None:
    editor, rows = Inverter(), [row("a"), None, row("c")]
    edit_batch(editor, rows)
    assert editor.calls == [["a", None, "c"]]
    assert rows[0] is not None and rows[0].result is not None and (rows[0].result.image == 244).all()
    assert [(entry.status, entry.attempts, entry.result.seconds) for entry in rows if entry] == [(Status.OK, 1, 0.5)] * 2


def test_an_exception_fails_its_own_row_only_each_rerun_in_its_slot() -> None:
    editor, rows = Inverter("b"), [row("a"), row("b"), None, row("d")]
    edit_batch(editor, rows)
    assert editor.calls == [["a", "b", None, "d"], ["a", None, None, None], [None, "b", None, None], [None, None, None, "d"]]
    a, b, _, d = rows
    assert a is not None and b is not None and d is not None
    assert (a.status, d.status, a.attempts, d.attempts) == (Status.OK, Status.OK, 2, 2)
    assert (b.status, b.attempts, b.result.error_stage, b.result.error_type) == (Status.FAILED, 2, "edit", "FloatingPointError")
    assert b.result.message == "record 'b': FloatingPointError: latents overflowed"


def test_an_editor_that_gives_nothing_for_a_request_fails_the_row() -> None:
    def silent(requests: Sequence[EditRequest | None]) -> list[EditResult | None]:
        return [None for _ in requests]

    rows = [row("a")]
    edit_batch(silent, list(rows))
    assert (rows[0].status, rows[0].result.message) == (
        Status.FAILED,
        "record 'a': RuntimeError: the editor gave no result for a request",
    )


class Small:
    """An editor with memory for so many slots; remembers what it was given."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error
        self.calls: list[list[str | None]] = []

    def __call__(self, requests: Sequence[EditRequest | None]) -> list[EditResult | None]:
        self.calls.append([None if request is None else request.id for request in requests])
        if len(requests) > self.most:
            raise self.error
        return [None if each is None else EditResult(id=each.id, status=Status.OK, image=255 - each.image) for each in requests]


NO_CPU_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried 7 bytes"
)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), NO_CPU_MEMORY])
def test_without_memory_a_batch_is_halved_and_its_rows_say_so(error: Exception) -> None:
    editor, rows = Small(2, error), [row("a"), row("b"), None, None, row("e"), None]
    edit_batch(editor, list(rows))
    assert editor.calls == [
        ["a", "b", None, None, "e", None],
        ["a", "b", None, None],
        ["a", "b"],
        ["e", None, None, None],
        ["e", None],
    ]
    warning = "reduced_batch: edited in a batch of 2 for want of memory; pixels differ by rounding"
    for entry in (rows[0], rows[1], rows[4]):
        assert entry is not None and (entry.status, entry.attempts, entry.warnings) == (Status.OK, 3, [warning])


def test_without_memory_for_one_edit_its_row_fails() -> None:
    editor, rows = Small(0, MemoryError("cannot hold 7 GiB")), [row("a"), row("b")]
    edit_batch(editor, list(rows))
    assert editor.calls == [["a", "b"], ["a"], ["b"]]
    for entry in rows:
        assert (entry.status, entry.result.error_stage, entry.result.error_type, entry.attempts) == (
            Status.FAILED,
            "edit",
            "MemoryError",
            2,
        )
        assert entry.result.message == (
            f"record '{entry.id}': MemoryError: cannot hold 7 GiB; no memory for this edit alone: "
            "try a smaller canvas.size, dtype=float16 or a larger device"
        )


def test_an_exception_in_a_smaller_batch_fails_its_own_row_only() -> None:
    class Both(Small):
        def __call__(self, requests: Sequence[EditRequest | None]) -> list[EditResult | None]:
            results = super().__call__(requests)
            if "b" in self.calls[-1]:
                raise FloatingPointError("latents overflowed")
            return results

    editor, rows = Both(2, MemoryError()), [row("a"), row("b"), row("c"), row("d")]
    edit_batch(editor, list(rows))
    assert editor.calls[1:] == [["a", "b"], ["a", None], [None, "b"], ["c", "d"]]
    assert [entry.status for entry in rows] == [Status.OK, Status.FAILED, Status.OK, Status.OK]
    assert [len(entry.warnings) for entry in rows] == [1, 0, 1, 1]
