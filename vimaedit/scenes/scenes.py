"""The scene world: what a scene consists of, and which scenes belong to which split."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

STYLES = ("picture", "cartoon", "sketch", "watercolor")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
MATERIALS = ("plain", "striped", "spotted")
FACES = ("smiling", "sad")
BACKGROUND_COLOURS = ("white", "grey", "blue", "green", "yellow", "pink", "purple", "orange")
BACKGROUND_PATTERNS = ("plain", "checkered", "gradient")

UPSIDE_DOWN = 180
TILT = (25, 40)  # degrees, either way
_UPRIGHT = ("upright",)
_TURNED = ("upright", "upside-down", "tilted left", "tilted right")
# The other shapes look the same, or like another shape, when they are turned.
POSES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(SHAPES, _UPRIGHT),
    **dict.fromkeys(("triangle", "heart"), _TURNED),
    "star": ("upright", "upside-down"),
}
FACED_SHAPES = ("circle", "square", "heart")

LOOK = 2  # raised when the same scene is drawn otherwise: the pixel reader knows what is drawn now, and nothing older

SPLITS = ("train", "validation", "test")
SPLIT_SEEDS = {split: range(n * 2**60, (n + 1) * 2**60) for n, split in enumerate(SPLITS)}
_GROUPS = 9  # of colour and shape pairs: one is held out for the test, one for validation
_HELD_OUT = {7: "validation", 4: "test"}


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One thing in a scene. Lengths in thousandths of the picture's side, angle in degrees clockwise."""

    shape: str
    colour: str
    material: str
    face: str | None
    x: int  # of the centre, from the left
    y: int  # of the centre, from the top
    size: int  # 300 to 500
    angle: int

    @property
    def pose(self) -> str:
        """How the object is turned, in words: one of `POSES`."""
        if self.angle in (0, UPSIDE_DOWN):
            return "upside-down" if self.angle else "upright"
        return "tilted right" if self.angle < UPSIDE_DOWN else "tilted left"

    @property
    def may_have_face(self) -> bool:
        """Whether there is room for a face that can be read."""
        return self.shape in FACED_SHAPES and self.material == "plain" and self.angle == 0


@dataclass(frozen=True, kw_only=True)
class Background:
    """What lies behind the objects. `second` is the colour at the bottom of a gradient, else None."""

    colour: str
    pattern: str
    second: str | None = None

    @property
    def colours(self) -> tuple[str, ...]:
        """The colours its caption names."""
        return (self.colour,) if self.second is None else (self.colour, self.second)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A whole picture: one object or two, which do not overlap."""

    objects: tuple[SceneObject, ...]
    background: Background
    style: str


def scene_to_json(scene: Scene) -> str:
    """Return a scene as one line of JSON."""
    return json.dumps({"look": LOOK, **asdict(scene)})


def scene_from_json(text: str) -> Scene:
    """Return the scene that `scene_to_json` wrote.

    Raises: ValueError for a scene with something that is not drawn (any more), or not like this.
    """
    fields = json.loads(text)
    if (look := fields.get("look")) != LOOK:
        raise ValueError(f"scene: look: got {look}; allowed: {LOOK}, as jobs.scenes draws now (write the benchmark anew)")
    scene = Scene(
        objects=tuple(SceneObject(**each) for each in fields["objects"]),
        background=Background(**fields["background"]),
        style=fields["style"],
    )
    named = [("style", scene.style, STYLES), ("background.pattern", scene.background.pattern, BACKGROUND_PATTERNS)]
    named += [("background.colour", colour, BACKGROUND_COLOURS) for colour in scene.background.colours]
    for each in scene.objects:
        named += [("shape", each.shape, SHAPES), ("colour", each.colour, COLOURS), ("material", each.material, MATERIALS)]
    for name, value, allowed in named:
        if value not in allowed:
            raise ValueError(f"scene: {name}: got {value!r}; allowed: {', '.join(allowed)}")
    return scene


def split_of_seed(seed: int) -> str:
    """Return the split whose range of `SPLIT_SEEDS` holds `seed`.

    Raises: ValueError for a seed in no range.
    """
    for split, seeds in SPLIT_SEEDS.items():
        if seed in seeds:
            return split
    raise ValueError(f"seed: got {seed}; allowed: 0 to {SPLIT_SEEDS[SPLITS[-1]].stop - 1}")


def split_of_pair(colour: str, shape: str) -> str:
    """Return the split that a colour and a shape are kept for; `train`: they may occur together anywhere.

    Every colour and every shape occurs in training, in other company.
    """
    return _HELD_OUT.get((COLOURS.index(colour) + 2 * SHAPES.index(shape)) % _GROUPS, "train")
