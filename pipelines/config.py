"""The settings of a data job: the edit and the model (one flat namespace with them), and what is the pipeline's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.schema import METRICS
from pipelines.score_config import ScoreConfig
from vimaedit.config import EditConfig, ModelConfig, check_choice, check_range
from vimaedit.errors import ConfigError
from vimaedit.metrics.names import RIDING_GROUPS

FRAMES = ("canvas", "original")
KEEP_SOURCES = ("true", "path", "false")
IMAGE_FORMATS = ("auto", "png", "webp", "jpeg")
ALWAYS_MEASURED = (*METRICS, "unchanged")
RETRY_STATUSES = ("failed", "quarantined")  # by default
LOG_FORMATS = ("text", "json")
RESUMES = ("if-possible", "never", "always", "retry-failed", "extend")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where records come from, where results go, and how the work is placed."""

    input: str = ""  # Parquet file, folder or glob, local or any fsspec URL
    output: str = ""  # folder, local or any fsspec URL
    columns: dict[str, str] = field(default_factory=dict)  # name in the contract -> name in the input
    image_root: str | None = None  # where string images are looked up; None: beside the input
    allow_http: bool = False  # whether a record may name its picture by an http(s) URL
    http_hosts: list[str] = field(default_factory=list)  # private hosts that may be asked all the same
    min_side_px: int = 16  # a picture with a shorter side is rejected
    max_pixels: int = 100_000_000  # a picture of more is rejected before it is decoded
    frame: str = "canvas"  # of all pictures of a row. canvas: what the model saw; original: pasted back at its own size
    keep_source: str = "true"  # the source in the output. true: its pixels; path: its path, with frame=original; false: not
    image_format: str = "auto"  # png (level 1) and webp are lossless, jpeg is quality 95; auto: webp, with frame=original png
    metrics: list[str] = field(default_factory=list)  # beyond those that every row has: clip, lpips, structure
    scoring_clip: str | None = ScoreConfig.scoring_clip  # CLIP of metrics=[clip]: miniature, folder, URL or hub id
    dino: str | None = ScoreConfig.dino  # DINO ViT-B/8 of metrics=[structure]: file, folder, URL or hub id
    lpips: str | None = None  # SqueezeNet 1.1 of ImageNet of metrics=[lpips]: file, folder, URL or hub id
    lpips_heads: str | None = None  # linear heads of lpips: file or URL; unset: those of an installed torchmetrics or lpips
    limit: int | None = None  # the first N requests only
    dry_run: bool = False  # say what a run would be and take, from a measured sample; writes nothing
    sheet: int = 0  # the first N results as <output>/sheet.png
    resume: str = "if-possible"  # of an output that holds a run: if-possible, never, always, retry-failed, extend (new files)
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
        for name in ("input", "output"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: got nothing; it is required: {name}=PATH_OR_URL")
        check_choice("frame", self.frame, FRAMES)
        check_choice("keep_source", self.keep_source, KEEP_SOURCES)
        if self.keep_source == "path" and self.frame != "original":
            raise ConfigError(f"keep_source: got path with frame={self.frame}; allowed: path needs frame=original")
        check_choice("image_format", self.image_format, IMAGE_FORMATS)
        for name in self.metrics:
            check_choice("metrics", name, (*RIDING_GROUPS, *ALWAYS_MEASURED))
        check_choice("resume", self.resume, RESUMES)
        check_choice("log_format", self.log_format, LOG_FORMATS)
        if not self.retry_statuses:
            raise ConfigError(f"retry_statuses: got nothing; allowed: some of {', '.join((*RETRY_STATUSES, 'rejected'))}")
        for status in self.retry_statuses:
            check_choice("retry_statuses", status, (*RETRY_STATUSES, "rejected"))
        check_range("min_side_px", self.min_side_px, 1, 100_000)
        check_range("max_pixels", self.max_pixels, 1, 10**10)
        check_range("sheet", self.sheet, 0, 1000)
        for name in ("max_failed_fraction", "max_rejected_fraction", "stop_failed_fraction"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit: got {self.limit}; allowed: 1 or more, or leave it out")
        for name, high in (("actors", 100_000), ("batch_size", 4096), ("threads", 1024)):
            value = getattr(self, name)
            if isinstance(value, str):
                check_choice(name, value, ("auto",))
            else:
                check_range(name, value, 1, high)

    @property
    def picture_coding(self) -> str:
        """The format that pictures are written in. WebP is the smaller and, for photographs, the faster one; PNG holds any size."""
        if self.image_format != "auto":
            return self.image_format
        return "png" if self.frame == "original" else "webp"

    @property
    def riding(self) -> tuple[str, ...]:
        """The groups of metrics that ride along, in their fixed order."""
        return tuple(group for group in RIDING_GROUPS if group in self.metrics)


@dataclass(frozen=True, kw_only=True)
class EditJobConfig(DataConfig, EditConfig, ModelConfig):
    """`jobs.edit`: everything, flat, so that every key is a top-level option."""

    def __post_init__(self) -> None:
        EditConfig.__post_init__(self)
        ModelConfig.__post_init__(self)
        DataConfig.__post_init__(self)
        if ":" in self.device:
            raise ConfigError(f"device: got {self.device}; allowed: auto, cpu, cuda (Ray gives every actor its GPU)")
        if self.compile:
            self.check_compile()
        if isinstance(self.batch_size, int) and self.batch_size % self.targets_per_source:
            raise ConfigError(
                f"batch_size: got {self.batch_size} with targets_per_source={self.targets_per_source}; allowed: a multiple of it, or auto"
            )
