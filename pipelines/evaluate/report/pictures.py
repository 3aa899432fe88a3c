"""What the report shows of runs: their warnings, and thumbnails of some rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.output.thumbnails import code_masks, code_picture
from pipelines.store.location import Location
from pipelines.store.parquet import read_batches
from vimaedit.decoding import decode_image, decode_mask, turn_mask
from vimaedit.errors import RequestError
from vimaedit.images import fit_mask
from vimaedit.types import BoolArray, Status, UInt8Array

BATCH_ROWS = 8  # decoded from Parquet at a time
COLUMNS = ("input_file", "input_row", "edit_index", "status", "warnings", "blend_words_used", "grounded")
PICTURE_COLUMNS = ("image", "edited_image", "edit_mask", "original_size", "crop_box", "reference_mask", "reference_image")

Key = tuple[str, int, int]  # input file, row, edit: a request's identity


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """What the report takes from an output row: its warnings, and thumbnails by name."""

    warnings: tuple[str, ...]
    pictures: dict[str, bytes]


@dataclass(kw_only=True)
class RunRows:
    """Rows of a run: how many have each warning, and each kind of them (what stands before the colon); how many `ok` ones had
    no words, or no mask from them; and some rows as `ShownRow`.
    """

    warnings: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    without_words: int = 0
    ungrounded: int = 0
    rows: dict[Key, ShownRow] = field(default_factory=dict)

    def add(self, other: RunRows) -> None:
        """Take in further rows."""
        self.warnings.update(other.warnings)
        self.kinds.update(other.kinds)
        self.without_words += other.without_words
        self.ungrounded += other.ungrounded
        self.rows.update(other.rows)


def part_rows(place: Location, px: int, wanted: frozenset[Key], shared: bool) -> RunRows:
    """Read one object of a run; the wanted rows get thumbnails of at most `px`.

    `shared`: also the pictures that do not depend on the method: source, reference mask, target.
    """
    found = RunRows()
    for batch in read_batches(place, (*COLUMNS, *PICTURE_COLUMNS), rows=BATCH_ROWS):
        for index in range(batch.num_rows):
            facts = {name: batch.column(name)[index].as_py() for name in COLUMNS}
            found.warnings.update(set(facts["warnings"]))
            found.kinds.update({text.partition(":")[0] for text in facts["warnings"]})
            ok = facts["status"] == Status.OK
            found.without_words += ok and not facts["blend_words_used"]
            found.ungrounded += ok and bool(facts["blend_words_used"]) and not facts["grounded"]
            key = (facts["input_file"], facts["input_row"], facts["edit_index"])
            if key in wanted:
                row = batch.slice(index, 1).to_pylist()[0]
                found.rows[key] = ShownRow(warnings=tuple(row["warnings"]), pictures=row_thumbnails(row, px, shared))
    return found


def row_thumbnails(row: Mapping[str, Any], px: int, shared: bool) -> dict[str, bytes]:
    """Return the thumbnails of one output row that there are."""
    source, edited = (_picture(row.get(name)) for name in ("image", "edited_image"))
    own, reference = _mask(row.get("edit_mask")), _reference_mask(row, edited if source is None else source)
    pictures: dict[str, bytes] = {}
    if shared and source is not None:
        pictures["source"] = code_picture(source, px)
    if shared and reference is not None:
        pictures["reference"] = code_masks(None, reference, px)
    if shared and (target := _picture(row.get("reference_image"))) is not None:
        pictures["target"] = code_picture(target[_box(row, target)], px)
    if own is not None:
        pictures["mask"] = code_masks(own, reference, px)
    if edited is not None:
        pictures["edited"] = code_picture(edited, px)
    return pictures


def _picture(value: Any) -> UInt8Array | None:
    if value is None or value["bytes"] is None:
        return None
    return decode_image(value["bytes"])


def _mask(value: Any) -> BoolArray | None:
    return None if value is None or value["bytes"] is None else decode_mask(value["bytes"])


def _reference_mask(row: Mapping[str, Any], frame: UInt8Array | None) -> BoolArray | None:
    """Return the reference mask in the row's frame; None also where it is of another aspect than the picture."""
    mask, size, box = _mask(row.get("reference_mask")), row.get("original_size"), row.get("crop_box")
    if mask is None or frame is None or size is None or box is None:
        return None
    sides, whole = (box["left"], box["top"], box["right"], box["bottom"]), (size["width"], size["height"])
    try:
        return fit_mask(turn_mask(mask, whole, orientation=1)[0], whole, sides, frame.shape)
    except RequestError:
        return None


def _box(row: Mapping[str, Any], picture: UInt8Array) -> tuple[slice, slice]:
    """Return the part of a whole picture that the row's frame shows, whatever the picture's size."""
    size, box = row.get("original_size"), row.get("crop_box")
    if size is None or box is None:
        return slice(None), slice(None)
    down, right = picture.shape[0] / size["height"], picture.shape[1] / size["width"]
    rows = slice(round(box["top"] * down), max(1, round(box["bottom"] * down)))
    return rows, slice(round(box["left"] * right), max(1, round(box["right"] * right)))
