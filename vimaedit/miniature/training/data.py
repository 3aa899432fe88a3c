"""Batches of scenes to train on: pictures and captions that follow from a number, on every machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vimaedit.images import clip_view
from vimaedit.miniature.family import CANVAS_SIZE, CLIP_SIDE, MAX_TOKENS
from vimaedit.miniature.training.options import STAGES
from vimaedit.miniature.vocabulary import write_tokenizer
from vimaedit.scenes.captions import draw_wording, write_caption
from vimaedit.scenes.draws import Draws
from vimaedit.scenes.edits import CATEGORIES, Edit, make_edit
from vimaedit.scenes.render import render_scene
from vimaedit.scenes.sampling import sample_scene
from vimaedit.scenes.scenes import SPLIT_SEEDS, Scene
from vimaedit.types import UInt8Array

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_WORDING_STREAM = 3  # of `Draws`; scenes, textures and edits have the others
# Scenes of one stage; those of the next begin behind them. Benchmarks made of the training split begin at its start.
_STAGE_SCENES = 2**40
_AHEAD = 4  # batches that each worker may be ahead
_REUSED = 64  # latest batches among which a batch to be seen again is drawn
_MANY = 10**12

Batch = tuple[NDArray[Any], ...]


class Draw(Protocol):
    """Draws the batch whose first scene has a number. Holds no network, so that other processes can do it."""

    def __call__(self, first: int) -> Batch:
        """Return what the batch shows."""
        ...


class _Batches(Dataset[tuple[int, Batch]]):
    def __init__(self, draw: Draw, first: int, stride: int) -> None:
        self._draw, self._first, self._stride = draw, first, stride

    def __getitem__(self, index: int) -> tuple[int, Batch]:
        number = self._first + index * self._stride
        return number, self._draw(number)


def draw_ahead(draw: Draw, first: int, stride: int, workers: int) -> Iterator[tuple[int, Batch]]:
    """Yield the number of each batch's first scene and the batch, in order, drawn by so many processes (0: by this one)."""
    batches = _Batches(draw, first, stride)
    if workers == 0:
        return (batches[index] for index in itertools.count())
    # Arrays go through pipes as they are: as tensors they would need more shared memory than containers have.
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=range(_MANY),
            num_workers=workers,
            prefetch_factor=_AHEAD,
            collate_fn=_as_it_is,
            multiprocessing_context="spawn",
        )
    )


def reuse(batches: Iterator[tuple[int, Batch]], uses: int) -> Iterator[tuple[int, Batch]]:
    """Yield each batch, and after it so many that one of the latest is seen `uses` times on average."""
    latest: list[tuple[int, Batch]] = []
    for batch in batches:
        yield batch
        if uses > 1:
            latest = [*latest[-_REUSED + 1 :], batch]
            draws = np.random.default_rng(batch[0])
            yield from (latest[draws.integers(len(latest))] for _ in range(uses - 1))


def _as_it_is(batch: Any) -> Any:
    return batch


def captioned_scene(seed: int) -> tuple[Scene, str]:
    """Return the scene of a seed and a caption of it."""
    scene = sample_scene(seed)
    return scene, write_caption(scene, draw_wording(Draws(seed, _WORDING_STREAM), len(scene.objects)))


def training_scene(stage: str, index: int) -> tuple[Scene, str]:
    """Return scene and caption number `index` of a stage; no two stages see the same."""
    return captioned_scene(_training_seed(stage, index))


def training_edit(stage: str, index: int, categories: Sequence[str] = CATEGORIES[1:]) -> Edit:
    """Return edit number `index` of a stage, of the categories in turn."""
    return make_edit(_training_seed(stage, index), categories[index % len(categories)])


def validation_scene(index: int) -> tuple[Scene, str]:
    """Return scene and caption number `index` of the validation split; benchmarks have its beginning."""
    return captioned_scene(SPLIT_SEEDS["validation"].start + 2**59 + index)


def validation_edit(index: int, categories: Sequence[str]) -> Edit:
    """Return edit number `index` of the validation split, of the categories in turn; benchmarks have its beginning."""
    return make_edit(SPLIT_SEEDS["validation"].start + 2**59 + index, categories[index % len(categories)])


def _training_seed(stage: str, index: int) -> int:
    return SPLIT_SEEDS["train"].start + 2**59 + STAGES.index(stage) * _STAGE_SCENES + index


def render_batch(scenes: Sequence[Scene]) -> UInt8Array:
    """Draw scenes at the size of the canvas, (B, 128, 128, 3)."""
    return np.stack([render_scene(scene, CANVAS_SIZE) for scene in scenes])


def clip_views(scenes: Sequence[Scene]) -> UInt8Array:
    """Draw scenes as CLIP sees them, (B, 64, 64, 3)."""
    return np.stack([clip_view(image, CLIP_SIDE) for image in render_batch(scenes)])


def to_pixels(images: UInt8Array | Tensor) -> Tensor:
    """Return pictures as the autoencoder takes them: (B, H, W, 3) uint8 -> (B, 3, H, W) in -1..1."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def load_tokenizer() -> CLIPTokenizer:
    """Return the miniature's tokenizer."""
    from transformers import CLIPTokenizer

    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), length=MAX_TOKENS)
        return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Return token ids (B, T), padded to full length as the pipelines do."""
    ids: Tensor = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids
