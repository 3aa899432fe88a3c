"""Replay the recorded optimisation of two words (Dynamic Prompt Learning): a part of a run, of no edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.parity.comparison import BASELINE_MAP_TOLERANCE, BASELINE_TOLERANCE, Comparison, max_error
from vimaedit.methods.options import PromptLearning
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.parts.learned_words import LearnedWords, Pass, fit_words
from vimaedit.recipes import method_config


def replay_dpl_case(name: str, entry: dict[str, Any], folder: Path, models: tuple[Networks, Any]) -> Comparison:
    """Fit the recorded words at the recorded latents and compare the embeddings of every pass, places and maps."""
    parameters = entry["parameters"]
    with np.load(folder / entry.get("file", f"{name}.npz")) as file:
        arrays = {key: file[key] for key in file.files}
    backbone = Backbone(models[0], method_config("dpl", image_guidance=False))
    positions = arrays["word_positions"].tolist()
    ids = torch.from_numpy(arrays["input_ids"])[None].clone()
    ids[:, positions] = 0  # the placeholders are no words of the vocabulary; their embeddings come from the recording
    words = torch.zeros(1, len(positions), ids.shape[1])
    words[0, range(len(positions)), positions] = 1
    learned = LearnedWords(ids={"text_encoder": ids}, words=words)
    embeddings = torch.zeros(1, ids.shape[1], arrays["embeddings_initial"].shape[1])
    embeddings[0, positions] = torch.from_numpy(arrays["embeddings_initial"])
    background = torch.from_numpy(arrays["background"]).reshape(1, -1)
    options = PromptLearning(passes=parameters["attention_inner_steps"])

    result = Comparison(name, tolerance=BASELINE_TOLERANCE)
    for i, timestep in enumerate(arrays["timesteps"].tolist()):
        passes: list[Pass] = []
        x = torch.from_numpy(arrays["latents"][i])[None]
        embeddings = fit_words(backbone, x, timestep, i, embeddings, learned, background, options, passes.append)
        if len(passes) != arrays["passes"][i]:
            result.misses.append(f"step {i}: {len(passes)} passes instead of {arrays['passes'][i]}")
            return result
        for number, each in enumerate(passes):
            result.check("embedding", max_error(each.embeddings[0, positions].numpy(), arrays["embeddings"][i, number]), 1e-4)
            best, recorded = each.best[0].numpy(), arrays["max_per_word"][i, number]
            result.check("best", max_error(best, recorded), BASELINE_TOLERANCE)
        result.check("embedding", max_error(embeddings[0, positions].numpy(), arrays["embeddings_after"][i]), 1e-4)
        if i == 0:
            first, last = passes[0].maps[0].numpy(), passes[-1].maps[0][:, positions].numpy()
            for own, recorded in ((first, arrays["maps_first"]), (last, arrays["maps_last_words"])):
                result.check("map", max_error(own, recorded) / float(recorded.max()), BASELINE_MAP_TOLERANCE)
    return result
