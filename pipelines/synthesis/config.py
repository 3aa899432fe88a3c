"""The settings of a synthesis: which prompt pairs, which candidates, and what is kept of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.options import Judge, Shards, check_bases
from pipelines.output.config import EditJobConfig
from pipelines.store.location import locate
from vimaedit.checks import check_choice, check_range
from vimaedit.config import EditConfig
from vimaedit.errors import ConfigError
from vimaedit.metrics.judge import PROMPT_VERSION
from vimaedit.synthesis.lexicon import CATEGORIES

OPEN_NSFW = "open-nsfw"  # a value of `safety`: packaged weights, no head
PAIRS = ("auto", "given", "rules", "generator")
REWRITES = ("none", "generator", "judge")
RANGES = {  # field of `Spread` -> its lowest and highest value
    "image_strength": (0.0, 10.0),
    "target_guidance": (0.0, 100.0),
    "edit_threshold": (-1.0, 1.0),
    "critical_threshold": (-1.0, 1.0),
    "self_window": (0.0, 1.0),
    "text_window": (0.0, 1.0),
    "image_window": (0.0, 1.0),
}
# Where a spread is not given, it goes from this to that share of the run's value: 0.2 to 0.6, 0.35 to 0.65 and 0.3 to 0.8 of the
# published ones. A model's recipe moves it along, and what it switches off stays off.
AROUND = {"image_strength": (0.5, 1.5), "edit_threshold": (0.7, 1.3), "self_window": (0.5, 4 / 3)}
BEST_BY = ("auto", "clip_direction", "clip_target", "background_psnr", "judge")
MAX_CANDIDATES = 1000
PAIR_OPTIONS = (
    *("seed", "pairs", "edits", "edits_per_caption", "candidates", "columns", "image_root", "model", "revision"),
    *("variant", "dtype", "generator", "source"),
)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """From where to where the candidates of a pair spread: two numbers each; an empty list: all have the run's value; null: around it."""

    image_strength: list[float] | None = None  # scale of the image cross-attention
    target_guidance: list[float] = field(default_factory=list)  # classifier-free guidance of the edit
    edit_threshold: list[float] | None = None  # above it the picture may change
    critical_threshold: list[float] = field(default_factory=list)  # above it noise is injected
    self_window: list[float] | None = None  # share of the steps with the source's self-attention
    text_window: list[float] = field(default_factory=list)  # share of the steps with the source's attention to words
    image_window: list[float] = field(default_factory=list)  # share of the steps with the source's attention to the picture

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            values = getattr(self, name)
            if values and (len(values) != 2 or values[0] > values[1]):
                raise ConfigError(f"spread.{name}: got {values}; allowed: [from, to], or []")
            for value in values or ():
                check_range(f"spread.{name}", value, low, high)

    def ranges(self, run: EditConfig) -> dict[str, list[float]]:
        """Return from where to where every one of them spreads in a run, by name; empty: it does not."""
        values = {"image_strength": run.image_strength, "edit_threshold": run.thresholds.edit, "self_window": run.windows.self}
        around = {name: _around(value, *AROUND[name], RANGES[name]) for name, value in values.items()}
        return {name: around[name] if getattr(self, name) is None else getattr(self, name) for name in RANGES}


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A text generator for pairs=generator: a model of transformers, or a server at a URL."""

    model: str | None = None  # folder or hub id of a causal language model; with a url: the server's name of its model
    url: str | None = None  # of a server with OpenAI's interface, such as http://HOST:8000/v1
    key_variable: str | None = None  # name of the environment variable, on the workers, that holds the server's key
    batch_size: int = 8  # prompts that a local model answers at once
    max_tokens: int = 256  # of an answer

    def __post_init__(self) -> None:
        check_range("generator.batch_size", self.batch_size, 1, 4096)
        check_range("generator.max_tokens", self.max_tokens, 1, 100_000)


@dataclass(frozen=True, kw_only=True)
class SourceImages:
    """How source pictures are drawn from captions where the input has none: the model's stock text-to-image pipeline."""

    steps: int = 50  # denoising steps
    guidance: float = 7.5  # classifier-free guidance

    def __post_init__(self) -> None:
        check_range("source.steps", self.steps, 1, 999)
        check_range("source.guidance", self.guidance, 0.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a candidate has to reach; null: no such filter. CLIP values are cosines.

    Filters without their network are off, with a warning.
    """

    min_change: float | None = 0.03  # mean difference in the mask, or anywhere without one, of 1; below it: unchanged
    require_mask: bool = True  # where words say what changes, there has to be a mask
    min_mask: float | None = 0.002  # share of the picture that the mask takes
    max_mask: float | None = 0.9  # share of the picture that the mask takes
    min_background_psnr: float | None = 20.0  # dB, over the pixels outside the mask
    max_background_lpips: float | None = 0.2  # outside the mask
    min_clip_source: float | None = 0.2  # source picture and source prompt
    min_clip_target: float | None = 0.2  # edited picture and target prompt
    min_clip_image: float | None = 0.7  # source and edited picture
    max_clip_image: float | None = None  # source and edited picture
    min_clip_direction: float | None = 0.2  # change of the picture and change of the prompt
    min_aesthetic: float | None = None  # of the edited picture, where aesthetic names a head
    max_unsafe: float | None = 0.0  # of both pictures, where safety names a head; of open-nsfw the probability less 0.5
    min_judge: float | None = None  # of 10, where judge.model names one; an edit that it gave no score passes
    max_distance: int | None = 12  # of 384 bits: records whose pictures differ in no more are duplicates
    per_pair: int = 1  # how many candidates of a pair are kept, the best first
    best_by: str = (
        "auto"  # what makes one the best: clip_direction, clip_target, background_psnr, judge; auto: the first there is
    )

    def __post_init__(self) -> None:
        for name in ("min_change", "min_mask", "max_mask"):
            _check_optional(f"filters.{name}", getattr(self, name), 0.0, 1.0)
        for name in ("min_clip_source", "min_clip_target", "min_clip_image", "max_clip_image", "min_clip_direction"):
            _check_optional(f"filters.{name}", getattr(self, name), -1.0, 1.0)
        _check_optional("filters.min_background_psnr", self.min_background_psnr, 0.0, 100.0)
        _check_optional("filters.max_background_lpips", self.max_background_lpips, 0.0, 10.0)
        for name in ("min_aesthetic", "max_unsafe"):
            _check_optional(f"filters.{name}", getattr(self, name), -1e6, 1e6)
        _check_optional("filters.min_judge", self.min_judge, 0.0, 10.0)
        _check_optional("filters.max_distance", self.max_distance, 0, 64)
        check_range("filters.per_pair", self.per_pair, 1, MAX_CANDIDATES)
        check_choice("filters.best_by", self.best_by, BEST_BY)


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig(Shards, EditJobConfig):
    """`jobs.synthesize`: the editing run's options, and those of what comes before and after it."""

    pairs: str = (
        "auto"  # where edits come from: given (target_prompt), rules, generator; auto: given where there is such a column
    )
    edits: list[str] = field(default_factory=list)  # kinds of edits for rules and generator; empty: all
    edits_per_caption: int = 1  # pairs made of one caption by rules or generator
    words: str = "general"  # word lists of the rules: general, scenes, or a TOML file of your own
    generator: Generator = field(default_factory=Generator)
    source: SourceImages = field(default_factory=SourceImages)
    candidates: int = 4  # tries at each pair
    spread: Spread = field(default_factory=Spread)
    scoring_clip: str | None = None  # CLIP of the filters: miniature, folder, URL or hub id; unset: those filters are off
    aesthetic: str | None = None  # linear head on scoring_clip's picture embedding: file with weight and bias; unset: off
    safety: str | None = (
        None  # as aesthetic, or open-nsfw (pip install vimaedit[safety]); above filters.max_unsafe a picture is unsafe
    )
    judge: Judge = field(default_factory=Judge)
    filters: Filters = field(default_factory=Filters)
    validation_fraction: float = 0.02  # share of the source pictures whose records are the validation split
    preferences: bool = False  # write the best and the worst candidate of each kept pair into <output>/preferences
    inverted: bool = False  # write kept pairs turned round, the edited picture as source, into <output>/inverted
    turns: bool = False  # write two kept edits of one picture after one another, as two turns, into <output>/turns
    rewrite: str = (
        "none"  # who writes the instructions of kept edits anew from both pictures: generator, judge (their servers); none
    )
    keep_rejected: bool = False  # write the candidates that were not kept, with the reason, into <output>/rejected
    truth: bool = False  # drawn scenes: count with a pixel reader, which no filter asks, how many edits are truly right
    select_only: bool = False  # select again from finished candidates, with other filters; nothing is edited

    def __post_init__(self) -> None:
        check_bases(self, SynthesizeConfig)
        if self.targets_per_source != 1:
            raise ConfigError(
                f"targets_per_source: got {self.targets_per_source}; allowed: 1, since every candidate has a seed of its own"
            )
        check_choice("pairs", self.pairs, PAIRS)
        check_choice("rewrite", self.rewrite, REWRITES)
        if self.rewrite != "none" and getattr(self, self.rewrite).url is None:
            raise ConfigError(
                f"{self.rewrite}.url: got nothing with rewrite={self.rewrite}; allowed: a server whose model sees pictures"
            )
        for category in self.edits:
            check_choice("edits", category, CATEGORIES)
        check_range("edits_per_caption", self.edits_per_caption, 1, 100)
        check_range("candidates", self.candidates, 1, MAX_CANDIDATES)
        check_range("validation_fraction", self.validation_fraction, 0.0, 1.0)
        if self.truth and self.words != "scenes":
            raise ConfigError(
                f"truth: got true with words={self.words}; allowed: words=scenes, the only pictures that can be read"
            )
        if self.keep_source != "true":
            raise ConfigError(f"keep_source: got {self.keep_source}; allowed: true, since a record has both pictures")
        if self.takes_mask:
            raise ConfigError(f"grounding: got {self.grounding}; allowed: any that finds the mask itself")
        if self.resume == "never" and self.select_only:
            raise ConfigError("select_only: got true with resume=never; allowed: an output that holds finished candidates")
        if self.pairs == "generator" and self.generator.model is None:
            raise ConfigError(
                "generator.model: got nothing with pairs=generator; allowed: a folder, a hub id or a server's model"
            )
        asks_judge = self.filters.best_by == "judge" or self.filters.min_judge is not None
        if asks_judge and self.judge.model is None:
            raise ConfigError(
                "judge.model: got nothing with filters that ask the judge; allowed: a vision-language model, or a server's with judge.url"
            )
        for name in ("aesthetic", "safety"):
            if getattr(self, name) not in (None, OPEN_NSFW) and self.scoring_clip is None:
                raise ConfigError(
                    f"{name}: got {getattr(self, name)!r} without scoring_clip; allowed: both, since it reads CLIP"
                )

    def editing_job(self) -> EditJobConfig:
        """Return the run that edits the candidates: this one's options, from `<output>/pairs` to `<output>/candidates`."""
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in dataclasses.fields(EditJobConfig)}
        output = locate(self.output)
        own = {"input": (output / "pairs").url, "output": (output / "candidates").url}
        return EditJobConfig(**{**values, **own, "columns": {}, "image_root": None, "limit": None, "sheet": 0})


def pair_settings(config: SynthesizeConfig, words_digest: str) -> dict[str, Any]:
    """Return what the pairs and their pictures depend on besides the input, as plain values."""
    values = dataclasses.asdict(config)
    return {**{name: values[name] for name in PAIR_OPTIONS}, "spread": config.spread.ranges(config), "words": words_digest}


def score_settings(config: SynthesizeConfig) -> Mapping[str, str | None]:
    """Return what scores depend on besides the pictures."""
    networks = {name: getattr(config, name) for name in ("scoring_clip", "lpips", "lpips_heads", "aesthetic", "safety")}
    judge = config.judge
    asked = None if judge.model is None else f"{judge.model} {judge.max_tokens} {judge.side_px} {PROMPT_VERSION}"
    return {**networks, "judge": asked}


def _around(value: float, low: float, high: float, allowed: tuple[float, float]) -> list[float]:
    """Return from where to where a setting spreads around its value; nowhere unless that is above 0, of which alone there are shares."""
    return [round(min(max(value * share, allowed[0]), allowed[1]), 6) for share in (low, high)] if value > 0 else []


def _check_optional(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None:
        check_range(name, value, low, high)
