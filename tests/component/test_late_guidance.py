"""`guidance_end`: from that step on unconditional rows are not computed, and the rest is as with a guidance of 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.component.conftest import request
from vimaedit.batch import StepState
from vimaedit.config import Windows
from vimaedit.editor import BatchEditor
from vimaedit.method_options import NullText
from vimaedit.types import EditRequest

WORDS = {"image_guidance": False, "grounding": "local-blend"}


def rows_and_states(
    editor: BatchEditor, requests: list[EditRequest], unguided_after: int | None = None
) -> tuple[list[int], list[StepState]]:
    """Run a batch; return the UNet's rows and the state of every step. After so many steps the scale becomes 1."""
    rows: list[int] = []
    states: list[StepState] = []
    edits = [editor.prepare(each) for each in requests]
    batch = editor.encode(edits)
    if unguided_after == 0:
        batch.target_guidance.fill_(1.0)

    def keep(state: StepState) -> None:
        states.append(state)
        if state.step + 1 == unguided_after:
            batch.target_guidance.fill_(1.0)

    unet = editor.backbone.networks.unet
    hook = unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    try:
        editor.run(batch, edits, keep)
    finally:
        hook.remove()
    return rows, states


@pytest.mark.parametrize(
    ("share", "options"),
    [
        (0.0, {}),
        (0.5, {}),
        (0.5, {"solver": "dpmsolver++"}),
        (0.5, {"targets_per_source": 2, "variance": "zero"}),
        (0.5, {"targets_per_source": 2, "grounding_start": 0.7}),  # sharing ends after guidance
        (0.5, {"method": "locatedit"}),
        (0.5, {"method": "p2p", **WORDS}),
        (0.5, {"method": "masactrl", **WORDS, "mutual_start": 1}),
        (0.5, {"method": "pnp", **WORDS, "windows": Windows(feature=0.8)}),
        (0.5, {"method": "virtual-p2p", **WORDS}),
        (0.5, {"method": "npi-p2p", **WORDS}),
        (0.5, {"method": "edit-friendly-p2p", **WORDS, "skip": 0.4}),
        (0.5, {"method": "null-text-p2p", **WORDS, "source_guidance": 1.0, "null_text": NullText(steps=2)}),
    ],
)
def test_a_late_step_is_as_with_a_guidance_of_1(
    make_editor: Callable[..., BatchEditor], share: float, options: dict[str, Any]
) -> None:
    steps = 10 if "skip" in options else 6
    guided = int(6 * share)
    requests = [request(0), request(1)]
    if options.get("targets_per_source"):
        requests[1] = request(0, id="other", target_prompt="a red square on a blue background")
    all_rows, scaled = rows_and_states(make_editor(steps=steps, **options), requests, unguided_after=guided)
    rows, states = rows_and_states(make_editor(steps=steps, guidance_end=share, **options), requests)
    edits = len(requests)
    assert len(states) == 6 and rows[:-6] == all_rows[:-6]  # of an inversion
    assert rows[-6:] == all_rows[-6:][:guided] + [each - edits for each in all_rows[-6:][guided:]]
    for own, other in zip(states, scaled, strict=True):
        assert torch.equal(own.masks.edit, other.masks.edit) and torch.equal(own.masks.critical, other.masks.critical)
        torch.testing.assert_close(own.latents, other.latents, atol=1e-5 * float(other.latents.abs().max()), rtol=0)


def test_guidance_matters_to_the_last_step(make_editor: Callable[..., BatchEditor]) -> None:
    _, whole = rows_and_states(make_editor(steps=6), [request(0)])
    _, late = rows_and_states(make_editor(steps=6, guidance_end=0.5), [request(0)])
    assert torch.equal(whole[2].latents, late[2].latents) and not torch.allclose(whole[3].latents, late[3].latents, atol=1e-3)


@pytest.mark.parametrize("method", ["vimaedit", "ddim-p2p", "edit-friendly"])
def test_a_guided_source_is_guided_as_long_as_its_target(make_editor: Callable[..., BatchEditor], method: str) -> None:
    options: dict[str, Any] = {} if method == "vimaedit" else {"method": method, **WORDS}
    guided = {"source_guidance": 2.0, "target_guidance": 3.0}
    never = {"source_guidance": 1.0, "target_guidance": 1.0}
    rows, states = rows_and_states(make_editor(steps=6, guidance_end=0.0, **guided, **options), [request(0)])
    _, scaled = rows_and_states(make_editor(steps=6, **never, **options), [request(0)])
    assert rows[-6:] == [2] * 6
    for own, other in zip(states, scaled, strict=True):
        torch.testing.assert_close(own.latents, other.latents, atol=1e-5 * float(other.latents.abs().max()), rtol=0)
    rows, half = rows_and_states(make_editor(steps=6, guidance_end=0.5, **guided, **options), [request(0)])
    _, whole = rows_and_states(make_editor(steps=6, **guided, **options), [request(0)])
    assert rows[-6:] == [4] * 3 + [2] * 3
    assert torch.equal(half[2].latents, whole[2].latents) and not torch.allclose(half[3].latents, whole[3].latents, atol=1e-3)
