"""What coding pictures takes: CPU time and size of each way to write a result, on pictures of several kinds.

`python -m tests.timing.images key=value ...`
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.tables import Table
from tests.timing.pictures import PHOTOGRAPH, grainy_picture
from tests.timing.report import processor, run_suite, say
from vimaedit.config import check_range, check_types
from vimaedit.decoding import decode_image
from vimaedit.errors import ConfigError
from vimaedit.images import CODINGS, CanvasSpec, fit_image
from vimaedit.scenes.benchmark import benchmark_seed
from vimaedit.scenes.render import render_scene
from vimaedit.scenes.sampling import sample_scene
from vimaedit.types import UInt8Array

Coding = tuple[str, Mapping[str, int | bool]]
WAYS: dict[str, Coding] = {
    "PNG 0": ("png", {"compress_level": 0}),
    "PNG 1": ("png", CODINGS["png"]),
    "PNG 6": ("png", {"compress_level": 6}),
    "WebP lossless 0": ("webp", CODINGS["webp"]),
    "WebP lossless 4": ("webp", {"lossless": True, "method": 4}),
    "JPEG 95": ("jpeg", CODINGS["jpeg"]),
}
GRAINS = {"fine grain": PHOTOGRAPH / 3, "grain of a photograph": PHOTOGRAPH}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class ImageBenchConfig:
    """Size and CPU time of the ways to write a picture."""

    output: str = ""  # Markdown file to whose end the tables are added
    pictures: str = ""  # folder with pictures of your own; none: drawn ones only
    count: int = 8  # pictures of each kind
    size: int = 512  # their side in px
    rounds: int = 5  # times that each is coded and decoded; the fastest counts

    def __post_init__(self) -> None:
        check_types(self)
        for name, low, high in (("count", 1, 10_000), ("size", 32, 4096), ("rounds", 1, 1000)):
            check_range(name, getattr(self, name), low, high)


def measure(config: ImageBenchConfig) -> Iterator[Table]:
    """Measure and yield the table.

    Raises: ConfigError for a folder without pictures.
    """
    figures = []
    for kind, pictures in picture_kinds(config).items():
        say(f"{kind}: {len(pictures)} pictures")
        figures += [{"kind": kind, "way": way, **measure_way(WAYS[way], pictures, config.rounds)} for way in WAYS]
    yield make_table(config, figures)


def picture_kinds(config: ImageBenchConfig) -> dict[str, list[UInt8Array]]:
    """Return the pictures to code: drawn scenes, smooth ones with grain, and the user's."""
    seeds = [benchmark_seed("test", 0, number) for number in range(config.count)]
    kinds = {"drawn scenes": [render_scene(sample_scene(seed), config.size) for seed in seeds]}
    for name, grain in GRAINS.items():
        kinds[name] = [grainy_picture(number, config.size, grain) for number in range(config.count)]
    if config.pictures:
        kinds[config.pictures] = _own_pictures(Path(config.pictures), config)
    return kinds


def _own_pictures(folder: Path, config: ImageBenchConfig) -> list[UInt8Array]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)[: config.count]
    if not paths:
        raise ConfigError(
            f"pictures: got {str(folder)!r}, where there is no picture; allowed: a folder of {', '.join(SUFFIXES)} files"
        )
    canvas = CanvasSpec(fit="crop", size=config.size, granularity=1)
    pictures = [decode_image(path.read_bytes(), min_side_px=1, max_pixels=100_000_000) for path in paths]
    return [fit_image(picture, canvas).image for picture in pictures]


def measure_way(way: Coding, pictures: Sequence[UInt8Array], rounds: int) -> dict[str, float]:
    """Return CPU milliseconds to code and to decode a picture, the fastest round's, and its kB."""
    name, options = way
    coded: list[bytes] = []

    def code() -> None:
        coded.clear()
        for picture in pictures:
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, format=name, **options)
            coded.append(buffer.getvalue())

    def decode() -> None:
        for each in coded:
            Image.open(io.BytesIO(each)).load()

    return {
        "encode_ms": _fastest_ms(code, rounds) / len(pictures),
        "decode_ms": _fastest_ms(decode, rounds) / len(pictures),
        "kb": sum(map(len, coded)) / len(pictures) / 1000,
    }


def _fastest_ms(work: Callable[[], None], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return 1000 * min(found)


def make_table(config: ImageBenchConfig, figures: Sequence[Mapping[str, Any]]) -> Table:
    """Lay out the numbers."""
    return Table(
        title="Ways to write a picture",
        columns=("pictures", "way", "encode, CPU ms", "decode, CPU ms", "kB"),
        rows=tuple(
            (each["kind"], each["way"], *(f"{each[name]:.1f}" for name in ("encode_ms", "decode_ms", "kb"))) for each in figures
        ),
        note=f"{config.size} px; {processor()}, one thread. Results are written as PNG 1, WebP lossless 0 or JPEG 95 (image_format).",
    )


if __name__ == "__main__":
    sys.exit(run_suite("images", ImageBenchConfig, measure, sys.argv[1:]))
