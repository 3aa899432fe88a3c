"""The built-in random model, loaded once, and requests for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vimaedit.config import Canvas, EditConfig, ModelConfig
from vimaedit.engine.batch import StepState
from vimaedit.engine.editor import BatchEditor
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.files import ModelFacts, model_facts, resolve_model
from vimaedit.models.networks import load_networks
from vimaedit.types import EditRequest

MODEL = ModelConfig(model="random", dtype="float32", device="cpu")
SMALL = Canvas(size=64)  # a quarter of the models' own, for what no number of latents changes
PAIRS = [
    ("a red circle on a blue background", "a red star on a blue background"),
    ("a small cat sitting on the grass", "a small dog sitting on the grass"),
    ("a photo of a house near the sea", "a photo of a wooden house with a flower near the sea"),
    ("a yellow bird in a tree", "a green bird in a tree"),
    ("a bowl of fruit on a table", "a bowl on a table"),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # two spin against each other where the machine is shared


@pytest.fixture(scope="session")
def loaded() -> tuple[Networks, ModelFacts]:
    files = resolve_model(MODEL)
    return load_networks(files, MODEL), model_facts(files)


@pytest.fixture(scope="session", params=["random-sd3", "random-flux"])
def flow_model(request: pytest.FixtureRequest) -> tuple[Networks, ModelFacts]:
    """The built-in flow models, one after the other."""
    model = ModelConfig(model=request.param, dtype="float32", device="cpu")
    files = resolve_model(model)
    return load_networks(files, model), model_facts(files)


@pytest.fixture
def make_editor(loaded: tuple[Networks, ModelFacts]) -> Callable[..., BatchEditor]:
    """Build an editor on the loaded model, on a small canvas: `make_editor(steps=3, ...)`."""

    def make(**options: Any) -> BatchEditor:
        config = EditConfig(**{"steps": 4, "canvas": SMALL, **options})
        return BatchEditor(Backbone(loaded[0], config), config, loaded[1])

    return make


def picture(seed: int, width: int = 128, height: int | None = None) -> np.ndarray:
    """Paint a smooth random picture, (height, width, 3) uint8, a square by default."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 5, 5)))
    smooth = torch.nn.functional.interpolate(coarse, size=(height or width, width), mode="bicubic").clamp(0, 1)[0]
    return (smooth.permute(1, 2, 0).numpy() * 255).astype(np.uint8)


def request(number: int, **options: Any) -> EditRequest:
    """Return a request for one of the prompt pairs."""
    source, target = PAIRS[number % len(PAIRS)]
    mask = np.zeros((128, 128), dtype=bool)
    mask[16 * (number % 3) : 64 + 16 * (number % 3), 32:96] = True
    defaults = {
        "id": f"record-{number}",
        "image": picture(number),
        "source_prompt": source,
        "target_prompt": target,
        "given_mask": mask,
        "seed": 1000 + number,
    }
    return EditRequest(**{**defaults, **options})


def rows_and_states(
    editor: BatchEditor, requests: list[EditRequest], unguided_after: int | None = None
) -> tuple[list[int], list[StepState]]:
    """Run a batch; return the UNet's rows and the state of every step. After so many steps the target's guidance becomes 1."""
    rows: list[int] = []
    states: list[StepState] = []
    edits = [editor.prepare(each) for each in requests]
    batch = editor.encode(edits)

    def keep(state: StepState) -> None:
        states.append(state)
        if len(states) == unguided_after:
            batch.target_guidance.fill_(1.0)

    unet = editor.backbone.networks.denoiser
    hook = unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    try:
        editor.run(batch, edits, keep)
    finally:
        hook.remove()
    return rows, states
