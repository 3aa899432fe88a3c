"""What a family of models is: all that is known of a kind of models beside what its own files say.

Those say much (channels, how latents are scaled, the length of a text, noise levels), and what they say is read from them. Each
family stands in a file of its own beside this one and is named nowhere else. Nothing here imports torch or diffusers until a
network is there or a pipeline is asked for, so that planning stays light.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vimaedit.attention.sites import Site, list_sites
from vimaedit.methods.fit import Denoiser
from vimaedit.step.flow_grids import Grid

if TYPE_CHECKING:
    from torch import Tensor, device

    from vimaedit.attention.control import AttentionControl
    from vimaedit.attention.processor import LayerContext
    from vimaedit.attention.sites import SiteChoice
    from vimaedit.models.conditioning import Conditioning

CHECKPOINT_NAMES = ("model.diffusion_model.", "first_stage_model.")  # denoiser and autoencoder in the original programs' files
EXTRAS = {
    "safety_checker": None,
    "requires_safety_checker": False,
    "feature_extractor": None,
    "image_encoder": None,
    "add_watermarker": False,
}

Config = Mapping[str, Any]  # of one network, as its config.json has it
Texts = dict[str, "Tensor"]  # by name, one row for each text
Size = tuple[int, int]  # height, width


@dataclass(frozen=True, kw_only=True)
class ImagePrompt:
    """A public IP-Adapter of a family with the CLIP whose embeddings it takes.

    `file` are its weights, in its repository and in a bundle's `ip_adapter/`. It was trained for text of `text_width` numbers;
    a model of another width has to bring an adapter and a CLIP of its own.
    """

    adapter: str  # hub id
    file: str
    clip: str  # hub id of both towers, or of a folder with the one that sees pictures
    text_width: int
    width: int  # of the embeddings of pictures that it takes
    clip_side: int  # px, where a run has no CLIP or its config does not say


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A text encoder of a family with its tokenizer, by their folders in a diffusers pipeline. `checkpoint`: what the names of its
    tensors begin with in a checkpoint file of the original program. `length` of a text in tokens; None: its config says it."""

    network: str
    tokenizer: str
    checkpoint: str
    length: int | None = None


def call_unet(
    unet: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning, control: AttentionControl | None
) -> Tensor:
    """Ask a UNet of diffusers, (R, C, h, w) -> (R, C, h, w). What it is conditioned on beside text has the names of its own arguments."""
    added = {name: tensor for name, tensor in conditioning.tensors.items() if name not in ("text", "image")}
    images = {"image_embeds": [conditioning["image"]]} if "image" in conditioning.tensors else {}
    predicted: Tensor = unet(
        latents,
        timestep,
        encoder_hidden_states=conditioning["text"],
        cross_attention_kwargs=None if control is None else {"control": control, "contexts": conditioning.contexts},
        added_cond_kwargs=(added | images) or None,
        return_dict=False,
    )[0]
    return predicted


def unet_contexts(unet: Any, conditioning: Conditioning) -> dict[str, LayerContext]:
    """Make the keys and values of every layer of a UNet that reads text, with controlled attention installed."""
    from vimaedit.attention.processor import ControlledProcessor

    added = {"image_embeds": [conditioning["image"]]} if "image" in conditioning.tensors else None
    context = unet.process_encoder_hidden_states(conditioning["text"], added)
    contexts = {}
    for site in list_sites(unet):
        if site.cross:
            processor = unet.get_submodule(site.name)
            assert isinstance(processor, ControlledProcessor)
            contexts[site.name] = processor.project(unet.get_submodule(site.name.removesuffix(".processor")), context)
    return contexts


def install_in_unet(unet: Any, choice: SiteChoice) -> None:
    """Let every attention layer of a UNet obey a control."""
    from vimaedit.attention.processor import install

    install(unet, choice)


def install_jointly(transformer: Any, choice: SiteChoice) -> None:
    """Let every layer of joint attention of a transformer obey a control."""
    from vimaedit.attention.joint import JointProcessor
    from vimaedit.attention.processor import install

    install(transformer, choice, JointProcessor)


def unet_adapter_tensors(unet: Any) -> set[str]:
    """Name the attention's tensors of an adapter of the plain kind: it numbers all attention layers, and has weights for those to text,
    the odd ones."""
    count = sum(not name.endswith("attn1.processor") for name in unet.attn_processors)
    return {f"ip_adapter.{2 * n + 1}.{layer}.weight" for n in range(count) for layer in ("to_k_ip", "to_v_ip")}


def nothing_more(num_rows: int, size: Size, place: device) -> Texts:
    """Condition on text alone."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known of all models of one kind, whatever their sizes.

    `networks`: the folders of a diffusers pipeline that hold weights beside the text encoders', the denoiser first. Sides are the side
    of an attention layer over the latent's. The functions are asked while a model runs:
    `read_texts(encoders, ids)`, both by the encoders' names, encodes token ids (M, T) to what rows are conditioned on, M rows by name, `text`
    among them;
    `describe(R, (height, width) of the canvas in px, device)` gives what else rows are conditioned on, by name;
    `call(denoiser, latents, timestep, conditioning, control)` makes one pass; `contexts(denoiser, conditioning)` makes the keys and
    values that passes of the same conditioning share, None: there are none; `sites(denoiser)` lists the attention layers and
    `install(denoiser, choice)` lets them obey a control.
    """

    name: str  # in a row's provenance
    title: str  # as messages call it
    folder: str  # of the pipeline in a bundle
    pipeline: str  # class of diffusers that loads it
    layouts: tuple[str, ...]  # what `_class_name` of a model_index.json may be
    networks: tuple[str, ...]
    text_encoders: tuple[TextEncoder, ...]  # the tokens of the first are what attention to text reads
    configs: str  # hub id of a model whose configs and tokenizers every checkpoint file of the family can borrow
    predictions: tuple[str, ...]  # what the denoiser may predict, as diffusers calls it
    image_prompts: tuple[ImagePrompt, ...]  # the first is the one that is used by default; none: pictures prompt nothing here
    recipe: Mapping[str, Any] = field(default_factory=dict)  # options that suit it, `methods` among them, as a bundle's recipe
    prompts_by_name: bool = (
        False  # an image prompt is used where the run or the bundle brings one, and is no loss where none does
    )
    # The tensors of an adapter, `ip_adapter.N.NAME`, for a denoiser; and how its pipeline is told to load no image encoder with it.
    adapter_tensors: Callable[[Any], set[str]] = unet_adapter_tensors
    image_encoder_option: str = "image_encoder_folder"
    kind: Denoiser = Denoiser()  # what methods may take for granted of it
    sizes: Callable[[Config, Config], tuple[int, int]]  # side of the canvas, and what sides are multiples of, in px
    # What a tensor's name holds in a file of the denoiser alone, where that is what the files of this family are; None: they are whole.
    lone_denoiser: str | None = None
    largest_side: Callable[[Config, Config], int] | None = None  # of a canvas, in px; None: there is no limit
    window_side: float  # the windows of self- and image attention act at this side and coarser
    self_side: float  # layers that grounding reads where neither the run nor the model says otherwise
    cross_side: float
    read_texts: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Texts]
    describe: Callable[[int, Size, device], Texts] = nothing_more
    call: Callable[..., Tensor] = call_unet
    contexts: Callable[[Any, Conditioning], dict[str, LayerContext]] | None = unet_contexts
    sites: Callable[[Any], tuple[Site, ...]] = list_sites
    install: Callable[[Any, SiteChoice], None] = install_in_unet
    # Field of a model_index.json: whether rows without any text read zeros; None: they read the empty text.
    zeros_for_nothing: str | None = None
    # A text encoder whose projection lies in the space of an image encoder's, and the name that `read_texts` gives to it.
    shared_space: tuple[str, str] | None = None
    guided_up_to: int = 800  # of LEDITS++ as published for it, see its options
    noiseless: int = 0
    upcasts_vae: bool = False  # the autoencoder's `force_upcast` is heeded: it overflows in float16
    half: str = "float16"  # the precision of `dtype=auto` on a GPU
    # Further text encoders whose states stand behind those of the first, with the weight of their words in grounding.
    more_words: tuple[tuple[str, float], ...] = ()
    grid: Grid | None = None  # the levels of a flow, by the model's own scheduler; None: those of a noise schedule
    cell: int = 1  # latent pixels along the side of what the denoiser's latents have as one token

    @property
    def denoiser(self) -> str:
        """The folder of the network that is asked at every step."""
        return self.networks[0]

    @property
    def weights(self) -> tuple[str, ...]:
        """All folders that hold weights, the denoiser first."""
        return (*self.networks, *(encoder.network for encoder in self.text_encoders))

    def fits_image_prompt(self, denoiser: Config) -> bool:
        """Whether the family's public IP-Adapters were trained for models like this one."""
        width = denoiser.get("cross_attention_dim", denoiser.get("joint_attention_dim"))
        return any(width == each.text_width for each in self.image_prompts[:1])

    def least_latents(self, denoiser: Config, autoencoder: Config) -> int:
        """Return the least side of latents that a denoiser takes."""
        return self.sizes(denoiser, autoencoder)[1] // reduction(autoencoder)


def reduction(network: Config) -> int:
    """Return by what factor a UNet or an autoencoder makes the side of its input smaller."""
    factor: int = 2 ** (len(network["block_out_channels"]) - 1)
    return factor


def trained_side(denoiser: Config) -> int:
    """Return the side of the latents that a denoiser was trained at: its config says one number, or one for each direction."""
    side: int | list[int] = denoiser["sample_size"]
    return side if isinstance(side, int) else min(side)


def unet_sizes(unet: Config, autoencoder: Config) -> tuple[int, int]:
    """Return the sizes of a model whose denoiser is a UNet: that of its training, and the least that it can halve all the way."""
    latents = trained_side(unet)
    return latents * reduction(autoencoder), reduction(autoencoder) * reduction(unet)


def pipeline_class(family: Family) -> Any:
    """Return the class of diffusers that loads a family."""
    import diffusers

    return getattr(diffusers, family.pipeline)


def checkpoint_names(family: Family) -> tuple[str, ...]:
    """Return what the names of a family's tensors begin with in a checkpoint file of the original program."""
    return (*CHECKPOINT_NAMES, *(encoder.checkpoint for encoder in family.text_encoders))


def without_extras(family: Family) -> dict[str, Any]:
    """Return the arguments with which a family's pipeline is loaded without what edits have no use for, whether or not it is there."""
    taken = inspect.signature(pipeline_class(family).__init__).parameters
    return {name: value for name, value in EXTRAS.items() if name in taken}
