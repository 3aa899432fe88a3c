"""Made-up PIE-Bench and PIE-Bench++ in their exact formats: drawn scenes, 700 entries or fewer.

`python -m tests.piebench_tree FOLDER [COUNT]` writes PIE-Bench.
"""

from __future__ import annotations

import io
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vimaedit.scenes.benchmark import benchmark_seed, spread_categories
from vimaedit.scenes.edits import CATEGORIES, CATEGORY_WEIGHTS, Edit, edit_mask, make_edit
from vimaedit.scenes.render import render_scene

COUNT = 700
SIDE = 512
FOLDERS = [f"{n}_{name}_{20 * weight}" for n, (name, weight) in enumerate(zip(CATEGORIES, CATEGORY_WEIGHTS, strict=True))]


@dataclass(frozen=True)
class Drawn:
    """One entry before it is written down in either format."""

    id: str
    category: int
    edit: Edit
    jpeg: bytes
    mask: np.ndarray

    @property
    def prompts(self) -> tuple[str, str]:
        """Both prompts with brackets around what changes."""
        phrase = self.edit.blend[0] if self.edit.blend else None
        return (
            bracketed(self.edit.source_prompt, phrase.source if phrase else None),
            bracketed(self.edit.target_prompt, phrase.target if phrase else None),
        )

    @property
    def words(self) -> tuple[str, str] | None:
        """The last word of either phrase, as the benchmark has single words; None where only one prompt has something."""
        for phrase in self.edit.blend:
            if phrase.source and phrase.target:
                return phrase.source.split()[-1], phrase.target.split()[-1]
        return None


def bracketed(prompt: str, phrase: str | None) -> str:
    """Put brackets around a phrase of a prompt."""
    return prompt.replace(phrase, f"[{phrase}]", 1) if phrase else prompt


def runs(mask: np.ndarray) -> list[int]:
    """Code a mask as start and length of every run of set pixels, row by row."""
    steps = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel().astype(np.int8), [0]])))
    numbers: list[int] = []
    for start, stop in steps.reshape(-1, 2).tolist():
        numbers += [start, stop - start]
    return numbers


def draw(count: int) -> Iterator[Drawn]:
    """Draw entries in the benchmark's proportions, each with a number among all as its id."""
    for index, name in enumerate(spread_categories(count, CATEGORIES)):
        edit = make_edit(benchmark_seed("test", 7, index), name)
        buffer = io.BytesIO()
        Image.fromarray(render_scene(edit.source, SIDE)).save(buffer, "JPEG", quality=92)
        category = CATEGORIES.index(name)
        yield Drawn(f"{category}{index:011d}", category, edit, buffer.getvalue(), edit_mask(edit, SIDE))


def entry_of(drawn: Drawn) -> dict[str, Any]:
    """Write an entry down as in `mapping_file.json`."""
    source, target = drawn.prompts
    return {
        "image_path": f"{FOLDERS[drawn.category]}/{drawn.id}.jpg",
        "original_prompt": source,
        "editing_prompt": target,
        "editing_instruction": drawn.edit.instruction,
        "editing_type_id": str(drawn.category),
        "blended_word": " ".join(drawn.words or ()),
        "mask": runs(drawn.mask),
    }


def write_tree(folder: Path, count: int = COUNT) -> dict[str, dict[str, Any]]:
    """Write PIE-Bench's official layout; returns the mapping."""
    mapping: dict[str, dict[str, Any]] = {}
    for drawn in sorted(draw(count), key=lambda drawn: drawn.id):
        entry = entry_of(drawn)
        place = folder / "annotation_images" / entry["image_path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(drawn.jpeg)
        mapping[drawn.id] = entry
    write_mapping(folder, mapping)
    return mapping


def write_mapping(folder: Path, mapping: dict[str, Any]) -> None:
    """Write `mapping_file.json` again."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mapping_file.json").write_text(json.dumps(mapping, indent=1))


def row_of(drawn: Drawn) -> dict[str, Any]:
    """Write an entry down as a row of PIE-Bench++."""
    source, target = drawn.prompts
    words = drawn.words
    action = {words[0]: {"position": 1, "edit_type": drawn.category, "action": words[1]}} if words else {}
    return {
        "image": {"bytes": drawn.jpeg, "path": f"{drawn.id}.jpg"},
        "id": drawn.id,
        "source_prompt": source,
        "target_prompt": target,
        "edit_action": json.dumps(action),
        "aspect_mapping": json.dumps({words[1]: [words[1]]} if words else {}),
        "blended_words": json.dumps([",".join(words)] if words else []),
        "mask": " ".join(map(str, runs(drawn.mask))),
    }


def write_plus_plus(folder: Path, count: int = COUNT) -> list[dict[str, Any]]:
    """Write PIE-Bench++: one Parquet file of split V1 in a folder for every category; returns the rows."""
    by_folder: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for drawn in sorted(draw(count), key=lambda drawn: drawn.id):
        by_folder[FOLDERS[drawn.category]].append(row_of(drawn))
    texts = ("id", "source_prompt", "target_prompt", "edit_action", "aspect_mapping", "blended_words", "mask")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), *((name, pa.string()) for name in texts)])
    for name, rows in by_folder.items():
        place = folder / name / "V1-00000-of-00001.parquet"
        place.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), place)
    return [row for rows in by_folder.values() for row in rows]


if __name__ == "__main__":
    write_tree(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else COUNT)
