"""A pair turned round: the edited picture as source, its source as target, and the instruction that asks for the way back."""

from __future__ import annotations

from collections.abc import Sequence

from vimaedit.synthesis.pairs import PromptPair
from vimaedit.types import BlendPhrase
from vimaedit.words.phrases import find_phrase, split_words

ARTICLES = ("a", "an", "the")
BACK = {"add_object": "delete_object", "delete_object": "add_object"}  # other kinds of edits stay what they are


def invert_pair(pair: PromptPair) -> PromptPair:
    """Return the pair whose source is this one's target. Its instruction follows by rule from the words that change; where none
    are known it asks for the source prompt."""
    changes = [_change(pair, phrase) for phrase in pair.blend]
    return PromptPair(
        source_prompt=pair.target_prompt,
        target_prompt=pair.source_prompt,
        blend=tuple(BlendPhrase(source=phrase.target, target=phrase.source) for phrase in pair.blend),
        instruction=_joined(changes) or f"make it {pair.source_prompt}",
        category=BACK.get(pair.category, pair.category) if pair.category else None,
    )


def _change(pair: PromptPair, phrase: BlendPhrase) -> str:
    """Ask for what stood in the source prompt in the place of what stands in the target's."""
    old = None if phrase.source is None else _as_written(pair.source_prompt, phrase.source)
    if phrase.target is None:
        return f"add {old}"
    if old is None:
        return f"remove the {phrase.target}"
    return f"change the {phrase.target} to {old}"


def _as_written(prompt: str, phrase: str) -> str:
    """Return a phrase with the article that it has in a prompt."""
    found = find_phrase(prompt, phrase)
    if not found:
        return phrase
    before = [prompt[slice(*word)] for word in split_words(prompt[: found[0][0]])]
    article = before[-1].casefold() if before else ""
    return f"{article} {phrase}" if article in ARTICLES else phrase


def _joined(changes: Sequence[str]) -> str:
    return " and ".join(changes)
