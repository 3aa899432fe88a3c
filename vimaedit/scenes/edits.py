"""Edits of scenes with their exact answers, in PIE-Bench's ten categories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from vimaedit.scenes.captions import (
    OPENINGS,
    Wording,
    background_phrase,
    describe_object,
    draw_object_wording,
    draw_wording,
    noun_phrase,
    with_article,
    write_caption,
)
from vimaedit.scenes.draws import Draws
from vimaedit.scenes.palette import stands_out
from vimaedit.scenes.render import background_pixels, object_pixels
from vimaedit.scenes.sampling import (
    MAX_SIZES,
    allowed_pairs,
    draw_angle,
    draw_background_of,
    draw_object,
    draw_pair,
    draw_scene,
    has_room,
)
from vimaedit.scenes.scenes import FACES, MATERIALS, POSES, STYLES, Scene, SceneObject, split_of_seed
from vimaedit.types import BlendPhrase, BoolArray

CATEGORIES = (  # PIE-Bench's, by their number
    "random",
    "change_object",
    "add_object",
    "delete_object",
    "change_attribute_content",
    "change_attribute_pose",
    "change_attribute_color",
    "change_attribute_material",
    "change_background",
    "change_style",
)
CATEGORY_WEIGHTS = (7, 4, 4, 4, 2, 2, 2, 2, 4, 4)  # PIE-Bench's numbers of records over 20
MAX_TRIES = 1000
# Of an added object, size and centre in thousandths of the side: a caption that tells the side tells all.
ADDED_SIZE = 360
SIDES = {"on the left": (230, 500), "on the right": (770, 500), "at the top": (500, 230), "at the bottom": (500, 770)}
T = TypeVar("T")
_FIRST_STREAM = 16  # of `Draws`; the streams below are those of scenes and textures


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One edit and its answer.

    `source_index`, `target_index`: the edited object in either scene, both None where the background or the whole picture is
    edited; `determined`: whether the captions settle the target picture. An added object has one size and stands in the middle of
    the side that they tell.
    """

    category: str
    source: Scene
    target: Scene
    source_prompt: str
    target_prompt: str
    blend: tuple[BlendPhrase, ...]
    instruction: str
    determined: bool
    source_index: int | None
    target_index: int | None


@dataclass(frozen=True)
class _Draft:
    """What an edit makes of a scene and its wording, before it is written down."""

    target: Scene
    target_wording: Wording
    instruction: str
    determined: bool = True
    source_index: int | None = None
    target_index: int | None = None


def make_edit(seed: int, category: str) -> Edit:
    """Return the edit of a seed in one of `CATEGORIES`; the seed's range decides the split, as for `sample_scene`.

    Raises: ValueError for a seed in no split's range or an unknown category.
    """
    if category not in CATEGORIES:
        raise ValueError(f"category: got {category!r}; allowed: {', '.join(CATEGORIES)}")
    split = split_of_seed(seed)
    for attempt in range(MAX_TRIES):
        draws = Draws(seed, _FIRST_STREAM + attempt)
        scene = draw_scene(draws, split)
        wording = draw_wording(draws, len(scene.objects))
        kind = draws.choose(CATEGORIES[1:]) if category == "random" else category
        if kind == "change_style":
            # The common style has to be named, if another one is to take its place.
            wording = replace(wording, opening=wording.opening % 2)
        draft = _DRAFTS[kind](draws, split, scene, wording)
        if draft is not None:
            return _write_down(category, scene, wording, draft)
    raise AssertionError(f"no scene of seed {seed} takes a {category} edit")


def edit_mask(edit: Edit, size: int) -> BoolArray:
    """Return the pixels (size, size) that the edited thing touches before or after the edit.

    Outside them both pictures are equal. Inside they may be: a red star that becomes a red circle stays red in its middle.
    The mask of a new style is the whole picture.
    """
    if edit.source.style != edit.target.style:
        return np.ones((size, size), dtype=np.bool_)
    if edit.source_index is None and edit.target_index is None:
        return background_pixels(edit.source, size)
    mask = np.zeros((size, size), dtype=np.bool_)
    for scene, index in ((edit.source, edit.source_index), (edit.target, edit.target_index)):
        if index is not None:
            mask |= object_pixels(scene, index, size)
    return mask


def _write_down(category: str, scene: Scene, wording: Wording, draft: _Draft) -> Edit:
    if draft.source_index is not None or draft.target_index is not None:
        phrases = [
            None if index is None else noun_phrase(each.objects[index], words.objects[index])
            for each, words, index in (
                (scene, wording, draft.source_index),
                (draft.target, draft.target_wording, draft.target_index),
            )
        ]
        blend: tuple[BlendPhrase, ...] = (BlendPhrase(source=phrases[0], target=phrases[1]),)
    elif scene.style == draft.target.style:
        old, new = (background_phrase(each.background, wording) for each in (scene, draft.target))
        blend = (BlendPhrase(source=old, target=new),)
    else:
        blend = ()
    return Edit(
        category=category,
        source=scene,
        target=draft.target,
        source_prompt=write_caption(scene, wording),
        target_prompt=write_caption(draft.target, draft.target_wording),
        blend=blend,
        instruction=draft.instruction,
        determined=draft.determined,
        source_index=draft.source_index,
        target_index=draft.target_index,
    )


def _change_one(
    scene: Scene, wording: Wording, index: int, new: SceneObject, instruction: str, determined: bool = True
) -> _Draft:
    objects = tuple(new if n == index else each for n, each in enumerate(scene.objects))
    return _Draft(replace(scene, objects=objects), wording, instruction, determined, index, index)


def _name(scene: Scene, wording: Wording, index: int) -> str:
    return f"the {noun_phrase(scene.objects[index], wording.objects[index])}"


def _change_object(draws: Draws, split: str, scene: Scene, wording: Wording) -> _Draft | None:
    index = draws.below(len(scene.objects))
    old = scene.objects[index]
    pairs = allowed_pairs(split, scene.background, scene.objects)
    shapes = [shape for colour, shape in pairs if colour == old.colour and old.pose in POSES[shape]]
    if not shapes:
        return None
    new = replace(old, shape=draws.choose(shapes))
    if old.face and not new.may_have_face:
        return None
    phrase = with_article(noun_phrase(new, wording.objects[index]))
    return _change_one(scene, wording, index, new, f"change {_name(scene, wording, index)} into {phrase}")


def _add_object(draws: Draws, split: str, scene: Scene, wording: Wording) -> _Draft | None:
    count = len(scene.objects)
    if count + 1 not in MAX_SIZES:
        return None
    places = [place for place in SIDES.values() if has_room(place, ADDED_SIZE, scene.objects)]
    if not places:
        return None
    pair = draw_pair(draws, split, scene.background, scene.objects)
    new = draw_object(draws, pair, ADDED_SIZE, draws.choose(places))
    words = replace(draw_object_wording(draws), tell_place=True)
    target = replace(scene, objects=(*scene.objects, new))
    target_wording = replace(wording, objects=(*wording.objects, words), order=(*wording.order, count))
    instruction = f"add {describe_object(new, words)}"
    determined = not new.pose.startswith("tilted")
    return _Draft(target, target_wording, instruction, determined, target_index=count)


def _delete_object(draws: Draws, split: str, scene: Scene, wording: Wording) -> _Draft | None:
    count = len(scene.objects)
    if count == 1:
        return None
    index = draws.below(count)
    target = replace(scene, objects=_without(scene.objects, index))
    order = tuple(n - (n > index) for n in wording.order if n != index)
    target_wording = replace(wording, objects=_without(wording.objects, index), order=order)
    return _Draft(target, target_wording, f"remove {_name(scene, wording, index)}", source_index=index)


def _change_content(draws: Draws, split: str, scene: Scene, wording: Wording) -> _Draft | None:
    able = [n for n, each in enumerate(scene.objects) if each.may_have_face]
    if not able:
        return None
    index = draws.choose(able)
    old = scene.objects[index]
    face = draws.choose([face for face in FACES if face != old.face])
    how = {"smiling": "smile", "sad": "look sad"}[face]
    instruction = f"make {_name(scene, wording, index)} {how}"
    return _change_one(scene, wording, index, replace(old, face=face), instruction)


def _change_pose(draws: Draws, split: str, scene: Scene, wording: Wording) -> _Draft | None:
    able = [n for n, each in enumerate(scene.objects) if len(POSES[each.shape]) > 1 and not each.face]
    if not able:
        return None
    index = draws.choose(able)
    old = scene.objects[index]
    pose = draws.choose([pose for pose in POSES[old.shape] if pose != old.pose])
    how = {
        "upright": "stand {} upright",
        "upside-down": "turn {} upside down",
        "tilted left": "tilt {} to the left",
        "tilted right": "tilt {} to the right",
    }[pose]
    new = replace(old, angle=draw_angle(draws, pose))
    determined = not pose.startswith("tilted")
    return _change_one(scene, wording, index, new, how.format(_name(scene, wording, index)), determined)


def _change_colour(draws: Draws, split: str, scene: Scene, wording: Wording) -> _Draft | None:
    index = draws.below(len(scene.objects))
    old = scene.objects[index]
    pairs = allowed_pairs(split, scene.background, scene.objects)
    colours = [colour for colour, shape in pairs if shape == old.shape]
    if not colours:
        return None
    colour = draws.choose(colours)
    return _change_one(scene, wording, index, replace(old, colour=colour), f"make {_name(scene, wording, index)} {colour}")


def _change_material(draws: Draws, split: str, scene: Scene, wording: Wording) -> _Draft | None:
    able = [n for n, each in enumerate(scene.objects) if not each.face]
    if not able:
        return None
    index = draws.choose(able)
    old = scene.objects[index]
    material = draws.choose([material for material in MATERIALS if material != old.material])
    new = replace(old, material=material)
    return _change_one(scene, wording, index, new, f"make {_name(scene, wording, index)} {material}")


def _change_background(draws: Draws, split: str, scene: Scene, wording: Wording) -> _Draft | None:
    new = draw_background_of(draws)
    if new == scene.background or not all(stands_out(each.colour, new) for each in scene.objects):
        return None
    instruction = f"change the background to {with_article(background_phrase(new, wording))}"
    return _Draft(replace(scene, background=new), wording, instruction)


def _change_style(draws: Draws, split: str, scene: Scene, wording: Wording) -> _Draft:
    style = draws.choose([style for style in STYLES if style != scene.style])
    medium = OPENINGS[style][wording.opening].removesuffix(" of")
    return _Draft(replace(scene, style=style), wording, f"turn it into {medium}")


def _without(items: tuple[T, ...], index: int) -> tuple[T, ...]:
    return items[:index] + items[index + 1 :]


_DRAFTS: dict[str, Callable[[Draws, str, Scene, Wording], _Draft | None]] = {
    "change_object": _change_object,
    "add_object": _add_object,
    "delete_object": _delete_object,
    "change_attribute_content": _change_content,
    "change_attribute_pose": _change_pose,
    "change_attribute_color": _change_colour,
    "change_attribute_material": _change_material,
    "change_background": _change_background,
    "change_style": _change_style,
}
