"""The built-in trained family: its files, its names, and that it knows the scene world (figures of quality: its card)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs._cli.options import load_config, parse_command_line
from pipelines.output.config import EditJobConfig
from vimaedit.config import ModelConfig
from vimaedit.engine.load import load_editor
from vimaedit.metrics.clip import ClipScore
from vimaedit.miniature.training.bundle import RECIPE
from vimaedit.miniature.training.card import num_found
from vimaedit.miniature.training.data import captioned_scene
from vimaedit.models.files import SHIPPED, recipe_config, resolve_model
from vimaedit.scenes.benchmark import benchmark_seed
from vimaedit.scenes.edits import Edit, make_edit
from vimaedit.scenes.reading.find import read_unknown
from vimaedit.scenes.reading.judge import judge_edit
from vimaedit.scenes.render import render_scene
from vimaedit.synthesis.text_to_image import draw_pictures, load_text_to_image
from vimaedit.types import EditRequest, EditResult, Status

MEGABYTE = 1_000_000
NUM_EDITS = 6
NUM_DRAWN = 4


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def job(*words: str) -> EditJobConfig:
    return load_config(EditJobConfig, parse_command_line(["input=in", "output=out", *words]), ("input", "output"))


def run(category: str) -> list[tuple[Edit, EditResult]]:
    """Edit the first scenes of the validation split, all with an edit of one category."""
    edits = [make_edit(benchmark_seed("validation", 0, index), category) for index in range(NUM_EDITS)]
    recipe = recipe_config("miniature")
    editor = load_editor(dataclasses.replace(recipe, steps=min(recipe.steps, 8)), ModelConfig(device="cpu"))
    requests = [
        EditRequest(
            id=str(index),
            image=render_scene(edit.source, 128),
            source_prompt=edit.source_prompt,
            target_prompt=edit.target_prompt,
            blend=edit.blend,
        )
        for index, edit in enumerate(edits)
    ]
    return list(zip(edits, editor(requests), strict=True))


def test_the_files_keep_within_their_sizes() -> None:
    assert size_of(SHIPPED / "miniature") <= 16 * MEGABYTE
    assert size_of(SHIPPED / "scoring_clip") <= 4 * MEGABYTE


def test_it_is_the_default_with_a_recipe_of_its_own_and_no_warning() -> None:
    stated = resolve_model(job()).bundle
    assert job().model == "miniature" and "warning" not in stated
    assert stated["recipe"] == RECIPE  # which training writes
    assert agrees(job(), {name: value for name, value in RECIPE.items() if name != "methods"})
    for method, options in RECIPE["methods"].items():
        assert agrees(recipe_config("miniature", method), options)


def agrees(config: object, options: dict[str, Any]) -> bool:
    return all(
        agrees(getattr(config, name), value) if isinstance(value, dict) else getattr(config, name) == value
        for name, value in options.items()
    )


def test_a_background_is_changed_as_the_target_says() -> None:
    done = run("change_background")
    assert all(result.status == Status.OK for _, result in done)
    right = [
        judge_edit(result.image, edit.source, edit.target, edit.source_index, edit.target_index).edited_right
        for edit, result in done
        if result.image is not None
    ]
    unedited = [
        judge_edit(result.source, edit.source, edit.target, edit.source_index, edit.target_index).edited_right
        for edit, result in done
    ]
    assert not any(unedited) and sum(right) >= NUM_EDITS // 2


def test_both_clips_know_the_captions() -> None:
    scenes, captions = zip(*(captioned_scene(benchmark_seed("validation", 0, index)) for index in range(40)), strict=True)
    pictures = [render_scene(scene, 128) for scene in scenes]
    for name in (str(resolve_model(ModelConfig()).clip), "miniature"):
        with torch.inference_mode():
            assert num_found(ClipScore(name), pictures, captions) >= 34


def test_the_stock_pipeline_draws_the_named_background() -> None:
    seeds = [benchmark_seed("validation", 0, index) for index in range(NUM_DRAWN)]
    scenes, captions = zip(*(captioned_scene(seed) for seed in seeds), strict=True)
    pipe = load_text_to_image(resolve_model(ModelConfig()), "cpu", "float32")
    drawn = draw_pictures(pipe, captions, seeds, steps=8, guidance=4.0)
    assert np.isfinite(np.stack(drawn)).all()
    right = [
        read_unknown(picture, max_objects=0).background.colour == scene.background.colour
        for scene, picture in zip(scenes, drawn, strict=True)
    ]
    assert sum(right) >= NUM_DRAWN // 2
