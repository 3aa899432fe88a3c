"""What drawn scenes ask of a model besides edits: pictures from captions, round trips, and captions found by CLIP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vimaedit.errors import ConfigError
from vimaedit.images import clip_view
from vimaedit.types import UInt8Array

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from vimaedit.backbone import Backbone

BATCH = 8  # pictures at a time
Float32Array = NDArray[np.float32]


class ScoringClip:
    """Both towers of a CLIP in a transformers folder, with its own tokenizer and normalisation, in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises: ConfigError for a folder that lacks a part of it.
        """
        import torch
        from transformers import CLIPModel, CLIPTokenizer

        try:
            self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            stated = json.loads((folder / "preprocessor_config.json").read_text())
            self.mean, self.std = (torch.tensor(stated[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"clip: got {str(folder)!r}, which does not load: {str(error).strip()}; allowed: a transformers CLIP folder with "
                "weights, tokenizer and preprocessor_config.json"
            ) from error
        self.side = int(self.model.config.vision_config.image_size)
        self.length = int(self.model.config.text_config.max_position_embeddings)

    def embed_images(self, images: Sequence[UInt8Array]) -> Float32Array:
        """Embed pictures to unit length: B times (height, width, 3) -> (B, E)."""
        import torch

        def embed(batch: Sequence[UInt8Array]) -> Any:
            views = np.stack([clip_view(image, self.side) for image in batch])
            pixels = (torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
            return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

        return _embed(embed, images)

    def embed_texts(self, texts: Sequence[str]) -> Float32Array:
        """Embed texts to unit length, (B, E)."""

        def embed(batch: Sequence[str]) -> Any:
            ids = self.tokenizer(
                list(batch), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
            ).input_ids
            return self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output)

        return _embed(embed, texts)

    def similarities(self, images: Sequence[UInt8Array], texts: Sequence[str]) -> list[float]:
        """Return 100 times the cosine between each picture and its text."""
        products = (self.embed_images(images) * self.embed_texts(texts)).sum(axis=1)
        return [100 * float(product) for product in products]

    def num_found(self, images: Sequence[UInt8Array], texts: Sequence[str]) -> int:
        """Count the pictures whose own text is the nearest of all (equal texts are one)."""
        nearest = (self.embed_images(images) @ self.embed_texts(texts).T).argmax(axis=1)
        return sum(texts[best] == text for best, text in zip(nearest.tolist(), texts, strict=True))


def round_trip(backbone: Backbone, images: Sequence[UInt8Array]) -> list[UInt8Array]:
    """Take pictures of one shape through a model's autoencoder and back."""
    returned: list[UInt8Array] = []
    for start in range(0, len(images), BATCH):
        pictures, _ = backbone.decode_latents(backbone.encode_images(np.stack(images[start : start + BATCH])))
        returned.extend(pictures)
    return returned


def load_text_to_image(folder: Path, device: str, dtype: str) -> StableDiffusionPipeline:
    """Load a diffusers folder as the stock pipeline with its own scheduler, no safety checker.

    Raises: ConfigError for a folder that is no whole pipeline.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    options = {"image_encoder": None, "safety_checker": None, "requires_safety_checker": False, "local_files_only": True}
    try:
        pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype), **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"text_to_image: got {str(folder)!r}, which does not load: {str(error).strip()}; allowed: a whole diffusers folder as "
            "model, or text_to_image=0"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def draw_pictures(
    pipe: StableDiffusionPipeline, captions: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
) -> list[UInt8Array]:
    """Draw a picture of each caption from the noise of its own seed, (side, side, 3) each."""
    import torch

    drawn: list[UInt8Array] = []
    for start in range(0, len(captions), BATCH):
        batch = slice(start, start + BATCH)
        output = pipe(
            prompt=list(captions[batch]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[batch]],
            output_type="np",
        )
        drawn.extend((output.images * 255).round().astype(np.uint8))
    return drawn


def _embed(embed: Any, items: Sequence[Any]) -> Float32Array:
    import torch

    with torch.inference_mode():
        parts = [embed(items[start : start + BATCH]).float() for start in range(0, len(items), BATCH)]
        embeds: Float32Array = torch.nn.functional.normalize(torch.cat(parts), dim=-1).numpy()
    return embeds
