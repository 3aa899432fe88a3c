"""The picture sheet, the verdict of a run, the configuration's digest."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.cluster.place import auto_batch_size
from pipelines.cluster.session import own_error
from pipelines.edit.prepare import is_large
from pipelines.edit.sheet import CELL_PX, COLUMNS, HEADER_PX, draw_sheet
from pipelines.output.config import EditJobConfig
from pipelines.output.digest import OUTSIDE_DIGEST, config_digest
from pipelines.output.finish import judge
from vimaedit.config import Thresholds
from vimaedit.errors import ConfigError

JOB = EditJobConfig(input="in", output="out")


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        ({"ok": 95, "failed": 5}, 0),
        ({"ok": 94, "failed": 5, "quarantined": 1}, 3),
        ({"ok": 50, "rejected": 50}, 0),
        ({"ok": 49, "rejected": 51}, 3),
        ({}, 0),
    ],
)
def test_the_verdict_of_a_finished_run(counts: dict[str, int], code: int) -> None:
    found, reason = judge(JOB, counts)
    assert found == code and (reason is None) == (code == 0)


def test_the_verdict_says_why() -> None:
    assert judge(JOB, {"ok": 94, "failed": 5, "quarantined": 1})[1] == (
        "6 of 100 rows failed or were quarantined, more than max_failed_fraction=0.05"
    )
    assert judge(JOB, {"rejected": 3, "failed": 2})[1] == (
        "2 of 5 rows failed or were quarantined, more than max_failed_fraction=0.05; "
        "3 of 5 rows were rejected, more than max_rejected_fraction=0.5"
    )


def test_the_digest_covers_everything_but_placement_and_reporting() -> None:
    digest = config_digest(JOB)
    others = {
        "steps": 7,
        "thresholds": Thresholds(edit=0.25),
        "frame": "original",
        "image_format": "webp",
        "model": "m",
        "seed": 1,
    }
    for name, value in others.items():
        assert config_digest(dataclasses.replace(JOB, **{name: value})) != digest, name
    placement = {
        "actors": 3,
        "batch_size": 7,
        "threads": 5,
        "compile": True,
        "sheet": 9,
        "limit": 11,
        "resume": "never",
        "output": "else",
        "log_format": "json",
    }
    assert set(placement) <= OUTSIDE_DIGEST
    assert config_digest(dataclasses.replace(JOB, **placement)) == digest
    assert {field.name for field in dataclasses.fields(EditJobConfig)} >= OUTSIDE_DIGEST


def test_the_digest_covers_the_networks_of_metrics_that_ride_along() -> None:
    for option in ("scoring_clip", "dino", "lpips", "lpips_heads"):
        other = {option: "elsewhere"}
        assert config_digest(dataclasses.replace(JOB, **other)) == config_digest(JOB)
        riding = dataclasses.replace(JOB, metrics=["clip"])
        assert len({config_digest(job) for job in (JOB, riding, dataclasses.replace(riding, **other))}) == 3


def test_a_limit_makes_a_large_input_a_small_run() -> None:
    assert is_large(2000, None) and is_large(10**6, 2000)
    assert not is_large(1999, None) and not is_large(10**6, 7)


def test_batch_sizes_by_device_memory() -> None:
    assert [auto_batch_size(gib) for gib in (None, 7.0, 15.5, 39.0, 79.0)] == [4, 4, 8, 12, 16]


def test_larger_pictures_and_weights_leave_room_for_fewer() -> None:
    assert [auto_batch_size(79.0, canvas_px=side) for side in (128, 512, 768, 1024, 2048)] == [16, 16, 7, 4, 1]
    assert auto_batch_size(None, canvas_px=1024) == 1
    assert [auto_batch_size(22.0, weights_gib=gib) for gib in (2.0, 6.0, 11.5, 30.0)] == [8, 8, 8, 4]
    assert [auto_batch_size(15.5, weights_gib=gib) for gib in (6.0, 11.5)] == [8, 4]


def test_the_projects_own_error_is_found_among_its_causes() -> None:
    own = ConfigError("model: wrong")
    outer = RuntimeError("task")
    outer.__cause__ = own
    assert own_error(outer) is own
    assert own_error(RuntimeError("other")) is None


def coded(color: tuple[int, int, int], size: tuple[int, int]) -> dict[str, bytes | None]:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_the_sheet_shows_four_pictures_and_text_per_row() -> None:
    shown = {
        "edit_index": 0,
        "source_prompt": "a cat",
        "target_prompt": "a dog",
        "status": "ok",
        "error_message": None,
        "warnings": [],
    }
    good = {**shown, "id": "a", "image": coded((200, 0, 0), (61, 31)), "edited_image": coded((0, 0, 200), (61, 31))}
    good |= {"edit_mask": coded((255, 255, 255), (61, 31)), "critical_mask": None}
    bad = {
        **shown,
        "id": "b",
        "status": "rejected",
        "error_message": "image: got null; " * 17,
        **{name: None for name, _ in COLUMNS},
    }
    drawn, count = draw_sheet([good, bad])
    assert count == 2
    sheet = np.asarray(drawn)
    middle = HEADER_PX + CELL_PX // 2
    left = [8 + column * (CELL_PX + 8) + CELL_PX // 2 for column in range(4)]
    assert [tuple(sheet[middle, x]) for x in (left[0], left[1], left[3])] == [(200, 0, 0), (255, 255, 255), (0, 0, 200)]
    assert tuple(sheet[HEADER_PX + 5, left[2]]) == (228, 228, 228)  # no critical mask
    assert tuple(sheet[HEADER_PX + 5, left[0]]) == (228, 228, 228)  # beside a wide picture
    text = sheet[HEADER_PX + CELL_PX + 8 : HEADER_PX + CELL_PX + 8 + 3 * 20, :400]
    assert (text < 100).any()
    assert sheet.shape[0] > 2 * (CELL_PX + 3 * 20) + HEADER_PX + 20  # the long message takes lines of its own


def test_a_sheet_is_bounded_in_texts_and_height() -> None:
    empty = {name: None for name, _ in COLUMNS}
    long = {"id": "x" * 100_000, "edit_index": 0, "source_prompt": "a " * 50_000, "target_prompt": None, "status": "rejected"}
    long |= {"error_message": "y" * 100_000, "warnings": ["z" * 100_000] * 100}
    first, count = draw_sheet([{**empty, **long}])
    assert count == 1 and first.height < 1500
    taken = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(1000):
            taken.append(number)
            yield {**empty, **long}

    sheet, count = draw_sheet(rows(), max_height=3 * first.height)
    assert count == 3 and sheet.height <= 3 * first.height
    assert len(taken) == 4  # no row is read that has no room
