from __future__ import annotations

import math
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from pipelines.records.parse import has_blends_per_target, parse_record
from pipelines.records.pictures import RecordPicture, decode_picture, find_picture
from pipelines.records.row import Row
from pipelines.records.values import read_record
from tests.contexts import make_picture, make_rules
from vimaedit.images import FittedPicture
from vimaedit.seeds import derive_seed
from vimaedit.types import BlendPhrase, Status

GOOD = {"image": b"png", "source_prompt": "a cat", "target_prompt": "a dog", "id": "r7"}


FITTED = make_picture((16, 16))
PICTURE = FittedPicture(fitted=FITTED, clip_image=np.zeros((7, 7, 3), np.uint8), mask=np.ones((16, 16), bool))


def rows_of(record: dict[str, Any], blends_per_target: bool, count: int = 1, first_edit: int = 0) -> list[Row]:
    """Parse a record, whose picture is known where it has one."""
    rules, source = make_rules(), find_picture(record)
    picture = RecordPicture(path="p", fitted=PICTURE) if isinstance(source, bytes) else decode_picture(rules, record, source)
    place = {"input_file": "in/a.parquet", "input_row": 13, "first_edit": first_edit, "count": count}
    return parse_record(rules, record, picture, blends_per_target=blends_per_target, **place)


def parse(count: int = 1, first_edit: int = 0, **changes: Any) -> list[Row]:
    per_target = has_blends_per_target(pa.array([changes.get("blend_words")]).type)
    return rows_of({**GOOD, **changes}, per_target, count, first_edit)


def test_a_good_record_becomes_one_request() -> None:
    (row,) = parse(seed=5)
    assert row.status is None and row.result is None and (row.picture, row.image_path) == (FITTED, "p")
    assert (row.id, row.edit_index, row.input_file, row.input_row, row.seed) == ("r7", 0, "in/a.parquet", 13, 5)
    request = row.request
    assert request.image is FITTED.image and request.clip_image is PICTURE.clip_image and request.given_mask is PICTURE.mask
    assert (request.id, request.source_prompt, request.target_prompt, request.blend) == ("r7", "a cat", "a dog", ())
    assert request.seed == 5 and (row.source_prompt, row.target_prompt) == ("a cat", "a dog")


def test_without_a_good_seed_it_follows_from_run_and_label() -> None:
    derived = derive_seed(make_rules().seed, "r7")
    assert [row.seed for seed in (None, -1) for row in parse(seed=seed)] == [derived] * 2
    assert parse()[0].request.seed == derived and parse(id=1.5)[0].seed == derive_seed(make_rules().seed, "in/a.parquet#13")
    assert parse(target_prompt="", seed=5)[0].seed == 5


IDENTITY = UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (None, "in/a.parquet#13"),
        (17, "17"),
        ("x", "x"),
        ("", ""),
        (IDENTITY, "12345678-1234-5678-1234-567812345678"),
        (7.0, "7"),
        (-0.0, "0"),
        (2.0**70, str(2**70)),
        (np.float16(7), "7"),
        (Decimal("7.00"), "7"),
        (Decimal("1E+3"), "1000"),
    ],
)
def test_the_id_is_a_label(given: Any, label: str) -> None:
    assert parse(id=given)[0].id == label


@pytest.mark.parametrize("value", [math.nan, math.inf, Decimal("NaN"), Decimal("7.5"), True, b"x"])
def test_no_other_value_is_a_label_or_a_seed(value: Any) -> None:
    for name in ("id", "seed"):
        (row,) = parse(**{name: value})
        assert (row.status, row.result.error_type) == (Status.REJECTED, "wrong_type")


@pytest.mark.parametrize("value", [7, 7.0, Decimal("7.0"), "7", "0007", np.float16(7)])
def test_a_seed_is_a_whole_number_of_any_type(value: Any) -> None:
    assert parse(seed=value)[0].seed == 7


def test_a_list_of_targets_gives_one_request_each_and_may_start_in_the_middle() -> None:
    rows = parse(target_prompt=["p", "q", "r", "s", "t"], first_edit=2, count=3)
    assert [(row.edit_index, row.target_prompt, row.status) for row in rows] == [(2, "r", None), (3, "s", None), (4, "t", None)]


def test_a_bad_target_rejects_its_own_edit_only() -> None:
    rows = parse(target_prompt=["p", None, " "], count=3)
    assert [row.status for row in rows] == [None, Status.REJECTED, Status.REJECTED]


CASES = [
    ({"source_prompt": None}, "null_value", "record 'r7': source_prompt: got null; allowed: a string that is not empty"),
    ({"source_prompt": 5}, "wrong_type", "source_prompt: got int 5; allowed: a string that is not empty"),
    ({"source_prompt": " \n"}, "empty_prompt", r"source_prompt: got ' \n'; allowed: a string that is not empty"),
    ({"target_prompt": None}, "null_value", "target_prompt: got null; allowed: a string that is not empty, or a list"),
    ({"target_prompt": []}, "empty_list", "target_prompt: got an empty list; allowed: at least one target prompt"),
    ({"target_prompt": 2.5}, "wrong_type", "target_prompt: got float 2.5; allowed: a string"),
    ({"image": None}, "null_value", "image: got null; allowed: binary, {bytes, path} or string"),
    ({"image": {"bytes": None, "path": None}}, "null_value", "image: got null"),
    ({"image": 7}, "wrong_type", "image: got int 7; allowed: binary, {bytes, path} or string"),
    ({"image": {"bytes": None, "path": 7}}, "wrong_type", "image: got int 7; allowed: binary, {bytes, path} or string"),
    ({"source_prompt": "x" * 100_001}, "prompt_too_long", "source_prompt: got 100001 characters; allowed: up to 100000 chara"),
    ({"target_prompt": " " * 100_001}, "empty_prompt", f"target_prompt: got '{' ' * 79}...; allowed: a string that is not"),
    ({"seed": -1}, "out_of_range", "seed: got -1; allowed: a whole number from 0 to 2**63-1, or null"),
    ({"seed": 2**63}, "out_of_range", f"seed: got {2**63}; allowed: a whole number from 0"),
    ({"seed": "seven"}, "wrong_type", "seed: got str 'seven'; allowed: a whole number"),
    ({"seed": True}, "wrong_type", "seed: got bool True; allowed: a whole number"),
    ({"id": 1.5}, "wrong_type", "record 'in/a.parquet#13': id: got float 1.5; allowed: a string, a UUID or a whole number"),
    ({"blend_words": "a b c"}, "blend_words_malformed", "blend_words: got 'a b c' (3 words); allowed: two words, source and"),
    ({"blend_words": 5}, "blend_words_malformed", "blend_words: got int 5; allowed: a list of {source, target}, or two words"),
    (
        {"blend_words": ["cat dog", "x y"]},
        "blend_words_malformed",
        "got 2 entries for 1 target prompts; allowed: one entry per target prompt",
    ),
    (
        {"blend_words": [{"source": None, "target": " "}]},
        "blend_words_malformed",
        "got a pair without words; allowed: a phrase in",
    ),
    (
        {"blend_words": [{"source": 5, "target": None}]},
        "blend_words_malformed",
        "blend_words.source: got int 5; allowed: a string or null",
    ),
    ({"overrides": 3}, "wrong_type", "overrides: got int 3; allowed: a struct of thresholds.edit, thresholds.critical"),
    ({"overrides": {"steps": 3}}, "unknown_name", "overrides: got 'steps'; allowed: thresholds.edit"),
    ({"overrides": {"windows": {"self": "x"}}}, "wrong_type", "overrides.windows.self: got str 'x'; allowed: a number or null"),
]


@pytest.mark.parametrize(("changes", "code", "text"), CASES)
def test_bad_records_say_record_field_got_and_allowed(changes: dict[str, Any], code: str, text: str) -> None:
    (row,) = parse(**changes)
    assert (row.status, row.result.error_stage, row.result.error_type) == (Status.REJECTED, "record", code)
    assert row.result.message is not None and text in row.result.message
    assert row.result.message.startswith(f"record {row.id!r}: ")


def test_a_rejected_row_still_shows_its_prompts() -> None:
    (row,) = parse(seed=-1)
    assert (row.source_prompt, row.target_prompt) == ("a cat", "a dog")


def test_a_prompt_that_is_much_too_long_is_shown_cut() -> None:
    (row,) = parse(target_prompt="x" * 3_000_000)
    assert row.result.error_type == "prompt_too_long" and row.target_prompt is not None and len(row.target_prompt) == 100_000
    assert row.target_prompt.endswith("x...")
    assert parse(target_prompt="x" * 100_000)[0].status is None


def test_long_values_are_cut_in_messages() -> None:
    (row,) = parse(seed="x" * 1000)
    assert row.result.message is not None and len(row.result.message) < 250


PAIR = (BlendPhrase(source="cat", target="dog"),)


@pytest.mark.parametrize(
    ("value", "targets", "blends"),
    [
        (None, ["p"], [()]),
        ("cat dog", ["p", "q"], [PAIR, PAIR]),
        ("", ["p"], [()]),
        ([{"source": "cat", "target": "dog"}], ["p", "q"], [PAIR, PAIR]),
        ([{"source": "cat", "target": "dog"}, None], ["p", "q"], [PAIR, PAIR]),
        ([[{"source": "cat", "target": "dog"}, None], [None]], ["p", "q"], [PAIR, ()]),
        ([["cat dog"], None], ["p", "q"], [None, ()]),
        (["cat dog", None, ""], ["p", "q", "r"], [PAIR, (), ()]),
        ([[{"source": "cat", "target": "dog"}], []], ["p", "q"], [PAIR, ()]),
        ([{"source": " the cat ", "target": None}], ["p"], [(BlendPhrase(source="the cat", target=None),)]),
    ],
)
def test_blend_words_for_one_or_for_all_targets(value: Any, targets: list[str], blends: list[Any]) -> None:
    rows = parse(blend_words=value, target_prompt=targets, count=len(targets))
    for row, blend in zip(rows, blends, strict=True):
        assert row.status == (Status.REJECTED if blend is None else None)
        assert blend is None or row.request.blend == blend


def test_a_map_is_no_pair_of_sides() -> None:
    record = {**GOOD, **read_record({"blend_words": pa.array([[("cat", "dog")]], pa.map_(pa.string(), pa.string()))}, 0)}
    (row,) = rows_of(record, blends_per_target=False)
    assert row.result.error_type == "blend_words_malformed"
    assert (
        row.result.message is not None and "blend_words: got a map [('cat', 'dog')]; allowed: a list of" in row.result.message
    )


def test_overrides_go_by_their_config_names() -> None:
    (row,) = parse(overrides={"thresholds": {"edit": 0.25, "critical": None}, "windows": {"self": 1}, "target_guidance": 3})
    assert (row.request.overrides.edit_threshold, row.request.overrides.critical_threshold) == (0.25, None)
    assert (row.request.overrides.self_window, row.request.overrides.target_guidance, row.request.overrides.text_window) == (
        1.0,
        3.0,
        None,
    )
    (dotted,) = parse(overrides={"thresholds.edit": 0.25, "image_strength": None})
    assert dotted.request.overrides.edit_threshold == 0.25 and dotted.request.overrides.image_strength is None


def unreadable_texts(*values: bytes) -> pa.Array:
    offsets = pa.array([0, *(sum(len(value) for value in values[: place + 1]) for place in range(len(values)))], pa.int32())
    return pa.Array.from_buffers(pa.string(), len(values), [None, offsets.buffers()[1], pa.py_buffer(b"".join(values))])


@pytest.mark.parametrize(
    ("field", "column", "kind"),
    [
        ("source_prompt", unreadable_texts(b"a \xff cat"), "string"),
        ("target_prompt", unreadable_texts(b"a \xff cat"), "string"),
        ("id", unreadable_texts(b"\xff"), "string"),
        ("image", unreadable_texts(b"\xff.png"), "string"),
        ("blend_words", unreadable_texts(b"cat \xff"), "string"),
        ("id", pa.array([2**31 - 1], pa.date32()), "date32[day]"),
        ("seed", pa.array([2**62], pa.timestamp("us")), "timestamp[us]"),
        ("seed", pa.array([1], pa.timestamp("s", tz="Nowhere/Land")), "timestamp[s, tz=Nowhere/Land]"),
        ("overrides", pa.StructArray.from_arrays([pa.array([1.0]), pa.array([2.0])], ["seed", "seed"]), "struct<seed: double"),
    ],
)
def test_a_value_that_cannot_be_converted_rejects_its_record(field: str, column: pa.Array, kind: str) -> None:
    record = read_record({name: pa.array([value]) for name, value in GOOD.items()} | {field: column}, 0)
    rows = rows_of(record, blends_per_target=False)
    assert (rows[0].status, rows[0].result.error_type) == (Status.REJECTED, "unreadable_value")
    assert rows[0].result.message is not None
    assert f"{field}: got a value of type {kind}" in rows[0].result.message and "; allowed: " in rows[0].result.message


def test_a_text_that_cannot_be_converted_rejects_its_own_edit() -> None:
    targets = pa.ListArray.from_arrays([0, 3], unreadable_texts(b"p", b"\xff", b"r"))
    record = {**GOOD, **read_record({"target_prompt": targets}, 0)}
    rows = rows_of(record, False, count=3)
    assert [(row.target_prompt, row.status) for row in rows] == [("p", None), (None, Status.REJECTED), ("r", None)]
