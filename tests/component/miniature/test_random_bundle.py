"""The built-in model `random`: real classes load it, its bytes are fixed, its numbers are of ordinary size."""

import hashlib
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vimaedit.errors import ConfigError
from vimaedit.miniature.random_bundle import LAYOUT_VERSION, random_bundle, write_random_bundle
from vimaedit.miniature.vocabulary import WORDS, build_merges, byte_symbols

# Of all weight files of seed 0. When it changes, LAYOUT_VERSION must be raised: old bundles lie in people's caches.
WEIGHTS_DIGEST = {3: "bc55f935c208583efa2eca5bc9f8e734d05c2df3f5f331d3c22e65b0f1a5dbdf"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return random_bundle(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def pipe(bundle):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(bundle / "sd", local_files_only=True)
    pipe.load_ip_adapter(str(bundle / "ip_adapter"), subfolder="models", weight_name="ip-adapter_sd15.safetensors")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(seed: int) -> Image.Image:
    """Draw a smooth picture of uneven sides."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((149, 131), Image.Resampling.BICUBIC)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_bytes_depend_on_the_seed_alone(bundle, tmp_path):
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    write_random_bundle(tmp_path / "again")
    write_random_bundle(tmp_path / "other", seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    first, again, other = files_of(bundle), files_of(tmp_path / "again"), files_of(tmp_path / "other")
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {name for name in first if name.endswith(".safetensors")}


def test_weights_are_those_of_the_layout_version(bundle):
    digest = hashlib.sha256()
    for name, content in files_of(bundle).items():
        if name.endswith(".safetensors"):
            digest.update(name.encode() + hashlib.sha256(content).digest())
    assert digest.hexdigest() == WEIGHTS_DIGEST[LAYOUT_VERSION]


def test_states_what_it_is(bundle):
    stated = json.loads((bundle / "bundle.json").read_text())
    assert stated == {
        "name": "random",
        "canvas_size": 128,
        "grounding_sides": {"self": 0.5, "cross": 0.5},
        "warning": "random weights: the pictures mean nothing",
    }


def test_stock_pipeline_runs_it(pipe):
    def latents(prompt: str, image: Image.Image) -> torch.Tensor:
        return pipe(
            prompt,
            ip_adapter_image=image,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(2),
            output_type="latent",
        ).images

    cat = latents("a photo of a cat", picture(1))
    assert cat.shape == (1, 4, 16, 16)
    assert torch.isfinite(cat).all() and cat.std() > 0.5
    assert (latents("a photo of a tiger", picture(1)) - cat).abs().max() > 0.05
    assert (latents("a photo of a cat", picture(4)) - cat).abs().max() > 0.05


def test_autoencoder_keeps_ordinary_sizes(pipe):
    pixels = torch.from_numpy(np.array(picture(5).resize((128, 96)))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    assert latents.shape == (1, 4, 12, 16) and decoded.shape == pixels.shape
    assert 0.3 < latents.std() < 3
    assert 0.2 < decoded.std() < 1


def test_attention_and_noise_have_ordinary_sizes(pipe):
    entropies = []

    def measure(attention, args, kwargs, output):
        hidden = args[0]
        context = kwargs.get("encoder_hidden_states")
        context = hidden if context is None else context[0] if isinstance(context, tuple) else context
        queries = attention.head_to_batch_dim(attention.to_q(hidden))
        weights = attention.get_attention_scores(queries, attention.head_to_batch_dim(attention.to_k(context)))
        entropies.append(float(torch.special.entr(weights).sum(-1).mean() / np.log(weights.shape[-1])))

    hooks = [
        module.register_forward_hook(measure, with_kwargs=True)
        for name, module in pipe.unet.named_modules()
        if name.endswith(("attn1", "attn2"))
    ]
    noise = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        text = torch.cat(pipe.encode_prompt("a red house near a river", "cpu", 1, True)[::-1])
        embeds = [torch.zeros(2, 1, 48)]
        predicted = pipe.unet(noise, 501, text, added_cond_kwargs={"image_embeds": embeds}).sample
    for hook in hooks:
        hook.remove()
    assert len(entropies) == 14
    assert all(0.6 < entropy < 0.97 for entropy in entropies), entropies
    assert 0.1 < predicted.std() < 0.5


def test_image_encoder_is_the_vision_tower_of_clip(bundle, pipe):
    from transformers import CLIPModel

    pixels = pipe.feature_extractor([picture(6)], return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 64, 64)
    clip = CLIPModel.from_pretrained(bundle / "clip")
    with torch.no_grad():
        embedding = clip.get_image_features(pixels).pooler_output
        assert torch.allclose(embedding, pipe.image_encoder(pixels).image_embeds, atol=1e-5)
    tower = pipe.image_encoder.state_dict()
    assert len(tower) > 50 and all(torch.equal(clip.state_dict()[name], weight) for name, weight in tower.items())


def test_words_are_single_tokens_with_offsets(bundle):
    from transformers import CLIPTokenizer

    for folder in ("clip", "sd/tokenizer"):
        tokenizer = CLIPTokenizer.from_pretrained(bundle / folder)
        assert tokenizer.is_fast and tokenizer.model_max_length == 77
        ids = tokenizer(WORDS).input_ids
        assert [tokenizer.convert_ids_to_tokens(row) for row in ids] == [
            ["<|startoftext|>", f"{word}</w>", "<|endoftext|>"] for word in WORDS
        ]
        text = "A Cat, naïve 犬"
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert [text[a:b] for a, b in encoded.offset_mapping[1:4]] == ["A", "Cat", ","]
        assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == "a cat , naïve 犬"
        assert tokenizer("cat", padding="max_length").input_ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1


def test_merges_join_repeated_letters_once():
    merges = build_merges(["aaaa", "aab"])
    assert merges == [("a", "a"), ("aa", "a"), ("aaa", "a</w>"), ("aa", "b</w>")]
    assert len(set(byte_symbols())) == 256


def test_those_that_ask_at_once_share_one_folder(tmp_path):
    """Both have built theirs before the first of them gives it its name."""
    both, built = threading.Barrier(2), []

    def write(folder):
        (folder / "bundle.json").write_text("{}")
        built.append(folder)
        both.wait(60)

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: random_bundle(tmp_path, name="other", write=write), range(2)))
    assert len(set(built)) == 2 and set(answers) == {tmp_path / f"other-v{LAYOUT_VERSION}"}
    assert [path.name for path in tmp_path.iterdir()] == [f"other-v{LAYOUT_VERSION}"]
    assert files_of(answers[0]) == {"bundle.json": b"{}"}


def test_cache_is_the_users_and_built_once(bundle, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundle.parent / "xdg"))
    (bundle.parent / "xdg").mkdir()
    (bundle.parent / "xdg" / "vimaedit").symlink_to(bundle.parent)
    changed = (bundle / "bundle.json").stat().st_mtime_ns
    assert random_bundle().resolve() == bundle.resolve()
    assert (bundle / "bundle.json").stat().st_mtime_ns == changed


def test_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / f"random-v{LAYOUT_VERSION}"
    text = (
        f"model: got random, whose folder {folder} cannot be made (File exists); allowed: XDG_CACHE_HOME naming a folder that can be "
        "written, or a model of your own"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(text)}$"):
        random_bundle(tmp_path / "file")
