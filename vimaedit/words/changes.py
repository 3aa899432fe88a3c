"""What changes between two prompts: the words replaced, inserted or deleted, at their positions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from vimaedit.errors import RequestError
from vimaedit.words.alignment import align_sequences
from vimaedit.words.lists import ENGLISH, WordLists
from vimaedit.words.phrases import Span, fold_word, split_words

MAX_WORDS = 300  # on a side; the time of the alignment grows with the product of both

# Quotation marks, square brackets and points inside abbreviations part no clauses.
CLAUSE_BREAK = re.compile(
    r"[,;!?()|\u2013\u2014\u2026\u060c\u061b\u061f\u0964\u0965\u3001\u3002\uff0c\uff1a\uff1b\uff01\uff1f]|[.:]\s|\s-+\s"
)


@dataclass(frozen=True)
class Change:
    """One run of changed words: its span in the source prompt and in the target prompt, None where there is no word."""

    source: Span | None
    target: Span | None


@dataclass(frozen=True)
class PromptDifference:
    """All changes in order: those of what the picture shows, and those of its medium or style, which give no mask."""

    content: tuple[Change, ...]
    style: tuple[Change, ...]


def find_changes(source: str, target: str, lists: WordLists = ENGLISH) -> PromptDifference:
    """Align two prompts word by word (case folded) and return the runs of words that differ.

    A run is split at punctuation and where words of the medium or style, which concern the whole picture, meet others;
    function words are trimmed at the ends of the pieces. Where that leaves no content at all, prepositions and adverbs that
    differ are the content ("without" -> "with").

    Raises: RequestError `prompt_too_long` for more than `MAX_WORDS` words; beyond that many in a prompt, those that both
    prompts end in do not count.
    """
    source_words, target_words = _read_words(source, target, lists)
    mapper = align_sequences(source_words.folded, target_words.folded)
    content: list[Change] = []
    style: list[Change] = []
    relations: list[Change] = []
    wordings: list[Change] = []
    # Between two aligned words lies one run of each prompt; a sentinel closes the last.
    source_start = target_start = 0
    for target_end, source_end in enumerate([*mapper, len(source_words.folded)]):
        if source_end < 0:
            continue
        old_run, new_run = range(source_start, source_end), range(target_start, target_end)
        source_start, target_start = source_end + 1, target_end + 1
        old, new = source_words.split(old_run), target_words.split(new_run)
        old_relation, new_relation = source_words.relation(old_run), target_words.relation(new_run)
        if not (old.content or old.style or new.content or new.style):
            # Beside a new style, "of" -> "with" says no more than "photo of" -> "painting with".
            is_wording = (old_run and not old_relation) or (new_run and not new_relation)
            (wordings if is_wording else relations).extend(_pair(old_relation, new_relation))
        elif (old.content and new.style and not new.content and not old.style) or (
            old.style and new.content and not old.content and not new.style
        ):
            content += _pair(old.content or old.style, new.content or new.style)  # "photo" -> "statue"
        else:
            style += _pair(old.style, new.style)
            if old.content or new.content:
                # "in front of" -> "behind": what stands against content is not trimmed to nothing.
                content += _pair(
                    old.content or ([] if old.style else old_relation), new.content or ([] if new.style else new_relation)
                )
    return PromptDifference(tuple(content or relations or ([] if style else wordings)), tuple(style))


def _pair(old: Sequence[Span], new: Sequence[Span]) -> list[Change]:
    return [Change(source, target) for source, target in zip_longest(old, new)]


@dataclass(frozen=True)
class _Pieces:
    content: list[Span]
    style: list[Span]


@dataclass(frozen=True)
class _Words:
    """The words that can differ, and what is known of each."""

    spans: list[Span]
    folded: list[str]
    breaks: list[bool]  # whether punctuation parts the word from the one before it
    heads: list[int | None]  # where the word speaks of medium or style: the word that makes it do so, which has to change too
    lists: WordLists

    def split(self, run: range) -> _Pieces:
        """Split a run at punctuation and between content and style; trim function words."""
        pieces = _Pieces([], [])
        last: list[Span] | None = None
        parted = False
        for n in run:
            parted |= self.breaks[n]
            if self.folded[n] in self.lists.function_words:
                continue
            head = self.heads[n]
            kind = pieces.style if head is not None and (head == n or head in run) else pieces.content
            if kind is last and not parted:
                kind[-1] = (kind[-1][0], self.spans[n][1])
            else:
                kind.append(self.spans[n])
            last, parted = kind, False
        return pieces

    def relation(self, run: range) -> list[Span]:
        """Return the one span from the first to the last preposition or adverb of a run, if it has any."""
        found = [self.spans[n] for n in run if self.folded[n] in self.lists.relations]
        return [(found[0][0], found[-1][1])] if found else []


def _read_words(source: str, target: str, lists: WordLists) -> tuple[_Words, _Words]:
    texts = (source, target)
    spans = [split_words(text) for text in texts]
    folded = [[fold_word(text[slice(*span)]) for span in words] for text, words in zip(texts, spans, strict=True)]
    shared = 0
    if max(map(len, folded)) > MAX_WORDS:
        while shared < min(map(len, folded)) and folded[0][-1 - shared] == folded[1][-1 - shared]:
            shared += 1
    words = []
    for n, name in enumerate(("source_prompt", "target_prompt")):
        count = len(folded[n]) - shared
        if count > MAX_WORDS:
            raise RequestError(
                "prompt_too_long",
                field=name,
                got=f"{len(folded[n])} words, of which both prompts end in the same {shared}",
                allowed=f"up to {MAX_WORDS} words beside those that both end in",
            )
        # What follows the last word that can differ tells whether that one is of the style.
        seen = folded[n][: count + MAX_WORDS]
        gaps = zip(spans[n], spans[n][1 : len(seen)], strict=False)
        breaks = [False, *(bool(CLAUSE_BREAK.search(texts[n][end:start])) for (_, end), (start, _) in gaps)][: len(seen)]
        heads = _StyleReader(seen, breaks, lists).read()
        words.append(_Words(spans[n][:count], folded[n][:count], breaks[:count], heads[:count], lists))
    return words[0], words[1]


class _StyleReader:
    """Finds the words that speak of the picture's medium or style where they stand."""

    def __init__(self, words: list[str], breaks: list[bool], lists: WordLists) -> None:
        self.words, self.lists = words, lists
        self.heads: list[int | None] = [None] * len(words)
        self.clause_starts: list[int] = []  # of every word, the first word behind the punctuation before it
        self.phrase_starts: list[int] = []  # ... behind the function word before it
        self.known_starts: list[int] = []  # ... of the media and modifiers that it ends
        known = lists.media | lists.media_modifiers
        for n, word in enumerate(words):
            clause = n if not n or breaks[n] else self.clause_starts[-1]
            joins = n == clause or not self._is_function(n - 1)
            self.clause_starts.append(clause)
            self.phrase_starts.append(n if n == clause or not joins else self.phrase_starts[-1])
            is_known = word in known or self._is_marker(n) or self._joins_modifiers(n)
            carries_on = n > clause and joins and self.known_starts[-1] < n
            self.known_starts.append((self.known_starts[-1] if carries_on else n) if is_known else n + 1)

    def read(self) -> list[int | None]:
        """Return of every word the index of the word that makes it one of style, None where it is none.

        A word that is one of style by itself has its own index.
        """
        for n, word in enumerate(self.words):
            if word in self.lists.media:
                self._read_medium(n)
            if self._is_marker(n):
                self._read_marker(n)
            if word == self.lists.author_link and self.clause_starts[n] == n > 0:
                self._mark_name(n + 1)
        return self.heads

    def _read_medium(self, n: int) -> None:
        follower, on_support = self._word(n, 1), self._word(n, 2) in self.lists.media_supports
        if follower in self.lists.articles or (follower in self.lists.object_followers and not on_support):
            return  # "a man painting a wall", "a poster on a wall"
        leads_on = follower == self.lists.style_link and self._is_free(n)
        if not (leads_on or self._is_set_off(n) or self._heads_prompt(n)):
            return
        self._mark(self.phrase_starts[n], n)
        if on_support:
            self.heads[n + 2] = n + 2
        if follower == self.lists.author_link:
            self._mark_name(n + 2)

    def _read_marker(self, n: int) -> None:
        clause, start, follower = self.clause_starts[n], self.phrase_starts[n], self._word(n, 1)
        opening = self._opening(n)
        if follower == self.lists.style_link:
            self.heads[n] = n
            self._mark_name(n + 2 + (self._word(n, 2) in self.lists.articles))
        elif follower is not None and not self._is_function(n + 1) and follower not in self.lists.media:
            # "vintage style dress": of the thing it stands before, unless it heads the prompt.
            if self._heads_prompt(n):
                self._mark_all(range(start, n + 1))
        elif self._is_set_off(n) or (opening > clause and self.words[opening - 1] == self.lists.style_opener):
            self._mark_all(range(start, n + 1))
        elif self.known_starts[n] < n or self._is_compound(n):
            self._mark_all(range(self.known_starts[n], n + 1))
        if self.heads[n] == n and follower == self.lists.author_link:
            self._mark_name(n + 2)

    def _opening(self, n: int) -> int:
        """Return where the noun phrase that ends in word n begins, with its article."""
        start = self.phrase_starts[n]
        return start - (start > self.clause_starts[n] and self.words[start - 1] in self.lists.articles)

    def _mark(self, start: int, n: int) -> None:
        """Mark word n and the media and modifiers before it; other words before it count only where n itself changes."""
        for before in range(start, n + 1):
            if before >= self.known_starts[n]:
                self.heads[before] = before
            elif self.heads[before] is None:
                self.heads[before] = n

    def _mark_all(self, words: Iterable[int]) -> None:
        for n in words:
            self.heads[n] = n

    def _mark_name(self, start: int) -> None:
        """Mark the words from `start` up to the next function word or punctuation."""
        clause = self.clause_starts[start - 1]
        n = start
        while n < len(self.words) and self.clause_starts[n] == clause and self.words[n] not in self.lists.function_words:
            self.heads[n] = n
            n += 1

    def _heads_prompt(self, n: int) -> bool:
        """Whether the prompt begins with word n, but for an article, modifiers and other media."""
        return self._opening(n) == 0 and self.known_starts[n] == self.phrase_starts[n]

    def _is_set_off(self, n: int) -> bool:
        """Whether the noun phrase of word n begins a clause, but for words like "this is", that is not the first."""
        return self.clause_starts[n] > 0 and self._is_free(n)

    def _is_free(self, n: int) -> bool:
        """Whether in its clause no function word stands before the noun phrase that ends in word n."""
        return not any(self._is_function(before) for before in range(self.clause_starts[n], self._opening(n)))

    def _word(self, n: int, step: int) -> str | None:
        """Return the word `step` words behind word n in the same clause."""
        inside = n + step < len(self.words) and self.clause_starts[n + step] == self.clause_starts[n]
        return self.words[n + step] if inside else None

    def _is_function(self, n: int) -> bool:
        return self.words[n] in self.lists.function_words and not self._joins_modifiers(n)

    def _joins_modifiers(self, n: int) -> bool:
        """Whether word n is the "and" of "black and white"."""
        if self.words[n] not in self.lists.connectives or self.words[n] == self.lists.style_link:
            return False
        neighbours = [*self.words[max(0, n - 1) : n], *self.words[n + 1 : n + 2]]
        return len(neighbours) == 2 and self.lists.media_modifiers.issuperset(neighbours)

    def _is_marker(self, n: int) -> bool:
        return self.words[n].rpartition("-")[2] in self.lists.style_markers

    def _is_compound(self, n: int) -> bool:
        """Whether word n is a marker with its style, as in "anime-style"."""
        return self.words[n] not in self.lists.style_markers
