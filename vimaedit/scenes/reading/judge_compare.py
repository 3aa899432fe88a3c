"""Compare a scene that was asked for with the one that was read, whatever the order and places of its objects."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from vimaedit.scenes.reading.reader import attributes_of, object_attributes
from vimaedit.scenes.scenes import Scene, SceneObject


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What of a wanted scene is right.

    `scene`: by name, of style and background; `objects`: by name, of each wanted object, everything wrong of one that is
    missing; `matches`: the read object that stands for each wanted one, or None; `num_missing`, `num_extra`: objects too few and
    too many.
    """

    scene: dict[str, bool]
    objects: tuple[dict[str, bool], ...]
    matches: tuple[int | None, ...]
    num_missing: int
    num_extra: int

    @property
    def all_right(self) -> bool:
        """Whether everything named is right and nothing else is there."""
        named = (self.scene, *self.objects)
        return not self.num_missing and not self.num_extra and all(all(right.values()) for right in named)


def compare_objects(wanted: Scene, read: Scene) -> Comparison:
    """Match the wanted objects with the read ones so that most attributes are right, and tell which are."""
    num_missing = max(0, len(wanted.objects) - len(read.objects))
    numbers = [*range(len(read.objects)), *[None] * num_missing]
    best: tuple[dict[str, bool], ...] = ()
    matches: tuple[int | None, ...] = ()
    for order in itertools.permutations(numbers, len(wanted.objects)):
        rights = tuple(
            _rights(each, None if n is None else read.objects[n]) for each, n in zip(wanted.objects, order, strict=True)
        )
        if not matches or _count(rights) > _count(best):
            best, matches = rights, order
    asked, seen = attributes_of(wanted), attributes_of(read)
    return Comparison(
        scene={name: seen[name] == value for name, value in asked.items() if not name.startswith("objects.")},
        objects=best,
        matches=matches,
        num_missing=num_missing,
        num_extra=max(0, len(read.objects) - len(wanted.objects)),
    )


def _rights(wanted: SceneObject, read: SceneObject | None) -> dict[str, bool]:
    seen = {} if read is None else object_attributes(read)
    return {name: seen.get(name) == value for name, value in object_attributes(wanted).items()}


def _count(rights: tuple[dict[str, bool], ...]) -> int:
    return sum(sum(right.values()) for right in rights)
