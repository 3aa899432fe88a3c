"""A tiny vision-language model as a folder of transformers: with random weights, or weights by which it always gives one answer."""

from __future__ import annotations

from pathlib import Path

import torch

TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}\nANSWER:"
)


def write_llava(folder: Path, *, answer: str | None = None, template: str | None = TEMPLATE) -> Path:
    """Write a LLaVA of bytes; an `answer` is one token of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = {symbol: n for n, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_only = Tokenizer(models.BPE(vocab=words, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, pad_token="<pad>", eos_token="</s>", additional_special_tokens=["<image>"]
    )
    tokenizer.add_tokens([] if answer is None else [answer])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    end = tokenizer.eos_token_id
    text = LlamaConfig(
        **sizes,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        eos_token_id=end,
        bos_token_id=end,
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=16, patch_size=8),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config).eval()
    if answer is not None:
        _answer_always(model, tokenizer.convert_tokens_to_ids(answer), end)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def _answer_always(model: torch.nn.Module, answer: int, end: int) -> None:
    """Let the answer follow on any token, and the end on the answer: the layer adds nothing to the tokens' own vectors."""
    for name, weight in model.named_parameters():
        if name.endswith(("language_model.layers.0.self_attn.o_proj.weight", "language_model.layers.0.mlp.down_proj.weight")):
            weight.zero_()
    words = model.get_input_embeddings().weight
    words.zero_()
    words[:, 0] = 1
    words[answer] = torch.roll(words[0], 1)
    head = model.get_output_embeddings().weight
    head.zero_()
    head[answer, 0], head[end, 1] = 1, 1
