"""Finding each request's edited picture, bringing both to one frame, the settings, and the tables."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.records.types import IMAGE
from pipelines.score.begin import default_name, settings_digest
from pipelines.score.config import SCORE_SCHEMA, ScoreConfig
from pipelines.score.pairs import Edited, Pair, edited_columns, find_pairs, match
from pipelines.score.read import frame_box, is_framed, load_pairs, resize, through_jpeg
from pipelines.score.table import (
    compare_tables,
    comparison_table,
    count_statuses,
    judge_absent,
    overall,
    per_category,
    score_row,
    summary_table,
)
from pipelines.store.parquet import take_rows
from tests.contexts import flip_byte
from vimaedit.errors import ConfigError, RequestError
from vimaedit.images import CanvasSpec, encode_image, encode_mask, fit_image
from vimaedit.metrics.names import METRICS


def test_scores_of_another_reader_of_scenes_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [ScoreConfig(benchmark="b", edited="e", output="o", metrics=names) for names in ([], ["scene"], ["background"])]
    before = [settings_digest(config, "content") for config in scores]
    monkeypatch.setattr("pipelines.score.begin.READER_VERSION", 0)
    assert [old == settings_digest(config, "content") for old, config in zip(before, scores, strict=True)] == [
        False,
        False,
        True,
    ]


def picture(seed: int, width: int = 67, height: int = 61) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def coded(image: np.ndarray) -> dict[str, Any]:
    return {"bytes": encode_image(image, "png"), "path": None}


def record(number: int, **changes: Any) -> dict[str, Any]:
    values = {"id": f"r{number}", "image": coded(picture(number)), "source_prompt": "two moons", "target_prompt": "a red star"}
    return {**values, "category": f"{number % 2}_kind", "reference_mask": None, "reference_image": None, **changes}


SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "source_prompt", "target_prompt", "category")),
        *((name, IMAGE) for name in ("image", "reference_mask", "reference_image")),
    ]
)


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = SCHEMA, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, **options)
    return path


def config(tmp_path: Path, **options: Any) -> ScoreConfig:
    places = {"benchmark": str(tmp_path / "bench"), "edited": str(tmp_path / "edited"), "output": str(tmp_path / "out")}
    return ScoreConfig(**{**places, "metrics": ["background"], **options})


def load(settings: ScoreConfig) -> list[Any]:
    pairs = find_pairs(settings)
    wanted = [(n, pair) for n, pair in enumerate(pairs.pairs) if pair.edited is not None]
    return load_pairs(settings, pairs.places, wanted)


def pair(identity: str, row: int, edit_index: int = 0) -> Pair:
    texts = {"source_prompt": "a", "target_prompt": "b", "category": None, "instruction": None}
    return Pair(id=identity, edit_index=edit_index, file="f.parquet", row=row, **texts)


def test_pictures_belong_to_the_record_whose_id_they_are_named_by(tmp_path: Path) -> None:
    pairs = [pair("a/0", 0), pair("b", 1), pair("b", 1, 1), pair("v1.2", 2), pair("c", 3)]
    files = ["x/a/0.png", "a/0.png", "deep/b.jpg", "b.1.png", "v1.2.png", "stranger.png"]
    entries = [Edited(file=file, row=None, id=None) for file in files]
    assert match(pairs, entries) == ["x/a/0.png", "stranger.png"]
    assert [each.edited and each.edited.file for each in pairs] == ["a/0.png", "deep/b.jpg", "b.1.png", "v1.2.png", None]


def test_rows_of_a_run_go_by_their_place_where_ids_are_not_unique() -> None:
    pairs = [pair("same", 0), pair("same", 1), pair("own", 2)]
    entries = [
        Edited(file="p", row=0, id="same", place=("f.parquet", 1)),
        Edited(file="p", row=1, id="same", place=("f.parquet", 0)),
        Edited(file="p", row=2, id="own", place=("other.parquet", 0)),
        Edited(file="p", row=3, id="same"),
        Edited(file="p", row=4, id="own", place=("f.parquet", 1), edit_index=7),
    ]
    assert match(pairs, entries) == ["same", "own"]
    assert [each.edited and each.edited.row for each in pairs] == [1, 0, 2]


def test_two_pictures_of_one_request_are_refused() -> None:
    entries = [Edited(file="a.png", row=None, id=None), Edited(file="d/a.jpg", row=None, id=None)]
    with pytest.raises(
        ConfigError, match=r"^edited: got two pictures of record 'a', edit 0 \(a.png; d/a.jpg\); allowed: one of"
    ):
        match([pair("a", 0)], entries)


def test_lists_of_targets_are_several_requests(tmp_path: Path) -> None:
    rows = [{**record(0), "target_prompt": ["x", "y"]}, {**record(1), "id": None, "target_prompt": []}]
    schema = SCHEMA.set(SCHEMA.get_field_index("target_prompt"), pa.field("target_prompt", pa.list_(pa.string())))
    write(tmp_path / "bench" / "a.parquet", rows, schema)
    for name in ("r0.png", "r0.1.png"):
        (tmp_path / "edited").mkdir(exist_ok=True)
        Image.fromarray(picture(9)).save(tmp_path / "edited" / name)
    found = find_pairs(config(tmp_path)).pairs
    assert [(each.id, each.edit_index, each.target_prompt) for each in found] == [
        ("r0", 0, "x"),
        ("r0", 1, "y"),
        ("a.parquet#1", 0, None),
    ]
    assert [each.edited is not None for each in found] == [True, True, False]
    assert [each.id for each in find_pairs(config(tmp_path, limit=1)).pairs] == ["r0"]


def test_everything_is_brought_to_the_frame_of_the_edited_picture(tmp_path: Path) -> None:
    """A canvas of 48 px, cut from the middle of a wider original, as an editor makes it."""
    source, target = picture(0, 96, 64), picture(1, 96, 64)
    mask = np.zeros((64, 96), dtype=bool)
    mask[8:24, 40:56] = True
    written = {"image": coded(source), "reference_image": coded(target)}
    rows = [record(0, **written, reference_mask={"bytes": encode_mask(mask), "path": None})]
    write(tmp_path / "bench" / "a.parquet", rows)
    edited = picture(2, 48, 48)
    box = dict(zip(("left", "top", "right", "bottom"), (16, 0, 80, 64), strict=True))
    ours = {"id": "r0", "edited_image": coded(edited), "edit_mask": {"bytes": encode_mask(np.eye(48) > 0), "path": None}}
    size = {"width": 96, "height": 64}
    for crop in ({"crop_box": box, "original_size": size}, {}):  # without its row's word the middle is meant
        write(tmp_path / "edited" / "e.parquet", [{**ours, **crop}], None)
        (item,) = load(config(tmp_path))
        sample = item.sample
        spec = CanvasSpec(fit="crop", size=48, granularity=8)
        np.testing.assert_array_equal(sample.edited, edited)
        np.testing.assert_array_equal(sample.source, fit_image(source, spec).image)
        np.testing.assert_array_equal(sample.target, fit_image(target, spec).image)
        np.testing.assert_array_equal(sample.edit_mask, np.eye(48) > 0)
        assert sample.reference_mask.sum() == 12 * 12 and sample.reference_mask[6:18, 18:30].all() and not sample.framed


def test_a_reference_mask_is_turned_with_the_picture_and_of_its_aspect(tmp_path: Path) -> None:
    exif, stored, buffer = Image.Exif(), np.zeros((40, 80), bool), io.BytesIO()
    exif[0x0112] = 6
    stored[:20] = True  # the upper half as it is stored, the right half upright
    Image.fromarray(picture(0, 80, 40)).save(buffer, "png", exif=exif)
    image = {"bytes": buffer.getvalue(), "path": None}
    masks = [stored, np.ones((40, 40), bool)]
    rows = [record(n, image=image, reference_mask={"bytes": encode_mask(mask), "path": None}) for n, mask in enumerate(masks)]
    write(tmp_path / "bench" / "a.parquet", rows)
    edited = base64.b64encode(coded(picture(1, 40, 80))["bytes"]).decode()
    write(tmp_path / "edited" / "e.parquet", [{"id": f"r{n}", "edited_image": edited} for n in range(2)], None)
    turned, other = load(config(tmp_path))
    assert turned.sample.reference_mask[:, 20:].all() and not turned.sample.reference_mask[:, :20].any()
    assert other.problem.startswith("record 'r1': reference_mask: got 40x40 px for a picture of 40x80 px; allowed: any size of")


def test_a_border_that_is_in_the_mask_by_rule_stays_one_pixel(tmp_path: Path) -> None:
    mask = np.zeros((61, 67), dtype=bool)
    mask[[0, -1]] = mask[:, [0, -1]] = True
    assert is_framed(mask) and not is_framed(mask[1:])
    write(tmp_path / "bench" / "a.parquet", [record(0, reference_mask={"bytes": encode_mask(mask), "path": None})])
    (tmp_path / "edited").mkdir()
    Image.fromarray(picture(1, 31, 29)).save(tmp_path / "edited" / "r0.png")
    (item,) = load(config(tmp_path))
    assert item.sample.framed and item.sample.reference_mask.sum() == 2 * 31 + 2 * 27


def test_a_target_that_the_prompts_leave_open_is_no_measure(tmp_path: Path) -> None:
    schema = SCHEMA.append(pa.field("target_determined", pa.bool_()))
    rows = [{**record(n, reference_image=coded(picture(n))), "target_determined": n == 0} for n in range(2)]
    write(tmp_path / "bench" / "a.parquet", rows, schema)
    write(tmp_path / "edited" / "e.parquet", [{"id": f"r{n}", "edited_image": coded(picture(n))} for n in range(2)], None)
    assert [item.sample.target is not None for item in load(config(tmp_path))] == [True, False]


def test_the_last_square_of_several_and_jpeg(tmp_path: Path) -> None:
    panels = np.concatenate([picture(n, 64, 64) for n in range(3)], axis=1)
    write(tmp_path / "bench" / "a.parquet", [record(0, image=coded(picture(5, 64, 64)))])
    (tmp_path / "edited").mkdir()
    Image.fromarray(panels).save(tmp_path / "edited" / "r0.png")
    (item,) = load(config(tmp_path, part="last"))
    np.testing.assert_array_equal(item.sample.edited, picture(2, 64, 64))
    (item,) = load(config(tmp_path, part="last", jpeg_quality=75))
    buffer = io.BytesIO()
    Image.fromarray(panels).save(buffer, "jpeg")  # 75 is Pillow's default
    expected = np.array(Image.open(buffer))[:, -64:]
    np.testing.assert_array_equal(item.sample.edited, expected)
    assert (item.sample.source == picture(5, 64, 64)).all()  # the source is not taken through it
    assert (
        np.abs(through_jpeg(panels, 95).astype(int) - panels).mean()
        < np.abs(through_jpeg(panels, 5).astype(int) - panels).mean()
    )


def test_what_cannot_be_read_costs_no_other(tmp_path: Path) -> None:
    rows = [
        record(0),
        record(1, image={"bytes": b"no picture", "path": None}),
        record(2, reference_mask={"bytes": b"", "path": None}),
        record(3, source_prompt=None),
        record(4, image={"bytes": None, "path": "../secret.png"}),
        *(record(n) for n in range(5, 9)),
    ]
    write(tmp_path / "bench" / "a.parquet", rows, row_group_size=2)
    box = {"left": 0, "top": 0, "right": 67, "bottom": 61}
    ours = [{"id": f"r{n}", "edited_image": coded(picture(n)), "crop_box": box, "original_size": None} for n in range(9)]
    ours[5]["edited_image"] = None
    ours[6]["original_size"] = {"width": 512, "height": 512}
    ours[7]["crop_box"] = {**box, "right": 68}
    write(tmp_path / "edited" / "e.parquet", ours, None)
    items = load(config(tmp_path))
    patterns = [
        "record 'r1': image: got 10 bytes: no picture format known here; allowed: a whole AVIF",
        "record 'r2': reference_mask: got 0 bytes; allowed: an encoded picture",
        "record 'r3': source_prompt: got null; allowed: a string",
        "record 'r4': image: got '../secret.png'; allowed: a path under ",
        "record 'r5': edited_image: got null; allowed: binary, {bytes, path} or string",
        "record 'r6': original_size: got 512x512 px; allowed: 67x61 px, the size of the benchmark's picture",
        "record 'r7': crop_box: got (0, 0, 68, 61); allowed: a part of 67x61 px",
    ]
    assert items[0].problem is None and items[8].problem is None
    for item, pattern in zip(items[1:8], patterns, strict=True):
        assert item.sample is None and re.match(re.escape(pattern), item.problem), item.problem


@pytest.mark.parametrize(("shape", "box"), [((10, 20), (0, 7, 67, 41)), ((61, 67), (0, 0, 67, 61)), ((5, 5), (3, 0, 64, 61))])
def test_without_a_word_the_middle_is_meant(shape: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    found = frame_box((67, 61), shape, None, None)
    assert np.abs(np.subtract(found, box)).max() <= 8 and (found[2] - found[0]) / (found[3] - found[1]) == pytest.approx(
        shape[1] / shape[0], rel=0.03
    )


def test_rows_whose_identity_cannot_be_read_belong_to_no_request(tmp_path: Path) -> None:
    write(tmp_path / "bench" / "a.parquet", [record(n) for n in range(5)])
    ours = [{"id": f"r{n}", "edited_image": coded(picture(n))} for n in range(5)]
    for row, index in zip(ours, ["0", "x", "-1", "1.5", None], strict=True):
        row["edit_index"] = index
    write(tmp_path / "edited" / "e.parquet", ours, None)
    found = find_pairs(config(tmp_path))
    assert [each.edited is not None for each in found.pairs] == [True, False, False, False, True]
    assert found.unmatched == ["r1", "r2", "r3"]
    assert found.warnings == [
        "edited: e.parquet: 3 values of edit_index belong to no request; the first: row 1: got str 'x'; allowed: a whole number from 0 on"
    ]


def test_numbers_of_any_type_and_nan_are_read_as_what_they_mean(tmp_path: Path) -> None:
    write(tmp_path / "bench" / "a.parquet", [record(n) for n in range(3)])
    columns = {"id": ["r0", "r1", "r2"], "edited_image": [encode_image(picture(n), "png") for n in range(3)]}
    columns |= {"edit_index": [0.0, float("nan"), 0.0], "seconds": ["2.5", "fast", "inf"], "grounded": ["yes", None, "no"]}
    columns |= {"status": ["ok", "done", "ok"], "method": ["../../escaped"] * 3}
    (tmp_path / "edited").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "edited" / "e.parquet")
    settings = config(tmp_path)
    found = find_pairs(settings)
    rows = [score_row("ours", each) for each in found.pairs]
    assert [(row["status"], row["seconds"], row["grounded"]) for row in rows] == [
        ("ok", 2.5, None),
        ("unscored", None, None),
        ("ok", None, None),
    ]
    assert rows[1]["message"] == "status: got 'done'; allowed: ok, rejected, failed, quarantined"
    pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)  # as it is written at the end
    assert [text.split(";")[0] for text in found.warnings] == [
        "edited: e.parquet: 2 values of grounded are taken as null",
        "edited: e.parquet: 2 values of seconds are taken as null",
    ]
    assert default_name(settings, found.pairs) == "edited"  # what anybody's rows say is no path


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("crop_box", {"left": "0", "top": "0", "right": "67", "bottom": "61"}, "crop_box: got dict {'left': '0'"),
        ("crop_box", {"left": 0.0, "top": 0.0, "right": float("nan"), "bottom": 61.0}, "crop_box: got dict {'left': 0.0"),
        ("crop_box", "0 0 67 61", "crop_box: got str '0 0 67 61'; allowed: a struct of whole numbers left, top, right, bottom"),
        ("original_size", [67, 61], "original_size: got list [67, 61]; allowed: a struct of whole numbers width, height"),
        ("edit_mask", 7, "edit_mask: got int 7; allowed: binary"),
    ],
)
def test_boxes_that_are_none_cost_their_own_row(tmp_path: Path, column: str, value: Any, expected: str) -> None:
    write(tmp_path / "bench" / "a.parquet", [record(0)])
    box = {"left": 0, "top": 0, "right": 67, "bottom": 61}
    ours = {"id": "r0", "edited_image": coded(picture(0)), "crop_box": box, column: value}
    write(tmp_path / "edited" / "e.parquet", [ours], None)
    (item,) = load(config(tmp_path))
    assert item.sample is None and item.problem.startswith(f"record 'r0': {expected}"), item.problem


def test_values_that_cannot_be_read_cost_their_own_row(tmp_path: Path) -> None:
    broken = pa.array([b"two moons", b"\xff", b"two moons"]).view(pa.string())
    table = pa.Table.from_pylist([record(n) for n in range(3)], schema=SCHEMA)
    table = table.set_column(table.schema.get_field_index("source_prompt"), "source_prompt", broken)
    table = table.append_column("source_scene", pa.array(["{}"] * 3)).append_column("target_scene", pa.array(["{}"] * 3))
    table = table.append_column("edited_object", pa.array([7, 7, None]))
    (tmp_path / "bench").mkdir()
    pq.write_table(table, tmp_path / "bench" / "a.parquet")
    ours = [{"id": f"r{n}", "edited_image": coded(picture(n, 61, 61))} for n in range(3)]
    write(tmp_path / "edited" / "e.parquet", ours, None)
    settings = config(tmp_path, metrics=["scene"])
    found = find_pairs(settings)
    rows = [score_row("ours", each) for each in found.pairs]
    assert [row["status"] for row in rows] == ["ok", "unscored", "ok"]
    assert "source_prompt: got a value of type string that cannot be read" in rows[1]["message"]
    first, _, last = load_pairs(settings, found.places, list(enumerate(found.pairs)))
    assert first.sample is None and first.problem.startswith("record 'r0': ") and last.sample is not None


def test_a_broken_page_of_edited_pictures_costs_its_file_only(tmp_path: Path) -> None:
    write(tmp_path / "bench" / "a.parquet", [record(n) for n in range(4)])
    for n in range(2):
        ours = [{"id": f"r{2 * n + m}", "edited_image": coded(picture(m))} for m in range(2)]
        path = write(
            tmp_path / "edited" / f"{n}.parquet", ours, None, compression="none", use_dictionary=False, write_page_checksum=True
        )
    flip_byte(path)
    items = load(config(tmp_path))
    assert [item.sample is not None for item in items] == [True, True, False, False]
    assert items[2].problem.startswith("record 'r2': 1.parquet: got ")


def test_large_rows_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = coded(picture(0))["bytes"] + bytes(100_000)
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 7, pa.int32()), pa.array([value]))
    columns = {"id": [f"r{n}" for n in range(7)], "image": same, "source_prompt": ["a"] * 7, "target_prompt": ["b"] * 7}
    for folder in ("bench", "edited"):
        (tmp_path / folder).mkdir()
    pq.write_table(pa.table(columns), tmp_path / "bench" / "a.parquet", store_schema=False)
    write(tmp_path / "edited" / "e.parquet", [{"id": f"r{n}", "edited_image": coded(picture(n))} for n in range(7)], None)
    monkeypatch.setattr("pipelines.store.parquet.HELD_BYTES", 350_000)
    sizes: list[int] = []

    def counted(place: Any, rows: Any, columns: Any) -> pa.Table:
        sizes.append(len(rows))
        return take_rows(place, rows, columns)

    monkeypatch.setattr("pipelines.score.read.take_rows", counted)
    assert [item.position for item in load(config(tmp_path)) if item.sample is not None] == list(range(7))
    assert sizes == [3, 3, 3, 3, 1, 1]


def test_resizing_to_its_own_size_changes_nothing() -> None:
    np.testing.assert_array_equal(resize(picture(0), (67, 61)), picture(0))
    assert resize(picture(0), (31, 29)).shape == (29, 31, 3)
    with pytest.raises(RequestError, match=r"^crop_box: got \(5, 0, 5, 61\); allowed: a part of 67x61 px$"):
        frame_box((67, 61), (3, 3), {"left": 5, "top": 0, "right": 5, "bottom": 61}, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edited": ""}, "edited: got nothing; it is required: edited=PATH_OR_URL"),
        (
            {"metrics": ["clip", "fid"]},
            "metrics: got 'fid'; allowed: background, lpips, structure, clip, mask, target, scene, judge",
        ),
        ({"part": "first"}, "part: got 'first'; allowed: whole, last"),
        ({"jpeg_quality": 0}, "jpeg_quality: got 0; allowed: 1 to 100"),
        ({"name": "a/b"}, "name: got 'a/b'; allowed: a file name that does not begin with . or _"),
        ({"name": "p2p", "against": "p2p"}, "against: got 'p2p', these scores themselves; allowed: the name of other scores"),
        ({"against": ".x"}, "against: got '.x'; allowed: a file name that does not begin with . or _"),
        ({"limit": 0}, "limit: got 0; allowed: 1 or more, or leave it out"),
        ({"device": "tpu"}, "device: got 'tpu'; allowed: auto, cpu, cuda"),
        ({"actors": "many"}, "actors: got 'many'; allowed: auto"),
        ({"batch_size": 0}, "batch_size: got 0; allowed: 1 to 4096"),
        ({"threads": 0}, "threads: got 0; allowed: 1 to 1024"),
        ({"max_missing_fraction": 1.5}, "max_missing_fraction: got 1.5; allowed: 0.0 to 1.0"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        config(tmp_path, **options)


def test_inputs_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^benchmark: got '.*bench', where there is no Parquet file; allowed: a file, a folder"
    ):
        find_pairs(config(tmp_path))
    write(tmp_path / "bench" / "a.parquet", [record(0)])
    with pytest.raises(
        ConfigError, match=r"^edited: got .*edited, where there is neither Parquet nor a picture; allowed: the out"
    ):
        find_pairs(config(tmp_path))
    (tmp_path / "edited").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "edited" / "other.png")
    with pytest.raises(
        ConfigError, match=r"^edited: got .*, where no picture belongs to one of the benchmark's 1 requests \(found"
    ):
        find_pairs(config(tmp_path))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(
        ConfigError, match=r"^edited: got .*broken.parquet, which cannot be read \(.*\); allowed: a whole Parquet"
    ):
        find_pairs(config(tmp_path, edited=str(tmp_path / "broken.parquet")))
    with pytest.raises(ConfigError, match=r"^columns.image: got 'photo', which the input lacks; allowed: "):
        find_pairs(config(tmp_path, columns={"image": "photo"}))


def test_columns_of_an_edited_table() -> None:
    assert edited_columns(["key", "out", "x"], {"id": "key", "edited_image": "out"}, "f") == {
        "id": "key",
        "edited_image": "out",
    }
    with pytest.raises(
        ConfigError, match=r"^edited: got f with the columns id; allowed: edited_image and id \(edited_columns.NAME"
    ):
        edited_columns(["id"], {}, "f")
    with pytest.raises(ConfigError, match=r"^edited_columns.id: got 'key', which f lacks; allowed: edited_image$"):
        edited_columns(["edited_image"], {"id": "key"}, "f")
    with pytest.raises(ConfigError, match=r"^edited: got 2 columns named 'id' in f; allowed: one of each name$"):
        edited_columns(["id", "edited_image", "id"], {}, "f")


def score_table(name: str, values: list[float | None], categories: list[str | None]) -> pa.Table:
    rows = []
    for n, (value, category) in enumerate(zip(values, categories, strict=True)):
        each = pair(f"r{n}", n)
        each.category = category
        each.edited = Edited(file="e", row=n, id=each.id) if value is not None else None
        rows.append({**score_row(name, each), "clip_whole": value, "background_psnr": float("inf")})
    return pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)


def test_means_over_all_and_over_each_category() -> None:
    table = score_table("a", [1.0, 2.0, None, 6.0], ["1_x", "0_y", "1_x", None])
    assert overall(table)["clip_whole"]["mean"] == 3.0 and overall(table)["clip_whole"]["missing"] == 1
    assert overall(table)["background_psnr"]["infinite"] == 4 and overall(table)["mask_iou"]["count"] == 0
    found = per_category(table)
    assert list(found) == ["0_y", "1_x", "none"] and found["1_x"]["records"] == 2
    assert {name: each["metrics"]["clip_whole"]["mean"] for name, each in found.items()} == {
        "0_y": 2.0,
        "1_x": 1.0,
        "none": 6.0,
    }
    assert count_statuses(table)["missing"] == 1 and count_statuses(table)["ok"] == 3
    text = summary_table("a", overall(table), 4).text()
    assert re.search(r"CLIP whole +3.00 +1.\d\d to \d.\d\d +3 +1 missing", text) and "4 infinite" in text and "IoU" not in text


def test_two_runs_are_compared_request_by_request() -> None:
    ours = score_table("a", [1.0, 5.0, None, 7.0], [None] * 4)
    theirs = score_table("b", [2.0, 9.0, 3.0], [None] * 3)
    found = compare_tables(ours, theirs)
    assert found["clip_whole"] == {"value": -2.5, "low": -4.0, "high": -1.0, "pairs": 2} and found["mask_iou"] is None
    text = comparison_table("a", {"against": "b", "metrics": found}).text()
    assert text.startswith("a less b, request by request") and re.search(r"CLIP whole +-2.50 +-4.00 to -1.00 +2 +worse", text)
    assert list(found) == list(METRICS)


def test_an_edit_without_a_picture_is_not_right_on_drawn_scenes() -> None:
    def row(status: str, **values: float) -> dict[str, Any]:
        return {"status": status, **dict.fromkeys(METRICS), **values}

    rows = [row("ok", scene_success=1.0), row("failed"), row("missing"), row("ok")]
    judge_absent(rows)
    assert [each["scene_success"] for each in rows] == [1.0, 0.0, 0.0, None]
    assert rows[1]["scene_others_unchanged"] == 0.0 and rows[1]["background_psnr"] is None
    others = [row("ok", background_psnr=30.0), row("failed")]
    judge_absent(others)
    assert others[1]["scene_success"] is None


def test_what_is_no_picture_beside_edited_pictures_is_told(tmp_path: Path) -> None:
    write(tmp_path / "bench" / "a.parquet", [record(0)])
    write(tmp_path / "edited" / "z.parquet", [{"id": "r0", "edited_image": coded(picture(5))}], None)
    Image.fromarray(picture(9)).save(tmp_path / "edited" / "r0.png")
    assert find_pairs(config(tmp_path)).warnings == [
        "edited: files: 1 of 2 left out (z.parquet): they are no pictures, and the folder has some"
    ]


def test_a_benchmark_may_be_several_inputs_with_columns_in_folders_and_ids_of_any_type(tmp_path: Path) -> None:
    schema = SCHEMA.remove(SCHEMA.get_field_index("category"))
    write(tmp_path / "one" / "category=a%20kind" / "x.pq", [record(0, id=None)], schema)
    wanted = pa.schema([pa.field("id", pa.uuid()) if field.name == "id" else field for field in SCHEMA])
    write(tmp_path / "two" / "y.parquet", [{**record(1), "id": UUID(int=7).bytes}], wanted)
    names = pa.schema([("id", pa.float64()), ("edited_image", IMAGE)])
    write(tmp_path / "edited" / "z.parquet", [{"id": str(UUID(int=7)), "edited_image": coded(picture(5))}], None)
    job = config(tmp_path, benchmark=[str(tmp_path / "one"), str(tmp_path / "two")], edited=str(tmp_path / "edited"))
    found = find_pairs(job)
    assert [(each.id, each.category) for each in found.pairs] == [
        ("one/category=a%20kind/x.pq#0", "a kind"),
        (str(UUID(int=7)), "1_kind"),
    ]
    assert [each.edited is not None for each in found.pairs] == [False, True]
    write(tmp_path / "bench" / "a.parquet", [record(7, id="7")])
    write(tmp_path / "edited" / "z.parquet", [{"id": 7.0, "edited_image": coded(picture(5))}], names)
    assert find_pairs(config(tmp_path, edited=str(tmp_path / "edited"))).pairs[0].edited is not None
