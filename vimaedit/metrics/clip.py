"""CLIP score: how near a picture comes to a text (Hessel et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vimaedit.errors import WrongWeights
from vimaedit.images import clip_view
from vimaedit.metrics.backbones import find_weights
from vimaedit.models.files import SHIPPED
from vimaedit.models.losses import all_tensors, check_finite
from vimaedit.models.networks import clip_normalisation, load_clip, load_clip_tokenizer, quiet_libraries, try_clip
from vimaedit.models.stated import loading
from vimaedit.types import UInt8Array

BUILT_IN_CLIP = "miniature"


class ClipScore:
    """Both towers of a CLIP with its own tokenizer and normalisation, in float32.

    Pictures are resized as by the PIL-backed image processor. A text longer than the tower reads is cut as the published
    evaluation cuts it: after so many tokens, without the end token.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """Load it: `miniature` (of the scene world), or a folder or hub id in transformers' format.

        Raises: ConfigError where it cannot be had or lacks a part.
        """
        folder = SHIPPED / "scoring_clip" if name == BUILT_IN_CLIP else find_weights("scoring_clip", name)
        path = folder / "preprocessor_config.json"
        if not path.is_file():
            raise WrongWeights(
                f"scoring_clip: got {name!r}, which does not load: it has no {path.name}; allowed: a transformers CLIP with "
                "weights, tokenizer and preprocessor_config.json"
            )
        with quiet_libraries():
            model, _ = load_clip("scoring_clip", name, folder)
            self.model = model.eval().to(device)
            self.tokenizer = load_clip_tokenizer("scoring_clip", name, folder)
            check_finite("scoring_clip", repr(name), all_tensors(self.model))
            with loading("scoring_clip", name, folder / "config.json"):
                try_clip(self.model)
        normalisation = clip_normalisation("scoring_clip", folder)
        self.mean, self.std = (torch.tensor(values, device=device).view(3, 1, 1) for values in normalisation)
        self.model.requires_grad_(False)
        self.device = device
        self.side = int(self.model.config.vision_config.image_size)
        self.length = int(self.model.config.text_config.max_position_embeddings)
        self.texts: dict[str, Tensor] = {}  # embedded before: prompts recur in a batch

    def embed_images(self, images: Sequence[UInt8Array]) -> Tensor:
        """Embed pictures to unit length: B times (height, width, 3) -> (B, E)."""
        views = torch.from_numpy(np.stack([clip_view(image, self.side) for image in images])).to(self.device)
        pixels = (views.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        embeds: Tensor = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)
        return torch.nn.functional.normalize(embeds, dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts to unit length, (B, E), each at its own length."""
        self.texts = {text: self.texts[text] if text in self.texts else self._embed_text(text) for text in texts}
        return torch.stack([self.texts[text] for text in texts])

    def __call__(self, images: Sequence[UInt8Array], texts: Sequence[str]) -> Tensor:
        """Return 100 times the cosine between each picture and its text, 0 where that is negative: (B,) float64."""
        return (100 * self.cosines(images, texts)).clamp(min=0)

    def cosines(self, images: Sequence[UInt8Array], texts: Sequence[str]) -> Tensor:
        """Return the cosine between each picture and its text, (B,) float64."""
        return (self.embed_images(images) * self.embed_texts(texts)).sum(-1).double()

    def _embed_text(self, text: str) -> Tensor:
        ids = torch.tensor([self.tokenizer(text).input_ids[: self.length]], device=self.device)
        embeds: Tensor = self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output)
        return torch.nn.functional.normalize(embeds[0], dim=-1)
