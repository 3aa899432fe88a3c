"""The settings of an evaluation, and the editing and scoring runs that follow from them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.config import RETRY_STATUSES, DataConfig, EditJobConfig
from pipelines.digest import METRIC_NETWORKS
from pipelines.score_config import ScoreConfig
from pipelines.storage import locate
from vimaedit.config import EditConfig, ModelConfig, check_choice, check_range
from vimaedit.errors import ConfigError
from vimaedit.methods import METHODS
from vimaedit.metrics.names import METRIC_GROUPS

PUBLISHED_HABITS = {"blend": "given", "missing_blend": "ignore", "long_prompt": "truncate"}


VARIANT_OPTIONS = {each.name for kind in (EditConfig, ModelConfig) for each in dataclasses.fields(kind)} - {"method"} | {
    "columns"
}
LABEL = r"([A-Za-z0-9-][A-Za-z0-9.-]*)?"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One column of the board: a method with options of its own, and the name of its run."""

    name: str
    method: str
    options: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EditConfig, ModelConfig):
    """`jobs.evaluate`: a benchmark, one editor or several, their scores and the report. One flat namespace."""

    benchmark: str = ""  # records to edit (Parquet), or PIE-Bench or PIE-Bench++ as published
    output: str = ""  # folder, local or any fsspec URL; gets runs/ scores/ report.html leaderboard.md
    methods: list[str] = field(default_factory=list)  # several editors, also with options: [p2p, vimaedit grounding=laplacian]
    label: str = ""  # name of the run below runs/ and in the report; empty: the method's
    blend: str = PUBLISHED_HABITS["blend"]  # as published runs: given (blend_words alone); auto, none
    missing_blend: str = PUBLISHED_HABITS["missing_blend"]  # as published runs: ignore a phrase that its prompt lacks; reject
    long_prompt: str = PUBLISHED_HABITS["long_prompt"]  # as published runs: truncate; reject
    metrics: list[str] = field(default_factory=list)  # background, lpips, structure, clip, mask, target, scene; empty: all
    scoring_clip: str | None = ScoreConfig.scoring_clip  # CLIP that scores: miniature, folder, URL or hub id; unset: no clip
    dino: str | None = ScoreConfig.dino  # DINO ViT-B/8 for structure: file, folder, URL or hub id; unset: no structure
    lpips: str | None = None  # SqueezeNet 1.1 of ImageNet for lpips: file, folder, URL or hub id; unset: no lpips
    lpips_heads: str | None = None  # linear heads of lpips: file or URL; unset: those of an installed torchmetrics or lpips
    jpeg_quality: int | None = None  # take results through JPEG of this quality first; the published figures: 75
    against: str = ""  # the method that all others are compared with, pair by pair; empty: the first
    gallery: int = 2000  # records in the report's gallery, the first ones; the tables are of all
    thumbnail_px: int = 192  # longer side of the report's pictures
    columns: dict[str, str] = field(default_factory=dict)  # name in the contract -> name in the benchmark
    image_root: str | None = None  # where string images are looked up; None: beside the benchmark
    allow_http: bool = False  # whether a record may name its picture by an http(s) URL
    http_hosts: list[str] = field(default_factory=list)  # private hosts that may be asked all the same
    min_side_px: int = 16  # a picture with a shorter side is rejected
    max_pixels: int = 100_000_000  # a picture of more is rejected before it is decoded
    frame: str = "canvas"  # of all pictures of a row. canvas: what the model saw; original: pasted back at its own size
    limit: int | None = None  # the first N edits only
    dry_run: bool = False  # say what the editing runs would be and take, from a measured sample; writes nothing
    resume: str = "if-possible"  # of outputs that hold a run: if-possible, never, always, retry-failed, extend (new files)
    retry_statuses: list[str] = field(default_factory=lambda: list(RETRY_STATUSES))  # what retry-failed redoes; also rejected
    max_failed_fraction: float = 0.05  # with more rows failed or quarantined a finished run exits with 3
    max_rejected_fraction: float = 0.5  # with more rows rejected a finished run exits with 3
    stop_failed_fraction: float = 0.5  # with more of the last 200 rows failed the run stops early and exits with 5
    actors: int | str = "auto"  # how many editors work side by side; auto: as many as the cluster has room for
    batch_size: int | str = "auto"  # edits that one editor does at once; auto: by the memory of its device
    threads: int | str = "auto"  # CPU threads of one actor
    ray_address: str | None = None  # HOST:PORT of a cluster, or auto; unset: RAY_ADDRESS, else a Ray of this process's own
    log_format: str = "text"  # of the log on stderr. json: a JSON object per line, also in the workers' logs, with ids

    def __post_init__(self) -> None:
        EditConfig.__post_init__(self)
        ModelConfig.__post_init__(self)
        for name in ("benchmark", "output"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: got nothing; it is required: {name}=PATH_OR_URL")
        if not re.fullmatch(LABEL, self.label):
            raise ConfigError(f"label: got {self.label!r}; allowed: letters, digits, hyphens, dots, not a dot first")
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise ConfigError(f"method: got {twice[0]} twice; allowed: every method once, or with other options")
        if self.against:
            check_choice("against", self.against, self.names)
        for group in self.metrics:
            check_choice("metrics", group, METRIC_GROUPS)
        check_range("gallery", self.gallery, 0, 100_000)
        check_range("thumbnail_px", self.thumbnail_px, 32, 1024)
        if not self.methods:  # several are read one by one, each with published values of its own
            edit_job(self, self.benchmark)
        score_job(self, self.benchmark, self.names[0], "")

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is edited with, in the order of the report."""
        if self.methods:
            return tuple(read_variant(text) for text in self.methods)
        return (Variant(name=self.label or self.method, method=self.method, options={}),)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the runs, in the order of the report."""
        return tuple(variant.name for variant in self.variants)


def read_variant(text: str) -> Variant:
    """Read an entry of a list of methods: the method, then options of its own as `key=value`.

    Raises: ConfigError for an unknown method, or an option that is not the edit's.
    """
    method, *words = text.split() or [""]
    check_choice("method", method, METHODS)
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key.partition(".")[0] not in VARIANT_OPTIONS:
            raise ConfigError(f"method: got {word!r} behind {method}; allowed: options of the edit as key=value")
        options[key] = value
    return Variant(name=re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-."), method=method, options=options)


def edit_job(config: EvaluateConfig, records: str) -> EditJobConfig:
    """Return the editing run of a configuration with one method: an ordinary `jobs.edit` output below `runs/`."""
    own = _shared(config, EditConfig, ModelConfig, DataConfig, without=("output", "metrics", *METRIC_NETWORKS))
    run = (locate(config.output) / "runs" / config.names[0]).url
    return EditJobConfig(**own, input=records, output=run)


def score_job(config: EvaluateConfig, records: str, name: str, against: str) -> ScoreConfig:
    """Return the scoring of the run `name`, compared with the run `against`."""
    own = _shared(config, ScoreConfig, without=("benchmark", "output", "against", "batch_size", "device"))
    return ScoreConfig(
        **own,
        benchmark=records,
        edited=(locate(config.output) / "runs" / name).url,
        output=config.output,
        name=name,
        against="" if against == name else against,
        device=config.device.partition(":")[0],
    )


def _shared(config: EvaluateConfig, *kinds: type, without: Sequence[str]) -> dict[str, Any]:
    """Return the options that an evaluation has under the names of other settings."""
    own = {each.name for each in dataclasses.fields(config)}
    names = [each.name for kind in kinds for each in dataclasses.fields(kind) if each.name in own and each.name not in without]
    return {name: getattr(config, name) for name in names}
