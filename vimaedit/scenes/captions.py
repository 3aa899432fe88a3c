"""What people might say of a scene: captions whose wording is drawn apart from what they tell.

The same `Wording` written for two scenes gives two captions that differ only in what differs between the scenes.
"""

from __future__ import annotations

from dataclasses import dataclass

from vimaedit.scenes.draws import Draws
from vimaedit.scenes.scenes import Background, Scene, SceneObject

OPENINGS = {
    "picture": ("a picture of", "an image of"),
    "cartoon": ("a cartoon of", "a cartoon drawing of"),
    "sketch": ("a sketch of", "a pencil sketch of"),
    "watercolor": ("a watercolor of", "a watercolor painting of"),
}
JOINERS = ("and", "and", "next to", "beside", "near")
PREPOSITIONS = ("on", "on", "against", "in front of")
SYNONYMS = {
    "circle": ("circle", "disc"),
    "purple": ("purple", "violet"),
    "spotted": ("spotted", "dotted"),
    "small": ("small", "tiny"),
    "large": ("large", "big"),
}
SMALL, LARGE = 350, 420  # thousandths of the side: up to, from
SIDE_FROM_MIDDLE = 150  # how far off the middle an object has to be to stand on a side


@dataclass(frozen=True, kw_only=True)
class ObjectWording:
    """How an object is spoken of: one synonym or the other, and what is mentioned."""

    synonym: int  # 0 or 1
    tell_size: bool
    tell_place: bool
    material_first: bool  # "striped red star", else "red striped star"
    pattern_last: bool  # "red star with stripes"
    lying: int  # which way of saying the pose


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How a scene is spoken of. `order`: in which order its objects are mentioned."""

    opening: int  # 0, 1; 2: none, where the style is the common one
    joiner: str
    preposition: str
    background_first: bool
    pattern_first: bool
    fading: bool
    order: tuple[int, ...]
    objects: tuple[ObjectWording, ...]


def draw_wording(draws: Draws, count: int) -> Wording:
    """Draw a way to speak of a scene with `count` objects."""
    return Wording(
        opening=draws.choose((0, 1, 2, 2, 2)),
        joiner=draws.choose(JOINERS),
        preposition=draws.choose(PREPOSITIONS),
        background_first=draws.chance(15),
        pattern_first=draws.chance(60),
        fading=draws.chance(60),
        order=tuple(draws.shuffled(range(count))),
        objects=tuple(draw_object_wording(draws) for _ in range(count)),
    )


def draw_object_wording(draws: Draws) -> ObjectWording:
    """Draw a way to speak of one object."""
    return ObjectWording(
        synonym=1 if draws.chance(30) else 0,
        tell_size=draws.chance(35),
        tell_place=draws.chance(25),
        material_first=draws.chance(60),
        pattern_last=draws.chance(20),
        lying=draws.below(2),
    )


def write_caption(scene: Scene, wording: Wording) -> str:
    """Write the caption of a scene. It says what is seen, not everything that is seen."""
    things = f" {wording.joiner} ".join(describe_object(scene.objects[n], wording.objects[n]) for n in wording.order)
    behind = f"{wording.preposition} {with_article(background_phrase(scene.background, wording))}"
    if scene.style != "picture" or wording.opening < 2:
        return f"{OPENINGS[scene.style][wording.opening % 2]} {things} {behind}"
    return f"{behind}, {things}" if wording.background_first else f"{things} {behind}"


def describe_object(each: SceneObject, wording: ObjectWording) -> str:
    """Describe an object with its article: size, what it is, pose, place."""
    size = "small" if each.size <= SMALL else "large" if each.size >= LARGE else None
    words = [_word(size, wording)] if size and wording.tell_size else []
    if each.pose == "upside-down" and not wording.lying:
        words.append("upside-down")
    words.append(noun_phrase(each, wording))
    if each.pose == "upside-down" and wording.lying:
        words.append("turned upside down")
    elif each.pose != "upright" and each.pose != "upside-down":
        side = each.pose.removeprefix("tilted ")
        words.append(f"{('tilted', 'leaning')[wording.lying]} to the {side}")
    place = place_of(each)
    if place and wording.tell_place:
        words.append(place)
    return with_article(" ".join(words))


def noun_phrase(each: SceneObject, wording: ObjectWording) -> str:
    """Name an object without article, size, pose and place: face, colour, material, shape."""
    colour, shape = _word(each.colour, wording), _word(each.shape, wording)
    face = f"{each.face} " if each.face else ""
    if each.material == "plain":
        return f"{face}{colour} {shape}"
    if wording.pattern_last:
        marks = {"striped": "stripes", "spotted": ("spots", "dots")[wording.synonym]}[each.material]
        return f"{colour} {shape} with {marks}"
    material = _word(each.material, wording)
    return f"{material} {colour} {shape}" if wording.material_first else f"{colour} {material} {shape}"


def background_phrase(background: Background, wording: Wording) -> str:
    """Name a background, without its article."""
    if background.second is not None:
        if wording.fading:
            return f"background fading from {background.colour} to {background.second}"
        return f"{background.colour} and {background.second} gradient background"
    if background.pattern == "plain":
        return f"{background.colour} background"
    words = (background.pattern, background.colour)
    return f"{' '.join(words if wording.pattern_first else words[::-1])} background"


def place_of(each: SceneObject) -> str | None:
    """Say on which side of the picture an object stands; None where that is not plain."""
    across, down = abs(each.x - 500), abs(each.y - 500)
    is_plain = max(across, down) >= SIDE_FROM_MIDDLE and abs(across - down) >= SIDE_FROM_MIDDLE // 2
    return nearest_side(each.x, each.y) if is_plain else None


def nearest_side(x: int, y: int) -> str:
    """Say which side of the picture a point, in thousandths of it, is nearest to."""
    if abs(x - 500) > abs(y - 500):
        return "on the left" if x < 500 else "on the right"
    return "at the top" if y < 500 else "at the bottom"


def with_article(phrase: str) -> str:
    """Put the indefinite article before a phrase."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _word(name: str, wording: ObjectWording) -> str:
    return SYNONYMS[name][wording.synonym] if name in SYNONYMS else name
