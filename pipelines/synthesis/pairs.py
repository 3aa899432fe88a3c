"""The first stage: captions -> `<output>/pairs`, one ordinary input record per candidate, on Ray Data."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data

from pipelines.cluster.place import Placement
from pipelines.cluster.session import set_engine
from pipelines.store.location import Location, exists, list_files, locate, put_atomic, read_bytes
from pipelines.store.masking import cut, mask_urls, without_secrets
from pipelines.synthesis.columns import pair_file, pair_schema, rejected_file
from pipelines.synthesis.config import SynthesizeConfig, pair_settings
from pipelines.synthesis.input import CaptionSet, Chunk
from pipelines.synthesis.making import Maker, Making
from pipelines.synthesis.scoring import actor_pool, run_through
from vimaedit.errors import ConfigError
from vimaedit.synthesis.lexicon import Lexicon

logger = logging.getLogger(__name__)

SETTINGS_FILE = "synthesis.json"
CHUNK_SECONDS = 3600.0  # a chunk's pictures are drawn within, also on a CPU
SHOWN_CHARACTERS = 80


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


def pair_source(config: SynthesizeConfig, captions: CaptionSet) -> str:
    """Settle where the pairs come from.

    Raises: ConfigError for pairs=given without such a column.
    """
    if config.pairs == "auto":
        return "given" if "target_prompt" in captions.columns else "rules"
    if config.pairs == "given" and "target_prompt" not in captions.columns:
        raise ConfigError("pairs: got given, but the input has no target_prompt; allowed: rules, generator, or such a column")
    return config.pairs


def check_settings(
    output: Location, config: SynthesizeConfig, captions: CaptionSet, lexicon: Lexicon | None
) -> list[int | None]:
    """Store what the pairs depend on, or check that an output's pairs were made of the same.

    Returns the limits that the output has had, this one last.

    Raises: ConfigError with the differences.
    """
    words = lexicon.digest if lexicon is not None else ""
    wanted = {
        "settings": json.loads(json.dumps(without_secrets(pair_settings(config, words)))),
        "input": [[file.path, file.size, file.rows] for file in captions.files],
    }
    place = output / SETTINGS_FILE
    if not exists(place):
        if list_files(output / "pairs", ".parquet"):
            raise ConfigError(
                f"output: got {mask_urls(output.url)}, which holds pairs of unknown settings; allowed: a new folder"
            )
        put_atomic(place, json.dumps({**wanted, "limits": [config.limit]}, indent=2).encode())
        return [config.limit]
    if config.resume == "never":
        raise ConfigError(
            f"resume: got never, but {mask_urls(output.url)} holds a synthesis; allowed: if-possible, or another output"
        )
    found = json.loads(read_bytes(place))
    differences = [
        f"{name}={_shown(value)}, was {_shown(found['settings'].get(name))}"
        for name, value in wanted["settings"].items()
        if value != found["settings"].get(name)
    ]
    if wanted["input"] != found["input"]:
        differences.append("other input files")
    if differences:
        raise ConfigError(
            f"output: got {mask_urls(output.url)}, which holds a synthesis of other settings: {', '.join(differences)}; allowed: those "
            "it was begun with, or another output (nothing is deleted)"
        )
    limits: list[int | None] = found["limits"]
    last, limit = limits[-1], config.limit
    if limit == last:
        return limits
    if last is None or (limit is not None and limit < last):
        raise ConfigError(
            f"limit: got {limit}, but {mask_urls(output.url)} was begun {'without one' if last is None else f'with {last}'}; allowed: "
            "that, a larger one or none"
        )
    put_atomic(place, json.dumps({**found, "limits": [*limits, limit]}, indent=2).encode())
    return [*limits, limit]


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
    needs_device = making.draws_sources or (making.source == "generator" and making.config.generator.url is None)
    making = dataclasses.replace(making, config=dataclasses.replace(making.config, output=output.url))
    made = ray.data.range(len(todo), override_num_blocks=len(todo)).map_batches(
        PairActor,
        fn_constructor_args=(making, todo),
        batch_size=1,
        batch_format="pyarrow",
        compute=actor_pool(placement, len(todo)),
        num_cpus=placement.num_cpus,
        num_gpus=(placement.num_gpus if needs_device else 0) or None,
    )
    run_through(made)
    return len(todo)


def _shown(value: Any) -> str:
    return cut(json.dumps(value, ensure_ascii=False), SHOWN_CHARACTERS)
