"""Replay the recorded runs of InfEdit and LEDITS++; those of LOCATEdit and ViMAEdit's ablations have the form of its own cases."""

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
from vimaedit.config import EditConfig
from vimaedit.engine.batch import StepState
from vimaedit.engine.editor import BatchEditor
from vimaedit.engine.loop import denoise
from vimaedit.engine.prepare import PreparedConcept
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.recipes import method_config
from vimaedit.types import EditRequest
from vimaedit.words.tokens import token_spans

STARTS = {"pure noise": "noise", "noised image": "image"}
TEXT_SOURCES = {"aux": "auxiliary", "source": "source"}
CONCEPT_MASKS = {(True, True): "intersect", (True, False): "attention", (False, True): "intersect", (False, False): "guidance"}


def replay_infedit_case(name: str, entry: dict[str, Any], folder: Path, models: tuple[Networks, Any]) -> Comparison:
    """Run one InfEdit case and compare everything that is recorded of it."""
    parameters, arrays = entry["parameters"], _load(name, entry, folder)
    config = method_config(
        "infedit",
        steps=parameters["num_inference_steps"],
        skip=1 - parameters["strength"],
        start=STARTS[parameters["start"]],
        eta=float(parameters["eta"]),
        windows={"self": parameters["self_replace_fraction"], "text": parameters["cross_replace_fraction"]},
        thresholds={"edit": parameters["thresh_e"]},
        auxiliary={
            "text_from": TEXT_SOURCES[parameters["target_cross_map_taken_from"]],
            "mutual_words": parameters["mutual_word"],
            "mutual_threshold": parameters["thresh_m"],
        },
        source_guidance=parameters["source_and_aux_guidance_scale"],
        target_guidance=parameters["target_guidance_scale"],
        quirks=["infedit-crosswise", "infedit-direction"],
    )
    editor = BatchEditor(Backbone(models[0], config), config, models[1])
    words = recorded_words(parameters, arrays, editor.backbone.tokenizer)
    inside = np.arange(len(words.target_ids)) < int(arrays["target_token_count"]) - 1
    inside[0] = False
    mask = np.stack([arrays["alpha_m"], arrays["alpha_e"]]).astype(np.float32) * inside
    request = _request(parameters, folder, parameters["prompt_src"], parameters["prompt_tar"])
    edit = editor.prepare(request, dataclasses.replace(words, word_mask=mask))
    batch = dataclasses.replace(editor.encode([edit]), x0=torch.from_numpy(arrays["x_0"]))
    noise = RecordedNoise(torch.from_numpy(arrays["init_noise"]), torch.from_numpy(arrays["step_noise"])[:, None])
    states: list[StepState] = []
    denoise(editor.backbone, batch, config, noise, states.append)

    result = Comparison(name, tolerance=BASELINE_TOLERANCE, margin=BASELINE_MARGIN)
    _check_grid(states, arrays)
    masks = np.unpackbits(arrays["masks_packed"], axis=-1).astype(bool)
    for step, state in enumerate(states):
        if "mask_defined" in arrays and not arrays["mask_defined"][step]:
            continue
        margins = arrays["mask_margin"][step] if "mask_margin" in arrays else np.full(3, np.nan)
        own = (state.masks.edit, state.masks.mutual, state.masks.shared)
        for number, mask_B1hw in enumerate(own):
            if mask_B1hw is None:
                continue
            margin = None if np.isnan(margins[number]) else float(margins[number])
            result.mask(step, mask_B1hw[0, 0].numpy(), masks[step, number], margin)
        if "map_accum" in arrays and state.map_sum is not None:
            recorded = arrays["map_accum"][step]
            maps = state.map_sum[: len(recorded)].numpy().reshape(recorded.shape)
            result.check("map", max_error(maps, recorded) / max(float(np.abs(recorded).max()), 1e-12), BASELINE_MAP_TOLERANCE)
    for branch, key in enumerate(("latents_source", "latents_target", "latents_aux")):
        for step, recorded in zip(arrays.get(f"{key}_steps", ()), arrays.get(key, ()), strict=True):
            result.latents(int(step), states[int(step)].latents[branch, 0], recorded)
    _compare_patches(result, arrays, states, [1, 2])
    output = states[-1].clean[1, 0].numpy()
    result.latents(len(states) - 1, output, arrays["output_x0_pred"], "final")
    result.saved = {"final_target": output}
    return result


def replay_leditspp_case(name: str, entry: dict[str, Any], folder: Path, models: tuple[Networks, Any]) -> Comparison:
    """Run one LEDITS++ case and compare everything that is recorded of it."""
    parameters, arrays = entry["parameters"], _load(name, entry, folder)
    box = parameters.get("user_mask_latent_rows_cols")
    counts_all = str(parameters.get("tokens_summed", "")).startswith("75")
    config = method_config(
        "leditspp",
        steps=parameters["num_inversion_steps"],
        skip=parameters["skip"],
        source_guidance=parameters["source_guidance_scale"] if parameters["source_prompt"] else 0.0,
        concepts={"mask": CONCEPT_MASKS[bool(parameters["use_cross_attn_mask"]), bool(parameters["use_intersect_mask"])]},
        grounding="concepts" if box is None else "given",
        quirks=["leditspp-texts", *(["leditspp-tokens"] if counts_all else [])],
    )
    editor = BatchEditor(Backbone(models[0], config), config, models[1])
    prompts = _as_list(parameters["editing_prompt"])
    # An empty source prompt is what `source_guidance` 0 means; the engine's words need some text to stand in its place.
    request = _request(parameters, folder, parameters["source_prompt"] or prompts[0], prompts[0])
    if box is not None:
        request = dataclasses.replace(request, given_mask=_box_mask(request.image, box))
    edit = editor.prepare(request)
    edit = dataclasses.replace(edit, concepts=leditspp_concepts(editor, config, parameters, prompts))
    batch = dataclasses.replace(editor.encode([edit]), x0=torch.from_numpy(arrays["x_0"]))
    if box is not None:
        assert batch.concepts is not None
        user_mask = torch.zeros(1, 1, *batch.x0.shape[-2:])
        user_mask[:, :, box[0] : box[1], box[2] : box[3]] = 1
        batch = dataclasses.replace(batch, concepts=dataclasses.replace(batch.concepts, user_mask=user_mask))
    noise = RecordedNoise(torch.zeros(1), torch.from_numpy(arrays["noise"])[:, None])
    states: list[StepState] = []
    denoise(editor.backbone, batch, config, noise, states.append)

    result = Comparison(name, tolerance=BASELINE_TOLERANCE, margin=BASELINE_MARGIN)
    _check_grid(states, arrays)
    masks = np.unpackbits(arrays["masks_packed"], axis=-1).astype(bool)
    values = arrays["quantile_values"] if "quantile_values" in arrays else np.zeros((0, 6))
    for step, state in enumerate(states):
        # Every margin of the step; a quantile sits between two neighbouring values by construction.
        margins = values[values[:, 0] == state.timestep, 5]
        margin = float(np.nanmin(margins)) if len(margins) and not np.isnan(margins).all() else None
        assert state.masks.concepts is not None
        result.mask(step, state.masks.concepts[:, 0, 0].numpy(), masks[step], margin)
    for step, recorded in zip(arrays.get("latents_steps", ()), arrays.get("latents", ()), strict=True):
        result.latents(int(step), states[int(step)].latents[1, 0], recorded)
    _compare_patches(result, arrays, states, [1])
    final = states[-1].latents[1, 0].numpy()
    result.latents(len(states) - 1, final, arrays["final_latents"], "final")
    result.saved = {"final_target": final}
    return result


def leditspp_concepts(
    editor: BatchEditor, config: EditConfig, parameters: dict[str, Any], prompts: list[str]
) -> tuple[PreparedConcept, ...]:
    tokenizer = editor.backbone.tokenizer

    def per_concept(key: str, default: Any) -> list[Any]:
        values = parameters.get(key)
        values = [default] * len(prompts) if values is None else _as_list(values)
        values = values * len(prompts) if len(values) == 1 else values
        return [default if value is None else value for value in values]

    columns = (
        per_concept("edit_guidance_scale", 5.0),
        per_concept("reverse_editing_direction", False),
        per_concept("edit_threshold", 0.9),
        per_concept("edit_warmup_steps", 0),
        per_concept("edit_cooldown_steps", config.steps),
    )
    concepts = []
    for prompt, scale, reverse, quantile, first, last in zip(prompts, *columns, strict=True):
        ids = token_spans(prompt, tokenizer).ids
        words = np.zeros(tokenizer.model_max_length, dtype=np.float32)
        words[1 : (len(words) if "leditspp-tokens" in config.quirks else len(ids)) - 1] = 1
        concepts.append(
            PreparedConcept(
                text=prompt,
                words=words,
                scale=-scale if reverse else scale,
                quantile=quantile,
                first=int(first),
                last=int(last),
            )
        )
    return tuple(concepts)


def _compare_patches(result: Comparison, arrays: dict[str, np.ndarray], states: list[StepState], branches: list[int]) -> None:
    """Compare the rows and columns of the latents that are recorded after every step."""
    if "latents_patch" in arrays:
        for step, recorded in enumerate(arrays["latents_patch"]):
            result.latents(step, states[step].latents[branches, 0, :, 24:32, 24:32].numpy(), recorded)


def _check_grid(states: list[StepState], arrays: dict[str, np.ndarray]) -> None:
    assert [s.timestep for s in states] == arrays["timesteps"].tolist(), "another grid"


def _load(name: str, entry: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / entry.get("file", f"{name}.npz")) as file:
        return {key: file[key] for key in file.files}


def _request(parameters: dict[str, Any], folder: Path, source: str, target: str) -> EditRequest:
    picture = np.asarray(Image.open(folder / parameters["image"]).convert("RGB"))
    return EditRequest(id="case", image=picture, source_prompt=source, target_prompt=target)


def _box_mask(picture: np.ndarray, box: list[int]) -> np.ndarray:
    """Return any mask of the picture's shape; the recorded one counts latent cells and takes its place later."""
    mask = np.zeros(picture.shape[:2], dtype=bool)
    mask[box[0] :, box[2] :] = True
    return mask


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
