"""Captions tell the truth, in many ways, and change only with the scene."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vimaedit.scenes.captions import (
    ObjectWording,
    Wording,
    describe_object,
    draw_wording,
    nearest_side,
    noun_phrase,
    place_of,
    with_article,
    write_caption,
)
from vimaedit.scenes.draws import Draws
from vimaedit.scenes.sampling import sample_scene
from vimaedit.scenes.scenes import Background, Scene, SceneObject
from vimaedit.words.phrases import find_phrase

BARE = ObjectWording(synonym=0, tell_size=False, tell_place=False, material_first=True, pattern_last=False, lying=0)
HEART = SceneObject(shape="heart", colour="red", material="plain", face=None, x=200, y=500, size=400, angle=0)
TRIANGLE = replace(HEART, shape="triangle", colour="orange", material="spotted", x=800, angle=330, size=310)
CIRCLE = replace(HEART, shape="circle", colour="purple", material="striped", x=500, y=800)
STAR = replace(CIRCLE, shape="star", material="plain", angle=180)
SCENE = Scene(objects=(HEART, TRIANGLE), background=Background(colour="blue", pattern="checkered"), style="picture")
WORDING = Wording(
    opening=2,
    joiner="and",
    preposition="on",
    background_first=False,
    pattern_first=True,
    fading=True,
    order=(0, 1),
    objects=(BARE, BARE),
)


@pytest.mark.parametrize(
    ("each", "changes", "phrase"),
    [
        (HEART, {}, "a red heart"),
        (replace(HEART, size=430), {"tell_size": True}, "a large red heart"),
        (HEART, {"tell_size": True}, "a red heart"),
        (HEART, {"tell_place": True}, "a red heart on the left"),
        (replace(HEART, face="smiling"), {}, "a smiling red heart"),
        (TRIANGLE, {}, "a spotted orange triangle tilted to the left"),
        (TRIANGLE, {"synonym": 1, "material_first": False}, "an orange dotted triangle tilted to the left"),
        (
            TRIANGLE,
            {"pattern_last": True, "tell_size": True, "lying": 1},
            "a small orange triangle with spots leaning to the left",
        ),
        (STAR, {}, "an upside-down purple star"),
        (STAR, {"lying": 1, "synonym": 1, "tell_place": True}, "a violet star turned upside down at the bottom"),
        (CIRCLE, {"pattern_last": True}, "a purple circle with stripes"),
        (CIRCLE, {"synonym": 1}, "a striped violet disc"),
    ],
)
def test_objects_are_described(each: SceneObject, changes: dict[str, object], phrase: str) -> None:
    assert describe_object(each, replace(BARE, **changes)) == phrase  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "caption"),
    [
        ({}, "{heart} and {triangle} on a checkered blue background"),
        ({"joiner": "next to"}, "{heart} next to {triangle} on a checkered blue background"),
        ({"order": (1, 0), "pattern_first": False}, "{triangle} and {heart} on a blue checkered background"),
        ({"background_first": True}, "on a checkered blue background, {heart} and {triangle}"),
        ({"opening": 1, "preposition": "against"}, "an image of {heart} and {triangle} against a checkered blue background"),
    ],
)
def test_scenes_are_told_in_many_ways(changes: dict[str, object], caption: str) -> None:
    names = {"heart": "a red heart", "triangle": "a spotted orange triangle tilted to the left"}
    assert write_caption(SCENE, replace(WORDING, **changes)) == caption.format(**names)  # type: ignore[arg-type]


def test_style_and_gradient_are_told() -> None:
    graded = Background(colour="orange", pattern="gradient", second="white")
    scene = Scene(objects=(HEART,), background=graded, style="watercolor")
    wording = replace(WORDING, order=(0,), objects=(BARE,))
    assert write_caption(scene, wording) == "a watercolor of a red heart on a background fading from orange to white"
    wording = replace(wording, opening=1, fading=False)
    caption = "a watercolor painting of a red heart on an orange and white gradient background"
    assert write_caption(scene, wording) == caption


def test_places_are_told_only_where_they_are_plain() -> None:
    assert place_of(replace(HEART, x=500, y=300)) == "at the top"
    assert place_of(replace(HEART, x=800, y=500)) == "on the right"
    assert place_of(replace(HEART, x=450, y=550)) is None
    assert place_of(replace(HEART, x=200, y=200)) is None


def test_every_point_is_nearest_to_one_side() -> None:
    points = {"on the left": (460, 530), "on the right": (900, 850), "at the top": (520, 470), "at the bottom": (100, 901)}
    assert {nearest_side(*point): point for point in points.values()} == points


def test_articles_fit_their_nouns() -> None:
    assert with_article("orange star") == "an orange star" and with_article("red star") == "a red star"


def test_wordings_vary_and_name_every_object_once() -> None:
    captions = set()
    for seed in range(199):
        scene = sample_scene(seed)
        wording = draw_wording(Draws(seed, 5), len(scene.objects))
        caption = write_caption(scene, wording)
        captions.add(write_caption(SCENE, draw_wording(Draws(seed, 5), 2)))
        for each, words in zip(scene.objects, wording.objects, strict=True):
            assert len(find_phrase(caption, noun_phrase(each, words))) == 1
        assert len(caption.split()) <= 45
    assert len(captions) > 180
