"""Finished outputs as they lie: the parts of an editing run, the shards of a data set in its folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.output.finish import RUN_FILE, read_run
from pipelines.output.parts import REMEDY, find_foreign, foreign_text, part_name, read_parts
from pipelines.store.location import Damaged, Location, damaged, is_transient, list_files, read_json
from pipelines.store.masking import mask_urls
from pipelines.store.parquet import BROKEN_CONTENT, BrokenParquet, read_footer, read_table
from vimaedit.errors import ConfigError
from vimaedit.types import Status

FOLDERS = {
    "default": "data",
    **{name: name for name in ("preferences", "inverted", "turns")},
}  # configuration of a set -> its folder
SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar"}  # format of shards -> how their names end
MANIFEST_COLUMNS = ("unit", "generation", "rows", str(Status.OK))
MENDS = "jobs.edit with the same options mends it"
SELECTS_AGAIN = "remove _SUCCESS, then jobs.synthesize with the same options selects and writes it again"
SHARD = re.compile(r"(?P<split>\w+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?P<suffix>\.parquet|\.tar)")


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of an output: its path below it, how many of its rows are edits that are ok, all of its rows, its bytes."""

    path: str
    ok: int
    rows: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """An output that has come to its end. `splits`: the files of each split, in order, by folder and split (`data/train`).

    `facts` tell it from any other state of itself; `warnings`: what else lies among its files.
    """

    splits: Mapping[str, list[File]]
    facts: Mapping[str, Any]
    warnings: list[str]
    is_set: bool  # of jobs.synthesize

    @property
    def remedy(self) -> str:
        """What helps against a file that is broken."""
        return SELECTS_AGAIN if self.is_set else REMEDY


def shard_names(split: str, count: int, form: str) -> list[str]:
    """Name the shards of a folder's split, as Hugging Face's do."""
    return [f"{split}-{number:05d}-of-{count:05d}{SUFFIXES[form]}" for number in range(count)]


def is_set(run: Mapping[str, Any] | None) -> bool:
    """Whether `run.json` is that of a data set of `jobs.synthesize`."""
    return isinstance((run or {}).get("records"), dict)


def read_finished(source: Location) -> Finished:
    """Read what a finished output of `jobs.edit` or `jobs.synthesize` holds.

    Raises: ConfigError naming what is missing, broken or not what was counted at its end.
    """
    try:
        run = read_json(source / RUN_FILE)
        return _read_set(source, run) if run is not None and is_set(run) else _read_parts(source)
    except (Damaged, BrokenParquet) as error:
        raise ConfigError(f"input: {error}") from error


def _read_parts(source: Location) -> Finished:
    run = read_run(source)
    try:
        rows = read_table(source / "manifest.parquet", MANIFEST_COLUMNS).to_pylist()
        counted = {row["unit"]: (row["generation"], row["rows"], row[str(Status.OK)]) for row in rows}
    except (*BROKEN_CONTENT, KeyError) as error:
        if is_transient(error):
            raise
        raise damaged(source / "manifest.parquet", error, "a manifest", MENDS) from error
    digest = (run or {}).get("plan_digest", "")
    found = {unit: (part.generation, part.rows) for unit, part in read_parts(source, counted, digest).items()}
    if wrong := [unit for unit, facts in counted.items() if found.get(unit) != facts[:2]]:
        raise ConfigError(
            f"input: got {mask_urls(source.url)}, where {len(wrong)} of {len(counted)} parts are not those of the manifest, "
            f"{part_name(wrong[0])} the first; allowed: a finished run ({MENDS})"
        )
    sizes = dict(list_files(source / "data", ".parquet"))
    files = [
        File(path=f"data/{part_name(unit)}", ok=ok, rows=total, size=sizes[part_name(unit)])
        for unit, (_, total, ok) in counted.items()
    ]
    parts = [[unit, *counted[unit][:2], file.size] for unit, file in zip(counted, files, strict=True)]
    return Finished(
        splits={"data/train": files},
        facts={"plan_digest": digest, "parts": parts},
        warnings=[foreign_text(names) for names in [find_foreign(source, counted)] if names],
        is_set=False,
    )


def _read_set(source: Location, run: Mapping[str, Any]) -> Finished:
    shards, warnings = list_shards(source)
    splits = {
        split: [
            File(path=path, ok=rows, rows=rows, size=size)
            for path, size in files
            for rows in [read_footer(source / path).num_rows]
        ]
        for split, files in shards.items()
    }
    for name, expected in run["records"].items():
        found = sum(file.rows for file in splits.get(f"data/{name}", []))
        if found != expected:
            raise ConfigError(
                f"input: got {mask_urls(source.url)}, whose data/ holds {found} records of {name}, where {expected} were counted at its "
                f"end; allowed: a finished data set ({SELECTS_AGAIN})"
            )
    parts = [[file.path, file.rows, file.size] for files in splits.values() for file in files]
    return Finished(splits=splits, facts={"digest": run.get("digest"), "parts": parts}, warnings=warnings, is_set=True)


def list_shards(root: Location) -> tuple[dict[str, list[tuple[str, int]]], list[str]]:
    """List the shards of a data set, (path below `root`, bytes), by folder and split; and say what else lies in its folders.

    Raises: ConfigError where one of a split is missing.
    """
    splits: dict[str, list[tuple[str, int]]] = {}
    counts: dict[str, set[tuple[str, str]]] = {}
    foreign = []
    for folder in FOLDERS.values():
        for name, size in list_files(root / folder):
            path, found = f"{folder}/{name}", SHARD.fullmatch(name)
            if found is None:
                foreign.append(path)
                continue
            split = f"{folder}/{found['split']}"
            splits.setdefault(split, []).append((path, size))
            counts.setdefault(split, set()).add((found["count"], found["suffix"]))
    for split, files in splits.items():
        if len(counts[split]) > 1 or len(files) != int(next(iter(counts[split]))[0]):
            raise ConfigError(
                f"input: got {mask_urls(root.url)}, where {split} has {len(files)} files, {files[0][0]} the first, which are not "
                "all shards of one data set; allowed: a whole one"
            )
    return splits, [f"left out: {len(foreign)} files that are no shards, {foreign[0]!r} the first"] if foreign else []
