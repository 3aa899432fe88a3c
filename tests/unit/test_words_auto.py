"""What `blend=auto` takes for the change between two prompts."""

from __future__ import annotations

import dataclasses

import pytest

from vimaedit.changes import Change, find_changes
from vimaedit.wordlists import ENGLISH

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
        ("a cat inside a box", "a cat outside a box", []),
        ("A Cat, sitting", "a cat sitting", []),
        ("a caf\u00e9", "a cafe\u0301", []),
        ("two cats", "3 cats", [("two", "3")]),
        ("a man's hat", "a woman's hat", [("man's", "woman's")]),
        ("a half-open door", "a half-closed door", [("half-open", "half-closed")]),
        ("a cat sleeping on a bed", "a dog sleeping on the floor", [("cat", "dog"), ("bed", "floor")]),
        ("...", "!", []),
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
    lists = dataclasses.replace(ENGLISH, function_words=frozenset({"ein", "mit"}), media=frozenset({"foto"}))
    source, target = "ein Foto mit Hund", "Hund mit Katze"
    difference = find_changes(source, target, lists)
    assert texts(difference.style, source, target) == [("Foto", None)]
    assert texts(difference.content, source, target) == [(None, "Katze")]
    assert find_changes(source, target).style == ()
