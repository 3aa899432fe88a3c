"""From prompts and phrases to tokens: what the networks read and how the target's text attention follows the source's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from vimaedit.config import EditConfig
from vimaedit.errors import RequestError, shown
from vimaedit.types import BlendPhrase, EditRequest
from vimaedit.words.alignment import (
    Float32Array,
    Float64Array,
    Int64Array,
    align_tokens,
    fold_refine,
    fold_replace,
    replacement_matrix,
)
from vimaedit.words.changes import Change, PromptDifference, find_changes
from vimaedit.words.linking import edited_tokens, link_tokens
from vimaedit.words.lists import ENGLISH, WordLists
from vimaedit.words.phrases import Span, find_phrase, fold_word, spaced_words, split_words

MAX_REWEIGHT = 100.0

# What other programs read as a weight, a switch between words or a further network: "(red:1.2)", "((red))", "[[red]]", "(red)1.2",
# "(red)++", "red++", "[red:blue:0.5]", "<lora:name:0.8>".
WEIGHT = re.compile(
    r"[(\[][^()\[\]]{0,200}:\s?[+-]?\d*\.?\d+\s?[)\]]|\({2}[^()]{1,200}\){2}|\[{2}[^\[\]]{1,200}\]{2}"
    r"|\([^()]{1,200}\)(?:[+-]{1,9}(?![\w+-])|\d*\.\d+)|\w{2,50}\+{2,9}(?!\w)|<\w{1,20}:[^<>]{1,200}>"
)

SIDES = ("source", "target")


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer (a fast one: it knows character offsets)."""

    model_max_length: int
    pad_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: str, **options: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class EditTokens:
    """The tokens of an edit and what happens to the target's text attention while the text window is open.

    P_edit = P_source @ fold + P_own * keep, for attention weights P of shape (..., T).

    Shapes: `source_ids`, `target_ids` (T,) int64, padded; `fold` (T, T), `keep` (T,) float32; `word_mask` (2, T) float32, 1 at
    the tokens of the blend phrases, row 0 source, row 1 target, where further encoders' states are read with their columns behind
    and their weights; `text_shares` (T,) float64, how long the text window of a target's token is open, below 0: as long as the
    request's; None: all are.
    """

    source_ids: Int64Array
    target_ids: Int64Array
    fold: Float32Array
    keep: Float32Array
    word_mask: Float32Array
    blend_used: tuple[BlendPhrase, ...]  # as they stand in the prompts; no target sides without text guidance
    warnings: tuple[str, ...]  # each begins with its code
    text_shares: Float64Array | None = None


@dataclass(frozen=True, eq=False)
class TokenSpans:
    """A tokenized text: `ids` with begin and end token, however many, and the characters each stands for, (n, 2).

    The begin and the end token stand for no character.
    """

    ids: list[int]
    offsets: Int64Array


def token_spans(text: str, tokenizer: Tokenizer) -> TokenSpans:
    """Tokenize a text without padding or truncation; offsets refer to the text as it was typed."""
    encoded = tokenizer(text, return_offsets_mapping=True, padding=False, truncation=False, verbose=False)
    return TokenSpans(list(encoded["input_ids"]), np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2))


def tokens_of_spans(offsets: Int64Array, spans: Iterable[Span]) -> list[int]:
    """Return the indices of the tokens that stand for at least one character of a span, in order.

    Shapes: `offsets` (n, 2).
    """
    touched = np.zeros(len(offsets), dtype=np.bool_)
    for start, end in spans:
        touched |= (offsets[:, 0] < end) & (offsets[:, 1] > start) & (offsets[:, 0] < offsets[:, 1])
    return [int(n) for n in np.flatnonzero(touched)]


def truncate_ids(ids: Sequence[int], length: int) -> list[int]:
    """Cut a token sequence to `length`, keeping its end token."""
    return list(ids) if len(ids) <= length else [*ids[: length - 1], ids[-1]]


def pad_ids(ids: Sequence[int], tokenizer: Tokenizer) -> Int64Array:
    """Truncate and pad a token sequence to the tokenizer's length, (T,)."""
    length = tokenizer.model_max_length
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    kept = truncate_ids(ids, length)
    return np.array([*kept, *[padding] * (length - len(kept))], dtype=np.int64)


def settle_tokens(
    request: EditRequest,
    config: EditConfig,
    tokenizers: Mapping[str, Tokenizer],
    more_words: Sequence[tuple[str, float]] = (),
) -> EditTokens:
    """Settle tokens, blend words and text attention of one request.

    `tokenizers` are those of all text encoders by their names: the tokens are the first's, the limit is that of the longest.
    `more_words` names encoders whose states attention reads behind the first's, with the weight of their words.

    Raises: RequestError `prompt_empty`, `prompt_too_long`, `changed_word_truncated`, `blend_phrase_not_found`,
    `replace_word_count`, `reweight_phrase_not_found`, `reweight_factor`.
    """
    prompts = (request.source_prompt, request.target_prompt)
    _refuse_empty(prompts)
    first, tokenizer = next(iter(tokenizers.items()))
    length = tokenizer.model_max_length
    read = {name: [token_spans(prompt, each) for prompt in prompts] for name, each in tokenizers.items()}
    lengths = {name: each.model_max_length for name, each in tokenizers.items()}
    if config.long_prompt == "reject":
        _refuse_long(read, lengths)
    difference = find_changes(*prompts)
    blend = _choose_blend(request, config, difference)
    factors = _phrases_with(request.reweight, "reweight", MAX_REWEIGHT, request.target_prompt)
    shares = _phrases_with(request.word_windows, "word_windows", 1.0, request.target_prompt)

    # Everything that says what changes has to fit, whether or not it grounds.
    changed = [
        [
            *blend.spans[side],
            *_spans_of((*difference.content, *difference.style), side),
            *((*factors, *shares) if side else ()),
        ]
        for side in (0, 1)
    ]
    warnings = [*blend.warnings, *_weights_in(prompts)]
    for side in (0, 1):
        texts_of_side = {name: texts[side] for name, texts in read.items()}
        warnings += _check_truncation(prompts[side], texts_of_side, lengths, SIDES[side], changed[side])

    texts = read[first]
    equalizer = np.ones(length, dtype=np.float32)
    if config.text_guidance:
        for span, factor in factors.items():
            equalizer[_tokens_read(texts[1], [span], length)] *= factor
        equalizer[_tokens_read(texts[1], blend.spans[1], length)] *= config.blend_weight
        if config.new_word_weight != 1:
            equalizer[_new_word_tokens(prompts, texts[1], length)] *= config.new_word_weight
    else:
        texts = [texts[0], token_spans("", tokenizer)]

    fold, keep = _fold(config, prompts, texts, equalizer)
    spans = (blend.spans[0], blend.spans[1] if config.text_guidance else ())
    columns = [_word_mask(read[name], spans, lengths[name], weight) for name, weight in ((first, 1.0), *more_words)]
    return EditTokens(
        source_ids=pad_ids(texts[0].ids, tokenizer),
        target_ids=pad_ids(texts[1].ids, tokenizer),
        fold=fold,
        keep=keep,
        word_mask=np.concatenate(columns, axis=1),
        blend_used=blend.used if config.text_guidance else _source_sides(blend.used),
        warnings=tuple(warnings),
        text_shares=_text_shares(shares, texts[1], length) if shares and config.text_guidance else None,
    )


def _refuse_empty(prompts: Sequence[str]) -> None:
    for name, prompt in zip(SIDES, prompts, strict=True):
        if not prompt.strip():
            raise RequestError(
                "prompt_empty", field=f"{name}_prompt", got=repr(prompt), allowed="a text with at least one word"
            )


def _fold(
    config: EditConfig, prompts: tuple[str, str], texts: Sequence[TokenSpans], equalizer: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Return `fold` and `keep`: word for word where both prompts have as many, else token for token as they align."""
    length, control = len(equalizer), config.text_control
    if control == "auto":
        control = "replace" if len(spaced_words(prompts[0])) == len(spaced_words(prompts[1])) else "refine"
    if control == "replace" and config.text_guidance:
        words = [_word_tokens(prompt, text, length) for prompt, text in zip(prompts, texts, strict=True)]
        return fold_replace(replacement_matrix(words[0], words[1], length), equalizer)
    alignment = align_tokens(truncate_ids(texts[0].ids, length), truncate_ids(texts[1].ids, length), length)
    return fold_refine(alignment.mapper, alignment.alphas, equalizer)


def _tokens_read(text: TokenSpans, spans: Iterable[Span], length: int) -> list[int]:
    """Return the indices of the tokens of spans that an encoder of this length reads."""
    return [token for token in tokens_of_spans(text.offsets, spans) if token < length - 1]


def _word_mask(texts: Sequence[TokenSpans], spans: Sequence[Iterable[Span]], length: int, weight: float) -> Float32Array:
    """Mark the tokens of source and target spans that an encoder of this length reads, (2, length)."""
    mask = np.zeros((2, length), dtype=np.float32)
    for row, text, own in zip(mask, texts, spans, strict=True):
        row[_tokens_read(text, own, length)] = weight
    return mask


def _text_shares(shares: dict[Span, float], target: TokenSpans, length: int) -> Float64Array:
    by_token = np.full(length, -1.0)
    for span, share in shares.items():
        by_token[_tokens_read(target, [span], length)] = share
    return by_token


@dataclass(frozen=True)
class _Blend:
    used: tuple[BlendPhrase, ...] = ()
    spans: tuple[tuple[Span, ...], tuple[Span, ...]] = ((), ())
    warnings: tuple[str, ...] = ()


def _choose_blend(request: EditRequest, config: EditConfig, difference: PromptDifference) -> _Blend:
    given = [phrase for phrase in request.blend if _filled(phrase.source) or _filled(phrase.target)]
    if config.blend == "none":
        return _Blend()
    if given:
        return _given_blend(given, request, config)
    return _found_blend(request, config, difference) if config.blend == "auto" else _Blend()


def _filled(phrase: str | None) -> bool:
    return phrase is not None and bool(phrase.strip())


def _given_blend(given: Sequence[BlendPhrase], request: EditRequest, config: EditConfig) -> _Blend:
    used: list[BlendPhrase] = []
    spans: tuple[list[Span], list[Span]] = ([], [])
    warnings: list[str] = []
    for entry in given:
        texts: list[str | None] = [None, None]
        sides = ((request.source_prompt, entry.source), (request.target_prompt, entry.target))
        for side, (prompt, phrase) in enumerate(sides):
            if phrase is None or not phrase.strip():
                continue
            found = find_phrase(prompt, phrase)
            if found:
                spans[side].extend(found)
                texts[side] = prompt[slice(*found[0])]
                continue
            where = f"{phrase!r}, which is not in {SIDES[side]}_prompt {prompt!r}"
            if config.missing_blend == "reject" and not config.mask_is_all:
                raise RequestError(
                    "blend_phrase_not_found",
                    field="blend_words",
                    got=where,
                    allowed="whole words of that prompt in any case, null, or missing_blend=ignore",
                )
            warnings.append(f"blend_phrase_not_found: {where}, has no map")
        if texts != [None, None]:
            used.append(BlendPhrase(source=texts[0], target=texts[1]))
    return _Blend(tuple(used), (tuple(spans[0]), tuple(spans[1])), tuple(warnings))


def _found_blend(request: EditRequest, config: EditConfig, difference: PromptDifference) -> _Blend:
    used = _phrases_of(difference.content, request)
    spans = (tuple(_spans_of(difference.content, 0)), tuple(_spans_of(difference.content, 1)))
    if config.mask_is_all:
        return _Blend(used, spans)  # the mask does not come from words, so there is nothing to warn of
    style = ", ".join(f"{phrase.source!r} -> {phrase.target!r}" for phrase in _phrases_of(difference.style, request))
    if used and style:
        return _Blend(used, spans, (f"style_change_masked: {style} concerns the whole picture, the mask confines it",))
    if style:
        return _Blend(warnings=(f"style_change_only: {style} concerns the whole picture, so there is no mask",))
    return _Blend(used, spans, () if used else (_no_change(request.source_prompt, request.target_prompt),))


def _no_change(source: str, target: str) -> str:
    """Say why two prompts that differ in no word of what the picture shows give no mask."""
    if source == target:
        return "no_change_found: both prompts are the same, so there is no mask"
    old, new = source.split(), target.split()
    if old == new:
        return "no_change_found: the prompts differ in white space only, so there is no mask"
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    change = f"{shown(' '.join(old))} -> {shown(' '.join(new))}"
    return f"no_change_found: the prompts differ in {change} only, no word of what the picture shows, so there is no mask"


def _weights_in(prompts: Sequence[str]) -> list[str]:
    """Return the warning of weights that other programs read out of a prompt, if it has any."""
    for side, prompt in zip(SIDES, prompts, strict=True):
        if found := WEIGHT.search(prompt):
            return [f"weights_are_text: {shown(found[0])} in {side}_prompt is read as it stands: it weighs nothing"]
    return []


def _spans_of(changes: Iterable[Change], side: int) -> list[Span]:
    spans = [change.target if side else change.source for change in changes]
    return [span for span in spans if span is not None]


def _phrases_of(changes: Iterable[Change], request: EditRequest) -> tuple[BlendPhrase, ...]:
    return tuple(
        BlendPhrase(
            source=None if change.source is None else request.source_prompt[slice(*change.source)],
            target=None if change.target is None else request.target_prompt[slice(*change.target)],
        )
        for change in changes
    )


def _source_sides(phrases: Iterable[BlendPhrase]) -> tuple[BlendPhrase, ...]:
    return tuple(replace(phrase, target=None) for phrase in phrases if phrase.source is not None)


def _phrases_with(given: Iterable[tuple[str, float]], field: str, most: float, prompt: str) -> dict[Span, float]:
    """Return the places in the target prompt of phrases that are given a number, 0 to `most`; those of several multiply."""
    factors: dict[Span, float] = {}
    for phrase, factor in given:
        if not (math.isfinite(factor) and 0 <= factor <= most):
            raise RequestError(f"{field}_factor", field=field, got=f"{factor} for {phrase!r}", allowed=f"0 to {most:g}")
        found = find_phrase(prompt, phrase)
        if not found:
            raise RequestError(
                f"{field}_phrase_not_found",
                field=field,
                got=f"{phrase!r}, which is not in target_prompt {prompt!r}",
                allowed="whole words of that prompt in any case",
            )
        for span in found:
            factors[span] = factors.get(span, 1.0) * factor
    return factors


def _count_tokens(text: TokenSpans) -> str:
    return f"{len(text.ids)} tokens with begin and end"


def _longest(lengths: Mapping[str, int]) -> str:
    """Return the encoder that reads most of a text, the first where several do."""
    return max(lengths, key=lambda name: lengths[name])


def _refuse_long(read: Mapping[str, Sequence[TokenSpans]], lengths: Mapping[str, int]) -> None:
    """Raise RequestError `prompt_too_long` for a prompt that no text encoder reads whole."""
    longest = _longest(lengths)
    for side, text in zip(SIDES, read[longest], strict=True):
        if len(text.ids) > lengths[longest]:
            raise RequestError(
                "prompt_too_long",
                field=f"{side}_prompt",
                got=_count_tokens(text),
                allowed=f"up to {lengths[longest]}, or long_prompt=truncate",
            )


def _check_truncation(
    prompt: str, texts: Mapping[str, TokenSpans], lengths: Mapping[str, int], side: str, changed: Iterable[Span]
) -> list[str]:
    """Return the warning of a prompt that not every text encoder reads whole, if it is one.

    Raises: RequestError `changed_word_truncated` where no encoder reads a changed word.
    """
    longest = _longest(lengths)
    text, length = texts[longest], lengths[longest]
    cut = {name: each for name, each in texts.items() if len(each.ids) > lengths[name]}
    shorter = [name for name in cut if lengths[name] < length]
    if longest not in cut:
        parts = [f"{name} reads {lengths[name]} of its {_count_tokens(cut[name])}" for name in shorter]
        return [f"prompt_shortened: of {side}_prompt {', '.join(parts)}; {longest} reads it whole"] if parts else []
    size = _count_tokens(text)
    first_cut = text.offsets[length - 1, 0]
    for span in changed:
        if span[1] > first_cut:
            raise RequestError(
                "changed_word_truncated",
                field=f"{side}_prompt",
                got=f"{size}, with the changed {prompt[slice(*span)]!r} behind the last that fits",
                allowed=f"every changed word within the first {length} tokens",
            )
    beside = "".join(f", {name} {lengths[name]}" for name in shorter)
    return [f"prompt_truncated: {side}_prompt has {size}, the model reads {length}{beside}"]


def _new_word_tokens(prompts: tuple[str, str], target: TokenSpans, length: int) -> list[int]:
    """Return the token indices of the target's words, with their punctuation, that are no words of the source."""
    source, words = ([prompt[slice(*span)] for span in spaced_words(prompt)] for prompt in prompts)
    known = set(source)
    pairs = zip(words, _word_tokens(prompts[1], target, length), strict=True)
    return [token for word, tokens in pairs if word not in known for token in tokens]


def link_words(
    tokens: EditTokens, states: tuple[Float32Array, Float32Array], config: EditConfig, tokenizer: Tokenizer
) -> EditTokens:
    """Pair tokens that have no partner (InfEdit), and mark the tokens that the edit is about instead of those of the phrases.

    The mask's row 0 marks `auxiliary.mutual_words`, row 1 the target phrases. `states`: the text encoder's, source and target, (T, E)
    each.
    """
    source_ids, target_ids = (_unpadded(padded, tokenizer) for padded in (tokens.source_ids, tokens.target_ids))
    mapper = align_tokens(source_ids, target_ids, len(tokens.target_ids)).mapper
    crosswise = "infedit-crosswise" in config.quirks
    source_states, target_states = states[::-1] if crosswise else states
    linked = link_tokens(mapper, len(target_ids), source_states, target_states)
    equalizer = tokens.fold.sum(axis=0) + tokens.keep
    fold, keep = fold_refine(linked, (linked >= 0).astype(np.float32), equalizer)
    if config.text_control == "replace":
        fold, keep = tokens.fold, tokens.keep
    edited = " ".join(phrase.target for phrase in tokens.blend_used if phrase.target)
    word_mask = np.zeros_like(tokens.word_mask)
    for row, text in enumerate((config.auxiliary.mutual_words, edited)):
        wanted = token_spans(text, tokenizer).ids[1:-1]
        marked = edited_tokens(mapper, linked, source_ids, target_ids, wanted)
        word_mask[row, [n for n in marked if 0 < n < len(target_ids) - 1]] = 1
    return replace(tokens, fold=fold, keep=keep, word_mask=word_mask)


def content_words(prompt: str, tokenizer: Tokenizer, lists: WordLists = ENGLISH) -> Float32Array:
    """Mark the tokens of each word of a prompt that says what is in the picture, (words, T) float32: all but function words and
    those of the medium, as far as the model reads."""
    text, length = token_spans(prompt, tokenizer), tokenizer.model_max_length
    read = text.offsets[: min(length, len(text.ids)) - 1]
    left_out = lists.function_words | lists.media
    rows = []
    for span in split_words(prompt):
        tokens = tokens_of_spans(read, [span])
        if tokens and fold_word(prompt[slice(*span)]) not in left_out:
            row = np.zeros(length, dtype=np.float32)
            row[tokens] = 1
            rows.append(row)
    return np.stack(rows) if rows else np.zeros((0, length), dtype=np.float32)


def _unpadded(padded: Int64Array, tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = padded.tolist()
    return ids[: ids.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id is not None else ids


def _word_tokens(prompt: str, text: TokenSpans, length: int) -> list[list[int]]:
    """Return the token indices of every word with its punctuation, as far as the model reads them."""
    read = text.offsets[: min(length, len(text.ids)) - 1]
    last = read[:, 1].max(initial=0)
    return [tokens_of_spans(read, [span]) if span[0] < last else [] for span in spaced_words(prompt)]
