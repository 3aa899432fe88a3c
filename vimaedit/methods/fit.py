"""Which editors have a meaning on which models: what a method takes for granted, and the sentence for a model that has it not."""

from __future__ import annotations

from dataclasses import dataclass

from vimaedit.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """What methods may take for granted of a model, or not.

    `is_flow`: it predicts the velocity of a rectified flow. `is_joint`: picture and text share their attention layers.
    `embeds_guidance`: guidance is one of its inputs, so that there are no unconditional rows.
    """

    is_flow: bool = False
    is_joint: bool = False
    embeds_guidance: bool = False


def why_not(method: Method, grounding: str, denoiser: Denoiser) -> str | None:
    """Say why a method with a grounding has no meaning on a model, None where it has."""
    reasons = {
        "its midpoint steps follow the velocity of a flow, which this model does not predict": method.midpoint != "none"
        and not denoiser.is_flow,
        f"its {method.grid} grid is one of a noise schedule, and this model is a flow": method.grid
        in ("consistency", "leading")
        and denoiser.is_flow,
        "it takes over layers of a decoder, and this model has none": method.routing in ("queries", "values")
        and denoiser.is_joint,
        "it edits text attention alone, and in this model picture and text share theirs": (
            method.keeps_attention or method.has_auxiliary or method.links_words
        )
        and denoiser.is_joint,
        "it fits the text by gradients through attention to text alone, and in this model picture and text share theirs": (
            method.optimises_text or grounding == "dpl"
        )
        and denoiser.is_joint,
        "it works on the prediction without text, and this model takes its guidance as an input and has none": (
            method.guidance in ("proximal", "concepts") or method.free_text != "negative"
        )
        and denoiser.embeds_guidance,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
