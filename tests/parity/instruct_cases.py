"""Replay the recorded runs of instruction editors: stock pipelines of diffusers, called row by row, through the editor that hosts them."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.parity.comparison import Comparison, max_error
from vimaedit.config import ModelConfig
from vimaedit.engine.hosted import HostedEditor, find_arguments, load_hosted_editor
from vimaedit.recipes import method_config
from vimaedit.types import EditRequest

Arrays = dict[str, np.ndarray]

LATENT_TOLERANCE = 1e-4
PICTURE_TOLERANCE = 1e-4
LEVELS_SHARE = 0.001  # of the values, that may differ by one level
NOT_ARGUMENTS = ("images", "prompts", "seeds", "num_inference_steps", "guidance_scale", "height", "width", "max_area")
MODELS = {"FLUX Kontext": "flux_kontext", "InstructPix2Pix": "instruct_pix2pix"}


@functools.cache
def load_pipeline(folder: Path) -> HostedEditor:
    """Load a recorded pipeline; what is asked of it differs from case to case."""
    folder = _with_links(folder, Path(tempfile.mkdtemp()))
    config = method_config("pipeline", steps=1, canvas={"size": 64}, pipeline={"batch": "never"})
    return load_hosted_editor(config, ModelConfig(model=str(folder), dtype="float32", device="cpu"))


def replay_instruct_case(name: str, entry: dict[str, Any], folder: Path) -> Comparison:
    """Edit the case's pictures by its instructions, together where the editor may do so, and compare latents and pictures.

    One thread, as it was recorded: the pipeline encodes the picture itself, and with several the guidance makes 3e-4 of the difference.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with np.load(folder / entry.get("file", f"{name}.npz")) as file:
        arrays: Arrays = {key: file[key] for key in file.files}
    parameters = entry["parameters"]
    editor = case_editor(entry, folder)
    edits = [
        editor.prepare(EditRequest(id=str(n), image=image, source_prompt="", target_prompt="", instruction=prompt, seed=seed))
        for n, (image, prompt, seed) in enumerate(
            zip(arrays["images"], parameters["prompts"], parameters["seeds"], strict=True)
        )
    ]
    result = Comparison(name, tolerance=LATENT_TOLERANCE)
    steps = arrays["latents_single_steps"].tolist()
    drawn, found = [], []
    for group in [edits] if editor.facts.batches else [[edit] for edit in edits]:
        kept: dict[int, np.ndarray] = {}

        def keep(
            pipe: Any, step: int, timestep: Any, state: dict[str, Any], kept: dict[int, np.ndarray] = kept
        ) -> dict[str, Any]:
            kept[step] = state["latents"].float().numpy().copy()
            return {}

        drawn.append(editor.draw(group, callback_on_step_end=keep))
        found.append(np.stack([_unpacked(kept[step], arrays["latents_single"].shape[2:]) for step in steps], axis=1))
    pictures, latents = np.concatenate(drawn), np.concatenate(found)
    for number, step in enumerate(steps):
        result.latents(step, latents[:, number], arrays["latents_single"][:, number])
    corner = arrays["output_single_crop"]
    result.check("picture", max_error(pictures[:, : corner.shape[1], : corner.shape[2]], corner), PICTURE_TOLERANCE)
    levels = np.abs((pictures * 255).round().astype(int) - arrays["output_single_uint8"])
    result.check("levels", float(levels.max()), 1.0)
    result.check("share of levels", float((levels > 0).mean()), LEVELS_SHARE)
    result.saved = {"final_latents": latents[:, -1]}
    torch.set_num_threads(before)
    return result


def case_editor(entry: dict[str, Any], folder: Path) -> HostedEditor:
    """Give the case's pipeline the case's options."""
    parameters = entry["parameters"]
    path = (
        folder / entry["model"]
        if (folder / entry["model"] / "model_index.json").is_file()
        else folder.parent / "models" / MODELS[entry["editor"]]
    )
    hosted = load_pipeline(path.resolve())
    config = method_config(
        "pipeline",
        steps=parameters["num_inference_steps"],
        target_guidance=parameters["guidance_scale"],
        canvas={"size": parameters["height"]},
        pipeline={"arguments": {key: value for key, value in parameters.items() if key not in NOT_ARGUMENTS}},
    )
    find_arguments(hosted.pipe, config)
    torch.manual_seed(0)
    return HostedEditor(hosted.pipe, config, hosted.facts)


def _with_links(folder: Path, place: Path) -> Path:
    """Return a pipeline's folder whose parts are links; where they have come as files that hold a link's text, one made in `place`."""
    texts = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".json"]
    if not texts:
        return folder
    shutil.copy(folder / "model_index.json", place)
    for path in texts:
        (place / path.name).symlink_to((folder / path.read_text().strip()).resolve())
    return place


def _unpacked(latents: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bring packed tokens (B, tokens, 4 C) to latents (B, C, h, w); others are that already."""
    if latents.ndim == 4:
        return latents
    channels, height, width = shape
    tokens = latents.reshape(len(latents), height // 2, width // 2, channels, 2, 2)
    return tokens.transpose(0, 3, 1, 4, 2, 5).reshape(len(latents), channels, height, width)
