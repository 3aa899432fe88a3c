"""Benchmarks of instructions, entry by entry: Parquet, or a list in JSON beside pictures; which of their columns is what."""

from __future__ import annotations

import functools
import hashlib
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.ingest.sources import Entry, Pairs, column_names, fields_of, parse_json, read_file
from pipelines.options import Pictures
from pipelines.records.types import IMAGE
from pipelines.records.values import converted, read_column, read_label, read_prompt
from pipelines.score.read import decode_value
from pipelines.store.fetch import WEB, ReferenceRules
from pipelines.store.location import Location, list_files, locate
from pipelines.store.masking import mask_urls
from pipelines.store.parquet import READ_ROWS, read_batches
from vimaedit.decoding import decode_image
from vimaedit.errors import ConfigError, RequestError, shown
from vimaedit.images import Size, encode_mask, fit_mask
from vimaedit.mask_decoding import decode_holes, decode_whole_mask, turn_mask
from vimaedit.piebench.annotations import Annotation

INGEST_VERSION = 1  # raised where the same source gives other records
REQUIRED = ("image", "instruction")
COLUMNS = (*REQUIRED, "category", "source_prompt", "target_prompt", "reference_image", "reference_mask", "id")
KEY = "key"  # the column that an entry's name in a JSON object becomes
JOIN = "+"  # between columns whose values together are an id
ENTRY = "an object"
HALF = re.compile("[\\ud800-\\udfff]")  # of a character, which JSON can name
NO_CAPTION = "a photo"  # the source prompt where there is no caption
PROMPTS_FROM = "prompts_from"  # column of the records: captions, or the instruction
FILLED = "prompts_from_instruction"
OTHER_LANGUAGE = "of_another_language"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A published form. `looks`: what lies there, for people; `columns`: the contract's name -> the benchmark's; `lists`: names of its
    list in JSON, of which an entry's name is `key`; `language`: the column that says an instruction's; `has_holes`: masks are pictures, transparent where they may change."""

    name: str
    looks: str
    columns: Mapping[str, str]
    lists: tuple[str, ...] = ()
    language: str | None = None
    has_holes: bool = False

    def is_of(self, names: set[str]) -> bool:
        """Whether Parquet with these columns is in this form."""
        return bool(self.columns) and not self.lists and _parts(self.columns) | ({self.language} - {None}) <= names


LAYOUTS = {
    "gedit": Layout(
        name="GEdit-Bench",
        looks="Parquet of GEdit-Bench",
        columns={"id": "key", "image": "input_image", "instruction": "instruction", "category": "task_type"},
        language="instruction_language",
    ),
    "imgedit": Layout(
        name="ImgEdit-Bench",
        looks="a folder with singleturn.json beside its pictures",
        columns={"id": KEY, "image": "id", "instruction": "prompt", "category": "edit_type"},
        lists=("singleturn.json", "basic_edit.json"),
    ),
    "magicbrush": Layout(
        name="MagicBrush",
        looks="Parquet of MagicBrush",
        columns={
            **{"id": "img_id+turn_index", "image": "source_img", "instruction": "instruction"},
            **{"reference_mask": "mask_img", "reference_image": "target_img"},
        },
        has_holes=True,
    ),
    "emu-edit": Layout(
        name="EMU-Edit",
        looks="Parquet of EMU-Edit's test set",
        columns={
            **{"id": "task+idx", "image": "image", "instruction": "instruction", "category": "task"},
            **{"source_prompt": "input_caption", "target_prompt": "output_caption"},
        },
    ),
    # Any other, whose columns are named.
    "instructions": Layout(name="instructions", looks="Parquet, or one JSON or JSONL file beside pictures", columns={}),
}


class Instructions:
    """Entries of instructions, in the Parquet `files` (name, size) below `root`, or in the list `root` where there are none."""

    def __init__(
        self,
        layout: Layout,
        root: Location,
        files: list[tuple[str, int]],
        *,
        columns: Mapping[str, str],
        language: str,
        pictures: Pictures,
    ) -> None:
        """Look at the columns, or read the list.

        Raises: ConfigError for columns that there are not, and a list that is none.
        """
        for name in columns:
            if name not in COLUMNS:
                raise ConfigError(f"columns: got {name!r}; allowed: {', '.join(COLUMNS)}")
        self.name, self._has_holes, self._language = layout.name, layout.has_holes, language
        self._root, self._files = root, files
        folder = root if files else Location(root.fs, posixpath.dirname(root.path))
        self._rules = ReferenceRules(
            root=pictures.image_root or folder.url, allow_http=pictures.allow_http, http_hosts=pictures.http_hosts
        )
        self._max_pixels = pictures.max_pixels
        self._content, self._list = b"", list[tuple[str | None, Any]]()
        if files:
            there = {name: set(column_names(root / name)) for name, _ in files}
        else:
            beside = ReferenceRules(root=folder.url, allow_http=False, http_hosts=())
            self._content = read_file(root, beside)
            self._list = _read_list(self._content, root)
            named = {name for _, value in self._list if isinstance(value, Pairs) for name, _ in value}
            there = {posixpath.basename(root.path): named | {KEY}}
        given = {**dict(zip(REQUIRED, REQUIRED, strict=True)), **layout.columns, **columns}
        for wanted, source in given.items():
            for file, names in there.items():
                if missing := set(source.split(JOIN)) - names:
                    raise ConfigError(
                        f"columns.{wanted}: got {min(missing)!r}, which {file} lacks; allowed: {', '.join(sorted(names))}"
                    )
        known = set.intersection(*there.values())
        own = {} if layout.columns else {name: name for name in COLUMNS if name in known}
        self._columns = {**own, **given}
        self._spoken = layout.language if layout.language in known else None
        image = (pa.field("reference_image", IMAGE),) if "reference_image" in self._columns else ()
        self.extra_fields = (*image, pa.field(PROMPTS_FROM, pa.string()))
        self.notes = Counter[str]()

    def entries(self) -> Iterator[Entry]:
        self.notes.clear()
        for place, row in self._rows() if self._files else self._listed():
            spoken = row.get(self._spoken) if isinstance(row, dict) and self._spoken else None
            if self._language and spoken is not None and spoken != self._language:
                self.notes[OTHER_LANGUAGE] += 1
                continue
            yield self._entry(place, row)

    def digest(self, *limits: int) -> str:
        beside = [] if self._rules.root.startswith(WEB) else list_files(locate(self._rules.root))
        facts = [INGEST_VERSION, self.name, limits, self._columns, self._language, self._files, self._rules.root, beside]
        return hashlib.blake2b(self._content + json.dumps(facts).encode(), digest_size=16).hexdigest()

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the rows of the Parquet files; a RequestError stands where a value cannot be read."""
        sources = sorted(_parts(self._columns) | ({self._spoken} if self._spoken else set()))
        for name, _ in self._files:
            number = 0
            for batch in read_batches(self._root / name, sources, rows=READ_ROWS):
                cells = [read_column(batch.column(source), source) for source in sources]
                for values in zip(*cells, strict=True):
                    yield f"{name}#{number}", dict(zip(sources, values, strict=True))
                    number += 1

    def _listed(self) -> Iterator[tuple[str, dict[str, Any] | RequestError]]:
        name = posixpath.basename(self._root.path)
        for number, (label, value) in enumerate(self._list):
            place = f"{name}, entry {number}"
            try:
                fields = fields_of(converted(value), ENTRY)
                if HALF.search(json.dumps([label, value], ensure_ascii=False)):
                    raise RequestError("not_utf8", field="entry", got=shown(value), allowed="whole characters")
                yield place, {KEY: label, **fields}
            except RequestError as problem:
                yield place, problem

    def _entry(self, place: str, row: dict[str, Any] | RequestError) -> Entry:
        label, image, annotation, problem = place, None, None, None
        references: dict[str, Any] = {}
        try:
            values = converted(row)
            label = self._label(values, place)
            image = self._value(values, "image")
            annotation = self._annotation(values)
            references = {name: self._value(values, name) for name in ("reference_image", "reference_mask")}
        except RequestError as error:
            problem = error
        path = image.get("path") if isinstance(image, dict) else image
        return Entry(
            id=label,
            place=place,
            picture=mask_urls(path) if isinstance(path, str) else None,
            read=functools.partial(decode_value, image, "image", self._rules, _as_it_is, self._max_pixels),
            annotation=annotation,
            problem=problem,
            extra={PROMPTS_FROM: "instruction" if annotation and annotation.notes else "captions"},
            references=functools.partial(self._references, references),
        )

    def _value(self, row: Mapping[str, Any], name: str) -> Any:
        return row.get(self._columns[name]) if name in self._columns else None

    def _label(self, row: Mapping[str, Any], place: str) -> str:
        """Return an entry's id, of all the columns that make it.

        Raises: RequestError for what is none.
        """
        parts = []
        for source in self._columns["id"].split(JOIN) if "id" in self._columns else ():
            part, problem = read_label(row.get(source), "")
            converted(problem)
            parts.append(part)
        return "-".join(parts) if all(parts) and parts else place

    def _annotation(self, row: Mapping[str, Any]) -> Annotation:
        """Read an entry's texts. Without a caption the instruction is the target.

        Raises: RequestError for an instruction that is missing, of a wrong type or empty, and for captions that are no text.
        """
        instruction = read_prompt("instruction", converted(self._value(row, "instruction")))
        category, problem = read_label(self._value(row, "category"), "")
        captions = [self._value(row, name) for name in ("source_prompt", "target_prompt")]
        has_both = all(caption is not None and caption != "" for caption in captions)
        source, target = captions if has_both else (NO_CAPTION, instruction)
        return Annotation(
            source_prompt=read_prompt("source_prompt", converted(source)),
            target_prompt=read_prompt("target_prompt", converted(target)),
            blend=(),
            category=category or None,
            instruction=instruction,
            mask=None,
            problems=()
            if problem is None
            else (RequestError(problem.code, field="category", got=problem.got, allowed="a text"),),
            notes=() if has_both else (FILLED,),
        )

    def _references(self, values: Mapping[str, Any], size: Size, orientation: int) -> tuple[dict[str, Any], list[RequestError]]:
        """Read an entry's target and mask as columns of its record, and say what is wrong with them."""
        found: dict[str, Any] = {}
        problems = []
        for name, value in values.items():
            if value is None:
                continue
            read = self._target if name == "reference_image" else self._mask
            try:
                found[name] = {"bytes": read(value, size, orientation), "path": None}
            except RequestError as error:
                problems.append(error)
        return found, problems

    def _target(self, value: Any, size: Size, orientation: int) -> bytes:
        data = decode_value(value, "reference_image", self._rules, _as_it_is, self._max_pixels)
        decode_value(data, "reference_image", self._rules, decode_image, self._max_pixels)
        return data

    def _mask(self, value: Any, size: Size, orientation: int) -> bytes:
        decode = decode_holes if self._has_holes else decode_whole_mask
        mask = decode_value(value, "reference_mask", self._rules, decode, self._max_pixels).pixels
        mask, _ = turn_mask(mask, size, orientation, "reference_mask")
        return encode_mask(fit_mask(mask, size, (0, 0, *size), size[::-1]))


def _parts(columns: Mapping[str, str]) -> set[str]:
    return {part for name in columns.values() for part in name.split(JOIN)}


def _as_it_is(data: bytes, max_pixels: int) -> bytes:
    return data


def _read_list(content: bytes, place: Location) -> list[tuple[str | None, Any]]:
    """Read a list of entries, with their names where it is an object: JSON, or one JSON object a line (`.jsonl`).

    Raises: ConfigError for anything else.
    """
    if place.path.endswith(".jsonl"):
        return [(None, _line(line, place)) for line in content.split(b"\n") if line.strip()]
    found = parse_json(content, place, allowed="a list of entries")
    if isinstance(found, Pairs):
        return list(found)
    if not isinstance(found, list):
        raise ConfigError(
            f"input: got {mask_urls(place.url)}, which holds a {type(found).__name__}; allowed: entries in a list, or in an object by id"
        )
    return [(None, value) for value in found]


def _line(line: bytes, place: Location) -> Any:
    try:
        return parse_json(line, place, allowed=ENTRY)
    except ConfigError:
        return RequestError("not_json", field="entry", got=shown(line), allowed=f"{ENTRY} in JSON")
