"""Settings: every range is checked, and the text says what is allowed."""

from typing import Any

import pytest

from vimaedit.config import Canvas, EditConfig, GroundingSides, Lora, ModelConfig, Thresholds, Windows
from vimaedit.errors import ConfigError
from vimaedit.methods import METHODS
from vimaedit.methods.options import Auxiliary, Concepts, Laplacian, NullText
from vimaedit.recipes import method_config

BAD: list[tuple[type, dict[str, Any], str]] = [
    (EditConfig, {"method": "p3p"}, r"method: got 'p3p'; allowed: vimaedit"),
    (Lora, {"path": "a", "scale": float("nan")}, r"lora.scale: got nan; allowed: -1000.0 to 1000.0"),
    (EditConfig, {"steps": 0}, r"steps: got 0; allowed: 1 to 999"),
    (EditConfig, {"seed": -1}, r"seed: got -1; allowed: 0 to"),
    (EditConfig, {"solver": "euler"}, r"solver: got 'euler'; allowed: ddim, dpmsolver\+\+"),
    (EditConfig, {"variance": "some"}, r"variance: got 'some'; allowed: adaptive, uniform, zero"),
    (EditConfig, {"grounding": "sam"}, r"grounding: got 'sam'; allowed: vimaedit, cross-attention, laplacian, local-blend"),
    (EditConfig, {"eta": 1.5}, r"eta: got 1.5; allowed: 0.0 to 1.0"),
    (
        EditConfig,
        {"eta": 0.5, "solver": "dpmsolver++"},
        r"eta: got 0.5 with solver=dpmsolver\+\+; allowed: 1.0, or solver=ddim",
    ),
    (EditConfig, {"target_guidance": float("nan")}, r"target_guidance: got nan; allowed: 0.0 to 100.0"),
    (EditConfig, {"blend": "maybe"}, r"blend: got 'maybe'; allowed: auto, given, none"),
    (EditConfig, {"missing_blend": "x"}, r"missing_blend: got 'x'; allowed: reject, ignore"),
    (EditConfig, {"long_prompt": "x"}, r"long_prompt: got 'x'; allowed: truncate, reject"),
    (EditConfig, {"text_guidance": False, "image_guidance": False}, r"text_guidance, image_guidance: got false for both"),
    (
        EditConfig,
        {"grounding": "concepts"},
        r"grounding: got concepts with method=vimaedit; allowed: vimaedit, .*local-blend, dpl, given",
    ),
    (EditConfig, {"method": "infedit"}, r"grounding: got vimaedit with method=infedit; allowed: auxiliary"),
    (EditConfig, {"skip": 1.0}, r"skip: got 1.0; allowed: 0.0 to 0.99"),
    (EditConfig, {"start": "zeros"}, r"start: got 'zeros'; allowed: image, noise"),
    (EditConfig, {"text_control": "x"}, r"text_control: got 'x'; allowed: refine, replace, auto"),
    (EditConfig, {"new_word_weight": 101}, r"new_word_weight: got 101; allowed: 0.0 to 100.0"),
    (EditConfig, {"direction_kept": -1.0}, r"direction_kept: got -1.0; allowed: 0.0 to 100.0"),
    (EditConfig, {"mutual_start": -1}, r"mutual_start: got -1; allowed: 0 to 999"),
    (EditConfig, {"guidance_end": 1.5}, r"guidance_end: got 1.5; allowed: 0.0 to 1.0"),
    (EditConfig, {"proximal_quantile": 2.0}, r"proximal_quantile: got 2.0; allowed: 0.0 to 1.0"),
    (EditConfig, {"method": "p2p-zero"}, r"image_guidance: got true with method=p2p-zero, .* allowed: false"),
    (EditConfig, {"quirks": ["pnp"]}, r"quirks: got 'pnp'; allowed: absent-words, .*proximal-soft"),
    (EditConfig, {"quirks": "pnp-shift"}, r"quirks: got 'pnp-shift'; allowed: list"),
    (Windows, {"feature": 2.0}, r"windows.feature: got 2.0; allowed: 0.0 to 1.0"),
    (Laplacian, {"alpha": -1.0}, r"laplacian.alpha: got -1.0; allowed: 0.0 to 1000.0"),
    (Laplacian, {"tau": 101.0}, r"laplacian.tau: got 101.0; allowed: -100.0 to 100.0"),
    (Laplacian, {"weight": -1.0}, r"laplacian.weight: got -1.0; allowed: 0.0 to 1000.0"),
    (NullText, {"steps": 0}, r"null_text.steps: got 0; allowed: 1 to 1000"),
    (NullText, {"stop": -1.0}, r"null_text.stop: got -1.0; allowed: 0.0 to 1000.0"),
    (Concepts, {"mask": "both"}, r"concepts.mask: got 'both'; allowed: intersect, attention, guidance, none"),
    (Concepts, {"warmup": -1}, r"concepts.warmup: got -1; allowed: 0 to 999"),
    (Concepts, {"cooldown": 1000}, r"concepts.cooldown: got 1000; allowed: 0 to 999"),
    (Auxiliary, {"text_from": "x"}, r"auxiliary.text_from: got 'x'; allowed: auxiliary, source"),
    (Auxiliary, {"mutual_threshold": 2.0}, r"auxiliary.mutual_threshold: got 2.0; allowed: 0.0 to 1.0"),
    (Windows, {"self": 1.1}, r"windows.self: got 1.1; allowed: 0.0 to 1.0"),
    (Windows, {"text": -0.1}, r"windows.text: got -0.1; allowed: 0.0 to 1.0"),
    (Thresholds, {"critical": 2.0}, r"thresholds.critical: got 2.0; allowed: -1.0 to 1.0"),
    (GroundingSides, {"cross": 0.3}, r"grounding_sides.cross: got 0.3; allowed: 1, 0.5, 0.25"),
    (Canvas, {"fit": "stretch"}, r"canvas.fit: got 'stretch'; allowed: crop, keep"),
    (Canvas, {"size": 4}, r"canvas.size: got 4; allowed: 8 to 4096 px"),
    (Lora, {}, r"lora: got an entry without a path"),
    (ModelConfig, {"model": ""}, r"model: got an empty string"),
    (ModelConfig, {"dtype": "int8"}, r"dtype: got 'int8'; allowed: auto, float32, float16, bfloat16"),
    (ModelConfig, {"device": "tpu"}, r"device: got 'tpu'; allowed: auto, cpu, cuda, cuda:NUMBER"),
    (ModelConfig, {"device": "cuda:x"}, r"device: got 'cuda:x'; allowed: auto"),
    (ModelConfig, {"lora": ["style.safetensors"]}, r"lora: got \['style.safetensors'\]; allowed: list"),
    (EditConfig, {"steps": 1.5}, r"steps: got 1.5; allowed: int"),
    (EditConfig, {"steps": True}, r"steps: got True; allowed: int"),
    (EditConfig, {"eta": "1"}, r"eta: got '1'; allowed: float"),
    (EditConfig, {"blend": None}, r"blend: got None; allowed: str"),
    (EditConfig, {"thresholds": 0.3}, r"thresholds: got 0.3; allowed: Thresholds"),
    (EditConfig, {"canvas": "keep"}, r"canvas: got 'keep'; allowed: Canvas"),
    (Windows, {"text": None}, r"text: got None; allowed: float"),
    (GroundingSides, {"self": "half"}, r"self: got 'half'; allowed: float \| None"),
]


@pytest.mark.parametrize(("kind", "options", "text"), BAD)
def test_bad_settings_are_refused_with_what_is_allowed(kind: type, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        kind(**options)


def test_defaults_are_the_published_settings() -> None:
    config = EditConfig()
    assert (config.steps, config.source_guidance, config.target_guidance, config.image_strength) == (50, 1.0, 7.5, 0.4)
    assert (config.windows.self, config.windows.text, config.windows.image) == (0.6, 0.4, 0.1)
    assert (config.thresholds.edit, config.thresholds.critical, config.grounding_rounds) == (0.5, 0.8, 5)


@pytest.mark.parametrize(
    ("options", "words", "self_attention"),
    [
        ({}, True, True),
        ({"grounding": "cross-attention"}, True, False),
        ({"grounding_rounds": 0}, True, False),
        ({"grounding": "given"}, False, False),
        ({"blend": "none"}, False, False),
    ],
)
def test_what_grounding_reads_follows_from_the_options(options: dict[str, Any], words: bool, self_attention: bool) -> None:
    config = EditConfig(**options)
    assert (config.reads_words, config.reads_self_attention) == (words, self_attention)


@pytest.mark.parametrize("method", METHODS)
def test_guidance_ends_early_only_where_it_is_two_rows(method: str) -> None:
    if method in (
        "infedit",
        "leditspp",
        "proximal-p2p",
        "p2p-zero",
        "ddim-p2p-zero",
        "uniedit-flow",
        "fireflow",
        "rf-solver",
        "pipeline",
    ):
        with pytest.raises(ConfigError, match=f"^guidance_end: got 0.5 with method={method}; allowed: 1.0, or a method whose"):
            method_config(method, guidance_end=0.5)
    else:
        assert method_config(method, guidance_end=0.5).guidance_end == 0.5
