"""The settings of a data job: the edit and the model (one flat namespace with them), and what is the pipeline's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.options import EditingPlace, Frame, GoingOn, Networks, Pictures, Rejects, Requests, check_bases, check_given
from pipelines.records.schema import ALWAYS_MEASURED
from pipelines.store.listing import Inputs
from vimaedit.config import EditConfig, ModelConfig, check_choice, check_range
from vimaedit.errors import ConfigError
from vimaedit.metrics.names import RIDING_GROUPS

KEEP_SOURCES = ("true", "path", "false")
IMAGE_FORMATS = ("auto", "png", "webp", "jpeg")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where records come from, where results go, and what they hold."""

    input: Inputs = ""  # Parquet file, folder or glob, local or any fsspec URL; [A, B] for several
    output: str = ""  # folder, local or any fsspec URL
    keep_source: str = "true"  # the source in the output. true: its pixels; path: its path, with frame=original; false: not
    image_format: str = "auto"  # png (level 1) and webp are lossless, jpeg is quality 95; auto: webp, with frame=original png
    metrics: list[str] = field(default_factory=list)  # beyond those that every row has: clip, lpips, structure
    sheet: int = 0  # the first N results as <output>/sheet.png

    def __post_init__(self) -> None:
        check_given(self, ("input", "output"))
        check_choice("keep_source", self.keep_source, KEEP_SOURCES)
        check_choice("image_format", self.image_format, IMAGE_FORMATS)
        for name in self.metrics:
            check_choice("metrics", name, (*RIDING_GROUPS, *ALWAYS_MEASURED))
        check_range("sheet", self.sheet, 0, 1000)

    @property
    def riding(self) -> tuple[str, ...]:
        """The groups of metrics that ride along, in their fixed order."""
        return tuple(group for group in RIDING_GROUPS if group in self.metrics)


@dataclass(frozen=True, kw_only=True)
class EditJobConfig(EditingPlace, GoingOn, Networks, Frame, Rejects, Pictures, Requests, DataConfig, EditConfig, ModelConfig):
    """`jobs.edit`: everything, flat, so that every key is a top-level option."""

    def __post_init__(self) -> None:
        check_bases(self, EditJobConfig)
        if self.keep_source == "path" and self.frame != "original":
            raise ConfigError(f"keep_source: got path with frame={self.frame}; allowed: path needs frame=original")
        if self.compile:
            self.check_compile()
        if isinstance(self.batch_size, int) and self.batch_size % self.targets_per_source:
            raise ConfigError(
                f"batch_size: got {self.batch_size} with targets_per_source={self.targets_per_source}; allowed: a multiple of it, or auto"
            )

    @property
    def picture_coding(self) -> str:
        """The format that pictures are written in. WebP is the smaller and, for photographs, the faster one; PNG holds any size."""
        if self.image_format != "auto":
            return self.image_format
        return "png" if self.frame == "original" else "webp"
