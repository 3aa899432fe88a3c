"""Records whose coded pictures and masks are broken, hostile or odd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.fuzz import pictures
from tests.fuzz.registry import Columns, add, each, wrong_column
from tests.fuzz.verdicts import Verdict, ok, rejected
from tests.fuzz.world import World, coded


def picture_class(verdict: Verdict, make: Callable[[World], bytes], name: str) -> None:
    def columns(world: World, count: int) -> Columns:
        return {"image": each(world, count, make)}

    columns.__name__ = name
    add(verdict)(columns)


BAD = rejected("decode", "image")
EITHER = rejected("decode", "image", or_ok=True)
picture_class(BAD, lambda world: b"", "picture_of_no_bytes")
picture_class(BAD, lambda world: world.data(1, 3000), "picture_of_random_bytes")
picture_class(EITHER, pictures.truncated, "picture_truncated")
picture_class(EITHER, pictures.flipped, "picture_flipped")
picture_class(EITHER, pictures.spliced, "picture_spliced")
picture_class(BAD, pictures.other_format, "picture_of_another_format")
picture_class(BAD, pictures.huge_by_header, "picture_huge_by_header")
picture_class(EITHER, pictures.bomb_beside_pixels, "picture_bomb_beside_pixels")
picture_class(EITHER, pictures.frame_beyond_screen, "picture_frame_beyond_screen")
picture_class(EITHER, pictures.exif_garbage, "picture_exif_garbage")
picture_class(EITHER, pictures.profile_garbage, "picture_profile_garbage")
picture_class(EITHER, pictures.with_texts, "picture_with_texts")
picture_class(BAD, pictures.deep_samples, "picture_of_deep_samples")
picture_class(EITHER, pictures.unusual_mode, "picture_of_unusual_mode")
picture_class(EITHER, pictures.tiff_tags, "picture_tiff_tags")
picture_class(ok(), pictures.several_frames, "picture_of_several_frames")
picture_class(ok(), pictures.extreme_aspect, "picture_of_extreme_aspect")
picture_class(BAD, pictures.too_small, "picture_too_small")


MASK = rejected("decode", "given_mask")


def masks(name: str, verdict: Verdict, make: Callable[[World], Any]) -> None:
    def columns(world: World, count: int) -> Columns:
        return {"given_mask": each(world, count, make)}

    columns.__name__ = name
    add(verdict, group="masks")(columns)


masks("mask_null", MASK, lambda world: None)
masks("mask_of_random_bytes", MASK, lambda world: world.data(0, 2000))
masks("mask_truncated", rejected("decode", "given_mask", or_ok=True), pictures.truncated)
masks("mask_flipped", rejected("decode", "given_mask", or_ok=True), pictures.flipped)
masks("mask_huge_by_header", MASK, pictures.huge_by_header)
masks("mask_of_unusual_mode", rejected("decode", "given_mask", or_ok=True), pictures.unusual_mode)
masks("mask_of_deep_samples", rejected("decode", "given_mask", or_ok=True), pictures.deep_samples)
masks(
    "mask_of_any_size",
    rejected("decode", "given_mask", or_ok=True),  # of another aspect
    lambda world: coded(world.blobs(world.chance.randint(1, 400), world.chance.randint(1, 9), "L")),
)
masks(
    "mask_named",
    MASK,
    lambda world: {"bytes": None, "path": world.chance.choice(("pictures/good.png", "/etc/passwd", "http://h/m.png"))},
)


@add(MASK, group="masks")
def mask_wrong_type(world: World, count: int) -> Columns:
    return {"given_mask": wrong_column(world, count)}
