"""`jobs.ingest` of benchmarks of instructions: four published forms by what lies there, and any other whose columns are named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.ingest import main
from pipelines.ingest.layouts import find_layout, is_published
from pipelines.records.scan import scan_inputs
from pipelines.store.location import locate
from tests.instruction_sets import WRITERS, drawn_edits, png, write_gedit
from vimaedit.decoding import decode_image
from vimaedit.mask_decoding import decode_mask
from vimaedit.scenes.edits import CATEGORIES
from vimaedit.scenes.render import render_scene

COUNT = 4
NAMES = {"gedit": "GEdit-Bench", "imgedit": "ImgEdit-Bench", "magicbrush": "MagicBrush", "emu-edit": "EMU-Edit"}


def ingested(words: list[str], output: Path, code: int = 0) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    assert main([*words, f"output={output}"]) == code
    return pq.read_table(output / "records.parquet").to_pylist(), json.loads((output / "ingest.json").read_text())


@pytest.mark.parametrize("form", WRITERS)
def test_a_published_form_is_known_by_itself(form: str, tmp_path: Path) -> None:
    drawn = drawn_edits(COUNT)
    WRITERS[form](tmp_path / "in", drawn)
    assert find_layout(locate(str(tmp_path / "in"))) == form
    rows, summary = ingested([f"input={tmp_path / 'in'}"], tmp_path / "out")
    assert [row["image"]["bytes"] for row in rows] == [each.jpeg for each in drawn]
    assert [row["instruction"] for row in rows] == [each.edit.instruction for each in drawn]
    assert len({row["id"] for row in rows}) == COUNT == summary["records"] and summary["benchmark"] == NAMES[form]
    assert summary["left_out"] == summary["incomplete"] == [] and "picture_not_512" not in summary["notes"]
    categories = [CATEGORIES[each.category] for each in drawn]
    assert [row["category"] for row in rows] == {
        "magicbrush": [None] * COUNT,
        "emu-edit": ["add", "local"] * (COUNT // 2),
    }.get(form, categories)
    prompts = [(row["source_prompt"], row["target_prompt"], row["prompts_from"]) for row in rows]
    if form == "emu-edit":
        assert prompts == [(each.edit.source_prompt, each.edit.target_prompt, "captions") for each in drawn]
        assert rows[1]["id"] == "local-0"
    else:
        assert prompts == [("a photo", each.edit.instruction, "instruction") for each in drawn]
        assert summary["notes"]["prompts_from_instruction"] == COUNT
    inputs = scan_inputs(str(tmp_path / "out"), {})  # what an editing run reads
    assert inputs.num_rows == COUNT and not is_published(str(tmp_path / "out"))
    assert ("reference_image" in inputs.columns.passed) == (form == "magicbrush")
    assert form == "magicbrush" or all(row["reference_mask"] is None for row in rows)


def test_holes_are_what_may_change(tmp_path: Path) -> None:
    drawn = drawn_edits(COUNT)
    WRITERS["magicbrush"](tmp_path / "in", drawn)
    rows, _ = ingested([f"input={tmp_path / 'in'}"], tmp_path / "out")
    for row, each in zip(rows, drawn, strict=True):
        half = each.mask[::2, ::2]
        assert (decode_mask(row["reference_mask"]["bytes"]) == half.repeat(2, 0).repeat(2, 1)).all() and half.any()
        assert (decode_image(row["reference_image"]["bytes"]) == render_scene(each.edit.target, 512)).all()
        assert row["id"] == f"{each.id}-1"


def test_a_language_is_chosen_and_the_others_are_counted(tmp_path: Path) -> None:
    write_gedit(tmp_path / "in", drawn_edits(COUNT))
    words = [f"input={tmp_path / 'in'}", "layout=gedit"]
    rows, summary = ingested([*words, "language=cn"], tmp_path / "cn")
    assert {row["instruction"] for row in rows} == {"把它改成蓝色"} and summary["notes"]["of_another_language"] == COUNT
    rows, summary = ingested([*words, "language="], tmp_path / "all")
    assert len(rows) == 2 * COUNT and "of_another_language" not in summary["notes"]
    assert main([*words, "language=fr", f"output={tmp_path / 'fr'}"]) == 2


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_columns_of_any_list_are_named_and_broken_entries_are_counted(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "in"
    (folder / "pictures").mkdir(parents=True)
    drawn = drawn_edits(2)
    (folder / "pictures" / "a.jpg").write_bytes(drawn[0].jpeg)
    (folder / "pictures" / "mask.png").write_bytes(png(drawn[0].mask))
    (folder / "pictures" / "flat.png").write_bytes(png(np.ones((9, 500), bool)))
    (tmp_path / "secret.jpg").write_bytes(drawn[1].jpeg)
    os.symlink(tmp_path / "secret.jpg", folder / "pictures" / "link.jpg")
    entry = {"picture": "pictures/a.jpg", "ask": "make it blue", "place": "pictures/mask.png", "kind": 3}
    entries: list[Any] = [
        entry,
        {**entry, "before": "a cat", "after": "a dog"},
        {**entry, "place": "pictures/flat.png"},
        {**entry, "picture": "pictures/none.jpg"},
        {**entry, "picture": "../secret.jpg"},
        {**entry, "picture": "pictures/link.jpg"},
        {**entry, "ask": " "},
        {**entry, "ask": 7},
        {**entry, "ask": "half \ud800"},
        "no entry",
    ]
    lines = [*map(json.dumps, entries), '{"picture": "pictures/a.jpg", "ask": "make it blue", "ask": "make it red"}']
    (folder / f"edits.{suffix}").write_text(f"[{','.join(lines)}]" if suffix == "json" else "\n".join([*lines, "", "{"]))
    names = "columns={image: picture, instruction: ask, reference_mask: place, source_prompt: before, target_prompt: after, category: kind}"
    words = [f"input={folder}", "layout=instructions", names, "max_rejected_fraction=0.5"]
    rows, summary = ingested(words, tmp_path / "out", code=3)
    assert [(row["source_prompt"], row["target_prompt"], row["category"]) for row in rows] == [
        *(("a photo", "make it blue", "3"), ("a cat", "a dog", "3"), ("a photo", "make it blue", "3")),
    ]
    assert rows[0]["id"] == f"edits.{suffix}, entry 0" and rows[0]["image"]["path"] == "pictures/a.jpg"
    assert (decode_mask(rows[0]["reference_mask"]["bytes"]) == drawn[0].mask).all() and rows[2]["reference_mask"] is None
    assert [each["problem"].partition(":")[0] for each in summary["incomplete"]] == ["reference_mask"]
    problems = [each["problem"] for each in summary["left_out"]]
    assert len(problems) == summary["entries"] - 3 == len(lines) - 3 + (suffix == "jsonl")
    assert [text.partition(":")[0] for text in problems] == ["image"] * 3 + ["instruction"] * 2 + ["entry"] * (
        len(problems) - 5
    )
    assert "entry: got 'ask' 2 times; allowed: each name once" in problems
    assert "secret" not in (tmp_path / "out" / "records.parquet").read_bytes().decode(errors="replace")


def test_lists_and_pictures_in_a_store(tmp_path: Path, bucket: str) -> None:
    WRITERS["imgedit"](tmp_path / "in", drawn_edits(2))
    store = locate(f"{bucket}/imgedit")
    store.fs.put(str(tmp_path / "in"), store.path, recursive=True)
    assert is_published(f"{bucket}/imgedit")
    rows, _ = ingested([f"input={bucket}/imgedit"], tmp_path / "out")
    assert rows == ingested([f"input={tmp_path / 'in'}"], tmp_path / "local")[0] and len(rows) == 2


def test_columns_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"image": [b"x"], "ask": ["a"]}), tmp_path / "some.parquet")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "a.json").write_text("3")
    (tmp_path / "b.jsonl").write_text('{"image": "a.jpg", "instruction": "a"}')
    for words, message in [
        (
            [f"input={tmp_path}", "layout=instructions"],
            "columns.instruction: got 'instruction', which some.parquet lacks; allowed: ask, image",
        ),
        (
            [f"input={tmp_path}", "layout=instructions", "columns={prompt: ask}"],
            "columns: got 'prompt'; allowed: image, instruction, category",
        ),
        (
            [f"input={tmp_path}", "layout=piebench++", "columns={image: ask}"],
            "columns: got {'image': 'ask'} with layout=piebench++; allowed: nothing, or",
        ),
        (
            [f"input={tmp_path / 'list'}", "layout=instructions"],
            "a.json, which holds a int; allowed: entries in a list, or in an object by id",
        ),
        (
            [f"input={tmp_path / 'b.jsonl'}", "layout=instructions", "columns={category: kind}"],
            "columns.category: got 'kind', which b.jsonl lacks",
        ),
    ]:
        assert main([f"output={tmp_path / 'out'}", *words]) == 2
        assert message in capsys.readouterr().err
