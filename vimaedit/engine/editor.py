"""The editor: requests in, results out, over the one engine; which method it is follows from its configuration."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from vimaedit.config import EditConfig
from vimaedit.engine.batch import Callback, EditBatch, StepState
from vimaedit.engine.encode import encode_batch
from vimaedit.engine.loop import denoise
from vimaedit.engine.prepare import PreparedEdit, prepare_edit
from vimaedit.errors import ConfigError, RequestError
from vimaedit.models.backbone import Backbone
from vimaedit.models.files import ModelFacts
from vimaedit.step.noise import NoiseSource, SeededNoise
from vimaedit.step.rows import TARGET, shared_edits
from vimaedit.types import BoolArray, EditRequest, EditResult, Status
from vimaedit.words.tokens import EditTokens


class BatchEditor:
    """Edit batches with one method; an `Editor`. Each phase can be called on its own: prepare, encode, run, finish."""

    def __init__(self, backbone: Backbone, config: EditConfig, facts: ModelFacts) -> None:
        family = backbone.family
        self.notes: list[str] = []
        if config.image_guidance and family.prompts_by_name and not backbone.has_image_prompt:
            config = dataclasses.replace(config, image_guidance=False)
            self.notes.append("no_image_guidance: no ip_adapter is named, the texts alone steer")
        if config.image_guidance and not family.image_prompts:
            config = dataclasses.replace(config, image_guidance=False)
            self.notes.append(f"no_image_guidance: {family.title} takes no image prompt, the texts alone steer")
        if config.image_guidance and not backbone.has_image_prompt:
            raise ConfigError(
                f"image_guidance: got true, but {facts.name!r} has no IP-Adapter; allowed: false, or ip_adapter= and clip="
            )
        if family.kind.is_joint and config.parts.edits_text:
            self.notes.append(
                "joint_attention: picture and text share their attention, so the text window and weights of words have no effect"
            )
        if family.kind.embeds_guidance and not backbone.networks.denoiser.config.guidance_embeds:
            self.notes.append(
                "no_guidance: this model was distilled without guidance, so source_guidance and target_guidance have no effect"
            )
        if config.parts.midpoint != "none" and not family.kind.embeds_guidance and config.source_guidance != 1:
            raise ConfigError(
                f"source_guidance: got {config.source_guidance} with method={config.method} and {facts.name!r}; allowed: 1, for the "
                "source is inverted by one row"
            )
        if config.parts.midpoint != "none" and config.midpoint.steps and not backbone.value_layers(config.midpoint):
            self.notes.append(
                "no_values: none of these layers is in this model, so no attention values of the source are put in"
            )
        if family.grid is not None and config.spacing != "leading":
            raise ConfigError(
                f"spacing: got {config.spacing} with {facts.name!r}; allowed: leading, for a flow's levels are its scheduler's"
            )
        if family.kind.embeds_guidance and (config.guidance_end < 1 or config.negative_prompt is not None):
            name = "guidance_end" if config.guidance_end < 1 else "negative_prompt"
            raise ConfigError(
                f"{name}: got {getattr(config, name)!r} with {facts.name!r}; allowed: the default, for this model has no prediction without text"
            )
        if config.needs_gradients and backbone.dtype == torch.float16:
            raise ConfigError(
                f"dtype: got float16 with method={config.method}, grounding={config.grounding}, whose gradients vanish in it; "
                "allowed: float32, bfloat16"
            )
        self.backbone = backbone
        self.config = config
        self.facts = facts
        self.canvas = facts.fit(config.canvas)
        side = self.canvas.size // backbone.vae_factor
        backbone.schedule(config, (side, side))  # refuses steps that the model's levels cannot give

    def __call__(self, requests: Sequence[EditRequest | None]) -> list[EditResult | None]:
        started = time.perf_counter()
        slots = [None if request is None else self._try_prepare(request) for request in requests]
        ready = [slot for slot in slots if isinstance(slot, PreparedEdit)]
        if not ready:
            return [slot for slot in slots if not isinstance(slot, PreparedEdit)]
        filled = self._fill(slots)
        batch = self.encode(filled)
        final = self.run(batch, filled)
        results = self.finish(filled, batch, final)
        seconds = (time.perf_counter() - started) / len(ready)
        return [
            dataclasses.replace(result, seconds=seconds) if isinstance(slot, PreparedEdit) else slot
            for slot, result in zip(slots, results, strict=True)
        ]

    def prepare(self, request: EditRequest, words: EditTokens | None = None) -> PreparedEdit:
        """Check one request and settle its canvas, words and settings, see `prepare_edit`.

        Raises: RequestError naming the field, what was got and what is allowed.
        """
        return prepare_edit(request, self.backbone, self.config, self.canvas, self.facts.clip_side, words)

    def encode(self, edits: Sequence[PreparedEdit]) -> EditBatch:
        """Run the encoders over a batch. All edits share one canvas shape."""
        return encode_batch(self.backbone, self.config, edits)

    def run(self, batch: EditBatch, edits: Sequence[PreparedEdit], callback: Callback | None = None) -> StepState:
        """Denoise a batch with the noise of its requests' seeds."""
        shape_Chw = (batch.x0.shape[1], batch.x0.shape[2], batch.x0.shape[3])
        noise: NoiseSource = SeededNoise([edit.request.seed for edit in edits], shape_Chw)
        return denoise(self.backbone, batch, self.config, noise, callback)

    def finish(self, edits: Sequence[PreparedEdit], batch: EditBatch, final: StepState) -> list[EditResult]:
        """Decode the targets and build the results."""
        result_BChw = final.clean[TARGET] if self.config.parts.returns_clean else final.latents[TARGET]
        pictures, finite = self.backbone.decode_latents(result_BChw)
        exists = final.masks.exists.tolist()
        edit_masks = self._pixel_masks(final.masks.edit)
        critical_masks = self._pixel_masks(final.masks.critical)
        is_given = [False] * len(edits) if batch.given_mask is None else batch.given_mask.flatten(1).any(dim=1).tolist()
        results = []
        for slot, edit in enumerate(edits):
            if not finite[slot]:
                results.append(_not_finite(edit, self.backbone.dtype))
                continue
            had_words = bool(edit.words.blend_used) or edit.given_mask is not None
            warnings = [*self.notes, *edit.words.warnings]
            if batch.given_mask is not None and exists[slot] and not edit_masks[slot].any():
                warnings.append("given_mask_empty: the mask marks no latent cell, nothing was free to change")
            elif edit.given_mask is not None and not is_given[slot]:
                warnings.append("segmenter_mask_small: what was found marks no latent cell, so it does not count")
            if had_words and not exists[slot]:
                warnings.append("ungrounded: the words gave no mask, the whole picture was free to change")
            if self.facts.warning:
                warnings.append(self.facts.warning)
            results.append(
                EditResult(
                    id=edit.request.id,
                    status=Status.OK,
                    source=edit.image,
                    image=pictures[slot],
                    edit_mask=edit_masks[slot] if exists[slot] else None,
                    mask_source=self._mask_source(is_given[slot]) if exists[slot] else None,
                    critical_mask=critical_masks[slot] if exists[slot] and self.config.parts.has_critical_region else None,
                    blend_used=edit.words.blend_used,
                    grounded=exists[slot] or not had_words,
                    warnings=tuple(warnings),
                )
            )
        return results

    def _mask_source(self, is_given: bool) -> str:
        config = self.config
        return config.grounding if config.mask_is_all or (config.takes_mask and is_given) else "attention"

    def _try_prepare(self, request: EditRequest) -> PreparedEdit | EditResult:
        try:
            return self.prepare(request)
        except RequestError as error:
            return EditResult(
                id=request.id,
                status=Status.REJECTED,
                error_stage="prepare",
                error_type=error.code,
                message=f"record {request.id!r}: {error}",
            )

    def _fill(self, slots: Sequence[PreparedEdit | EditResult | None]) -> list[PreparedEdit]:
        """Let holes repeat a neighbour, where they can one of the same source: what stands in them reaches no other edit, only the
        batch's shape matters."""
        ready = [slot for slot in slots if isinstance(slot, PreparedEdit)]
        shared = shared_edits(self.config, len(slots))
        filled: list[PreparedEdit] = []
        for start in range(0, len(slots), shared):
            group = slots[start : start + shared]
            own = next((slot for slot in group if isinstance(slot, PreparedEdit)), ready[0])
            filled += [slot if isinstance(slot, PreparedEdit) else own for slot in group]
        return filled

    def _pixel_masks(self, mask_B1hw: Tensor) -> BoolArray:
        factor = self.backbone.vae_factor
        pixels: BoolArray = mask_B1hw[:, 0].cpu().numpy().repeat(factor, axis=1).repeat(factor, axis=2)
        return pixels


def _not_finite(edit: PreparedEdit, dtype: torch.dtype) -> EditResult:
    return EditResult(
        id=edit.request.id,
        status=Status.FAILED,
        source=edit.image,
        error_stage="edit",
        error_type="not_finite",
        message=f"record {edit.request.id!r}: the picture overflowed in {dtype}; try dtype=bfloat16 or float32",
    )
