"""Replay the recorded runs on Stable Diffusion XL: text-to-image, ViMAEdit, LEDITS++, Prompt-to-Prompt."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.parity.comparison import Comparison, RecordedNoise, max_error
from tests.parity.flow_cases import replay_flow_case
from tests.parity.virtual_cases import CONCEPT_MASKS, leditspp_concepts
from tests.parity.words import recorded_words
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.engine.batch import EditBatch, StepState
from vimaedit.engine.editor import BatchEditor
from vimaedit.engine.loop import denoise
from vimaedit.engine.prepare import PreparedEdit
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.files import ModelFacts, model_facts, resolve_model
from vimaedit.models.networks import load_networks
from vimaedit.recipes import method_config
from vimaedit.step.rows import RowKind
from vimaedit.types import EditRequest

Arrays = dict[str, np.ndarray]

MARGIN = 2e-5  # of a mask pixel that may fall either way
MAP_TOLERANCE = 5e-6
CONDITION_TOLERANCE = 1e-5
PICTURE_TOLERANCE = 2e-3  # of the decoder's output
ADAPTERS = {"vit-h": "sdxl_models/ip-adapter_sdxl_vit-h.safetensors", "bigG": "sdxl_models/ip-adapter_sdxl.safetensors"}
SOLVERS = {"ddim": "ddim", "dpm": "dpmsolver++"}
CLOSED = {"self": 0.0, "text": 0.0, "image": 0.0}


@functools.cache
def load_sdxl(models: Path, layout: str | None) -> tuple[Networks, ModelFacts]:
    """Load the recorded model with an IP-Adapter of a layout, or without any."""
    adapter = None if layout is None else str(models / "ip_adapter" / ADAPTERS[layout])
    model = ModelConfig(model=str(models), ip_adapter=adapter, dtype="float32", device="cpu")
    files = resolve_model(model, image_guidance=layout is not None)
    return load_networks(files, model), model_facts(files)


def replay_sdxl_case(name: str, entry: dict[str, Any], folder: Path) -> Comparison:
    """Run one case through the engine, from what was fed to the recorded program, and compare everything that is recorded of it.

    Raises: KeyError for a program that there is no method for.
    """
    if entry["editor"] == "UniEdit-Flow":
        return replay_flow_case(name, entry, folder)
    with np.load(folder / entry.get("file", f"{name}.npz")) as file:
        arrays = {key: file[key] for key in file.files}
    parameters = {**entry.get("facts", {}), **entry["parameters"]}
    return REPLAYS[entry["editor"]](Comparison(name, margin=MARGIN), parameters, arrays, folder)


class Case:
    """One case on its way through the engine: `edit` and `batch` may be changed before `run`."""

    def __init__(self, folder: Path, layout: str | None, config: EditConfig, **options: Any) -> None:
        self.folder, self.config = folder, config
        networks, facts = load_sdxl(folder.parent / "models", layout)
        self.editor = BatchEditor(Backbone(dataclasses.replace(networks, **options), config), config, facts)

    def picture(self, name: str | None) -> np.ndarray:
        """Read an input picture as it lies, (height, width, 3); without a name any picture."""
        if name is None:
            return np.zeros((64, 64, 3), dtype=np.uint8)
        return np.asarray(Image.open(self.folder.parents[1] / "cases" / "inputs" / name).convert("RGB"))

    def prepare(self, picture: np.ndarray, source: str, target: str, words: Any = None, **options: Any) -> PreparedEdit:
        request = EditRequest(id="case", image=picture, source_prompt=source, target_prompt=target, **options)
        return self.editor.prepare(request, words)

    def on_recorded_canvas(self, result: Comparison, edit: PreparedEdit, arrays: Arrays) -> PreparedEdit:
        """Compare the canvas with the recorded one where that is the model's square, and go on with the recorded one."""
        if "image" not in arrays:
            return edit
        if arrays["image"].shape == edit.image.shape:
            result.check("canvas", max_error(edit.image.astype(int), arrays["image"].astype(int)), 0.0)
        return dataclasses.replace(edit, image=arrays["image"])

    def run(self, batch: EditBatch, noise: RecordedNoise) -> list[StepState]:
        states: list[StepState] = []
        denoise(self.editor.backbone, batch, self.config, noise, states.append)
        return states


def _text_to_image(result: Comparison, parameters: dict[str, Any], arrays: Arrays, folder: Path) -> Comparison:
    """Sample the target alone: both prompts are the same, the first latents are noise, nothing is taken over."""
    config = method_config(
        "ddim-p2p",
        start="noise",
        steps=parameters["steps"],
        source_guidance=1.0,
        target_guidance=max(1.0, parameters["guidance_scale"]),  # below it the pipeline does not guide
        negative_prompt=parameters.get("negative_prompt"),
        windows=CLOSED,
        blend="none",
        image_guidance=parameters.get("ip") is not None,
        image_order="conventional",
        image_strength=parameters.get("ip_scale") or 0.0,
    )
    assert parameters.get("scheduler", "DDIM").startswith("DDIM"), "another scheduler than DDIM"
    case = Case(folder, parameters.get("ip"), config)
    edit = case.prepare(case.picture(parameters.get("ip_image")), parameters["prompt"], parameters["prompt"])
    canvas = np.zeros((parameters["height"], parameters["width"], 3), dtype=np.uint8)
    batch = case.editor.encode([dataclasses.replace(edit, image=canvas)])
    states = case.run(batch, RecordedNoise(torch.from_numpy(arrays["init_noise"]), torch.zeros(1)))
    _compare_conditions(result, batch, arrays, [RowKind.TARGET_UNCOND, RowKind.TARGET_COND])
    return _finish(result, case, states, arrays, ["latents"])


def _vimaedit(result: Comparison, parameters: dict[str, Any], arrays: Arrays, folder: Path) -> Comparison:
    self_side, cross_side = (_share(side) for side in parameters["grounding_sides"])
    steps = parameters["steps"]
    windows = {
        "self": _window(parameters.get("self_steps"), steps, 0.6),
        "text": _window(parameters.get("cross_steps"), steps + 1, 0.4),
        "image": _window(parameters.get("image_steps"), steps, 0.1),
    }
    # Steps are counted from 0 there, and grounding begins with that for which i + 1 reaches the share.
    first = parameters.get("first_grounding_step")
    config = method_config(
        "vimaedit",
        steps=steps,
        windows=windows,
        grounding_start=_window(None if first is None else first + 1, steps, 0.2),
        solver=SOLVERS[parameters["scheduler"]],
        eta=parameters.get("eta", 1.0),
        negative_prompt=parameters.get("negative_prompt"),
        source_guidance=parameters["w_s"],
        target_guidance=parameters["w_t"],
        image_guidance=parameters.get("ip") is not None,
        image_strength=parameters.get("ip_scale") or 0.0,
        image_order=parameters["rows"],
        grounding_rounds=parameters["order"],
        grounding_decay=parameters["gamma"],
        grounding_sides={"self": self_side, "cross": cross_side},
        thresholds={"edit": parameters["mask_threshold"], "critical": parameters["edit_threshold"]},
        blend="given" if parameters.get("blend") else "none",
        missing_blend="ignore",
    )
    options = {"window_side": _share(parameters["window_side"]), "zeroes_nothing": parameters["uncond"] == "zeros"}
    case = Case(folder, parameters.get("ip"), config, **options)
    prompts = {"prompt_src": parameters["source"], "prompt_tar": parameters["target"]}
    words = recorded_words(prompts, arrays, case.editor.backbone.tokenizer)
    edit = case.prepare(case.picture(parameters["image"]), parameters["source"], parameters["target"], words)
    edit = case.on_recorded_canvas(result, edit, arrays)
    batch = dataclasses.replace(case.editor.encode([edit]), x0=torch.from_numpy(arrays["x_0"]))
    step_noise = arrays.get("variance_noise", np.zeros((steps, *arrays["x_0"].shape[1:]), dtype=np.float32))
    states = case.run(batch, RecordedNoise(torch.from_numpy(arrays["init_noise"]), torch.from_numpy(step_noise)[:, None]))
    _compare_conditions(result, batch, arrays, [RowKind.SOURCE_COND, RowKind.TARGET_UNCOND, RowKind.TARGET_COND])
    if "image_embeds_edit" in arrays:
        own = _of_kind(batch, "image", RowKind.TARGET_COND)
        result.check("embedding", max_error(own, arrays["image_embeds_edit"]), CONDITION_TOLERANCE)
    for i, state in enumerate(states if "mask" in arrays else ()):
        exists = bool(state.masks.exists[0])
        if "mask_defined" in arrays and exists != bool(arrays["mask_defined"][i]):
            result.misses.append(f"step {i}: {'a' if exists else 'no'} mask where it is the other way round")
        margins = arrays["union_margin"][i] if "union_margin" in arrays else (np.inf, np.inf)
        if exists:
            for mask, key, margin in zip((state.masks.edit, state.masks.critical), ("mask", "edit_mask"), margins, strict=True):
                result.mask(i, mask[0, 0].numpy(), arrays[key][i], float(margin))
        if "map_accum" in arrays and state.map_sum is not None and result.judges(i):
            recorded = arrays["map_accum"][i].reshape(2, -1)
            result.check("map", max_error(state.map_sum.numpy(), recorded) / max(1.0, float(recorded.max())), MAP_TOLERANCE)
    result.saved = {"mask": states[-1].masks.edit[0, 0].numpy()} if bool(states[-1].masks.exists[0]) else {}
    return _finish(result, case, states, arrays, ["latents_target", "latents_source"])


def _leditspp(result: Comparison, parameters: dict[str, Any], arrays: Arrays, folder: Path) -> Comparison:
    config = method_config(
        "leditspp",
        steps=parameters["num_inversion_steps"],
        skip=parameters["skip"],
        source_guidance=parameters.get("source_guidance_scale", 3.5) if parameters["source_prompt"] else 0.0,
        negative_prompt=parameters.get("negative_prompt"),
        concepts={
            "mask": CONCEPT_MASKS[bool(parameters["use_cross_attn_mask"]), bool(parameters["use_intersect_mask"])],
            "noiseless": parameters.get("num_zero_noise_steps", 3),
        },
        grounding="concepts" if "user_mask" not in arrays else "given",
        quirks=["leditspp-sizes", *(["leditspp-tokens"] if parameters.get("token_count", "padded") == "padded" else [])],
    )
    case = Case(folder, None, config)
    prompts = parameters["editing_prompt"] if isinstance(parameters["editing_prompt"], list) else [parameters["editing_prompt"]]
    picture = case.picture(parameters["image"])
    given = {"given_mask": np.ones(picture.shape[:2], dtype=bool)} if "user_mask" in arrays else {}
    edit = case.prepare(picture, parameters["source_prompt"] or prompts[0], prompts[0], **given)
    edit = case.on_recorded_canvas(result, edit, arrays)
    edit = dataclasses.replace(edit, concepts=leditspp_concepts(case.editor, config, parameters, prompts))
    batch = dataclasses.replace(case.editor.encode([edit]), x0=torch.from_numpy(arrays["x_0"]))
    if "user_mask" in arrays:
        assert batch.concepts is not None
        user_mask = torch.from_numpy(arrays["user_mask"]).float().reshape(1, 1, *batch.x0.shape[-2:])
        batch = dataclasses.replace(batch, concepts=dataclasses.replace(batch.concepts, user_mask=user_mask))
    states = case.run(batch, RecordedNoise(torch.zeros(1), torch.from_numpy(arrays["noise"])[:, None]))
    kinds = [kind for kind in batch.layout.kinds if kind.conditional and kind.branch == RowKind.TARGET_COND.branch]
    _compare_conditions(result, batch, arrays, [RowKind.TARGET_UNCOND, *kinds])
    masks = np.unpackbits(arrays["masks_packed"], axis=-1).astype(bool) if "masks_packed" in arrays else None
    for i, state in enumerate(states if masks is not None else ()):
        recorded = [arrays[key][i] for key in ("quantile_margin", "cross_quantile_margin") if key in arrays]
        margins = np.concatenate([*recorded, [np.inf]])
        assert state.masks.concepts is not None and masks is not None
        finite = margins[np.isfinite(margins)]
        result.mask(i, state.masks.concepts[:, 0, 0].numpy(), masks[i], float(finite.min()) if len(finite) else None)
    assert states[-1].masks.concepts is not None
    result.saved = {"mask": states[-1].masks.concepts[:, 0, 0].numpy() > 0}
    return _finish(result, case, states, arrays, ["latents"])


def _prompt_to_prompt(result: Comparison, parameters: dict[str, Any], arrays: Arrays, folder: Path) -> Comparison:
    """Sample both prompts from the same noise."""
    (source, target), steps = parameters["prompts"], parameters["steps"]
    first, last = arrays["self_replace_range"].tolist()
    assert first == 0, "a window of self-attention that begins later"
    blends = "blend_token_mask" in arrays
    config = method_config(
        "ddim-p2p",
        start="noise",
        steps=steps,
        source_guidance=parameters["guidance_scale"],
        target_guidance=parameters["guidance_scale"],
        negative_prompt=parameters.get("negative_prompt"),
        windows={"self": last / steps, "text": 0.0, "image": 0.0},
        blend="given" if blends else "none",
        missing_blend="ignore",
        blend_weight=1.0,
        thresholds={"edit": parameters.get("blend_threshold") or 0.3},
        grounding_start=0.0,
        quirks=["absent-words", "middle-maps"],
    )
    case = Case(folder, None, config)
    words = recorded_words({"prompt_src": source, "prompt_tar": target}, arrays, case.editor.backbone.tokenizer)
    # How many steps each token of the target follows the source's.
    words = dataclasses.replace(words, text_shares=_shares(arrays["cross_replace_alpha"]))
    edit = case.prepare(case.picture(None), source, target, words)
    h, w = (side * case.editor.backbone.vae_factor for side in arrays["init_noise"].shape[-2:])
    batch = case.editor.encode([dataclasses.replace(edit, image=np.zeros((h, w, 3), dtype=np.uint8))])
    states = case.run(batch, RecordedNoise(torch.from_numpy(arrays["init_noise"]), torch.zeros(1)))
    kinds = [RowKind.SOURCE_UNCOND, RowKind.TARGET_UNCOND, RowKind.SOURCE_COND, RowKind.TARGET_COND]
    _compare_conditions(result, batch, arrays, kinds)
    for i, state in enumerate(states if "mask" in arrays else ()):
        margin = float(arrays["mask_margin"][i]) if "mask_margin" in arrays else None
        result.mask(i, state.masks.edit[0, 0].numpy(), arrays["mask"][i], margin)
        if "blend_map_accum" in arrays and state.map_sum is not None and result.judges(i):
            recorded = arrays["blend_map_accum"][i].reshape(2, -1)
            result.check("map", max_error(state.map_sum.numpy(), recorded) / max(1.0, float(recorded.max())), MAP_TOLERANCE)
    result.saved = {"mask": states[-1].masks.edit[0, 0].numpy()} if blends else {}
    if "latents" in arrays:
        arrays |= {"latents_target": arrays["latents"][:, 1], "latents_source": arrays["latents"][:, 0]}
    return _finish(result, case, states, arrays, ["latents_target", "latents_source"])


REPLAYS: dict[str, Callable[..., Comparison]] = {
    "text-to-image": _text_to_image,
    "ViMAEdit": _vimaedit,
    "LEDITS++": _leditspp,
    "prompt-to-prompt": _prompt_to_prompt,
}


def _shares(open_ST: np.ndarray) -> np.ndarray:
    """Return how long each token's window is open, (T,), of a table of N + 1 steps and T tokens, 1 where it is."""
    ends = (open_ST > 0).sum(axis=0)
    steps = np.arange(len(open_ST))[:, None]
    assert ((steps < ends) == (open_ST > 0)).all() and set(np.unique(open_ST)) <= {0, 1}, "a window that opens later, or half"
    return np.minimum(1.0, (ends + 0.5) / len(open_ST))  # of the end, int(share (N + 1)) is read


def _window(count: int | None, steps: int, default: float) -> float:
    """Return the share of steps whose whole part is `count`."""
    return default if count is None else min(1.0, (count + 0.5) / steps)


def _share(side: str) -> float:
    over, under = side.split("/")
    return int(over) / int(under)


def _of_kind(batch: EditBatch, name: str, kind: RowKind) -> np.ndarray:
    own: np.ndarray = batch.conditioning[name][batch.layout.block(kind)].numpy()
    return own


def _compare_conditions(result: Comparison, batch: EditBatch, arrays: Arrays, kinds: list[RowKind]) -> None:
    """Compare what the rows of some kinds are conditioned on with what the recorded rows are, where those are as many: their order
    is known then."""
    names = {"text_context": "text", "text_embeds": "text_embeds", "time_ids": "time_ids", "unet_image_embeds": "image"}
    for key, name in names.items():
        if key in arrays and name in batch.conditioning.tensors:
            own = np.concatenate([_of_kind(batch, name, kind) for kind in kinds])
            if len(own) == len(arrays[key]):
                result.check(name, max_error(own, arrays[key]), CONDITION_TOLERANCE)


def _finish(result: Comparison, case: Case, states: list[StepState], arrays: Arrays, recorded: list[str]) -> Comparison:
    """Compare grid, latents (target, then source) and decoded picture, and keep the target's last latents."""
    if "timesteps" in arrays:
        assert [state.timestep for state in states] == arrays["timesteps"].tolist(), "another grid"
    for branch, key in zip((1, 0), recorded, strict=False):
        for step, latents in zip(arrays.get(f"{key}_steps", range(len(states))), arrays.get(key, ()), strict=key in arrays):
            result.latents(int(step), states[int(step)].latents[branch, 0], latents)
    final = states[-1].latents[1]
    for key in ("decoded", "decoded_target"):
        if key in arrays and result.undecided is None:
            vae = case.editor.backbone.networks.vae
            picture = vae.decode(final / vae.config.scaling_factor).sample.numpy()
            h, w = arrays[key].shape[-2:]
            result.check("picture", max_error(picture[..., :h, :w], arrays[key]), PICTURE_TOLERANCE)
    result.saved = {"final_latents": final[0].numpy(), **result.saved}
    return result
