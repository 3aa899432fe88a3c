"""What changes between two prompts: the words replaced, inserted or deleted, at their positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vimaedit.alignment import align_sequences
from vimaedit.phrases import Span, fold_word, split_words
from vimaedit.wordlists import ENGLISH, WordLists


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

    Function words are trimmed at the ends of a run; what is then empty on both sides is dropped. A run of medium or style
    words only concerns the whole picture.
    """
    source_words, target_words = _Words.of(source, lists), _Words.of(target, lists)
    mapper = align_sequences(source_words.folded, target_words.folded)
    content: list[Change] = []
    style: list[Change] = []
    # Between two aligned words lies one run of each prompt; a sentinel closes the last.
    source_start = target_start = 0
    for target_end, source_end in enumerate([*mapper, len(source_words.folded)]):
        if source_end < 0:
            continue
        old = source_words.trim(range(source_start, source_end))
        new = target_words.trim(range(target_start, target_end))
        if old or new:
            is_style = source_words.all_style(old) and target_words.all_style(new)
            (style if is_style else content).append(Change(source_words.span(old), target_words.span(new)))
        source_start, target_start = source_end + 1, target_end + 1
    return PromptDifference(tuple(content), tuple(style))


@dataclass(frozen=True)
class _Words:
    spans: list[Span]
    folded: list[str]
    style: list[bool]  # whether the word, where it stands, speaks of the medium or style
    lists: WordLists

    @classmethod
    def of(cls, text: str, lists: WordLists) -> _Words:
        spans = split_words(text)
        folded = [fold_word(text[start:end]) for start, end in spans]
        return cls(spans, folded, _style_flags(folded, lists), lists)

    def trim(self, run: range) -> range:
        inner = [n for n in run if self.folded[n] not in self.lists.function_words]
        return range(inner[0], inner[-1] + 1) if inner else range(0)

    def all_style(self, run: range) -> bool:
        return all(self.style[n] for n in run if self.folded[n] not in self.lists.function_words)

    def span(self, run: range) -> Span | None:
        return (self.spans[run[0]][0], self.spans[run[-1]][1]) if run else None


def _style_flags(words: Sequence[str], lists: WordLists) -> list[bool]:
    flags = [word in lists.media for word in words]
    leading = lists.media_modifiers | lists.function_words
    for n in reversed(range(len(words) - 1)):
        flags[n] |= words[n] in leading and flags[n + 1]
    for n, word in enumerate(words):
        if word not in lists.style_markers:
            continue
        flags[n] = True
        start = n
        while start and words[start - 1] not in lists.function_words:
            start -= 1
        if lists.style_opener in words[max(0, start - 2) : start]:
            flags[start:n] = [True] * (n - start)
        if list(words[n + 1 : n + 2]) == [lists.style_link]:
            end = n + 2
            while end < len(words) and words[end] in lists.function_words:
                end += 1
            while end < len(words) and words[end] not in lists.function_words:
                flags[end] = True
                end += 1
    return flags
