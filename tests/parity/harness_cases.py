"""Replay the recorded runs of the PIE-Bench harness programs: P2P, MasaCtrl, PnP, edit-friendly."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.parity.comparison import (
    BASELINE_MAP_TOLERANCE,
    BASELINE_MARGIN,
    BASELINE_TOLERANCE,
    Comparison,
    RecordedNoise,
    max_error,
)
from tests.parity.words import recorded_words
from vimaedit.attention.processor import install
from vimaedit.attention.sites import list_sites
from vimaedit.config import EditConfig
from vimaedit.engine.batch import EditBatch, StepState
from vimaedit.engine.editor import BatchEditor
from vimaedit.engine.loop import denoise
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.recipes import method_config
from vimaedit.types import EditRequest

METHODS = {
    "directinversion+p2p": "p2p",
    "ddim+p2p": "ddim-p2p",
    "negative-prompt-inversion+p2p": "npi-p2p",
    "negative-prompt-inversion+proximal-guidance": "proximal-p2p",
    "null-text-inversion+p2p": "null-text-p2p",
    "directinversion+masactrl": "masactrl",
    "ddim+masactrl": "ddim-masactrl",
    "directinversion+pnp": "pnp",
    "ddim+pnp": "ddim-pnp",
    "edit-friendly-inversion+p2p": "edit-friendly-p2p",
}
MASACTRL_FIRST_LAYER = 10  # what the method's own choice of layers comes to in a UNet of this layout
CALL_ORDER = ("down", "mid", "up")


def case_config(parameters: dict[str, Any]) -> EditConfig:
    """Translate a case's recorded parameters into the engine's settings.

    Raises: KeyError for a program that there is no method for.
    """
    method = METHODS[parameters["edit_method"]]
    scale = parameters.get("guidance_scale", parameters.get("guidance_scale_target"))
    options: dict[str, Any] = {"steps": parameters["num_steps"], "target_guidance": scale}
    if "cross_replace_fraction" in parameters:
        windows = {"self": parameters["self_replace_fraction"], "text": parameters["cross_replace_fraction"]}
        options |= {"windows": windows, "text_control": "refine"}
        options |= {
            "blend": "given" if parameters.get("blend_words") else "none",
            "missing_blend": "ignore",
            "blend_weight": 1.0,
        }
    if method in ("ddim-p2p", "null-text-p2p"):
        options["source_guidance"] = scale
    if method == "null-text-p2p":
        options["null_text"] = {"steps": parameters["num_inner_steps"], "stop": parameters["early_stop_epsilon"]}
    if method == "proximal-p2p":
        if parameters.get("proximal") is None:
            method = "npi-p2p"
        elif parameters["proximal"] == "l0":
            options |= {"proximal_quantile": parameters["quantile"], "quirks": ["proximal-soft"]}
        else:
            raise KeyError(f"proximal {parameters['proximal']}")
    if "start_step" in parameters:
        options["mutual_start"] = parameters["start_step"]
    if "qk_injection_fraction" in parameters:
        windows = {"self": parameters["qk_injection_fraction"], "feature": parameters["feature_injection_fraction"]}
        options |= {"windows": windows, "negative_prompt": parameters["negative_prompt"], "quirks": ["pnp-shift"]}
    if method == "edit-friendly-p2p":
        options["source_guidance"] = parameters["source_guidance_scale"]
        options |= {"skip": parameters["skip"] / parameters["num_steps"], "eta": float(parameters.get("eta", 1.0))}
    if method.endswith("p2p") and options["blend"] == "given":
        options["quirks"] = [*options.get("quirks", []), "absent-words"]
    return method_config(method, **options)


def replay_harness_case(name: str, entry: dict[str, Any], folder: Path, models: tuple[Networks, Any]) -> Comparison:
    """Run one case through the engine and compare everything that is recorded of it."""
    with np.load(folder / entry.get("file", f"{name}.npz")) as file:
        arrays = {key: file[key] for key in file.files}
    parameters = entry["parameters"]
    config = case_config(parameters)
    result = Comparison(name, tolerance=BASELINE_TOLERANCE, margin=BASELINE_MARGIN)
    states = run_case(config, parameters, arrays, folder, models)
    _compare_masks(result, arrays, states)
    for branch, key in enumerate(("latents_source", "latents_target")):
        for step, recorded in zip(arrays.get(f"{key}_steps", ()), arrays.get(key, ()), strict=True):
            result.latents(int(step), states[int(step)].latents[branch, 0], recorded)
    if "alone_latents_target" in arrays:
        options = {**dataclasses.asdict(config), "method": "edit-friendly", "blend": "none"}
        alone = run_case(method_config(**options), parameters, arrays, folder, models)
        for step, recorded in zip(arrays["alone_latents_target_steps"], arrays["alone_latents_target"], strict=True):
            result.check("alone", max_error(alone[int(step)].latents[1, 0].numpy(), recorded), BASELINE_TOLERANCE)
    result.saved = {"final_target": states[-1].latents[1, 0].numpy()}
    return result


def run_case(
    config: EditConfig, parameters: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path, models: tuple[Networks, Any]
) -> list[StepState]:
    """Run the engine from the recorded clean latents, noise and words; return the state after every step."""
    networks, facts = models
    editor = BatchEditor(Backbone(networks, config), config, facts)
    if parameters.get("start_layer", MASACTRL_FIRST_LAYER) != MASACTRL_FIRST_LAYER:
        own = sorted((s for s in list_sites(networks.denoiser) if not s.cross), key=lambda site: CALL_ORDER.index(site.path))
        routed = frozenset(site.name for site in own[parameters["start_layer"] :])
        install(networks.denoiser, dataclasses.replace(editor.backbone.sites, self_routing=routed))
    picture = np.asarray(Image.open(folder / parameters["image"]).convert("RGB"))
    request = EditRequest(
        id="case", image=picture, source_prompt=parameters["prompt_src"], target_prompt=parameters["prompt_tar"]
    )
    edit = editor.prepare(request, recorded_words(parameters, arrays, editor.backbone.tokenizer))
    batch: EditBatch = dataclasses.replace(editor.encode([edit]), x0=torch.from_numpy(clean_latents(arrays, editor)))
    if parameters.get("blend_words"):
        batch = dataclasses.replace(batch, has_words=torch.ones(1, dtype=torch.bool))
    noise = RecordedNoise(torch.zeros(1), torch.zeros(1))
    if "level_noise_times_32" in arrays:
        # The least noisy level stands first there.
        levels = arrays["level_noise_times_32"][::-1].astype(np.float32) / 32
        noise = RecordedNoise(torch.zeros(1), torch.from_numpy(levels)[:, None])
    states: list[StepState] = []
    denoise(editor.backbone, batch, config, noise, states.append)
    assert [s.timestep for s in states] == arrays["timesteps"].tolist()[-len(states) :], "another grid"
    return states


def clean_latents(arrays: dict[str, np.ndarray], editor: BatchEditor) -> np.ndarray:
    """Return the recorded clean latents, (1, C, h, w); encoded from the recorded picture where they are not recorded."""
    if "x_0" in arrays:
        return arrays["x_0"]
    first = np.flatnonzero(arrays.get("inverted_steps", np.array([])) == 0)
    if len(first):
        return arrays["inverted"][first]
    return editor.backbone.encode_images(arrays["image"][None]).numpy()


def _compare_masks(result: Comparison, arrays: dict[str, np.ndarray], states: list[StepState]) -> None:
    if "blend_steps" not in arrays:
        return
    masks = np.unpackbits(arrays["mask_packed"], axis=-1).astype(bool)
    for row, step in enumerate(arrays["blend_steps"].tolist()):
        state = states[step]
        assert bool(state.masks.exists.all()) and state.map_sum is not None
        margin = float(arrays["mask_margin"][row]) if "mask_margin" in arrays else None
        result.mask(step, state.masks.edit[0, 0].numpy(), masks[row, 1], margin)
        if "blend_map_accum" in arrays and result.judges(step):
            recorded = arrays["blend_map_accum"][row]
            own = state.map_sum.numpy().reshape(recorded.shape)
            # The same up to a factor: both are divided by their maximum.
            own, recorded = (maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12) for maps in (own, recorded))
            result.check("map", max_error(own, recorded), BASELINE_MAP_TOLERANCE)
    first = int(arrays["blend_steps"].min())
    if any(bool(state.masks.exists.any()) for state in states[:first]):
        result.misses.append("a mask before the first recorded one")
