"""The data set: what was kept, whole, as `<output>/data/<split>-00000-of-00042.parquet`; on request its other configurations, of the
same shards, and rejected candidates."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipelines.cluster.session import set_engine
from pipelines.cluster.tasks import numbered, run_through
from pipelines.output.parts import open_result_writer
from pipelines.output.sets import FOLDERS, shard_names
from pipelines.records.types import IMAGE, with_features
from pipelines.score.judging import KeptAnswers
from pipelines.store.location import Location, locate, put_atomic
from pipelines.store.parquet import take_rows, write_groups
from pipelines.synthesis.columns import DATA_FIELDS, PREFERENCE_FIELDS, REJECTED_FIELDS, SCORES, TURN_FIELDS
from pipelines.synthesis.config import SynthesizeConfig
from pipelines.synthesis.filters import KEPT, best_score
from pipelines.synthesis.selection import (
    SPLITS,
    Group,
    Selected,
    Selecting,
    clear_folder,
    find_preferences,
    find_turns,
    read_decisions,
)
from vimaedit.decoding import decode_image
from vimaedit.errors import RequestError
from vimaedit.mask_decoding import decode_mask
from vimaedit.synthesis.inversion import invert_pair
from vimaedit.synthesis.pairs import PromptPair
from vimaedit.synthesis.rewriting import read_instruction, rewriting_question
from vimaedit.words.phrases import parse_blend

SHARD_SECONDS = 1200.0
CANDIDATE_COLUMNS = (  # of the editing run, that records are made of
    *(
        "image",
        "edited_image",
        "edit_mask",
        "instruction",
        "source_prompt",
        "target_prompt",
        "blend_words_used",
        "candidate_overrides",
    ),
    *(
        "category",
        "id",
        "pair_id",
        "caption_file",
        "caption_row",
        "candidate",
        "source_seed",
        "seed",
        "steps",
        "method",
        "model",
        "family",
    ),
    *("model_digest", "config_digest", "version"),
)
RECORD_BYTES = 4096  # beside its pictures
PAIRED = ("preferences", "turns")  # folders whose records are made of two candidates
FIELDS = {
    **{"data": DATA_FIELDS, "inverted": DATA_FIELDS, "preferences": PREFERENCE_FIELDS, "turns": TURN_FIELDS},
    "rejected": REJECTED_FIELDS,
}
PICTURES = tuple(
    {field.name for field in (*DATA_FIELDS, *PREFERENCE_FIELDS, *TURN_FIELDS) if field.type == IMAGE}
)  # coded by the editing run


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One object of the data set: the records of a split in some groups, in order."""

    name: str
    split: str
    groups: tuple[int, ...]


def cut_shards(selected: Selected, shard_bytes: int) -> list[Shard]:
    """Fill shards with whole groups, in order, up to about `shard_bytes` each."""
    shards: list[Shard] = []
    for split in SPLITS:
        filled: list[list[int]] = []
        size = shard_bytes
        for group, (rows, in_bytes) in sorted(selected.kept[split].items()):
            if size >= shard_bytes:
                filled.append([])
                size = 0
            filled[-1].append(group)
            size += in_bytes + rows * RECORD_BYTES
        names = shard_names(split, len(filled), "parquet")
        shards += [Shard(name=name, split=split, groups=tuple(groups)) for name, groups in zip(names, filled, strict=True)]
    return shards


def configurations(config: SynthesizeConfig) -> list[str]:
    """Return the configurations that a data set has."""
    return [name for name in FOLDERS if name == "default" or getattr(config, name)]


def write_dataset(selecting: Selecting, selected: Selected, passed: Mapping[str, pa.DataType]) -> tuple[list[Shard], int]:
    """Write `<output>/data` whole, and the other folders that are asked for; what stood there is removed first. Returns the shards, and
    in how many records the instruction stayed as it was where it was to be written anew."""
    output, config = locate(selecting.output), selecting.config
    set_engine(unit_seconds=SHARD_SECONDS)
    shards = cut_shards(selected, config.shard_mb * 10**6)
    for folder in FIELDS:
        clear_folder(output / folder)
    folders = [FOLDERS[name] for name in configurations(config)]
    tasks = [(folder, shard.name, shard.split, shard.groups) for folder in folders for shard in shards]
    if config.keep_rejected:
        tasks += [("rejected", group.name, "", (index,)) for index, group in enumerate(selecting.groups)]
    written = numbered(len(tasks), _write_objects, selecting=selecting, tasks=tasks, passed=dict(passed)) if tasks else None
    return shards, 0 if written is None else sum(row["unwritten"] for row in run_through(written))


def _write_objects(
    batch: pa.Table,
    selecting: Selecting,
    tasks: Sequence[tuple[str, str, str, tuple[int, ...]]],
    passed: Mapping[str, pa.DataType],
) -> pa.Table:
    counts = []
    for index in batch.column("id").to_pylist():
        folder, name, split, groups = tasks[index]
        others = {} if folder in PAIRED else passed
        schema = with_features([*FIELDS[folder], *(pa.field(column, kind) for column, kind in others.items())])
        tables: Iterator[pa.Table] = (
            _group_rows(selecting, selecting.groups[group], folder, split, schema) for group in groups
        )
        rewriter = None
        if folder == FOLDERS["default"] and selecting.config.rewrite != "none":
            rewriter = Rewriter(selecting.config, selecting.output)
            tables = map(rewriter, tables)
        data, _ = _coded(tables, schema)
        put_atomic(locate(selecting.output) / folder / name, data)
        counts.append(0 if rewriter is None else rewriter.unwritten)
    return pa.table({"unwritten": counts})


class Rewriter:
    """Writes instructions of records anew, by a server's model that sees both pictures. Where it does not answer they stay."""

    def __init__(self, config: SynthesizeConfig, output: str) -> None:
        self.server = KeptAnswers(getattr(config, config.rewrite), output, config.rewrite)
        self.unwritten = 0  # records whose instruction stayed as it was
        self.parallel = config.judge.parallel if config.rewrite == "judge" else 1

    def __call__(self, table: pa.Table) -> pa.Table:
        old = table.column("edit_prompt").to_pylist()
        with ThreadPoolExecutor(self.parallel) as pool:
            columns = ("original_image", "edited_image", "mask", "edit_prompt")
            new = list(pool.map(self._write, table.select(columns).to_pylist()))
        self.unwritten += new.count(None)
        before = [text if written is not None else None for text, written in zip(old, new, strict=True)]
        after = [text if written is None else written for text, written in zip(old, new, strict=True)]
        for name, values in (("edit_prompt", after), ("edit_prompt_before", before)):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), pa.array(values, pa.string()))
        return table

    def _write(self, record: Mapping[str, Any]) -> str | None:
        source, edited = (decode_image(record[name]["bytes"]) for name in ("original_image", "edited_image"))
        mask = None if record["mask"] is None else decode_mask(record["mask"]["bytes"])
        found = self.server.ask(rewriting_question(source, edited, mask, record["edit_prompt"]))
        try:
            return None if found["answer"] is None else read_instruction(found["answer"])
        except RequestError:
            return None


def _coded(tables: Iterator[pa.Table], schema: pa.Schema) -> tuple[bytes, int]:
    """Code tables as one Parquet object, row groups of up to 100 MB."""
    buffer = io.BytesIO()
    with open_result_writer(buffer, schema, PICTURES) as writer:
        rows = write_groups(writer, tables)
    return buffer.getvalue(), rows


def _group_rows(selecting: Selecting, group: Group, folder: str, split: str, schema: pa.Schema) -> pa.Table:
    """Build the records of a group that are in a split of a folder; of `rejected`, the candidates that were not kept."""
    output = locate(selecting.output)
    decisions = read_decisions(output, group)
    if folder in PAIRED:
        turns = folder == "turns"
        pairs = find_turns(decisions) if turns else find_preferences(decisions, selecting.config.filters.max_unsafe)
        return _paired(
            output,
            selecting.config,
            [pair for pair in pairs if pair[0]["split"] == split],
            _turn if turns else _preference,
            schema,
        )
    build = _inverted if folder == "inverted" else _record
    tables = []
    for part, wanted in _by_part([row for row in decisions if _belongs(row, split)]).items():
        rows = take_rows(output / "candidates" / "data" / part, wanted)
        values = rows.select(CANDIDATE_COLUMNS).to_pylist()  # others may hold what Python cannot
        records = [build(row, wanted[number]) for number, row in zip(sorted(wanted), values, strict=True)]
        own = pa.Table.from_pylist(records, schema=pa.schema(list(schema)[: len(records[0])]))
        others = [rows.column(name) for name in schema.names[len(own.schema) :]]
        tables.append(pa.table([*own.columns, *others], schema=schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _by_part(decisions: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    by_part: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in decisions:
        by_part.setdefault(row["part"], {})[row["part_row"]] = row
    return by_part


def _paired(
    output: Location,
    config: SynthesizeConfig,
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    build: Callable[..., dict[str, Any]],
    schema: pa.Schema,
) -> pa.Table:
    """Build records of pairs of candidates; their pictures may stand in different parts."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for part, wanted in _by_part([row for pair in pairs for row in pair]).items():
        rows = take_rows(output / "candidates" / "data" / part, wanted, CANDIDATE_COLUMNS).to_pylist()
        found |= {(part, number): row for number, row in zip(sorted(wanted), rows, strict=True)}
    score = best_score(config.filters, vars(config))
    records = [build(pair, [found[each["part"], each["part_row"]] for each in pair], score) for pair in pairs]
    return pa.Table.from_pylist(records, schema=schema)


def _preference(decisions: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], score: str) -> dict[str, Any]:
    (best, worst), (chosen, rejected) = decisions, rows
    record = {
        "prompt": chosen["instruction"],
        "original_image": chosen["image"],
        "chosen": chosen["edited_image"],
        "rejected": rejected["edited_image"],
        "original_prompt": chosen["source_prompt"],
        "edited_prompt": chosen["target_prompt"],
        "score": score,
        "margin": best["rank"] - worst["rank"],
        "rejected_outcome": worst["outcome"],
        "source_image_id": best["source_digest"],
        **{name: chosen[name] for name in ("category", "id", "pair_id", "caption_file", "caption_row")},
        **{name: chosen[name] for name in ("method", "model", "model_digest", "config_digest", "version")},
    }
    for side, decision, row in (("chosen", best, chosen), ("rejected", worst, rejected)):
        record |= {f"{side}_score": decision["rank"], f"{side}_candidate": row["candidate"], f"{side}_seed": row["seed"]}
    return record


def _turn(decisions: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], score: str) -> dict[str, Any]:
    """Return two turns: from the edited picture of the first row back to its source, and on to that of the second."""
    first, second = rows
    back = _back(first)
    return {
        **{"image_0": first["edited_image"], "image_1": first["image"], "image_2": second["edited_image"]},
        **{"edit_prompt_1": back.instruction, "edit_prompt_2": second["instruction"]},
        **{
            f"prompt_{number}": text
            for number, text in enumerate((back.source_prompt, back.target_prompt, second["target_prompt"]))
        },
        **{"category_1": back.category, "category_2": second["category"]},
        **{
            "first_pair_id": first["pair_id"],
            "first_candidate": first["candidate"],
            "source_image_id": decisions[0]["source_digest"],
        },
        **{name: second[name] for name in ("id", "pair_id", "candidate", "caption_file", "caption_row")},
        **{name: second[name] for name in ("method", "model", "model_digest", "config_digest", "version")},
    }


def _belongs(row: Mapping[str, Any], split: str) -> bool:
    return row["split"] == split if split else row["outcome"] != KEPT and row["part"] is not None


def _record(row: Mapping[str, Any], decision: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of the data set, without passed-through columns."""
    record = {
        "original_image": row["image"],
        "edit_prompt": row["instruction"],
        "edit_prompt_before": None,
        "edited_image": row["edited_image"],
        "original_prompt": row["source_prompt"],
        "edited_prompt": row["target_prompt"],
        "blend_words": row["blend_words_used"],
        "mask": row["edit_mask"],
        "scores": {name: decision[name] for name in SCORES},
        "source_image_id": decision["source_digest"],
        "overrides": row["candidate_overrides"],
        **{name: row[name] for name in ("category", "id", "pair_id", "caption_file", "caption_row", "candidate")},
        **{name: row[name] for name in ("source_seed", "seed", "steps", "method", "model", "family", "model_digest")},
        **{name: row[name] for name in ("config_digest", "version")},
    }
    if decision["outcome"] != KEPT:
        record |= {"outcome": decision["outcome"], "reason": decision["reason"]}
    return record


def _inverted(row: Mapping[str, Any], decision: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record turned round. Scores of both pictures, or of the change between them, are those of the way there; what CLIP says
    of source and target changes places, and what only the edited picture was asked is not known of its source."""
    record, scores, pair = _record(row, decision), {name: decision[name] for name in SCORES}, _back(row)
    turned = {"clip_source": scores["clip_target"], "clip_target": scores["clip_source"], "aesthetic": None}
    return record | {
        "original_image": record["edited_image"],
        "edited_image": record["original_image"],
        "edit_prompt": pair.instruction,
        "original_prompt": pair.source_prompt,
        "edited_prompt": pair.target_prompt,
        "blend_words": [asdict(phrase) for phrase in pair.blend],
        "category": pair.category,
        "scores": scores | turned,
    }


def _back(row: Mapping[str, Any]) -> PromptPair:
    return invert_pair(
        PromptPair(
            source_prompt=row["source_prompt"],
            target_prompt=row["target_prompt"],
            blend=parse_blend(row["blend_words_used"]),
            instruction=row["instruction"],
            category=row["category"],
        )
    )
