"""The engine on a CUDA device: `pytest -m gpu tests/gpu` where one exists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.component.conftest import request
from vimaedit.config import EditConfig, ModelConfig
from vimaedit.engine.editor import BatchEditor
from vimaedit.engine.loop import StepState
from vimaedit.models.backbone import Backbone
from vimaedit.models.files import model_facts, resolve_model
from vimaedit.models.networks import load_networks

FAMILIES = ("random", "random-xl", "random-sd3", "random-flux")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def make_editor(device: str, dtype: str, model: str = "random", offload: str = "none", **options: Any) -> BatchEditor:
    settings = ModelConfig(model=model, device=device, dtype=dtype, offload=offload)
    files = resolve_model(settings)
    config = EditConfig(**{"steps": 5, **options})
    return BatchEditor(Backbone(load_networks(files, settings), config), config, model_facts(files))


def test_float32_agrees_with_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With given masks, where no threshold can flip: another device is another rounding, within one level."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    requests = [request(n) for n in range(3)]
    for own, other in zip(
        make_editor("cuda", "float32", grounding="given")(requests),
        make_editor("cpu", "float32", grounding="given")(requests),
        strict=True,
    ):
        assert own is not None and other is not None and own.image is not None and other.image is not None
        assert np.abs(own.image.astype(int) - other.image.astype(int)).max() <= 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_pictures_and_masks(dtype: str) -> None:
    for result in make_editor("cuda", dtype)([request(0), request(1)]):
        assert result is not None and result.status == "ok" and result.edit_mask is not None
        assert result.image is not None and result.image.std() > 0


@pytest.mark.parametrize("model", FAMILIES)
def test_encoders_that_wait_beside_the_device_give_the_same(model: str) -> None:
    plain, waiting = (make_editor("cuda", "float16", model, offload) for offload in ("none", "encoders"))
    for editor, kind in ((plain, "cuda"), (waiting, "cpu")):
        clip = editor.backbone.networks.clip
        encoders = [*editor.backbone.networks.text_encoders.values(), *([] if clip is None else [clip])]
        assert {encoder.device.type for encoder in encoders} == {kind}
    for own, other in zip(plain([request(0), request(1)]), waiting([request(0), request(1)]), strict=True):
        assert np.array_equal(own.image, other.image)
    assert all(encoder.device.type == "cpu" for encoder in waiting.backbone.networks.text_encoders.values())


@pytest.mark.parametrize("model", FAMILIES)
def test_compiled_passes_give_nearly_the_same(model: str) -> None:
    plain, compiled = (make_editor("cuda", "float32", model, grounding="given", steps=3) for _ in range(2))
    torch._dynamo.reset()
    compiled.backbone.compile()
    for own, other in zip(plain([request(0), request(1)]), compiled([request(0), request(1)]), strict=True):
        assert np.abs(own.image.astype(int) - other.image.astype(int)).max() <= 2  # TF32 may differ


def test_the_loop_never_waits_for_the_device() -> None:
    editor = make_editor("cuda", "float16")
    edits = [editor.prepare(request(n)) for n in range(2)]
    batch = editor.encode(edits)

    def forbid_waiting(state: StepState) -> None:
        torch.cuda.set_sync_debug_mode("error")  # from the end of the first step on

    try:
        editor.run(batch, edits, forbid_waiting)
    finally:
        torch.cuda.set_sync_debug_mode("default")
