"""Options that several jobs share, each declared once: its default, its text in `--help` and its check.

Settings are made of these mix-ins, of `EditConfig` and `ModelConfig`, and of options of their own. What `Place`, `EditingPlace` and
`GoingOn` say changes no row, save the device: digests leave them out as a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from vimaedit.checks import check_choice, check_range
from vimaedit.config import FRAMES, PASTES
from vimaedit.errors import ConfigError
from vimaedit.metrics.names import METRIC_GROUPS

RETRY_STATUSES = ("failed", "quarantined")  # by default
LOG_FORMATS = ("text", "json")
RESUMES = ("if-possible", "never", "always", "retry-failed", "extend")


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Which requests of an input are read, and what their columns are called there."""

    columns: dict[str, str] = field(default_factory=dict)  # name in the contract -> name in the input
    limit: int | None = None  # the first N requests only

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit: got {self.limit}; allowed: 1 or more, or leave it out")


@dataclass(frozen=True, kw_only=True)
class LargestPicture:
    """How large a picture may be."""

    max_pixels: int = 100_000_000  # a picture of more is refused before it is decoded

    def __post_init__(self) -> None:
        check_range("max_pixels", self.max_pixels, 1, 10**10)


@dataclass(frozen=True, kw_only=True)
class Pictures(LargestPicture):
    """Where pictures may lie that a record names by a string."""

    image_root: str | None = None  # where string images are looked up; unset: beside the input
    allow_http: bool = False  # whether a record may name its picture by an http(s) URL
    http_hosts: list[str] = field(default_factory=list)  # private hosts that may be asked all the same


@dataclass(frozen=True, kw_only=True)
class Rejects(LargestPicture):
    """Which pictures are rejected, and when that is too many of them."""

    min_side_px: int = 16  # a picture with a shorter side is refused
    max_rejected_fraction: float = 0.5  # with more of the input rejected a finished run exits with 3

    def __post_init__(self) -> None:
        check_bases(self, Rejects)
        check_range("min_side_px", self.min_side_px, 1, 100_000)
        check_range("max_rejected_fraction", self.max_rejected_fraction, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """In which frame results are handed over."""

    frame: str = "canvas"  # of the pictures. canvas: what the model saw; original: pasted back at its own size
    paste: str = "mask"  # with frame=original. mask: where the edit mask is, all else stays; frame: the whole resized canvas

    def __post_init__(self) -> None:
        check_choice("frame", self.frame, FRAMES)
        check_choice("paste", self.paste, PASTES)
        if self.paste != "mask" and self.frame != "original":
            raise ConfigError(f"paste: got {self.paste} with frame={self.frame}; allowed: mask, or frame=original")


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Where the weights of the metrics' networks are."""

    scoring_clip: str | None = (
        "openai/clip-vit-large-patch14"  # CLIP for clip: miniature, folder, URL or hub id; unset: no clip
    )
    dino: str | None = "facebook/dino-vitb8"  # DINO ViT-B/8 for structure: file, folder, URL or hub id; unset: no structure
    lpips: str | None = None  # SqueezeNet 1.1 of ImageNet for lpips: file, folder, URL or hub id; unset: no lpips
    lpips_heads: str | None = None  # linear heads of lpips: file or URL; unset: those of an installed torchmetrics or lpips


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A vision-language model, on a server of OpenAI's interface or of transformers in the actors, asked how good an edit is."""

    url: str | None = None  # of the server, such as http://HOST:8000/v1; unset: the model runs in the actors
    model: str | None = (
        None  # the server's name of its model; without url: folder, URL or hub id of an image-text-to-text model
    )
    key_variable: str | None = None  # name of the environment variable, on the workers, that holds the server's key
    max_tokens: int = 512  # of an answer
    side_px: int = 512  # pictures are sent no wider and no higher
    parallel: int = 8  # questions that a worker has open at once, of a server

    def __post_init__(self) -> None:
        if self.url is not None and self.model is None:
            raise ConfigError("judge.model: got nothing with judge.url; allowed: the server's name of its model")
        if self.key_variable is not None and self.url is None:
            raise ConfigError(f"judge.key_variable: got {self.key_variable!r} without judge.url; allowed: both, or neither")
        check_range("judge.max_tokens", self.max_tokens, 1, 100_000)
        check_range("judge.side_px", self.side_px, 32, 4096)
        check_range("judge.parallel", self.parallel, 1, 256)


@dataclass(frozen=True, kw_only=True)
class Scoring(Networks):
    """What is measured of edited pictures."""

    metrics: list[str] = field(
        default_factory=list
    )  # background, lpips, structure, clip, mask, target, scene, judge; empty: all that can be had
    judge: Judge = field(default_factory=Judge)
    jpeg_quality: int | None = None  # take results through JPEG of this quality first; the published figures: 75

    def __post_init__(self) -> None:
        for group in self.metrics:
            check_choice("metrics", group, METRIC_GROUPS)
        if "judge" in self.metrics and self.judge.model is None:
            raise ConfigError(
                "judge.model: got nothing with metrics=[judge]; allowed: a vision-language model, or a server's with judge.url"
            )
        if self.jpeg_quality is not None:
            check_range("jpeg_quality", self.jpeg_quality, 1, 100)

    @property
    def groups(self) -> tuple[str, ...]:
        """The chosen metrics, in their fixed order."""
        chosen = self.metrics or [group for group in METRIC_GROUPS if group != "judge" or self.judge.model is not None]
        return tuple(group for group in METRIC_GROUPS if group in chosen)


@dataclass(frozen=True, kw_only=True)
class Shards:
    """How a data set is cut into files."""

    shard_mb: int = 500  # size of a file, about

    def __post_init__(self) -> None:
        check_range("shard_mb", self.shard_mb, 1, 100_000)


@dataclass(frozen=True, kw_only=True)
class GoingOn:
    """What a run makes of an output that holds one already, and when it is given up."""

    dry_run: bool = False  # say what a run would be and take, from a measured sample; writes nothing
    resume: str = "if-possible"  # of an output that holds a run: if-possible, never, always, retry-failed, extend (new files)
    retry_statuses: list[str] = field(default_factory=lambda: list(RETRY_STATUSES))  # what retry-failed redoes; also rejected
    max_failed_fraction: float = 0.05  # with more rows failed or quarantined a finished run exits with 3
    stop_failed_fraction: float = 0.5  # with more of the last 200 rows failed the run stops early and exits with 5

    def __post_init__(self) -> None:
        check_choice("resume", self.resume, RESUMES)
        if not self.retry_statuses:
            raise ConfigError(f"retry_statuses: got nothing; allowed: some of {', '.join((*RETRY_STATUSES, 'rejected'))}")
        for status in self.retry_statuses:
            check_choice("retry_statuses", status, (*RETRY_STATUSES, "rejected"))
        for name in ("max_failed_fraction", "stop_failed_fraction"):
            check_range(name, getattr(self, name), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where work is placed, and how widely."""

    device: str = "auto"  # cuda where there is one, else cpu
    actors: int | str = "auto"  # how many actors work side by side; auto: as many as the cluster has room for
    threads: int | str = "auto"  # CPU threads of one actor
    ray_address: str | None = None  # HOST:PORT of a cluster, or auto; unset: RAY_ADDRESS, else a Ray of this process's own

    def __post_init__(self) -> None:
        if ":" in self.device:
            raise ConfigError(f"device: got {self.device}; allowed: auto, cpu, cuda (Ray gives every actor its GPU)")
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_auto("actors", self.actors, 100_000)
        check_auto("threads", self.threads, 1024)


@dataclass(frozen=True, kw_only=True)
class EditingPlace(Place):
    """How editing actors work, and how they tell of it."""

    batch_size: int | str = "auto"  # edits that one actor does at once; auto: by the memory of its device
    log_format: str = "text"  # of the log on stderr. json: a JSON object per line, also in the workers' logs, with ids

    def __post_init__(self) -> None:
        check_bases(self, EditingPlace)
        check_auto("batch_size", self.batch_size, 4096)
        check_choice("log_format", self.log_format, LOG_FORMATS)


def check_bases(settings: object, kind: type) -> None:
    """Let every class that `kind` is made of check its options of `settings`, in the order of the options."""
    for base in reversed(kind.__bases__):
        check = getattr(base, "__post_init__", None)
        if check is not None:
            check(settings)


def check_given(settings: object, names: Sequence[str]) -> None:
    """Raise `ConfigError` where an option that names a place is left out."""
    for name in names:
        if not getattr(settings, name):
            raise ConfigError(f"{name}: got nothing; it is required: {name}=PATH_OR_URL")


def check_auto(name: str, value: int | str, high: int) -> None:
    """Raise `ConfigError` unless a number is in 1 to `high`, or left to `auto`."""
    if isinstance(value, str):
        check_choice(name, value, ("auto",))
    else:
        check_range(name, value, 1, high)


def option_names(*kinds: type) -> frozenset[str]:
    """Return the names of all options of some settings or mix-ins."""
    return frozenset(each.name for kind in kinds for each in dataclasses.fields(kind))
