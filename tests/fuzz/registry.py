"""Classes of bad records by name. A class makes the columns of one file that differ from those of good records."""

from __future__ import annotations

import decimal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tests.fuzz.verdicts import Verdict
from tests.fuzz.world import PROMPTS, World

Columns = dict[str, Any]
Maker = Callable[[World, int], Columns]

# Texts as columns of any other type: what a wrong tool writes.
WRONG_TYPES: tuple[tuple[pa.DataType, Any], ...] = (
    (pa.int64(), 7),
    (pa.bool_(), True),
    (pa.float64(), float("nan")),
    (pa.float64(), float("-inf")),
    (pa.list_(pa.int32()), [1, 2]),
    (pa.struct([("text", pa.string())]), {"text": "a cat"}),
    (pa.timestamp("ns", "UTC"), 2**62),
    (pa.date32(), -(2**31) + 1),
    (pa.duration("us"), 5),
    (pa.decimal128(9, 2), decimal.Decimal("7.25")),
    (pa.map_(pa.string(), pa.string()), [("a", "b")]),
)


@dataclass(frozen=True, kw_only=True)
class RecordClass:
    """A class of records: how its files are made, and what has to become of its rows. `group` names the job that reads it."""

    name: str
    make: Maker
    verdict: Verdict
    group: str


CLASSES: dict[str, RecordClass] = {}


def add(verdict: Verdict, group: str = "plain") -> Callable[[Maker], Maker]:
    """Register a maker under its own name."""

    def register(make: Maker) -> Maker:
        name = make.__name__
        CLASSES[name] = RecordClass(name=name, make=make, verdict=verdict, group=group)
        return make

    return register


def file_of(each: RecordClass, world: World, count: int) -> pa.Table:
    """Make one file of `count` records of a class."""
    columns: Columns = {
        "id": [f"{each.name} {number}" for number in range(count)],
        "image": [world.good_picture() for _ in range(count)],
        "source_prompt": [PROMPTS[0]] * count,
        "target_prompt": [PROMPTS[1]] * count,
    }
    return pa.table({**columns, **each.make(world, count)})


def broken_texts(texts: Sequence[bytes]) -> pa.Array:
    """A column of texts that are not UTF-8."""
    offsets = pa.array(np.cumsum([0, *map(len, texts)]), pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), len(texts), [None, offsets, pa.py_buffer(b"".join(texts))])


def not_utf8(world: World, count: int) -> pa.Array:
    starts = (b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80", b"a cat \xe9", b"\xc0\xaf")
    return broken_texts([world.chance.choice(starts) + world.data(0, 9) + b"\xfe" for _ in range(count)])


def wrong_column(world: World, count: int, *without: pa.DataType) -> pa.Array:
    kind, value = world.chance.choice([entry for entry in WRONG_TYPES if entry[0] not in without])
    return pa.array([value] * count, kind)


def each(world: World, count: int, make: Callable[[World], Any]) -> list[Any]:
    return [make(world) for _ in range(count)]


def picks(world: World, count: int, values: Sequence[Any]) -> list[Any]:
    return [world.chance.choice(values) for _ in range(count)]
