"""What `blend=auto` takes for the change between two prompts."""

from __future__ import annotations

import dataclasses

import pytest

from vimaedit.errors import RequestError
from vimaedit.words.changes import MAX_WORDS, Change, find_changes
from vimaedit.words.lists import ENGLISH

Texts = list[tuple[str | None, str | None]]


def texts(changes: tuple[Change, ...], source: str, target: str) -> Texts:
    return [
        (source[slice(*change.source)] if change.source else None, target[slice(*change.target)] if change.target else None)
        for change in changes
    ]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a cat on the grass", "a tiger, on the grass", [("cat", "tiger")]),
        ("a cat near a lake", "a cat with a red hat near a lake", [(None, "red hat")]),
        ("a man with a hat", "a man", [("hat", None)]),
        ("a cat and a dog", "a dog and a cat", [("cat", "dog"), ("dog", "cat")]),
        ("a cat and a cat", "a cat and a dog", [("cat", "dog")]),
        ("a big red car", "a small blue car", [("big red", "small blue")]),
        ("A Cat, sitting", "a cat sitting", []),
        ("a caf\u00e9", "a cafe\u0301", []),
        ("two cats", "3 cats", [("two", "3")]),
        ("a man's hat", "a woman's hat", [("man's", "woman's")]),
        ("a half-open door", "a half-closed door", [("half-open", "half-closed")]),
        ("a cat sleeping on a bed", "a dog sleeping on the floor", [("cat", "dog"), ("bed", "floor")]),
        ("...", "!", []),
        ("a big red car", "a small, blue car", [("big red", "small"), (None, "blue")]),
        ("a [cat] on a \u201cbed\u201d", "a [big] [dog] on a \u201cbed\u201d", [("cat", "big] [dog")]),
        ("a 3.5 m pole", "a 4.7 m pole", [("3.5", "4.7")]),
    ],
)
def test_content_changes(source: str, target: str, expected: Texts) -> None:
    difference = find_changes(source, target)
    assert texts(difference.content, source, target) == expected
    assert difference.style == ()


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a photo of a cat", "a painting of a cat", [("photo", "painting")]),
        ("a photo of a cat", "an oil painting of a cat", [("photo", "oil painting")]),
        ("a cat", "a pencil sketch of a cat", [(None, "pencil sketch")]),
        ("a black and white photo of a cat", "a photo of a cat", [("black and white", None)]),
        ("a cat", "a cat in the style of van gogh", [(None, "style of van gogh")]),
        ("a cat in the style of Monet", "a cat in the style of Picasso", [("Monet", "Picasso")]),
        ("a cat", "a cat in pop art style", [(None, "pop art style")]),
        ("a cat", "a cat in van gogh style", [(None, "van gogh style")]),
        ("a cat", "a cat, anime-style", [(None, "anime-style")]),
        ("an anime style cat", "a cat", [("anime style", None)]),
        ("a cat, van gogh style", "a cat, monet style", [("van gogh", "monet")]),
        ("a room", "a room, in the manner of the old masters", [(None, "manner of the old masters")]),
        ("a cat", "a cat (oil painting)", [(None, "oil painting")]),
        ("a cat", "a cat - oil painting", [(None, "oil painting")]),
        ("a cat", "a cat, very fine digital art", [(None, "very fine digital art")]),
        ("a cat", "an oil painting on canvas of a cat", [(None, "oil painting on canvas")]),
        ("a cat", "a cat, painting by van gogh", [(None, "painting by van gogh")]),
        ("a cat", "a cat in pop art style by andy warhol", [(None, "pop art style by andy warhol")]),
        ("a cat", "a cat, by van gogh", [(None, "van gogh")]),
        ("a painting by Monet of a cat", "a painting by Picasso of a cat", [("Monet", "Picasso")]),
        ("this is a photo of a cat", "this is a sketch of a cat", [("photo", "sketch")]),
        ("a cat", "a stunning sketch of a cat", [(None, "stunning sketch")]),
    ],
)
def test_style_changes(source: str, target: str, expected: Texts) -> None:
    difference = find_changes(source, target)
    assert texts(difference.style, source, target) == expected
    assert difference.content == ()


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a bottle of oil", "a bottle of ink", [("oil", "ink")]),  # of a medium only in front of one
        ("a photo of a black and white cat", "a photo of a cat", [("black and white", None)]),
        ("a woman with short hair style", "a woman with long hair style", [("short", "long")]),
        ("a photo of a cat", "a statue of a cat", [("photo", "statue")]),  # one side is no medium
        ("a statue", "a photo", [("statue", "photo")]),
        ("a woman", "a woman with short hair style", [(None, "short hair style")]),
        ("a woman in a dress", "a woman in a vintage style dress", [(None, "vintage style")]),
        ("a man", "a man with a cartoon-style tattoo", [(None, "cartoon-style tattoo")]),
        ("a man painting a wall", "a man", [("painting a wall", None)]),
        ("a park, a man drawing a map", "a park, a man", [("drawing a map", None)]),
        ("woman holding poster", "woman", [("holding poster", None)]),
        ("a woman holding a picture of a cat", "a woman holding a cat", [("picture", None)]),
        ("a poster on a wall", "a wall", [("poster", None)]),
        ("a picture frame on a desk", "a desk", [("picture frame", None)]),
        ("a sofa, a lamp, and a picture", "a sofa, a lamp", [("picture", None)]),
        ("a bed, a poster above it", "a bed", [("poster above it", None)]),
        ("a cat photo", "a dog photo", [("cat", "dog")]),
        ("a house", "a house, by the lake", [(None, "lake")]),
    ],
)
def test_words_that_are_style_elsewhere_are_content(source: str, target: str, expected: Texts) -> None:
    difference = find_changes(source, target)
    assert texts(difference.content, source, target) == expected
    assert difference.style == ()


def test_a_change_of_both_is_told_apart() -> None:
    source, target = "a photo of a cat", "a watercolor of a dog"
    difference = find_changes(source, target)
    assert texts(difference.content, source, target) == [("cat", "dog")]
    assert texts(difference.style, source, target) == [("photo", "watercolor")]


def test_the_word_lists_can_be_replaced() -> None:
    lists = dataclasses.replace(ENGLISH, articles=frozenset({"ein"}), relations=frozenset({"mit"}), media=frozenset({"foto"}))
    source, target = "ein Foto mit Hund", "Hund mit Katze"
    difference = find_changes(source, target, lists)
    assert texts(difference.style, source, target) == [("Foto", None)]
    assert texts(difference.content, source, target) == [(None, "Katze")]
    assert find_changes(source, target).style == ()


@pytest.mark.parametrize(
    ("source", "target", "content", "style"),
    [
        pytest.param(
            "a cat", "a cat in a hat, anime style", [(None, "hat")], [(None, "anime style")], id="opener_stops_at_the_comma"
        ),
        pytest.param(
            "a photo of a cat",
            "a photo of a dog, watercolor painting",
            [("cat", "dog")],
            [(None, "watercolor painting")],
            id="noun_and_medium",
        ),
        pytest.param(
            "a woman in a red dress",
            "a woman in a red dress and a hat, vintage style",
            [(None, "hat")],
            [(None, "vintage style")],
            id="insertion_and_style",
        ),
        pytest.param(
            "a man with his mouth closed",
            "a man with his mouth open, in the style of van gogh",
            [("closed", "open")],
            [(None, "style of van gogh")],
            id="attribute_and_style",
        ),
        pytest.param(
            "a man with his mouth closed",
            "a man with his mouth open in the style of van gogh",
            [("closed", "open")],
            [(None, "style of van gogh")],
            id="without_a_comma",
        ),
        pytest.param(
            "a photo of a cat on a table",
            "a painting of a cat under a table",
            [("on", "under")],
            [("photo", "painting")],
            id="place_and_medium",
        ),
        pytest.param("a photo of a cat", "a painting with a cat", [], [("photo", "painting")], id="wording_beside_a_medium"),
    ],
)
def test_a_run_is_split_where_style_begins(source: str, target: str, content: Texts, style: Texts) -> None:
    difference = find_changes(source, target)
    assert texts(difference.content, source, target) == content
    assert texts(difference.style, source, target) == style


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a living room with a picture", "a living room", [("picture", None)]),
        ("a wall", "a wall with a poster", [(None, "poster")]),
        ("a wall with graffiti", "a wall", [("graffiti", None)]),
        ("a mug", "a mug with a print", [(None, "print")]),
        ("a man", "a man and his portrait", [(None, "his portrait")]),
    ],
)
def test_media_that_are_things_in_the_picture_are_content(source: str, target: str, expected: Texts) -> None:
    difference = find_changes(source, target)
    assert texts(difference.content, source, target) == expected
    assert difference.style == ()


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a table without flowers", "a table with flowers", [("without", "with")]),
        ("a lamp above the table", "a lamp under the table", [("above", "under")]),
        ("a woman looking up", "a woman looking down", [("up", "down")]),
        ("a cat inside a box", "a cat outside a box", [("inside", "outside")]),
        ("a cat on the box", "a cat in the box", [("on", "in")]),
        ("a woman looking", "a woman looking up", [(None, "up")]),
        ("a man without a dog", "a man and a dog", [("without", None)]),
        ("a cat in front of a sofa", "a cat behind a sofa", [("front", "behind")]),
        # Never articles and conjunctions alone, and nothing beside other content.
        ("a cat on grass", "the cat on the grass", []),
        ("a cat and a dog", "a cat or a dog", []),
        ("a bird on a branch", "a bird in a cage", [("branch", "cage")]),
    ],
)
def test_prepositions_and_adverbs_count_where_nothing_else_changes(source: str, target: str, expected: Texts) -> None:
    difference = find_changes(source, target)
    assert texts(difference.content, source, target) == expected
    assert difference.style == ()


@pytest.mark.parametrize(
    ("source", "target", "content", "style"),
    [
        # objects
        ("a cat sitting on a wooden chair", "a dog sitting on a wooden chair", [("cat", "dog")], []),
        ("a bowl of apples on a table", "a bowl of oranges on a table", [("apples", "oranges")], []),
        ("a white horse running in the field", "a white zebra running in the field", [("horse", "zebra")], []),
        ("a kitten walking through the grass", "a duck walking through the grass", [("kitten", "duck")], []),
        # additions
        ("a round cake on a plate", "a round cake with strawberries on a plate", [(None, "strawberries")], []),
        ("a mountain lake", "a mountain lake with a boat", [(None, "boat")], []),
        ("a woman standing in the park", "a woman with an umbrella standing in the park", [(None, "umbrella")], []),
        ("a dog on the beach", "a dog wearing sunglasses on the beach", [(None, "wearing sunglasses")], []),
        # deletions
        ("a vase with flowers on the table", "a vase on the table", [("flowers", None)], []),
        ("a boy and a dog in the park", "a boy in the park", [("dog", None)], []),
        ("a desk with a laptop and a cup of coffee", "a desk with a laptop", [("cup of coffee", None)], []),
        # content of an attribute
        ("a dog with its mouth closed", "a dog with its mouth open", [("closed", "open")], []),
        ("a sad girl, close-up", "a smiling girl, close-up", [("sad", "smiling")], []),
        ("a child with blue eyes", "a child with closed eyes", [("blue", "closed")], []),
        # poses
        ("a man standing with arms crossed", "a man standing with arms raised", [("crossed", "raised")], []),
        ("a horse standing in a meadow", "a horse jumping in a meadow", [("standing", "jumping")], []),
        ("a cat lying on the sofa", "a cat sitting on the sofa", [("lying", "sitting")], []),
        # colours
        ("a red car parked on the street", "a blue car parked on the street", [("red", "blue")], []),
        ("a woman with blonde hair", "a woman with black hair", [("blonde", "black")], []),
        ("a black and white cat on a bed", "an orange cat on a bed", [("black and white", "orange")], []),
        # materials
        ("a wooden bridge over a river", "a stone bridge over a river", [("wooden", "stone")], []),
        ("a leather bag", "a denim bag", [("leather", "denim")], []),
        ("a lion made of bronze", "a lion made of gold", [("bronze", "gold")], []),
        # backgrounds
        ("a dog on the beach", "a dog in the snow", [("beach", "snow")], []),
        ("a couple in front of the eiffel tower", "a couple in front of the pyramids", [("eiffel tower", "pyramids")], []),
        ("a castle under a blue sky", "a castle under a starry night sky", [("blue", "starry night")], []),
        # styles
        ("a photo of a house", "a watercolor painting of a house", [], [("photo", "watercolor painting")]),
        ("a city street at night", "a city street at night, cyberpunk style", [], [(None, "cyberpunk style")]),
        ("a portrait of a woman", "a sketch of a woman", [], [("portrait", "sketch")]),
        ("a cat wearing a hat", "a cat wearing a hat in pixel art style", [], [(None, "pixel art style")]),
        ("a cat, oil painting", "a cat, pencil drawing", [], [("oil painting", "pencil drawing")]),
        ("a cartoon cat", "a cat", [], [("cartoon", None)]),
        # several at once
        (
            "a photo of a goat and a cat",
            "an oil painting of a horse and a cat",
            [("goat", "horse")],
            [("photo", "oil painting")],
        ),
        ("a blue bird on a branch", "a red bird on a branch with a nest", [("blue", "red"), (None, "nest")], []),
    ],
)
def test_pairs_of_every_category(source: str, target: str, content: Texts, style: Texts) -> None:
    difference = find_changes(source, target)
    assert texts(difference.content, source, target) == content
    assert texts(difference.style, source, target) == style


def numbered(count: int, letter: str = "w") -> str:
    return " ".join(f"{letter}{n}" for n in range(count))


def test_words_that_long_prompts_both_end_in_do_not_count() -> None:
    tail = numbered(40_009)
    source, target = f"a cat, {tail}", f"a photo of a red dog, {tail}"
    difference = find_changes(source, target)
    assert texts(difference.content, source, target) == [("cat", "red dog")]
    assert texts(difference.style, source, target) == [(None, "photo")]
    # The words behind tell what the last one that differs is.
    source, target = f"a cat in oil style of {tail}", f"a cat in pop style of {tail}"
    assert texts(find_changes(source, target).style, source, target) == []
    assert texts(find_changes(source, target).content, source, target) == [("oil", "pop")]


def test_only_long_prompts_are_cut() -> None:
    # The whole alignment takes the "a" in front, what is left of the cut one would be "x".
    assert texts(find_changes("x a", "a a").content, "x a", "a a") == [("x", None)]


def test_prompts_with_too_many_words_are_refused() -> None:
    long = numbered(MAX_WORDS + 1)
    for source, target, field in ((f"{long} end", "an end", "source_prompt"), ("an end", f"{long} end", "target_prompt")):
        with pytest.raises(RequestError) as error:
            find_changes(source, target)
        assert error.value.code == "prompt_too_long"
        assert str(error.value) == (
            f"{field}: got 302 words, of which both prompts end in the same 1; "
            "allowed: up to 300 words beside those that both end in"
        )
    assert len(find_changes(numbered(MAX_WORDS), numbered(MAX_WORDS, "v")).content) == 1
