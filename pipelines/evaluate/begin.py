"""The first look at an evaluation, which needs neither Ray nor a model: what is refused at once, and one that is finished already."""

from __future__ import annotations

import hashlib
import json
import posixpath
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.edit import begin as edit
from pipelines.evaluate.config import EvaluateConfig, edit_job, score_job
from pipelines.evaluate.report.data import Board, MethodBoard
from pipelines.evaluate.report.leaderboard import FILE_NAME as LEADERBOARD_NAME
from pipelines.evaluate.report.leaderboard import leaderboard
from pipelines.evaluate.report.page import made_of
from pipelines.exits import EXIT_LOSSES
from pipelines.ingest.ingest import FILE_NAME, IngestConfig, IngestSummary, read_summary, run_ingest
from pipelines.ingest.layouts import is_published
from pipelines.output.finish import read_run
from pipelines.score.begin import begin_score, find_kept
from pipelines.score.pairs import scan_benchmark
from pipelines.score.table import read_summary as read_scores_summary
from pipelines.store.listing import Inputs, named_inputs, shown_inputs
from pipelines.store.location import Location, check_writable, exists, locate
from pipelines.store.masking import mask_urls
from pipelines.tables import Table
from vimaedit.errors import ConfigError

REPORT_NAME = "report.html"
OWN_LIMITS = (
    "min_side_px",
    "max_pixels",
    "image_root",
    "allow_http",
    "http_hosts",
)  # of the pictures of a benchmark that is taken in


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """What an evaluation came to: exit code, where the report lies, how the methods stand (no tables: stopped early), and how many
    seconds each part took."""

    exit_code: int
    report: str | None
    leaderboard: tuple[Table, ...]
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    stop_reason: str | None = None

    def text(self) -> str:
        """Say how long each part took, how the methods stand, and where the report lies."""
        lines = [f"{part}: {seconds:.1f} s" for part, seconds in self.seconds.items()]
        for table in self.leaderboard:
            lines += ["", table.text(), ""]
        lines.append(f"report: {self.report}" if self.report else f"stopped early: {self.stop_reason}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True, eq=False)
class BegunEvaluation:
    """An evaluation that may begin. `records`: what is edited; `ingest`: what making them said; `runs`: the editing runs by name.

    `against`: the run that the others are compared with; `seconds`: how long each part has taken so far.
    """

    config: EvaluateConfig
    against: str
    output: Location
    records: Inputs
    ingest: IngestSummary | None
    runs: Mapping[str, edit.Begun]
    seconds: dict[str, float]

    @property
    def names(self) -> list[str]:
        """The runs in the order of scoring: the one that the others are compared with comes first."""
        return sorted(self.runs, key=lambda name: name != self.against)


def begin_evaluation(configs: Sequence[EvaluateConfig], against: str = "") -> BegunEvaluation:
    """Take in a benchmark as published, and look at the editing run of every method.

    `configs`, of one method each, differ in method, label and options of the edit alone; `against` empty: the first.

    Raises: ConfigError, for a dry run of a benchmark as published too, of which records would have to be written first.
    """
    first = configs[0]
    output = locate(first.output)
    seconds: dict[str, float] = {}
    if first.dry_run and isinstance(first.benchmark, str) and is_published(first.benchmark):
        raise ConfigError(
            f"dry_run: got true with benchmark={shown_inputs(first.benchmark)}, a benchmark as published; "
            "allowed: records to edit, which jobs.ingest makes of it"
        )
    if not first.dry_run:
        check_writable(output, "runs", "scores")
    records, ingest = _records(first, output, seconds)
    scan_benchmark(score_job(first, records, first.names[0], ""))  # as what it is, not as the input of an editing run
    runs = {config.names[0]: edit.begin(edit_job(config, records)) for config in configs}
    return BegunEvaluation(
        config=first,
        against=against or next(iter(runs)),
        output=output,
        records=records,
        ingest=ingest,
        runs=runs,
        seconds=seconds,
    )


def find_finished(begun: BegunEvaluation) -> EvaluationSummary | None:
    """Say of a finished evaluation what it came to; None where anything has to be edited, scored or reported."""
    edited = {name: edit.find_finished(run) for name, run in begun.runs.items()}
    if any(run is None for run in edited.values()):
        return None
    warnings = [f"{name}: {text}" for name, run in edited.items() if run for text in (*run.warnings, *run.reasons())]
    codes = [run.exit_code for run in edited.values() if run]
    for name in begun.names:
        scored = find_kept(begin_score(score_job(begun.config, begun.records, name, begun.against)))
        if scored is None:
            return None
        warnings += [f"{name}: {text}" for text in scored.warnings]
        codes.append(scored.exit_code)
    report = begun.output / REPORT_NAME
    if not exists(begun.output / LEADERBOARD_NAME) or made_of(report) != report_digest(begun):
        return None
    return EvaluationSummary(
        exit_code=EXIT_LOSSES if any(codes) else 0,
        report=mask_urls(report.url),
        leaderboard=tuple(leaderboard(_bare_board(begun))),
        seconds=begun.seconds,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def report_digest(begun: BegunEvaluation) -> str:
    """Digest what the report shows, by what runs and scores say of themselves."""
    config = begun.config
    content: list[Any] = [list(begun.runs), begun.against, named_inputs(begun.records), config.gallery, config.thumbnail_px]
    content += [[read_run(begun.output / "runs" / name), read_scores_summary(begun.output, name)] for name in begun.runs]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _bare_board(begun: BegunEvaluation) -> Board:
    """Return what the leaderboard is made of: scores, and no pictures."""
    scores = {name: read_scores_summary(begun.output, name) or {} for name in begun.runs}
    methods = tuple(
        MethodBoard(
            name=name,
            scores=numbers,
            run={},
            warnings={},
            common_warnings=(),
            without_words=0,
            ungrounded=0,
        )
        for name, numbers in scores.items()
    )
    records = max(numbers["records"] for numbers in scores.values())
    return Board(benchmark=named_inputs(begun.records), ingest=begun.ingest, records=records, methods=methods, samples=())


def _records(config: EvaluateConfig, output: Location, seconds: dict[str, float]) -> tuple[Inputs, IngestSummary | None]:
    """Return where the records lie and what their ingest said; a benchmark as published is taken in first."""
    if not isinstance(config.benchmark, str):
        return config.benchmark, None
    if not is_published(config.benchmark):
        place = locate(config.benchmark)
        folder = Location(place.fs, posixpath.dirname(place.path)) if place.path.endswith(FILE_NAME) else place
        return config.benchmark, read_summary(folder)
    started = time.monotonic()
    folder = output / "benchmark"
    ingest = run_ingest(
        IngestConfig(input=config.benchmark, output=folder.url, **{each: getattr(config, each) for each in OWN_LIMITS})
    )
    seconds["ingest"] = time.monotonic() - started
    return (folder / FILE_NAME).url, ingest
