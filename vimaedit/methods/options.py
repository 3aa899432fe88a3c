"""The settings that belong to single methods: frozen dataclasses with ranges, checked when built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vimaedit.checks import check_choice, check_range, check_types
from vimaedit.errors import ConfigError

CONCEPT_MASKS = ("intersect", "attention", "guidance", "none")
BATCHES = ("auto", "never")
TEXT_SOURCES = ("auxiliary", "source")
COMBINATIONS = ("replace", "union", "intersection")
MISSING = ("ignore", "reject")
SEGMENTER_DEVICES = ("cpu", "cuda")
# What published programs do although it is not what they mean to do; each reproduces one of them.
QUIRKS = (
    "absent-words",  # p2p: where no word has a map nothing changes at all, instead of anything
    "infedit-crosswise",  # the likeness of a pair of tokens is read from each prompt's embeddings at the other's place
    "infedit-direction",  # the source moves on in the auxiliary branch's direction
    "leditspp-texts",  # with a guided source the empty text and the source prompt exchange places
    "leditspp-sizes",  # a model that is told the picture's height and width is told them in the other order
    "leditspp-tokens",  # a concept's mask counts all positions between the first and the last, padding included
    "locatedit-variance",  # the full variance leaves the direction everywhere; noise is added everywhere once a mask exists
    "middle-maps",  # local-blend: the maps of the UNet's middle count too where they are of the others' side
    "pnp-shift",  # with a reconstruction every source latent, and the target's start, is one level too clean
    "zero-levels",  # p2p-zero: the inverted latents are those of the levels just below, one stride too noisy for sampling
    "proximal-soft",  # what is kept of the guidance loses the threshold, which counts the source's zeros too
)


@dataclass(frozen=True, kw_only=True)
class Laplacian:
    """Grounding by a graph Laplacian: (L^2 + weight G) M = L^2 M0, L = sigmoid(alpha (M0 - tau)), G of the self-attention."""

    alpha: float = 2.61  # how steeply trust in a cell follows its word attention
    tau: float = 0.4858  # word attention at which trust is one half
    weight: float = 0.7800247316325715  # of smoothness against fidelity

    def __post_init__(self) -> None:
        check_types(self)
        check_range("laplacian.alpha", self.alpha, 0.0, 1000.0)
        check_range("laplacian.tau", self.tau, -100.0, 100.0)
        check_range("laplacian.weight", self.weight, 0.0, 1000.0)


@dataclass(frozen=True, kw_only=True)
class NullText:
    """Null-text inversion: how long the unconditional embedding is fitted at each step."""

    steps: int = 10  # updates at most; at least one is made
    stop: float = 1e-5  # loss below which a step's fit ends, 2e-5 more at every later step

    def __post_init__(self) -> None:
        check_types(self)
        check_range("null_text.steps", self.steps, 1, 1000)
        check_range("null_text.stop", self.stop, 0.0, 1000.0)


@dataclass(frozen=True, kw_only=True)
class PromptLearning:
    """Dynamic Prompt Learning: how long the embeddings of the source's words are fitted at each step."""

    passes: int = 21  # at most, each with one update but for the one that reaches the goals
    rate: float = 1e-3  # learning rate

    def __post_init__(self) -> None:
        check_types(self)
        check_range("prompt_learning.passes", self.passes, 1, 1000)
        check_range("prompt_learning.rate", self.rate, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Pix2PixZero:
    """pix2pix-zero: how far the target's latents go towards the source's text attention, and how noise is kept like noise."""

    rate: float = 0.1  # of the step at each denoising step
    correlation: float = 20.0  # of the inversion's steps against the correlation of neighbours
    divergence: float = 20.0  # and of those against the divergence from a normal distribution

    def __post_init__(self) -> None:
        check_types(self)
        check_range("pix2pix_zero.rate", self.rate, 0.0, 1000.0)
        check_range("pix2pix_zero.correlation", self.correlation, 0.0, 1000.0)
        check_range("pix2pix_zero.divergence", self.divergence, 0.0, 1000.0)


@dataclass(frozen=True, kw_only=True)
class Concepts:
    """LEDITS++: where and when a concept guides. `thresholds.edit` is the quantile of both masks."""

    mask: str = "intersect"  # attention (to the concept's words), guidance (where it is strong), both, or none
    warmup: int = 0  # steps before it acts
    cooldown: int | None = None  # the step from which it acts no more
    guided_up_to: int | None = (
        None  # mask=intersect: timestep above which attention decides alone; None: as published for the model
    )
    noiseless: int | None = None  # the last steps, in which the target keeps no distance to the source; None: likewise

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("concepts.mask", self.mask, CONCEPT_MASKS)
        check_range("concepts.warmup", self.warmup, 0, 999)
        if self.cooldown is not None:
            check_range("concepts.cooldown", self.cooldown, 0, 999)
        if self.guided_up_to is not None:
            check_range("concepts.guided_up_to", self.guided_up_to, 0, 1000)
        if self.noiseless is not None:
            check_range("concepts.noiseless", self.noiseless, 0, 999)


@dataclass(frozen=True, kw_only=True)
class FlowEdit:
    """FlowEdit: over how many draws of noise a step's difference is averaged."""

    draws: int = 1  # passes of a step; each is a whole one

    def __post_init__(self) -> None:
        check_types(self)
        check_range("flowedit.draws", self.draws, 1, 64)


@dataclass(frozen=True, kw_only=True)
class UniEdit:
    """UniEdit-Flow: how far a step goes along the difference of the two prompts' predictions."""

    strength: float = 5.0  # omega of the paper

    def __post_init__(self) -> None:
        check_types(self)
        check_range("uniedit.strength", self.strength, 0.0, 1000.0)


@dataclass(frozen=True, kw_only=True)
class Midpoint:
    """FireFlow and RF-Solver: where the source's values are put in, as numbers of the layers with one stream, and for how long."""

    steps: int = 1  # intervals, from the noisy end on
    first_layer: int = 20  # that values are put into
    last_layer: int = 37  # the last one, itself included

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("steps", "first_layer", "last_layer"):
            check_range(f"midpoint.{name}", getattr(self, name), 0, 999)


@dataclass(frozen=True, kw_only=True)
class HostedPipeline:
    """method=pipeline: how a pipeline of diffusers is called. Arguments without a name are found in its signature."""

    image: str = ""  # its argument that takes the picture
    prompt: str = ""  # ... the instruction
    steps: str = ""  # ... `steps`
    guidance: str = ""  # ... `target_guidance`
    arguments: dict[str, Any] = field(default_factory=dict)  # further ones, such as {image_guidance_scale: 1.5}
    template: str = "make it {target}"  # asked of a record without an instruction: {source} and {target} are its prompts
    batch: str = "auto"  # auto: batches, where a probe shows that they change nothing; never
    mask_threshold: float = 0.1  # of the smoothed difference to the source, of 1: above it the picture counts as edited

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("pipeline.batch", self.batch, BATCHES)
        check_range("pipeline.mask_threshold", self.mask_threshold, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """grounding=segmenter: networks of transformers that look for what is to change, and what their mask does."""

    detector: str = "google/owlv2-base-patch16-ensemble"  # zero-shot detector: folder, URL or hub id
    model: str | None = (
        "facebook/sam-vit-base"  # outlines what stands in its boxes (SAM): likewise; unset: the boxes are the mask
    )
    threshold: float = 0.2  # of the detector's scores: what is at most as certain is not found
    combine: str = "replace"  # the method's own mask by it, or with it: replace, union, intersection
    missing: str = (
        "ignore"  # where nothing is found. ignore: the method's own mask stands alone; reject: the record is rejected
    )
    device: str = "cpu"  # of the networks: cpu, or cuda, where editing is on GPUs too
    gpu_share: float = 0.25  # with device=cuda: of a GPU, for each actor; the editing actors take the rest
    actors: int = 1  # of the stage, in data jobs

    def __post_init__(self) -> None:
        check_types(self)
        if not self.detector:
            raise ConfigError("segmenter.detector: got an empty string; allowed: a folder, a URL, or a hub id")
        check_range("segmenter.threshold", self.threshold, 0.0, 1.0)
        check_choice("segmenter.combine", self.combine, COMBINATIONS)
        check_choice("segmenter.missing", self.missing, MISSING)
        check_choice("segmenter.device", self.device, SEGMENTER_DEVICES)
        check_range("segmenter.gpu_share", self.gpu_share, 0.01, 0.5)
        check_range("segmenter.actors", self.actors, 1, 10_000)


@dataclass(frozen=True, kw_only=True)
class Auxiliary:
    """InfEdit's third branch."""

    text_from: str = "auxiliary"  # whose text attention the target takes over: auxiliary, or source
    mutual_words: str = ""  # words of the target prompt whose place keeps the source's latents
    mutual_threshold: float = 0.6  # of their map

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("auxiliary.text_from", self.text_from, TEXT_SOURCES)
        check_range("auxiliary.mutual_threshold", self.mutual_threshold, 0.0, 1.0)
