"""An edit judged by a vision-language model, in the form of VIEScore (arXiv 2312.14867): what is asked, and how an answer is read.

Semantic consistency and perceptual quality, each 0 to 10 and each the least of its parts; overall is the root of their product.
"""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from vimaedit.errors import VimaeditError
from vimaedit.images import encode_image, resize
from vimaedit.types import UInt8Array

PROMPT_VERSION = 1  # raised with every change of what is asked
HIGHEST = 10.0
ANSWER = 'Answer with one JSON object and nothing else: {"score": [FIRST, SECOND], "reasoning": "in a few words"}. Scores are numbers from 0 to 10.'
SEMANTICS = (
    "You see a picture, then the same picture after somebody was asked to edit it. What was asked: {asked}\n"
    "FIRST: how well does the second picture do what was asked? 0: not at all, 10: perfectly.\n"
    "SECOND: how well is everything else kept as it was in the first picture? 0: it is another picture, 10: nothing else was changed.\n"
    + ANSWER
)
QUALITY = (
    "You see one picture that was made by a computer program. Do not mind what it shows.\n"
    "FIRST: how natural is it (light, shadows, proportions)? 0: not at all, 10: perfectly.\n"
    "SECOND: how free is it of artifacts (blur, seams, distorted or doubled parts, noise)? 0: full of them, 10: none.\n"
    + ANSWER
)
NUMBERS = re.compile(r'"score"\s*:\s*\[\s*([-\d.eE]+)\s*,\s*([-\d.eE]+)\s*\]')
SHOWN_CHARACTERS = 160

Content = list[dict[str, Any]]


class Unreadable(VimaeditError):
    """An answer that holds no scores."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of one edit: `semantics` of both pictures, `quality` of the edited one."""

    semantics: Content
    quality: Content


def question(source: UInt8Array, edited: UInt8Array, asked: str, side_px: int) -> Question:
    """Ask of an edit. Pictures (height, width, 3) go as PNG, at most `side_px` wide and high."""
    first, second = (picture_part(each, side_px) for each in (source, edited))
    return Question(
        semantics=[
            first,
            second,
            {"type": "text", "text": SEMANTICS.replace("{asked}", json.dumps(asked, ensure_ascii=False))},
        ],
        quality=[second, {"type": "text", "text": QUALITY}],
    )


def request_of(instruction: str | None, source_prompt: str, target_prompt: str) -> str:
    """Say what was asked for: the instruction, or the two prompts where there is none."""
    return instruction or f"turn a picture of {source_prompt!r} into one of {target_prompt!r}"


def read_scores(answer: str) -> tuple[float, float]:
    """Read an answer's two scores, whatever stands around the JSON object.

    Raises: Unreadable where there are none, or some out of range.
    """
    found = NUMBERS.search(answer)
    try:
        scores = (float(found[1]), float(found[2])) if found else None
    except ValueError:
        scores = None
    if scores is None or not all(0 <= score <= HIGHEST for score in scores):
        shown = answer if len(answer) <= SHOWN_CHARACTERS else f"{answer[:SHOWN_CHARACTERS]}..."
        raise Unreadable(f"unreadable: {' '.join(shown.split())!r}")
    return scores


def judge_values(semantics: tuple[float, float] | None, quality: tuple[float, float] | None) -> dict[str, float | None]:
    """Return the metrics that follow from the parts; None for what was not answered."""
    consistency, perception = (None if parts is None else min(parts) for parts in (semantics, quality))
    overall = None if consistency is None or perception is None else math.sqrt(consistency * perception)
    return {"judge_semantics": consistency, "judge_quality": perception, "judge_overall": overall}


def picture_part(picture: UInt8Array, side_px: int) -> dict[str, Any]:
    """Return a picture (height, width, 3) as part of a question, at most `side_px` wide and high."""
    height, width = picture.shape[:2]
    scale = min(1.0, side_px / max(height, width))
    small = resize(picture, (max(1, round(width * scale)), max(1, round(height * scale))))
    coded = base64.b64encode(encode_image(small, "png")).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded}"}}
