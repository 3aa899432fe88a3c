"""Replay recorded runs of the reference program through the public engine and compare.

`python -m tests.parity.replay --oracle DIR [--only cases|baselines|sdxl|sd3|flux|instruct] [--save OUT]` prints a table and exits non-zero on a miss, a
case that cannot be read, or one that there is no method for. The recorded x_0, noise, word masks and alignments are fed in; encoding, words and alignment have
tests of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.parity.comparison import (
    BASELINE_MAP_TOLERANCE,
    BASELINE_MARGIN,
    BASELINE_TOLERANCE,
    LATENT_TOLERANCE,
    Comparison,
    RecordedNoise,
    max_error,
    print_row,
)
from tests.parity.dpl_case import replay_dpl_case
from tests.parity.flow_cases import replay_flow_case
from tests.parity.harness_cases import replay_harness_case
from tests.parity.instruct_cases import replay_instruct_case
from tests.parity.sdxl_cases import replay_sdxl_case
from tests.parity.virtual_cases import replay_infedit_case, replay_leditspp_case
from tests.parity.words import recorded_words
from tests.timing.process import cpu_seconds, forget_peak, give_back_memory, peak_mb, resident_mb
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.engine.batch import StepState
from vimaedit.engine.editor import BatchEditor
from vimaedit.engine.loop import denoise
from vimaedit.engine.prepare import PreparedEdit
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.files import model_facts, resolve_model
from vimaedit.models.networks import load_networks
from vimaedit.recipes import method_config
from vimaedit.step.rows import RowKind
from vimaedit.step.solvers import add_noise, method_schedule
from vimaedit.types import EditRequest

Models = tuple[Networks, Any]

EMBEDDING_TOLERANCE = 1e-5
START_TOLERANCE = 1e-5
MAP_TOLERANCE = 1e-5  # largest difference over largest value
LOCATEDIT_TOLERANCE = 2e-3  # the strong words amplify rounding
SOLVERS = {"ddim": "ddim", "dpmsolver++": "dpmsolver++"}
OWN_EDITORS = ("ViMAEdit", "LOCATEdit")
OTHER_EDITORS = {
    "InfEdit": replay_infedit_case,
    "LEDITS++": replay_leditspp_case,
    "DPL (token optimisation only)": replay_dpl_case,
}


# Recorded runs of a family of models, in `DIR/<family>/cases`, with models of their own.
FAMILIES: dict[str, Callable[[str, dict[str, Any], Path], Comparison]] = {
    "sdxl": replay_sdxl_case,
    "sd3": replay_flow_case,
    "flux": replay_flow_case,
    "instruct": replay_instruct_case,
}


def load_models(oracle: Path, *, image_guidance: bool = True) -> tuple[Networks, Any]:
    """Load the recorded models through the project's own loading code."""
    model = ModelConfig(model=str(oracle / "models"), dtype="float32", device="cpu")
    files = resolve_model(model, image_guidance=image_guidance)
    return load_networks(files, model), model_facts(files)


def case_config(parameters: dict[str, Any], method: str) -> EditConfig:
    """Translate a case's recorded parameters into the engine's settings."""
    edit, critical = parameters["lb_th"]
    options: dict[str, Any] = {
        "steps": parameters["num_inference_steps"],
        "solver": SOLVERS[parameters["scheduler"]],
        "eta": parameters.get("eta", 1.0),
        "grounding_start": parameters["start_blend"],
        "thresholds": {"edit": edit, "critical": critical},
        "windows": {
            "self": parameters["self_replace_steps"],
            "text": parameters["cross_text_replace_steps"],
            "image": parameters["cross_image_replace_steps"],
        },
        "image_strength": parameters["ip_adapter_scale"],
        "source_guidance": parameters["source_guidance_scale"],
        "target_guidance": parameters["target_guidance_scale"],
        "blend": "given" if parameters["blend_words"] else "none",
        "missing_blend": "ignore",
    }
    if method == "locatedit":
        names = {"alpha": "laplacian_alpha", "tau": "laplacian_tau", "weight": "laplacian_lambda"}
        options["laplacian"] = {key: parameters[name] for key, name in names.items()}
        options |= {"direction_kept": parameters["percentile"], "quirks": ["locatedit-variance"]}
    else:
        options |= {"grounding_rounds": parameters["lb_order"], "grounding_decay": parameters["gamma"]}
    return method_config(method, **options)


def prepare_case(editor: BatchEditor, parameters: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path) -> PreparedEdit:
    """Build the case's request from its input picture and prompts, with the recorded words."""
    picture = np.asarray(Image.open(folder / parameters["image"]).convert("RGB"))
    request = EditRequest(
        id="case", image=picture, source_prompt=parameters["prompt_src"], target_prompt=parameters["prompt_tar"]
    )
    return editor.prepare(request, recorded_words(parameters, arrays, editor.backbone.tokenizer))


def replay_case(name: str, entry: dict[str, Any], folder: Path, models: tuple[Networks, Any]) -> Comparison:
    """Run one case through the engine and compare everything that is recorded of it."""
    with np.load(folder / entry.get("file", f"{name}.npz")) as file:
        arrays = {key: file[key] for key in file.files}
    method = "locatedit" if entry.get("editor") == "LOCATEdit" else "vimaedit"
    config = case_config(entry["parameters"], method)
    networks, facts = models
    editor = BatchEditor(Backbone(networks, config), config, facts)
    edit = prepare_case(editor, entry["parameters"], arrays, folder)
    batch = dataclasses.replace(editor.encode([edit]), x0=torch.from_numpy(arrays["x_0"]))

    init_noise = torch.from_numpy(arrays["init_noise"])
    step_noise = arrays.get("variance_noise", np.zeros((config.steps, *arrays["init_noise"].shape[1:]), np.float32))
    noise = RecordedNoise(init_noise, torch.from_numpy(step_noise)[:, None])
    states: list[StepState] = []
    final = denoise(editor.backbone, batch, config, noise, states.append)

    result = Comparison(name)
    if folder.name == "baselines":
        tolerance = LOCATEDIT_TOLERANCE if method == "locatedit" else BASELINE_TOLERANCE
        result = Comparison(name, tolerance=tolerance, margin=BASELINE_MARGIN)
    estimated = batch.conditioning["image"][batch.layout.block(RowKind.TARGET_COND)][0, 0].numpy()
    if "image_embeds_edit" in arrays:
        result.check("embedding", max_error(estimated, arrays["image_embeds_edit"]), EMBEDDING_TOLERANCE)
    x_T = _start_latents(arrays, batch.x0, init_noise, states, editor)
    if "x_T" in arrays:
        result.check("x_T", max_error(x_T, arrays["x_T"]), START_TOLERANCE)
    if "image" in arrays:
        result.check("canvas", max_error(edit.image.astype(int), arrays["image"].astype(int)), 0.0)
    _compare_masks(result, arrays, states)
    _compare_latents(result, arrays, states)
    _compare_picture(result, arrays, editor.backbone.decode_latents(final.latents[1])[0][0])
    result.saved = {
        "final_latents": final.latents[:, 0].numpy(),
        "critical_mask": np.stack([(s.masks.critical[0, 0] & s.masks.exists[0]).numpy() for s in states]),
        "image_embeds_edit": estimated,
        "x_T": x_T,
    }
    if folder.name == "baselines":
        result.saved = {"final_target": final.latents[1, 0].numpy()}
    return result


def _start_latents(
    arrays: Any, x0: torch.Tensor, noise: torch.Tensor, states: list[StepState], editor: BatchEditor
) -> np.ndarray:
    schedule = method_schedule(editor.config, editor.backbone.alphas_cumprod)
    assert [s.timestep for s in states] == list(schedule.timesteps) == arrays["timesteps"].tolist()
    return add_noise(x0, noise, schedule.levels[0]).numpy()


def _compare_masks(result: Comparison, arrays: dict[str, np.ndarray], states: list[StepState]) -> None:
    if "mask_defined" not in arrays or not arrays["mask_defined"].any():
        return
    # The union is what acts: where its margin is recorded it decides.
    margins = arrays.get("union_margin", arrays.get("mask_margin"))
    for i, state in enumerate(states):
        if not arrays["mask_defined"][i]:
            if bool(state.masks.exists.any()):
                result.misses.append(f"step {i}: a mask where none is recorded")
            continue
        assert state.map_sum is not None
        margin = None if margins is None else float(np.nanmin(margins[i]))
        if "mask_th0" in arrays:
            result.mask(i, _own_mask(state.masks.edit, state), arrays["mask_th0"][i].any(axis=0), margin)
        if "edit_mask_th1" in arrays:
            result.mask(i, _own_mask(state.masks.critical, state), arrays["edit_mask_th1"][i], margin)
        if "map_accum" in arrays and result.judges(i):
            recorded = arrays["map_accum"][i].reshape(2, -1)
            error = max_error(state.map_sum.numpy(), recorded) / max(float(np.abs(recorded).max()), 1e-12)
            result.check("map", error, MAP_TOLERANCE if result.tolerance == LATENT_TOLERANCE else BASELINE_MAP_TOLERANCE)


def _own_mask(mask: torch.Tensor, state: StepState) -> np.ndarray:
    own: np.ndarray = (mask[0, 0] & state.masks.exists[0]).numpy()
    return own


def _compare_latents(result: Comparison, arrays: dict[str, np.ndarray], states: list[StepState]) -> None:
    for branch, name in enumerate(("source", "target")):
        for step, recorded in zip(arrays.get(f"latents_{name}_steps", ()), arrays.get(f"latents_{name}", ()), strict=True):
            result.latents(int(step), states[step].latents[branch, 0], recorded)
    for key, branches in (("final_latents", slice(0, 2)), ("final_latents_target", slice(1, 2))):
        if key in arrays:
            result.latents(len(states) - 1, states[-1].latents[branches, 0], arrays[key], "final")


def _compare_picture(result: Comparison, arrays: dict[str, np.ndarray], picture: np.ndarray) -> None:
    if result.undecided is not None:
        return
    for key, window in (("final_image_target", slice(None)), ("final_image_target_crop", slice(192, 320))):
        if key in arrays:
            # The recorded program truncates, this one rounds: up to one level, and one more where rounding errors meet an edge.
            levels = np.abs(picture[window, window].astype(int) - arrays[key].astype(int))
            result.check("picture levels", float(levels.max()), 2.0)
            result.check("picture share > 1", float((levels > 1).mean()), 0.01)


def replay_all(oracle: Path, only: str | None, save: Path | None) -> list[Comparison | tuple[str, str]]:
    """Replay every case and save what it came to; a tuple (name, reason) stands for one that was not replayed."""
    torch.set_grad_enabled(False)
    lists = [oracle / "cases" / "cases.json"] if only in (None, "cases") else []
    lists += sorted((oracle / "baselines").glob("cases_*.json")) if only in (None, "baselines") else []
    with_adapter = without_adapter = load_models(oracle) if lists else None
    if len(lists) > 1 or only == "baselines":
        without_adapter = load_models(oracle, image_guidance=False)
    families = [path for family in FAMILIES if (path := oracle / family / "cases" / "cases.json").is_file()]
    lists += [path for path in families if only in (None, path.parent.parent.name)]
    outcomes: list[Comparison | tuple[str, str]] = []
    for path in lists:
        for name, entry in json.loads(path.read_text())["cases"].items():
            held, before = _held_mb(), cpu_seconds()
            outcome = _replay(name, entry, path.parent, with_adapter, without_adapter)
            if isinstance(outcome, Comparison):  # reading the case and comparing included
                outcome.cpu_s = cpu_seconds() - before
                outcome.memory_mb = math.nan if held is None else peak_mb() - held
            outcomes.append(outcome)
            print_row(outcome)
            if save is not None and isinstance(outcome, Comparison) and outcome.saved:
                np.savez_compressed(save / f"{name}.npz", **outcome.saved)
    return outcomes


def _held_mb() -> float | None:
    """Return the memory held now, and let the peak begin anew; None where the system does not let one."""
    give_back_memory()
    try:
        forget_peak()
        return resident_mb()
    except OSError:
        return None


def _replay(
    name: str, entry: dict[str, Any], folder: Path, with_adapter: Models | None, without_adapter: Models | None
) -> Comparison | tuple[str, str]:
    """Replay a case by the program that it is a recording of; whatever it does, the other cases are judged."""
    family = FAMILIES.get(folder.parent.name)
    editor = entry.get("editor", "ViMAEdit" if folder.name == "cases" else "")
    try:
        if family is not None:
            return family(name, entry, folder)
        assert with_adapter is not None and without_adapter is not None
        if editor in OWN_EDITORS:
            return replay_case(name, entry, folder, with_adapter)
        if editor in OTHER_EDITORS:
            return OTHER_EDITORS[editor](name, entry, folder, without_adapter)
        if not editor:
            return replay_harness_case(name, entry, folder, without_adapter)
        return Comparison(name, misses=[f"there is no method for {editor}"])
    except Exception as error:
        return Comparison(name, misses=[f"cannot be read: {type(error).__name__}: {error}"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--oracle", type=Path, required=True, help="folder with cases/ and models/")
    parser.add_argument("--only", choices=("cases", "baselines", *FAMILIES))
    parser.add_argument("--save", type=Path, help="write <case>.npz files here")
    args = parser.parse_args(argv)
    print(
        f"{'case':32s} {'latents':>9s} {'masks':>6s} {'embedding':>9s} {'x_T':>9s} {'map':>9s} {'CPU s':>6s} {'MB':>6s}  verdict",
        flush=True,
    )
    if args.save is not None:
        args.save.mkdir(parents=True, exist_ok=True)
    outcomes = replay_all(args.oracle, args.only, args.save)
    compared = [o for o in outcomes if isinstance(o, Comparison)]
    missed = [o.case for o in compared if o.misses]
    print(f"{len(compared) - len(missed)} of {len(compared)} cases hold" + (f"; missed: {', '.join(missed)}" if missed else ""))
    return 1 if missed or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
