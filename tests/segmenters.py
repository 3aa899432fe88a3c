"""Tiny segmenters as folders of transformers: with random weights, and a detector whose weights are set by hand to see colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vimaedit.miniature.vocabulary import vocabulary, write_tokenizer
from vimaedit.scenes.palette import OBJECT_RGB
from vimaedit.scenes.scenes import Background, Scene, SceneObject

COLOURS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}  # of pixels, that grey is zero
DETECTOR_PX = 64
CELL_PX = 2  # of the detector: a box for each
LIKE = 0.97  # cosine above which two colours are one


def owlvit_config(width: int, *, side: int = DETECTOR_PX, cell: int = CELL_PX) -> Any:
    """Return a tiny config: as many channels in pictures as in texts, one layer each."""
    from transformers import OwlViTConfig

    size = len(vocabulary()[0])
    common = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ids = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    return OwlViTConfig(
        text_config={**common, **ids, "max_position_embeddings": 16},
        vision_config={**common, "image_size": side, "patch_size": cell},
        projection_dim=width,
    )


def write_owlvit(folder: Path, *, sees_colours: bool) -> Path:
    """Write an OWL-ViT: random, or one that marks every cell whose colour is that of a colour's name in the phrase."""
    from transformers import CLIPTokenizer, OwlViTForObjectDetection, OwlViTImageProcessorPil, OwlViTProcessor

    torch.manual_seed(3)
    model = OwlViTForObjectDetection(owlvit_config(6) if sees_colours else owlvit_config(16, side=32, cell=8)).eval()
    if sees_colours:
        see_colours(model)
    write_tokenizer(folder, length=16)
    side = model.config.vision_config.image_size
    pixels = OwlViTImageProcessorPil(
        size={"height": side, "width": side}, do_center_crop=False, image_mean=COLOURS["mean"], image_std=COLOURS["std"]
    )
    OwlViTProcessor(pixels, CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def see_colours(model: Any) -> None:
    """Set all weights: a cell's features are its mean colour beside its opposite, a text's those of the mean of its colours' names;
    what comes between is switched off, but for the attention that carries words to the text's end."""
    for name, weight in model.named_parameters():
        is_norm = "norm" in name and name.endswith("weight")
        weight.copy_(torch.ones_like(weight) if is_norm else torch.zeros_like(weight))
    both = torch.cat([torch.eye(3), -torch.eye(3)])
    vision, text = model.owlvit.vision_model, model.owlvit.text_model
    area = model.config.vision_config.patch_size**2
    vision.embeddings.patch_embedding.weight.copy_(
        (both / area)[:, :, None, None].expand_as(vision.embeddings.patch_embedding.weight)
    )
    vision.post_layernorm.bias.fill_(1.0)  # the class token, by which the cells are multiplied, is all ones
    ids, _ = vocabulary()
    for name, rgb in OBJECT_RGB.items():
        colour = torch.tensor(np.array(rgb) / 127.5 - 1, dtype=torch.float32)
        text.embeddings.token_embedding.weight[ids[f"{name}</w>"]] = both @ colour
    attention = text.encoder.layers[0].self_attn
    for layer in (attention.v_proj, attention.out_proj, model.owlvit.text_projection, model.class_head.dense0):
        layer.weight.copy_(torch.eye(6))
    model.class_head.logit_shift.bias.fill_(-LIKE)
    model.class_head.logit_scale.bias.fill_(1000.0)


def write_sam(folder: Path) -> Path:
    """Write a SAM with random weights: 64 px."""
    from transformers import (
        SamConfig,
        SamImageProcessorPil,
        SamMaskDecoderConfig,
        SamModel,
        SamProcessor,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    torch.manual_seed(5)
    vision = SamVisionConfig(
        hidden_size=16,
        output_channels=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        window_size=4,
        global_attn_indexes=[0],
        num_pos_feats=8,
        initializer_range=0.2,
    )
    prompts = SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(hidden_size=16, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=16)
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)).eval()
    pixels = SamImageProcessorPil(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 32},
        mask_pad_size={"height": 32, "width": 32},
    )
    SamProcessor(pixels).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def write_grounding_dino(folder: Path) -> Path:
    """Write a Grounding DINO with random weights, whose only words are those of "a red square." """
    from transformers import (
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "red", "square"]))
    torch.manual_seed(9)
    swin = SwinConfig(
        image_size=160,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config={
            "model_type": "bert",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "vocab_size": 9,
        },
        num_queries=7,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_n_points=2,
        decoder_n_points=2,
        max_text_len=16,
    )
    pixels = GroundingDinoImageProcessorPil(size={"shortest_edge": 160, "longest_edge": 192})
    GroundingDinoProcessor(pixels, BertTokenizerFast(str(folder / "vocab.txt"))).save_pretrained(folder)
    GroundingDinoForObjectDetection(config).eval().save_pretrained(folder)
    return folder


def red_and_blue() -> Scene:
    """Return a scene of a red square at the left and a blue circle at the right, on white."""
    common: dict[str, Any] = {"material": "plain", "face": None, "size": 400, "angle": 0}
    square = SceneObject(shape="square", colour="red", x=250, y=400, **common)
    circle = SceneObject(shape="circle", colour="blue", x=750, y=600, **common)
    return Scene(objects=(square, circle), background=Background(colour="white", pattern="plain"), style="picture")
