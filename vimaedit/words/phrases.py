"""Phrases and words of a prompt as character spans of the text as it was typed."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from vimaedit.errors import RequestError, shown
from vimaedit.types import BlendPhrase

Span = tuple[int, int]  # first character, one past the last
BLEND_FORMS = "a list of {source, target}, or two words like 'cat dog'"

WORD = re.compile(r"\w[\w\u0300-\u036f]*(?:['’\-][\w\u0300-\u036f]+)*")


def split_words(text: str) -> list[Span]:
    """Return the words of a text; hyphens and apostrophes inside a word belong to it, other punctuation to none."""
    return [match.span() for match in WORD.finditer(text)]


def fold_word(word: str) -> str:
    """Return a word in the form in which words are compared: composed, case folded."""
    return unicodedata.normalize("NFC", word).casefold()


def find_phrase(text: str, phrase: str) -> list[Span]:
    """Return every occurrence of a phrase, whole words only; case and the amount of white space do not matter.

    Punctuation at the ends of the phrase belongs to it where it stands so in the text; if it nowhere does, the bare phrase is
    looked up. Empty if there is none.
    """
    found = _occurrences(text, phrase)
    if found:
        return found
    inner = [n for n, character in enumerate(phrase) if _is_word_character(character)]
    return _occurrences(text, phrase[inner[0] : inner[-1] + 1]) if inner else []


def parse_blend(value: Any) -> tuple[BlendPhrase, ...]:
    """Return the phrases that say what changes, from any form in which they are given.

    `"cat dog"`, one word each, or a list of `{source, target}`, (source, target) or `BlendPhrase`, of which either side may be
    None or blank; an entry of None, and None altogether, says nothing.

    Raises: RequestError `blend_words_malformed`, whatever is wrong.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        words = value.split()
        if len(words) not in (0, 2):
            got = f"{shown(value)} ({len(words)} word{'s' * (len(words) > 1)})"
            raise blend_error(got, allowed="two words, source and target; phrases as a list of {source, target}")
        return (BlendPhrase(source=words[0], target=words[1]),) if words else ()
    if not isinstance(value, list | tuple):
        raise blend_error(f"{type(value).__name__} {shown(value)}")
    return tuple(_blend_phrase(entry) for entry in value if entry is not None)


def blend_error(got: str, *, part: str = "", allowed: str = BLEND_FORMS) -> RequestError:
    """Say that blend words, or a `part` of them, have no form that can be read."""
    return RequestError("blend_words_malformed", field=f"blend_words{part}", got=got, allowed=allowed)


def _blend_phrase(entry: Any) -> BlendPhrase:
    if isinstance(entry, BlendPhrase):
        entry = (entry.source, entry.target)
    elif isinstance(entry, Mapping):
        entry = (entry.get("source"), entry.get("target"))
    if not isinstance(entry, tuple) or len(entry) != 2:
        raise blend_error(f"an entry {type(entry).__name__} {shown(entry)}")
    sides: list[str | None] = []
    for name, phrase in zip(("source", "target"), entry, strict=True):
        if phrase is not None and not isinstance(phrase, str):
            got = f"{type(phrase).__name__} {shown(phrase)}"
            raise blend_error(got, part=f".{name}", allowed="a string or null")
        sides.append(None if phrase is None else phrase.strip() or None)
    if sides == [None, None]:
        raise blend_error("a pair without words", allowed="a phrase in source, target or both")
    return BlendPhrase(source=sides[0], target=sides[1])


def _occurrences(text: str, phrase: str) -> list[Span]:
    haystack, origin = _fold(text)
    needle, _ = _fold(phrase.strip())
    found = []
    start = haystack.find(needle) if needle else -1
    while start >= 0:
        end = start + len(needle)
        if not _inside_word(haystack, start) and not _inside_word(haystack, end):
            found.append((origin[start], origin[end - 1] + 1))
        start = haystack.find(needle, start + 1)
    return found


def _fold(text: str) -> tuple[str, list[int]]:
    """Case-fold and decompose a text and collapse its white space; return it with the original index of each character."""
    folded: list[str] = []
    origin: list[int] = []
    for n, character in enumerate(text):
        pieces = _fold_character(character)
        if pieces == " " and folded and folded[-1] == " ":
            continue
        folded.extend(pieces)
        origin.extend([n] * len(pieces))
    return "".join(folded), origin


@functools.lru_cache(maxsize=4096)
def _fold_character(character: str) -> str:
    if character.isspace():
        return " "
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", character).casefold())


def _inside_word(text: str, position: int) -> bool:
    """Whether a position lies between two characters of one word."""
    return 0 < position < len(text) and _is_word_character(text[position - 1]) and _is_word_character(text[position])


def _is_word_character(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")
