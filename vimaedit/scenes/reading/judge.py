"""Judge an edited picture of the scene world by its pixels: is what was to change as wanted, and is the rest as it was?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vimaedit.scenes.captions import nearest_side, place_of
from vimaedit.scenes.reading.find import missing_object, presence, spread, strange_pixels
from vimaedit.scenes.reading.reader import attributes_of, layout_of, object_attributes, picture_of, read_picture
from vimaedit.scenes.reading.templates import Float32Array
from vimaedit.scenes.render import object_pixels
from vimaedit.scenes.scenes import Scene
from vimaedit.types import UInt8Array

READER_VERSION = 2  # raised with every change of a verdict: scores made with another are made anew
EDIT_RIM = 3  # px around the edited object in which nothing is held against the picture
MAX_REMAINS = 0.08  # share of a removed object's pixels that may look strange; with more an eye sees its outline
MAX_STRANGE = 12  # px elsewhere that may look strange


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an edited picture shows, by attribute: `style`, `background.colour`, `objects.1.shape`, ...

    Objects are numbered as in the source; an added one comes last. `objects.1.present`: `yes` or `no`; `objects.1.place`, of an
    added object whose place can be told: the side that it is nearest to; `strange`: `none`, or
    `some` where something is seen that belongs neither to the background nor to an object. `read` lacks what is not there to
    be read. `changed`: the attributes that the edit is about.
    """

    wanted: dict[str, str]
    read: dict[str, str]
    changed: tuple[str, ...]

    @property
    def edited_right(self) -> bool:
        """Whether everything that the edit is about is as wanted."""
        return all(self.read.get(name) == self.wanted[name] for name in self.changed)

    @property
    def others_unchanged(self) -> bool:
        """Whether everything else is as it was."""
        return all(self.read.get(name) == value for name, value in self.wanted.items() if name not in self.changed)

    @property
    def success(self) -> bool:
        """Whether the edit was made, and nothing else."""
        return self.edited_right and self.others_unchanged

    @property
    def wrong(self) -> tuple[str, ...]:
        """The attributes that are not as wanted."""
        return tuple(name for name, value in self.wanted.items() if self.read.get(name) != value)


def judge_edit(edited: UInt8Array, source: Scene, target: Scene, source_index: int | None, target_index: int | None) -> Verdict:
    """Judge an edited picture (side, side, 3) by the scenes before and after the edit and the edited object's place in them.

    An added object is looked for and may be anywhere on the side that captions tell. All others have to be where they were,
    within a few pixels.

    Raises: ValueError where the scenes are equal, the indices do not fit them, or for a picture that `read_scene` would refuse.
    """
    _check(source, target, source_index, target_index)
    picture = picture_of(edited)
    size = len(picture)
    numbers = list(range(len(source.objects)))
    if target_index is None and source_index is not None:
        numbers.remove(source_index)
    read = read_picture(picture, [place for n, place in enumerate(layout_of(source)) if n in numbers])
    if source_index is None and target_index is not None:
        numbers.append(target_index)
        read = _with_added(picture, read)
    strange = strange_pixels(picture, read)
    before = _named(source, range(len(source.objects)), [True] * len(source.objects))
    wanted = _named(target, numbers, [True] * len(numbers))
    seen = _named(read, numbers, presence(picture, read))
    if source_index is None and target_index is not None and (place := place_of(target.objects[target_index])):
        wanted[f"objects.{target_index}.place"] = place
        if len(read.objects) == len(numbers):
            seen[f"objects.{target_index}.place"] = nearest_side(read.objects[-1].x, read.objects[-1].y)
    edited_pixels = np.zeros((size, size), dtype=np.bool_)
    if source_index is not None:
        edited_pixels = object_pixels(source, source_index, size)
        if target_index is None:
            remains = (strange & edited_pixels).sum() > MAX_REMAINS * edited_pixels.sum()
            wanted[_presence(source_index)], seen[_presence(source_index)] = "no", "yes" if remains else "no"
    wanted["strange"] = before["strange"] = "none"
    seen["strange"] = "some" if (strange & ~spread(edited_pixels, EDIT_RIM)).sum() > MAX_STRANGE else "none"
    changed = tuple(name for name, value in wanted.items() if before.get(name) != value)
    return Verdict(wanted=wanted, read=seen, changed=changed)


def _check(source: Scene, target: Scene, source_index: int | None, target_index: int | None) -> None:
    if source == target:
        raise ValueError("source, target: got the same scene twice; allowed: scenes that differ")
    count = len(source.objects)
    if source_index is None:
        fits = target_index in (None, count) and len(target.objects) == count + (target_index is not None)
    else:
        fits = 0 <= source_index < count and target_index in (None, source_index)
        fits = fits and len(target.objects) == count - (target_index is None)
    if not fits:
        raise ValueError(
            f"source_index, target_index: got {source_index}, {target_index} for {count} objects before and {len(target.objects)} "
            "after the edit; allowed: the same index twice, one of an object that is removed, the last one's that is added, or none"
        )


def _with_added(picture: Float32Array, read: Scene) -> Scene:
    """Return the scene that was read with the object that it lacks, where the picture shows one."""
    new = missing_object(picture, read)
    if new is None:
        return read
    return read_picture(picture, layout_of(replace(read, objects=(*read.objects, new))))


def _named(scene: Scene, numbers: Sequence[int], present: Sequence[bool]) -> dict[str, str]:
    """Name the attributes of a scene, its objects by these numbers; of an object that is not present only that."""
    named = {name: value for name, value in attributes_of(scene).items() if not name.startswith("objects.")}
    for each, number, shown in zip(scene.objects, numbers, present, strict=False):
        named[_presence(number)] = "yes" if shown else "no"
        if shown:
            named |= {f"objects.{number}.{name}": value for name, value in object_attributes(each).items()}
    return named


def _presence(number: int) -> str:
    return f"objects.{number}.present"
