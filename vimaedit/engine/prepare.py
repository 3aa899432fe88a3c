"""The first phase of an edit, without a network's work: a request is checked and its canvas, words and settings are settled."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError, RequestError
from vimaedit.images import Box, CanvasSpec, FittedImage, FittedPicture, fit_picture
from vimaedit.mask_decoding import turn_mask
from vimaedit.models.backbone import Backbone
from vimaedit.types import BoolArray, EditRequest, RequestOverrides, UInt8Array
from vimaedit.words.alignment import Float32Array
from vimaedit.words.tokens import EditTokens, Tokenizer, link_words, settle_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedConcept:
    """One concept that guides (LEDITS++): from step `first` until before `last`, with its masks' quantile.

    Shapes: `words` (T,) float32, 1 at the tokens of `text` that its mask counts. `scale` below 0: it shall leave.
    """

    text: str
    words: Float32Array
    scale: float
    quantile: float
    first: int
    last: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedEdit:
    """One request, checked, with everything that needs no network: its canvas, its words and its settings.

    `config` is the run's with the request's own values in it; nothing else of it differs within a batch.

    Shapes: `image` (height, width, 3), `clip_image` (side, side, 3) uint8; `given_mask` (height, width) bool or None.
    `crop_box`: the part of the request's picture that the canvas shows.
    """

    request: EditRequest
    config: EditConfig
    image: UInt8Array
    clip_image: UInt8Array
    given_mask: BoolArray | None
    crop_box: Box
    words: EditTokens
    concepts: tuple[PreparedConcept, ...] = ()


def prepare_edit(
    request: EditRequest,
    backbone: Backbone,
    config: EditConfig,
    canvas: CanvasSpec,
    clip_side: int,
    words: EditTokens | None = None,
) -> PreparedEdit:
    """Check one request and settle its canvas, words and settings. `words` given beforehand are taken as they are.

    Raises: RequestError naming the field, what was got and what is allowed.
    """
    own = own_config(config, request.overrides)
    check_mask(request, config)
    if not 0 <= request.seed < 2**63:
        raise RequestError("seed_out_of_range", field="seed", got=str(request.seed), allowed="0 to 2**63 - 1")
    picture = fit_request(request, canvas, clip_side, takes_mask=config.takes_mask)
    if words is None:
        words = _settle_tokens(request, backbone, config)
    return PreparedEdit(
        request=request,
        config=own,
        image=picture.fitted.image,
        clip_image=picture.clip_image,
        given_mask=picture.mask,
        crop_box=picture.fitted.crop_box,
        words=words,
        concepts=_concepts(request, words, own, backbone.tokenizer),
    )


def check_mask(request: EditRequest, config: EditConfig) -> None:
    """Raise `RequestError` where a request lacks the mask that its edit goes by."""
    if config.grounding == "given" and request.given_mask is None:
        raise RequestError("given_mask_missing", field="given_mask", got="null", allowed="a mask, with grounding=given")


def own_config(config: EditConfig, overrides: RequestOverrides) -> EditConfig:
    """Put a request's own values into the run's settings.

    Raises: RequestError `override_out_of_range`.
    """
    if overrides == RequestOverrides():
        return config

    def given(**values: float | None) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    windows = given(self=overrides.self_window, text=overrides.text_window, image=overrides.image_window)
    thresholds = given(edit=overrides.edit_threshold, critical=overrides.critical_threshold)
    try:
        return dataclasses.replace(
            config,
            windows=dataclasses.replace(config.windows, **windows),
            thresholds=dataclasses.replace(config.thresholds, **thresholds),
            **given(target_guidance=overrides.target_guidance, image_strength=overrides.image_strength),
        )
    except ConfigError as error:
        field, _, text = str(error).partition(": got ")
        got, _, allowed = text.partition("; allowed: ")
        raise RequestError("override_out_of_range", field=f"overrides.{field}", got=got, allowed=allowed) from error


def fit_request(request: EditRequest, canvas: CanvasSpec, clip_side: int, *, takes_mask: bool) -> FittedPicture:
    """Return a request's picture and mask on the canvas: brought there, or there already where the view beside it says so."""
    mask = request.given_mask if takes_mask else None
    if mask is not None and mask.ndim != 2:
        got = f"an array of shape {mask.shape}"
        raise RequestError("mask_shape", field="given_mask", got=got, allowed="(height, width)")
    height, width = request.image.shape[:2]
    if request.clip_image is None:
        mask = None if mask is None else turn_mask(mask, (width, height), orientation=1)[0]
        return fit_picture(request.image, mask, canvas, clip_side)
    own = canvas.canvas_of((width, height))
    for code, field, array in (("image_shape", "image", request.image), ("mask_shape", "given_mask", mask)):
        if array is not None and array.shape[1::-1] != own:
            got = f"{array.shape[1]}x{array.shape[0]} px beside clip_image"
            raise RequestError(code, field=field, got=got, allowed=f"the canvas, {own[0]}x{own[1]} px")
    fitted = FittedImage(image=request.image, crop_box=(0, 0, width, height), size=(width, height))
    return FittedPicture(fitted=fitted, clip_image=request.clip_image, mask=mask)


def _settle_tokens(request: EditRequest, backbone: Backbone, config: EditConfig) -> EditTokens:
    tokens = settle_tokens(request, config, backbone.networks.tokenizers, backbone.family.more_words)
    if not config.parts.links_words:
        return tokens
    target = request.target_prompt if config.text_guidance else ""
    states = backbone.encode_texts([request.source_prompt, target])["text"].float().cpu().numpy()
    return link_words(tokens, (states[0], states[1]), config, backbone.tokenizer)


def _concepts(request: EditRequest, words: EditTokens, config: EditConfig, tokenizer: Tokenizer) -> tuple[PreparedConcept, ...]:
    """Return the concepts of a request: the target prompt, for a method that is guided by concepts."""
    if config.parts.guidance != "concepts":
        return ()
    ids: list[int] = words.target_ids.tolist()
    assert tokenizer.eos_token_id is not None
    count = len(ids) - 2 if "leditspp-tokens" in config.quirks else ids.index(tokenizer.eos_token_id) - 1
    marked = np.zeros(len(ids), dtype=np.float32)
    marked[1 : count + 1] = 1
    concept = PreparedConcept(
        text=request.target_prompt,
        words=marked,
        scale=config.target_guidance,
        quantile=config.thresholds.edit,
        first=config.concepts.warmup,
        last=config.steps if config.concepts.cooldown is None else config.concepts.cooldown,
    )
    return (concept,)
