"""Write a small Parquet data set of drawn pictures with prompts: something to try `jobs.edit` on."""

from __future__ import annotations

import io
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from jobs._main import EXIT_DONE, run_job

OVERSAMPLING = 2  # drawn larger and shrunk, for smooth edges
COLOURS = {
    "red": (206, 40, 42),
    "blue": (38, 84, 196),
    "yellow": (245, 203, 40),
    "purple": (130, 60, 170),
    "orange": (240, 130, 30),
    "white": (245, 245, 245),
    "pink": (240, 120, 170),
}
PLACES = {  # sky, ground
    "green lawn": ((150, 205, 245), (86, 158, 66)),
    "sandy beach": ((120, 190, 235), (226, 200, 150)),
    "snowy field": ((190, 205, 225), (238, 242, 248)),
    "wooden table": ((225, 215, 200), (142, 94, 56)),
    "grey road": ((180, 190, 200), (104, 106, 112)),
    "dark stage": ((34, 30, 52), (62, 48, 58)),
}


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What `jobs.demo_records` is told."""

    output: str = ""  # local folder; gets records.parquet
    seed: int = 0  # of the ground's texture


@dataclass(frozen=True)
class Scene:
    """One shape in one place, and what it shall become. `phrases`: None leaves it to the prompts to say what changes."""

    colour: str
    shape: str
    place: str
    new_colour: str
    new_shape: str
    phrases: tuple[str | None, str | None] | None = None
    size: tuple[int, int] = (256, 256)  # width, height in px


SCENES = (
    Scene("red", "circle", "green lawn", "red", "star", ("circle", "star")),
    Scene("blue", "square", "sandy beach", "blue", "circle"),
    Scene("yellow", "star", "dark stage", "purple", "star", ("yellow", "purple")),
    Scene("orange", "triangle", "wooden table", "orange", "heart", ("triangle", "heart"), size=(384, 256)),
    Scene("purple", "heart", "snowy field", "red", "heart"),
    Scene("white", "circle", "grey road", "yellow", "circle"),
    Scene("pink", "star", "green lawn", "pink", "square", ("pink star", "pink square")),
    Scene("red", "triangle", "sandy beach", "blue", "triangle"),
    Scene("blue", "heart", "wooden table", "blue", "star", ("heart", "star")),
    Scene("yellow", "square", "grey road", "orange", "square"),
    Scene("purple", "circle", "dark stage", "white", "star", ("purple circle", "white star")),
    Scene("orange", "star", "snowy field", "orange", "triangle"),
)


def draw_scene(scene: Scene, texture: random.Random) -> Image.Image:
    """Draw a scene: sky, textured ground, the shape's shadow and the shape, as an RGB picture of the scene's size."""
    width, height = (side * OVERSAMPLING for side in scene.size)
    sky, ground = PLACES[scene.place]
    picture = Image.new("RGB", (width, height), sky)
    canvas = ImageDraw.Draw(picture)
    horizon = int(height * 0.55)
    for y in range(horizon):
        canvas.line([(0, y), (width, y)], fill=_shade(sky, 1.0 - 0.25 * (horizon - y) / horizon))
    canvas.rectangle([0, horizon, width, height], fill=ground)
    for _ in range(700):
        x, y = texture.randrange(width), texture.randrange(horizon, height)
        length = 2 + 14 * (y - horizon) / (height - horizon)
        canvas.line([(x, y), (x + length, y)], fill=_shade(ground, texture.uniform(0.85, 1.12)), width=OVERSAMPLING)
    centre, radius = (width / 2, height * 0.56), height * 0.26
    canvas.ellipse(
        [centre[0] - radius, centre[1] + 0.8 * radius, centre[0] + radius, centre[1] + 1.25 * radius], fill=_shade(ground, 0.6)
    )
    outline = [(centre[0] + radius * x, centre[1] + radius * y) for x, y in shape_outline(scene.shape)]
    canvas.polygon(outline, fill=COLOURS[scene.colour])
    return picture.resize(scene.size, Image.Resampling.LANCZOS)


def shape_outline(shape: str) -> list[tuple[float, float]]:
    """Return the corners of a shape around the origin, within about one unit; y points down."""
    turns = [math.tau * index / 60 for index in range(60)]
    if shape == "circle":
        return [(math.cos(turn), math.sin(turn)) for turn in turns]
    if shape == "heart":
        return [
            (
                math.sin(turn) ** 3,
                -(13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)) / 16,
            )
            for turn in turns
        ]
    if shape == "star":
        radii = [1.0, 0.42] * 5
        return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]
    corners = {"square": (4, math.pi / 4), "triangle": (3, 0.0)}
    count, first = corners[shape]
    return [(math.sin(first + math.tau * i / count), -math.cos(first + math.tau * i / count)) for i in range(count)]


def demo_table(seed: int) -> pa.Table:
    """Return the records: id, image (PNG), both prompts, and blend words where the scene names them."""
    texture = random.Random(seed)
    rows = []
    for index, scene in enumerate(SCENES):
        png = io.BytesIO()
        draw_scene(scene, texture).save(png, format="PNG")
        rows.append(
            {
                "id": f"demo-{index:02d}",
                "image": {"bytes": png.getvalue(), "path": None},
                "source_prompt": f"{article(scene.colour)} {scene.colour} {scene.shape} on a {scene.place}",
                "target_prompt": f"{article(scene.new_colour)} {scene.new_colour} {scene.new_shape} on a {scene.place}",
                "blend_words": None if scene.phrases is None else [{"source": scene.phrases[0], "target": scene.phrases[1]}],
            }
        )
    phrase = pa.struct([("source", pa.string()), ("target", pa.string())])
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("source_prompt", pa.string()),
            ("target_prompt", pa.string()),
            ("blend_words", pa.list_(phrase)),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def article(word: str) -> str:
    """Return the indefinite article before a word."""
    return "an" if word[0] in "aeiou" else "a"


def _shade(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def _write(config: DemoConfig) -> int:
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    table = demo_table(config.seed)
    pq.write_table(table, folder / "records.parquet")
    print(f"{table.num_rows} records: {folder / 'records.parquet'}")
    return EXIT_DONE


def main(words: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(DemoConfig, _write, words, name="demo_records", summary=__doc__ or "", required=("output",))


if __name__ == "__main__":
    sys.exit(main())
