"""What can be refused without Ray and without a model is refused before either is imported: that alone takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

PROGRAM = """
import importlib, json, sys
for job, words in json.load(sys.stdin):
    code = importlib.import_module(f"jobs.{job}").main(words)
    heavy = sorted({"ray", "torch", "diffusers", "transformers"} & sys.modules.keys())
    print(code, heavy, file=sys.stderr)
"""
PROMPTS = ("source_prompt=a cat", "target_prompt=a dog")
ONE = ("image={0}/cat.png", "output={0}/dog.png", *PROMPTS)

CASES = [
    ("edit", ["input={0}/none", "output={0}/out"], "input: got '{0}/none', where there is no Parquet file"),
    (
        "edit",
        ["input={0}/a.parquet", "output={0}/out", "columns={{image: photo}}"],
        "columns.image: got 'photo', which the input",
    ),
    ("edit", ["input={0}/a.parquet", "output={0}/cat.png"], "output: got '{0}/cat.png', where nothing can be written"),
    ("edit", ["input={0}/a.parquet", "output={0}/out", "resume=always"], "resume: got always, but {0}/out holds no run"),
    ("edit", ["input={0}/a.parquet", "output={0}/out", "steps=0"], "steps: got 0; allowed: 1 to 999"),
    ("edit", ["input={0}/a.parquet", "output={0}/out", "stpes=5"], "stpes: got an unknown key; did you mean steps?"),
    ("edit", ["input={0}/none", "output={0}/out", "dry_run=true"], "input: got '{0}/none', where there is no Parquet file"),
    (
        "edit_image",
        ["image={0}/none.png", "output={0}/dog.png", *PROMPTS],
        "image: got '{0}/none.png'; allowed: a file that exists",
    ),
    ("edit_image", ["image={0}/a.parquet", "output={0}/dog.png", *PROMPTS], "image: got "),
    ("edit_image", [*ONE, "model={0}/none"], "model: got '{0}/none', which is no file or folder here"),
    (
        "edit_image",
        [*ONE, "grounding=given", "given_mask={0}/none.png"],
        "given_mask: got '{0}/none.png'; allowed: a file that",
    ),
    ("sweep", [*ONE, "sweep=steps=1,many"], "steps: got 'many'; allowed: "),
    (
        "sweep",
        ["image={0}/none.png", "output={0}/grid.png", *PROMPTS, "sweep=steps=1,2"],
        "image: got '{0}/none.png'; allowed: a",
    ),
    ("evaluate", ["benchmark={0}/none", "output={0}/out"], "benchmark: got '{0}/none', where there is no Parquet file"),
    (
        "evaluate",
        ["benchmark={0}/a.parquet", "output={0}/out", "method=[p2p, paint]"],
        "method: got 'paint'; allowed: vimaedit",
    ),
    ("score", ["benchmark={0}/a.parquet", "edited={0}/none", "output={0}/out"], "edited: got {0}/none, where there is neither"),
    (
        "score",
        ["benchmark={0}/none", "edited={0}", "output={0}/out"],
        "benchmark: got '{0}/none', where there is no Parquet file",
    ),
    ("synthesize", ["input={0}/none", "output={0}/out"], "input: got '{0}/none', where there is no Parquet file"),
    (
        "synthesize",
        ["input={0}/a.parquet", "output={0}/out", "pairs=rules", "words={0}/none.toml"],
        "words: got '{0}/none.toml', which cannot",
    ),
    ("compact", ["input={0}/none", "output={0}/out"], "input: got {0}/none, which has no _SUCCESS"),
    ("publish", ["input={0}/none", "repository=me/edits"], "input: got {0}/none, which has no _SUCCESS"),
    ("status", ["output={0}/none"], "output: got {0}/none, which holds no run"),
    ("ingest", ["input={0}/none", "output={0}/out"], "input: got {0}/none, where nothing of that kind"),
    ("train_miniature", ["output={0}/out", "minutes=0"], "minutes: got 0.0; allowed: 0.1 to"),
    ("scenes", ["output={0}/out", "count=0"], "count: got 0; allowed: 1 to"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one record and one picture."""
    folder = tmp_path_factory.mktemp("at_once")
    Image.new("RGB", (64, 64), "red").save(folder / "cat.png")
    record = {"image": (folder / "cat.png").read_bytes(), "source_prompt": "a cat", "target_prompt": "a dog"}
    pq.write_table(pa.Table.from_pylist([record]), folder / "a.parquet")
    return folder


def test_it_is_refused_at_once(repository: Path, folder: Path) -> None:
    given = [(job, [word.format(folder) for word in words]) for job, words, _ in CASES]
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=repository, input=json.dumps(given), capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if " INFO jobs." not in line]
    for (job, words, message), refusal, imported in zip(CASES, said[::2], said[1::2], strict=True):
        assert refusal.startswith(f"jobs.{job}: {message.format(folder)}"), (words, done.stderr)
        assert imported == "2 []", words
    assert done.stdout == "" and sorted(path.name for path in folder.iterdir()) == ["a.parquet", "cat.png"]
