"""The word lists of rule-based edits: a TOML file, checked as a whole when it is read."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vimaedit.errors import ConfigError
from vimaedit.words.phrases import fold_word, split_words

BUILT_IN = ("general", "scenes")
CATEGORIES = (  # PIE-Bench's names
    "change_object",
    "add_object",
    "delete_object",
    "change_attribute_color",
    "change_attribute_material",
    "change_background",
    "change_style",
)
PLACE = re.compile(r"\{([^{}]*)\}")
SECTIONS = ("articles", "joiners", "max_items", "colours", "materials", "additions")
TABLES = ("objects", "backgrounds", "styles", "blocked", "instructions")


@dataclass(frozen=True, kw_only=True)
class Words:
    """Words of which each has a form that is written and perhaps others that mean the same."""

    forms: Mapping[str, str]  # case-folded form -> the one that is written

    @cached_property
    def written(self) -> tuple[str, ...]:
        """The forms that are written, in the file's order."""
        return tuple(dict.fromkeys(self.forms.values()))

    def find(self, word: str) -> str | None:
        """Return the written form of a word of a text; None where it is none of these."""
        return self.forms.get(fold_word(word))


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """What rule-based edits know of words. `tails` are regular expressions; `styles` maps a style to how captions open."""

    digest: str  # of the file
    articles: tuple[str, ...]
    joiners: tuple[str, ...]
    max_items: int
    colours: Words
    materials: Words
    additions: tuple[str, ...]
    objects: Mapping[str, Words]  # by group
    prepositions: tuple[str, ...]
    background_heads: frozenset[str]
    background_tails: tuple[str, ...]
    backgrounds: tuple[str, ...]
    styles: Mapping[str, tuple[str, ...]]
    blocked: Mapping[str, frozenset[str]]
    instructions: Mapping[str, tuple[str, ...]]

    def group_of(self, word: str) -> str | None:
        """Return the first group of objects that has a word; None where none has."""
        return next((name for name, words in self.objects.items() if words.find(word)), None)

    def split_background(self, phrase: str) -> tuple[str | None, str]:
        """Split a background's phrase into the preposition that it brings, if it does, and the rest."""
        for preposition in sorted(self.prepositions, key=len, reverse=True):
            if fold_word(phrase).startswith(f"{fold_word(preposition)} "):
                return phrase[: len(preposition)], phrase[len(preposition) + 1 :]
        return None, phrase


def load_lexicon(name: str) -> Lexicon:
    """Read word lists: a built-in name or the path of a TOML file.

    Raises: ConfigError naming file, key, what stands there and what may.
    """
    path = Path(__file__).with_name(f"{name}.toml") if name in BUILT_IN else Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"words: got {name!r}, which cannot be read ({error}); allowed: {', '.join(BUILT_IN)}, or a TOML file"
        ) from error
    return parse_lexicon(text, name)


def parse_lexicon(text: str, name: str) -> Lexicon:
    """Read word lists from TOML; `name` is what error texts call them.

    Raises: ConfigError.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"words: got {name!r}, which is not TOML ({error})") from error
    reader = _Reader(name)
    reader.check_keys("", content, (*SECTIONS, *TABLES))
    background = reader.table("backgrounds", content["backgrounds"])
    reader.check_keys("backgrounds.", background, ("prepositions", "heads", "tails", "phrases"))
    blocked = reader.table("blocked", content["blocked"])
    instructions = reader.table("instructions", content["instructions"])
    for key, table in (("blocked", blocked), ("instructions", instructions)):
        if unknown := [category for category in table if category not in CATEGORIES]:
            raise reader.error(f"{key}.{unknown[0]}", "an unknown category", ", ".join(CATEGORIES))
    reader.check_keys("instructions.", instructions, CATEGORIES)
    objects = reader.table("objects", content["objects"])
    lexicon = Lexicon(
        digest=hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
        articles=reader.texts("articles", content["articles"]),
        joiners=reader.texts("joiners", content["joiners"]),
        max_items=reader.count("max_items", content["max_items"]),
        colours=reader.words("colours", content["colours"]),
        materials=reader.words("materials", content["materials"]),
        additions=reader.texts("additions", content["additions"]),
        objects={group: reader.words(f"objects.{group}", entries) for group, entries in objects.items()},
        prepositions=reader.texts("backgrounds.prepositions", background["prepositions"]),
        background_heads=frozenset(map(fold_word, reader.texts("backgrounds.heads", background["heads"]))),
        background_tails=reader.patterns("backgrounds.tails", background["tails"]),
        backgrounds=reader.texts("backgrounds.phrases", background["phrases"]),
        styles={
            style: reader.texts(f"styles.{style}", openings)
            for style, openings in reader.table("styles", content["styles"]).items()
        },
        blocked={key: frozenset(map(fold_word, reader.texts(f"blocked.{key}", value))) for key, value in blocked.items()},
        instructions={key: reader.texts(f"instructions.{key}", value) for key, value in instructions.items()},
    )
    _check_templates(reader, lexicon)
    return lexicon


def _check_templates(reader: _Reader, lexicon: Lexicon) -> None:
    drawn = ("colour", "material", *lexicon.objects)
    for text in lexicon.additions:
        if unknown := [place for place in PLACE.findall(text) if place not in drawn]:
            raise reader.error("additions", f"{{{unknown[0]}}} in {text!r}", ", ".join(f"{{{each}}}" for each in drawn))
    for category, texts in lexicon.instructions.items():
        for text in texts:
            if unknown := [place for place in PLACE.findall(text) if place not in ("object", "new")]:
                raise reader.error(f"instructions.{category}", f"{{{unknown[0]}}} in {text!r}", "{object}, {new}")


class _Reader:
    """Checks what stands in the file; every error names the file and the key."""

    def __init__(self, name: str) -> None:
        self.name = name

    def error(self, key: str, got: str, allowed: str) -> ConfigError:
        return ConfigError(f"words: {self.name}: {key}: got {got}; allowed: {allowed}")

    def check_keys(self, prefix: str, table: Mapping[str, Any], keys: tuple[str, ...]) -> None:
        if unknown := [key for key in table if key not in keys]:
            raise self.error(f"{prefix}{unknown[0]}", "an unknown key", ", ".join(keys))
        if missing := [key for key in keys if key not in table]:
            raise self.error(f"{prefix}{missing[0]}", "nothing", "this key is required")

    def table(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(key, repr(value), "a table")
        return value

    def count(self, key: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(key, repr(value), "a whole number from 1")
        return value

    def texts(self, key: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(entry, str) and entry.strip() for entry in value):
            raise self.error(key, repr(value), "a list of texts")
        return tuple(value)

    def patterns(self, key: str, value: Any) -> tuple[str, ...]:
        for text in self.texts(key, value):
            try:
                re.compile(text)
            except re.error as error:
                raise self.error(key, f"{text!r} ({error})", "regular expressions") from error
        return tuple(value)

    def words(self, key: str, value: Any) -> Words:
        forms: dict[str, str] = {}
        for entry in self.texts(key, value):
            first, *others = entry.split("|")
            for word in (first, *others):
                if split_words(word) != [(0, len(word))]:
                    raise self.error(key, repr(entry), "single words, with others of the same meaning behind |")
                if fold_word(word) in forms:
                    raise self.error(key, f"{word!r} twice", "every word once")
                forms[fold_word(word)] = first
        if len(set(forms.values())) < 2:
            raise self.error(key, repr(value), "at least two words, so that one can replace the other")
        return Words(forms=forms)
