"""The two slow paths with gradients: words that are fitted (DPL), and latents that are moved (pix2pix-zero)."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.component.conftest import request
from tests.component.methods.test_methods import Build, build, conditioned, equal_prompts, predict, run
from vimaedit.attention.control import plain_control
from vimaedit.attention.recorder import TextProbe
from vimaedit.engine.batch import EditBatch
from vimaedit.engine.editor import BatchEditor
from vimaedit.errors import ConfigError
from vimaedit.methods.options import Pix2PixZero, PromptLearning
from vimaedit.models.backbone import Backbone, Networks
from vimaedit.models.files import ModelFacts
from vimaedit.parts.learned_words import LearnedWords, Pass, background_cells, fit_words, learned_maps, losses, own_embeddings
from vimaedit.parts.pix2pix_zero import correlation, divergence, keep_attention, like_noise, roll_shares
from vimaedit.parts.tracks import begin_track, invert
from vimaedit.step.noise import SeededNoise
from vimaedit.step.rows import SOURCE, TARGET, RowKind
from vimaedit.step.solvers import Level, method_schedule, move
from vimaedit.types import EditRequest
from vimaedit.words.tokens import content_words, token_spans

__all__ = ["build"]  # a fixture

PROMPT = "a photo of a red circle and a blue star on the lawn"


def encoded(editor: BatchEditor, *requests: EditRequest) -> EditBatch:
    return editor.encode([editor.prepare(each) for each in requests])


def text_of(editor: BatchEditor, prompt: str) -> torch.Tensor:
    return editor.backbone.encode_texts([prompt])["text"]


def test_the_losses_are_the_formulas() -> None:
    rng = np.random.default_rng(0)
    n, tokens, hw = 35, 11, (5, 7)
    maps = rng.random((2, n, tokens)).astype(np.float32) / 20
    words = np.zeros((2, 3, tokens), dtype=np.float32)
    words[0, 0, 2] = words[0, 1, [4, 5]] = words[0, 2, 8] = words[1, 0, 3] = 1
    background = (rng.random((2, n)) > 0.5).astype(np.float32)
    learned = LearnedWords(ids={}, words=torch.from_numpy(words))
    place, overlap, behind, best = losses(torch.from_numpy(maps), learned, torch.from_numpy(background), hw)
    kernel = np.array([[math.exp(-(dy**2 + dx**2)) for dx in (-1, 0, 1)] for dy in (-1, 0, 1)])
    kernel /= kernel.sum()

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for request_number, rows in enumerate(([[2], [4, 5], [8]], [[3]])):
        inner = np.exp(100 * maps[request_number, :, 1:-1])
        inner /= inner.sum(axis=-1, keepdims=True)
        highest = []
        for row in rows:
            grid = np.pad(inner[:, [t - 1 for t in row]].sum(axis=-1).reshape(hw), 1, mode="reflect")
            smooth = sum(kernel[dy, dx] * grid[dy : dy + hw[0], dx : dx + hw[1]] for dy in range(3) for dx in range(3))
            highest.append(float(np.max(smooth)))
        own = [maps[request_number][:, row].sum(axis=-1) for row in rows]
        pairs = [cosine(own[a], own[b]) for a in range(len(own)) for b in range(a + 1, len(own))]
        assert best[request_number, : len(rows)].tolist() == pytest.approx(highest, rel=1e-4)
        assert float(place[request_number]) == pytest.approx(max(0.0, *(1 - each for each in highest)), rel=1e-4)
        assert float(overlap[request_number]) == pytest.approx(np.mean(pairs) if pairs else 0.0, rel=1e-4)
        backgrounds = [cosine(each, background[request_number]) for each in own]
        assert float(behind[request_number]) == pytest.approx(np.mean(backgrounds), rel=1e-4)


def test_what_no_word_is_in_is_background() -> None:
    self_hw, cross_hw = (4, 6), (2, 3)
    block = (torch.arange(24) % 6) // 2  # three stripes of two columns
    self_map = (block[:, None] == block).float()[None] + 0.01
    at_cross = torch.tensor([0, 1, 2, 0, 1, 2])
    words = torch.stack([(at_cross == 0).float() + 0.01, 5 * (at_cross == 2).float() + 0.05, torch.zeros(6)])[None]
    learned = LearnedWords(ids={}, words=torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 0]]]))
    found = background_cells(self_map, words, learned, (cross_hw, self_hw))
    assert found[0].tolist() == [0, 1, 0, 0, 1, 0]


def test_fitted_words_are_those_that_say_what_is_there(build: Build) -> None:
    tokenizer = build("dpl", image_guidance=False).backbone.tokenizer
    marked = content_words(PROMPT, tokenizer)
    ids = token_spans(PROMPT, tokenizer).ids
    found = [tokenizer.decode([ids[token] for token in np.flatnonzero(row)]).strip() for row in marked]
    assert found == ["red", "circle", "blue", "star", "lawn"]
    assert content_words("a photo of the", tokenizer).shape == (0, 77)


def test_a_fit_lowers_its_loss_and_leaves_the_others_alone(build: Build) -> None:
    editor = build("dpl", image_guidance=False)
    requests = [request(0, source_prompt=PROMPT), request(1, source_prompt="a painting")]
    batch = encoded(editor, *requests)
    assert batch.learned is not None and batch.learned.exists.sum(dim=1).tolist() == [5, 0]
    ids = {name: each.clone() for name, each in batch.learned.ids.items()}
    words = batch.learned.words.clone()
    learned = LearnedWords(ids=ids, words=words)
    own = own_embeddings(editor.backbone, learned)
    passes: list[Pass] = []
    background = torch.zeros(2, 1024)[:, : int(np.prod(editor.backbone.map_sizes(batch.x0.shape[-2:])[0]))]
    fit = (batch.x0.clone(), 501, 0, own, learned, background)
    fitted = fit_words(editor.backbone, *fit, PromptLearning(passes=6, rate=0.02), passes.append)
    first, last = (
        losses(each.maps, learned, background, editor.backbone.map_sizes(batch.x0.shape[-2:])[0])
        for each in (passes[0], passes[-1])
    )
    assert len(passes) == 6 and float(last[0][0] + 0.05 * last[1][0]) < float(first[0][0] + 0.05 * first[1][0])
    assert torch.equal(fitted[1], own[1])  # no word, nothing to fit
    moved = (fitted[0] != own[0]).any(dim=-1)
    assert torch.equal(moved, learned.tokens[0, :, 0])
    assert torch.equal(fit_words(editor.backbone, *fit, PromptLearning(passes=3, rate=0.0)), own)


def test_without_a_fit_the_map_is_the_attention_on_the_inverted_picture(build: Build) -> None:
    editor = build("dpl", image_guidance=False, steps=2, prompt_learning={"passes": 1, "rate": 0.0})
    batch = encoded(editor, request(0))
    assert batch.learned is not None
    schedule = method_schedule(editor.config, editor.backbone.alphas_cumprod)
    blend = batch.text_edit.words[0]
    found = learned_maps(editor.backbone, batch.x0, batch.learned, blend, editor.config, schedule)
    text = text_of(editor, request(0).source_prompt)
    levels = invert(editor.backbone, batch.x0, conditioned(editor.backbone, batch.x0, text), schedule)
    for i, timestep in enumerate(schedule.timesteps):
        names = sorted(editor.backbone.sites.text_maps)
        probe = TextProbe([])
        control = dataclasses.replace(plain_control(torch.zeros(1)), text_probe=probe)
        editor.backbone.predict(levels[i], torch.tensor(timestep), conditioned(editor.backbone, batch.x0, text), control)
        n = found.shape[-1]
        grounding = [weights for weights in probe.weights if weights.shape[2] == n]
        assert len(grounding) == len(names)  # no layer in the middle has this side
        wanted = (torch.stack(grounding).mean(dim=(0, 2))[0] * blend[0]).sum(dim=-1)
        torch.testing.assert_close(found[i, 0], wanted, atol=1e-5, rtol=1e-4)


def test_the_fitted_map_grounds_the_edit(build: Build) -> None:
    options: dict[str, Any] = {"image_guidance": False, "prompt_learning": {"passes": 2}}
    _, plain = run(build("vimaedit", image_guidance=False), [request(0)])
    _, learned = run(build("dpl", **options), [request(0)])
    first, second = plain[0].map_sum, learned[0].map_sum
    assert first is not None and second is not None
    assert not torch.equal(first[0], second[0])
    torch.testing.assert_close(second[1], first[1], atol=1e-6, rtol=0)  # the target's map is its own, as before


def test_correlation_and_divergence_are_the_formulas() -> None:
    noise = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    shares = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(2))
    wanted = 0.0
    for b in range(2):
        for c in range(3):
            picture = noise[b, c]
            for level in range(2):
                k = int(shares[level, b, c] * (picture.shape[0] // 2))
                for axis in (0, 1):
                    wanted += float((picture * torch.roll(picture, k, axis)).mean()) ** 2
                picture = F.avg_pool2d(picture[None], 2)[0]
    assert float(correlation(noise, shares)) == pytest.approx(wanted, rel=1e-5)
    flat = noise.flatten(1)
    each = flat.var(dim=1) + flat.mean(dim=1) ** 2 - 1 - flat.var(dim=1).log()
    assert float(divergence(noise)) == pytest.approx(float(each.sum()), abs=1e-5)


def test_what_is_no_noise_comes_nearer_to_it_and_alone_as_among_others() -> None:
    smooth = F.interpolate(torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3)), size=(16, 16), mode="bilinear")
    shares = roll_shares(SeededNoise([5, 7], (4, 16, 16)).draw(0))
    assert shares.shape == (5, 5, 2, 2, 4) and 0 <= float(shares.min()) and float(shares.max()) < 1
    neighbours = torch.full((1, 2, 4), 0.125)  # rolled by one
    after = like_noise(smooth, shares, Pix2PixZero())
    assert float(correlation(after, neighbours)) < 0.8 * float(correlation(smooth, neighbours))
    loud = 2 * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    assert float(divergence(like_noise(loud, shares, Pix2PixZero(correlation=0.0)))) < 0.9 * float(divergence(loud))
    alone = like_noise(smooth[1:], roll_shares(SeededNoise([7], (4, 16, 16)).draw(0)), Pix2PixZero())
    torch.testing.assert_close(after[1:], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("quirks", [[], ["zero-levels"]])
def test_without_regularisation_it_is_ddim_backwards(build: Build, quirks: list[str]) -> None:
    editor = build("p2p-zero", pix2pix_zero={"correlation": 0.0, "divergence": 0.0}, quirks=quirks)
    backbone, batch = editor.backbone, encoded(editor, request(0))
    schedule = method_schedule(editor.config, backbone.alphas_cumprod)
    assert batch.inversion is not None
    noise = SeededNoise([0], (4, 8, 8))
    track = begin_track(backbone, batch.x0, batch.inversion, batch.free, editor.config, schedule, noise)
    assert track.levels is not None
    if not quirks:
        plain = invert(backbone, batch.x0, batch.inversion, schedule)
        for own, other in zip(track.levels, plain, strict=True):
            torch.testing.assert_close(own, other, atol=1e-5, rtol=0)
        return
    alphas = backbone.alphas_cumprod
    below = [Level.of_noise(float(alphas[int(t) - 1])) for t in schedule.timesteps]
    for i in range(STEPS_OF := len(schedule)):
        eps = predict(backbone, track.levels[i + 1], schedule.timesteps[i], batch.inversion["text"])
        to = Level.of_noise(float(alphas[-1])) if i == 0 else below[i - 1]
        torch.testing.assert_close(track.levels[i], move(track.levels[i + 1], eps, below[i], to), atol=1e-4, rtol=0)
    assert STEPS_OF == editor.config.steps


@pytest.mark.parametrize("method", ["p2p-zero", "ddim-p2p-zero"])
def test_with_equal_prompts_the_target_is_the_source(build: Build, method: str) -> None:
    batch, states = run(build(method), [equal_prompts()])
    for state in states:
        torch.testing.assert_close(state.latents[TARGET], state.latents[SOURCE], atol=1e-4, rtol=0)
    if method == "p2p-zero":
        assert torch.equal(states[-1].latents[SOURCE], batch.x0)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_it_is_plain_guided_sampling_from_the_moved_latents(build: Build, rate: float) -> None:
    editor = build("ddim-p2p-zero", pix2pix_zero={"rate": rate})
    backbone, config = editor.backbone, editor.config
    batch, states = run(editor, [request(0)])
    schedule = method_schedule(config, backbone.alphas_cumprod)
    assert batch.inversion is not None
    noise = SeededNoise([request(0).seed], (4, 8, 8))
    x = begin_track(backbone, batch.x0, batch.inversion, batch.free, config, schedule, noise).start
    source, target = text_of(editor, request(0).source_prompt), text_of(editor, request(0).target_prompt)
    for i, timestep in enumerate(schedule.timesteps):
        x_R, _ = keep_attention(backbone, x, batch.layout, batch.conditioning, torch.tensor(timestep), config)
        own, other = (x_R[batch.layout.block(kind)] for kind in (RowKind.TARGET_UNCOND, RowKind.TARGET_COND))
        assert torch.equal(own, other) == (rate == 0.0) == torch.equal(own, x[TARGET])
        free = predict(backbone, own, timestep, source)
        eps = free + config.target_guidance * (predict(backbone, other, timestep, target) - free)
        moved = move(own, eps, schedule.levels[i], schedule.next_levels[i])
        torch.testing.assert_close(states[i].latents[TARGET], moved, atol=2e-4, rtol=1e-4)
        x = states[i].latents


def test_a_step_brings_the_text_attention_nearer(build: Build) -> None:
    editor = build("p2p-zero")
    backbone, batch = editor.backbone, encoded(editor, request(0))

    def distance(config: Any, x: torch.Tensor) -> float:
        x_R, _ = keep_attention(backbone, x, batch.layout, batch.conditioning, torch.tensor(501), config)
        probes = []
        for rows in (slice(1, 2), slice(0, 1), slice(2, 3)):  # source, and the target's rows beside it
            probe = TextProbe([])
            control = dataclasses.replace(plain_control(torch.zeros(1)), text_probe=probe)
            text = batch.conditioning["text"][slice(0, 1) if rows.start == 1 else rows]
            backbone.predict(x_R[rows], torch.tensor(501), conditioned(backbone, batch.x0, text), control)
            probes.append(probe.weights)
        return sum(
            float((own - wanted).square().sum()) for row in probes[1:] for own, wanted in zip(row, probes[0], strict=True)
        )

    x = torch.stack([batch.x0, batch.x0 + 0.3 * torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(4))])
    still = dataclasses.replace(editor.config, pix2pix_zero=Pix2PixZero(rate=0.0))
    gentle = dataclasses.replace(editor.config, pix2pix_zero=Pix2PixZero(rate=1e-3))
    assert distance(gentle, x) < distance(still, x)


def test_gradients_are_refused_in_half_precision(loaded: tuple[Networks, ModelFacts], build: Build) -> None:
    networks = dataclasses.replace(loaded[0], denoiser=copy.deepcopy(loaded[0].denoiser).half())
    for method in ("p2p-zero", "dpl"):
        config = build(method, image_guidance=False).config
        with pytest.raises(ConfigError, match=rf"^dtype: got float16 with method={method}, .* allowed: float32, bfloat16"):
            BatchEditor(Backbone(networks, config), config, loaded[1])
