"""The engine's work done in three ways that can be timed against each other.

- `fused`: the engine, a batch of edits at once.
- `stock`: what one gets from a pipeline: edits one after the other, four UNet rows each, the library's own attention. It grounds and
  couples nothing, so it does less; its pictures are no edits.
- `maps`: the method written down plainly, edits one after the other, with every attention map of a step and their sums over the
  steps in memory, as published attention controllers keep them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.reference import attention
from tests.reference import edit as reference
from tests.reference.inputs import reference_inputs
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.engine.batch import EditBatch, StepState
from vimaedit.engine.editor import BatchEditor
from vimaedit.engine.prepare import PreparedEdit
from vimaedit.miniature.random_bundle import Layout, write_random_bundle
from vimaedit.models.backbone import Backbone
from vimaedit.models.conditioning import Conditioning
from vimaedit.models.files import model_facts, resolve_model
from vimaedit.models.networks import load_networks
from vimaedit.step.noise import START, SeededNoise
from vimaedit.step.rows import TARGET, RowKind
from vimaedit.step.solvers import add_noise, move
from vimaedit.types import BlendPhrase, EditRequest

# The attention layers, sides and picture of SD 1.5, narrow enough for a CPU: what a program does with the maps costs what it costs there.
SMALL_SD15 = Layout(
    name="small-sd15", canvas_size=512, channels=(32, 64, 128, 128), layers_per_block=2, heads=1, grounding_sides=(0.5, 0.25)
)
SD15 = Layout(
    name="sd15",
    canvas_size=512,
    channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    heads=8,
    grounding_sides=(0.5, 0.25),
    context_size=768,
    vae_channels=(128, 256, 512, 512),
)
LAYOUTS = {layout.name: layout for layout in (SD15, SMALL_SD15)}  # their weights are drawn
WORDS = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon", "diamond", "house")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a side came to. Shapes: `latents` (B, C, h, w), the targets; `masks` (S, B, h, w) bool, None where a side has none."""

    latents: np.ndarray
    masks: np.ndarray | None


def find_model(name: str, scratch: Path) -> Path:
    """Return the bundle's folder of a model; one of `LAYOUTS` is written into `scratch`."""
    if name not in LAYOUTS:
        return resolve_model(ModelConfig(model=name)).diffusers.parent
    write_random_bundle(scratch / name, layout=LAYOUTS[name])
    return scratch / name


def load_editor(model: str, config: EditConfig, device: str, dtype: str) -> BatchEditor:
    """Load a model for the edits of `config`."""
    settings = ModelConfig(model=model, dtype=dtype, device=device)
    files = resolve_model(settings)
    networks = load_networks(files, settings)
    return BatchEditor(Backbone(networks, config), config, model_facts(files))


def drawn_requests(count: int, canvas_size: int, targets: int = 1) -> list[EditRequest]:
    """Return edits of smooth random pictures, each with words of its own; `targets` consecutive ones are of one picture."""
    requests = []
    for index in range(count):
        number = index // targets
        draw = np.random.Generator(np.random.PCG64(number))
        coarse = torch.from_numpy(draw.random((1, 3, 9, 9), dtype=np.float32))
        smooth = torch.nn.functional.interpolate(coarse, size=(canvas_size, canvas_size), mode="bicubic").clamp(0, 1)
        old, new = WORDS[number % len(WORDS)], WORDS[(number + 3 + index % targets) % len(WORDS)]
        requests.append(
            EditRequest(
                id=str(index),
                image=(smooth[0].permute(1, 2, 0) * 255).byte().numpy(),
                source_prompt=f"a picture of a red {old} on a white background",
                target_prompt=f"a picture of a red {new} on a white background",
                blend=(BlendPhrase(source=old, target=new),),
                seed=number,
            )
        )
    return requests


def prepare_side(
    name: str, editor: BatchEditor, edits: Sequence[PreparedEdit], batch: EditBatch, model_folder: Path
) -> Callable[[], Outcome]:
    """Return what denoises prepared and encoded edits in one of the ways; all models are loaded by then."""
    if name == "fused":
        return lambda: run_fused(editor, edits, batch)
    if name == "stock":
        return lambda: run_stock(editor, edits, batch)
    device = batch.x0.device
    models = reference.load_models(model_folder, device, editor.backbone.dtype)
    alone = [reference_inputs(editor.config, editor, edit, editor.encode([edit])) for edit in edits]
    alone = [_on_device(each, device) for each in alone]

    def run_maps() -> Outcome:
        with device:
            recorded = [reference.run(models, each, attention.MapStore()) for each in alone]
        latents = np.stack([each.final_latents[TARGET].cpu().numpy() for each in recorded])
        return Outcome(latents, np.stack([each.edit_mask.cpu().numpy() for each in recorded], axis=1))

    return run_maps


def _on_device(inputs: Any, device: torch.device) -> Any:
    fields = {name: value.to(device) for name, value in vars(inputs).items() if isinstance(value, Tensor)}
    return dataclasses.replace(inputs, **fields)


def run_fused(editor: BatchEditor, edits: Sequence[PreparedEdit], batch: EditBatch) -> Outcome:
    """Run the engine."""
    masks: list[Tensor] = []

    def keep(state: StepState) -> None:
        masks.append(state.masks.edit[:, 0])

    final = editor.run(batch, edits, keep)
    return Outcome(final.latents[TARGET].cpu().numpy(), torch.stack(masks).cpu().numpy())


@torch.inference_mode()
def run_stock(editor: BatchEditor, edits: Sequence[PreparedEdit], batch: EditBatch) -> Outcome:
    """Denoise source and target of one edit after the other with classifier-free guidance, four rows at every step, or by
    guidance as an input with two."""
    backbone, config = editor.backbone, editor.config
    schedule = backbone.schedule(config, (batch.x0.shape[-2], batch.x0.shape[-1]))
    device = batch.x0.device
    timesteps = torch.tensor(schedule.timesteps, device=device)
    scale = torch.tensor([1.0, config.target_guidance], device=device).view(2, 1, 1, 1)
    finals = []
    for slot, edit in enumerate(edits):
        shape = (batch.x0.shape[1], batch.x0.shape[2], batch.x0.shape[3])
        noise = SeededNoise([edit.request.seed], shape).draw(START).to(device)
        x = add_noise(batch.x0[slot : slot + 1], noise, schedule.levels[0]).expand(2, -1, -1, -1)
        conditioning = _rows_of_both(batch, slot)
        repeats = len(conditioning) // 2
        for i, (level, next_level) in enumerate(zip(schedule.levels, schedule.next_levels, strict=True)):
            predicted = backbone.predict(torch.cat([x] * repeats), timesteps[i], conditioning, None).float()
            if repeats == 2:
                uncond, cond = predicted.chunk(2)
                predicted = uncond + scale * (cond - uncond)
            x = move(x, predicted, level, next_level)
        finals.append(x[TARGET])
    return Outcome(torch.stack(finals).cpu().numpy(), None)


def _rows_of_both(batch: EditBatch, slot: int) -> Conditioning:
    """Return what source and target are conditioned on, with text, and before that without where there are such rows."""
    kinds = [RowKind.SOURCE_COND, RowKind.TARGET_COND]
    if RowKind.TARGET_UNCOND in batch.layout.kinds:
        kinds = [RowKind.TARGET_UNCOND, RowKind.TARGET_UNCOND, *kinds]
    rows = torch.tensor([batch.layout.block(kind).start + slot for kind in kinds], device=batch.x0.device)
    return batch.conditioning.rows(rows)
