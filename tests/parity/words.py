"""The recorded alignment of a case as the engine's tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from vimaedit.words.tokens import EditTokens, fold_refine, fold_replace, pad_ids, token_spans


def recorded_words(parameters: dict[str, Any], arrays: dict[str, np.ndarray], tokenizer: Any) -> EditTokens:
    """Build the tokens of an edit from the recorded alignment, equalizer and word masks alone; without one nothing is aligned."""
    source_ids, target_ids = (
        pad_ids(token_spans(parameters[key], tokenizer).ids, tokenizer) for key in ("prompt_src", "prompt_tar")
    )
    length = len(source_ids)
    equalizer = arrays["equalizer"].reshape(-1) if "equalizer" in arrays else np.ones(length)
    mapper = arrays.get("mapper", np.arange(length))
    if mapper.ndim == 2:
        fold, keep = fold_replace(mapper, equalizer)
    else:
        fold, keep = fold_refine(mapper, arrays.get("mapper_alphas", np.ones(length)), equalizer)
    mask = arrays.get("blend_token_mask", np.zeros((2, length))).astype(np.float32)
    return EditTokens(
        source_ids=source_ids, target_ids=target_ids, fold=fold, keep=keep, word_mask=mask, blend_used=(), warnings=()
    )
