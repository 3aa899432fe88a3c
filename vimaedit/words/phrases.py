"""Phrases and words of a prompt as character spans of the text as it was typed.

A word is a run of letters and digits with all their marks, in any script. Hyphens and apostrophes inside it belong to it, and so
do a number's point and the joiners of Persian and Indic scripts. Scripts that put no space between words have no borders to be
seen: there a Han or Hiragana sign is a word, elsewhere a run of the script, and a phrase may begin and end at any sign.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from vimaedit.errors import RequestError, shown
from vimaedit.types import BlendPhrase

Span = tuple[int, int]  # first character, one past the last
BLEND_FORMS = "a list of {source, target}, or two words like 'cat dog'"

APOSTROPHES = "'\u2018\u2019\u02bc\uff07"
HYPHENS = "-\u2010\u2011"
QUOTES = '"\u201c\u201d\u201e\u201f\uff02'
ALIKE = {
    **dict.fromkeys(APOSTROPHES, "'"),
    **dict.fromkeys(HYPHENS, "-"),
    **dict.fromkeys(QUOTES, '"'),
}
JOINERS = "\u200c\u200d"
MARKED_PLANES = 0x20000  # code points of the planes with scripts that have marks


def _mark_ranges() -> str:
    """Return all combining marks as the inside of a regular expression's class."""
    marks = [code for code in range(MARKED_PLANES) if unicodedata.category(chr(code)).startswith("M")]
    starts = [code for code, before in zip(marks, [-1, *marks], strict=False) if code != before + 1]
    ends = [code for code, behind in zip(marks, [*marks[1:], -1], strict=True) if code != behind - 1]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


MARKS = _mark_ranges()
# Scripts without spaces between words. Han, Hiragana, Bopomofo: each sign a word.
SIGNS = "\u2e80-\u2fd5\u3005-\u3007\u3021-\u3029\u3041-\u309f\u3105-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
# Katakana; Thai, Lao, Tibetan, Myanmar, Khmer, Tai, Balinese, Javanese.
RUNS = (
    "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9df\ua9e0-\ua9ff\uaa60-\uaadf"
)
LETTER = rf"[^\W{SIGNS}{RUNS}]"
WORD = re.compile(
    rf"(?=\w)[{SIGNS}][{MARKS}]*"
    rf"|(?=\w)[{RUNS}](?:(?=\w)[{RUNS}]|[{MARKS}])*"
    rf"|{LETTER}(?:{LETTER}|[{MARKS}]|[{HYPHENS}{APOSTROPHES}{JOINERS}](?={LETTER})|(?<=\d)\.(?=\d))*"
)
WORD_BEGINS, WORD_ENDS = rf"(?<![\w{MARKS}])", rf"(?![\w{MARKS}])"  # for patterns of whole words
BORDERLESS = re.compile(rf"[{SIGNS}{RUNS}]")


def split_words(text: str) -> list[Span]:
    """Return the words of a text, without the punctuation around them."""
    return [match.span() for match in WORD.finditer(text)]


def spaced_words(text: str) -> list[Span]:
    """Return the words of a text with the punctuation that sticks to them, as Prompt-to-Prompt counts words.

    White space parts them, and so do the borders of words that touch, as they do in scripts without spaces.
    """
    borders = {start for (_, end), (start, _) in itertools.pairwise(split_words(text)) if start == end}
    words: list[Span] = []
    for match in re.finditer(r"\S+", text):
        cuts = [match.start(), *sorted(borders & set(range(*match.span()))), match.end()]
        words += itertools.pairwise(cuts)
    return words


def fold_word(word: str) -> str:
    """Return a word in the form in which words are compared: composed, case folded, with straight apostrophes and hyphens."""
    alike = "".join(ALIKE.get(character, character) for character in word)
    return unicodedata.normalize("NFC", alike).casefold()


def find_phrase(text: str, phrase: str) -> list[Span]:
    """Return every occurrence of a phrase, whole words only; case, the amount of white space, and whether quotation marks,
    apostrophes and hyphens are straight do not matter.

    Punctuation at the ends of the phrase belongs to it where it stands so in the text; if it nowhere does, the bare phrase is
    looked up. Empty if there is none.
    """
    found = _occurrences(text, phrase)
    if found:
        return found
    words = split_words(phrase)
    return _occurrences(text, phrase[words[0][0] : words[-1][1]]) if words else []


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
    if unicodedata.category(character) == "Cf":
        return ""  # soft hyphens, joiners and the like are not seen
    alike = ALIKE.get(character, character)
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", alike).casefold())


def _inside_word(text: str, position: int) -> bool:
    """Whether a position lies between two characters of one word, or between a sign and its mark."""
    if not 0 < position < len(text):
        return False
    before, behind = text[position - 1], text[position]
    if "." in (before, behind):  # of a number
        digits = (
            text[max(0, position - 2) : position - 1] + behind if before == "." else before + text[position + 1 : position + 2]
        )
        return len(digits) == 2 and digits.isdigit()
    if not (_is_word_character(before) and _is_word_character(behind)):
        return False
    return _is_mark(behind) or not (BORDERLESS.match(before) or BORDERLESS.match(behind))


def _is_word_character(character: str) -> bool:
    return character.isalnum() or character == "_" or _is_mark(character)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")
