"""What a caption speaks of, as far as word lists tell: how it opens, its things, and its background."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vimaedit.synthesis.lexicon import Lexicon
from vimaedit.words.phrases import WORD_BEGINS, WORD_ENDS, Span, fold_word, split_words


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that a caption names, as spans of the caption.

    `span`: everything said of it; `noun`: from the first word behind the article to the `head`, the word that names it.
    """

    span: Span
    article: Span | None
    noun: Span | None
    head: Span | None
    group: str | None  # of the lexicon's objects


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption with its parts. `joiners` stand between the items of the same place in order: one less than items.

    `style`: the lexicon's, None where the caption does not open with one; `opening` ends before the first thing.
    `background`: from the preposition to the end; `background_noun` begins behind the article.
    """

    text: str
    style: str | None
    opening: Span | None
    items: tuple[Item, ...]
    joiners: tuple[Span, ...]
    background: Span | None
    background_article: Span | None
    background_noun: Span | None

    def cut(self, span: Span) -> str:
        """Return the text of a span."""
        return self.text[slice(*span)]


def read_caption(text: str, lexicon: Lexicon) -> Caption:
    """Find the parts of a caption. What the word lists do not know stays unread, so that no rule touches it."""
    style, opening = _read_opening(text, lexicon)
    start = opening[1] if opening else 0
    background, article, noun = _read_background(text, start, lexicon)
    items, joiners = _read_items(text, start, background, lexicon)
    return Caption(
        text=text,
        style=style,
        opening=opening,
        items=tuple(items),
        joiners=tuple(joiners),
        background=background,
        background_article=article,
        background_noun=noun,
    )


def words_of(text: str, span: Span) -> list[Span]:
    """Return the words within a span of a text, as spans of the text."""
    return [(first + span[0], last + span[0]) for first, last in split_words(text[slice(*span)])]


def _read_opening(text: str, lexicon: Lexicon) -> tuple[str | None, Span | None]:
    openings = [(opening, style) for style, texts in lexicon.styles.items() for opening in texts]
    for opening, style in sorted(openings, key=lambda each: -len(each[0])):  # the longest that fits
        if found := re.match(rf"\s*{_phrase(opening)}\s+", text, re.IGNORECASE):
            return style, found.span()
    return None, None


def _read_background(text: str, start: int, lexicon: Lexicon) -> tuple[Span | None, Span | None, Span | None]:
    """Find the last preposition that a background follows: preposition, article, words, a head, perhaps a tail."""
    words = words_of(text, (start, len(text)))
    for found in reversed(list(_preposition(lexicon).finditer(text, start))):
        behind = [word for word in words if word[0] >= found.end()]
        if not behind or fold_word(text[slice(*behind[0])]) not in lexicon.articles:
            continue
        head = _background_head(text, behind[1:], lexicon)
        if head is None:
            continue
        end = head[1]
        for tail in lexicon.background_tails:
            if longer := re.compile(rf"\s+(?:{tail}){WORD_ENDS}", re.IGNORECASE).match(text, head[1]):
                end = max(end, longer.end())
        return (found.start(), end), behind[0], (behind[1][0], end)
    return None, None, None


def _background_head(text: str, words: list[Span], lexicon: Lexicon) -> Span | None:
    """Return the first of the words that heads a background, with the heads right behind it ("city street").

    The words end where an article, a preposition or a comma begins something else. Joined colours do not ("a red and blue sky").
    """
    last: Span | None = None
    head: Span | None = None
    for word in words:
        if last is not None and not text[last[1] : word[0]].isspace():
            break
        if _stops(text, word, (*lexicon.prepositions, *lexicon.articles)):
            break
        last = word
        if fold_word(text[slice(*word)]) in lexicon.background_heads:
            head = word
        elif head is not None:
            break
    return head


def _read_items(text: str, start: int, background: Span | None, lexicon: Lexicon) -> tuple[list[Item], list[Span]]:
    """Split what is neither opening nor background where a joiner stands in front of an article."""
    regions = [(start, len(text))]
    if background is not None:
        regions = [(start, background[0]), (background[1], len(text))]
    region = max(regions, key=lambda span: len(split_words(text[slice(*span)])))
    region = _trim(text, region)
    if background is not None and background[1] <= region[0]:
        # "On the beach, a dog": the comma belongs to neither.
        words = words_of(text, region)
        region = (words[0][0] if words else region[1], region[1])
    joins = "|".join(_phrase(joiner) for joiner in sorted(lexicon.joiners, key=len, reverse=True))
    articles = "|".join(map(re.escape, lexicon.articles))
    pattern = re.compile(rf"(?:\s*,\s*(?:and\s+)?|\s+(?:{joins})\s+)(?=(?:{articles})\s)", re.IGNORECASE)
    items, joiners, position = [], [], region[0]
    for found in pattern.finditer(text, region[0], region[1]):
        items.append(_read_item(text, (position, found.start()), lexicon))
        joiners.append(found.span())
        position = found.end()
    if position < region[1]:
        items.append(_read_item(text, (position, region[1]), lexicon))
    return items, joiners[: max(0, len(items) - 1)]


def _read_item(text: str, span: Span, lexicon: Lexicon) -> Item:
    span = _trim(text, span)
    words = words_of(text, span)
    article = words[0] if words and fold_word(text[slice(*words[0])]) in lexicon.articles else None
    head, group = None, None
    rest = words[1:] if article else words
    for word in rest:
        if _stops(text, word, (*lexicon.articles, *lexicon.prepositions, *lexicon.joiners)):
            break
        if found := lexicon.group_of(text[slice(*word)]):
            head, group = word, found
    noun = (rest[0][0], head[1]) if head else None
    return Item(span=span, article=article, noun=noun, head=head, group=group)


def _stops(text: str, word: Span, phrases: Sequence[str]) -> bool:
    """Whether one of the phrases begins with a word."""
    return any(re.compile(rf"{_phrase(each)}{WORD_ENDS}", re.IGNORECASE).match(text, word[0]) for each in phrases)


def _preposition(lexicon: Lexicon) -> re.Pattern[str]:
    phrases = "|".join(_phrase(each) for each in sorted(lexicon.prepositions, key=len, reverse=True))
    return re.compile(rf"{WORD_BEGINS}(?:{phrases}){WORD_ENDS}", re.IGNORECASE)


def _phrase(text: str) -> str:
    return r"\s+".join(map(re.escape, text.split()))


def _trim(text: str, span: Span) -> Span:
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while end > start and (text[end - 1].isspace() or text[end - 1] in ".,;!"):
        end -= 1
    return start, end
