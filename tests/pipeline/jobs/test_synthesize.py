"""`jobs.synthesize`: captions to a filtered data set, selected again with other thresholds, and gone on with after a loss."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.synthesize import main
from pipelines.synthesis.config import Filters, SourceImages, SynthesizeConfig
from pipelines.synthesis.scale import estimate_synthesis, estimate_text
from pipelines.synthesis.synthesize import SynthesisSummary, run_synthesis
from tests.pipeline.conftest import MakePicture, write_records
from vimaedit.decoding import decode_image
from vimaedit.errors import ConfigError
from vimaedit.mask_decoding import decode_mask
from vimaedit.miniature.random_bundle import random_bundle

COLOURS = ("red", "blue", "green")
CAPTIONS = [f"a {colour} {shape} on a white background" for colour in COLOURS for shape in ("star", "heart")]
OPEN = {f"min_clip_{name}": None for name in ("source", "target", "image", "direction")}
FILTERS = Filters(**OPEN, min_background_psnr=None, min_change=None, require_mask=False, min_mask=None, max_mask=None)
CANDIDATES = 2
# Two records of one id and caption, whose pictures are equal; a null, and a caption of which nothing is known.
RECORDS = [{"id": f"r{n}", "caption": caption, "note": n} for n, caption in enumerate(CAPTIONS)]
RECORDS += [
    {**RECORDS[0], "note": len(CAPTIONS)},
    {"id": "null", "caption": None, "note": len(CAPTIONS) + 1},
    {"id": "unknown", "caption": "lovely", "note": len(CAPTIONS) + 2},
]
PAIRS = len(CAPTIONS) + 1


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SynthesizeConfig:
    folder = tmp_path_factory.mktemp("synthesis")
    for name, rows in (("a", RECORDS[:4]), ("b", RECORDS[4:])):
        write_records(folder / "in" / f"{name}.parquet", rows)
    return SynthesizeConfig(
        input=str(folder / "in"),
        output=str(folder / "out"),
        columns={"source_prompt": "caption"},
        words="scenes",
        edits=["change_object", "change_attribute_color"],
        model="random",
        steps=1,
        source=SourceImages(steps=1),
        candidates=CANDIDATES,
        scoring_clip=str(random_bundle() / "clip"),
        filters=FILTERS,
        preferences=True,
        inverted=True,
        validation_fraction=0.3,
        actors=1,
        threads=1,
        batch_size=CANDIDATES,
    )


@pytest.fixture(scope="module")
def summary(config: SynthesizeConfig, cluster: None) -> SynthesisSummary:
    """A run that was limited to two records at first, of which then a part of every stage was lost."""
    output, first = Path(config.output), Path(f"{config.output}-first")
    assert run_synthesis(dataclasses.replace(config, limit=2)).counts == {"best_of_pair": 2, "kept": 2}
    shutil.copytree(output, first)
    for name in ("_SUCCESS", "candidates/_SUCCESS", "pairs/part-00000-0000000000.parquet"):
        (output / name).unlink()
    sorted((output / "candidates" / "data").iterdir())[0].unlink()
    for folder in ("scores", "selection"):
        shutil.rmtree(output / folder)
    return run_synthesis(config)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder).to_pylist() if list(folder.glob("*.parquet")) else []


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.timeout(300)
def test_every_requested_candidate_is_accounted_for(config: SynthesizeConfig, summary: SynthesisSummary) -> None:
    output = Path(config.output)
    expected = {"pair": 2 * CANDIDATES, "best_of_pair": PAIRS, "duplicate": 1, "kept": PAIRS - 1}
    assert summary.exit_code == 0 and {name: count for name, count in summary.counts.items() if count} == expected
    decisions = rows_of(output / "selection")
    assert Counter(row["outcome"] for row in decisions) == expected
    assert len({(row["pair_id"], row["candidate"]) for row in decisions}) == len(RECORDS) * CANDIDATES == len(decisions)
    reasons = {row["id"]: row["reason"] for row in decisions if row["outcome"] == "pair"}
    assert reasons["null"] == "pair: null_value: source_prompt: got null; allowed: a string that is not empty"
    assert reasons["unknown"].startswith(
        "pair: no_edit_applies: source_prompt: got 'lovely', of which the word lists allow 0 edits"
    )
    (same,) = [row for row in decisions if row["outcome"] == "duplicate"]
    assert same["id"] == "r0" and same["reason"].startswith("looks like part-")
    assert len(rows_of(output / "candidates" / "data")) == PAIRS * CANDIDATES


@pytest.mark.timeout(300)
def test_the_data_set_is_what_trainers_read(config: SynthesizeConfig, summary: SynthesisSummary) -> None:
    output = Path(config.output)
    splits = {split: rows_of(output / "data") for split in ("train", "validation")}
    names = sorted(path.name for path in (output / "data").iterdir())
    assert names == ["train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"]
    splits = {name.partition("-")[0]: pq.read_table(output / "data" / name).to_pylist() for name in names}
    assert {split: len(rows) for split, rows in splits.items()} == dict(summary.records)
    shared = [{row["source_image_id"] for row in rows} for rows in splits.values()]
    assert shared[0] and shared[1] and not shared[0] & shared[1]
    schema = pq.read_schema(output / "data" / names[0])
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert all(features[name] == {"_type": "Image"} for name in ("original_image", "edited_image", "mask"))
    assert features["edit_prompt"] == {"dtype": "string", "_type": "Value"} and "note" in features
    candidates = {(row["pair_id"], row["candidate"]): row for row in rows_of(output / "candidates" / "data")}
    for row in [*splits["train"], *splits["validation"]]:
        edited = candidates[row["pair_id"], row["candidate"]]
        assert row["edited_image"] == edited["edited_image"] and row["original_image"] == edited["image"]
        size = {"min_side_px": 1, "max_pixels": 10**6}
        shape = decode_image(row["original_image"]["bytes"], **size).shape
        assert decode_image(row["edited_image"]["bytes"], **size).shape == shape == (128, 128, 3)
        assert row["mask"] is None or decode_mask(row["mask"]["bytes"]).shape == shape[:2]
        assert row["original_prompt"] == RECORDS[row["note"]]["caption"] and row["edit_prompt"].startswith(("make", "change"))
        assert -1 <= row["scores"]["clip_direction"] <= 1 and row["scores"]["background_lpips"] is None
        (phrase,) = row["blend_words"]
        assert phrase["source"] in row["original_prompt"] and phrase["target"] in row["edited_prompt"]
    both = [candidates["a.parquet#0/0", number] for number in range(CANDIDATES)]
    assert both[0]["seed"] != both[1]["seed"] and both[0]["candidate_overrides"] != both[1]["candidate_overrides"]
    assert both[0]["image"] == both[1]["image"] and both[0]["edited_image"] != both[1]["edited_image"]
    card = (output / "README.md").read_text()
    assert card.startswith("---\n") and f"{PAIRS - 1} records" in card and "| duplicate | <= 12 bits | 1 |" in card
    page = (output / "report.html").read_text()
    assert (
        "<!doctype html>" in page
        and "best_of_pair" in page
        and f"clip_direction: {PAIRS * CANDIDATES} candidates, {PAIRS - 1} kept" in page
    )
    assert 'src="http' not in page and (output / "samples.png").exists()


@pytest.mark.timeout(300)
def test_the_other_configurations_hold_the_same_pairs(config: SynthesizeConfig, summary: SynthesisSummary) -> None:
    output = Path(config.output)
    decisions = {(row["pair_id"], row["candidate"]): row for row in rows_of(output / "selection")}
    candidates = {(row["pair_id"], row["candidate"]): row for row in rows_of(output / "candidates" / "data")}
    for name in ("train", "validation"):
        (shard,) = (output / "data").glob(f"{name}-*")
        kept, turned, preferred = (
            pq.read_table(output / folder / shard.name).to_pylist() for folder in ("data", "inverted", "preferences")
        )
        assert len(turned) == len(kept) > 0 and {row["pair_id"] for row in preferred} <= {row["pair_id"] for row in kept}
        for row, back in zip(kept, turned, strict=True):
            assert (back["original_image"], back["edited_image"]) == (row["edited_image"], row["original_image"])
            assert (back["original_prompt"], back["edited_prompt"]) == (row["edited_prompt"], row["original_prompt"])
            (phrase,), (other,) = row["blend_words"], back["blend_words"]
            assert other == {"source": phrase["target"], "target": phrase["source"]}
            assert back["edit_prompt"] == f"change the {phrase['target']} to a {phrase['source']}"
            assert back["mask"] == row["mask"] and back["note"] == row["note"]
        for row in preferred:
            better, worse = ((row["pair_id"], row[f"{side}_candidate"]) for side in ("chosen", "rejected"))
            assert (decisions[better]["outcome"], decisions[worse]["outcome"]) == ("kept", row["rejected_outcome"])
            assert (
                row["margin"] == pytest.approx(decisions[better]["rank"] - decisions[worse]["rank"], abs=1e-6)
                and row["margin"] > 0
            )
            assert row["chosen"] == candidates[better]["edited_image"] != row["rejected"] == candidates[worse]["edited_image"]
            assert row["original_image"] == candidates[better]["image"] and row["prompt"] == candidates[better]["instruction"]
    card = (output / "README.md").read_text()
    assert (
        "- config_name: inverted" in card
        and "path: preferences/train-*.parquet" in card
        and "device seconds a kept record" in card
    )


@pytest.mark.timeout(300)
def test_a_finished_one_is_left_alone(config: SynthesizeConfig, summary: SynthesisSummary) -> None:
    before = times(Path(config.output) / "data")
    again = run_synthesis(config)
    assert again.was_finished and again.counts == summary.counts and times(Path(config.output) / "data") == before
    with pytest.raises(
        ConfigError, match="which holds a synthesis of other settings: candidates=3, was 2; allowed: those it was"
    ):
        run_synthesis(dataclasses.replace(config, candidates=3))


@pytest.mark.timeout(300)
def test_other_thresholds_select_again_without_editing(config: SynthesizeConfig, summary: SynthesisSummary) -> None:
    output = Path(config.output)
    untouched = [times(output / name) for name in ("pairs", "candidates/data", "scores")]
    more = dataclasses.replace(
        config, select_only=True, filters=dataclasses.replace(FILTERS, per_pair=2, max_distance=None), validation_fraction=0.0
    )
    data = {path.name: path.read_bytes() for path in (output / "data").iterdir()}
    selected = run_synthesis(more)
    assert selected.counts == {"pair": 4, "kept": 2 * PAIRS}
    few = dataclasses.replace(more, filters=FILTERS, validation_fraction=0.09)  # of six records: less than one
    assert run_synthesis(few).records == {"train": PAIRS - 1, "validation": 0}
    selected = run_synthesis(more)
    assert selected.records == {"train": 2 * PAIRS, "validation": 0}
    assert sorted(path.name for path in (output / "data").iterdir()) == ["train-00000-of-00001.parquet"]
    none = dataclasses.replace(
        config, select_only=True, filters=dataclasses.replace(FILTERS, min_clip_direction=1.0), keep_rejected=True
    )
    selected = run_synthesis(none)
    assert selected.counts == {"pair": 4, "clip_direction": 2 * PAIRS} and not (output / "data").exists()
    rejected = rows_of(output / "rejected")
    assert len(rejected) == 2 * PAIRS and {row["outcome"] for row in rejected} == {"clip_direction"}
    assert all(row["reason"].endswith("< 1") and row["edited_image"]["bytes"] for row in rejected)
    assert run_synthesis(dataclasses.replace(config, select_only=True)).counts == summary.counts
    assert {path.name: path.read_bytes() for path in (output / "data").iterdir()} == data
    assert [times(output / name) for name in ("pairs", "candidates/data", "scores")] == untouched


@pytest.mark.timeout(300)
def test_what_is_lost_is_made_again_the_same_and_the_rest_stands(config: SynthesizeConfig, summary: SynthesisSummary) -> None:
    output, first = Path(config.output), Path(f"{config.output}-first")
    for path in (first / "pairs").iterdir():
        assert (output / "pairs" / path.name).read_bytes() == path.read_bytes()
    before, after = (times(folder / "candidates" / "data") for folder in (first, output))
    lost, *others = sorted(before)
    assert others and all(after[name] == before[name] for name in others) and after[lost] != before[lost]
    made, again = (pq.read_table(folder / "candidates" / "data" / lost).to_pylist() for folder in (first, output))
    for row, same in zip(made, again, strict=True):
        assert all(row[name] == same[name] for name in ("pair_id", "candidate", "image", "edited_image", "edit_mask"))
    scored, anew = ({(row["pair_id"], row["candidate"]): row for row in rows_of(place / "scores")} for place in (first, output))
    assert scored and all(anew[key] == row for key, row in scored.items())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_true_edits_are_counted_for_drawn_scenes(config: SynthesizeConfig, cluster: None, tmp_path: Path) -> None:
    write_records(tmp_path / "in" / "x.parquet", RECORDS[:1])
    options = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "candidates": 1, "truth": True}
    options |= {"edits_per_caption": 2, "turns": True}
    counted = run_synthesis(dataclasses.replace(config, **options))
    # The model has random weights.
    assert counted.truth is not None and "100.0 % of 2 requested candidates were kept" in counted.truth
    assert ["all", "2", "0.0", "%"] == counted.truth.splitlines()[3].split()[:4]
    first, second = rows_of(tmp_path / "out" / "data")
    (turn,) = rows_of(tmp_path / "out" / "turns")
    assert [turn[f"image_{number}"] for number in range(3)] == [
        first["edited_image"],
        first["original_image"],
        second["edited_image"],
    ]
    assert turn["edit_prompt_2"] == second["edit_prompt"] and turn["edit_prompt_1"].startswith("change the ")
    assert [turn[f"prompt_{number}"] for number in range(3)] == [
        first["edited_prompt"],
        first["original_prompt"],
        second["edited_prompt"],
    ]
    card, page = ((tmp_path / "out" / name).read_text() for name in ("README.md", "report.html"))
    assert "| all | 2 | 0.0 % [" in card and "Truly right edits" in page
    assert run_synthesis(dataclasses.replace(config, **options)).truth == counted.truth


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_dry_run_measures_and_writes_nothing(
    config: SynthesizeConfig, cluster: None, make_picture: MakePicture, tmp_path: Path
) -> None:
    rows = [
        {"image": make_picture(n), "source_prompt": "a cat", "target_prompt": f"a {word}"}
        for n, word in enumerate(("dog", "cow", "cat"))
    ]
    write_records(tmp_path / "in" / "x.parquet", rows)
    options = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "columns": {}, "scoring_clip": None}
    estimate = estimate_synthesis(dataclasses.replace(config, **options))
    assert (estimate.records, estimate.candidates, estimate.kept_at_most) == (3, 4, 2) and estimate.sample is not None
    assert estimate.sample.editing_s > 0 and estimate.sample.drawing_s == 0 and estimate.sample.candidate_bytes > 1000
    assert "rows:   4 candidates, of which at most 2 are kept" in estimate_text(estimate)
    assert not (tmp_path / "out").exists()


def test_selecting_needs_candidates(config: SynthesizeConfig, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="^select_only: got true, but .*/candidates holds no finished candidates; allowed: false"
    ):
        run_synthesis(dataclasses.replace(config, output=str(tmp_path), select_only=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "input, output: got nothing; required: input=... output=..."),
        (["input=in", "output=out", "filter.per_pair=2"], "filter: got an unknown key; did you mean filters.per_pair?"),
        (["input=in", "output=out", "spread.self_window=[1]"], "spread.self_window: got [1.0]; allowed: [from, to], or []"),
        (["input=in", "output=out", "truth=true"], "truth: got true with words=general; allowed: words=scenes"),
        (["input=in", "output=out", "filters.best_by=luck"], "filters.best_by: got 'luck'; allowed: auto, clip_direction"),
    ],
)
def test_what_is_refused(handlers: None, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"jobs.synthesize: {message}")


def test_an_input_that_is_not_there_is_refused(handlers: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([f"input={tmp_path / 'none'}", f"output={tmp_path / 'out'}"]) == 2
    assert "where there is no Parquet file" in capsys.readouterr().err
    pq.write_table(pa.table({"source_prompt": ["a cat"]}), tmp_path / "x.parquet")
    assert main([f"input={tmp_path / 'x.parquet'}", f"output={tmp_path / 'out'}", "words=none.toml"]) == 2
    assert "jobs.synthesize: words: got 'none.toml', which cannot be read" in capsys.readouterr().err
    pq.write_table(pa.table({"source_prompt": pa.array([], pa.string())}), tmp_path / "x.parquet")
    assert main([f"input={tmp_path / 'x.parquet'}", f"output={tmp_path / 'out'}"]) == 2
    assert "x.parquet', whose files hold no records; allowed: at least one" in capsys.readouterr().err
