"""`jobs.sweep` on the built-in random model: the grid holds what single edits give, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.sweep import main
from pipelines.edit.grid import GAP_PX, LABEL_PX, MASK_PX, PICTURE_PX, Sweep, grid_size, parse_sweep
from tests.command_lines import instead
from vimaedit import ConfigError, EditConfig, ViMAEditPipeline
from vimaedit.config import Thresholds, Windows
from vimaedit.scenes.render import render_scene
from vimaedit.scenes.sampling import sample_scene

SOURCE, TARGET = "an orange triangle on a wooden table", "an orange heart on a wooden table"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    Image.fromarray(render_scene(sample_scene(3), 128)).save(tmp_path / "scene.png")
    texts = [f"source_prompt={SOURCE}", f"target_prompt={TARGET}", "blend_words=triangle heart", "model=random", "steps=2"]
    return [f"image={tmp_path / 'scene.png'}", f"output={tmp_path / 'out' / 'grid.png'}", *texts]


def cell(grid: Image.Image, column: int, row: int, side: int, down: int = 0, right: int = 0) -> np.ndarray:
    left = GAP_PX + column * (PICTURE_PX + GAP_PX) + right
    top = LABEL_PX + row * (PICTURE_PX + MASK_PX + GAP_PX) + down
    return np.asarray(grid.crop((left, top, left + side, top + side)), int)


def test_every_cell_is_the_edit_with_its_options(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "sweep=thresholds.edit=0.2,0.6,0.9 windows.self=0,1"]) == 0
    grid = Image.open(tmp_path / "out" / "grid.png")
    assert grid.size == grid_size(3, 2)
    assert capsys.readouterr().out.startswith("6 edits: ")
    pipe = ViMAEditPipeline.from_pretrained("random")
    for column, threshold in enumerate((0.2, 0.6, 0.9), start=1):
        for row, window in enumerate((0.0, 1.0)):
            pipe.config = EditConfig(steps=2, thresholds=Thresholds(edit=threshold), windows=Windows(self=window))
            output = pipe(tmp_path / "scene.png", SOURCE, TARGET, blend="triangle heart")
            wanted = output.images[0].resize((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
            assert np.abs(cell(grid, column, row, PICTURE_PX) - np.asarray(wanted, int)).max() <= 1
            for right, mask in ((0, output.masks[0]), (MASK_PX, output.critical_masks[0])):
                assert mask is not None
                shown = cell(grid, column, row, MASK_PX, down=PICTURE_PX, right=right)
                assert (shown[..., 0] == np.asarray(mask.resize((MASK_PX, MASK_PX), Image.Resampling.NEAREST))).all()
    source = Image.open(tmp_path / "scene.png").resize((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    assert np.abs(cell(grid, 0, 1, PICTURE_PX) - np.asarray(source, int)).max() <= 1


def test_one_option_and_options_without_a_mask(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "sweep=blend=auto,none"]) == 0
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.size == grid_size(2, 1)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sweep=", "sweep: got ''; allowed: KEY=VALUE,VALUE,... of one option, or of two different ones"),
        ("sweep=steps=1 steps=2", "sweep: got 'steps=1 steps=2'; allowed: KEY=VALUE,VALUE,... of one option"),
        ("sweep=steps=1 eta=1 seed=3", "sweep: got 'steps=1 eta=1 seed=3'; allowed: "),
        ("sweep=steps", "sweep: got no values for steps; allowed: KEY=VALUE,VALUE,..."),
        ("sweep=model=random", "sweep: got the key 'model'; allowed: options of the edit, such as thresholds.edit"),
        ("sweep=thresholds.edti=0.5", "thresholds.edti: got an unknown key; did you mean thresholds.edit?"),
        ("sweep=steps=1,many", "steps: got 'many'; allowed: "),
        ("sweep=thresholds.edit=0.5,7", "thresholds.edit: got 7; allowed: -1.0 to 1.0"),
        ("sweep=variance=zero,some", "variance: got 'some'; allowed: adaptive, uniform, zero"),
        ("frame=original", "frame: got original; allowed: canvas, which a grid shows"),
    ],
)
def test_what_is_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, message: str) -> None:
    assert main(instead([*words, "sweep=thresholds.edit=0.5"], word)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sweep_reads_options_and_values() -> None:
    assert parse_sweep("windows.self=1") == Sweep(column_key="windows.self", columns=["1"])
    sweep = parse_sweep("steps=2,4  method=vimaedit,p2p")
    assert sweep == Sweep(column_key="steps", columns=["2", "4"], row_key="method", rows=["vimaedit", "p2p"])
    assert sweep.options("2", "p2p") == [("method", "p2p"), ("steps", "2")]
    with pytest.raises(ConfigError, match="sweep: got no values"):
        parse_sweep("steps=")
    for values in (",", "2,,3", "2,"):
        with pytest.raises(ConfigError, match=f"^sweep: got a value of steps that is empty, '{values}'; allowed: KEY=VALUE"):
            parse_sweep(f"steps={values}")
