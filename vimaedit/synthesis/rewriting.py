"""An instruction written anew from what an edit has come to: what is asked of a model that sees pictures, and how it answers."""

from __future__ import annotations

import json

import numpy as np

from vimaedit.errors import RequestError
from vimaedit.metrics.judge import Content, picture_part
from vimaedit.synthesis.generator import first_object
from vimaedit.synthesis.pairs import MAX_CHARACTERS
from vimaedit.types import BoolArray, UInt8Array
from vimaedit.words.phrases import split_words

SIDE_PX = 512
TASK = """You see a picture, then the same picture after an edit{mask}. It was asked for with: {asked}
Say in one short instruction, as a person would ask for it, what the edit has really done to the first picture; nothing that cannot be seen.
Answer with one JSON object and nothing else: {{"instruction": "..."}}"""
MASKED = ", then where it was free to change, in white"


def rewriting_question(source: UInt8Array, edited: UInt8Array, mask: BoolArray | None, instruction: str) -> Content:
    """Ask for an instruction. Shapes: `source`, `edited` (height, width, 3), `mask` (height, width)."""
    pictures = [source, edited]
    if mask is not None:
        pictures.append(np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2))
    text = TASK.format(mask="" if mask is None else MASKED, asked=json.dumps(instruction, ensure_ascii=False))
    return [*(picture_part(each, SIDE_PX) for each in pictures), {"type": "text", "text": text}]


def read_instruction(answer: str) -> str:
    """Read the instruction of an answer.

    Raises: RequestError `rewriting_reply` where there is none that can be used.
    """
    content = first_object(answer)
    text = content.get("instruction") if content is not None else None
    if not isinstance(text, str) or not split_words(text) or len(text) > MAX_CHARACTERS:
        raise RequestError(
            "rewriting_reply", field="instruction", got=f"{answer[:160]!r}", allowed='a JSON object {"instruction": a text}'
        )
    return " ".join(text.split())
