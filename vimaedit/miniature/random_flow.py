"""The built-in models `random-sd3` and `random-flux`: flow transformers at toy size, weights drawn as those of `random` are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimaedit.miniature.bundle_files import write_transformer
from vimaedit.miniature.random_bundle import CLIP_GAINS, WARNING, random_bundle, redraw, text_settings
from vimaedit.miniature.vocabulary import WORDS, write_json, write_tokenizer

if TYPE_CHECKING:
    from transformers import T5EncoderModel

KINDS = {"random-sd3": "sd3", "random-flux": "flux"}
CANVAS_SIZE = 128  # px
CHANNELS = 16
CLIP_WIDTH, T5_WIDTH, WIDTH, HEADS = 32, 64, 64, 4  # of the encoders, and of the transformers
POOLED = 48  # width of a CLIP's projected text, as `text_settings` has it
# The transformers' attention has queries and keys of unit size; what steps are scaled by stays small, so that passes do not explode.
TRANSFORMER_GAINS = {"norm": 0.5, "proj_out": 0.8, "to_q": 1.0, "to_k": 1.0}
VAE_GAINS = {
    "sd3": {"decoder.conv_out": 0.8, "encoder.conv_out": 1.1},
    "flux": {"decoder.conv_out": 0.8, "encoder.conv_out": 4.5},
}
T5_GAINS = {"relative_attention_bias": 0.5, ".q.": 0.5, ".o.": 0.7, "wo": 0.7, "shared": 1.0}
FACTORS = {"sd3": (1.5305, 0.0609), "flux": (0.3611, 0.1159)}  # of the public models' autoencoders
FLOW_SCHEDULER = {"sd3": {"shift": 3.0}, "flux": {"shift": 3.0, "use_dynamic_shifting": True}}
UNKNOWN, PIECE_START = "<unk>", "\u2581"


def random_flow_bundle(name: str, cache_root: Path | None = None) -> Path:
    """Return the folder of `random-sd3` or `random-flux`, built at first use, see `random_bundle`.

    Raises: ConfigError if the cache cannot be written.
    """
    return random_bundle(cache_root, name=name, write=lambda folder: write_random_flow(folder, KINDS[name]))


def write_random_flow(folder: Path, kind: str, *, seed: int = 0) -> None:
    """Write a bundle of kind `sd3` or `flux` with the same bytes on every machine, see `write_random_bundle`."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    scale, shift = FACTORS[kind]
    clips = {"sd3": ("text_encoder", "text_encoder_2"), "flux": ("text_encoder",)}[kind]
    clip_class = {"sd3": CLIPTextModelWithProjection, "flux": CLIPTextModel}[kind]
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights that are then overwritten
        transformer = _transformer(kind)
        vae = AutoencoderKL(**_vae_settings(), scaling_factor=scale, shift_factor=shift)
        encoders: dict[str, Any] = {name: clip_class(CLIPTextConfig(**text_settings(CLIP_WIDTH))) for name in clips}
        t5: T5EncoderModel = T5EncoderModel(T5Config(**_t5_settings()))
    redraw(transformer, f"{seed}:{kind}:transformer", TRANSFORMER_GAINS)
    if kind == "sd3":  # its sines and cosines are tabulated, and processors differ in their last bits
        transformer.pos_embed.pos_embed.copy_(transformer.pos_embed.pos_embed.half())
    redraw(vae, f"{seed}:{kind}:vae", VAE_GAINS[kind])
    redraw(t5, f"{seed}:{kind}:t5", T5_GAINS)
    pipeline = folder / kind
    transformer.save_pretrained(pipeline / "transformer")
    vae.save_pretrained(pipeline / "vae")
    FlowMatchEulerDiscreteScheduler(**FLOW_SCHEDULER[kind]).save_pretrained(pipeline / "scheduler")
    for name, encoder in encoders.items():
        redraw(encoder, f"{seed}:{kind}:{name}", CLIP_GAINS)
        write_transformer(encoder, pipeline / name)
        write_tokenizer(pipeline / name.replace("text_encoder", "tokenizer"))
    last = f"text_encoder_{len(clips) + 1}"
    write_transformer(t5, pipeline / last)
    write_pieces(pipeline / last.replace("text_encoder", "tokenizer"))
    index: dict[str, Any] = {
        "_class_name": {"sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}[kind],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", type(transformer).__name__],
        "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": [None, None],
        "feature_extractor": [None, None],
        last: ["transformers", "T5EncoderModel"],
        last.replace("text_encoder", "tokenizer"): ["transformers", "T5TokenizerFast"],
    }
    for name in clips:
        index[name] = ["transformers", clip_class.__name__]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    write_json(pipeline / "model_index.json", index)
    write_json(folder / "bundle.json", {"name": f"random-{kind}", "canvas_size": CANVAS_SIZE, "warning": WARNING})


def _transformer(kind: str) -> Any:
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    size: dict[str, Any] = {"num_attention_heads": HEADS, "attention_head_dim": WIDTH // HEADS, "joint_attention_dim": T5_WIDTH}
    if kind == "flux":
        return FluxTransformer2DModel(
            in_channels=4 * CHANNELS,
            num_layers=2,
            num_single_layers=2,
            pooled_projection_dim=CLIP_WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
            **size,
        )
    return SD3Transformer2DModel(
        sample_size=CANVAS_SIZE // 8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=3,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * POOLED,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
        **size,
    )


def _vae_settings() -> dict[str, Any]:
    return {
        "sample_size": CANVAS_SIZE,
        "block_out_channels": (16, 16, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": CHANNELS,
        "norm_num_groups": 8,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def _t5_settings() -> dict[str, Any]:
    return {
        "vocab_size": len(pieces()),
        "d_model": T5_WIDTH,
        "d_kv": T5_WIDTH // HEADS,
        "d_ff": 2 * T5_WIDTH,
        "num_layers": 2,
        "num_heads": HEADS,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "is_encoder_decoder": False,
        "use_cache": False,
    }


def pieces() -> list[list[Any]]:
    """Return a unigram vocabulary with its scores: the everyday words whole, and the characters that others are made of."""
    whole = [[PIECE_START + word, -6.0] for word in dict.fromkeys(WORDS)]
    letters = sorted({letter for word in WORDS for letter in word} | set(".,'-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    single = [[text, -12.0] for text in (PIECE_START, *letters)]
    return [["<pad>", 0.0], ["</s>", 0.0], [UNKNOWN, 0.0], *whole, *single]


def write_pieces(folder: Path) -> None:
    """Write a tokenizer of T5's kind, as `T5TokenizerFast.from_pretrained` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    split = {"type": "Metaspace", "replacement": PIECE_START, "prepend_scheme": "always", "split": True}
    special = [("<pad>", 0), ("</s>", 1), (UNKNOWN, 2)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    sequence, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **flags} for text, number in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, split]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [sequence, end],
            "pair": [sequence, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": split,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces(), "byte_fallback": False},
    }
    write_json(folder / "tokenizer.json", content)
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": UNKNOWN}
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0, **names}
    )
