"""One edit from start to end: `run` follows the method step by step and keeps everything there is to compare."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from tests.reference import attention, grounding, solvers
from tests.reference.attention import StepEdits


@dataclass(frozen=True)
class Models:
    """A UNet, an IP-Adapter's tensors by their names in its file (None: no image prompt) and the training levels' alphas."""

    unet: nn.Module
    adapter: dict[str, Tensor] | None
    alphas_cumprod: np.ndarray


@dataclass(frozen=True)
class Settings:
    """The settings of an edit, with the method's defaults; windows and the start are fractions of the steps."""

    num_steps: int = 50
    solver: str = "ddim"  # or dpmsolver++
    variance: str = "adaptive"  # uniform: everywhere once there is a mask; zero
    eta: float = 1.0  # DDIM only
    edit_threshold: float = 0.5
    critical_threshold: float = 0.8
    self_window: float = 0.6
    text_window: float = 0.4
    image_window: float = 0.1
    grounding_rounds: int = 5
    grounding_decay: float = 0.5
    grounding_start: float = 0.2
    self_side: float = 0.5  # of the layers that grounding reads, over the latent's side
    text_side: float = 0.25
    image_strength: float = 0.4
    image_order: str = "reference"  # or conventional
    source_guidance: float = 1.0
    target_guidance: float = 7.5


@dataclass(frozen=True)
class EditInputs:
    """What one edit starts from; T text tokens of width D, image embeddings of width E as CLIP gives them.

    Shapes: `x_0`, `init_noise` (C, h, w); `step_noise` (N, C, h, w); texts (T, D); `image_source`, `image_target` (E,) or None
    without an image prompt; `mapper` (T,) int with `mapper_alphas` (T,) for refinement, or (T source, T target) float for replacement;
    `equalizer` (T,) or None; `token_masks` (2, T) or None without words; `given_mask` (h, w) bool takes the place of grounding.
    """

    settings: Settings
    x_0: Tensor
    init_noise: Tensor
    step_noise: Tensor
    text_empty: Tensor
    text_source: Tensor
    text_target: Tensor
    mapper: Tensor
    mapper_alphas: Tensor | None = None
    equalizer: Tensor | None = None
    image_source: Tensor | None = None
    image_target: Tensor | None = None
    token_masks: Tensor | None = None
    given_mask: Tensor | None = None


@dataclass(frozen=True)
class Recorded:
    """What happened, all steps: latents after the step's blend, branch order (source, target).

    Shapes: `x_T` (C, h, w); `latents`, `clean` (N, 2, C, h, w); `noise_pred` (N, 4, C, h, w) before guidance; `map_sum`
    (N, 2, self sides) or None where no words were grounded, zeros before grounding starts; `row_masks` (N, 2, h, w), `edit_mask`,
    `critical_mask` (N, h, w) bool, False while there is none; `mask_exists` (N,) bool.
    """

    timesteps: list[int]
    x_T: Tensor
    latents: Tensor
    clean: Tensor
    noise_pred: Tensor
    map_sum: Tensor | None
    row_masks: Tensor
    edit_mask: Tensor
    critical_mask: Tensor
    mask_exists: Tensor

    @property
    def final_latents(self) -> Tensor:
        return self.latents[-1]


@dataclass(frozen=True)
class _Masks:
    rows: Tensor
    edit: Tensor
    critical: Tensor
    exists: bool


def load_models(bundle: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Models:
    """Load a bundle folder (`sd/`, `ip_adapter/`)."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    unet = UNet2DConditionModel.from_pretrained(bundle / "sd" / "unet", local_files_only=True).eval().requires_grad_(False)
    noise = json.loads((bundle / "sd" / "scheduler" / "scheduler_config.json").read_text())
    assert noise["beta_schedule"] == "scaled_linear"
    betas = np.linspace(noise["beta_start"] ** 0.5, noise["beta_end"] ** 0.5, noise["num_train_timesteps"]) ** 2
    adapter = load_file(bundle / "ip_adapter" / "models" / "ip-adapter_sd15.safetensors")
    adapter = {name: tensor.to(device, dtype) for name, tensor in adapter.items()}
    return Models(unet.to(device, dtype), adapter, np.cumprod(1 - betas))


@torch.no_grad()
def run(models: Models, inputs: EditInputs, store: attention.MapStore | None = None) -> Recorded:
    """Edit one picture's latents. The UNet is left with this reference's attention processors.

    With a `store` all attention maps are kept there, as published controllers do; the results are the same.
    """
    settings = inputs.settings
    sides = tuple(inputs.x_0.shape[-2:])
    grid = solvers.build_grid(settings.solver, models.alphas_cumprod, settings.num_steps)
    context, num_image_tokens = build_context(models.adapter, inputs)
    processors = attention.install(models.unet, models.adapter if num_image_tokens else None, num_image_tokens, store)

    a_T = grid.alphas[0]
    x_T = a_T**0.5 * inputs.x_0 + (1 - a_T) ** 0.5 * inputs.init_noise
    latents = torch.stack([x_T, x_T])
    map_sum = torch.zeros(2, *_scaled(sides, settings.self_side)) if inputs.token_masks is not None else None
    clean = None
    steps = []
    for i, t in enumerate(grid.timesteps):
        edits = _edits_of_step(inputs, i, sides)
        for processor in processors.values():
            processor.edits = edits
        rows = torch.cat([latents, latents]).to(models.unet.dtype)
        noise_pred = models.unet(rows, t, encoder_hidden_states=context.to(models.unet.dtype)).sample.float()
        if store is not None:
            store.end_step()

        if map_sum is not None and i + 1 >= int(settings.grounding_start * settings.num_steps):
            map_sum = map_sum + grounding.locate(
                edits.text_maps,
                edits.self_maps,
                inputs.token_masks,
                _scaled(sides, settings.text_side),
                _scaled(sides, settings.self_side),
                settings.grounding_rounds,
                settings.grounding_decay,
            )
        masks = _masks_of_step(inputs, map_sum, sides)

        scales = torch.tensor([settings.source_guidance, settings.target_guidance])[:, None, None, None]
        uncond, cond = noise_pred.chunk(2)
        guided = uncond + scales * (cond - uncond)
        clean_before = clean
        clean = solvers.predict_clean(latents, guided, grid.alphas[i], inputs.x_0)
        where = _variance_mask(settings.variance, masks)
        if settings.solver == "ddim":
            a, a_prev = grid.alphas[i : i + 2]
            latents = solvers.ddim_step(latents, clean, a, a_prev, settings.eta, where, inputs.step_noise[i])
        else:
            latents = solvers.dpm_step(latents, clean, clean_before, grid.alphas, i, where, inputs.step_noise[i])
        if masks.exists:
            source, target = latents
            latents = torch.stack([source, source + masks.edit * (target - source)])
        steps.append((latents, clean, noise_pred, map_sum, masks))
    every_latents, every_clean, every_noise_pred, every_map, every_masks = zip(*steps, strict=True)
    return Recorded(
        timesteps=grid.timesteps,
        x_T=x_T,
        latents=torch.stack(every_latents),
        clean=torch.stack(every_clean),
        noise_pred=torch.stack(every_noise_pred),
        map_sum=torch.stack(every_map) if map_sum is not None else None,
        row_masks=torch.stack([masks.rows for masks in every_masks]),
        edit_mask=torch.stack([masks.edit for masks in every_masks]),
        critical_mask=torch.stack([masks.critical for masks in every_masks]),
        mask_exists=torch.tensor([masks.exists for masks in every_masks]),
    )


def build_context(adapter: dict[str, Tensor] | None, inputs: EditInputs) -> tuple[Tensor, int]:
    """Return what the four rows attend to, text tokens then image tokens, (4, T + I, D), and I.

    The image embedding of the source's conditional row and of the target's unconditional one depend on the order: the released
    program gives (0, I_s, 0, I_t), the conventional order is (0, 0, I_s, I_t).
    """
    texts = torch.stack([inputs.text_empty, inputs.text_empty, inputs.text_source, inputs.text_target])
    if adapter is None or inputs.image_source is None:
        return texts, 0
    zeros, source, target = torch.zeros_like(inputs.image_source), inputs.image_source, inputs.image_target
    rows = [zeros, source, zeros, target] if inputs.settings.image_order == "reference" else [zeros, zeros, source, target]
    projected = torch.stack(rows) @ adapter["image_proj.proj.weight"].T + adapter["image_proj.proj.bias"]
    tokens = projected.unflatten(-1, (-1, texts.shape[-1]))
    tokens = layer_norm(tokens, tokens.shape[-1:], adapter["image_proj.norm.weight"], adapter["image_proj.norm.bias"])
    return torch.cat([texts, tokens], dim=1), tokens.shape[1]


def _edits_of_step(inputs: EditInputs, i: int, sides: tuple[int, int]) -> StepEdits:
    """Open or close the three windows: int(f N) steps of self- and image attention, int(f (N + 1)) of text attention."""
    settings = inputs.settings
    length = len(inputs.text_source)
    equalizer = torch.ones(length) if inputs.equalizer is None else inputs.equalizer
    if inputs.mapper.ndim == 1:
        text_edit = attention.refine(inputs.mapper, inputs.mapper_alphas, equalizer)
    else:
        text_edit = attention.replace(inputs.mapper, equalizer)
    return StepEdits(
        self_edit=attention.take_source if i < int(settings.self_window * settings.num_steps) else None,
        text_edit=text_edit if i < int(settings.text_window * (settings.num_steps + 1)) else None,
        image_edit=attention.take_source if i < int(settings.image_window * settings.num_steps) else None,
        image_strength=settings.image_strength,
        kept_self_side=settings.self_side,
        kept_text_side=settings.text_side,
        latent_sides=sides,
    )


def _masks_of_step(inputs: EditInputs, map_sum: Tensor | None, sides: tuple[int, int]) -> _Masks:
    """Return the masks: the record's own, or the union of both rows' words; none before the first map and for constant maps."""
    if inputs.given_mask is not None:
        given = inputs.given_mask
        return _Masks(torch.stack([given, given]), given, given, True)
    if map_sum is None:
        none = torch.zeros(sides, dtype=torch.bool)
        return _Masks(torch.stack([none, none]), none, none, False)
    rows, exists = grounding.threshold(map_sum, sides, inputs.settings.edit_threshold)
    critical, _ = grounding.threshold(map_sum, sides, inputs.settings.critical_threshold)
    return _Masks(rows, rows.any(dim=0), critical.any(dim=0), bool(exists.any()))


def _variance_mask(variance: str, masks: _Masks) -> Tensor:
    if variance == "zero" or not masks.exists:
        return torch.zeros(masks.critical.shape)
    if variance == "uniform":
        return torch.ones(masks.critical.shape)
    return masks.critical.float()


def _scaled(sides: tuple[int, int], side: float) -> tuple[int, int]:
    return round(sides[0] * side), round(sides[1] * side)
