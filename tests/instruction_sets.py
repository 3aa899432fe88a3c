"""Made-up benchmarks of instructions in the forms in which they are published, of drawn scenes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.piebench_tree import Drawn, draw
from vimaedit.scenes.edits import CATEGORIES
from vimaedit.scenes.render import render_scene

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
HOLES_PX = 256  # of MagicBrush's masks here: half of the pictures' side


def picture(data: bytes, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_gedit(folder: Path, drawn: Sequence[Drawn]) -> None:
    """Write GEdit-Bench: every edit in English and in Chinese."""
    rows = [
        {
            "task_type": CATEGORIES[each.category],
            "key": f"{each.id}-{language}",
            "instruction": text,
            "instruction_language": language,
            "input_image": picture(each.jpeg),
            "input_image_raw": picture(b"not read"),
            "Intersection_exist": True,
        }
        for each in drawn
        for language, text in (("en", each.edit.instruction), ("cn", "把它改成蓝色"))
    ]
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", rows, ("input_image", "input_image_raw"))


def write_imgedit(folder: Path, drawn: Sequence[Drawn]) -> None:
    """Write ImgEdit-Bench: `singleturn.json` beside folders of pictures."""
    entries = {}
    for number, each in enumerate(drawn):
        place = folder / "daily object" / f"{each.id}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(each.jpeg)
        name = f"daily object/{each.id}.jpg"
        entries[str(number)] = {"id": name, "prompt": each.edit.instruction, "edit_type": CATEGORIES[each.category]}
    (folder / "singleturn.json").write_text(json.dumps(entries))
    (folder / "judge_prompt.json").write_text("{}")


def write_magicbrush(folder: Path, drawn: Sequence[Drawn]) -> None:
    """Write MagicBrush: masks are the picture, smaller, and transparent where it may change."""
    rows = []
    for each in drawn:
        source = Image.open(io.BytesIO(each.jpeg)).resize((HOLES_PX, HOLES_PX))
        holes = np.dstack([np.asarray(source), 255 * ~each.mask[::2, ::2]]).astype(np.uint8)
        rows.append(
            {
                "img_id": each.id,
                "turn_index": 1,
                "source_img": picture(each.jpeg),
                "mask_img": picture(png(holes)),
                "instruction": each.edit.instruction,
                "target_img": picture(png(render_scene(each.edit.target, 512))),
            }
        )
    write_parquet(folder / "dev-00000-of-00001.parquet", rows, ("source_img", "mask_img", "target_img"))


def write_emu_edit(folder: Path, drawn: Sequence[Drawn]) -> None:
    """Write EMU-Edit's test set: numbers are unique within a task only."""
    rows = [
        {
            "instruction": each.edit.instruction,
            "image": picture(each.jpeg),
            "task": ("add", "local")[number % 2],
            "split": "test",
            "idx": number // 2,
            "hash": f"{number:032x}",
            "input_caption": each.edit.source_prompt,
            "output_caption": each.edit.target_prompt,
        }
        for number, each in enumerate(drawn)
    ]
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows, ("image",))


def write_parquet(place: Path, rows: list[dict[str, Any]], images: Sequence[str]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    plain = pa.Table.from_pylist([{name: value for name, value in row.items() if name not in images} for row in rows])
    for name in images:
        plain = plain.append_column(name, pa.array([row[name] for row in rows], IMAGE))
    pq.write_table(plain, place)


WRITERS: dict[str, Callable[[Path, Sequence[Drawn]], None]] = {
    "gedit": write_gedit,
    "imgedit": write_imgedit,
    "magicbrush": write_magicbrush,
    "emu-edit": write_emu_edit,
}


def drawn_edits(count: int) -> list[Drawn]:
    return sorted(draw(count), key=lambda each: each.id)
