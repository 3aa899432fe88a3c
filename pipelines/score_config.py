"""The settings of a scoring run, and the columns of what it writes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from pipelines.secrets import mask_urls
from vimaedit.config import check_choice, check_range
from vimaedit.errors import ConfigError
from vimaedit.metrics.names import METRIC_GROUPS, METRICS

PARTS = ("whole", "last")
SCORE_FIELDS = (
    pa.field("id", pa.string()),
    pa.field("edit_index", pa.int32()),
    pa.field("input_file", pa.string()),
    pa.field("input_row", pa.int64()),
    pa.field("category", pa.string()),
    pa.field("instruction", pa.string()),
    pa.field("source_prompt", pa.string()),
    pa.field("target_prompt", pa.string()),
    pa.field("name", pa.string()),
    pa.field("status", pa.string()),
    pa.field("message", pa.string()),
    pa.field("edited_file", pa.string()),
    pa.field("edited_row", pa.int64()),
    pa.field("grounded", pa.bool_()),
    pa.field("seconds", pa.float64()),
    *(pa.field(name, pa.float64()) for name in METRICS),
)
SCORE_SCHEMA = pa.schema(SCORE_FIELDS)
MISSING = "missing"  # status of a request without an edited picture
UNSCORED = "unscored"  # ... and of one whose pictures cannot be read or compared


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What is scored against what, by which metrics (`jobs.score`)."""

    benchmark: str = ""  # Parquet file, folder or glob with reference_mask, category, ...; local or any fsspec URL
    edited: str = ""  # output of jobs.edit; or Parquet with id and edited_image; or a folder of pictures named by record id
    output: str = ""  # folder, local or any fsspec URL; gets scores/<name>.parquet and scores/<name>.json
    name: str = ""  # of these scores; empty: the run's method, else the last part of `edited`
    metrics: list[str] = field(default_factory=list)  # background, lpips, structure, clip, mask, target, scene; empty: all
    scoring_clip: str | None = (
        "openai/clip-vit-large-patch14"  # CLIP that scores: miniature, folder, URL or hub id; unset: no clip
    )
    dino: str | None = "facebook/dino-vitb8"  # DINO ViT-B/8 for structure: file, folder, URL or hub id; unset: no structure
    lpips: str | None = None  # SqueezeNet 1.1 of ImageNet for lpips: file, folder, URL or hub id; unset: no lpips
    lpips_heads: str | None = None  # linear heads of lpips: file or URL; unset: those of an installed torchmetrics or lpips
    jpeg_quality: int | None = None  # take results through JPEG of this quality first; the published figures: 75
    part: str = "whole"  # of an edited picture. last: of several squares side by side the last one
    against: str = ""  # name of other scores in the same output: paired comparison
    columns: dict[str, str] = field(default_factory=dict)  # of the benchmark: name in the contract -> name in the file
    edited_columns: dict[str, str] = field(default_factory=dict)  # of an edited Parquet: as `columns`
    image_root: str | None = None  # where the benchmark's string images are looked up; None: beside it
    allow_http: bool = False  # whether a record may name its picture by an http(s) URL
    http_hosts: list[str] = field(default_factory=list)  # private hosts that may be asked all the same
    max_pixels: int = 100_000_000  # a picture of more is not decoded
    limit: int | None = None  # the first N requests of the benchmark only
    max_missing_fraction: float = 0.05  # with more requests without an edited picture a finished run exits with 3
    device: str = "auto"  # cuda where there is one, else cpu
    actors: int | str = "auto"  # how many score side by side; auto: as many as the cluster has room for
    batch_size: int = 8  # pairs that go through the networks at once
    threads: int | str = "auto"  # CPU threads of one actor
    ray_address: str | None = None  # HOST:PORT of a cluster, or auto; unset: RAY_ADDRESS, else a Ray of this process's own

    def __post_init__(self) -> None:
        for name in ("benchmark", "edited", "output"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: got nothing; it is required: {name}=PATH_OR_URL")
        for name in ("name", "against"):
            if "/" in getattr(self, name) or getattr(self, name)[:1] in (".", "_"):
                raise ConfigError(f"{name}: got {getattr(self, name)!r}; allowed: a file name that does not begin with . or _")
        if self.against and self.against == self.name:
            raise ConfigError(f"against: got {self.against!r}, these scores themselves; allowed: the name of other scores")
        for group in self.metrics:
            check_choice("metrics", group, METRIC_GROUPS)
        check_choice("part", self.part, PARTS)
        if self.jpeg_quality is not None:
            check_range("jpeg_quality", self.jpeg_quality, 1, 100)
        check_range("max_pixels", self.max_pixels, 1, 10**10)
        check_range("max_missing_fraction", self.max_missing_fraction, 0.0, 1.0)
        check_range("batch_size", self.batch_size, 1, 4096)
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit: got {self.limit}; allowed: 1 or more, or leave it out")
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        for name, high in (("actors", 100_000), ("threads", 1024)):
            value = getattr(self, name)
            if isinstance(value, str):
                check_choice(name, value, ("auto",))
            else:
                check_range(name, value, 1, high)

    @property
    def groups(self) -> tuple[str, ...]:
        """The chosen metrics, in their fixed order."""
        return tuple(group for group in METRIC_GROUPS if not self.metrics or group in self.metrics)

    @property
    def shown_edited(self) -> str:
        """`edited` without credentials."""
        return mask_urls(self.edited)
