"""An editor that hosts a pipeline of diffusers: requests in, results out, batched where that is proved to change nothing."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vimaedit.config import EditConfig, ModelConfig
from vimaedit.engine.hosted_files import HostedFiles, find_pipeline, hosted_facts
from vimaedit.engine.prepare import check_mask, fit_request, own_config
from vimaedit.errors import ConfigError, RequestError
from vimaedit.images import Box, change_mask, resize
from vimaedit.models.files import ModelFacts
from vimaedit.models.names import first_line
from vimaedit.models.networks import choose_device, choose_dtype, quiet_libraries
from vimaedit.types import BoolArray, EditRequest, EditResult, Status, UInt8Array

MASK_SOURCE = "difference"
PROBE_STEPS = 2
PROBE_LEVELS = 1  # by which pictures of a batch may differ from those made one by one, ...
PROBE_SHARE = 0.001  # ... at so few of their values

Images = list[UInt8Array]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ready:
    """A request that can be edited: its picture on the canvas, what is asked for, its guidance, its mask from outside (height, width)."""

    request: EditRequest
    image: UInt8Array
    crop_box: Box
    instruction: str
    guidance: float
    given_mask: BoolArray | None = None


class HostedEditor:
    """Edits with a pipeline as it is; an `Editor`. Every row has a generator of its own, so that it does not depend on its batch."""

    def __init__(self, pipe: Any, config: EditConfig, facts: ModelFacts, batches: bool | None = None) -> None:
        """`batches`: whether rows may go together, as was found before; None: it is tried."""
        self.pipe, self.config = pipe, config
        self.arguments = find_arguments(pipe, config)
        self.canvas = facts.fit(config.canvas)
        if batches is None:
            batches = config.pipeline.batch == "auto" and self._batches_alike()
        self.facts = dataclasses.replace(facts, batches=batches)

    def __call__(self, requests: Sequence[EditRequest | None]) -> list[EditResult | None]:
        started = time.perf_counter()
        slots = [None if request is None else self._try_prepare(request) for request in requests]
        ready = [slot for slot in slots if isinstance(slot, _Ready)]
        if not ready:
            return [slot for slot in slots if not isinstance(slot, _Ready)]
        # A request keeps its place in a batch of that shape, whatever its neighbours are; one with a guidance of its own is drawn alone.
        together = [
            self.facts.batches and isinstance(slot, _Ready) and slot.guidance == self.config.target_guidance for slot in slots
        ]
        pictures: list[Any] = [None] * len(slots)
        if any(together):
            filler = next(slot for slot, is_common in zip(slots, together, strict=True) if is_common)
            places = [slot if is_common else filler for slot, is_common in zip(slots, together, strict=True)]
            pictures = list(self.draw([each for each in places if isinstance(each, _Ready)]))
        for place, slot in enumerate(slots):
            if isinstance(slot, _Ready) and not together[place]:
                (pictures[place],) = self.draw([slot])
        seconds = (time.perf_counter() - started) / len(ready)
        return [
            self._result(slot, picture, seconds) if isinstance(slot, _Ready) else slot
            for slot, picture in zip(slots, pictures, strict=True)
        ]

    def edit_one(self, edit: _Ready) -> EditResult:
        """Edit a single picture, which no batch waits for."""
        (picture,) = self.draw([edit])
        return self._result(edit, picture, 0.0)

    def draw(self, edits: Sequence[_Ready], steps: int | None = None, **options: Any) -> Any:
        """Call the pipeline for edits of one canvas shape and guidance. Returns its pictures, (B, height, width, 3) float, 0 to 1."""
        height, width = edits[0].image.shape[:2]
        names, own = self.arguments, self.config.pipeline.arguments
        canvas = {"height": height, "width": width, "max_area": height * width, "_auto_resize": False}
        given = {name: value for name, value in canvas.items() if name in names.taken}
        if names.guidance is not None:
            given[names.guidance] = edits[0].guidance
        negative = self.config.negative_prompt
        if negative is None and names.guidance == TRUE_GUIDANCE:
            negative = NOTHING
        if negative is not None and "negative_prompt" in names.taken:
            given["negative_prompt"] = [negative] * len(edits)
        given |= {
            names.steps: steps or self.config.steps,
            names.image: [Image.fromarray(edit.image) for edit in edits],
            names.prompt: [edit.instruction for edit in edits],
            "generator": [torch.Generator("cpu").manual_seed(edit.request.seed) for edit in edits],
            "output_type": "np",
        }
        if len(edits) == 1:
            given |= {name: given[name][0] for name in (names.image, names.prompt, "generator")}
            given |= {"negative_prompt": given["negative_prompt"][0]} if "negative_prompt" in given else {}
        with quiet_libraries():
            return np.asarray(self.pipe(**{**given, **own, **options}).images)

    def prepare(self, request: EditRequest) -> _Ready:
        """Check one request and bring its picture to the canvas.

        Raises: RequestError naming the field, what was got and what is allowed.
        """
        own = own_config(self.config, request.overrides)
        check_mask(request, self.config)
        picture = fit_request(request, self.canvas, 1, takes_mask=self.config.takes_mask)
        template = self.config.pipeline.template
        prompts = {"source": request.source_prompt, "target": request.target_prompt}
        return _Ready(
            request=request,
            image=picture.fitted.image,
            crop_box=picture.fitted.crop_box,
            instruction=request.instruction
            or template.replace("{source}", prompts["source"]).replace("{target}", prompts["target"]),
            guidance=own.target_guidance,
            given_mask=picture.mask,
        )

    def _try_prepare(self, request: EditRequest) -> _Ready | EditResult:
        try:
            return self.prepare(request)
        except RequestError as error:
            message = f"record {request.id!r}: {error}"
            return EditResult(
                id=request.id, status=Status.REJECTED, error_stage="prepare", error_type=error.code, message=message
            )

    def _result(self, edit: _Ready, drawn: Any, seconds: float) -> EditResult:
        """Build the result of an edit; where it changed is seen by its difference to the source, or a mask from outside says where it
        shall. The picture is as it was drawn: pasting, after it has been measured, is what keeps it to its mask."""
        if not np.isfinite(drawn).all():
            message = f"record {edit.request.id!r}: the picture overflowed in {self.pipe.dtype}; try dtype=bfloat16 or float32"
            return EditResult(
                id=edit.request.id,
                status=Status.FAILED,
                source=edit.image,
                error_stage="edit",
                error_type="not_finite",
                message=message,
                seconds=seconds,
            )
        height, width = edit.image.shape[:2]
        picture = resize(_levels(drawn), (width, height))
        mask, mask_source = change_mask(edit.image, picture, self.config.pipeline.mask_threshold), MASK_SOURCE
        has_mask, warnings = bool(mask.any()), tuple[str, ...]()
        if edit.given_mask is not None:
            combine = "replace" if self.config.mask_is_all else self.config.segmenter.combine
            mask = {"replace": edit.given_mask, "union": mask | edit.given_mask, "intersection": mask & edit.given_mask}[
                combine
            ]
            mask_source, has_mask = self.config.grounding, True  # an empty one too: without any, all would be pasted
            if not mask.any():
                warnings = ("given_mask_empty: no pixel is in the mask, nothing was free to change",)
        return EditResult(
            id=edit.request.id,
            status=Status.OK,
            source=edit.image,
            image=picture,
            edit_mask=mask if has_mask else None,
            mask_source=mask_source if has_mask else None,
            grounded=True,
            warnings=warnings,
            seconds=seconds,
        )

    def _batches_alike(self) -> bool:
        """Draw two pictures together and one by one, in few steps: whether they are the same, so that batches may be formed."""
        width, height = self.canvas.size, self.canvas.size
        chance = np.random.default_rng(0)
        edits = []
        for number in range(2):
            blobs = chance.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = np.asarray(Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC))
            request = EditRequest(id="probe", image=image, source_prompt="a", target_prompt="b", seed=number)
            edits.append(
                _Ready(
                    request=request,
                    image=image,
                    crop_box=(0, 0, width, height),
                    instruction=("make it blue", "turn the round thing into a house")[number],
                    guidance=self.config.target_guidance,
                )
            )
        alone = np.concatenate([self.draw([edit], PROBE_STEPS) for edit in edits])
        try:
            together = self.draw(edits, PROBE_STEPS)
        except Exception:  # a pipeline refuses lists, or two pictures, each in its own way: it is asked one by one then
            return False
        if together.shape != alone.shape:
            return False
        difference = np.abs(_levels(together).astype(int) - _levels(alone))
        return bool(difference.max() <= PROBE_LEVELS and (difference > 0).mean() < PROBE_SHARE)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """How a pipeline calls what it is given. `guidance` None: it has no such argument; `taken`: all that it takes."""

    image: str
    prompt: str
    steps: str
    guidance: str | None
    taken: frozenset[str]


def find_arguments(pipe: Any, config: EditConfig) -> Arguments:
    """Find a pipeline's arguments in the signature of its call, or as the options name them.

    Raises: ConfigError for a pipeline that does not take a picture, a prompt and generators, and for names that it does not have.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    options, kind = config.pipeline, type(pipe).__name__
    plain = frozenset(name for name, each in parameters.items() if each.kind is not inspect.Parameter.VAR_KEYWORD)
    named = {name: getattr(options, name) for name in ("image", "prompt", "steps", "guidance")}
    named = {f"pipeline.{name}": value for name, value in named.items() if value}
    for option, value in [*named.items(), *((f"pipeline.arguments.{name}", name) for name in options.arguments)]:
        if value not in plain:
            raise ConfigError(f"{option}: got {value!r}, which a {kind} does not take; allowed: {', '.join(sorted(plain))}")
    found = {name: getattr(options, name) or default for name, default in DEFAULT_NAMES.items()}
    missing = [name for name in (*found.values(), "generator", "output_type") if name not in plain]
    if missing:
        raise ConfigError(
            f"model: got a {kind}, which takes no {', '.join(missing)}; allowed: pipelines that edit a picture by a prompt, or pipeline.image=, "
            "pipeline.prompt=, pipeline.steps= naming its arguments"
        )
    if config.negative_prompt is not None and "negative_prompt" not in plain:
        raise ConfigError(f"negative_prompt: got {config.negative_prompt!r}, which a {kind} does not take; allowed: null")
    guidance = options.guidance or next((name for name in GUIDANCE if _has_default(parameters.get(name))), None)
    return Arguments(**found, guidance=guidance, taken=plain)


DEFAULT_NAMES = {"image": "image", "prompt": "prompt", "steps": "num_inference_steps"}
TRUE_GUIDANCE = "true_cfg_scale"  # without a negative prompt such pipelines leave it out
NOTHING = " "  # the negative prompt of such a pipeline where there is none
GUIDANCE = ("guidance_scale", TRUE_GUIDANCE)  # the first that a pipeline uses by itself


def _has_default(parameter: inspect.Parameter | None) -> bool:
    return parameter is not None and parameter.default not in (None, inspect.Parameter.empty)


def load_hosted_editor(
    config: EditConfig, model: ModelConfig, files: HostedFiles | None = None, *, batches: bool | None = None
) -> HostedEditor:
    """Load a pipeline, and try whether it may be asked in batches where `batches` does not say so.

    Raises: ConfigError for what cannot be loaded.
    """
    import diffusers

    files = files or find_pipeline(model)
    device = choose_device(model.device)
    options: dict[str, Any] = {"dtype": choose_dtype(model.dtype, device), "variant": files.variant}
    load: Callable[..., Any] = diffusers.DiffusionPipeline.from_pretrained
    try:
        with quiet_libraries():
            pipe = load(files.folder, local_files_only=True, **options).to(device)
            pipe.set_progress_bar_config(disable=True)
    except Exception as error:  # each kind of model stumbles over a wrong file in its own way
        raise ConfigError(
            f"model: got {model.model!r}, a {files.kind} that does not load ({first_line(error)}); allowed: a whole pipeline of diffusers"
        ) from error
    return HostedEditor(pipe, config, hosted_facts(files), batches)


def _levels(drawn: Any) -> UInt8Array:
    """Round pictures of 0 to 1 to levels, as diffusers does."""
    levels: UInt8Array = (np.nan_to_num(drawn) * 255).round().astype(np.uint8)
    return levels
