"""The stage that trains a CLIP: pictures and captions of scenes told apart, and those of edited scenes from the unedited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from vimaedit.miniature.family import CLIP_MEAN, CLIP_STD
from vimaedit.miniature.training.data import Batch, clip_views, load_tokenizer, tokenize, training_edit, validation_scene

BATCH = 40  # edits: twice as many pictures, each beside its edited twin
_EVALUATED = 300
_CHOICES = 100  # captions among which the right one has to be found


@dataclass(frozen=True)
class TwinDraw:
    """Batches of edits: CLIP's views (2 B, side, side, 3) of the pictures before and after, and their captions' ids (2 B, T)."""

    stage: str
    batch: int
    tokenizer: CLIPTokenizer = field(default_factory=load_tokenizer)

    def __call__(self, first: int) -> Batch:
        """Draw the batch that begins with edit number `first`."""
        edits = [training_edit(self.stage, first + n) for n in range(self.batch)]
        views = clip_views([scene for each in edits for scene in (each.source, each.target)])
        captions = [caption for each in edits for caption in (each.source_prompt, each.target_prompt)]
        return views, tokenize(self.tokenizer, captions).numpy().astype(np.int32)


class ContrastiveStage:
    """One of the two CLIPs, `clip`, which steers, or `scoring_clip`; either has training scenes of its own."""

    def __init__(self, clip: CLIPModel, draw: TwinDraw, device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.draw, self.batch = draw.stage, draw, draw.batch
        self.device, self.dtype = device, dtype
        self.trained: CLIPModel = clip.to(device)
        pairs = [validation_scene(n) for n in range(_EVALUATED)]
        views = torch.from_numpy(clip_views([scene for scene, _ in pairs])).to(device)
        self._evaluated = views, tokenize(draw.tokenizer, [caption for _, caption in pairs]).to(device)

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the contrastive loss, mean of both directions. A new style or one word more makes the nearest wrong answers."""
        views, ids = batch
        images, texts = self._embed(self.trained, views, ids.long())
        logits = self.trained.logit_scale.exp().clamp(max=100.0) * images @ texts.T
        own = torch.arange(len(logits), device=self.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return how often the right one of 100 captions is found for a picture, and of 100 pictures for a caption."""
        images, texts = self._embed(trained, *self._evaluated)
        parts = list(zip(images.split(_CHOICES), texts.split(_CHOICES), strict=True))
        return {
            "image_to_text": sum(retrieval(image, text) for image, text in parts) / len(parts),
            "text_to_image": sum(retrieval(text, image) for image, text in parts) / len(parts),
        }

    def weights(self, trained: nn.Module) -> Mapping[str, Tensor]:
        """Return all weights."""
        return trained.state_dict()

    def _embed(self, clip: nn.Module, views: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return embed(clip, clip_pixels(views), ids)


def clip_pixels(views: Tensor) -> Tensor:
    """Return CLIP's views as the vision tower takes them: (B, 64, 64, 3) uint8 -> (B, 3, 64, 64), normalised."""
    pixels = views.permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(each, device=views.device).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / deviation


def embed(clip: Any, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Embed pictures and captions, both normalised, (B, E)."""
    images = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
    texts = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
    return F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)


def retrieval(queries: Tensor, answers: Tensor) -> float:
    """Return the share of queries whose nearest answer is their own."""
    return float(((queries @ answers.T).argmax(dim=1).cpu() == torch.arange(len(queries))).float().mean())
