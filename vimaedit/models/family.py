"""What a family of models is: all that is known of a kind of models beside what its own files say.

Those say much (channels, how latents are scaled, the length of a text, noise levels), and what they say is read from them. Each
family stands in a file of its own beside this one and is named nowhere else. Nothing here imports torch or diffusers until a
pipeline is asked for, so that planning stays light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]  # of one network, as its config.json has it


@dataclass(frozen=True, kw_only=True)
class ImagePrompt:
    """The public IP-Adapter of a family with the CLIP whose embeddings it takes.

    `file` are its weights, in its repository and in a bundle's `ip_adapter/`. It was trained for text of `text_width` numbers;
    a model of another width has to bring an adapter and a CLIP of its own.
    """

    adapter: str  # hub id
    file: str
    clip: str  # hub id of both towers
    text_width: int
    clip_side: int  # px, where a run has no CLIP or its config does not say


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known of all models of one kind, whatever their sizes.

    `networks`: the folders of a diffusers pipeline that hold weights, the denoiser first. Sides are the side of an attention
    layer over the latent's.
    """

    title: str  # as messages call it
    pipeline: str  # class of diffusers that loads it
    layouts: tuple[str, ...]  # what `_class_name` of a model_index.json may be
    networks: tuple[str, ...]
    configs: str  # hub id of a model whose configs and tokenizer every checkpoint file of the family can borrow
    predictions: tuple[str, ...]  # what the denoiser may predict, as diffusers calls it
    image_prompt: ImagePrompt
    sizes: Callable[[Config, Config], tuple[int, int]]  # side of the canvas, and what sides are multiples of, in px
    window_side: float  # the windows of self- and image attention act at this side and coarser
    self_side: float  # layers that grounding reads where neither the run nor the model says otherwise
    cross_side: float

    @property
    def denoiser(self) -> str:
        """The folder of the network that is asked at every step."""
        return self.networks[0]

    def fits_image_prompt(self, denoiser: Config) -> bool:
        """Whether the family's public IP-Adapter was trained for models like this one."""
        return denoiser.get("cross_attention_dim") == self.image_prompt.text_width


def reduction(network: Config) -> int:
    """Return by what factor a UNet or an autoencoder makes the side of its input smaller."""
    factor: int = 2 ** (len(network["block_out_channels"]) - 1)
    return factor


def unet_sizes(unet: Config, autoencoder: Config) -> tuple[int, int]:
    """Return the sizes of a model whose denoiser is a UNet: that of its training, and the least that it can halve all the way."""
    sample_size = unet["sample_size"]
    latents = sample_size if isinstance(sample_size, int) else min(sample_size)
    return latents * reduction(autoencoder), reduction(autoencoder) * reduction(unet)


def pipeline_class(family: Family) -> Any:
    """Return the class of diffusers that loads a family."""
    import diffusers

    return getattr(diffusers, family.pipeline)
