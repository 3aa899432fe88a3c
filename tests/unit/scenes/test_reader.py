"""The attribute reader names what true renders show, and what is left of it in worse pictures."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from vimaedit.scenes.edits import CATEGORIES, make_edit
from vimaedit.scenes.reading.reader import attributes_of, layout_of, read_scene
from vimaedit.scenes.render import render_scene
from vimaedit.scenes.sampling import sample_scene
from vimaedit.scenes.scenes import SPLIT_SEEDS, Scene
from vimaedit.types import UInt8Array

COUNTS = pytest.mark.parametrize("count", [12, pytest.param(61, marks=pytest.mark.slow)])


def right_shares(scenes: list[Scene], spoil: Callable[[UInt8Array], UInt8Array], size: int = 128) -> dict[str, float]:
    """Return how often each attribute is named right."""
    right, total = Counter[str](), Counter[str]()
    for scene in scenes:
        truth = attributes_of(scene)
        read = attributes_of(read_scene(spoil(render_scene(scene, size)), layout_of(scene)))
        assert read.keys() == truth.keys()
        for key, value in truth.items():
            name = key.rpartition(".")[2] if key.startswith("objects") else key
            total[name] += 1
            right[name] += read[key] == value
    return {name: right[name] / total[name] for name in total}


def held_out(count: int, start: int = 0) -> list[Scene]:
    return [sample_scene(SPLIT_SEEDS["test"].start + start + n) for n in range(count)]


def as_jpeg(image: UInt8Array) -> UInt8Array:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="jpeg", quality=75)
    return np.array(Image.open(buffer))


@COUNTS
def test_true_renders_are_read_right(count: int) -> None:
    shares = right_shares(held_out(count), lambda image: image)
    assert len(shares) == 8 and min(shares.values()) >= 0.99


def test_targets_of_edits_are_read_right() -> None:
    scenes = [make_edit(SPLIT_SEEDS["test"].start + n, CATEGORIES[n % 10]).target for n in range(23)]
    assert min(right_shares(scenes, lambda image: image).values()) >= 0.99


def test_larger_pictures_are_read_too() -> None:
    assert min(right_shares(held_out(7), lambda image: image, size=384).values()) >= 0.85


@COUNTS
def test_coding_losses_do_not_matter(count: int) -> None:
    assert min(right_shares(held_out(count, 100), as_jpeg).values()) >= 0.97


@pytest.mark.parametrize("count", [12, pytest.param(23, marks=pytest.mark.slow)])
def test_objects_two_pixels_off_their_place_are_found(count: int) -> None:
    shares = right_shares(held_out(count, 200), lambda image: np.roll(image, (2, -2), axis=(0, 1)))
    assert min(shares[name] for name in ("shape", "colour", "pose")) >= 0.9


def test_another_picture_is_read_as_another() -> None:
    """A reader that answered with what it was told, not with what it sees, would fail here."""
    one, other = held_out(1, 307)[0], held_out(1, 311)[0]
    flat: UInt8Array = np.full((128, 128, 3), 246, dtype=np.uint8)
    flat[..., 2] = 244
    empty = read_scene(flat, layout_of(one))
    assert (empty.background.colour, empty.background.pattern) == ("white", "plain")
    read = attributes_of(read_scene(render_scene(other, 128), layout_of(one)))
    assert read["background.colour"] == attributes_of(other)["background.colour"]


def test_an_empty_layout_reads_the_background() -> None:
    scene = Scene(objects=(), background=held_out(1)[0].background, style="sketch")
    assert read_scene(render_scene(scene, 64), ()) == scene


@pytest.mark.parametrize("shape", [(128, 128), (128, 126, 3), (128, 128, 4), (127, 127, 3), (30, 30, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image: got shape .*; allowed: \(side, side, 3\) with an even side of at least 32"):
        read_scene(np.zeros(shape, dtype=np.uint8), ())
