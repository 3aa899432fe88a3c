"""Perceptual hashes: near for what looks the same, far for other pictures, and found by their bands."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.synthesis.filters import BEST_SCHEMA, explode_bands, find_duplicates
from vimaedit.scenes.benchmark import benchmark_seed
from vimaedit.scenes.render import render_scene
from vimaedit.scenes.sampling import sample_scene
from vimaedit.seeds import derive_seed
from vimaedit.synthesis.candidates import spread_candidates
from vimaedit.synthesis.likeness import distances, hash_bands, perceptual_hash
from vimaedit.types import UInt8Array


def scene(number: int) -> UInt8Array:
    return render_scene(sample_scene(benchmark_seed("validation", 0, number)), 96)


def apart(first: UInt8Array, second: UInt8Array) -> int:
    codes = [np.frombuffer(perceptual_hash(each), dtype=np.uint8) for each in (first, second)]
    return int(distances(codes[0][None], codes[1])[0])


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
        assert distances(code[None], other)[0] == count
        bands = zip(hash_bands(code.tobytes(), 13), hash_bands(other.tobytes(), 13), strict=True)
        assert any(one == two for one, two in bands)


def best(rows: list[tuple[str, float, bytes, str, str]]) -> pa.Table:
    values = [
        {"group": 0, "part": part, "part_row": 0, "rank": rank, "looks": looks, "source_digest": digest, "target": target}
        for part, rank, looks, digest, target in rows
    ]
    return pa.Table.from_pylist(values, schema=BEST_SCHEMA)


def test_the_better_one_stays_and_edits_of_one_picture_are_no_duplicates() -> None:
    code = bytes(range(48))
    near = bytes([code[0] ^ 7]) + code[1:]
    far = bytes(255 - value for value in code)
    rows = best(
        [("a", 0.1, code, "s", "x"), ("b", 0.9, near, "t", "y"), ("c", 0.5, far, "u", "z"), ("d", 0.2, code, "s", "w")],
    )
    found = find_duplicates(rows, 3).to_pylist()
    assert [(row["part"], row["like"]) for row in found] == [("d", "b#0"), ("a", "b#0")]
    assert find_duplicates(rows, 2).to_pylist() == []  # those of one picture, to different prompts, are none
    exploded = explode_bands(rows, 3)
    assert exploded.num_rows == 16 and len(set(exploded.column("band").to_pylist())) > 4


def test_candidates_spread_over_the_ranges_as_a_latin_square() -> None:
    ranges = {"image_strength": [0.2, 0.7], "edit_threshold": [0.4, 0.4], "self_window": []}
    made = spread_candidates(7, "cat", 0, 5, ranges)
    assert [each.number for each in made] == list(range(5))
    assert sorted(each.overrides["image_strength"] for each in made) == pytest.approx([0.25, 0.35, 0.45, 0.55, 0.65])
    assert {each.overrides["edit_threshold"] for each in made} == {0.4} and "self_window" not in made[0].overrides
    assert [each.seed for each in made] == [derive_seed(7, "cat", number) for number in range(5)]
    assert [each.seed for each in spread_candidates(7, "cat", 1, 5, ranges)] == [each.seed for each in made]
    assert len({each.seed for each in made} | {each.seed for each in spread_candidates(8, "cat", 0, 5, ranges)}) == 10
