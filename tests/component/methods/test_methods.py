"""What must hold for the editors whatever the weights: identities on the random model, small and few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.component.conftest import SMALL, picture, request
from vimaedit.attention.control import plain_control
from vimaedit.engine.batch import EditBatch, StepState
from vimaedit.engine.editor import BatchEditor
from vimaedit.errors import ConfigError
from vimaedit.methods import METHODS
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.conditioning import Conditioning
from vimaedit.models.files import ModelFacts
from vimaedit.pipeline import ViMAEditPipeline
from vimaedit.recipes import method_config
from vimaedit.step.noise import SeededNoise
from vimaedit.step.rows import SOURCE, TARGET
from vimaedit.step.solvers import add_noise, method_schedule, posterior_variance, predict_x0, spread_step
from vimaedit.types import BlendPhrase, EditRequest, RequestOverrides

Build = Callable[..., BatchEditor]
STEPS = 4
SAME = "a red circle on a blue background"


@pytest.fixture
def build(loaded: tuple[Networks, ModelFacts]) -> Build:
    def make(method: str, **options: Any) -> BatchEditor:
        usual = {"steps": STEPS, "canvas": SMALL, "image_guidance": METHODS[method].routing == "weights"}
        config = method_config(method, **{**usual, **options})
        return BatchEditor(Backbone(loaded[0], config), config, loaded[1])

    return make


def run(editor: BatchEditor, requests: list[EditRequest]) -> tuple[EditBatch, list[StepState]]:
    edits = [editor.prepare(each) for each in requests]
    batch = editor.encode(edits)
    states: list[StepState] = []
    editor.run(batch, edits, states.append)
    return batch, states


def conditioned(backbone: Backbone, x: torch.Tensor, text: torch.Tensor) -> Conditioning:
    """Condition on states of text alone."""
    return backbone.condition(Conditioning({"text": text}), None, backbone.canvas_of(x))


def predict(backbone: Backbone, x: torch.Tensor, timestep: int, text: torch.Tensor) -> torch.Tensor:
    """Predict without any control; a loaded IP-Adapter has no say."""
    silent = plain_control(torch.zeros(len(x)))
    return backbone.predict(x, torch.tensor(timestep), conditioned(backbone, x, text), silent)


def equal_prompts(**options: Any) -> EditRequest:
    return request(0, source_prompt=SAME, target_prompt=SAME, **options)


@pytest.mark.parametrize("method", [name for name, each in METHODS.items() if not (each.has_one_latent or each.hosts_pipeline)])
def test_a_request_among_others_is_as_it_is_alone(build: Build, method: str) -> None:
    editor = build(method, steps=3, null_text={"steps": 2}, prompt_learning={"passes": 2})
    own = request(1, overrides=RequestOverrides(self_window=0.3, text_window=0.9, target_guidance=2.0))
    edits = [editor.prepare(each) for each in (request(0), own)]
    batch = editor.encode(edits)
    final = editor.run(batch, edits)
    alone = editor.run(editor.encode(edits[1:]), edits[1:])
    torch.testing.assert_close(final.latents[:, 1:], alone.latents, atol=1e-3, rtol=0)
    first, second = editor.finish(edits, batch, final)
    assert (first.status, second.status) == ("ok", "ok") and first.image is not None and second.image is not None
    assert (first.image != second.image).mean() > 0.5
    assert (second.critical_mask is not None) <= METHODS[method].has_critical_region
    # The edit did something: the target is not the source.
    assert float((final.latents[TARGET] - final.latents[SOURCE]).abs().max()) > 0.01


@pytest.mark.parametrize("method", ["p2p", "masactrl", "pnp"])
def test_direct_inversion_ends_at_its_picture(build: Build, method: str) -> None:
    batch, states = run(build(method), [request(0)])
    assert torch.equal(states[-1].latents[SOURCE], batch.x0)


@pytest.mark.parametrize("method", ["virtual-p2p", "vimaedit", "locatedit"])
def test_virtual_inversion_with_equal_predictions_gives_the_picture(build: Build, method: str) -> None:
    editor = build(method, target_guidance=1.0, image_guidance=False, blend="none")
    batch, states = run(editor, [equal_prompts()])
    torch.testing.assert_close(states[-1].clean[TARGET], batch.x0, atol=1e-4, rtol=0)
    for state in states:
        torch.testing.assert_close(state.latents[TARGET], state.latents[SOURCE], atol=1e-4, rtol=0)


@pytest.mark.parametrize("start", ["image", "noise"])
def test_three_branches_with_equal_predictions_give_the_picture(build: Build, start: str) -> None:
    batch, states = run(build("infedit", target_guidance=1.0, start=start), [equal_prompts()])
    torch.testing.assert_close(states[-1].clean[TARGET], batch.x0, atol=1e-4, rtol=0)
    # The direction is that of the source's noise, so that its latent is known without a prediction.
    noise = SeededNoise([request(0).seed], tuple(batch.x0.shape[1:]))
    schedule = method_schedule(method_config("infedit", steps=STEPS), build("infedit").backbone.alphas_cumprod)
    for i, state in enumerate(states):
        expected = add_noise(batch.x0, noise.draw(i), schedule.next_levels[i])
        torch.testing.assert_close(state.latents[SOURCE], expected, atol=1e-5, rtol=0)


def test_an_auxiliary_row_is_the_source_while_the_window_is_open(build: Build) -> None:
    editor = build("infedit", windows={"self": 0.6, "text": 0.6}, start="image")
    own = [request(1), request(0, overrides=RequestOverrides(self_window=0.0))]
    _, mixed = run(editor, own)
    _, alone = run(editor, own[:1])
    for i, (with_row, without) in enumerate(zip(mixed, alone, strict=True)):
        torch.testing.assert_close(with_row.latents[:, :1], without.latents, atol=2e-4, rtol=0, msg=f"step {i}")
    assert torch.equal(alone[1].latents[2], alone[1].latents[0]) and not torch.equal(alone[3].clean[2], alone[3].clean[0])


def test_edit_friendly_with_equal_prompts_follows_the_source(build: Build) -> None:
    editor = build("edit-friendly", skip=0.25, source_guidance=3.0, target_guidance=3.0)
    batch, states = run(editor, [equal_prompts()])
    schedule = method_schedule(editor.config, editor.backbone.alphas_cumprod)
    noise = SeededNoise([request(0).seed], tuple(batch.x0.shape[1:]))
    assert len(states) == 3
    for i, state in enumerate(states):
        torch.testing.assert_close(state.latents[TARGET], state.latents[SOURCE], atol=1e-5, rtol=0)
        if i + 1 < len(states):  # the last step has no noise to make up for what the mean lacks
            expected = add_noise(batch.x0, noise.draw(i + 1), schedule.levels[i + 1])
            torch.testing.assert_close(state.latents[SOURCE], expected, atol=1e-6, rtol=0)
    assert float((states[-1].latents[SOURCE] - batch.x0).abs().max()) > 1e-3


def test_lock_step_equals_extracting_noise_maps_first(build: Build) -> None:
    editor = build("edit-friendly", skip=0.0, source_guidance=3.0, target_guidance=5.0)
    backbone = editor.backbone
    edit = editor.prepare(request(0))
    batch = editor.encode([edit])
    states: list[StepState] = []
    editor.run(batch, [edit], states.append)
    schedule = method_schedule(editor.config, backbone.alphas_cumprod)
    noise = SeededNoise([edit.request.seed], tuple(batch.x0.shape[1:]))
    levels = [add_noise(batch.x0, noise.draw(i), level) for i, level in enumerate(schedule.levels)]
    empty, _, source, target = batch.conditioning["text"].split(1)

    def mean(x: torch.Tensor, i: int, text: torch.Tensor, scale: float) -> torch.Tensor:
        eps = predict(backbone, torch.cat([x, x]), schedule.timesteps[i], torch.cat([empty, text]))
        guided = eps[:1] + scale * (eps[1:] - eps[:1])
        variance = torch.tensor(posterior_variance(schedule, i, 1.0))
        return spread_step(x, predict_x0(x, guided, schedule.levels[i]), schedule, i, variance, torch.zeros(1))

    sigmas = [posterior_variance(schedule, i, 1.0) ** 0.5 for i in range(STEPS)]
    maps = [(levels[i + 1] - mean(levels[i], i, source, 3.0)) / sigmas[i] for i in range(STEPS - 1)]
    maps.append(torch.zeros_like(levels[0]))
    x = levels[0]
    for i in range(STEPS):
        x = mean(x, i, target, 5.0) + sigmas[i] * maps[i]
        torch.testing.assert_close(states[i].latents[TARGET], x, atol=2e-4, rtol=0)


@pytest.mark.parametrize("method", ["p2p", "masactrl", "pnp"])
def test_with_all_windows_closed_it_is_plain_guided_sampling(build: Build, method: str) -> None:
    closed = {"self": 0.0, "text": 0.0, "image": 0.0, "feature": 0.0}
    editor = build(method, windows=closed, mutual_start=STEPS, blend="none", negative_prompt=None, image_guidance=False)
    backbone, edit = editor.backbone, editor.prepare(request(0))
    batch = editor.encode([edit])
    states: list[StepState] = []
    editor.run(batch, [edit], states.append)
    schedule = method_schedule(editor.config, backbone.alphas_cumprod)
    empty, _, target = batch.conditioning["text"].split(1)
    assert batch.inversion is not None
    inverted = batch.x0
    for i in reversed(range(STEPS)):
        eps = predict(backbone, inverted, schedule.timesteps[i], batch.inversion["text"])
        inverted = add_noise(predict_x0(inverted, eps, schedule.next_levels[i]), eps, schedule.levels[i])
    x = inverted
    for i in range(STEPS):
        eps = predict(backbone, torch.cat([x, x]), schedule.timesteps[i], torch.cat([empty, target]))
        guided = eps[:1] + 7.5 * (eps[1:] - eps[:1])
        x = add_noise(predict_x0(x, guided, schedule.levels[i]), guided, schedule.next_levels[i])
        torch.testing.assert_close(states[i].latents[TARGET], x, atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["pnp", "masactrl"])
def test_an_edit_of_attention_between_equal_rows_is_no_edit(build: Build, method: str) -> None:
    """With the source's text and, at the first step, its latents in every row, taking over what it has changes nothing."""
    first = []
    for share in (1.0, 0.0):
        editor = build(
            method, windows={"self": share, "feature": share}, mutual_start=0 if share else STEPS, negative_prompt=None
        )
        edit = editor.prepare(request(0))
        batch = editor.encode([edit])
        text = batch.conditioning["text"][batch.layout.num_rows // 3 : 2 * batch.layout.num_rows // 3].expand(3, -1, -1)
        batch = type(batch)(
            **{
                **vars(batch),
                "conditioning": batch.conditioning.having(text=text),
                "inversion": batch.inversion.having(text=text[:1]),
            }
        )
        states: list[StepState] = []
        editor.run(batch, [edit], states.append)
        first.append(states[0].latents[TARGET])
    torch.testing.assert_close(first[0], first[1], atol=1e-5, rtol=0)


def test_rows_that_are_left_out_change_nothing(build: Build) -> None:
    """With the source's prompt as the empty one its guidance is inert: three rows give what four give."""
    _, three = run(build("npi-p2p", image_guidance=False, source_guidance=1.0), [request(0)])
    editor = build("npi-p2p", image_guidance=False, source_guidance=7.5)
    edit = editor.prepare(request(0))
    batch = editor.encode([edit])
    # The source's own unconditional row reads the empty text; here it has to read what the target's does.
    text = batch.conditioning["text"].clone()
    text[0] = text[1]
    batch = type(batch)(**{**vars(batch), "conditioning": batch.conditioning.having(text=text)})
    four = editor.run(batch, [edit])
    assert batch.layout.num_rows == 4
    torch.testing.assert_close(three[-1].latents, four.latents, atol=1e-3, rtol=0)


def test_ddim_inversion_runs_backwards(build: Build) -> None:
    """Reconstruction without guidance comes back near the picture; with guidance the source drifts away from it."""
    near, far = (run(build("ddim-p2p", image_guidance=False, source_guidance=scale), [request(0)]) for scale in (1.0, 7.5))
    errors = [float((states[-1].latents[SOURCE] - batch.x0).square().mean()) for batch, states in (near, far)]
    assert errors[0] < 0.2 * errors[1]


def test_null_text_brings_the_source_back(build: Build) -> None:
    """Fitting the empty text's embedding makes up for guidance, more so with more updates; each request stops by itself."""
    errors = []
    for updates in (1, 3):
        editor = build("null-text-p2p", steps=3, image_guidance=False, null_text={"steps": updates, "stop": 0.0})
        batch, states = run(editor, [request(0)])
        errors.append(float((states[-1].latents[SOURCE] - batch.x0).square().mean()))
    assert errors[1] < errors[0]
    editor = build("null-text-p2p", steps=2, image_guidance=False, null_text={"steps": 2, "stop": 100.0})
    _, one = run(editor, [request(0)])
    _, single = run(build("null-text-p2p", steps=2, image_guidance=False, null_text={"steps": 1}), [request(0)])
    torch.testing.assert_close(one[-1].latents, single[-1].latents, atol=1e-5, rtol=0)


def test_the_shifted_list_of_sources_is_an_option(build: Build) -> None:
    _, right = run(build("ddim-pnp"), [request(0)])
    _, shifted = run(build("ddim-pnp", quirks=["pnp-shift"]), [request(0)])
    for i in range(STEPS - 1):
        torch.testing.assert_close(shifted[i].latents[SOURCE], right[min(i + 1, STEPS - 1)].latents[SOURCE], atol=1e-5, rtol=0)
    assert float((shifted[0].latents[TARGET] - right[0].latents[TARGET]).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("method", "quirk", "options"),
    [
        ("proximal-p2p", "proximal-soft", {}),
        ("locatedit", "locatedit-variance", {"image_guidance": False}),
        ("infedit", "infedit-direction", {"eta": 0.3}),
        ("infedit", "infedit-crosswise", {}),
        ("leditspp", "leditspp-texts", {"source_guidance": 3.5}),
        ("leditspp", "leditspp-tokens", {"concepts": {"mask": "attention"}, "thresholds": {"edit": 0.5}}),
    ],
)
def test_every_quirk_changes_its_method(build: Build, method: str, quirk: str, options: dict[str, Any]) -> None:
    edited = request(
        0,
        source_prompt="a photo of a big red circle on the lawn",
        target_prompt="a photo of some small yellow star on the lawn",
        blend=(BlendPhrase(source="circle", target="yellow star"),),
    )
    _, plain = run(build(method, **options), [edited])
    _, quirky = run(build(method, quirks=[quirk], **options), [edited])
    assert not torch.equal(plain[-1].latents, quirky[-1].latents)


def test_words_without_a_map_leave_all_or_nothing_free(build: Build) -> None:
    options: dict[str, Any] = {"blend": "given", "missing_blend": "ignore", "image_guidance": False}
    absent = request(0, blend=(BlendPhrase(source="zebra", target="lion"),))
    _, free = run(build("p2p", **options), [absent])
    _, kept = run(build("p2p", quirks=["absent-words"], **options), [absent])
    assert not free[-1].masks.exists.any()
    assert torch.equal(kept[-1].latents[TARGET], kept[-1].latents[SOURCE])
    assert not torch.equal(free[-1].latents[TARGET], free[-1].latents[SOURCE])


def test_concept_masks_confine_guidance(build: Build) -> None:
    for mask, options in (("attention", {}), ("guidance", {}), ("intersect", {})):
        editor = build("leditspp", concepts={"mask": mask, "warmup": 1, "cooldown": 3}, thresholds={"edit": 0.7}, **options)
        _, states = run(editor, [request(0)])
        shares = [float(state.masks.edit.float().mean()) for state in states]
        assert shares[0] == shares[3] == 0 and all(0 < share < 0.4 for share in shares[1:3]), mask
    everywhere = build("leditspp", concepts={"mask": "none"})
    assert all(bool(state.masks.edit.all()) for state in run(everywhere, [request(0)])[1])
    inside = build("leditspp", grounding="given", concepts={"mask": "none"})
    given = np.zeros((128, 128), dtype=bool)
    batch, _ = run(inside, [request(0, given_mask=given, image=picture(3))])
    assert batch.concepts is not None and batch.concepts.user_mask is not None and not batch.concepts.user_mask.any()


def test_python_picks_a_method_per_call() -> None:
    pipe = ViMAEditPipeline.from_pretrained("random", dtype="float32", device="cpu")
    pair = ("a red circle on a lawn", "a red star on a lawn")
    edited = pipe(picture(0), *pair, method="p2p", num_inference_steps=2, generator=3)
    other = pipe(picture(0), *pair, num_inference_steps=2, generator=3)
    assert edited.masks[0] is not None and edited.critical_masks[0] is None and other.critical_masks[0] is not None
    assert edited.images[0].tobytes() != other.images[0].tobytes()
    with pytest.raises(ConfigError, match="method: got 'p3p'; allowed: vimaedit, p2p"):
        pipe(picture(0), *pair, method="p3p")
