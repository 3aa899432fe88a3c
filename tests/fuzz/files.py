"""Broken Parquet files, and things under their names that are no files."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.world import PROMPTS, World

MAGIC = b"PAR1"
SPARSE_BYTES = 3_000_000_000  # a sparse file of so many takes no disk


@dataclass(frozen=True, kw_only=True)
class FileClass:
    """A class of files. `make` writes one; `rows` says how many output rows it gives: 1 unreadable file, None as it happens."""

    name: str
    make: Callable[[World, Path], None]
    rows: int | None


FILE_CLASSES: dict[str, FileClass] = {}


def add(rows: int | None = 1) -> Callable[[Callable[[World, Path], None]], Callable[[World, Path], None]]:
    """Register a maker under its own name."""

    def register(make: Callable[[World, Path], None]) -> Callable[[World, Path], None]:
        FILE_CLASSES[make.__name__] = FileClass(name=make.__name__, make=make, rows=rows)
        return make

    return register


def good_table(world: World, count: int = 7, **others: Any) -> pa.Table:
    columns = {
        "image": [world.good_picture() for _ in range(count)],
        "source_prompt": [PROMPTS[0]] * count,
        "target_prompt": [PROMPTS[1]] * count,
    }
    return pa.table({**columns, **others})


def good_bytes(world: World, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    lists = world.chance.random() < 0.4
    table = good_table(world, **({"target_prompt": [[PROMPTS[1]]] * 7} if lists else {}))
    pq.write_table(table, sink, row_group_size=world.chance.choice((2, 100)), **options)
    return sink.getvalue().to_pybytes()


def footer_start(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


@add()
def no_bytes(world: World, path: Path) -> None:
    path.write_bytes(b"")


@add()
def few_bytes(world: World, path: Path) -> None:
    path.write_bytes(world.chance.choice((MAGIC, MAGIC + MAGIC, MAGIC + bytes(4) + MAGIC, world.data(1, 11), bytes(12))))


@add()
def random_bytes(world: World, path: Path) -> None:
    path.write_bytes(world.data(12, 9000))


@add()
def random_bytes_with_magic(world: World, path: Path) -> None:
    body = world.data(12, 9000)
    path.write_bytes(MAGIC + body + struct.pack("<I", world.chance.choice((len(body), 8, 1, len(body) // 2))) + MAGIC)


@add()
def another_format(world: World, path: Path) -> None:
    texts = (
        b"id,image\n1,a.png\n",
        b'{"image": "a.png"}\n',
        b"PK\x03\x04" + world.data(9, 99),
        b"ORC" + bytes(99),
        b"ARROW1\0\0",
    )
    path.write_bytes(world.chance.choice((*texts, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")))


@add()
def encrypted_footer(world: World, path: Path) -> None:
    data = good_bytes(world)
    path.write_bytes(data[:-4] + b"PARE")


@add()
def truncated_file(world: World, path: Path) -> None:
    data = good_bytes(world)
    path.write_bytes(data[: world.chance.randint(1, len(data) - 1)])


@add(None)
def without_its_head(world: World, path: Path) -> None:
    data = good_bytes(world)
    path.write_bytes(data[world.chance.randint(1, footer_start(data)) :])


@add()
def huge_footer_length(world: World, path: Path) -> None:
    data = good_bytes(world)
    length = world.chance.choice((2**32 - 1, 2**31, len(data) - 7, len(data), 10**9))
    path.write_bytes(data[:-8] + struct.pack("<I", length) + MAGIC)


@add()
def huge_footer_in_a_huge_file(world: World, path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(SPARSE_BYTES)
        stream.seek(0, os.SEEK_END)
        stream.write(struct.pack("<I", world.chance.choice((2**32 - 9, 2_900_000_000))) + MAGIC)


@add()
def small_footer_length(world: World, path: Path) -> None:
    data = good_bytes(world)
    path.write_bytes(data[:-8] + struct.pack("<I", world.chance.choice((0, 1, 7, 40))) + MAGIC)


@add(None)
def flipped_footer(world: World, path: Path) -> None:
    """Change few bytes of the footer, but none of a name: another name is another column, and not what this is about."""
    data = bytearray(good_bytes(world, store_schema=False))
    start = footer_start(bytes(data))
    names = {
        place
        for name in (b"image", b"source_prompt", b"target_prompt", b"schema", b"list", b"element")
        for place in _all(data, name)
    }
    places = [place for place in range(start, len(data) - 8) if place not in names]
    for _ in range(world.chance.randint(1, 3)):
        data[world.chance.choice(places)] = world.chance.choice((0, 0x7F, 0x80, 0xFF, world.chance.randrange(256)))
    path.write_bytes(data)


def _all(data: bytes | bytearray, name: bytes) -> list[int]:
    found, start = [], data.find(name)
    while start >= 0:
        found += range(start, start + len(name))
        start = data.find(name, start + 1)
    return found


@add(None)
def flipped_pages(world: World, path: Path) -> None:
    kind = world.chance.choice(("snappy", "zstd", "gzip", "lz4", "brotli", "none"))
    data = bytearray(good_bytes(world, compression=kind, data_page_version=world.chance.choice(("1.0", "2.0"))))
    for _ in range(world.chance.randint(1, 12)):
        data[world.chance.randrange(4, footer_start(bytes(data)))] = world.chance.randrange(256)
    path.write_bytes(data)


@add(None)
def zeroed_pages(world: World, path: Path) -> None:
    data = bytearray(good_bytes(world))
    start = world.chance.randrange(4, footer_start(bytes(data)))
    end = world.chance.randint(start, footer_start(bytes(data)))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)


@add(None)
def broken_metadata(world: World, path: Path) -> None:
    """A sound file whose key-value metadata are not what they say."""
    texts = (
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        json.dumps({"info": {"features": 7}}).encode(),
        b"[" * 100_000,
        b'{"info": ' * 20_000,
    )
    deep: Any = {"_type": "Value", "dtype": "string"}
    for _ in range(200):
        deep = [deep]
    features = ({"image": deep}, {"image": {"_type": "Rocket"}}, {"": None}, {"image": {"_type": "Image", "decode": "no"}})
    texts += tuple(json.dumps({"info": {"features": feature}}).encode() for feature in features)
    key = world.chance.choice((b"huggingface", b"pandas", b"vimaedit", b"\xff\0"))
    table = good_table(world).replace_schema_metadata({key: world.chance.choice(texts)})
    pq.write_table(table, path, store_schema=world.chance.random() < 0.5)


@add(None)
def broken_arrow_schema(world: World, path: Path) -> None:
    sink = pa.BufferOutputStream()
    table = good_table(world).replace_schema_metadata(
        {b"ARROW:schema": world.chance.choice((b"", b"####", world.data(1, 90), b"/////"))}
    )
    pq.write_table(table, sink, store_schema=False)
    path.write_bytes(sink.getvalue().to_pybytes())


@add(0)
def no_rows(world: World, path: Path) -> None:
    pq.write_table(good_table(world).slice(0, 0), path)


@add(None)
def no_columns(world: World, path: Path) -> None:
    pq.write_table(
        pa.table({"note": pa.nulls(3)}).select([]) if world.chance.random() < 0.5 else pa.table({"remark": pa.nulls(3)}), path
    )


@add(None)
def other_columns(world: World, path: Path) -> None:
    pq.write_table(pa.table({"image": [world.good_picture()] * 3, "sentence": ["a cat"] * 3}), path)


@add(1)
def more_rows_than_any_file_has(world: World, path: Path) -> None:
    """A footer that says of few bytes that they are thousands of millions of rows."""
    with pq.ParquetWriter(
        path, pa.schema([("image", pa.binary()), ("source_prompt", pa.string()), ("target_prompt", pa.string())])
    ) as writer:
        writer.write_table(
            pa.table({name: pa.nulls(7, kind) for name, kind in zip(writer.schema.names, writer.schema.types, strict=True)})
        )
    data = path.read_bytes()
    start = footer_start(data)
    footer = data[start:-8].replace(b"\x16\x0e", b"\x16" + _zigzag(world.chance.choice((2**62, 10**15, -7, -(2**62)))))
    path.write_bytes(data[:start] + footer + struct.pack("<I", len(footer)) + MAGIC)


def _zigzag(number: int) -> bytes:
    number = number * 2 if number >= 0 else -number * 2 - 1
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


@add(7)
def text_bomb(world: World, path: Path) -> None:
    """A few kilobytes that hold texts of many megabytes."""
    prompt = "a red dog " * 3_000_000
    pq.write_table(good_table(world, target_prompt=[prompt] * 7), path, compression="zstd")


@add(1)
def name_not_utf8(world: World, path: Path) -> None:
    name = os.fsencode(path).replace(b".parquet", b"-\xff\xfe.parquet")
    Path(os.fsdecode(name)).write_bytes(good_bytes(world))


@add(0)
def folder(world: World, path: Path) -> None:
    path.mkdir()
    if world.chance.random() < 0.5:
        (path / "notes.txt").write_text("no data")


@add()
def link_to_nothing(world: World, path: Path) -> None:
    path.symlink_to(world.chance.choice(("nothing.parquet", path.name)))


@add()
def link_out(world: World, path: Path) -> None:
    path.symlink_to(
        world.chance.choice((str(world.outside / "canary.txt"), "/etc/passwd", "/dev/zero", "/proc/self/environ", "/dev/null"))
    )


@add()
def pipe(world: World, path: Path) -> None:
    os.mkfifo(path)


@add()
def unix_socket(world: World, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)
        listener.bind(path.name)
        os.chdir(here)


@add(None)
def twice_the_rows_of_a_group(world: World, path: Path) -> None:
    """A footer whose row groups say another number of rows than their pages hold."""
    data = good_bytes(world)
    start = footer_start(data)
    footer = bytearray(data[start:-8])
    places = [place for place in range(len(footer) - 1) if footer[place] == 0x16 and footer[place + 1] in (4, 14)]
    if places:
        footer[world.chance.choice(places) + 1] = world.chance.choice((2, 6, 28, 64))
    path.write_bytes(data[:start] + bytes(footer) + data[-8:])


@add(None)
def random_values_in_lists(world: World, path: Path) -> None:
    """Lists of targets whose pages are noise: their lengths are read while planning."""
    noise = np.random.default_rng(world.chance.getrandbits(32)).bytes(300)
    sink = pa.BufferOutputStream()
    pq.write_table(good_table(world, target_prompt=[[PROMPTS[1]] * 3] * 7), sink, compression="none", use_dictionary=False)
    data = bytearray(sink.getvalue().to_pybytes())
    chunk = pq.read_metadata(pa.BufferReader(bytes(data))).row_group(0).column(2)
    start = chunk.data_page_offset + world.chance.randrange(60)
    end = min(start + world.chance.randint(1, 90), chunk.data_page_offset + chunk.total_compressed_size)
    data[start:end] = noise[: max(0, end - start)]
    path.write_bytes(data)
