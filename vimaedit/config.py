"""The settings of an edit: frozen dataclasses with ranges, checked when built.

Windows and the grounding start are fractions of the number of steps N. Rounding: self and image windows last `int(f N)` steps,
the text window `int(f (N + 1))` steps, grounding begins at the step i with `i + 1 >= int(f N)`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from vimaedit.checks import check_choice as check_choice
from vimaedit.checks import check_range as check_range
from vimaedit.checks import check_types as check_types
from vimaedit.errors import ConfigError
from vimaedit.methods import METHODS
from vimaedit.methods.base import Method
from vimaedit.methods.options import (
    QUIRKS,
    Auxiliary,
    Concepts,
    FlowEdit,
    HostedPipeline,
    Laplacian,
    Midpoint,
    NullText,
    Pix2PixZero,
    PromptLearning,
    Segmenter,
    UniEdit,
)

SOLVERS = ("ddim", "dpmsolver++")
SPACINGS = ("leading", "trailing")
VARIANCES = ("adaptive", "uniform", "zero")
GROUNDINGS = (
    *("vimaedit", "cross-attention", "laplacian", "local-blend", "dpl", "auxiliary", "concepts", "given"),
    *("segmenter", "difference"),
)
STARTS = ("image", "noise")
IMAGE_ORDERS = ("reference", "conventional")
TEXT_CONTROLS = ("refine", "replace", "auto")
BLENDS = ("auto", "given", "none")
MISSING_BLENDS = ("reject", "ignore")
LONG_PROMPTS = ("truncate", "reject")
FITS = ("crop", "keep")
FRAMES = ("canvas", "original")
PASTES = ("mask", "frame")
MOST_TARGETS = 64  # that share a source
NEEDS_GPU = "compile: got true on a CPU; allowed: false, or device=cuda"
OFFLOADS = ("none", "encoders")
DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How long the target takes over the source's attention, as fractions of the steps (0 = never, 1 = always)."""

    self: float = 0.6  # self-attention, at the model's side (of SD 1.x half the latent's) and coarser
    text: float = 0.4  # attention to words, at every layer
    image: float = 0.1  # attention to the picture embedding, at the same sides
    feature: float = 0.0  # the features of one decoder layer (pnp)

    def __post_init__(self_) -> None:  # noqa: N805 - `self` is a field here
        check_types(self_)
        for name in ("self", "text", "image", "feature"):
            check_range(f"windows.{name}", getattr(self_, name), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where the normalised grounding map (0 to 1) is strictly above: `edit` may change, `critical` gets variance.

    Below 0 takes in everything, 1 nothing.
    """

    edit: float = 0.5  # above it the picture may change
    critical: float = 0.8  # above it noise is injected

    def __post_init__(self) -> None:
        check_types(self)
        check_range("thresholds.edit", self.edit, -1.0, 1.0)
        check_range("thresholds.critical", self.critical, -1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class GroundingSides:
    """Which attention layers grounding reads: their side over the latent's side. None: the model's own (else 1/2, 1/4)."""

    self: float | None = None  # of the self-attention that refines the map
    cross: float | None = None  # of the attention to the words

    def __post_init__(self_) -> None:  # noqa: N805
        check_types(self_)
        for name in ("self", "cross"):
            value = getattr(self_, name)
            if value is not None and (not 0 < value <= 1 or math.log2(value) % 1):
                raise ConfigError(f"grounding_sides.{name}: got {value}; allowed: 1, 0.5, 0.25, 0.125, ...")


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """How a picture becomes the model's input: `crop` = centre square, `keep` = the nearest aspect bucket.

    `size` is the side of the square in pixels (the area of a bucket is about its square); None: the model's own.
    """

    fit: str = "crop"  # crop: the centre square; keep: the nearest aspect bucket
    size: int | None = None  # side of the square in px; a bucket has about its area

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("canvas.fit", self.fit, FITS)
        if self.size is not None and not 8 <= self.size <= 4096:
            raise ConfigError(f"canvas.size: got {self.size}; allowed: 8 to 4096 px, a multiple of the model's granularity")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """One LoRA: a local file or folder, or a hub id, merged into the weights with `scale`."""

    path: str = ""  # file, folder with one .safetensors file, or hub id
    scale: float = 1.0  # how strongly it is merged

    def __post_init__(self) -> None:
        check_types(self)
        if not self.path:
            raise ConfigError("lora: got an entry without a path; allowed: {path: FILE, scale: NUMBER}")
        check_range("lora.scale", self.scale, -1000.0, 1000.0)


@dataclass(frozen=True, kw_only=True)
class EditConfig:
    """Everything about an edit that is not the model and not the record."""

    method: str = "vimaedit"  # the editor; each has published values of its own for the options below
    steps: int = 50  # denoising steps
    seed: int = 0  # of the run; a record without a seed of its own derives one from it and its id
    solver: str = "ddim"  # ddim, or dpmsolver++ (second order, for few steps)
    spacing: str = "leading"  # where the grid begins: a stride below the noisiest level, or at it (trailing: Turbo, Lightning)
    variance: str = "adaptive"  # where noise is injected: the critical region, everywhere once a mask exists, nowhere
    eta: float = 1.0  # how much of it: 0 = deterministic, 1 = the full posterior variance (DDIM only)
    source_variance: bool = True  # whether it is injected into the source too; false: all edits of a picture have one source
    targets_per_source: int = 1  # 2, 4, ...: so many edits of a picture do their source's work once, where it is the same
    grounding: str = (
        "vimaedit"  # how the place of the edit is found, see README; given: a mask per record; segmenter: looked for
    )
    grounding_sides: GroundingSides = field(default_factory=GroundingSides)
    grounding_blocks: list[int] = field(default_factory=list)  # of joint attention, counted through; empty: the model's own
    grounding_rounds: int = 5  # K, refinement rounds with self-attention; `cross-attention` has none
    grounding_decay: float = 0.5  # g in M <- g M + (1 - g) A M
    grounding_start: float = 0.2  # fraction of the steps after which masks begin
    thresholds: Thresholds = field(default_factory=Thresholds)
    windows: Windows = field(default_factory=Windows)
    text_control: str = "refine"  # how text attention follows the source: refine, replace (equal word counts), or auto
    blend_weight: float = 1.0  # factor on the text attention of the target's blend words while the text window is open
    text_guidance: bool = True  # False: the target text is empty, the picture embedding alone steers
    image_guidance: bool = True  # False: no image prompt at all, the model needs no IP-Adapter
    image_strength: float = 0.4  # scale of the image cross-attention
    image_order: str = "reference"  # which row sees which image embedding, see `step/rows.py`
    source_guidance: float = 1.0  # classifier-free guidance of the source branch; 1 saves a quarter of the work
    target_guidance: float = 7.5  # classifier-free guidance of the edit
    guidance_end: float = 1.0  # share of the steps that run, from the first, in which branches are guided; later ones save rows
    blend: str = "auto"  # what changes: auto (blend_words, else the difference of the prompts), given (blend_words), none
    missing_blend: str = "reject"  # a given phrase that its prompt lacks: reject the record, or ignore the phrase
    long_prompt: str = "truncate"  # a prompt beyond the longest text encoder: truncate with a warning, or reject
    canvas: Canvas = field(default_factory=Canvas)
    skip: float = 0.0  # share of the steps left out at the noisy end; leditspp: how far the grid stays from that end
    start: str = "image"  # the first latents: the noised picture, or noise alone (virtual inversion)
    negative_prompt: str | None = None  # what the target's unconditional rows read; None: nothing, as the model was trained
    new_word_weight: float = 1.0  # factor on the text attention of the words that only the target prompt has
    direction_kept: float = 100.0  # percent of the target embedding's direction that is kept, its largest entries
    mutual_start: int = 4  # masactrl: the step from which the target reads the source's keys and values
    proximal_quantile: float = 0.75  # proximal-p2p: share of the guidance's entries that is dropped
    segmenter: Segmenter = field(default_factory=Segmenter)
    laplacian: Laplacian = field(default_factory=Laplacian)
    null_text: NullText = field(default_factory=NullText)
    prompt_learning: PromptLearning = field(default_factory=PromptLearning)
    pix2pix_zero: Pix2PixZero = field(default_factory=Pix2PixZero)
    concepts: Concepts = field(default_factory=Concepts)
    auxiliary: Auxiliary = field(default_factory=Auxiliary)
    flowedit: FlowEdit = field(default_factory=FlowEdit)
    uniedit: UniEdit = field(default_factory=UniEdit)
    midpoint: Midpoint = field(default_factory=Midpoint)
    pipeline: HostedPipeline = field(default_factory=HostedPipeline)
    quirks: list[str] = field(default_factory=list)  # what published programs do though it is not right, see methods/options.py

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("method", self.method, METHODS)
        check_range("steps", self.steps, 1, 999)
        check_range("seed", self.seed, 0, 2**63 - 1)
        check_choice("solver", self.solver, SOLVERS)
        check_choice("spacing", self.spacing, SPACINGS)
        if self.spacing != "leading" and (self.solver != "ddim" or self.parts.grid not in ("solver", "training")):
            raise ConfigError(
                f"spacing: got {self.spacing} with method={self.method}, solver={self.solver}; allowed: leading, or solver=ddim with a "
                "method whose grid is not its own"
            )
        check_choice("variance", self.variance, VARIANCES)
        check_range("eta", self.eta, 0.0, 1.0)
        self._check_sharing()
        check_choice("grounding", self.grounding, GROUNDINGS)
        if self.grounding not in self.parts.groundings:
            allowed = ", ".join(self.parts.groundings)
            raise ConfigError(f"grounding: got {self.grounding} with method={self.method}; allowed: {allowed}")
        for block in self.grounding_blocks:
            check_range("grounding_blocks", block, 0, 999)
        check_range("grounding_rounds", self.grounding_rounds, 0, 100)
        check_range("grounding_decay", self.grounding_decay, 0.0, 1.0)
        check_range("grounding_start", self.grounding_start, 0.0, 1.0)
        check_choice("text_control", self.text_control, TEXT_CONTROLS)
        check_range("blend_weight", self.blend_weight, 0.0, 100.0)
        check_range("image_strength", self.image_strength, 0.0, 10.0)
        check_choice("image_order", self.image_order, IMAGE_ORDERS)
        check_range("source_guidance", self.source_guidance, 0.0, 100.0)
        check_range("target_guidance", self.target_guidance, 0.0, 100.0)
        self._check_guidance_end()
        check_choice("blend", self.blend, BLENDS)
        check_choice("missing_blend", self.missing_blend, MISSING_BLENDS)
        check_choice("long_prompt", self.long_prompt, LONG_PROMPTS)
        check_range("skip", self.skip, 0.0, 0.99)
        check_choice("start", self.start, STARTS)
        check_range("new_word_weight", self.new_word_weight, 0.0, 100.0)
        check_range("direction_kept", self.direction_kept, 0.0, 100.0)
        check_range("mutual_start", self.mutual_start, 0, 999)
        check_range("proximal_quantile", self.proximal_quantile, 0.0, 1.0)
        for quirk in self.quirks:
            check_choice("quirks", quirk, QUIRKS)
        if not self.text_guidance and not self.image_guidance:
            raise ConfigError(
                "text_guidance, image_guidance: got false for both; allowed: at least one true, else nothing steers"
            )
        if self.parts.keeps_attention and self.image_guidance:
            raise ConfigError(
                f"image_guidance: got true with method={self.method}, which compares attention to text alone; allowed: false"
            )
        if self.eta != 1.0 and self.solver != "ddim":
            raise ConfigError(f"eta: got {self.eta} with solver={self.solver}; allowed: 1.0, or solver=ddim")

    def _check_sharing(self) -> None:
        if not self.source_variance and (self.parts.spread != "masked" or "locatedit-variance" in self.quirks):
            raise ConfigError(f"source_variance: got false with method={self.method}; allowed: true, or vimaedit, locatedit")
        count = self.targets_per_source
        if not 1 <= count <= MOST_TARGETS or count & (count - 1):
            raise ConfigError(f"targets_per_source: got {count}; allowed: 1, 2, 4, ... {MOST_TARGETS}")
        if count > 1 and (self.parts.track != "shared" or self.parts.has_auxiliary):
            raise ConfigError(
                f"targets_per_source: got {count} with method={self.method}; allowed: 1, or vimaedit, locatedit, virtual-p2p"
            )

    def _check_guidance_end(self) -> None:
        check_range("guidance_end", self.guidance_end, 0.0, 1.0)
        if self.parts.guidance == "difference" and (self.source_guidance, self.target_guidance) != (1, 1):
            name = "target_guidance" if self.source_guidance == 1 else "source_guidance"
            raise ConfigError(
                f"{name}: got {getattr(self, name)} with method={self.method}; allowed: 1, for it steers by uniedit.strength"
            )
        if self.parts.has_one_latent and (self.blend != "none" or self.takes_mask):
            raise ConfigError(
                f"blend, grounding: got {self.blend}, {self.grounding} with method={self.method}; allowed: blend=none without a given "
                "mask, for source and target are one latent"
            )
        if self.guidance_end < 1 and not self.parts.can_stop_guiding:
            raise ConfigError(
                f"guidance_end: got {self.guidance_end} with method={self.method}; allowed: 1.0, or a method whose branches are guided "
                "by two rows each, such as vimaedit or p2p"
            )

    def check_compile(self) -> None:
        """Refuse methods that compiled passes would be wrong for.

        Raises: ConfigError.
        """
        if self.parts.copies_features:  # by a hook, which a compiled pass may not see come and go
            raise ConfigError(f"compile: got true with method={self.method}; allowed: false")

    @property
    def parts(self) -> Method:
        """What the method is made of."""
        return METHODS[self.method]

    @property
    def reads_words(self) -> bool:
        """Whether a run grounds by the attention to words; follows from its options alone, never from a batch."""
        if self.parts.guidance == "concepts":
            return self.concepts.mask in ("intersect", "attention")
        return not self.mask_is_all and self.blend != "none"

    @property
    def takes_mask(self) -> bool:
        """Whether a mask from outside counts: a record's own, or a segmenter's."""
        return self.grounding in ("given", "segmenter")

    @property
    def mask_is_all(self) -> bool:
        """Whether a mask from outside alone says where the edit happens; every edit has one then."""
        by_itself = self.segmenter.combine == "replace" and self.segmenter.missing == "reject"
        return self.grounding == "given" or (self.grounding == "segmenter" and by_itself)

    @property
    def needs_gradients(self) -> bool:
        """Whether an edit's latents or words are fitted by gradients of the attention, which vanish in float16."""
        return self.parts.keeps_attention or self.learns_words

    @property
    def learns_words(self) -> bool:
        """Whether grounding fits the source's words first, which needs gradients."""
        return self.reads_words and self.grounding == "dpl"

    @property
    def reads_self_attention(self) -> bool:
        """Whether grounding refines by self-attention."""
        if self.grounding in ("laplacian", "dpl"):
            return self.reads_words
        return self.reads_words and self.grounding in ("vimaedit", "segmenter") and self.grounding_rounds > 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which weights, where and in which precision."""

    model: str = "miniature"  # built-in name, bundle folder, diffusers folder, checkpoint file, or hub id
    ip_adapter: str | None = None  # file, folder or hub id; None: the bundle's own, or the public one of its family
    clip: str | None = None  # folder or hub id with both CLIP towers; None: as above
    model_config: str | None = None  # local diffusers folder with configs and tokenizer for a checkpoint file
    revision: str | None = None  # of a hub id: branch, tag or commit
    variant: str | None = None  # of the weight files, such as fp16
    lora: list[Lora] = field(default_factory=list)  # [{path: FILE_OR_HUB_ID, scale: 1.0}], merged into the weights
    dtype: str = "auto"  # float32 on CPU, the half precision that the model was published for on CUDA
    device: str = "auto"  # cuda where there is one, else cpu
    offload: str = (
        "none"  # encoders: those of texts and pictures leave the GPU between batches, for a card that is small for the model
    )
    compile: bool = False  # compile the UNet, on a GPU: minutes at every actor's start, for thousands of edits

    def __post_init__(self) -> None:
        check_types(self)
        if not self.model:
            raise ConfigError("model: got an empty string; allowed: a built-in name, a folder, a file, or a hub id")
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("offload", self.offload, OFFLOADS)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device: got {self.device!r}; allowed: auto, cpu, cuda, cuda:NUMBER")
        if self.compile and self.device == "cpu":
            raise ConfigError(NEEDS_GPU)
