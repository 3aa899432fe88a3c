"""InfEdit's and LOCATEdit's tokens held to the recorded ones, all pairs of prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.parity.replay import load_models
from vimaedit.models.backbone import Backbone
from vimaedit.recipes import method_config
from vimaedit.types import BlendPhrase, EditRequest
from vimaedit.words.tokens import link_words, settle_tokens


def test_tokens_are_as_recorded(oracle: Path) -> None:
    networks, _ = load_models(oracle, image_guidance=False)
    cases = json.loads((oracle / "baselines" / "tokens_virtual.json").read_text())["cases"]
    assert len(cases) >= 10
    for case in cases:
        name = f"{case['prompt_src']} -> {case['prompt_tar']} ({case['blend_word']})"
        config = method_config(
            "infedit",
            blend="given",
            missing_blend="ignore",
            auxiliary={"mutual_words": case["mutual_word"]},
            quirks=["infedit-crosswise"],
        )
        backbone = Backbone(networks, config)
        request = EditRequest(
            id="case",
            image=np.zeros((8, 8, 3), dtype=np.uint8),
            source_prompt=case["prompt_src"],
            target_prompt=case["prompt_tar"],
        )
        tokens = settle_tokens(request, config, backbone.networks.tokenizers)
        # The program takes any text for the word, also one that the prompt lacks.
        word = BlendPhrase(source=None, target=case["blend_word"] or None)
        tokens = type(tokens)(**{**vars(tokens), "blend_used": (word,)})
        states = backbone.encode_texts([request.source_prompt, request.target_prompt])["text"].numpy()
        linked = link_words(tokens, (states[0], states[1]), config, backbone.tokenizer)
        count = case["target_token_count"]
        sources = np.where(linked.keep == 1, -1, linked.fold.argmax(axis=0))[:count]
        assert sources.tolist() == case["mapper"], name
        assert (1 - linked.keep[:count]).tolist() == case["mapper_alphas"], name
        assert (1 - tokens.keep[:count]).tolist() == case["mapper_alphas_before_link"], name
        assert np.flatnonzero(linked.word_mask[1]).tolist() == case["alpha_e"], name
        assert np.flatnonzero(linked.word_mask[0]).tolist() == case["alpha_m"], name

        strong = settle_tokens(request, method_config("locatedit", blend="none"), backbone.networks.tokenizers)
        factors = strong.fold.sum(axis=0) + strong.keep
        assert np.flatnonzero(factors == 15).tolist() == case["locatedit_reweighted_tokens"], name
