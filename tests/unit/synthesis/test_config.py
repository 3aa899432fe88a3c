"""The settings of a synthesis, its input, and what is written of both."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.output.plan import Unit
from pipelines.store.location import locate
from pipelines.synthesis.begin import check_settings, pair_source, store_settings
from pipelines.synthesis.card import Account, card_text, category_table, funnel_table
from pipelines.synthesis.columns import TAKEN, pair_file, pair_schema
from pipelines.synthesis.config import RANGES, Filters, Generator, Spread, SynthesizeConfig
from pipelines.synthesis.dataset import Shard, cut_shards
from pipelines.synthesis.filters import make_bounds
from pipelines.synthesis.input import CaptionSet, cut_chunks, read_records, scan_captions
from pipelines.synthesis.making import Maker, Making
from pipelines.synthesis.scale import Estimate, Measured, estimate_text
from pipelines.synthesis.selection import Selected, Selecting, make_groups
from vimaedit.config import Thresholds, Windows
from vimaedit.errors import ConfigError, RequestError
from vimaedit.synthesis.lexicon import Lexicon, load_lexicon


def config(**options: Any) -> SynthesizeConfig:
    return SynthesizeConfig(**{"input": "in", "output": "out", "words": "scenes", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "human"}, "pairs: got 'human'; allowed: auto, given, rules, generator"),
        ({"edits": ["paint"]}, "edits: got 'paint'; allowed: change_object, add_object"),
        ({"edits_per_caption": 0}, "edits_per_caption: got 0; allowed: 1 to 100"),
        ({"candidates": 0}, "candidates: got 0; allowed: 1 to 1000"),
        ({"targets_per_source": 2}, "targets_per_source: got 2; allowed: 1, since every candidate has a seed of its own"),
        ({"validation_fraction": 1.5}, "validation_fraction: got 1.5; allowed: 0.0 to 1.0"),
        ({"shard_mb": 0}, "shard_mb: got 0; allowed: 1 to 100000"),
        ({"keep_source": "false"}, "keep_source: got false; allowed: true, since a record has both pictures"),
        ({"grounding": "given"}, "grounding: got given; allowed: any that finds the mask itself"),
        ({"select_only": True, "resume": "never"}, "select_only: got true with resume=never; allowed: an output that holds"),
        ({"pairs": "generator"}, "generator.model: got nothing with pairs=generator; allowed: a folder, a hub id"),
        ({"aesthetic": "head.pt"}, "aesthetic: got 'head.pt' without scoring_clip; allowed: both, since it reads CLIP"),
        ({"safety": "head.pt"}, "safety: got 'head.pt' without scoring_clip; allowed: both, since it reads CLIP"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(**options)
    assert str(refused.value).startswith(message)


def test_candidates_spread_around_what_the_run_says() -> None:
    published, recipe = config(), config(image_strength=0.2, thresholds=Thresholds(edit=0.25), windows=Windows(self=0.0))
    around = {"image_strength": [0.2, 0.6], "edit_threshold": [0.35, 0.65], "self_window": [0.3, 0.8]}
    assert Spread().ranges(published) == {**dict.fromkeys(RANGES, []), **around}
    assert {name: values for name, values in Spread().ranges(recipe).items() if values} == {
        "image_strength": [0.1, 0.3],
        "edit_threshold": [0.175, 0.325],
    }
    assert Spread().ranges(config(thresholds=Thresholds(edit=0.9)))["edit_threshold"] == [0.63, 1.0]
    given = Spread(image_strength=[], edit_threshold=[0.4, 0.5], self_window=[0.0, 0.1], text_window=[0.1, 0.2])
    assert given.ranges(recipe) == {
        **dict.fromkeys(RANGES, []),
        **{"edit_threshold": [0.4, 0.5], "self_window": [0.0, 0.1], "text_window": [0.1, 0.2]},
    }


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Spread, {"image_strength": [0.5]}, "spread.image_strength: got [0.5]; allowed: [from, to], or []"),
        (Spread, {"self_window": [0.5, 0.2]}, "spread.self_window: got [0.5, 0.2]; allowed: [from, to], or []"),
        (Spread, {"text_window": [0.0, 1.5]}, "spread.text_window: got 1.5; allowed: 0.0 to 1.0"),
        (Filters, {"min_change": -0.1}, "filters.min_change: got -0.1; allowed: 0.0 to 1.0"),
        (Filters, {"min_clip_direction": 2}, "filters.min_clip_direction: got 2; allowed: -1.0 to 1.0"),
        (Filters, {"max_distance": 65}, "filters.max_distance: got 65; allowed: 0 to 64"),
        (Filters, {"per_pair": 0}, "filters.per_pair: got 0; allowed: 1 to 1000"),
        (Filters, {"best_by": "luck"}, "filters.best_by: got 'luck'; allowed: auto, clip_direction"),
        (Generator, {"batch_size": 0}, "generator.batch_size: got 0; allowed: 1 to 4096"),
        (Generator, {"max_tokens": 0}, "generator.max_tokens: got 0; allowed: 1 to 100000"),
    ],
)
def test_wrong_nested_settings_are_refused(kind: type[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        kind(**options)
    assert str(refused.value).startswith(message)


def test_the_editing_run_has_the_same_options_and_its_own_places(tmp_path: Path) -> None:
    job = config(output=str(tmp_path), steps=7, limit=3, sheet=2, columns={"source_prompt": "caption"}).editing_job()
    assert (job.input, job.output) == (str(tmp_path / "pairs"), str(tmp_path / "candidates"))
    assert (job.steps, job.limit, job.sheet, job.columns) == (7, None, 0, {})


@pytest.fixture
def captions(tmp_path: Path) -> CaptionSet:
    folder = tmp_path / "in"
    folder.mkdir()
    table = pa.table({"caption": ["a red star on a blue background", None, " ", "nothing"], "seed": [1, 2, 3, 4]})
    pq.write_table(table, folder / "a.parquet")
    pq.write_table(pa.table({"caption": ["a cat"] * 70, "id": pa.array(range(70))}), folder / "b.parquet")
    return scan_captions(str(folder), {"source_prompt": "caption"}, TAKEN)


def test_the_input_is_cut_into_chunks_of_rows(captions: CaptionSet) -> None:
    assert [(chunk.file, chunk.first_row, chunk.count) for chunk in cut_chunks(captions, [None])] == [
        *((0, 0, 4), (1, 0, 32), (1, 32, 32), (1, 64, 6)),
    ]
    assert [(chunk.file, chunk.first_row, chunk.count) for chunk in cut_chunks(captions, [37])] == [
        (0, 0, 4),
        (1, 0, 32),
        (1, 32, 1),
    ]
    # A larger limit adds chunks and changes none.
    assert [(chunk.file, chunk.first_row, chunk.count) for chunk in cut_chunks(captions, [2, 37, None])] == [
        *((0, 0, 2), (0, 2, 2), (1, 0, 32), (1, 32, 1)),
        *((1, 33, 32), (1, 65, 5)),
    ]
    assert captions.passed == {"input_seed": "seed"}
    third = list(read_records(captions, cut_chunks(captions, [None])[3]))
    assert [record.id for record in third] == [str(n) for n in range(64, 70)]
    assert third[0].passed.to_pydict() == {"input_seed": [None]}
    first = list(read_records(captions, cut_chunks(captions, [2])[0]))
    assert [(record.id, record.passed.column("input_seed")[0].as_py()) for record in first] == [
        ("a.parquet#0", 1),
        ("a.parquet#1", 2),
    ]


def test_inputs_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    def refused(table: pa.Table, columns: dict[str, str]) -> str:
        pq.write_table(table, tmp_path / "x.parquet")
        with pytest.raises(ConfigError) as error:
            scan_captions(str(tmp_path), columns, TAKEN)
        return str(error.value)

    assert refused(pa.table({"text": ["a"]}), {}).startswith("input: got the columns text; 'source_prompt' is required")
    assert refused(pa.table({"text": ["a"]}), {"caption": "text"}).startswith(
        "columns: got 'caption'; allowed: image, source_prompt"
    )
    assert (
        refused(pa.table({"text": ["a"]}), {"source_prompt": "t"})
        == "columns.source_prompt: got 't', which the input lacks; allowed: text"
    )
    lists = pa.table({"source_prompt": ["a"], "target_prompt": [["b"]]})
    assert refused(lists, {}) == "input: got lists of target prompts; allowed: one text in each row"
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(
        ConfigError, match=r"^input: got .*/x.parquet, which cannot be read \(.*; allowed: a whole Parquet file"
    ):
        scan_captions(str(tmp_path), {}, TAKEN)


def test_given_pairs_need_their_column(captions: CaptionSet) -> None:
    assert pair_source(config(), captions) == "rules"
    with pytest.raises(
        ConfigError, match="^pairs: got given, but the input has no target_prompt; allowed: rules, generator, or"
    ):
        pair_source(config(pairs="given"), captions)


def make(captions: CaptionSet, source: str, **options: Any) -> Maker:
    settings = config(**options)
    lexicon = load_lexicon("scenes") if source == "rules" else None
    return Maker(
        Making(config=settings, captions=captions, lexicon=lexicon, source=source, device="cpu", dtype="float32", threads=1)
    )


def test_ready_pairs_with_pictures_become_candidates_and_bad_ones_rows(tmp_path: Path, make_record: Any) -> None:
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("image", pa.binary()),
            *((name, pa.string()) for name in ("source_prompt", "target_prompt", "instruction", "blend_words", "note")),
        ]
    )
    rows = [
        make_record(id="good"),
        make_record(id="written", instruction=None, blend_words=None),
        make_record(id="equal", target_prompt="A cat"),
        make_record(id="null", target_prompt=None),
        make_record(id="words", blend_words="cat"),
        make_record(id="absent", blend_words="cow dog"),
        make_record(id="picture", image=None),
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "x.parquet")
    found = scan_captions(str(tmp_path), {}, TAKEN)
    maker = make(found, "given", candidates=3, spread=Spread(image_strength=[0.2, 0.8]))
    made = maker.make(cut_chunks(found, [None])[0])
    assert [(row["id"], row["candidate"], row["instruction"]) for row in made.rows] == [
        *(("good", n, "make it a dog") for n in range(3)),
        *(("written", n, "make it a dog") for n in range(3)),
    ]
    assert made.rows[0]["blend_words"] == [{"source": "cat", "target": "dog"}] and made.rows[3]["blend_words"] is None
    assert [(row["id"], row["stage"], row["reason"], row["candidates"]) for row in made.rejected] == [
        ("equal", "pair", "prompts_equal", 3),
        ("null", "pair", "null_value", 3),
        ("words", "pair", "blend_words_malformed", 3),
        ("absent", "pair", "blend_phrase_not_found", 3),
        ("picture", "image", "null_value", 3),
    ]
    assert made.rejected[1]["message"].startswith("target_prompt: got null; allowed: a string that is not empty")
    assert made.num_pairs == 2 and [table.to_pydict() for table in made.passed] == [{"note": ["kept"]}] * 6
    written = pq.ParquetFile(pa.BufferReader(pair_file(made.rows, made.passed, pair_schema(found.passed_types))))
    table = written.read()
    assert table.column("note").to_pylist() == ["kept"] * 6 and len(set(table.column("seed").to_pylist())) == 6
    assert json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}
    assert (
        len(pair_file(made.rows, made.passed, pair_schema(found.passed_types)))
        < 3 * 20_000
        < sum(len(row["image"]["bytes"]) for row in made.rows)
    )


@pytest.fixture
def make_record() -> Any:
    def record(**changes: Any) -> dict[str, Any]:
        values = {
            "image": b"x" * 20_000,
            "source_prompt": "a cat",
            "target_prompt": "a dog",
            "blend_words": "cat dog",
            "note": "kept",
        }
        return {**values, "instruction": "make it a dog", **changes}

    return record


def test_every_process_knows_its_settings_again() -> None:
    program = (
        "import json\n"
        "from pipelines.synthesis.config import SynthesizeConfig, pair_settings\n"
        "from vimaedit.synthesis.lexicon import load_lexicon\n"
        "print(json.dumps(pair_settings(SynthesizeConfig(input='in', output='out'), load_lexicon('scenes').digest)))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def making(settings: SynthesizeConfig, captions: CaptionSet, lexicon: Lexicon) -> Making:
    return Making(config=settings, captions=captions, lexicon=lexicon, source="rules", device="cpu", dtype="float32", threads=1)


def test_a_larger_limit_goes_on(tmp_path: Path, captions: CaptionSet) -> None:
    output, words = locate(str(tmp_path)), load_lexicon("scenes")
    for limit, found in ((2, [2]), (5, [2, 5]), (5, [2, 5])):
        assert check_settings(output, config(output=output.url, limit=limit), captions, words) == found
        assert store_settings(output, making(config(output=output.url, limit=limit), captions, words)) == found
    with pytest.raises(ConfigError, match="^limit: got 4, but .* was begun with 5; allowed"):
        check_settings(output, config(output=output.url, limit=4), captions, words)
    assert check_settings(output, config(output=output.url), captions, words) == [2, 5, None]


def test_other_settings_and_other_inputs_are_told_apart(tmp_path: Path, captions: CaptionSet) -> None:
    output, words = locate(str(tmp_path / "out")), load_lexicon("scenes")
    (tmp_path / "out").mkdir()
    first = config(output=output.url)
    store_settings(output, making(first, captions, words))
    check_settings(output, dataclasses.replace(first, filters=Filters(per_pair=2), steps=3), captions, words)
    for other, message in (
        (dataclasses.replace(first, candidates=2), "candidates=2, was 4"),
        (dataclasses.replace(first, seed=1, pairs="rules"), 'pairs="rules", was "auto", seed=1, was 0'),
        (dataclasses.replace(first, windows=Windows(self=0.3)), r"spread.self_window=\[0.15, 0.4\], was \[0.3, 0.8\]"),
    ):
        with pytest.raises(
            ConfigError, match=f"which holds a synthesis of other settings: {message}; allowed: those it was begun"
        ):
            check_settings(output, other, captions, words)
    assert check_settings(output, first, captions, words) == [None]
    with pytest.raises(ConfigError, match="^limit: got 3, but .* was begun without one; allowed: that, a larger one or none"):
        check_settings(output, dataclasses.replace(first, limit=3), captions, words)
    fewer = dataclasses.replace(captions, files=captions.files[:1])
    with pytest.raises(ConfigError, match="of other settings: other input files; allowed"):
        check_settings(output, first, fewer, words)
    with pytest.raises(ConfigError, match="of other settings: words="):
        check_settings(output, first, captions, load_lexicon("general"))
    with pytest.raises(
        ConfigError, match="^resume: got never, but .* holds a synthesis; allowed: if-possible, or another output"
    ):
        check_settings(output, dataclasses.replace(first, resume="never"), captions, words)
    (tmp_path / "out" / "synthesis.json").unlink()
    (tmp_path / "out" / "pairs").mkdir()
    (tmp_path / "out" / "pairs" / "part-0.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match="^output: got .*, which holds pairs of unknown settings; allowed: a new folder"):
        check_settings(output, first, captions, words)


def test_the_key_of_a_server_has_to_be_on_the_worker(captions: CaptionSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    given = dataclasses.replace(captions, columns={**captions.columns, "image": "caption"})
    with pytest.raises(
        ConfigError, match="^generator.key_variable: got 'SOME_KEY', which is not set on the worker; allowed: the name"
    ):
        make(
            given,
            "generator",
            pairs="generator",
            generator=Generator(model="m", url="http://127.0.0.1:1/v1", key_variable="SOME_KEY"),
        )


def make_selected() -> Selected:
    selected = Selected()
    selected.counts.update({"pair": 2, "unchanged": 3, "best_of_pair": 4, "kept": 1})
    selected.by_category["change_style"].update({"unchanged": 3, "kept": 1})
    selected.kept = {"train": {0: (3, 40), 1: (2, 70), 3: (1, 10)}, "validation": {2: (1, 10)}}
    return selected


def test_shards_are_filled_with_whole_groups() -> None:
    selected = make_selected()
    assert cut_shards(selected, 10**9) == [
        Shard(name="train-00000-of-00001.parquet", split="train", groups=(0, 1, 3)),
        Shard(name="validation-00000-of-00001.parquet", split="validation", groups=(2,)),
    ]
    assert [shard.groups for shard in cut_shards(selected, 14_000)] == [(0, 1), (3,), (2,)]
    assert [shard.groups for shard in cut_shards(selected, 1)] == [(0,), (1,), (3,), (2,)]
    assert cut_shards(Selected(), 1) == []


def test_groups_have_all_parts_of_their_file() -> None:
    units = [
        Unit(file=file, start=start, first_row=0, first_edit=0, count=4, take=4) for file, start in ((0, 0), (0, 4), (2, 0))
    ]
    groups = make_groups(["a", "b", "c"], units)
    assert [(group.name, len(group.parts)) for group in groups] == [("a", 2), ("b", 0), ("c", 1)]


def test_the_card_counts_every_reason() -> None:
    selected = make_selected()
    settings = config(filters=Filters(max_distance=None))
    bounds, warnings = make_bounds(settings.filters, {})
    rows = {row[0]: row[1:] for row in funnel_table(settings, bounds, selected).rows}
    assert rows["requested"] == ("", "", "10", "100 %") and rows["pair"] == ("", "2", "8", "80.0 %")
    assert rows["unchanged"] == (">= 0.03", "3", "5", "50.0 %") and rows["mask_size"] == (
        ">= 0.002 and <= 0.9",
        "0",
        "5",
        "50.0 %",
    )
    assert rows["best_of_pair"] == ("1 of 4", "4", "1", "10.0 %") and "duplicate" not in rows
    assert category_table(selected).rows == (("change_style", "4", "1", "25.0 %"),)
    shards = cut_shards(selected, 10**9)
    selecting = Selecting(output="out", config=settings, groups=(), bounds=tuple(bounds))
    whole = Account(selecting=selecting, selected=selected, shards=shards, warnings=warnings, provenance={"model": "random"})
    text = card_text(whole, has_sheet=True)
    assert (
        text.startswith("---\ntask_categories:\n- image-to-image\n")
        and "  - split: validation\n    path: data/validation-*.parquet\n---\n" in text
    )
    assert (
        "7 records (6 train, 1 validation) of 10 candidates." in text
        and "- filter clip_source is off: scoring_clip names no network" in text
    )
    assert "| model | random |" in text and "samples.png" in text
    empty = card_text(Account(selecting=selecting, selected=Selected()), has_sheet=False)
    assert "configs" not in empty and "0 records (no records) of 0 candidates." in empty and "samples.png" not in empty


def test_a_scale_plan_counts_rows_hours_and_bytes() -> None:
    sample = Measured(
        records=4, pairs=3, candidates=4, drawing_s=2.0, editing_s=1.0, scoring_s=0.1, pair_bytes=1e5, candidate_bytes=2e5
    )
    estimate = Estimate(
        files=1,
        records=8000,
        chunks=250,
        candidates=24_000,
        actors=2,
        device="cuda",
        dtype="float16",
        batch_size=8,
        sample=sample,
        warnings=(),
        kept_at_most=6000,
        seconds={"drawing sources": 16_000.0, "editing": 24_000.0, "scoring": 2400.0},
    )
    text = estimate_text(estimate)
    assert "rows:   24000 candidates, of which at most 6000 are kept" in text
    assert "time:   11.78 GPU hours (drawing sources 4.444 h, editing 6.667 h, scoring 0.667 h), 5.89 h here" in text
    assert "bytes:  pairs 2.400 GB, candidates 4.800 GB, data 1.200 GB" in text
    assert "sample: nothing could be measured" in estimate_text(dataclasses.replace(estimate, sample=None))


def test_an_id_of_another_type_costs_its_record(tmp_path: Path) -> None:
    pq.write_table(pa.table({"source_prompt": ["a cat"], "image": [b""], "id": [1.5]}), tmp_path / "x.parquet")
    found = scan_captions(str(tmp_path), {}, TAKEN)
    (row,) = make(found, "rules", candidates=2).make(cut_chunks(found, [None])[0]).rejected
    assert (row["id"], row["reason"]) == ("x.parquet#0", "wrong_type")
    assert row["message"] == "id: got float 1.5; allowed: a string, a UUID or a whole number"
    assert isinstance(next(read_records(found, cut_chunks(found, [None])[0])).error, RequestError)


def test_captions_may_be_several_inputs_with_columns_in_folders(tmp_path: Path) -> None:
    for name in ("one/style=oil%20paint/x.pq", "two/y.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        pq.write_table(pa.table({"source_prompt": ["a cat"], "image": [b""], "id": [Decimal("7.0")]}), tmp_path / name)
    (tmp_path / "one" / "notes.txt").write_text("no data")
    inputs = [str(tmp_path / name) for name in ("one", "two")]
    found = scan_captions(inputs, {}, TAKEN)
    records = [record for chunk in cut_chunks(found, [None]) for record in read_records(found, chunk)]
    assert [(record.id, record.passed.to_pylist()) for record in records] == [
        ("7", [{"style": "oil paint"}]),
        ("7", [{"style": None}]),
    ]
    assert [each.examples for each in found.left_out] == [("notes.txt",)]
    pq.write_table(pa.table({"source_prompt": [7]}), tmp_path / "two" / "y.parquet")
    with pytest.raises(ConfigError, match="input: got column 'source_prompt' as int64 in two/y.parquet; allowed: text"):
        scan_captions(inputs, {}, TAKEN)
