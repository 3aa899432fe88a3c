"""The frozen networks of a model and the facts of its family: sizes, scaling factors, noise levels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vimaedit.attention.control import AttentionControl
from vimaedit.attention.features import copied_features
from vimaedit.attention.injection import MapBuffers
from vimaedit.attention.sites import SiteChoice, choose_sites, feature_layer, ground_on
from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError
from vimaedit.methods.fit import why_not
from vimaedit.methods.options import Midpoint
from vimaedit.models.conditioning import Conditioning
from vimaedit.models.family import Family, Size, Texts, reduction
from vimaedit.step.solvers import Schedule, flow_schedule, method_schedule, num_skipped
from vimaedit.types import BoolArray, LeftOut, UInt8Array

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

MOST_AUTOENCODED = 4 * 1024**2 * 4  # bytes of one channel of the pictures that the autoencoder takes at a time
MOST_GRAPHS = 256  # of one process; two for each shape of a batch, of which there are a handful


@dataclass(frozen=True, eq=False)
class Networks:
    """The networks as loaded, and which attention layers are theirs to control, by side over the latent's.

    `text_encoders` and `tokenizers` have the encoders' names, in the family's order. `clip` sees pictures, for the IP-Adapter; the
    model with both towers, or the one tower where a text encoder is the other.
    """

    family: Family
    denoiser: Any
    vae: AutoencoderKL
    text_encoders: Mapping[str, Any]
    tokenizers: Mapping[str, CLIPTokenizer]
    zeroes_nothing: bool  # rows without any text read zeros instead of the empty text
    clip: CLIPModel | CLIPVisionModelWithProjection | None
    clip_tokenizer: CLIPTokenizer | None  # None where the text side is a text encoder of the model's own
    clip_mean: tuple[float, float, float]
    clip_std: tuple[float, float, float]
    alphas_cumprod: np.ndarray  # none for a flow
    predicts_velocity: bool  # sqrt(a) noise - sqrt(1 - a) x0, instead of the noise
    window_side: float  # windows act at this side and coarser
    self_side: float  # grounding's self-attention, unless the run says otherwise
    cross_side: float  # grounding's attention to words, likewise
    scheduler: Any = None  # of diffusers, which gives the levels of a flow
    unmerged: tuple[tuple[str, ...], ...] = ()  # for each LoRA the keys that reach no weight
    left_out: tuple[LeftOut, ...] = ()  # what of the model's files is not used

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer whose tokens attention to text reads."""
        return next(iter(self.tokenizers.values()))

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the token ids that every text encoder reads of M prompts, padded and truncated, (M, T) each."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return {
            name: tokenizer(list(prompts), **options).input_ids.to(self.text_encoders[name].device)
            for name, tokenizer in self.tokenizers.items()
        }

    def read_texts(self, ids: Mapping[str, Tensor]) -> Texts:
        """Encode token ids, (M, T) by encoder, to what rows are conditioned on; with a gradient where one is kept."""
        return self.family.read_texts(self.text_encoders, ids)


class Backbone:
    """One model on one device, with controlled attention installed for one run's options.

    `dtype` is that of the denoiser and the text encoders; CLIP and all arithmetic on latents are float32.

    Raises: ConfigError for a method that has no meaning on the model, and for layers that it has not.
    """

    def __init__(self, networks: Networks, config: EditConfig) -> None:
        if reason := why_not(config.parts, config.grounding, networks.family.kind):
            raise ConfigError(
                f"method: got {config.method} (grounding={config.grounding}) with a model of {networks.family.title}, where it has no "
                f"meaning: {reason}"
            )
        self.networks = networks
        self.family = networks.family
        self.dtype: torch.dtype = networks.denoiser.dtype  # asked for once: it walks through all modules, and steps ask often
        self.alphas_cumprod = networks.alphas_cumprod
        self._alphas = torch.from_numpy(networks.alphas_cumprod).float().to(networks.denoiser.device)
        self.tokenizer = networks.tokenizer
        self.has_image_prompt = networks.clip is not None
        self.self_side = config.grounding_sides.self or networks.self_side
        self.cross_side = config.grounding_sides.cross or networks.cross_side
        self.sites = self._choose_sites(config)
        self._feature_layer = feature_layer(networks.denoiser) if config.parts.copies_features else None
        self._keeps_tokens = config.parts.has_auxiliary
        self._num_recorded = 1 if config.parts.guidance == "concepts" else 2  # rows per request, or per concept
        self.family.install(networks.denoiser, self.sites)
        self._predictor: Callable[..., Any] = networks.denoiser

    def compile(self, **options: Any) -> None:
        """Compile the passes that `predict` makes: a graph for each structure of control and shape of rows, when it is first met.

        `options` are those of `torch.compile`. One pass is made at once, so that what cannot be compiled is known before any edit.

        Raises: ConfigError where nothing can be compiled here.
        """
        # With the usual limit of 8 a late shape would be run as it is, and round otherwise than in another process.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
        self._predictor = torch.compile(self.networks.denoiser, dynamic=False, fullgraph=True, **options)
        denoiser = self.networks.denoiser.config
        side = self.family.least_latents(denoiser, self.networks.vae.config)
        latents = torch.zeros(1, self.networks.vae.config.latent_channels, side, side, device=self.device)
        conditioning = self.condition(self.encode_texts([""]), None, self.canvas_of(latents))
        try:
            self.predict(latents, torch.tensor(1, device=self.device), conditioning, None)
        except torch._dynamo.exc.TorchDynamoException as error:
            said = " ".join(str(error).partition("\n\nSet TORCH")[0].split())  # the rest is advice on debugging torch
            raise ConfigError(f"compile: got true, but torch cannot compile here ({said}); allowed: false") from error

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.networks.denoiser.parameters()).device  # its own property walks through all modules
        return device

    @property
    def text_length(self) -> int:
        """Tokens of a text, padding included."""
        return int(self.tokenizer.model_max_length)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent."""
        return reduction(self.networks.vae.config)

    @torch.inference_mode()
    def encode_images(self, images: UInt8Array) -> Tensor:
        """Encode pictures to the posterior mean, shifted and scaled: (B, height, width, 3) uint8 -> (B, C, h, w) float32."""
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
        pixels = pixels.float() / 127.5 - 1
        vae = self.networks.vae
        mean = self._in_parts(
            pixels.to(vae.dtype), images[0, ..., 0].size, lambda part: vae.encode(part).latent_dist.mode()
        ).float()
        latents: Tensor = (mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        return latents

    @torch.inference_mode()
    def decode_latents(self, latents_BChw: Tensor) -> tuple[UInt8Array, BoolArray]:
        """Decode latents to pictures, rounded to nearest, and say which of them came out finite.

        Reference: the released program truncates instead of rounding.

        Shapes: (B, C, h, w) -> (B, height, width, 3) uint8, (B,) bool.
        """
        vae = self.networks.vae
        unscaled = latents_BChw / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        num_pixels = math.prod(self.canvas_of(latents_BChw))
        decoded = self._in_parts(unscaled.to(vae.dtype), num_pixels, lambda part: vae.decode(part).sample).float()
        finite: BoolArray = torch.isfinite(decoded).flatten(1).all(dim=1).cpu().numpy()
        levels = ((decoded / 2 + 0.5).nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
        pictures: UInt8Array = levels.permute(0, 2, 3, 1).cpu().numpy()
        return pictures, finite

    @contextmanager
    def encoders(self) -> Iterator[None]:
        """Have the encoders of texts and pictures on the device as long as the context lasts, those too that wait beside it."""
        clip = self.networks.clip
        every = [*self.networks.text_encoders.values(), *([] if clip is None else [clip])]
        waiting = [encoder for encoder in every if encoder.device != self.device]
        with torch.inference_mode(False):  # in it weights would become tensors that no gradient can go through
            for encoder in waiting:
                encoder.to(self.device)
        try:
            yield
        finally:
            with torch.inference_mode(False):
                for encoder in waiting:
                    encoder.to("cpu")

    def _in_parts(self, batch: Tensor, num_pixels: int, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """Ask the autoencoder for as many pictures of a batch at a time as are few enough: else its memory, not the denoiser's, would
        settle how large a batch may be."""
        count = max(1, MOST_AUTOENCODED // (num_pixels * batch.element_size()))
        done = [ask(part) for part in batch.split(count)]
        return done[0] if len(done) == 1 else torch.cat(done)

    @torch.inference_mode()
    def encode_texts(self, prompts: Sequence[str | None]) -> Conditioning:
        """Encode M prompts to M rows of what is conditioned on by text. None: there is nothing to read, which is the empty text or
        zeros, as the model was trained."""
        with self.encoders():
            texts = self.networks.read_texts(self.networks.tokenize([prompt or "" for prompt in prompts]))
        if self.networks.zeroes_nothing and None in prompts:
            kept = torch.tensor([prompt is not None for prompt in prompts], device=self.device)
            texts = {name: each * kept.view(-1, *[1] * (each.ndim - 1)) for name, each in texts.items()}
        return Conditioning(texts)

    @torch.inference_mode()
    def embed_images(self, views: UInt8Array) -> Tensor:
        """Embed pictures with CLIP, projected, not normalised: (B, side, side, 3) uint8 -> (B, E) float32."""
        clip = self._clip()
        pixels = torch.from_numpy(views).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean = torch.tensor(self.networks.clip_mean, device=self.device).view(3, 1, 1)
        std = torch.tensor(self.networks.clip_std, device=self.device).view(3, 1, 1)
        embeds: Tensor = clip.visual_projection(clip.vision_model(pixel_values=(pixels - mean) / std).pooler_output)
        return embeds

    @torch.inference_mode()
    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts in the space of pictures, projected, not normalised: M strings -> (M, E) float32. Padded to full length, so
        that a prompt's embedding does not depend on its neighbours."""
        clip: Any = self._clip()
        if self.networks.clip_tokenizer is None:
            assert self.family.shared_space is not None
            return self.encode_texts(prompts)[self.family.shared_space[1]].float()
        tokens = self.networks.clip_tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        embeds: Tensor = clip.text_projection(clip.text_model(input_ids=tokens.input_ids.to(self.device)).pooler_output)
        return embeds

    def condition(self, texts: Conditioning, image_RE: Tensor | None, size: Size) -> Conditioning:
        """Complete what rows are conditioned on for a canvas of `size`, (height, width) in px. Without image guidance (None) a loaded
        IP-Adapter sees zeros; the caller scales its attention by zero."""
        if image_RE is None and self.networks.clip is not None:
            width = int(self.networks.clip.config.projection_dim)
            image_RE = torch.zeros(len(texts), width, device=self.device)
        image = {} if image_RE is None else {"image": image_RE[:, None]}
        more = self.family.describe(len(texts), size, self.device)
        return texts.having(**image, **more).each(lambda tensor: tensor.to(self.dtype))

    @torch.inference_mode()
    def with_contexts(self, conditioning: Conditioning) -> Conditioning:
        """Make the layers' keys and values once, for passes that differ in latents and timestep alone."""
        if self.family.contexts is None:
            return conditioning
        return dataclasses.replace(conditioning, contexts=self.family.contexts(self.networks.denoiser, conditioning))

    @torch.inference_mode()
    def predict(
        self, latents_RChw: Tensor, timestep: Tensor, conditioning: Conditioning, control: AttentionControl | None
    ) -> Tensor:
        """Predict without a gradient, see `predict_noise`; compiled where that was asked for."""
        return self._predict(self._predictor, latents_RChw, timestep, conditioning, control)

    def predict_noise(
        self, latents_RChw: Tensor, timestep: Tensor, conditioning: Conditioning, control: AttentionControl | None
    ) -> Tensor:
        """Predict the noise in each row, (R, C, h, w); `timestep` is a scalar on the device. Without a control this is the stock
        denoiser. A velocity v is turned into the noise it implies, sqrt(a) v + sqrt(1 - a) z, in float32 (arXiv 2202.00512)."""
        return self._predict(self.networks.denoiser, latents_RChw, timestep, conditioning, control)

    def _predict(
        self,
        denoiser: Callable[..., Any],
        latents_RChw: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        control: AttentionControl | None,
    ) -> Tensor:
        with copied_features(self._feature_layer, None if control is None else control.features_from):
            predicted = self.family.call(denoiser, latents_RChw.to(self.dtype), timestep, conditioning, control)
        if not self.networks.predicts_velocity:
            return predicted
        alpha = self._alphas[timestep]
        return alpha.sqrt() * predicted.float() + (1 - alpha).sqrt() * latents_RChw.float()

    def schedule(self, config: EditConfig, latent_hw: tuple[int, int]) -> Schedule:
        """Build the levels that a run with a configuration visits, on latents of a size.

        Raises: ConfigError for steps that the model's levels cannot give.
        """
        if self.family.grid is None:
            return method_schedule(config, self.alphas_cumprod)
        h, w = (int(side * self.family.cross_side) for side in latent_hw)  # tokens, whatever grid grounding reads
        timesteps, sigmas = self.family.grid(self.networks.scheduler, config.steps, h * w)
        return flow_schedule(timesteps, sigmas).after(num_skipped(config))

    def canvas_of(self, latents_BChw: Tensor) -> Size:
        """Return the canvas that latents stand for, (height, width) in px."""
        return latents_BChw.shape[-2] * self.vae_factor, latents_BChw.shape[-1] * self.vae_factor

    def map_sizes(self, latent_hw: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the grids of the word map and of the self-attention map, each (height, width)."""
        h, w = latent_hw
        cross_hw = (int(h * self.cross_side), int(w * self.cross_side))
        return cross_hw, (int(h * self.self_side), int(w * self.self_side))

    def allocate_maps(self, num_requests: int, latent_hw: tuple[int, int]) -> MapBuffers:
        """Allocate the buffers that one batch's attention weights are summed into; for a method of concepts B of them count as a
        request."""
        (cross_h, cross_w), (self_h, self_w) = self.map_sizes(latent_hw)
        num_rows, num_tokens = self._num_recorded * num_requests, self_h * self_w
        reads_self = bool(self.sites.self_maps)
        return MapBuffers(
            self_sum=torch.zeros(num_rows, num_tokens, num_tokens, device=self.device) if reads_self else None,
            word_sum=torch.zeros(num_rows, cross_h * cross_w, device=self.device),
            self_layers=self._count_heads(self.sites.self_maps),
            word_layers=self.num_word_maps,
            token_sum=torch.zeros(3 * num_requests, cross_h * cross_w, self.text_length, device=self.device)
            if self._keeps_tokens
            else None,
        )

    def value_layers(self, options: Midpoint) -> frozenset[str]:
        """Name the layers, first to last, of those with one stream of picture and text, whose values a method hands on."""
        single = [site.name for site in self.family.sites(self.networks.denoiser) if site.path == "single" and not site.cross]
        return frozenset(single[options.first_layer : options.last_layer + 1])

    @property
    def num_word_maps(self) -> int:
        """How many maps, one per layer and head, a pass adds to those of the words."""
        return self._count_heads(self.sites.text_maps)

    def _count_heads(self, names: frozenset[str]) -> int:
        return sum(int(self.networks.denoiser.get_submodule(name.removesuffix(".processor")).heads) for name in names)

    def _choose_sites(self, config: EditConfig) -> SiteChoice:
        sites = self.family.sites(self.networks.denoiser)
        choice = choose_sites(
            ground_on(sites, config.grounding_blocks) if config.grounding_blocks else sites,
            window_side=self.networks.window_side,
            self_side=self.self_side if config.reads_self_attention else None,
            cross_side=self.cross_side if config.reads_words else None,
            routed=config.parts.routed_sites,
            coarser_side=self.cross_side,
            reads_middle="middle-maps" in config.quirks,
        )
        if self.networks.denoiser.config.get("addition_embed_type") is not None:  # text comes in with the timestep already
            choice = dataclasses.replace(choice, before_text=frozenset())
        return choice

    def _clip(self) -> CLIPModel | CLIPVisionModelWithProjection:
        assert self.networks.clip is not None, "a run with image_guidance loads CLIP"
        return self.networks.clip
