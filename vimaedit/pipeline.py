"""A friendly front door for one picture, in diffusers' manner."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vimaedit.config import FRAMES, PASTES, EditConfig, ModelConfig, check_choice
from vimaedit.errors import ConfigError, RequestError, VimaeditError
from vimaedit.models.files import bundle_recipe, recipe_config
from vimaedit.recipes import with_method
from vimaedit.types import BlendPhrase, BoolArray, EditRequest, EditResult, Status, UInt8Array

if TYPE_CHECKING:
    import torch

    from vimaedit.decoding import DecodedImage, Picture
    from vimaedit.engine.batch import StepState
    from vimaedit.engine.editor import BatchEditor
    from vimaedit.engine.prepare import PreparedEdit
    from vimaedit.models.files import ModelFacts, ModelFiles

logger = logging.getLogger(__name__)

StepCallback = Callable[["ViMAEditPipeline", int, float, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class ViMAEditOutput:
    """What one call gives: lists of one, as diffusers' pipelines do. All pictures share the frame that was asked for.

    `masks` and `critical_masks` are mode L, 0 or 255; None where the edit had no mask. `warnings` says what to know.
    """

    images: list[Image.Image]
    sources: list[Image.Image]
    masks: list[Image.Image | None]
    critical_masks: list[Image.Image | None]
    crop_box: tuple[int, int, int, int]  # where the frame lies in the given picture: left, top, right, bottom
    blend: tuple[BlendPhrase, ...]
    warnings: tuple[str, ...]


class ViMAEditPipeline:
    """Edit one picture from two prompts.

    >>> pipe = ViMAEditPipeline.from_pretrained("miniature")
    >>> output = pipe(image, "a red circle on a lawn", "a red star on a lawn", num_inference_steps=10)
    >>> output.images[0].save("edited.png")
    """

    def __init__(self, model: ModelConfig, config: EditConfig | None = None) -> None:
        if model.compile:
            raise ConfigError(
                "compile: got true; allowed: false, for single pictures are edited long before it has paid; or a data job"
            )
        self.model = model
        self.config = config or recipe_config(model.model)
        self._loaded: tuple[Any, ModelFiles, ModelFacts] | None = None
        self._segmenter: Any = None
        self._hosted: Any = None  # a pipeline of diffusers, with method=pipeline

    @classmethod
    def from_pretrained(cls, model: str, *, config: EditConfig | None = None, **options: Any) -> ViMAEditPipeline:
        """Load a built-in model, a bundle or diffusers folder, a checkpoint file or a hub id.

        `options` are those of `ModelConfig` (ip_adapter, clip, revision, variant, lora, dtype, device), `config` the defaults
        of every call; left out, they are the model's own.

        Raises: ConfigError.
        """
        allowed = {field.name for field in dataclasses.fields(ModelConfig)}
        if unknown := set(options) - allowed:
            raise ConfigError(f"from_pretrained: got {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(allowed))}")
        pipe = cls(ModelConfig(model=model, **options), config)
        pipe._editor(pipe.config)
        return pipe

    def __call__(
        self,
        image: Picture,
        source_prompt: str,
        target_prompt: str,
        *,
        blend: str | Sequence[BlendPhrase | tuple[str | None, str | None]] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | int | None = None,
        mask: Picture | BoolArray | None = None,
        instruction: str | None = None,
        frame: str = "canvas",
        paste: str = "mask",
        reweight: dict[str, float] | None = None,
        word_windows: dict[str, float] | None = None,
        callback_on_step_end: StepCallback | None = None,
        **options: Any,
    ) -> ViMAEditOutput:
        """Edit a picture.

        `blend` says what changes: `"cat tiger"`, or (source phrase, target phrase) pairs; left out, the difference of the
        prompts does. `generator` gives the seed (its initial one). `mask` (any size of the picture's aspect, white = edit) belongs to
        `grounding="given"`; `instruction` is what a hosted pipeline is asked for. `frame="original"` pastes the edit back into the picture at its own size: where the mask is, or with
        `paste="frame"` the whole canvas. `reweight` multiplies the attention to phrases of the target prompt, `word_windows` gives
        phrases a `windows.text` of their own. `options` are those of `EditConfig`. The callback is called after every step as
        diffusers does, with `latents` (2, 1, C, h, w), source first, and the `masks`; what it returns is not used.

        Raises: ConfigError for a wrong option, RequestError for a picture or prompt that cannot be edited.
        """
        from vimaedit.decoding import read_picture
        from vimaedit.words.phrases import parse_blend

        given = {"steps": num_inference_steps, "target_guidance": guidance_scale}
        config = self._configure({**options, **{key: value for key, value in given.items() if value is not None}})
        for name, prompt in (("source_prompt", source_prompt), ("target_prompt", target_prompt)):
            if not isinstance(prompt, str):
                raise RequestError("wrong_type", field=name, got=type(prompt).__name__, allowed="a text")
        check_choice("frame", frame, FRAMES)
        check_choice("paste", paste, PASTES)
        picture = read_picture(image)
        given_mask, warnings = (None, ()) if mask is None else _read_mask(mask, picture, config)
        request = EditRequest(
            id="image",
            image=picture.pixels,
            source_prompt=source_prompt,
            target_prompt=target_prompt,
            blend=parse_blend(blend),
            reweight=tuple((reweight or {}).items()),
            word_windows=tuple((word_windows or {}).items()),
            given_mask=given_mask,
            instruction=instruction,
            seed=_seed(generator, config.seed),
        )
        editor = self._editor(config)  # last, since it may take long to load
        edit = editor.prepare(request)
        if config.grounding == "segmenter":
            given_mask, warnings = self._segmenter_of(config).find(edit.image, request)
            edit = dataclasses.replace(edit, given_mask=given_mask)
        result = editor.edit_one(edit) if config.parts.hosts_pipeline else self._run(editor, edit, callback_on_step_end)
        if result.status is not Status.OK:
            raise VimaeditError(result.message)
        original = picture.pixels if frame == "original" else None
        return _output(result, edit.crop_box, original, paste, (*picture.warnings, *warnings, *result.warnings))

    def _run(self, editor: BatchEditor, edit: PreparedEdit, callback: StepCallback | None) -> EditResult:
        def report(state: StepState) -> None:
            if callback is not None:
                callback(self, state.step, state.timestep, {"latents": state.latents, "masks": state.masks})

        batch = editor.encode([edit])
        (result,) = editor.finish([edit], batch, editor.run(batch, [edit], report))
        return result

    def _configure(self, options: dict[str, Any]) -> EditConfig:
        allowed = {field.name for field in dataclasses.fields(EditConfig)}
        if unknown := set(options) - allowed:
            raise ConfigError(f"options: got {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(allowed))}")
        config = self.config
        if "method" in options and options["method"] != config.method:
            config = with_method(config, options["method"], bundle_recipe(self.model.model))
        config = dataclasses.replace(config, **options)
        return config

    def _takes_image_prompt(self) -> bool:
        """Whether the loaded model has an image prompt that was not asked for yet."""
        from vimaedit.models.files import brings_image_prompt

        assert self._loaded is not None
        family = self._loaded[1].family
        return bool(family.image_prompts) and (not family.prompts_by_name or brings_image_prompt(self.model))

    def _load(self, config: EditConfig) -> tuple[Any, ModelFiles, ModelFacts]:
        from vimaedit.models.files import model_facts, resolve_model

        if self._loaded is None or (config.image_guidance and self._loaded[0].clip is None and self._takes_image_prompt()):
            files = resolve_model(self.model, image_guidance=config.image_guidance)
            from vimaedit.models.networks import load_networks  # torch, once it is known that there is a model

            networks = load_networks(files, self.model)
            for each in networks.left_out:
                logger.warning("%s", each.text())
            self._loaded = networks, files, model_facts(files)
        return self._loaded

    def _editor(self, config: EditConfig) -> Any:
        if config.parts.hosts_pipeline:
            return self._hosted_editor(config)
        networks, _, facts = self._load(config)
        from vimaedit.engine.editor import BatchEditor
        from vimaedit.models.backbone import Backbone

        return BatchEditor(Backbone(networks, config), config, facts)

    def _hosted_editor(self, config: EditConfig) -> Any:
        from vimaedit.engine.hosted import HostedEditor, load_hosted_editor

        if self._hosted is None:
            self._hosted = load_hosted_editor(config, self.model, batches=False)
        else:
            self._hosted = HostedEditor(self._hosted.pipe, config, self._hosted.facts, batches=False)
        return self._hosted

    def _segmenter_of(self, config: EditConfig) -> Any:
        from vimaedit.engine.segmenter import Segmenter

        if self._segmenter is None or self._segmenter.options != config.segmenter:
            self._segmenter = Segmenter(config)
        self._segmenter.config = config  # what is sought; the networks stay
        return self._segmenter


def _output(
    result: EditResult, box: tuple[int, int, int, int], original: UInt8Array | None, paste: str, warnings: tuple[str, ...]
) -> ViMAEditOutput:
    """Put an edit that lies at `box` together, pasted back into the original where one is given."""
    from vimaedit.images import paste_back, paste_mask

    source, edited, masks = result.source, result.image, [result.edit_mask, result.critical_mask]
    assert source is not None and edited is not None
    if original is not None:
        source, size = original, original.shape[1::-1]
        edited = paste_back(source, edited, result.edit_mask, box, paste)
        masks, box = [None if each is None else paste_mask(each, size, box) for each in masks], (0, 0, *size)
    return ViMAEditOutput(
        images=[Image.fromarray(edited)],
        sources=[Image.fromarray(source)],
        masks=[_mask_image(masks[0])],
        critical_masks=[_mask_image(masks[1])],
        crop_box=box,
        blend=result.blend_used,
        warnings=warnings,
    )


def _seed(generator: torch.Generator | int | None, default: int) -> int:
    if generator is None:
        return default
    if isinstance(generator, Integral):
        seed = int(generator)
    elif hasattr(generator, "initial_seed"):
        seed = generator.initial_seed()
    else:
        raise ConfigError(f"generator: got {type(generator).__name__}; allowed: a torch.Generator, or a seed")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"generator: got the seed {seed}; allowed: 0 to 2**63 - 1")
    return seed


def _read_mask(mask: Picture | BoolArray, picture: DecodedImage, config: EditConfig) -> tuple[BoolArray, tuple[str, ...]]:
    """Read a mask as it lies over the upright picture, (height, width), and say what to know of it."""
    from vimaedit.mask_decoding import read_mask, turn_mask

    if config.grounding != "given":
        raise ConfigError(f"mask: got one with grounding={config.grounding}; allowed: grounding='given'")
    read = read_mask(mask)
    pixels, turned = turn_mask(read.pixels, (picture.pixels.shape[1], picture.pixels.shape[0]), picture.orientation)
    return pixels, (*read.warnings, *turned)


def _mask_image(mask: np.ndarray | None) -> Image.Image | None:
    return None if mask is None else Image.fromarray(mask.astype(np.uint8) * 255)
