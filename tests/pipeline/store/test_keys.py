"""Keys of an object store, which are no paths: through the S3 protocol."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.records.folders import folder_values
from pipelines.records.read import read_rows
from pipelines.records.scan import scan_inputs
from pipelines.store.fetch import ReferenceRules, fetch
from pipelines.store.listing import list_input
from pipelines.store.location import locate, put_atomic
from vimaedit.errors import RequestError

KEYS = (
    "x//y.parquet",
    "/z.parquet",
    "a::b.parquet",
    "100%25 #?+&=.parquet",
    "ü/ö.PARQUET",
    "no-suffix",
    "style=oil%20paint/p.parquet",
)


def coded(value: int) -> bytes:
    buffer = io.BytesIO()
    columns = {"image": [b"x"], "source_prompt": ["a"], "target_prompt": ["b"], "value": [value]}
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(bucket: str) -> str:
    root = locate(f"{bucket}/keys/set")
    for value, key in enumerate(KEYS):
        put_atomic(root / key, coded(value))
    put_atomic(root / "empty/", b"")  # the mark of a folder, as consoles of stores make it
    put_atomic(root / "notes.txt", b"no data")
    return root.url


def values(inputs: str | list[str]) -> dict[str, int]:
    found = scan_inputs(inputs, {})
    return {
        file.path: rows.content.column("value")[0].as_py()
        for file in found.files
        for rows in read_rows(found.root, file, 0, found.int96)
        if isinstance(rows.content, pa.RecordBatch)
    }


def test_every_key_is_read_as_it_stands(folder: str, bucket: str) -> None:
    assert values(folder) == {key: value for value, key in enumerate(KEYS)}
    assert [(each.count, each.total, each.examples) for each in list_input(folder).left_out] == [(1, 8, ("notes.txt",))]
    for value, key in enumerate(KEYS):
        assert list(values(f"{folder}/{key}").values()) == [value]
    assert scan_inputs(folder, {}).columns.passed["style"] == "style"
    assert folder_values(folder, "style=oil%20paint/p.parquet") == {"style": "oil paint"}
    both = values([f"{folder}/x//y.parquet", f"{folder}//z.parquet"])
    assert both == {"x//y.parquet": 0, "/z.parquet": 1}
    locate(bucket).fs.mkdir("pictures-two")
    put_atomic(locate("s3://pictures-two/a.parquet"), coded(7))
    assert values([f"{folder}/x//y.parquet", "s3://pictures-two"]) == {
        "pictures/keys/set/x//y.parquet": 0,
        "pictures-two/a.parquet": 7,
    }


def test_pictures_are_fetched_by_their_keys(folder: str, bucket: str) -> None:
    root = locate(f"{bucket}/keys/images")
    for key in ("a//b.png", "c/d.png", "e f%20.png"):
        put_atomic(root / key, key.encode())
    rules = ReferenceRules(root=f"{root.url}/", allow_http=False, http_hosts=())
    for reference, key in (
        ("a//b.png", "a//b.png"),
        (f"{root.url}/a//b.png", "a//b.png"),
        (f"{root.url.replace('s3://', 's3a://')}/x/../a//b.png", "a//b.png"),
        ("c//d.png", "c/d.png"),
        ("e f%20.png", "e f%20.png"),
    ):
        assert fetch(reference, rules) == key.encode()
    with pytest.raises(RequestError, match=r"got 'a/b.png', there is no such file; allowed: a file that is there, under s3:"):
        fetch("a/b.png", rules)
