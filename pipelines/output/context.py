"""What every worker of a run must know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from pipelines.output.config import EditJobConfig
from pipelines.records.rules import RecordRules
from pipelines.records.schema import ColumnMap
from pipelines.store.fetch import ReferenceRules
from pipelines.store.listing import own_root
from vimaedit.images import CanvasSpec
from vimaedit.models.files import ModelFacts
from vimaedit.types import Editor

MakeEditor = Callable[[EditJobConfig], Editor]  # from a job whose weights lie on this node


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One run, settled: `job` has no `auto` left that a row's pictures depend on."""

    job: EditJobConfig
    facts: ModelFacts
    columns: ColumnMap
    schema: pa.Schema  # of the output
    input_root: str
    input_roots: tuple[str, ...] = ()  # of the inputs, where there are several
    int96: str = "ns"  # the unit in which times of 96 bits are read
    batch_size: int
    threads: int  # CPU threads of one actor
    config_digest: str
    model_digest: str
    plan_digest: str
    version: str
    generation: int  # of the parts that this run writes
    absent_metrics: tuple[str, ...] = ()  # of those that ride along: whose networks cannot be had
    attempt: str = ""  # names the driver at work, for logs
    retry_statuses: tuple[str, ...] = ()  # of rows that are done again where a unit has a part of a lower generation
    make_editor: MakeEditor | None = None  # what edits in an actor; None: the job's method on its model

    @property
    def canvas(self) -> CanvasSpec:
        return self.facts.fit(self.job.canvas)

    def reference_rules(self, input_file: str) -> ReferenceRules:
        """Where the pictures may lie that the records of an input file name: without an image_root beside the input."""
        root = self.job.image_root or own_root(self.input_root, self.input_roots, input_file)
        return ReferenceRules(root=root, allow_http=self.job.allow_http, http_hosts=self.job.http_hosts)

    @property
    def log_names(self) -> tuple[str, str, str]:
        """What `start_worker` takes: the run, the attempt at it, and the form of the log."""
        return self.plan_digest, self.attempt, self.job.log_format

    @property
    def record_rules(self) -> RecordRules:
        job = self.job
        return RecordRules(
            min_side_px=job.min_side_px,
            max_pixels=job.max_pixels,
            canvas=self.canvas,
            clip_side=self.facts.clip_side,
            seed=job.seed,
            reads_masks=job.grounding == "given",
            keeps_coded=job.frame == "original",
        )
