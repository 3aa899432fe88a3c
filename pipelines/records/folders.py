"""Values in the names of folders, as Hive and Spark cut data sets: `style=oil%20paint/part-0.parquet` is a row's column `style`."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import unquote

import pyarrow as pa

from vimaedit.errors import ConfigError

NULL = "__HIVE_DEFAULT_PARTITION__"
PAIR = re.compile(r"([^=?]+)=(.*)", re.DOTALL)
INTEGER = re.compile(r"-?\d+", re.ASCII)

Values = dict[str, str | None]  # by column


def folder_values(root: str, path: str) -> Values:
    """Read the values in the names of the folders a file lies in: those below the root, and those that the root's path ends in."""
    return dict(_pairs(root, path))


def check_one_value(root: str, path: str) -> None:
    """Raise `ConfigError` where the folders of a file name two values of one column."""
    values: Values = {}
    for name, text in _pairs(root, path):
        if values.setdefault(name, text) != text:
            raise ConfigError(
                f"input: got column {name!r} as {values[name]!r} and {text!r} in the names of the folders of {path}; allowed: one value"
            )


def _pairs(root: str, path: str) -> Iterator[tuple[str, str | None]]:
    *below, _ = path.split("/")
    above = itertools.takewhile(PAIR.fullmatch, reversed(root.rstrip("/").split("/")))
    for folder in (*reversed(list(above)), *below):
        if found := PAIR.fullmatch(folder):
            yield unquote(found[1]), None if found[2] == NULL else unquote(found[2])


def folder_fields(files: Iterable[Values]) -> list[pa.Field]:
    """Give the columns of all files' folders their types as pyarrow does: int32 where every value is one, else text."""
    texts: dict[str, set[str]] = defaultdict(set)
    for values in files:
        for name, text in values.items():
            texts[name] |= set() if text is None else {text}
    return [
        pa.field(name, pa.int32() if found and all(map(_is_int32, found)) else pa.string()) for name, found in texts.items()
    ]


def check_folders(files: Mapping[str, Values], own: Mapping[str, frozenset[str]], schema: pa.Schema) -> Iterator[str]:
    """Warn of columns that stand in files and in the names of their folders too. `own`: the columns of every file.

    Raises: ConfigError where a value of a folder's name is none of the type that the column has in other files.
    """
    both: dict[str, list[str]] = defaultdict(list)
    for path, values in files.items():
        for name, text in values.items():
            if name in own[path]:
                both[name].append(path)
            elif name in schema.names:
                try:
                    pa.array([text], pa.string()).cast(schema.field(name).type)
                except pa.ArrowException as error:
                    raise ConfigError(
                        f"input: got column {name!r} as {text!r} in the name of a folder of {path} and as "
                        f"{schema.field(name).type} in other files; allowed: one type in all files"
                    ) from error
    for name, paths in both.items():
        yield (
            f"input: column {name!r} stands in {len(paths)} of {len(files)} files, {paths[0]} the first, and in the names of their "
            "folders; the files' values are taken"
        )


def with_folders(batch: pa.RecordBatch, values: Values) -> pa.RecordBatch:
    """Append the columns that the names of a file's folders give and the file has not, as text."""
    for name, text in values.items():
        if name not in batch.schema.names:
            batch = batch.append_column(name, pa.array([text] * batch.num_rows, pa.string()))
    return batch


def _is_int32(text: str) -> bool:
    return INTEGER.fullmatch(text) is not None and -(2**31) <= int(text) < 2**31
