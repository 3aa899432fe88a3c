"""The editor: requests in, results out, over the one engine; which method it is follows from its configuration."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vimaedit.attention.plan import TextEdit
from vimaedit.config import EditConfig, Thresholds, Windows
from vimaedit.engine.batch import Callback, EditBatch, StepState
from vimaedit.engine.loop import denoise
from vimaedit.errors import ConfigError, RequestError
from vimaedit.images import Box, CanvasSpec, FittedImage, FittedPicture, fit_picture
from vimaedit.models.backbone import Backbone
from vimaedit.models.files import ModelFacts
from vimaedit.parts.concepts import ConceptBatch
from vimaedit.parts.learned_words import LearnedWords
from vimaedit.step.guidance import estimate_target_embedding
from vimaedit.step.noise import NoiseSource, SeededNoise
from vimaedit.step.rows import TARGET, RowLayout, edit_layout, image_embedding_rows
from vimaedit.step.solvers import method_schedule
from vimaedit.types import BoolArray, EditRequest, EditResult, Status, UInt8Array
from vimaedit.words.alignment import Float32Array, Int64Array
from vimaedit.words.plan import WordPlan, content_words, link_words, plan_words


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedConcept:
    """One concept that guides (LEDITS++): from step `first` until before `last`, with its masks' quantile.

    Shapes: `ids` (T,) int64, padded; `words` (T,) float32, 1 at the tokens that its mask counts. `scale` below 0: it shall leave.
    """

    ids: Int64Array
    words: Float32Array
    scale: float
    quantile: float
    first: int
    last: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedEdit:
    """One request, checked, with everything that needs no network: its canvas, its words and its settings.

    Shapes: `image` (height, width, 3), `clip_image` (side, side, 3) uint8; `given_mask` (height, width) bool or None.
    `crop_box`: the part of the request's picture that the canvas shows.
    """

    request: EditRequest
    image: UInt8Array
    clip_image: UInt8Array
    given_mask: BoolArray | None
    crop_box: Box
    words: WordPlan
    windows: Windows
    thresholds: Thresholds
    target_guidance: float
    image_strength: float
    concepts: tuple[PreparedConcept, ...] = ()


class BatchEditor:
    """Edit batches with one method; an `Editor`. Each phase can be called on its own: prepare, encode, run, finish."""

    def __init__(self, backbone: Backbone, config: EditConfig, facts: ModelFacts) -> None:
        if config.image_guidance and not backbone.has_image_prompt:
            raise ConfigError(
                f"image_guidance: got true, but {facts.name!r} has no IP-Adapter; allowed: false, or ip_adapter= and clip="
            )
        if config.needs_gradients and backbone.dtype == torch.float16:
            raise ConfigError(
                f"dtype: got float16 with method={config.method}, grounding={config.grounding}, whose gradients vanish in it; "
                "allowed: float32, bfloat16"
            )
        method_schedule(config, backbone.alphas_cumprod)  # refuses steps that the model's levels cannot give
        self.backbone = backbone
        self.config = config
        self.facts = facts
        self.canvas = CanvasSpec(
            fit=config.canvas.fit, size=config.canvas.size or facts.canvas_size, granularity=facts.granularity
        )

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

    def prepare(self, request: EditRequest, words: WordPlan | None = None) -> PreparedEdit:
        """Check one request and settle its canvas, words and settings. `words` given beforehand are taken as they are.

        Raises: RequestError naming the field, what was got and what is allowed.
        """
        config, overrides = self.config, request.overrides
        try:
            windows = dataclasses.replace(
                config.windows,
                self=_either(overrides.self_window, config.windows.self),
                text=_either(overrides.text_window, config.windows.text),
                image=_either(overrides.image_window, config.windows.image),
            )
            thresholds = Thresholds(
                edit=_either(overrides.edit_threshold, config.thresholds.edit),
                critical=_either(overrides.critical_threshold, config.thresholds.critical),
            )
            target_guidance = _either(overrides.target_guidance, config.target_guidance)
            image_strength = _either(overrides.image_strength, config.image_strength)
            EditConfig(target_guidance=target_guidance, image_strength=image_strength)  # checks their ranges
        except ConfigError as error:
            field, _, text = str(error).partition(": got ")
            got, _, allowed = text.partition("; allowed: ")
            raise RequestError("override_out_of_range", field=f"overrides.{field}", got=got, allowed=allowed) from error
        if config.grounding == "given" and request.given_mask is None:
            raise RequestError("given_mask_missing", field="given_mask", got="null", allowed="a mask, with grounding=given")
        if not 0 <= request.seed < 2**63:
            raise RequestError("seed_out_of_range", field="seed", got=str(request.seed), allowed="0 to 2**63 - 1")
        picture = self._fit(request)
        if words is None:
            words = self._plan_words(request)
        return PreparedEdit(
            request=request,
            image=picture.fitted.image,
            clip_image=picture.clip_image,
            given_mask=picture.mask,
            crop_box=picture.fitted.crop_box,
            words=words,
            windows=windows,
            thresholds=thresholds,
            target_guidance=target_guidance,
            image_strength=image_strength,
            concepts=self._concepts(words, target_guidance, thresholds.edit),
        )

    def encode(self, edits: Sequence[PreparedEdit]) -> EditBatch:
        """Run the encoders over a batch. All edits share one canvas shape."""
        backbone, config = self.backbone, self.config
        layout = edit_layout(len(edits), config, max(1, len(edits[0].concepts)))
        shared = self._check_groups(edits)
        texts = self._texts(edits)
        x0_BChw = backbone.encode_images(np.stack([edit.image for edit in edits[::shared]])).repeat_interleave(shared, dim=0)
        device = x0_BChw.device
        settings = torch.tensor(
            [(edit.target_guidance, edit.thresholds.edit, edit.thresholds.critical) for edit in edits], device=device
        )
        given = config.grounding == "given"
        return EditBatch(
            layout=layout,
            x0=x0_BChw,
            conditioning=backbone.condition(self._text_rows(layout, edits, texts), self._image_rows(layout, edits)),
            text_edit=TextEdit(
                fold=torch.from_numpy(np.stack([edit.words.fold for edit in edits])).to(device),
                keep=torch.from_numpy(np.stack([edit.words.keep for edit in edits])).to(device),
                words=torch.from_numpy(np.stack([edit.words.word_mask for edit in edits], axis=1)).float().to(device),
            ),
            windows=tuple(edit.windows for edit in edits),
            image_strength=tuple(edit.image_strength if config.image_guidance else 0.0 for edit in edits),
            target_guidance=settings[:, 0],
            edit_threshold=settings[:, 1],
            critical_threshold=settings[:, 2],
            given_mask=self._latent_masks(edits, x0_BChw) if given else None,
            has_words=torch.tensor([bool(edit.request.blend) and config.blend != "none" for edit in edits], device=device),
            inversion_text=None if config.parts.inversion == "none" else texts[config.parts.inversion],
            free_text=texts[config.parts.free_text],
            concepts=self._concept_batch(edits, x0_BChw) if edits[0].concepts else None,
            learned=self._learned_words(edits, device) if config.learns_words else None,
        )

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
        results = []
        for slot, edit in enumerate(edits):
            if not finite[slot]:
                results.append(_not_finite(edit, self.backbone.dtype))
                continue
            had_words = bool(edit.words.blend_used) or edit.given_mask is not None
            warnings = list(edit.words.warnings)
            if batch.given_mask is not None and not bool(batch.given_mask[slot].any()):
                warnings.append("given_mask_empty: the mask marks no latent cell, nothing was free to change")
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
                    critical_mask=critical_masks[slot] if exists[slot] and self.config.parts.has_critical_region else None,
                    blend_used=edit.words.blend_used,
                    grounded=exists[slot] or not had_words,
                    warnings=tuple(warnings),
                )
            )
        return results

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

    def _fit(self, request: EditRequest) -> FittedPicture:
        """Return a request's picture and mask on the canvas: brought there, or there already where the view beside it says so."""
        mask = request.given_mask if self.config.grounding == "given" else None
        if mask is not None and mask.ndim != 2:
            raise RequestError(
                "mask_shape", field="given_mask", got=f"an array of shape {mask.shape}", allowed="(height, width)"
            )
        if request.clip_image is None:
            return fit_picture(request.image, mask, self.canvas, self.facts.clip_side)
        height, width = request.image.shape[:2]
        canvas = self.canvas.canvas_of((width, height))
        for code, field, array in (("image_shape", "image", request.image), ("mask_shape", "given_mask", mask)):
            if array is not None and array.shape[1::-1] != canvas:
                got, allowed = (
                    f"{array.shape[1]}x{array.shape[0]} px beside clip_image",
                    f"the canvas, {canvas[0]}x{canvas[1]} px",
                )
                raise RequestError(code, field=field, got=got, allowed=allowed)
        fitted = FittedImage(image=request.image, crop_box=(0, 0, width, height), size=(width, height))
        return FittedPicture(fitted=fitted, clip_image=request.clip_image, mask=mask)

    def _shared(self, num_slots: int) -> int:
        """Return how many consecutive slots of a batch have one source; in a smaller batch than the run's it may be fewer."""
        return math.gcd(self.config.targets_per_source, num_slots)

    def _fill(self, slots: Sequence[PreparedEdit | EditResult | None]) -> list[PreparedEdit]:
        """Let holes repeat a neighbour, where they can one of the same source: what stands in them reaches no other edit, only the
        batch's shape matters."""
        ready = [slot for slot in slots if isinstance(slot, PreparedEdit)]
        shared = self._shared(len(slots))
        filled: list[PreparedEdit] = []
        for start in range(0, len(slots), shared):
            group = slots[start : start + shared]
            own = next((slot for slot in group if isinstance(slot, PreparedEdit)), ready[0])
            filled += [slot if isinstance(slot, PreparedEdit) else own for slot in group]
        return filled

    def _check_groups(self, edits: Sequence[PreparedEdit]) -> int:
        """Return how many consecutive edits have one source.

        Raises: ConfigError where they differ in what makes a source.
        """
        shared = self._shared(len(edits))
        for position, edit in enumerate(edits if shared > 1 else ()):
            first = edits[position - position % shared]
            alike = (
                edit.request.source_prompt == first.request.source_prompt
                and edit.request.seed == first.request.seed
                and edit.image_strength == first.image_strength
                and np.array_equal(edit.image, first.image)
                and np.array_equal(edit.clip_image, first.clip_image)
            )
            if not alike:
                raise ConfigError(
                    f"targets_per_source: got {self.config.targets_per_source}, but edits {first.request.id!r} and "
                    f"{edit.request.id!r} of a batch differ in picture, source prompt, seed or strength; allowed: edits of one picture in a row, or 1"
                )
        return shared

    def _plan_words(self, request: EditRequest) -> WordPlan:
        plan = plan_words(request, self.config, self.backbone.tokenizer)
        if not self.config.parts.links_words:
            return plan
        states = self.backbone.encode_text(np.stack([plan.source_ids, plan.target_ids])).float().cpu().numpy()
        return link_words(plan, (states[0], states[1]), self.config, self.backbone.tokenizer)

    def _concepts(self, words: WordPlan, scale: float, quantile: float) -> tuple[PreparedConcept, ...]:
        """Return the concepts of a request: the target prompt, for a method that is guided by concepts."""
        config = self.config
        if config.parts.guidance != "concepts":
            return ()
        own = words.target_ids.tolist()
        count = len(own) - 2 if "leditspp-tokens" in config.quirks else own.index(self.backbone.tokenizer.eos_token_id) - 1
        marked = np.zeros(len(own), dtype=np.float32)
        marked[1 : count + 1] = 1
        last = config.steps if config.concepts.cooldown is None else config.concepts.cooldown
        concept = PreparedConcept(
            ids=words.target_ids, words=marked, scale=scale, quantile=quantile, first=config.concepts.warmup, last=last
        )
        return (concept,)

    def _concept_batch(self, edits: Sequence[PreparedEdit], x0_BChw: Tensor) -> ConceptBatch:
        """Stack the concepts, of which all edits have equally many; a given mask confines what they do."""
        by_concept = list(zip(*(edit.concepts for edit in edits), strict=True))

        def stack(values: list[list[float]]) -> Tensor:
            return torch.tensor(values, device=x0_BChw.device)

        given = self.config.grounding == "given"
        return ConceptBatch(
            scale=stack([[each.scale for each in concepts] for concepts in by_concept]),
            quantile=stack([[each.quantile for each in concepts] for concepts in by_concept]),
            first=stack([[each.first for each in concepts] for concepts in by_concept]),
            last=stack([[each.last for each in concepts] for concepts in by_concept]),
            words=torch.from_numpy(np.stack([np.stack([each.words for each in concepts]) for concepts in by_concept])),
            user_mask=self._latent_masks(edits, x0_BChw)[:, None].float() if given else None,
        )

    def _learned_words(self, edits: Sequence[PreparedEdit], device: torch.device) -> LearnedWords:
        """Stack the source prompts with their words, as many rows as the prompt with most of them has."""
        own = [content_words(edit.request.source_prompt, self.backbone.tokenizer) for edit in edits]
        words = np.zeros((len(edits), max(1, *map(len, own)), self.backbone.text_length), dtype=np.float32)
        for stacked, found in zip(words, own, strict=True):
            stacked[: len(found)] = found
        ids = torch.from_numpy(np.stack([edit.words.source_ids for edit in edits])).to(device)
        return LearnedWords(ids=ids, words=torch.from_numpy(words).to(device))

    def _texts(self, edits: Sequence[PreparedEdit]) -> dict[str, Tensor]:
        """Encode all texts of a batch, (B, T, E) each: `empty`, `negative`, `source`, `target`, and every concept by its number."""
        tokenizer = self.backbone.tokenizer
        options = {"padding": "max_length", "truncation": True, "return_tensors": "np"}
        empty_ids, negative_ids = (tokenizer(text, **options).input_ids for text in ("", self.config.negative_prompt))
        stacked = {
            "source": np.stack([edit.words.source_ids for edit in edits]),
            "target": np.stack([edit.words.target_ids for edit in edits]),
        }
        for number in range(1, len(edits[0].concepts)):
            stacked[str(number)] = np.stack([edit.concepts[number].ids for edit in edits])
        context = self.backbone.encode_text(np.concatenate([empty_ids, *stacked.values()]))
        texts = dict(zip(stacked, context[1:].chunk(len(stacked)), strict=True))
        texts["empty"] = texts["negative"] = context[:1].expand(len(edits), -1, -1)
        if self.config.negative_prompt:
            texts["negative"] = self.backbone.encode_text(negative_ids).expand(len(edits), -1, -1)
        return texts

    def _text_rows(self, layout: RowLayout, edits: Sequence[PreparedEdit], texts: dict[str, Tensor]) -> Tensor:
        parts = self.config.parts
        rows = {}
        for kind in layout.kinds:
            if kind.branch == TARGET:
                conditional = texts[str(kind.concept)] if kind.concept else texts["target"]
                rows[kind] = conditional if kind.conditional else texts[parts.free_text]
            else:
                rows[kind] = texts[parts.source_text] if kind.conditional else texts["empty"]
        return layout.arrange(rows)

    def _image_rows(self, layout: RowLayout, edits: Sequence[PreparedEdit]) -> Tensor | None:
        if not self.config.image_guidance:
            return None
        shared = self._shared(len(edits))
        sources = edits[::shared]
        image_BE = self.backbone.embed_images(np.stack([edit.clip_image for edit in sources])).repeat_interleave(shared, dim=0)
        prompts = [edit.request.source_prompt for edit in sources] + [edit.request.target_prompt for edit in edits]
        source_BE, target_BE = self.backbone.embed_texts(prompts).split([len(sources), len(edits)])
        source_BE = source_BE.repeat_interleave(shared, dim=0)
        estimated_BE = estimate_target_embedding(image_BE, source_BE, target_BE, self.config.direction_kept)
        return image_embedding_rows(layout, image_BE, estimated_BE, self.config.image_order)

    def _latent_masks(self, edits: Sequence[PreparedEdit], x0_BChw: Tensor) -> Tensor:
        masks = torch.from_numpy(np.stack([edit.given_mask for edit in edits if edit.given_mask is not None]))
        resized = F.interpolate(masks[:, None].float(), size=x0_BChw.shape[-2:], mode="nearest-exact")  # the cells' centres
        return (resized[:, 0] > 0).to(x0_BChw.device)

    def _pixel_masks(self, mask_B1hw: Tensor) -> BoolArray:
        factor = self.backbone.vae_factor
        pixels: BoolArray = mask_B1hw[:, 0].cpu().numpy().repeat(factor, axis=1).repeat(factor, axis=2)
        return pixels


def _either(own: float | None, configured: float) -> float:
    return configured if own is None else own


def _not_finite(edit: PreparedEdit, dtype: torch.dtype) -> EditResult:
    return EditResult(
        id=edit.request.id,
        status=Status.FAILED,
        source=edit.image,
        error_stage="edit",
        error_type="not_finite",
        message=f"record {edit.request.id!r}: the picture overflowed in {dtype}; try dtype=bfloat16 or float32",
    )
