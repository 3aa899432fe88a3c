"""Generated bad records through planning, reading, decoding, editing and coding, and broken files through planning and reading.

A new seed every run, printed; VIMAEDIT_FUZZ_SEED=N repeats one. `make fuzz` makes more than 5000 records.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.store import location as storage
from tests.fuzz.classes import CLASSES
from tests.fuzz.files import FILE_CLASSES
from tests.fuzz.process import OPTIONS, Tally, read_files, run_group
from tests.fuzz.servers import serving
from tests.fuzz.verdicts import Verdict, complaints
from tests.fuzz.world import World, build_world, fuzz_seed

SHARE, PER_CLASS = 4, 70  # records of a class: of the share in every test run, and of `make fuzz`
FILE_SHARE, FILES_PER_CLASS = 1, 8
ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "MY_PASSWORD")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Lay out a world with a new seed; nothing may have asked the forbidden server at its end."""
    world = build_world(tmp_path, fuzz_seed())
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, world.secret)
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    with serving(world) as asked:
        yield world
    assert asked == []


def run_all(world: World, per_class: int, caplog: pytest.LogCaptureFixture) -> Tally:
    tally = Tally()
    with caplog.at_level(logging.DEBUG):
        for group in OPTIONS:
            classes = [each for each in CLASSES.values() if each.group == group]
            run_group(world, group, classes, per_class, tally)
    assert not tally.complaints, "\n".join([f"seed {world.seed}", *tally.complaints[:40]])
    leaks = [text for text in [*tally.texts, caplog.text] if world.secret in text]
    assert not leaks, f"seed {world.seed}: {leaks[0][:2000]}"
    assert set(tally.statuses) == set(CLASSES)
    return tally


def test_a_share_of_bad_records_gives_the_rows_that_their_classes_say(world: World, caplog: pytest.LogCaptureFixture) -> None:
    assert len(CLASSES) >= 40
    assert run_all(world, SHARE, caplog).num_rows >= 300


@pytest.mark.fuzz
@pytest.mark.timeout(3000)
def test_thousands_of_bad_records_give_the_rows_that_their_classes_say(world: World, caplog: pytest.LogCaptureFixture) -> None:
    tally = run_all(world, PER_CLASS, caplog)
    statuses = sum(tally.statuses.values(), Counter())
    print(f"{len(CLASSES)} classes, {tally.num_rows} rows: {dict(statuses)}")
    assert tally.num_rows >= 5000


@pytest.mark.parametrize(
    "share", [FILE_SHARE, pytest.param(FILES_PER_CLASS, marks=[pytest.mark.fuzz, pytest.mark.timeout(3000)])]
)
def test_broken_files_cost_their_own_rows_only(world: World, share: int) -> None:
    assert share < FILES_PER_CLASS or share * len(FILE_CLASSES) >= 200
    found = read_files(world, share)
    assert not found, "\n".join([f"seed {world.seed}", *found[:40]])


def test_the_checks_can_fail() -> None:
    """A row of every wrong kind is complained of: the judge of all others is no yes-man."""
    verdict = Verdict(statuses=frozenset({"rejected"}), stages=frozenset({"decode"}), fields=frozenset({"image"}))
    message = "record 'a': image: got 3 bytes; allowed: a picture"
    empty = dict.fromkeys(("edited_image", "edit_mask", "critical_mask", "metrics"))
    row = {**empty, "status": "rejected", "error_message": message, "error_type": "kind", "error_stage": "decode"}
    assert complaints(row, verdict) == []
    for changes, text in [
        ({"status": "failed"}, "status failed"),
        ({"status": "ok", "edited_image": {}}, "status ok"),
        ({"edited_image": {}}, "with one of"),
        ({"error_message": None}, "without message"),
        ({"error_stage": None}, "without message, type or stage"),
        ({"error_message": "record 'a': image is bad"}, "without record, field, got or allowed"),
        ({"error_message": message.replace("image", "seed")}, "field seed"),
        ({"error_stage": "edit"}, "stage edit"),
        ({"error_message": message.replace("3", "3" * 6000)}, "a message of"),
    ]:
        assert text in " ".join(complaints({**row, **changes}, verdict))
