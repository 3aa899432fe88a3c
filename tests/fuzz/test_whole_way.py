"""Bad records and broken files among good ones, all the way through `jobs.edit` as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fuzz.classes import CLASSES
from tests.fuzz.files import FILE_CLASSES
from tests.fuzz.process import broken_complaints, class_name, write_records
from tests.fuzz.servers import serving
from tests.fuzz.verdicts import complaints, shows_canary
from tests.fuzz.world import CANARY_TEXT, PROMPTS, World, build_world, fuzz_seed

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(2400)]

PER_CLASS = 5
GOOD_FILES, GOOD_RECORDS = 20, 9
BROKEN_FILES = 200
COSTLY = ("text_bomb",)  # one of them is enough
PICTURES = ("image", "edited_image", "edit_mask", "critical_mask")
SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "MY_PASSWORD")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = build_world(tmp_path, fuzz_seed())
    with serving(world) as asked:
        yield world
    assert asked == []


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Give Ray a folder of its own for its logs; the addresses of its sockets have room for a short name only."""
    with tempfile.TemporaryDirectory(prefix="fz", dir="/tmp") as folder:
        yield Path(folder)


def write_good(world: World, folder: Path) -> None:
    """Write the good files; their folder is the first, so that a run that begins with rejections is not stopped as hopeless."""
    folder.mkdir()
    for number in range(GOOD_FILES):
        names = [f"good {number} {row}" for row in range(GOOD_RECORDS)]
        columns = {"id": names, "image": [world.good_picture() for _ in names]}
        columns |= {"source_prompt": [PROMPTS[0]] * len(names), "target_prompt": [PROMPTS[1]] * len(names)}
        pq.write_table(pa.table(columns), folder / f"{number:02d}.parquet")


def write_broken(world: World, folder: Path) -> int:
    folder.mkdir()
    wanted = [name for name in FILE_CLASSES if name not in COSTLY]
    names = [*COSTLY, *(wanted[number % len(wanted)] for number in range(BROKEN_FILES - len(COSTLY)))]
    for number, name in enumerate(names):
        FILE_CLASSES[name].make(world, folder / f"{name}-{number}.parquet")
    return len(names)


def run_job(repository: Path, world: World, ray_folder: Path, *words: str) -> tuple[int, str]:
    """Run `jobs.edit` with secrets in its environment; its exit code, and all that it printed."""
    environment = {**os.environ, **dict.fromkeys(SECRET_VARIABLES, world.secret), "RAY_TMPDIR": str(ray_folder)}
    command = [sys.executable, "-m", "jobs.edit", "model=random", "steps=1", "actors=1", "threads=1", "canvas.size=64"]
    done = subprocess.run(
        [*command, *words], cwd=repository, env=environment, capture_output=True, text=True, errors="replace", timeout=2000
    )
    return done.returncode, done.stdout + done.stderr


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [row for part in sorted((output / "data").glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def files_with(folder: Path, text: bytes) -> list[str]:
    """Name the files below a folder that hold a text; Parquet is searched unpacked, its coded pictures left out."""
    found = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data += repr(pq.read_table(path).to_pylist()).encode()
        if text in data:
            found.append(str(path.relative_to(folder)))
    return found


def test_bad_records_and_broken_files_among_good_ones(repository: Path, tmp_path: Path, ray_folder: Path, world: World) -> None:
    write_good(world, world.root / "a-good")
    classes = [each for each in CLASSES.values() if each.group == "plain"]
    write_records(world, world.root / "records", classes, PER_CLASS)
    assert write_broken(world, world.root / "files") >= 200
    options = ["batch_size=4", "max_pixels=4000000"]
    code, printed = run_job(repository, world, ray_folder, f"input={world.root}", f"output={tmp_path / 'out'}", *options)
    assert code in (0, 3), f"seed {world.seed}: {printed[-6000:]}"
    assert (tmp_path / "out" / "_SUCCESS").exists()

    rows = rows_of(tmp_path / "out")
    identities = [(row["input_file"], row["input_row"], row["edit_index"]) for row in rows]
    assert len(set(identities)) == len(identities)
    by_file: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_file.setdefault(row["input_file"], []).append(row)
    found, statuses = [], Counter(row["status"] for row in rows)
    assert code == (3 if statuses["rejected"] > len(rows) / 2 else 0)
    for path in sorted((world.root / "records").iterdir()):
        own = by_file.pop(f"records/{path.name}")
        assert {row["input_row"] for row in own} == set(range(PER_CLASS))
        each = CLASSES[class_name(path.name)]
        for row in own:
            place = f"{path.name}#{row['input_row']}: {row['error_message']!r}"
            found += [f"{text}; {place}" for text in complaints(row, each.verdict)]
            found += [f"the canary; {place}"] if shows_canary(row) else []
    for path in sorted((world.root / "files").iterdir()):
        name = os.fsencode(path.name).decode(errors="backslashreplace")
        each_file = FILE_CLASSES[re.sub(r"-\d+.*", "", name)]
        found += [f"{name}: {text}" for text in broken_complaints(each_file, by_file.pop(f"files/{name}", []))]
    assert not found, "\n".join([f"seed {world.seed}", *found[:40]])

    code, printed_alone = run_job(
        repository, world, ray_folder, f"input={world.root / 'a-good'}", f"output={tmp_path / 'alone'}", *options
    )
    assert code == 0, printed_alone[-3000:]
    alone = {row["id"]: row for row in rows_of(tmp_path / "alone")}
    good = [row for own in by_file.values() for row in own]
    assert len(good) == len(alone) == GOOD_FILES * GOOD_RECORDS
    for row in good:
        assert row["status"] == "ok" and row["seed"] == alone[row["id"]]["seed"]
        assert all(row[name] == alone[row["id"]][name] for name in PICTURES), row["id"]

    for text in (world.secret.encode(), CANARY_TEXT):
        assert text.decode() not in printed + printed_alone, f"seed {world.seed}"
        for folder in (tmp_path / "out", tmp_path / "alone", ray_folder):
            assert files_with(folder, text) == [], f"seed {world.seed}"
    print(f"{len(rows)} rows: {dict(statuses)}")


def test_a_printed_configuration_holds_no_secret(repository: Path, ray_folder: Path, world: World) -> None:
    words = [f"input=s3://user:{world.secret}@bucket/in", f"output=http://host/out?X-Amz-Signature={world.secret}"]
    words += [f"image_root=https://user:p/{world.secret}@host/pictures?token={world.secret}", "--print-config"]
    code, printed = run_job(repository, world, ray_folder, *words)
    assert code == 0 and "***" in printed and world.secret not in printed, printed
