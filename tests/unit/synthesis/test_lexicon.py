"""Word lists from TOML: what they say, and every way in which a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from vimaedit.errors import ConfigError
from vimaedit.synthesis.lexicon import CATEGORIES, load_lexicon, parse_lexicon

SMALL = """
articles = ["a", "an"]
joiners = ["and"]
max_items = 2
colours = ["red", "grey|gray"]
materials = ["wooden", "metal"]
additions = ["a {colour} {things}"]
[objects]
things = ["ball|sphere", "box"]
[backgrounds]
prepositions = ["on", "in front of"]
heads = ["table"]
tails = []
phrases = ["a lawn"]
[styles]
photo = ["a photo of"]
[blocked]
change_object = ["broken"]
[instructions]
change_object = ["make {object} {new}"]
add_object = ["add {new}"]
delete_object = ["remove {object}"]
change_attribute_color = ["make {object} {new}"]
change_attribute_material = ["make {object} {new}"]
change_background = ["put it on {new}"]
change_style = ["turn it into {new}"]
"""


def test_the_built_in_lists_have_an_instruction_for_every_kind_of_edit() -> None:
    for name in ("general", "scenes"):
        assert set(load_lexicon(name).instructions) == set(CATEGORIES)


def test_words_of_one_meaning_are_written_as_the_first() -> None:
    lexicon = parse_lexicon(SMALL, "small")
    assert lexicon.colours.written == ("red", "grey")
    assert (lexicon.colours.find("Gray"), lexicon.colours.find("blue")) == ("grey", None)
    assert (lexicon.group_of("sphere"), lexicon.group_of("table")) == ("things", None)
    assert lexicon.split_background("in front of a wall") == ("in front of", "a wall")
    assert lexicon.split_background("a wall") == (None, "a wall")


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SMALL)
    assert load_lexicon(str(path)) == parse_lexicon(SMALL, "mine")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("articles", "articels", "words: mine: articels: got an unknown key; allowed: articles, joiners"),
        ("max_items = 2", "", "words: mine: max_items: got nothing; allowed: this key is required"),
        ("max_items = 2", "max_items = 0", "words: mine: max_items: got 0; allowed: a whole number from 1"),
        ("max_items = 2", "max_items = true", "words: mine: max_items: got True; allowed: a whole number from 1"),
        ('["and"]', '"and"', "words: mine: joiners: got 'and'; allowed: a list of texts"),
        ('["and"]', '[" "]', "words: mine: joiners: got [' ']; allowed: a list of texts"),
        ('"wooden", "metal"', '"wooden"', "words: mine: materials: got ['wooden']; allowed: at least two words"),
        ('"red", ', '"dark red", ', "words: mine: colours: got 'dark red'; allowed: single words"),
        ('"red", ', '"red", "gray", ', "words: mine: colours: got 'gray' twice; allowed: every word once"),
        (
            "{things}",
            "{thing}",
            "words: mine: additions: got {thing} in 'a {colour} {thing}'; allowed: {colour}, {material}, {things}",
        ),
        ("add {new}", "add {it}", "words: mine: instructions.add_object: got {it} in 'add {it}'; allowed: {object}, {new}"),
        ("add_object", "add_person", "words: mine: instructions.add_person: got an unknown category; allowed: change_object"),
        (
            'delete_object = ["remove {object}"]',
            "",
            "words: mine: instructions.delete_object: got nothing; allowed: this key is",
        ),
        ("tails = []", 'tails = ["("]', "words: mine: backgrounds.tails: got '(' ("),
        ('[blocked]\nchange_object = ["broken"]', "blocked = 1", "words: got 'mine', which is not TOML"),
        ("articles = [", "articles = [[", "words: got 'mine', which is not TOML"),
    ],
)
def test_what_is_refused(old: str, new: str, message: str) -> None:
    assert old in SMALL
    text = SMALL.replace(old, new)
    if "blocked = 1" in text:
        text = text.replace("blocked = 1", "") + "\n[instructions]\n"
    with pytest.raises(ConfigError) as refused:
        parse_lexicon(text, "mine")
    assert str(refused.value).startswith(message)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^words: got '.*none.toml', which cannot be read \(.*; allowed: general, scenes, or"
    ):
        load_lexicon(str(tmp_path / "none.toml"))


def test_a_table_that_is_none_is_refused() -> None:
    text = "blocked = 1\n" + SMALL.replace('[blocked]\nchange_object = ["broken"]', "")
    with pytest.raises(ConfigError, match="^words: mine: blocked: got 1; allowed: a table$"):
        parse_lexicon(text, "mine")
