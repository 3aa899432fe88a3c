"""`guidance_end`: from that step on unconditional rows are not computed, and the rest is as with a guidance of 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.component.conftest import request, rows_and_states
from vimaedit.config import Windows
from vimaedit.engine.editor import BatchEditor
from vimaedit.methods.options import NullText

WORDS = {"image_guidance": False, "grounding": "local-blend"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "dpmsolver++"},
        {"targets_per_source": 2, "variance": "zero"},
        {"targets_per_source": 2, "grounding_start": 0.8},  # sharing ends after guidance
        {"method": "locatedit"},
        {"method": "p2p", **WORDS},
        {"method": "masactrl", **WORDS, "mutual_start": 1},
        {"method": "pnp", **WORDS, "windows": Windows(feature=0.8)},
        {"method": "virtual-p2p", **WORDS},
        {"method": "npi-p2p", **WORDS},
        {"method": "edit-friendly-p2p", **WORDS, "skip": 0.2},
        {"method": "null-text-p2p", **WORDS, "source_guidance": 1.0, "null_text": NullText(steps=2)},
    ],
)
def test_a_late_step_is_as_with_a_guidance_of_1(make_editor: Callable[..., BatchEditor], options: dict[str, Any]) -> None:
    steps, guided = 5 if "skip" in options else 4, 2  # of four that run
    requests = [request(0), request(1)]
    if options.get("targets_per_source"):
        requests[1] = request(0, id="other", target_prompt="a red square on a blue background")
    all_rows, scaled = rows_and_states(make_editor(steps=steps, **options), requests, unguided_after=guided)
    rows, states = rows_and_states(make_editor(steps=steps, guidance_end=0.5, **options), requests)
    edits = len(requests)
    assert len(states) == 4 and rows[:-4] == all_rows[:-4]  # of an inversion
    assert rows[-4:] == all_rows[-4:][:guided] + [each - edits for each in all_rows[-4:][guided:]]
    for own, other in zip(states, scaled, strict=True):
        assert torch.equal(own.masks.edit, other.masks.edit) and torch.equal(own.masks.critical, other.masks.critical)
        torch.testing.assert_close(own.latents, other.latents, atol=1e-5 * float(other.latents.abs().max()), rtol=0)


def test_guidance_matters_to_the_last_step(make_editor: Callable[..., BatchEditor]) -> None:
    _, whole = rows_and_states(make_editor(steps=4), [request(0)])
    _, late = rows_and_states(make_editor(steps=4, guidance_end=0.5), [request(0)])
    assert torch.equal(whole[1].latents, late[1].latents) and not torch.allclose(whole[2].latents, late[2].latents, atol=1e-3)


@pytest.mark.parametrize("method", ["vimaedit", "ddim-p2p", "edit-friendly"])
def test_a_guided_source_is_guided_as_long_as_its_target(make_editor: Callable[..., BatchEditor], method: str) -> None:
    options: dict[str, Any] = {} if method == "vimaedit" else {"method": method, **WORDS}
    guided = {"source_guidance": 2.0, "target_guidance": 3.0}
    never = {"source_guidance": 1.0, "target_guidance": 1.0}
    rows, states = rows_and_states(make_editor(steps=4, guidance_end=0.0, **guided, **options), [request(0)])
    _, scaled = rows_and_states(make_editor(steps=4, **never, **options), [request(0)])
    assert rows[-4:] == [2] * 4
    for own, other in zip(states, scaled, strict=True):
        torch.testing.assert_close(own.latents, other.latents, atol=1e-5 * float(other.latents.abs().max()), rtol=0)
    rows, half = rows_and_states(make_editor(steps=4, guidance_end=0.5, **guided, **options), [request(0)])
    _, whole = rows_and_states(make_editor(steps=4, **guided, **options), [request(0)])
    assert rows[-4:] == [4] * 2 + [2] * 2
    assert torch.equal(half[1].latents, whole[1].latents) and not torch.allclose(half[2].latents, whole[2].latents, atol=1e-3)
