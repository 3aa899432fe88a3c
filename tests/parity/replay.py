"""Replay recorded runs of the reference program through the public engine and compare.

`python -m tests.parity.replay --oracle DIR [--only cases|baselines] [--save OUT]` prints a table and exits non-zero on a miss or
a case that cannot be read. The recorded x_0, noise, word masks and alignments are fed in; encoding, words and alignment have
tests of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vimaedit.backbone import Backbone, Networks
from vimaedit.config import EditConfig, ModelConfig, Thresholds, Windows
from vimaedit.loading import model_facts, resolve_model
from vimaedit.loop import StepState, denoise
from vimaedit.methods.vimaedit import PreparedEdit, ViMAEditor
from vimaedit.networks import load_networks
from vimaedit.noise import START
from vimaedit.rows import RowKind
from vimaedit.types import EditRequest
from vimaedit.words import WordPlan, fold_refine, fold_replace, pad_ids, token_spans

EMBEDDING_TOLERANCE = 1e-5
START_TOLERANCE = 1e-5
MAP_TOLERANCE = 1e-5  # largest difference over largest value
LATENT_TOLERANCE = 5e-4
DECIDED_MARGIN = 1e-5  # a mask pixel whose recorded map is nearer to its threshold may fall either way
SOLVERS = {"ddim": "ddim", "dpmsolver++": "dpmsolver++"}


@dataclass
class Comparison:
    """What one case came to. `misses` empty: it holds; `undecided` names the step from which it cannot be judged."""

    case: str
    errors: dict[str, float] = field(default_factory=dict)
    mask_pixels: int = 0
    undecided: int | None = None
    misses: list[str] = field(default_factory=list)
    saved: dict[str, np.ndarray] = field(default_factory=dict)

    def check(self, name: str, error: float, tolerance: float) -> None:
        self.errors[name] = max(error, self.errors.get(name, 0.0))
        if not error <= tolerance:
            self.misses.append(f"{name} {error:.2e} > {tolerance:.0e}")


class RecordedNoise:
    """The recorded noise as a `NoiseSource`. Shapes: `start_BChw` (B, C, h, w); `steps_SBChw` (S, B, C, h, w)."""

    def __init__(self, start_BChw: torch.Tensor, steps_SBChw: torch.Tensor) -> None:
        self.start_BChw = start_BChw
        self.steps_SBChw = steps_SBChw

    def draw(self, step: int) -> torch.Tensor:
        return self.start_BChw if step == START else self.steps_SBChw[step]


def load_models(oracle: Path) -> tuple[Networks, Any]:
    """Load the recorded models through the project's own loading code."""
    model = ModelConfig(model=str(oracle / "models"), dtype="float32", device="cpu")
    files = resolve_model(model)
    return load_networks(files, model), model_facts(files)


def case_config(parameters: dict[str, Any]) -> EditConfig:
    """Translate a case's recorded parameters into the engine's settings."""
    edit, critical = parameters["lb_th"]
    return EditConfig(
        steps=parameters["num_inference_steps"],
        solver=SOLVERS[parameters["scheduler"]],
        eta=parameters.get("eta", 1.0),
        grounding_rounds=parameters["lb_order"],
        grounding_decay=parameters["gamma"],
        grounding_start=parameters["start_blend"],
        thresholds=Thresholds(edit=edit, critical=critical),
        windows=Windows(
            self=parameters["self_replace_steps"],
            text=parameters["cross_text_replace_steps"],
            image=parameters["cross_image_replace_steps"],
        ),
        image_strength=parameters["ip_adapter_scale"],
        source_guidance=parameters["source_guidance_scale"],
        target_guidance=parameters["target_guidance_scale"],
        blend="given" if parameters["blend_words"] else "none",
        missing_blend="ignore",
    )


def recorded_words(parameters: dict[str, Any], arrays: dict[str, np.ndarray], tokenizer: Any) -> WordPlan:
    """Build the word plan from the recorded alignment, equalizer and word masks alone."""
    source_ids, target_ids = (
        pad_ids(token_spans(parameters[key], tokenizer).ids, tokenizer) for key in ("prompt_src", "prompt_tar")
    )
    length = len(source_ids)
    equalizer = arrays["equalizer"].reshape(-1) if "equalizer" in arrays else np.ones(length)
    mapper = arrays["mapper"]
    if mapper.ndim == 2:
        fold, keep = fold_replace(mapper, equalizer)
    else:
        fold, keep = fold_refine(mapper, arrays["mapper_alphas"], equalizer)
    mask = arrays.get("blend_token_mask", np.zeros((2, length))).astype(np.float32)
    return WordPlan(
        source_ids=source_ids, target_ids=target_ids, fold=fold, keep=keep, word_mask=mask, blend_used=(), warnings=()
    )


def prepare_case(editor: ViMAEditor, parameters: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path) -> PreparedEdit:
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
    config = case_config(entry["parameters"])
    networks, facts = models
    editor = ViMAEditor(Backbone(networks, config), config, facts)
    edit = prepare_case(editor, entry["parameters"], arrays, folder)
    batch = dataclasses.replace(editor.encode([edit]), x0=torch.from_numpy(arrays["x_0"]))

    init_noise = torch.from_numpy(arrays["init_noise"])
    step_noise = arrays.get("variance_noise", np.zeros((config.steps, *arrays["init_noise"].shape[1:]), np.float32))
    noise = RecordedNoise(init_noise, torch.from_numpy(step_noise)[:, None])
    states: list[StepState] = []
    final = denoise(editor.backbone, batch, config, noise, states.append)

    result = Comparison(name)
    assert batch.conditioning.image is not None
    estimated = batch.conditioning.image[batch.layout.block(RowKind.TARGET_COND)][0, 0].numpy()
    if "image_embeds_edit" in arrays:
        result.check("embedding", _max_error(estimated, arrays["image_embeds_edit"]), EMBEDDING_TOLERANCE)
    x_T = _start_latents(arrays, batch.x0, init_noise, states, editor)
    if "x_T" in arrays:
        result.check("x_T", _max_error(x_T, arrays["x_T"]), START_TOLERANCE)
    if "image" in arrays:
        result.check("canvas", _max_error(edit.image.astype(int), arrays["image"].astype(int)), 0.0)
    _compare_masks(result, arrays, states)
    _compare_latents(result, arrays, states)
    _compare_picture(result, arrays, editor.backbone.decode_latents(final.latents[1])[0][0])
    result.saved = {
        "final_latents": final.latents[:, 0].numpy(),
        "critical_mask": np.stack([(s.masks.critical[0, 0] & s.masks.exists[0]).numpy() for s in states]),
        "image_embeds_edit": estimated,
        "x_T": x_T,
    }
    return result


def _start_latents(
    arrays: Any, x0: torch.Tensor, noise: torch.Tensor, states: list[StepState], editor: ViMAEditor
) -> np.ndarray:
    from vimaedit.solvers import add_noise, build_schedule

    schedule = build_schedule(editor.config.solver, editor.backbone.alphas_cumprod, editor.config.steps)
    assert [s.timestep for s in states] == list(schedule.timesteps) == arrays["timesteps"].tolist()
    return add_noise(x0, noise, schedule.alphas[0]).numpy()


def _compare_masks(result: Comparison, arrays: dict[str, np.ndarray], states: list[StepState]) -> None:
    if "mask_defined" not in arrays or not arrays["mask_defined"].any():
        return
    margins = arrays.get("mask_margin")
    for i, state in enumerate(states):
        if not arrays["mask_defined"][i]:
            if bool(state.masks.exists.any()):
                result.misses.append(f"step {i}: a mask where none is recorded")
            continue
        assert state.map_sum is not None
        different = 0
        if "mask_th0" in arrays:
            different += _different(state.masks.edit, state, arrays["mask_th0"][i].any(axis=0))
        if "edit_mask_th1" in arrays:
            different += _different(state.masks.critical, state, arrays["edit_mask_th1"][i])
        if different and margins is not None and np.nanmin(margins[i]) < DECIDED_MARGIN:
            result.undecided = i
            return
        if "map_accum" in arrays:
            recorded = arrays["map_accum"][i].reshape(2, -1)
            error = _max_error(state.map_sum.numpy(), recorded) / max(float(np.abs(recorded).max()), 1e-12)
            result.check("map", error, MAP_TOLERANCE)
        result.mask_pixels += different
    if result.mask_pixels:
        result.misses.append(f"{result.mask_pixels} mask pixels different")


def _different(mask: torch.Tensor, state: StepState, recorded: np.ndarray) -> int:
    own = (mask[0, 0] & state.masks.exists[0]).numpy()
    return int((own != recorded.astype(bool)).sum())


def _compare_latents(result: Comparison, arrays: dict[str, np.ndarray], states: list[StepState]) -> None:
    for branch, name in enumerate(("source", "target")):
        if f"latents_{name}" not in arrays:
            continue
        for step, recorded in zip(arrays[f"latents_{name}_steps"], arrays[f"latents_{name}"], strict=True):
            if result.undecided is None or step < result.undecided:
                result.check("latents", _max_error(states[step].latents[branch, 0].numpy(), recorded), LATENT_TOLERANCE)
    if result.undecided is None:
        for key, branches in (("final_latents", slice(0, 2)), ("final_latents_target", slice(1, 2))):
            if key in arrays:
                own = states[-1].latents[branches, 0].numpy()
                result.check("final", _max_error(own, arrays[key].reshape(own.shape)), LATENT_TOLERANCE)


def _compare_picture(result: Comparison, arrays: dict[str, np.ndarray], picture: np.ndarray) -> None:
    if result.undecided is not None:
        return
    for key, window in (("final_image_target", slice(None)), ("final_image_target_crop", slice(192, 320))):
        if key in arrays:
            # The recorded program truncates, this one rounds: up to one level, and one more where rounding errors meet an edge.
            levels = np.abs(picture[window, window].astype(int) - arrays[key].astype(int))
            result.check("picture levels", float(levels.max()), 2.0)
            result.check("picture share > 1", float((levels > 1).mean()), 0.01)


def _max_error(own: np.ndarray, recorded: np.ndarray) -> float:
    return float(np.abs(own.reshape(recorded.shape).astype(np.float64) - recorded).max())


def replay_all(oracle: Path, only: str | None, save: Path | None) -> list[Comparison | tuple[str, str]]:
    """Replay every case and save what it came to; a tuple (name, reason) stands for one that was not replayed."""
    torch.set_grad_enabled(False)
    models = load_models(oracle)
    outcomes: list[Comparison | tuple[str, str]] = []
    lists = [] if only == "baselines" else [oracle / "cases" / "cases.json"]
    if only != "cases":
        lists += sorted((oracle / "baselines").glob("cases_*.json"))
    for path in lists:
        for name, entry in json.loads(path.read_text())["cases"].items():
            own = path.parent.name == "cases" or entry.get("editor") == "ViMAEdit"
            if not own:
                editor = entry.get("editor") or entry.get("program", "its editor")
                outcomes.append((name, f"not replayed: {editor} is not built yet"))
                continue
            try:
                outcomes.append(replay_case(name, entry, path.parent, models))
            except Exception as error:  # whatever one case does, the others are judged
                outcomes.append(Comparison(name, misses=[f"cannot be read: {type(error).__name__}: {error}"]))
            print_row(outcomes[-1])
            if save is not None and outcomes[-1].saved:
                np.savez_compressed(save / f"{name}.npz", **outcomes[-1].saved)
    return outcomes


def print_row(outcome: Comparison | tuple[str, str]) -> None:
    """Print one case's line of the table."""
    if isinstance(outcome, tuple):
        print(f"{outcome[0]:32s} {outcome[1]}", flush=True)
        return
    latent = max(outcome.errors.get("latents", float("nan")), outcome.errors.get("final", 0.0))
    verdict = "MISS: " + "; ".join(outcome.misses) if outcome.misses else "holds"
    if outcome.undecided is not None:
        verdict += f", undecided from step {outcome.undecided} (margin under {DECIDED_MARGIN:.0e})"
    numbers = [f"{outcome.errors.get(key, float('nan')):9.1e}" for key in ("embedding", "x_T", "map")]
    print(f"{outcome.case:32s} {latent:9.1e} {outcome.mask_pixels:6d} {' '.join(numbers)}  {verdict}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--oracle", type=Path, required=True, help="folder with cases/ and models/")
    parser.add_argument("--only", choices=("cases", "baselines"))
    parser.add_argument("--save", type=Path, help="write <case>.npz files here")
    args = parser.parse_args(argv)
    print(f"{'case':32s} {'latents':>9s} {'masks':>6s} {'embedding':>9s} {'x_T':>9s} {'map':>9s}  verdict", flush=True)
    if args.save is not None:
        args.save.mkdir(parents=True, exist_ok=True)
    outcomes = replay_all(args.oracle, args.only, args.save)
    for outcome in outcomes:
        if isinstance(outcome, tuple):
            print_row(outcome)
    compared = [o for o in outcomes if isinstance(o, Comparison)]
    missed = [o.case for o in compared if o.misses]
    print(f"{len(compared) - len(missed)} of {len(compared)} cases hold" + (f"; missed: {', '.join(missed)}" if missed else ""))
    return 1 if missed or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
