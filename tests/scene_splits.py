"""Which scenes training may show."""

from __future__ import annotations

from vimaedit.scenes.scenes import Scene, split_of_pair


def may_train_on(scene: Scene) -> bool:
    """Whether a scene holds no combination that is kept for validation or test."""
    return all(split_of_pair(each.colour, each.shape) == "train" for each in scene.objects)
