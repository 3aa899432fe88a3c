"""The first stage: captions -> `<output>/pairs`, one ordinary input record per candidate, on Ray Data."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import pyarrow as pa

from pipelines.cluster.place import Placement
from pipelines.cluster.session import set_engine
from pipelines.cluster.tasks import run_actors
from pipelines.store.location import list_files, locate, put_atomic
from pipelines.synthesis.columns import pair_file, pair_schema, rejected_file
from pipelines.synthesis.input import Chunk
from pipelines.synthesis.making import Maker, Making

logger = logging.getLogger(__name__)

CHUNK_SECONDS = 3600.0  # a chunk's pictures are drawn within, also on a CPU


class PairActor:
    """Makes chunks and writes them, each under its own name, whole or not at all."""

    def __init__(self, making: Making, chunks: Sequence[Chunk]) -> None:
        self.making, self.chunks = making, chunks
        self.maker = Maker(making)
        self.schema = pair_schema(making.captions.passed_types)

    def __call__(self, batch: pa.Table) -> pa.Table:
        counts: dict[str, list[int]] = {"rows": [], "rejected": []}
        for index in batch.column("id").to_pylist():
            chunk = self.chunks[index]
            made = self.maker.make(chunk)
            output = locate(self.making.config.output)
            # The pairs last: where they are, the chunk is done.
            put_atomic(output / "pairs_rejected" / chunk.name, rejected_file(made.rejected))
            put_atomic(output / "pairs" / chunk.name, pair_file(made.rows, made.passed, self.schema))
            counts["rows"].append(len(made.rows))
            counts["rejected"].append(sum(row["candidates"] for row in made.rejected))
        return pa.table(counts)


def make_pairs(making: Making, chunks: Sequence[Chunk], placement: Placement) -> int:
    """Make the chunks that are not there yet; return how many those were.

    Raises: ConfigError where the generator or the text-to-image pipeline cannot be had.
    """
    output = locate(making.config.output)
    there = {name for name, _ in list_files(output / "pairs", ".parquet")}
    todo = [chunk for chunk in chunks if chunk.name not in there]
    if not todo:
        return 0
    logger.info("making candidates: %d of %d chunks are done", len(chunks) - len(todo), len(chunks))
    set_engine(unit_seconds=CHUNK_SECONDS)
    making = dataclasses.replace(making, config=dataclasses.replace(making.config, output=output.url))
    run_actors(len(todo), PairActor, (making, todo), placement, needs_device=making.needs_device)
    return len(todo)
