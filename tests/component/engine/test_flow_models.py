"""Edits on the built-in flow models: what must hold whatever the weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from tests.component.conftest import SMALL, picture, request
from vimaedit.attention.sites import ground_on
from vimaedit.config import Canvas
from vimaedit.engine.batch import EditBatch, StepState
from vimaedit.engine.editor import BatchEditor
from vimaedit.errors import ConfigError, RequestError
from vimaedit.methods import METHODS
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.files import ModelFacts
from vimaedit.models.flux import FLUX
from vimaedit.pipeline import ViMAEditPipeline
from vimaedit.recipes import method_config
from vimaedit.step.noise import SeededNoise
from vimaedit.step.rows import SOURCE, TARGET, RowKind
from vimaedit.step.solvers import add_noise
from vimaedit.types import EditRequest, RequestOverrides

Flow = tuple[Networks, ModelFacts]
REFUSED = {
    "random-sd3": {"masactrl", "ddim-masactrl", "pnp", "ddim-pnp", "infedit", "leditspp", "null-text-p2p", "dpl"}
    | {"p2p-zero", "ddim-p2p-zero"},
}
REFUSED["random-flux"] = REFUSED["random-sd3"] | {"npi-p2p", "proximal-p2p"}
ONE_LATENT = {name for name, method in METHODS.items() if method.has_one_latent}


def build(model: Flow, method: str, **options: Any) -> BatchEditor:
    config = method_config(method, **{"steps": 3, "canvas": SMALL, **options})
    return BatchEditor(Backbone(model[0], config), config, model[1])


def run(editor: BatchEditor, requests: list[EditRequest]) -> tuple[EditBatch, list[StepState]]:
    edits = [editor.prepare(each) for each in requests]
    batch, states = editor.encode(edits), []
    editor.run(batch, edits, states.append)
    return batch, states


@pytest.mark.parametrize("method", METHODS)
def test_every_editor_runs_or_says_why_not(flow_model: Flow, method: str) -> None:
    if method in REFUSED[flow_model[1].name]:
        with pytest.raises(ConfigError, match=f"method: got {method} .*where it has no meaning: "):
            build(flow_model, method)
        return
    editor = build(flow_model, method, steps=2)
    guidance = {} if method == "uniedit-flow" else {"target_guidance": 2.0}
    own = request(1, overrides=RequestOverrides(self_window=0.3, **guidance))
    edits = [editor.prepare(each) for each in (request(0), own)]
    batch = editor.encode(edits)
    final = editor.run(batch, edits)
    alone = editor.run(editor.encode(edits[1:]), edits[1:])
    torch.testing.assert_close(final.latents[:, 1:], alone.latents, atol=1e-3, rtol=0)
    first, second = editor.finish(edits, batch, final)
    assert (first.status, second.status) == ("ok", "ok") and first.image is not None and second.image is not None
    assert (first.image != second.image).mean() > 0.5
    assert method in ONE_LATENT or float((final.latents[TARGET] - final.latents[SOURCE]).abs().max()) > 0.01


def test_guidance_is_an_input_or_rows_of_its_own(flow_model: Flow) -> None:
    editor = build(flow_model, "flowedit")
    requests = [request(0), request(1, overrides=RequestOverrides(target_guidance=6.0))]
    batch = editor.encode([editor.prepare(each) for each in requests])
    source, target = (batch.layout.block(kind) for kind in (RowKind.SOURCE_COND, RowKind.TARGET_COND))
    if not flow_model[0].family.kind.embeds_guidance:
        assert len(batch.layout.kinds) == 4 and "guidance" not in batch.conditioning.tensors
        return
    assert batch.layout.kinds == (RowKind.SOURCE_COND, RowKind.TARGET_COND)
    told = batch.conditioning["guidance"]
    assert told[source].tolist() == [3.5, 3.5] and told[target].tolist() == [13.5, 6.0]
    final = editor.run(batch, [editor.prepare(each) for each in requests])
    other = dataclasses.replace(batch, conditioning=batch.conditioning.having(guidance=told + 1))
    assert not torch.equal(final.latents, editor.run(other, [editor.prepare(each) for each in requests]).latents)


def test_equal_prompts_give_the_picture(flow_model: Flow) -> None:
    same = request(0, target_prompt=request(0).source_prompt)
    for method, options in (("vimaedit", {"target_guidance": 1.0}), ("flowedit", {"target_guidance": 3.5})):
        editor = build(flow_model, method, blend="none", **options)
        batch, states = run(editor, [same])
        last = states[-1].clean if method == "vimaedit" else states[-1].latents
        torch.testing.assert_close(last[TARGET], batch.x0, atol=1e-4, rtol=0)


def test_the_source_stays_on_its_line_where_nothing_is_injected(flow_model: Flow) -> None:
    """Virtual inversion on a flow: without variance the source is (1 - s) x0 + s n at every level."""
    editor = build(flow_model, "vimaedit", variance="zero")
    batch, states = run(editor, [request(0)])
    start = SeededNoise([request(0).seed], tuple(batch.x0.shape[1:])).draw(-1)
    schedule = editor.backbone.schedule(editor.config, (8, 8))
    for state, level in zip(states, schedule.next_levels, strict=True):
        torch.testing.assert_close(state.latents[SOURCE], add_noise(batch.x0, start, level), atol=1e-5, rtol=0)


def test_variance_changes_the_critical_region_alone(flow_model: Flow) -> None:
    injected, plain = (
        run(build(flow_model, "vimaedit", variance=kind, steps=2, thresholds={"edit": -1.0, "critical": 0.6}), [request(0)])[1]
        for kind in ("adaptive", "zero")
    )
    critical = injected[0].masks.critical[0, 0]
    assert 0 < int(critical.sum()) < critical.numel()
    changed = (injected[0].latents - plain[0].latents).abs().amax(dim=(0, 1, 2)) > 1e-6
    assert torch.equal(changed, critical)


def test_flowedit_is_its_published_loop(flow_model: Flow) -> None:
    """arXiv 2412.08629: no inversion, z_edit moved by the difference of the two velocities."""
    editor = build(flow_model, "flowedit", skip=0.34, source_guidance=2.0, target_guidance=4.0)
    batch, states = run(editor, [request(0)])
    backbone, embeds = editor.backbone, flow_model[0].family.kind.embeds_guidance
    noise = SeededNoise([request(0).seed], tuple(batch.x0.shape[1:]))
    schedule = backbone.schedule(editor.config, (8, 8))
    texts = backbone.encode_texts(["", request(0).source_prompt, request(0).target_prompt])

    def velocity(x: torch.Tensor, timestep: float, row: int, scale: float) -> torch.Tensor:
        rows = [row] if embeds else [0, row]
        told = backbone.condition(texts.rows(torch.tensor(rows)), None, (64, 64))
        if embeds:
            told = told.having(guidance=torch.tensor([scale]))
        v = backbone.predict(torch.cat([x] * len(rows)), torch.tensor(timestep), told, None)
        return v if embeds else v[:1] + scale * (v[1:] - v[:1])

    edited = batch.x0
    for i, timestep in enumerate(schedule.timesteps):
        sigma, after = schedule.levels[i].sigma, schedule.next_levels[i].sigma
        source = (1 - sigma) * batch.x0 + sigma * noise.draw(i)
        target = edited + source - batch.x0
        edited = edited + (after - sigma) * (velocity(target, timestep, 2, 4.0) - velocity(source, timestep, 1, 2.0))
        distance = states[i].latents[TARGET] - states[i].latents[SOURCE]
        torch.testing.assert_close(batch.x0 + distance, edited, atol=2e-4, rtol=0)
    assert torch.equal(states[-1].latents[SOURCE], batch.x0)


def test_midpoint_steps_without_values_go_back_to_the_picture(flow_model: Flow) -> None:
    """With one prompt, no guidance and fresh velocities the way down nearly undoes the way up, the more so the more steps."""
    same = request(0, target_prompt=request(0).source_prompt)
    distances = []
    for steps in (3, 8):
        editor = build(flow_model, "rf-solver", steps=steps, target_guidance=1.0, midpoint={"steps": 0})
        batch, states = run(editor, [same])
        distances.append(float((states[-1].latents[TARGET] - batch.x0).square().mean().sqrt()))
    assert distances[1] < 0.5 * distances[0]


def test_the_way_up_is_told_the_sources_guidance_where_that_is_an_input(flow_model: Flow) -> None:
    if not flow_model[0].family.kind.embeds_guidance:
        with pytest.raises(ConfigError, match="source_guidance: got 3.0 with method=rf-solver and .*; allowed: 1"):
            build(flow_model, "rf-solver", source_guidance=3.0)
        return
    first = [
        run(build(flow_model, "rf-solver", steps=2, skip=0.5, source_guidance=scale), [request(0)])[1][0].latents
        for scale in (1.0, 3.0)
    ]
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("flow_model", ["random-flux"], indirect=True)
def test_values_of_the_source_bring_the_edit_nearer_to_it(flow_model: Flow) -> None:
    layers = {"first_layer": 0, "last_layer": 1}
    kept, free = (
        run(build(flow_model, "fireflow", steps=4, midpoint={"steps": steps, **layers}), [request(0)]) for steps in (4, 0)
    )
    assert not torch.equal(kept[1][-1].latents, free[1][-1].latents)
    with_values, without = (float((states[-1].latents[TARGET] - batch.x0).square().mean()) for batch, states in (kept, free))
    assert with_values < without


def test_what_a_row_is_told(flow_model: Flow) -> None:
    family = flow_model[0].family
    said = "no ip_adapter is named" if family.prompts_by_name else f"{family.title} takes no image prompt"
    editor = build(flow_model, "vimaedit", steps=1)
    edits = [editor.prepare(request(0))]
    batch = editor.encode(edits)
    (result,) = editor.finish(edits, batch, editor.run(batch, edits))
    assert result.warnings[:2] == (
        f"no_image_guidance: {said}, the texts alone steer",
        "joint_attention: picture and text share their attention, so the text window and weights of words have no effect",
    )
    assert any(note.startswith("no_values: ") for note in build(flow_model, "fireflow").notes)
    assert build(flow_model, "flowedit").notes == []


@pytest.mark.parametrize("flow_model", ["random-flux"], indirect=True)
@pytest.mark.parametrize("options", [{"negative_prompt": "blur"}, {"guidance_end": 0.5}])
def test_what_needs_a_prediction_without_text_is_refused(flow_model: Flow, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(
        ConfigError, match=f"{name}: got .*; allowed: the default, for this model has no prediction without text"
    ):
        build(flow_model, "vimaedit", **options)


def test_no_canvas_is_beyond_the_table_of_positions(flow_model: Flow) -> None:
    editor = build(flow_model, "vimaedit", steps=1, canvas=Canvas(fit="keep", size=192))
    longest = max(editor.prepare(request(0, image=picture(0, 420, 60), given_mask=None)).image.shape)
    if flow_model[1].family != "sd3":
        assert longest > 256  # rotary positions have no end
        build(flow_model, "vimaedit", canvas=Canvas(size=512))
        return
    assert 192 < longest <= 256
    with pytest.raises(
        ConfigError, match="^canvas.size: got 272; allowed: up to 256 px, the longest side that this model takes$"
    ):
        build(flow_model, "vimaedit", canvas=Canvas(size=272))


def test_levels_are_the_schedulers_own(flow_model: Flow) -> None:
    with pytest.raises(ConfigError, match="spacing: got trailing with .*; allowed: leading"):
        build(flow_model, "vimaedit", spacing="trailing")
    assert len(build(flow_model, "vimaedit", steps=999).backbone.schedule(method_config("vimaedit", steps=999), (8, 8))) == 999


def test_the_front_door_takes_them(flow_model: Flow) -> None:
    pipe = ViMAEditPipeline.from_pretrained(flow_model[1].name, dtype="float32", device="cpu")
    loaded = pipe._loaded
    output = pipe(request(0).image, *(request(0).source_prompt, request(0).target_prompt), num_inference_steps=2)
    assert output.images[0].size == (128, 128) and output.masks[0] is not None
    assert pipe._loaded is loaded  # nothing is looked for again
    with pytest.raises(ConfigError, match="ip_adapter: got 'a.safetensors'"):
        ViMAEditPipeline.from_pretrained(flow_model[1].name, ip_adapter="a.safetensors")


@pytest.mark.parametrize("flow_model", ["random-sd3"], indirect=True)
def test_words_are_read_in_both_texts(flow_model: Flow) -> None:
    """77 columns of the CLIPs, then those of T5, whose words count less; both tokenizers have whole words here."""
    editor = build(flow_model, "vimaedit")
    edits = [editor.prepare(request(0))]
    batch = editor.encode(edits)
    source, target = batch.text_edit.words[:, 0]
    assert batch.text_edit.words.shape == (2, 1, 77 + 256) == (2, 1, batch.conditioning["text"].shape[1])
    # a red circle on ...: the third word, behind the CLIPs' begin token, and T5's third
    assert source.nonzero().flatten().tolist() == target.nonzero().flatten().tolist() == [3, 77 + 2]
    assert source[[3, 79]].tolist() == [1.0, pytest.approx(0.3)]


LONG = " beside a red flower" * 20


def test_the_limit_of_a_prompt_is_that_of_its_longest_encoder(flow_model: Flow) -> None:
    """T5 reads what the CLIPs do not: the row says what they have lost, and its words count where they are read."""
    clips = (
        "text_encoder"
        if flow_model[1].family == "flux"
        else "text_encoder reads 77 of its 88 tokens with begin and end, text_encoder_2"
    )
    longest = flow_model[0].family.text_encoders[0 if flow_model[1].family == "flux" else 2].network
    editor = build(flow_model, "vimaedit", steps=1, long_prompt="reject")
    source, target = (f"a photo of{LONG} and a {noun}" for noun in ("cat", "dog"))
    own = editor.prepare(request(0, source_prompt=source, target_prompt=target))
    for side, warning in zip(("source", "target"), own.words.warnings, strict=True):
        assert warning == (
            f"prompt_shortened: of {side}_prompt {clips} reads 77 of its 88 tokens with begin and end; {longest} reads it whole"
        )
    marked = own.words.word_mask[1].nonzero()[0]
    assert len(marked) == 1 and (flow_model[1].family == "flux" or marked[0] > 77)
    batch = editor.encode([own])
    (result,) = editor.finish([own], batch, editor.run(batch, [own]))
    assert result.edit_mask is not None and own.words.warnings[0] in result.warnings
    length = editor.backbone.networks.tokenizers[longest].model_max_length
    endless = LONG * 7
    with pytest.raises(
        RequestError, match=f"target_prompt: got .* tokens with begin and end; allowed: up to {length}, or long_prompt=truncate"
    ):
        editor.prepare(request(0, target_prompt=f"a cat{endless}"))
    cut = build(flow_model, "vimaedit", steps=1).prepare(
        request(0, source_prompt=f"a dog{endless}", target_prompt=f"a cat{endless}")
    )
    beside = ", text_encoder 77" if flow_model[1].family == "flux" else ", text_encoder 77, text_encoder_2 77"
    assert cut.words.warnings[0].endswith(f"tokens with begin and end, the model reads {length}{beside}")
    behind = " beside-a-red-flower" * 80  # few words, many tokens
    with pytest.raises(RequestError, match="with the changed 'dog' behind the last that fits; allowed: .* within the first"):
        build(flow_model, "vimaedit", steps=1).prepare(
            request(0, source_prompt=f"a{behind} dog", target_prompt=f"a{behind} cat")
        )


def test_masks_are_read_at_the_blocks_that_are_named(flow_model: Flow) -> None:
    names = list(flow_model[0].denoiser.attn_processors)
    blocks = [len(flow_model[0].denoiser.transformer_blocks) - 1]
    if flow_model[1].family == "flux":
        blocks.append(blocks[0] + 1)  # the first single one
    editor = build(flow_model, "vimaedit", grounding_blocks=blocks)
    read = {f"transformer_blocks.{blocks[0]}.attn.processor", "single_transformer_blocks.0.attn.processor"} & set(names)
    assert editor.backbone.sites.text_maps == editor.backbone.sites.self_maps == read
    own = run(editor, [request(0)])[1][-1].map_sum
    usual = build(flow_model, "vimaedit")  # on the same networks
    assert editor.backbone.sites.self_routing == usual.backbone.sites.self_routing
    other = run(usual, [request(0)])[1][-1].map_sum
    assert own is not None and other is not None and not torch.allclose(own, other)
    with pytest.raises(ConfigError, match="^grounding_blocks: got 99; allowed: . to .$"):
        build(flow_model, "vimaedit", grounding_blocks=[99])


def test_published_blocks_are_there_at_full_depth() -> None:
    sizes = {"attention_head_dim": 8, "num_attention_heads": 1, "joint_attention_dim": 8, "pooled_projection_dim": 8}
    deep = FluxTransformer2DModel(**sizes, num_layers=19, num_single_layers=38, in_channels=4, axes_dims_rope=(2, 2, 4))
    read = {site.name for site in ground_on(FLUX.sites(deep), [14, 17, 18, 23]) if site.grounds}
    double = {f"transformer_blocks.{number}.attn.processor" for number in (14, 17, 18)}
    assert read == {*double, "single_transformer_blocks.4.attn.processor"}
    usual = {site.block for site in FLUX.sites(deep) if site.grounds}
    assert usual == set(range(10, 19))
    shallow = FluxTransformer2DModel(**sizes, num_layers=1, num_single_layers=2, in_channels=4, axes_dims_rope=(2, 2, 4))
    assert {site.block for site in FLUX.sites(shallow) if site.grounds} == {0}
