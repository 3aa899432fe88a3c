"""Whether an edit of a drawn scene is truly right: both pictures are read, and the words say how they have to differ.

For measuring a synthesis only: no filter may ask it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vimaedit.scenes.captions import nearest_side
from vimaedit.scenes.edits import ADDED_SIZE, SIDES
from vimaedit.scenes.reading.find import read_unknown
from vimaedit.scenes.reading.judge_compare import compare_objects
from vimaedit.scenes.scenes import BACKGROUND_COLOURS, Background, Scene, SceneObject
from vimaedit.synthesis.captions import read_caption
from vimaedit.synthesis.lexicon import Lexicon
from vimaedit.types import BlendPhrase, UInt8Array
from vimaedit.words.phrases import split_words

MAX_MOVE = 60  # thousandths of the side by which an object that stays may seem to have moved
MARKS = {"stripes": "striped", "spots": "spotted", "dots": "spotted"}  # "a red star with stripes"


def is_edit_right(
    before: Scene, edited: UInt8Array, category: str, blend: Sequence[BlendPhrase], target_prompt: str, lexicon: Lexicon
) -> bool:
    """Whether an edited picture shows its source with the edit made, and nothing else changed.

    `before`: the source as `read_unknown` sees it. Shapes: `edited` (side, side, 3).
    """
    wanted = edited_scene(before, category, blend, target_prompt, lexicon)
    return wanted is not None and _shows(read_unknown(edited), wanted, before)


def edited_scene(
    before: Scene, category: str, blend: Sequence[BlendPhrase], target_prompt: str, lexicon: Lexicon
) -> Scene | None:
    """Make the edit that the words ask for in a scene; None where it does not hold just one of what the words name."""
    if category == "change_style":
        style = read_caption(target_prompt, lexicon).style
        return None if style is None else replace(before, style=style)
    if len(blend) != 1:
        return None
    (phrase,) = blend
    if category == "change_background":
        return None if phrase.target is None else replace(before, background=_background(phrase.target))
    new = {} if phrase.target is None else _attributes(phrase.target, lexicon)
    if phrase.source is None:
        x, y = next((place for words, place in SIDES.items() if phrase.target and phrase.target.endswith(words)), (500, 500))
        added = SceneObject(
            shape=new.get("shape", ""),
            colour=new.get("colour", ""),
            material=new.get("material", "plain"),
            face=None,
            x=x,
            y=y,
            size=ADDED_SIZE,
            angle=0,
        )
        return replace(before, objects=(*before.objects, added))
    named = _attributes(phrase.source, lexicon)
    found = [n for n, each in enumerate(before.objects) if all(getattr(each, name) == value for name, value in named.items())]
    if len(found) != 1:
        return None
    (index,) = found
    objects = list(before.objects)
    if phrase.target is None:
        del objects[index]
    else:
        old = objects[index]
        objects[index] = replace(
            old,
            shape=new.get("shape", old.shape),
            colour=new.get("colour", old.colour),
            # "striped red star" that becomes "red star" is plain.
            material=new.get("material", "plain" if "material" in named else old.material),
        )
    return replace(before, objects=tuple(objects))


def _shows(after: Scene, wanted: Scene, before: Scene) -> bool:
    compared = compare_objects(wanted, after)
    if not compared.all_right:
        return False
    places = {(each.x, each.y) for each in before.objects}
    for each, match in zip(wanted.objects, compared.matches, strict=True):
        if match is None:
            return False
        seen = after.objects[match]
        if (each.x, each.y) in places:
            if max(abs(each.x - seen.x), abs(each.y - seen.y)) > MAX_MOVE:
                return False
        elif (each.x, each.y) in SIDES.values() and nearest_side(seen.x, seen.y) != nearest_side(each.x, each.y):
            return False
    return True


def _attributes(phrase: str, lexicon: Lexicon) -> dict[str, str]:
    """Read shape, colour and material out of a phrase, as far as it names them."""
    found: dict[str, str] = {}
    for start, end in split_words(phrase):
        for name, words in (("colour", lexicon.colours), ("material", lexicon.materials), ("shape", lexicon.objects["shapes"])):
            if value := words.find(phrase[start:end]):
                found[name] = value
        if mark := MARKS.get(phrase[start:end]):
            found["material"] = mark
    return found


def _background(phrase: str) -> Background:
    words = [phrase[start:end] for start, end in split_words(phrase)]
    colour = next((word for word in words if word in BACKGROUND_COLOURS), "")
    return Background(colour=colour, pattern="checkered" if "checkered" in words else "plain")
