"""Rows as samples of a WebDataset shard: `<key>.source.png`, `<key>.edited.webp`, `<key>.mask.png`, `<key>.json`."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from PIL import Image

from vimaedit.types import Status

MEMBERS = {"image": "source", "original_image": "source", "edited_image": "edited", "edit_mask": "mask"}  # column -> its name
# What a row is known by, whatever shard it lies in, of whatever form: edits, records, pairs of candidates.
IDENTITIES = (("input_file", "input_row", "edit_index"), ("pair_id", "candidate"), ("pair_id", "chosen_candidate"))
# What a mask is where there is none: all of the picture was free to change, and no part critical. Readers want each member in each sample.
MASKS = {"mask": 255, "critical_mask": 0}
SIGNS = ((b"\x89PNG", "png"), (b"RIFF", "webp"), (b"\xff\xd8\xff", "jpg"))  # how coded pictures begin


def write_samples(path: str, batches: Iterable[pa.RecordBatch]) -> int:
    """Write rows into a local tar file, byte for byte the same every time, and return how many; edits that are not ok are left out.

    Columns of bytes or pictures are members of their own, named by what they begin with (`bin`: no picture known here); all others
    stand in the JSON by their names, a picture's path too. There bytes are base64, and a number that is not finite is null. A mask that
    is not there is as `MASKS` says; the JSON says whether it was there.
    """
    count = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for batch in batches:
            identity = next(names for names in IDENTITIES if set(names) <= set(batch.schema.names))
            names = _member_names(batch.schema)
            for row in _rows(batch):
                if row.get("status", Status.OK) != Status.OK:
                    continue
                count += 1
                key = _key([row[name] for name in identity])
                for member, data in _members(row, names):
                    facts = tarfile.TarInfo(f"{key}.{member}")  # no owner, time 0
                    facts.size = len(data)
                    tar.addfile(facts, io.BytesIO(data))
    return count


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows as Python values; a column of which Python cannot hold one (times beyond its years, unknown zones, text that is no
    UTF-8) with times as numbers and broken text with backslashes."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except (OverflowError, ValueError, pa.ArrowException):
            columns[name] = [_raw(value) for value in column]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _raw(value: Any) -> Any:
    """Return what a scalar of Arrow holds, of whatever is nested in it too."""
    if not isinstance(value, pa.Scalar) or not value.is_valid:
        return value if not isinstance(value, pa.Scalar) else None
    kind = value.type
    if isinstance(value, pa.ExtensionScalar | pa.DictionaryScalar):
        return _raw(value.value)
    if isinstance(value, pa.StructScalar):
        pairs = [(each.name, _raw(value[index])) for index, each in enumerate(kind)]
        return dict(pairs) if len(dict(pairs)) == len(pairs) else pairs
    if isinstance(value, pa.ListScalar):  # maps among them, as lists of entries
        return [_raw(each) for each in value.values]
    if pa.types.is_temporal(kind):
        return value.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).as_py()
    if isinstance(value, pa.StringScalar):
        return value.as_buffer().to_pybytes().decode(errors="backslashreplace")
    return value.as_py()


def _key(identity: list[Any]) -> str:
    """Return a sample's key: no dot in it, since readers take what stands before the first for the key."""
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=10).hexdigest()


def _member_names(schema: pa.Schema) -> dict[str, str]:
    """Name the columns that are members of their own. One whose name is taken by a column of the run is an `input_<name>`."""
    taken = {MEMBERS[name] for name in schema.names if name in MEMBERS} | {"json"}
    names = {}
    for field in schema:
        if pa.types.is_struct(field.type):
            is_member = {each.name for each in field.type} == {"bytes", "path"}
        else:
            is_member = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        if is_member:
            own = quote(field.name, safe="")
            while field.name not in MEMBERS and own.casefold() in taken:  # readers know no capitals
                own = f"input_{own}"
            names[field.name] = MEMBERS.get(field.name, own)
            taken.add(names[field.name].casefold())
    return names


def _members(row: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    record = {}
    for column, value in row.items():
        if column not in names:
            record[column] = _plain(value)
            continue
        data, picture_path = (value["bytes"], value["path"]) if isinstance(value, dict) else (value, None)
        if picture_path is not None:
            record[column] = picture_path
        if names[column] in MASKS:
            record[column] = data is not None
            if data is None and (size := _size(row)) is not None:
                data = _flat_mask(size, MASKS[names[column]])
        if data is not None:
            suffix = next((suffix for sign, suffix in SIGNS if data.startswith(sign)), "bin")
            yield f"{names[column]}.{suffix}", data
    yield "json", json.dumps(record, ensure_ascii=False, allow_nan=False).encode()


def _size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the width and height of a row's edited picture."""
    coded = (row.get("edited_image") or {}).get("bytes")
    return None if coded is None else Image.open(io.BytesIO(coded)).size


@functools.cache
def _flat_mask(size: tuple[int, int], level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, level).save(buffer, "png")
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
