"""What coding pictures takes: CPU time and size of each way to write a result, on pictures of several kinds."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pipelines.store.location import check_writable, list_files, locate, read_bytes
from pipelines.tables import Table
from pipelines.timing.bench_output import write_numbers
from pipelines.timing.engine_bench import environment
from vimaedit.config import check_range, check_types
from vimaedit.errors import ConfigError
from vimaedit.images import CODINGS, CanvasSpec, decode_image, fit_image
from vimaedit.performance.pictures import PHOTOGRAPH, grainy_picture
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
    """The suite `images` of `jobs.bench`: size and CPU time of the ways to write a picture."""

    suite: str = "images"  # this one
    output: str | None = None  # folder, local or any fsspec URL; gets images.json and images.md
    pictures: str | None = None  # folder with pictures of your own, local or any fsspec URL; unset: drawn ones only
    count: int = 8  # pictures of each kind
    size: int = 512  # their side in px
    rounds: int = 5  # times that each is coded and decoded; the fastest counts

    def __post_init__(self) -> None:
        check_types(self)
        for name, low, high in (("count", 1, 10_000), ("size", 32, 4096), ("rounds", 1, 1000)):
            check_range(name, getattr(self, name), low, high)


def run_image_bench(config: ImageBenchConfig, show: Callable[[str], None]) -> tuple[dict[str, Any], list[Table]]:
    """Measure, write what `output` asks for, and return the numbers and their tables. `show` is told what is done now.

    Raises: ConfigError for a folder without pictures.
    """
    output = None if config.output is None else locate(config.output)
    if output is not None:
        check_writable(output)
    figures = []
    for kind, pictures in picture_kinds(config).items():
        show(f"{kind}: {len(pictures)} pictures")
        figures += [{"kind": kind, "way": way, **measure_way(WAYS[way], pictures, config.rounds)} for way in WAYS]
    settings = {name: value for name, value in vars(config).items() if name not in ("suite", "output")}
    numbers = {"environment": environment(), "settings": settings, "figures": figures}
    tables = [make_table(numbers)]
    if output is not None:
        write_numbers(output, "images", numbers, tables)
    return numbers, tables


def picture_kinds(config: ImageBenchConfig) -> dict[str, list[UInt8Array]]:
    """Return the pictures to code: drawn scenes, smooth ones with grain, and the user's."""
    seeds = [benchmark_seed("test", 0, number) for number in range(config.count)]
    kinds = {"drawn scenes": [render_scene(sample_scene(seed), config.size) for seed in seeds]}
    for name, grain in GRAINS.items():
        kinds[name] = [grainy_picture(number, config.size, grain) for number in range(config.count)]
    if config.pictures is not None:
        kinds[config.pictures] = _own_pictures(config.pictures, config)
    return kinds


def _own_pictures(url: str, config: ImageBenchConfig) -> list[UInt8Array]:
    folder = locate(url)
    names = [name for name, _ in list_files(folder) if name.lower().endswith(SUFFIXES)][: config.count]
    if not names:
        raise ConfigError(f"pictures: got {url!r}, where there is no picture; allowed: a folder of {', '.join(SUFFIXES)} files")
    canvas = CanvasSpec(fit="crop", size=config.size, granularity=1)
    pictures = [decode_image(read_bytes(folder / name), min_side_px=1, max_pixels=100_000_000) for name in names]
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


def make_table(numbers: Mapping[str, Any]) -> Table:
    """Lay out the numbers."""
    facts, settings = numbers["environment"], numbers["settings"]
    return Table(
        title="Ways to write a picture",
        columns=("pictures", "way", "encode, CPU ms", "decode, CPU ms", "kB"),
        rows=tuple(
            (each["kind"], each["way"], *(f"{each[name]:.1f}" for name in ("encode_ms", "decode_ms", "kb")))
            for each in numbers["figures"]
        ),
        note=f"{settings['size']} px; {facts['processor']}, one thread. Results are written as PNG 1, WebP lossless 0 or JPEG 95 "
        "(image_format).",
    )
