"""Perceptual hashes: near for what looks the same, far for other pictures, and found by their bands."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.synthesis.filters import BEST_SCHEMA, best_row, explode_bands, find_duplicates
from vimaedit.scenes.benchmark import benchmark_seed
from vimaedit.scenes.render import render_scene
from vimaedit.scenes.sampling import sample_scene
from vimaedit.seeds import derive_seed
from vimaedit.synthesis import likeness
from vimaedit.synthesis.candidates import spread_candidates
from vimaedit.synthesis.likeness import band_keys, find_near, perceptual_hash
from vimaedit.types import UInt8Array


def scene(number: int) -> UInt8Array:
    return render_scene(sample_scene(benchmark_seed("validation", 0, number)), 96)


def apart(first: UInt8Array, second: UInt8Array) -> int:
    codes = [np.frombuffer(perceptual_hash(each), dtype=np.uint8) for each in (first, second)]
    return int(np.bitwise_count(codes[0] ^ codes[1]).sum())


def as_jpeg(picture: UInt8Array) -> UInt8Array:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=80)
    return np.asarray(Image.open(buffer))


def test_what_looks_the_same_is_near_and_other_pictures_are_far() -> None:
    pictures = [scene(n) for n in range(11)]
    for picture in pictures:
        larger = np.asarray(Image.fromarray(picture).resize((131, 131), Image.Resampling.BICUBIC))
        assert apart(picture, picture) == 0 and apart(picture, as_jpeg(picture)) <= 12 and apart(picture, larger) <= 12
    assert min(apart(pictures[0], other) for other in pictures[1:]) > 12


def test_colour_counts() -> None:
    red, blue = np.full((2, 37, 37, 3), (200, 40, 40), dtype=np.uint8)
    blue = np.full_like(red, (40, 40, 200))
    assert apart(red, blue) > 0
    assert len(perceptual_hash(red)) == 24


def test_hashes_within_the_distance_share_a_band() -> None:
    draws = np.random.default_rng(5)
    code = draws.integers(0, 256, 48, dtype=np.uint8)
    for count in range(13):
        bits = np.unpackbits(code)
        bits[draws.choice(384, count, replace=False)] ^= 1
        other = np.packbits(bits)
        assert np.bitwise_count(code ^ other).sum() == count
        one, two = band_keys(np.stack((code, other)), 13)
        assert (one == two).any()


def test_bands_tell_pictures_of_one_flat_colour_plane_apart() -> None:
    codes = np.random.default_rng(6).integers(0, 256, (500, 6, 8), dtype=np.uint8)
    codes[:, [1, 2, 4, 5]] = 0  # grey ones: no bit of colour is set
    keys = band_keys(codes.reshape(500, 48), 13)
    assert all(len(set(band.tolist())) > 300 for band in keys.T)


def nearest(codes: NDArray[np.uint8], distance: int, sources: NDArray[np.int64], targets: NDArray[np.int64]) -> list[int]:
    """The first near one before each, one pair after the other."""
    found = []
    for index in range(len(codes)):
        bits = np.unpackbits(codes[:index] ^ codes[index], axis=1).sum(axis=1)
        near = (bits <= distance) & ((sources[:index] != sources[index]) | (targets[:index] == targets[index]))
        found.append(int(near.argmax()) if near.any() else -1)
    return found


def test_near_ones_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "BLOCK", 7)
    draws = np.random.default_rng(7)
    codes = np.repeat(draws.integers(0, 256, (12, 48), dtype=np.uint8), 5, axis=0)[draws.permutation(60)]
    for code in codes:
        code[draws.integers(0, 48, 4)] ^= 1 << draws.integers(0, 8, 4, dtype=np.uint8)
    sources, targets = draws.integers(0, 12, (2, 60))
    for count in (0, 1, 2, 7, 8, 60):
        arguments = (codes[:count], 8, sources[:count], targets[:count])
        assert find_near(*arguments).tolist() == nearest(*arguments)
    assert 20 < sum(index >= 0 for index in nearest(codes, 8, sources, targets)) < 60


def best(rows: list[tuple[int, float, bytes, str, str]]) -> pa.Table:
    values = [
        best_row((group, 0, 0), {"looks": looks, "source_digest": digest, "target_prompt": target}, rank)
        for group, rank, looks, digest, target in rows
    ]
    return pa.Table.from_pylist(values, schema=BEST_SCHEMA)


def test_the_better_one_stays_and_edits_of_one_picture_are_no_duplicates() -> None:
    code = bytes(range(48))
    near = bytes([code[0] ^ 7]) + code[1:]
    far = bytes(255 - value for value in code)
    rows = best([(0, 0.1, code, "s", "x"), (1, 0.9, near, "t", "y"), (2, 0.5, far, "u", "z"), (3, 0.2, code, "s", "w")])
    exploded = explode_bands(rows, 3)
    assert exploded.num_rows == 16 and len(set(exploded.column("band").to_pylist())) > 4
    found = find_duplicates(exploded, 3).to_pylist()
    assert {(row["group"], row["like_group"], row["like_rank"]) for row in found} == {(0, 1, 0.9), (3, 1, 0.9)}
    # Those of one picture, to different prompts, are none.
    assert find_duplicates(explode_bands(rows, 2), 2).num_rows == 0
    assert find_duplicates(explode_bands(rows.slice(0, 0), 3), 3).schema == find_duplicates(exploded, 3).schema


def test_candidates_spread_over_the_ranges_as_a_latin_square() -> None:
    ranges = {"image_strength": [0.2, 0.7], "edit_threshold": [0.4, 0.4], "self_window": []}
    made = spread_candidates(7, "cat", 0, 5, ranges)
    assert [each.number for each in made] == list(range(5))
    assert sorted(each.overrides["image_strength"] for each in made) == pytest.approx([0.25, 0.35, 0.45, 0.55, 0.65])
    assert {each.overrides["edit_threshold"] for each in made} == {0.4} and "self_window" not in made[0].overrides
    assert [each.seed for each in made] == [derive_seed(7, "cat", number) for number in range(5)]
    assert [each.seed for each in spread_candidates(7, "cat", 1, 5, ranges)] == [each.seed for each in made]
    assert len({each.seed for each in made} | {each.seed for each in spread_candidates(8, "cat", 0, 5, ranges)}) == 10
