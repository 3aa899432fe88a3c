"""The stage that trains a CLIP: pictures and captions of scenes told apart, and those of edited scenes from the unedited."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from vimaedit.images import clip_view
from vimaedit.miniature.family import CLIP_MEAN, CLIP_SIDE, CLIP_STD, new_clip
from vimaedit.miniature.training.data import load_tokenizer, render_batch, tokenize, training_edit, validation_scene
from vimaedit.scenes.scenes import Scene

EDITS = 40  # of a batch: twice as many pictures, each beside its edited twin
_EVALUATED = 300
_CHOICES = 100  # captions among which the right one has to be found


class ContrastiveStage:
    """One of the two CLIPs. `name`: `clip`, which steers, or `scoring_clip`; either has training scenes of its own."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.trained: CLIPModel = new_clip().to(device)
        self.tokenizer = load_tokenizer()
        pairs = [validation_scene(n) for n in range(_EVALUATED)]
        self._evaluated = self._prepare([scene for scene, _ in pairs], [caption for _, caption in pairs])

    def loss(self, step: int) -> Tensor:
        """Return the contrastive loss, mean of both directions. A new style or one word more makes the nearest wrong answers."""
        scenes: list[Scene] = []
        captions: list[str] = []
        for n in range(EDITS):
            edit = training_edit(self.name, step * EDITS + n)
            scenes += [edit.source, edit.target]
            captions += [edit.source_prompt, edit.target_prompt]
        images, texts = embed(self.trained, *self._prepare(scenes, captions))
        logits = self.trained.logit_scale.exp().clamp(max=100.0) * images @ texts.T
        own = torch.arange(len(logits), device=self.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    def evaluate(self, trained: nn.Module) -> dict[str, float]:
        """Return how often the right one of 100 captions is found for a picture, and of 100 pictures for a caption."""
        images, texts = embed(trained, *self._evaluated)
        parts = list(zip(images.split(_CHOICES), texts.split(_CHOICES), strict=True))
        return {
            "image_to_text": sum(retrieval(image, text) for image, text in parts) / len(parts),
            "text_to_image": sum(retrieval(text, image) for image, text in parts) / len(parts),
        }

    def _prepare(self, scenes: Sequence[Scene], captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        pixels, ids = clip_pixels(render_batch(scenes)), tokenize(self.tokenizer, captions)
        return pixels.to(self.device), ids.to(self.device)


def clip_pixels(images: np.ndarray) -> Tensor:
    """Return pictures as the vision tower takes them: (B, H, W, 3) uint8 -> (B, 3, 64, 64), normalised."""
    views = torch.from_numpy(np.stack([clip_view(image, CLIP_SIDE) for image in images]))
    pixels = views.permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def embed(clip: CLIPModel, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Embed pictures and captions, both normalised, (B, E)."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        images = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        texts = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
    return F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)


def retrieval(queries: Tensor, answers: Tensor) -> float:
    """Return the share of queries whose nearest answer is their own."""
    return float(((queries @ answers.T).argmax(dim=1).cpu() == torch.arange(len(queries))).float().mean())
