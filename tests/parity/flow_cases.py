"""Replay the recorded runs on SD3 and FLUX: stock text-to-image, FlowEdit, UniEdit-Flow (on SDXL too), FireFlow and RF-Solver-Edit.

Everything follows from a case's parameters and arrays. Recorded are clean latents, noise, levels and texts; encoding of texts, levels,
attention maps, velocities and latents are compared.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.parity.comparison import Comparison, RecordedNoise, max_error
from vimaedit.attention.control import plain_control
from vimaedit.attention.recorder import MapRecorder
from vimaedit.attention.sites import SiteChoice
from vimaedit.config import Canvas, EditConfig, ModelConfig
from vimaedit.engine.batch import StepState
from vimaedit.engine.editor import BatchEditor
from vimaedit.engine.loop import denoise
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.files import ModelFacts, model_facts, resolve_model
from vimaedit.models.networks import load_networks
from vimaedit.parts.tracks import begin_track
from vimaedit.recipes import method_config
from vimaedit.step.solvers import Schedule, move
from vimaedit.types import EditRequest

LATENT_TOLERANCES = {"sdxl": 5e-4, "sd3": 1e-4, "flux": 5e-5}
MAP_TOLERANCE, TEXT_TOLERANCE, LEVEL_TOLERANCE, WEIGHT_TOLERANCE = 2e-5, 3e-5, 1e-6, 5e-5
SAMPLERS = {
    "fireflow": "fireflow",
    "rf_solver": "rf-solver",
    "rf_midpoint": "rf-solver",
}  # one program has all; the last two are one
Arrays = dict[str, np.ndarray]


@functools.cache
def load_models(folder: Path) -> tuple[Networks, ModelFacts]:
    """Load the recorded model of a family through the project's own loading code."""
    model = ModelConfig(model=str(folder), dtype="float32", device="cpu")
    files = resolve_model(model, image_guidance=False)
    return load_networks(files, model), model_facts(files)


def replay_flow_case(name: str, entry: dict[str, Any], folder: Path) -> Comparison:
    """Run one case through the engine and compare everything that is recorded of it."""
    models = load_models(folder.parent / "models")
    with np.load(folder / entry.get("file", f"{name}.npz")) as file:
        arrays = {key: file[key] for key in file.files}
    result = Comparison(name, tolerance=LATENT_TOLERANCES[models[1].family])
    parameters = entry["parameters"]
    for encoder in models[0].family.text_encoders:
        if encoder.length is not None:
            models[0].tokenizers[encoder.network].model_max_length = parameters.get("max_sequence_length", encoder.length)
    if "shift" in parameters:
        scheduler = models[0].scheduler
        shifted = type(scheduler).from_config({**scheduler.config, "shift": parameters["shift"]})
        models = (dataclasses.replace(models[0], scheduler=shifted), models[1])
    if entry["editor"] == "text-to-image":
        _replay_sampling(result, parameters, arrays, models)
        return result
    config = case_config(entry["editor"], parameters, models[0].family.kind.embeds_guidance)
    config = dataclasses.replace(config, canvas=Canvas(size=min(parameters["height"], parameters["width"])))
    editor = BatchEditor(Backbone(models[0], config), config, models[1])
    edit = dataclasses.replace(editor.prepare(_request(parameters, arrays)), image=arrays["image"])  # as it is, if no square
    batch = dataclasses.replace(editor.encode([edit]), x0=torch.from_numpy(arrays["x_src"]))
    noise = RecordedNoise(torch.zeros(1), torch.from_numpy(arrays.get("noise", np.zeros((0, 1))))[:, None])
    schedule = editor.backbone.schedule(config, _sides(batch.x0))
    states: list[StepState] = []
    final = denoise(editor.backbone, batch, config, noise, states.append)
    _check_texts(result, editor.backbone, parameters, arrays)
    _check_levels(result, arrays, schedule, config)
    for step, recorded in zip(arrays.get("latents_steps", range(len(states))), arrays["latents"], strict=True):
        own = final.latents[1, 0] if step + 1 == len(states) else states[step].latents[1, 0]
        if entry["editor"] == "FlowEdit":  # its latents are the picture's and the distance of the branches
            distance = states[step].latents[1, 0] - states[step].latents[0, 0]
            own = batch.x0[0] + distance
        result.latents(step, own, recorded, "final" if step + 1 == len(states) else "latents")
    if "inverted" in arrays:
        _check_inversion(result, editor, batch, schedule, arrays)
    result.saved = {"final_latents": final.latents[1, 0].numpy()}
    if "mask" in arrays:
        cell = editor.backbone.family.cell
        own_masks = np.stack([state.masks.weights[0, 0, ::cell, ::cell].numpy() for state in states])  # type: ignore[index]
        result.check("map", max_error(own_masks, arrays["mask"]), WEIGHT_TOLERANCE)
        result.saved["mask"] = own_masks[-1]
    if "decoded" in arrays:
        _check_decoded(result, editor.backbone, final.latents[1], arrays)
    return result


def case_config(program: str, parameters: dict[str, Any], embeds_guidance: bool = False) -> EditConfig:
    """Translate a case's recorded parameters into the engine's settings. Where guidance is an input no program reads a negative prompt.

    Raises: KeyError for a program that there is no method for.
    """
    if program == "FlowEdit":
        return method_config(
            "flowedit",
            steps=parameters["T_steps"],
            skip=1 - parameters["n_max"] / parameters["T_steps"],
            source_guidance=parameters["src_guidance_scale"],
            target_guidance=parameters["tar_guidance_scale"],
            negative_prompt=None if embeds_guidance else parameters.get("negative_prompt") or None,
            flowedit={"draws": parameters["n_avg"]},
        )
    if program == "UniEdit-Flow":
        options = {"steps": parameters["step"], "skip": 1 - parameters["alpha"], "uniedit": {"strength": parameters["omega"]}}
        return method_config("uniedit-flow", **options)
    method = {"FireFlow": "fireflow", "RF-Solver-Edit": "rf-solver"}[program]
    method = SAMPLERS.get(parameters.get("sampling_strategy", ""), method)
    layers = {"first_layer": parameters["start_layer_index"], "last_layer": parameters["end_layer_index"]}
    return method_config(
        method,
        steps=parameters["num_steps"],
        source_guidance=parameters["inversion_guidance"],
        target_guidance=parameters["guidance"],
        midpoint={"steps": parameters["inject"], **layers},
    )


def prompts_of(parameters: dict[str, Any]) -> tuple[str, str]:
    """Return a case's source and target prompt, whatever its program calls them."""
    source = parameters.get("src_prompt", parameters.get("source_prompt"))
    target = next(parameters[key] for key in ("tar_prompt", "trg_prompt", "target_prompt") if key in parameters)
    return source, target


def _request(parameters: dict[str, Any], arrays: Arrays) -> EditRequest:
    source, target = prompts_of(parameters)
    return EditRequest(id="case", image=arrays["image"], source_prompt=source, target_prompt=target)


def _check_texts(result: Comparison, backbone: Backbone, parameters: dict[str, Any], arrays: Arrays) -> None:
    """Compare encoded texts at the recorded positions: rows end with source and target, before them may be the text of none."""
    own = backbone.encode_texts([parameters.get("negative_prompt") or "", *prompts_of(parameters)])
    if "text_context" in arrays:  # SDXL's
        own = own.rows(slice(-len(arrays["text_context"]), None))
        for name, recorded in (("text", arrays["text_context"]), ("text_embeds", arrays["text_embeds"])):
            result.check("text", max_error(own[name].numpy(), recorded), TEXT_TOLERANCE)
        return
    if "pooled_prompt_embeds" not in arrays:
        return
    own = own.rows(slice(-len(arrays["pooled_prompt_embeds"]), None))
    result.check("text", max_error(own["pooled"].numpy(), arrays["pooled_prompt_embeds"]), TEXT_TOLERANCE)
    positions = arrays["prompt_embeds_positions"]
    result.check("text", max_error(own["text"][:, positions].numpy(), arrays["prompt_embeds_patch"]), TEXT_TOLERANCE)


def _check_levels(result: Comparison, arrays: Arrays, schedule: Schedule, config: EditConfig) -> None:
    if "alphas_cumprod_edit" in arrays:
        signals = np.array([*(level.signal for level in schedule.levels), schedule.next_levels[-1].signal])
        recorded = np.append(arrays["alphas_cumprod_edit"], arrays["final_alpha_cumprod"])
        result.check("levels", max_error(signals, recorded), LEVEL_TOLERANCE)
        return
    own = np.array([*(level.sigma for level in schedule.levels), schedule.next_levels[-1].sigma])
    for name in ("sigmas", "edit_sigmas", "grid"):
        if name in arrays:
            result.check("levels", max_error(own, arrays[name][-len(own) :]), LEVEL_TOLERANCE)
    if "executed_first" in arrays:
        result.check("levels", float(abs(config.steps - len(schedule) - int(arrays["executed_first"]))), 0.0)


def _check_inversion(result: Comparison, editor: BatchEditor, batch: Any, schedule: Schedule, arrays: Arrays) -> None:
    """Compare the inverted latents that the edit starts from: the last of those recorded."""
    noise = RecordedNoise(torch.zeros(1), torch.zeros(1))
    track = begin_track(editor.backbone, batch.x0, batch.inversion, batch.free, editor.config, schedule, noise)
    assert "inverted_stats" not in arrays or int(arrays["inverted_steps"][-1]) + 1 == len(arrays["inverted_stats"])
    result.check("x_T", max_error(track.start[1, 0].numpy(), arrays["inverted"][-1]), result.tolerance)


def _check_decoded(result: Comparison, backbone: Backbone, latents: torch.Tensor, arrays: Arrays) -> None:
    """Compare the picture's corner, in levels: what is recorded is not clamped."""
    pictures, _ = backbone.decode_latents(latents)
    recorded = ((arrays["decoded"][0].transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255).round()
    side = recorded.shape[0]
    result.check("picture levels", float(np.abs(pictures[0, :side, :side].astype(int) - recorded).max()), 1.0)


def _replay_sampling(
    result: Comparison, parameters: dict[str, Any], arrays: Arrays, models: tuple[Networks, ModelFacts]
) -> None:
    """Sample a picture from the recorded noise with the engine's texts, levels, passes and steps; read its attention on the way."""
    config = method_config("flowedit", steps=parameters["steps"], skip=0.0)
    backbone = Backbone(models[0], config)
    x = torch.from_numpy(arrays["init_noise"])
    schedule = backbone.schedule(config, _sides(x))
    own = np.array([*(level.sigma for level in schedule.levels), schedule.next_levels[-1].sigma])
    if "sigmas" in arrays:
        result.check("levels", max_error(own, arrays["sigmas"]), LEVEL_TOLERANCE)
    embeds = backbone.family.kind.embeds_guidance
    scale, negative = (
        parameters.get("true_cfg_scale", 1.0) if embeds else parameters["guidance_scale"],
        parameters.get("negative_prompt"),
    )
    guided = scale > 1 and (not embeds or negative is not None)
    prompts = [parameters["prompt"]]
    names = ["prompt_embeds"]
    free, told = 0, -1
    if guided and embeds:  # its pipeline asks with the prompt first
        prompts.append(negative)
        names.append("negative_prompt_embeds")
        free, told = -1, 0
    elif guided:
        prompts.insert(0, negative or "")
        names.insert(0, "negative_prompt_embeds")
    conditioning = backbone.condition(backbone.encode_texts(prompts), None, backbone.canvas_of(x))
    for row, name in enumerate(names if "prompt_embeds" in arrays else ()):
        result.check("text", max_error(conditioning["text"][row].numpy(), arrays[name][0]), TEXT_TOLERANCE)
        pooled = arrays[name.replace("prompt", "pooled_prompt")][0]
        result.check("text", max_error(conditioning["pooled"][row].numpy(), pooled), TEXT_TOLERANCE)
    if embeds:
        conditioning = conditioning.having(guidance=torch.full((len(prompts),), float(parameters["guidance_scale"])))
    predictions = dict(zip(arrays.get("noise_pred_steps", ()), arrays.get("noise_pred", ()), strict=True))
    for i, timestep in enumerate(schedule.timesteps):
        rows = torch.cat([x] * len(prompts))
        if i == parameters.get("attention_step"):
            _check_maps(result, backbone, rows, torch.tensor(timestep), conditioning, told % len(prompts), parameters, arrays)
        predicted = backbone.predict(rows, torch.tensor(timestep), conditioning, None).float()
        if i in predictions:
            result.check("prediction", max_error(predicted.numpy(), predictions[i]), result.tolerance)
        velocity = predicted[told][None]
        if guided:
            velocity = predicted[free] + scale * (velocity - predicted[free])
        x = move(x, velocity, schedule.levels[i], schedule.next_levels[i])
        result.latents(i, x, arrays["latents"][i], "final" if i + 1 == len(schedule) else "latents")
    result.saved = {"final_latents": x[0].numpy()}
    if "decoded" in arrays:
        _check_decoded(result, backbone, x, arrays)


def _check_maps(
    result: Comparison,
    backbone: Backbone,
    rows: torch.Tensor,
    timestep: torch.Tensor,
    conditioning: Any,
    told: int,
    parameters: dict[str, Any],
    arrays: Arrays,
) -> None:
    """Read the maps of single blocks, all tokens apart, with the engine's recorder, in the row with text."""
    num_image, num_text = (rows.shape[-2] // 2) * (rows.shape[-1] // 2), conditioning["text"].shape[1]
    blocks = _block_names(backbone)

    def maps_of(layer: str) -> tuple[np.ndarray, np.ndarray]:
        own, words = frozenset({layer}), frozenset({layer} if layer.endswith(".attn.processor") else ())
        backbone.family.install(backbone.networks.denoiser, SiteChoice(frozenset(), frozenset(), own, words))
        self_sum, token_sum = torch.zeros(1, num_image, num_image), torch.zeros(1, num_image, num_text)
        row, no_words = torch.tensor([told]), torch.zeros(1, num_text)
        recorder = MapRecorder(row, None, no_words, None, self_sum, torch.zeros(1, num_image), token_sum)
        control = dataclasses.replace(plain_control(torch.zeros(len(rows))), recorder=recorder)
        backbone.predict(rows, timestep, conditioning, control)
        heads = int(backbone.networks.denoiser.get_submodule(layer.removesuffix(".processor")).heads)
        return (token_sum[0] / heads).numpy(), (self_sum[0] / heads).numpy()

    for block in parameters.get("attention_blocks", ()):
        text, own = maps_of(blocks[block])
        prefix = f"attn_block{block}"
        result.check("map", max_error(text[::8], arrays[f"{prefix}_image_text_mean"]), MAP_TOLERANCE)
        columns = arrays["attn_text_columns"]
        result.check("map", max_error(text[:, columns], arrays[f"{prefix}_image_text_words"]), MAP_TOLERANCE)
        mass = arrays[f"{prefix}_image_mass"][:, ::64, None]
        over_mass = (arrays[f"{prefix}_image_image_heads"] / mass).mean(axis=0)
        result.check("map", max_error(own[::64], over_mass), MAP_TOLERANCE)
        if f"attn2_block{block}_mean" in arrays:
            _, alone = maps_of(blocks[block].replace(".attn.", ".attn2."))
            result.check("map", max_error(alone[::4], arrays[f"attn2_block{block}_mean"]), MAP_TOLERANCE)
    backbone.family.install(backbone.networks.denoiser, backbone.sites)


def _block_names(backbone: Backbone) -> list[str]:
    """Return the processors of the joint attention of all blocks, in the order of a pass."""
    names = [name for name in backbone.networks.denoiser.attn_processors if name.endswith(".attn.processor")]
    return sorted(names, key=lambda name: (name.startswith("single"), int(name.split(".")[1])))


def _sides(x: torch.Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
