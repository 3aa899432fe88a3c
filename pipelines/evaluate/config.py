"""The settings of an evaluation, and the editing and scoring runs that follow from them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.options import EditingPlace, Frame, GoingOn, Pictures, Rejects, Requests, Scoring, check_bases, check_given
from pipelines.output.config import EditJobConfig
from pipelines.output.digest import METRIC_NETWORKS
from pipelines.score.config import ScoreConfig
from pipelines.store.listing import Inputs
from pipelines.store.location import locate
from vimaedit.config import EditConfig, ModelConfig, check_choice, check_range
from vimaedit.errors import ConfigError
from vimaedit.methods import METHODS

VARIANT_OPTIONS = {each.name for kind in (EditConfig, ModelConfig) for each in dataclasses.fields(kind)} - {"method"} | {
    *("columns", "label")
}
LABEL = r"([A-Za-z0-9-][A-Za-z0-9.-]*)?"
LONGEST_NAME = 200  # of a run, which names a folder and files


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One column of the board: a method with options of its own, and the name of its run."""

    name: str
    method: str
    options: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EditingPlace, GoingOn, Scoring, Frame, Rejects, Pictures, Requests, EditConfig, ModelConfig):
    """`jobs.evaluate`: a benchmark, one editor or several, their scores and the report. One flat namespace."""

    benchmark: Inputs = ""  # records to edit (Parquet; [A, B] for several), or one as published (see jobs.ingest)
    output: str = ""  # folder, local or any fsspec URL; gets runs/ scores/ report.html leaderboard.md
    methods: list[str] = field(default_factory=list)  # several editors, also with options: [p2p, vimaedit model=A label=a]
    label: str = ""  # name of the run below runs/ and in the report; empty: the method's
    blend: str = "given"  # as published runs: given (blend_words alone); auto, none
    missing_blend: str = "ignore"  # as published runs: ignore a phrase that its prompt lacks; reject
    against: str = ""  # the method that all others are compared with, pair by pair; empty: the first
    gallery: int = 2000  # records in the report's gallery, the first ones; the tables are of all
    thumbnail_px: int = 192  # longer side of the report's pictures

    def __post_init__(self) -> None:
        check_bases(self, EvaluateConfig)
        check_given(self, ("benchmark", "output"))
        if not re.fullmatch(LABEL, self.label):
            raise ConfigError(f"label: got {self.label!r}; allowed: letters, digits, hyphens, dots, not a dot first")
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise ConfigError(f"method: got {twice[0]} twice; allowed: every method once, or with other options")
        if self.against:
            check_choice("against", self.against, self.names)
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
    """Read an entry of a list of methods: the method, then options of its own as `key=value`, its model's among them; `label=` names
    its run, which is otherwise named by all of them.

    Raises: ConfigError for an unknown method, an option that is not the edit's, or a name that is none.
    """
    method, *words = text.split() or [""]
    check_choice("method", method, METHODS)
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key.partition(".")[0] not in VARIANT_OPTIONS:
            raise ConfigError(
                f"method: got {word!r} behind {method}; allowed: options of the edit as key=value, and label=NAME"
            )
        options[key] = value
    name = options.pop("label", "") or re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")
    if len(name) > LONGEST_NAME or not re.fullmatch(LABEL, name):
        raise ConfigError(
            f"method: got {text!r}; allowed: a name of at most {LONGEST_NAME} letters, digits, hyphens, dots: label=NAME behind it"
        )
    return Variant(name=name, method=method, options=options)


def edit_job(config: EvaluateConfig, records: Inputs) -> EditJobConfig:
    """Return the editing run of a configuration with one method: an ordinary `jobs.edit` output below `runs/`."""
    own = _shared(config, EditJobConfig, without=("output", "metrics", *METRIC_NETWORKS))
    run = (locate(config.output) / "runs" / config.names[0]).url
    return EditJobConfig(**own, input=records, output=run)


def score_job(config: EvaluateConfig, records: Inputs, name: str, against: str) -> ScoreConfig:
    """Return the scoring of the run `name`, compared with the run `against`."""
    own = _shared(config, ScoreConfig, without=("benchmark", "output", "against", "batch_size"))
    return ScoreConfig(
        **own,
        benchmark=records,
        edited=(locate(config.output) / "runs" / name).url,
        output=config.output,
        name=name,
        against="" if against == name else against,
    )


def _shared(config: EvaluateConfig, *kinds: type, without: Sequence[str]) -> dict[str, Any]:
    """Return the options that an evaluation has under the names of other settings."""
    own = {each.name for each in dataclasses.fields(config)}
    names = [each.name for kind in kinds for each in dataclasses.fields(kind) if each.name in own and each.name not in without]
    return {name: getattr(config, name) for name in names}
