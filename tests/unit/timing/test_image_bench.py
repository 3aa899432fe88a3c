"""The suite `images`: ways to write pictures, measured on real ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.output.config import EditJobConfig
from pipelines.timing.image_bench import WAYS, ImageBenchConfig, run_image_bench
from vimaedit.errors import ConfigError
from vimaedit.performance.pictures import grainy_picture


def test_every_way_is_measured_on_every_kind(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    Image.fromarray(grainy_picture(5, 90)).save(tmp_path / "own" / "a.JPG", format="jpeg")
    config = ImageBenchConfig(pictures=str(tmp_path / "own"), output=str(tmp_path / "out"), count=2, size=64, rounds=1)
    said: list[str] = []
    numbers, (table,) = run_image_bench(config, said.append)
    kinds = ["drawn scenes", "fine grain", "grain of a photograph", str(tmp_path / "own")]
    assert [(each["kind"], each["way"]) for each in numbers["figures"]] == [(kind, way) for kind in kinds for way in WAYS]
    size = {(each["kind"], each["way"]): each["kb"] for each in numbers["figures"]}
    assert size["drawn scenes", "PNG 0"] > 64 * 64 * 3 / 1000 > size["drawn scenes", "WebP lossless 0"]
    assert size["fine grain", "PNG 1"] < size["grain of a photograph", "PNG 1"]
    assert len(said) == 4 and "grain of a photograph" in table.text()
    written = json.loads((tmp_path / "out" / "images.json").read_text())
    assert len(written["settings_digest"]) == 32 and written["figures"] == numbers["figures"]
    assert (tmp_path / "out" / "images.md").read_text().startswith("## Ways to write a picture")


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pictures: got .*, where there is no picture; allowed: a folder of .png, .jpg"):
        run_image_bench(ImageBenchConfig(pictures=str(tmp_path), size=32, count=1), lambda text: None)


def test_grain_is_noise_on_the_same_picture() -> None:
    smooth, grainy = (grainy_picture(1, 64, grain).astype(int) for grain in (0.0, 3.0))
    within = (smooth > 12) & (smooth < 243)
    assert 2.5 < (grainy - smooth)[within].std() < 3.5 and np.array_equal(grainy_picture(1, 64), grainy_picture(1, 64))


@pytest.mark.parametrize(
    ("options", "coding"), [({}, "webp"), ({"frame": "original"}, "png"), ({"image_format": "jpeg"}, "jpeg")]
)
def test_pictures_are_written_as_is_best_for_their_frame(options: dict, coding: str) -> None:
    assert EditJobConfig(input="a", output="b", **options).picture_coding == coding
