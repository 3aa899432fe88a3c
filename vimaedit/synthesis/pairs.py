"""A pair of prompts with what changes between them and how a person would ask for it."""

from __future__ import annotations

from dataclasses import dataclass

from vimaedit.errors import RequestError
from vimaedit.types import BlendPhrase
from vimaedit.words.phrases import find_phrase, split_words

MAX_CHARACTERS = 1000  # of a prompt or an instruction


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """An edit in words. `blend` empty: found by comparing the prompts, or the whole picture changes."""

    source_prompt: str
    target_prompt: str
    blend: tuple[BlendPhrase, ...]
    instruction: str
    category: str | None  # one of the lexicon's; None: not said


def check_pair(pair: PromptPair) -> PromptPair:
    """Check that a pair says something that an editor can do, and return it.

    Raises: RequestError `prompt_empty`, `prompt_too_long`, `prompts_equal`, `blend_phrase_not_found`.
    """
    texts = {"source_prompt": pair.source_prompt, "target_prompt": pair.target_prompt, "instruction": pair.instruction}
    for field, text in texts.items():
        if not split_words(text):
            raise RequestError("prompt_empty", field=field, got=repr(text), allowed="a text with at least one word")
        if len(text) > MAX_CHARACTERS:
            raise RequestError("prompt_too_long", field=field, got=f"{len(text)} characters", allowed=f"up to {MAX_CHARACTERS}")
    if _plain(pair.source_prompt) == _plain(pair.target_prompt):
        raise RequestError(
            "prompts_equal",
            field="target_prompt",
            got=repr(pair.target_prompt),
            allowed="a text that differs from source_prompt",
        )
    for phrase in pair.blend:
        sides = (("source", phrase.source, pair.source_prompt), ("target", phrase.target, pair.target_prompt))
        for side, words, prompt in sides:
            if words is not None and not find_phrase(prompt, words):
                raise RequestError(
                    "blend_phrase_not_found",
                    field="blend_words",
                    got=f"{words!r}, which is not in {side}_prompt {prompt!r}",
                    allowed="whole words of that prompt, or null",
                )
    return pair


def _plain(text: str) -> str:
    return " ".join(text[slice(*word)].casefold() for word in split_words(text))
