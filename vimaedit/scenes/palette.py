"""What the names of colours and drawing styles look like."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from vimaedit.scenes.scenes import Background

Rgb = tuple[int, int, int]

OBJECT_RGB: dict[str, Rgb] = {
    "red": (212, 32, 38),
    "orange": (245, 130, 16),
    "yellow": (252, 212, 20),
    "green": (30, 142, 62),
    "blue": (28, 84, 208),
    "purple": (122, 44, 168),
    "pink": (242, 104, 172),
    "brown": (120, 70, 30),
}
BACKGROUND_RGB: dict[str, Rgb] = {  # paler, so that objects stand out
    "white": (246, 246, 244),
    "grey": (184, 186, 190),
    "blue": (150, 194, 240),
    "green": (160, 214, 150),
    "yellow": (250, 234, 140),
    "pink": (250, 196, 216),
    "purple": (200, 176, 234),
    "orange": (250, 196, 130),
}
WHITE: Rgb = (255, 255, 255)
BLACK: Rgb = (0, 0, 0)
INK: Rgb = (22, 22, 26)
PENCIL: Rgb = (84, 84, 92)
MIN_CONTRAST = 100


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a style draws: colours drawn towards white by `pale` per cent, outlines of `line` thousandths of the side.

    `ink` is the outline's colour; None: a darker shade of the object's own.
    """

    pale: int
    line: int
    ink: Rgb | None


LOOKS = {
    "picture": Look(pale=0, line=0, ink=None),
    "cartoon": Look(pale=0, line=17, ink=INK),
    "sketch": Look(pale=42, line=11, ink=PENCIL),
    "watercolor": Look(pale=24, line=11, ink=None),
}


def mix(colour: Rgb, other: Rgb, percent: int) -> Rgb:
    """Return `colour` with `percent` of `other` in it."""
    red, green, blue = ((a * (100 - percent) + b * percent + 50) // 100 for a, b in zip(colour, other, strict=True))
    return red, green, blue


def luminance(colour: Rgb) -> int:
    """Return how light a colour is, 0 to 255 (Rec. 601 weights)."""
    return (299 * colour[0] + 587 * colour[1] + 114 * colour[2]) // 1000


@functools.cache
def object_tones(colour: str, face: str | None, style: str) -> tuple[Rgb, Rgb, Rgb]:
    """Return the three colours of an object: ground, pattern (or face), outline."""
    look = LOOKS[style]
    ground = OBJECT_RGB[colour]
    light = luminance(ground)
    if face is not None:
        pattern = WHITE if light < 90 else INK
    else:
        pattern = mix(ground, BLACK, 40) if light > 150 else mix(ground, WHITE, 62)
    pale_ground = mix(ground, WHITE, look.pale)
    return pale_ground, mix(pattern, WHITE, look.pale), look.ink or mix(pale_ground, BLACK, 28)


@functools.cache
def background_tones(background: Background, style: str) -> tuple[Rgb, Rgb]:
    """Return the two colours of a background: ground (top), pattern (bottom)."""
    pale = LOOKS[style].pale
    ground = BACKGROUND_RGB[background.colour]
    if background.second is not None:
        second = BACKGROUND_RGB[background.second]
    else:
        second = mix(ground, BLACK, 16) if luminance(ground) > 215 else mix(ground, WHITE, 40)
    return mix(ground, WHITE, pale), mix(second, WHITE, pale)


@functools.cache
def stands_out(colour: str, background: Background) -> bool:
    """Whether an object of this colour is plainly seen on the background, and their names differ."""
    if colour in background.colours:
        return False
    own = OBJECT_RGB[colour]
    tones = background_tones(background, "picture")
    return all(sum(abs(a - b) for a, b in zip(own, tone, strict=True)) >= MIN_CONTRAST for tone in tones)
