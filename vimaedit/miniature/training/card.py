"""What only the model's card asks: round trips, pictures from captions, captions found by the CLIPs, and the pixel reader's own errors.

`python -m vimaedit.miniature.training.card model=outputs/family/miniature scoring_clip=outputs/family/scoring_clip output=card.md`;
how well the model edits is measured by `jobs.evaluate`.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vimaedit.checks import check_choice, check_range, check_types
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.metrics.clip import ClipScore
from vimaedit.metrics.samples import EditSample
from vimaedit.metrics.statistics import wilson_interval
from vimaedit.metrics.suite import MetricSuite
from vimaedit.miniature.family import CANVAS_SIZE
from vimaedit.miniature.training.data import captioned_scene, render_batch
from vimaedit.miniature.training.options import parse_options
from vimaedit.models.backbone import Backbone
from vimaedit.models.files import ModelFiles, resolve_model
from vimaedit.models.networks import choose_device, load_networks, quiet_libraries
from vimaedit.scenes.benchmark import benchmark_seed, spread_categories
from vimaedit.scenes.edits import CATEGORIES, edit_mask, make_edit
from vimaedit.scenes.reading.find import read_unknown
from vimaedit.scenes.reading.judge_compare import Comparison, compare_objects
from vimaedit.scenes.reading.reader import attributes_of, layout_of, read_scene
from vimaedit.scenes.scenes import SPLITS, Scene
from vimaedit.synthesis.text_to_image import draw_pictures, load_text_to_image
from vimaedit.types import UInt8Array

OBJECT_COUNTS = (1, 2)
BATCH = 8  # pictures at a time
EXIT_DONE, EXIT_CONFIG = 0, 2


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """Which model, and how much of everything."""

    model: str = "miniature"  # built-in name or bundle folder
    scoring_clip: str = "miniature"  # the CLIP that judges: name, folder or hub id
    output: str = ""  # Markdown file; none: the tables are printed only
    split: str = "test"  # train, validation, test
    seed: int = 0  # another seed, other scenes
    count: int = 100  # scenes of round trips, and captions among which each CLIP looks for the one of a picture
    pictures: int = 20  # drawn from captions for each number of objects; 0: none
    steps: int = 50  # of those, with the stock pipeline
    guidance: float = 7.5  # likewise
    device: str = "auto"  # auto, cpu, cuda

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("split", self.split, SPLITS)
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        for name, low, high in (("seed", 0, 2**20), ("count", 2, 10_000), ("pictures", 0, 10_000), ("steps", 1, 999)):
            check_range(name, getattr(self, name), low, high)
        check_range("guidance", self.guidance, 0.0, 100.0)


def measure_card(config: CardConfig) -> str:
    """Measure everything and return it as Markdown.

    Raises: ConfigError for a model or CLIP that cannot be loaded.
    """
    device = str(choose_device(config.device))
    files = resolve_model(ModelConfig(model=config.model, device=device))
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as readers:
        parts = [
            *_round_trips(config, files, device, readers),
            *(_text_to_image(config, files, device, readers) if config.pictures else ()),
            _retrieval(config, files, device),
        ]
    return "\n\n".join([f"# What {files.name} can do besides editing", *parts]) + "\n"


def _round_trips(config: CardConfig, files: ModelFiles, device: str, readers: ProcessPoolExecutor) -> Iterable[str]:
    """Take the benchmark's pictures through the autoencoder and back; yield the distances and the reader's errors on both."""
    categories = spread_categories(config.count, CATEGORIES)
    edits = [make_edit(_seed(config, index), category) for index, category in enumerate(categories)]
    sources = render_batch([edit.source for edit in edits])
    returned = round_trip(_backbone(files, device), list(sources))
    samples = [
        EditSample(
            source=source, edited=picture, source_prompt="", target_prompt="", reference_mask=edit_mask(edit, CANVAS_SIZE)
        )
        for edit, source, picture in zip(edits, sources, returned, strict=True)
    ]
    whole = [10 * np.log10(255**2 / _squared_error(each.source, each.edited)) for each in samples]
    background = [value for each in MetricSuite(["background"])(samples) if (value := each["background_psnr"]) is not None]
    finite = [value for value in background if np.isfinite(value)]
    row = (str(config.count), *(f"{value:.2f}" for value in (statistics.fmean(whole), min(whole), statistics.fmean(finite))))
    yield _table(
        f"Autoencoder round trip, {config.split} split (dB)",
        ("pictures", "PSNR", "least", "background PSNR, as of edits"),
        [row],
    )
    scenes = [edit.source for edit in edits]
    drawn = readers.map(read_attributes, scenes, sources, chunksize=8)
    after = readers.map(read_attributes, scenes, returned, chunksize=8)
    yield _table(
        "Attribute reader, right %", ("attribute", "readings", "as drawn", "after a round trip"), reader_rows(drawn, after)
    )


def _text_to_image(config: CardConfig, files: ModelFiles, device: str, readers: ProcessPoolExecutor) -> Iterable[str]:
    """Draw the first scenes of each number of objects from their captions, and read what came out."""
    chosen: list[tuple[int, Scene, str]] = []
    for number in OBJECT_COUNTS:
        every = ((seed, *captioned_scene(seed)) for seed in (_seed(config, index) for index in itertools.count()))
        chosen += itertools.islice((each for each in every if len(each[1].objects) == number), config.pictures)
    seeds, scenes, captions = zip(*chosen, strict=True)
    pipe = load_text_to_image(files, device, "float32")
    pictures = draw_pictures(pipe, captions, seeds, steps=config.steps, guidance=config.guidance)
    found = list(readers.map(compare_drawn, scenes, pictures))
    names = (*found[0].scene, *found[0].objects[0])
    yield _table(
        f"Text to image, right % ({config.steps} steps, guidance {config.guidance:g})",
        ("objects", "pictures", "everything [95 %]", *names, "too few", "too many"),
        [text_to_image_row(count, [each for each in found if len(each.objects) == count]) for count in OBJECT_COUNTS],
    )


def _retrieval(config: CardConfig, files: ModelFiles, device: str) -> str:
    """Let each CLIP find the captions of pictures as they were drawn."""
    scenes, captions = zip(*(captioned_scene(_seed(config, index)) for index in range(config.count)), strict=True)
    pictures = list(render_batch(scenes))
    rows = []
    for name, folder in (("steering CLIP", files.clip), ("scoring CLIP", config.scoring_clip)):
        if folder is not None:
            found = num_found(ClipScore(str(folder), device), pictures, captions)
            rows.append((name, str(config.count), _share(found, config.count)))
    return _table("Retrieval, picture to caption, first place %", ("CLIP", "captions", "found [95 %]"), rows)


def read_attributes(scene: Scene, picture: UInt8Array) -> list[tuple[str, bool]]:
    """Return the kind of every attribute of a scene, and whether the reader, told where its objects are, reads it right."""
    wanted, read = attributes_of(scene), attributes_of(read_scene(picture, layout_of(scene)))
    # objects.1.shape is a shape
    return [(name.split(".", 2)[2] if name.startswith("objects.") else name, read[name] == wanted[name]) for name in wanted]


def compare_drawn(scene: Scene, picture: UInt8Array) -> Comparison:
    """Say what of a scene its picture shows."""
    return compare_objects(scene, read_unknown(picture))


@torch.inference_mode()
def num_found(clip: ClipScore, images: Sequence[UInt8Array], texts: Sequence[str]) -> int:
    """Count the pictures whose own text is the nearest of all (equal texts are one)."""
    embeds = torch.cat([clip.embed_images(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])
    nearest = (embeds @ clip.embed_texts(texts).T).argmax(dim=1)
    return sum(texts[best] == text for best, text in zip(nearest.tolist(), texts, strict=True))


def round_trip(backbone: Backbone, images: Sequence[UInt8Array]) -> list[UInt8Array]:
    """Take pictures of one shape through a model's autoencoder and back."""
    returned: list[UInt8Array] = []
    for start in range(0, len(images), BATCH):
        pictures, _ = backbone.decode_latents(backbone.encode_images(np.stack(images[start : start + BATCH])))
        returned.extend(pictures)
    return returned


def reader_rows(
    drawn: Iterable[Sequence[tuple[str, bool]]], returned: Iterable[Sequence[tuple[str, bool]]]
) -> list[tuple[str, ...]]:
    """Say per kind of attribute how often the reader is right on pictures as drawn, and after a round trip."""
    rights: dict[str, tuple[list[bool], list[bool]]] = {}
    for place, pictures in enumerate((drawn, returned)):
        for kind, right in itertools.chain.from_iterable(pictures):
            rights.setdefault(kind, ([], []))[place].append(right)
    return [(kind, str(len(each[0])), *(_percent(statistics.fmean(own)) for own in each)) for kind, each in rights.items()]


def text_to_image_row(count: int, pictures: Sequence[Comparison]) -> tuple[str, ...]:
    """Say how often all is right, each attribute is, and objects are missing or too many. Objects' attributes: of all objects."""
    objects = [each for picture in pictures for each in picture.objects]
    return (
        str(count),
        str(len(pictures)),
        _share(sum(picture.all_right for picture in pictures), len(pictures)),
        *(_percent(statistics.fmean(each.scene[name] for each in pictures)) for name in pictures[0].scene),
        *(_percent(statistics.fmean(each[name] for each in objects)) for name in objects[0]),
        _percent(statistics.fmean(picture.num_missing > 0 for picture in pictures)),
        _percent(statistics.fmean(picture.num_extra > 0 for picture in pictures)),
    )


def _seed(config: CardConfig, index: int) -> int:
    return benchmark_seed(config.split, config.seed, index)


def _backbone(files: ModelFiles, device: str) -> Backbone:
    return Backbone(load_networks(files, ModelConfig(model=files.name, device=device)), EditConfig())


def _squared_error(first: UInt8Array, second: UInt8Array) -> float:
    return float(np.square(first.astype(np.float64) - second.astype(np.float64)).mean())


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _share(found: int, total: int) -> str:
    interval = wilson_interval(found, total)
    return f"{_percent(interval.value)} [{_percent(interval.low)}, {_percent(interval.high)}]"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join([f"## {title}", "", *lines])


def main(words: Sequence[str]) -> int:
    """Run the program and return its exit code."""
    logging.basicConfig(level=logging.WARNING)
    try:
        config = parse_options(CardConfig, words)
        with quiet_libraries():
            text = measure_card(config)
    except ConfigError as error:
        print(f"vimaedit.miniature.training.card: {error}", file=sys.stderr)
        return EXIT_CONFIG
    print(text)
    if config.output:
        Path(config.output).write_text(text, encoding="utf-8")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
