"""Whether edits of drawn scenes are truly right, and how that is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.synthesis.truth import count_truth, truth_table
from vimaedit.metrics.statistics import wilson_interval
from vimaedit.scenes.captions import place_of
from vimaedit.scenes.reading.find import read_unknown
from vimaedit.scenes.reading.truth import edited_scene, is_edit_right
from vimaedit.scenes.render import render_scene
from vimaedit.scenes.scenes import Background, Scene, SceneObject
from vimaedit.synthesis.lexicon import Lexicon, load_lexicon
from vimaedit.types import BlendPhrase

STAR = SceneObject(shape="star", colour="red", material="plain", face=None, x=300, y=350, size=300, angle=0)
CROSS = SceneObject(shape="cross", colour="blue", material="striped", face=None, x=700, y=650, size=300, angle=0)
SCENE = Scene(objects=(STAR, CROSS), background=Background(colour="white", pattern="plain"), style="picture")
TARGET = "a red star and a violet striped cross on a white background"


@pytest.fixture(scope="module")
def words() -> Lexicon:
    return load_lexicon("scenes")


@pytest.mark.parametrize(
    ("category", "source", "target", "expected"),
    [
        ("change_attribute_color", "red star", "violet star", replace(SCENE, objects=(replace(STAR, colour="purple"), CROSS))),
        (
            "change_object",
            "blue striped cross",
            "blue striped disc",
            replace(SCENE, objects=(STAR, replace(CROSS, shape="circle"))),
        ),
        (
            "change_attribute_material",
            "red star",
            "red dotted star",
            replace(SCENE, objects=(replace(STAR, material="spotted"), CROSS)),
        ),
        (
            "change_attribute_material",
            "blue cross with stripes",
            "blue cross",
            replace(SCENE, objects=(STAR, replace(CROSS, material="plain"))),
        ),
        ("delete_object", "star", None, replace(SCENE, objects=(CROSS,))),
        (
            "change_background",
            "white background",
            "checkered grey background",
            replace(SCENE, background=Background(colour="grey", pattern="checkered")),
        ),
        ("change_attribute_color", "green star", "violet star", None),
        ("change_attribute_color", "red star", "violet star", None),
    ],
)
def test_the_words_say_what_is_wanted(
    words: Lexicon, category: str, source: str, target: str | None, expected: Scene | None
) -> None:
    before = replace(SCENE, objects=(STAR, STAR)) if expected is None and source == "red star" else SCENE
    assert edited_scene(before, category, [BlendPhrase(source=source, target=target)], TARGET, words) == expected


def test_what_is_added_and_the_style(words: Lexicon) -> None:
    blend = [BlendPhrase(source=None, target="striped green heart at the top")]
    added = edited_scene(SCENE, "add_object", blend, TARGET, words)
    assert added is not None and added.objects[:2] == SCENE.objects
    assert (added.objects[2].shape, added.objects[2].colour, added.objects[2].material) == ("heart", "green", "striped")
    assert place_of(added.objects[2]) == "at the top"
    style = edited_scene(SCENE, "change_style", [], f"a pencil sketch of {TARGET}", words)
    assert style == replace(SCENE, style="sketch")
    assert edited_scene(SCENE, "change_style", [], TARGET, words) is None
    assert edited_scene(SCENE, "change_object", [], TARGET, words) is None


def test_pictures_are_read(words: Lexicon) -> None:
    single = replace(SCENE, objects=(STAR,))
    source = render_scene(single, 96)
    blue = render_scene(replace(single, objects=(replace(STAR, colour="blue"),)), 96)
    moved = render_scene(replace(single, objects=(replace(STAR, colour="blue", x=600),)), 96)
    blend = [BlendPhrase(source="red star", target="blue star")]

    before = read_unknown(source)

    def right(edited: object) -> bool:
        return is_edit_right(before, edited, "change_attribute_color", blend, "a blue star", words)  # type: ignore[arg-type]

    assert right(blue) and not right(source) and not right(moved)
    low, high = (render_scene(replace(single, objects=(STAR, replace(CROSS, y=y))), 96) for y in (800, 200))
    added = [BlendPhrase(source=None, target="striped blue cross at the bottom")]
    shown = [is_edit_right(before, edited, "add_object", added, TARGET, words) for edited in (low, high)]
    assert shown == [True, False]


def test_shares_are_counted_before_and_after_filtering() -> None:
    judged = [("a", f"p{n}", 0, n % 4 == 0) for n in range(40)] + [("b", f"q{n}", 1, True) for n in range(4)]
    kept = {(f"p{n}", 0) for n in range(0, 40, 4)} | {("p1", 0)}
    truth = count_truth(judged, kept, 50)
    assert truth.edited == (14, 44) and truth.kept == (10, 11) and truth.kept_share == pytest.approx(11 / 50)
    assert wilson_interval(*truth.edited).high < wilson_interval(*truth.kept).low
    assert truth.by_category == {"a": ((10, 40), (10, 11)), "b": ((4, 4), (0, 0))}
    text = truth_table(truth).text()
    assert "22.0 % of 50 requested candidates were kept" in text and "90.9 % [62.3, 98.4]" in text and "worse" not in text


def test_the_better_and_the_worse_of_a_pair_are_told_apart() -> None:
    judged = [("a", f"p{n}", candidate, candidate == 2 or n < 4) for n in range(20) for candidate in (0, 1, 2)]
    truth = count_truth(judged, set(), 60, [(f"p{n}", 2, 1) for n in range(20)])
    assert truth.preferred == [(True, True)] * 4 + [(True, False)] * 16
    text = truth_table(truth).text()
    assert (
        "20 pairs" in text
        and "right in 100.0 % [83.9, 100.0], the worse one in 20.0 % [8.1, 41.6]: 80.0 points more [60.0, 95.0]" in text
    )
