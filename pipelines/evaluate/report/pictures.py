"""What the report shows of runs: their warnings, and thumbnails of some rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from pipelines.output.thumbnails import code_masks, code_picture
from pipelines.records.values import find_coded, read_record
from pipelines.store.location import Location, is_transient
from pipelines.store.masking import mask_url, mask_urls
from pipelines.store.parquet import BROKEN_CONTENT, read_batches
from vimaedit.decoding import decode_image
from vimaedit.errors import RequestError, shown
from vimaedit.images import fit_mask
from vimaedit.mask_decoding import decode_mask, turn_mask
from vimaedit.types import BoolArray, Status, UInt8Array

BATCH_ROWS = 8  # decoded from Parquet at a time
COLUMNS = ("input_file", "input_row", "edit_index", "status", "warnings", "blend_words_used", "grounded")
PICTURE_COLUMNS = ("image", "edited_image", "edit_mask", "original_size", "crop_box", "reference_mask", "reference_image")

SHARED_COLUMNS = ("reference_image",)  # read only where pictures that do not depend on the method are shown

Shown = TypeVar("Shown")
Key = tuple[str, int, int]  # input file, row, edit: a request's identity


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """What the report takes from an output row: its warnings, and thumbnails by name."""

    warnings: tuple[str, ...]
    pictures: dict[str, bytes]


@dataclass(kw_only=True)
class RunRows:
    """Rows of a run: how many have each warning, and each kind of them (what stands before the colon); how many `ok` ones had
    no words, or no mask from them; some rows as `ShownRow`; how many pictures of each column could not be shown, and why the first.
    """

    warnings: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    without_words: int = 0
    ungrounded: int = 0
    rows: dict[Key, ShownRow] = field(default_factory=dict)
    not_shown: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, other: RunRows) -> None:
        """Take in further rows."""
        self.warnings.update(other.warnings)
        self.kinds.update(other.kinds)
        self.without_words += other.without_words
        self.ungrounded += other.ungrounded
        self.rows.update(other.rows)
        self.not_shown.update(other.not_shown)
        self.reasons = {**other.reasons, **self.reasons}

    def leave_out(self, column: str, reason: str) -> None:
        """Note that a picture of a column is not shown."""
        self.not_shown[column] += 1
        self.reasons.setdefault(column, reason)

    def notes(self) -> list[str]:
        """Say what is not shown."""
        return [
            f"{count} of {column} not shown in the gallery; the first: {self.reasons[column]}"
            for column, count in sorted(self.not_shown.items())
        ]


def part_rows(place: Location, px: int, wanted: frozenset[Key], shared: bool) -> RunRows:
    """Read one object of a run; the wanted rows get thumbnails of at most `px`. What cannot be read is noted, and costs nothing else.

    `shared`: also the pictures that do not depend on the method: source, reference mask, target.
    """
    found = RunRows()
    try:
        for batch in read_batches(place, (*COLUMNS, *PICTURE_COLUMNS), rows=BATCH_ROWS):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            for index in range(batch.num_rows):
                _add_row(found, columns, index, px, wanted, shared)
    except BROKEN_CONTENT as error:
        if is_transient(error):
            raise
        found.leave_out("parts", f"{place.path.rpartition('/')[2]}: {error}")
    return found


def _add_row(
    found: RunRows, columns: Mapping[str, pa.Array], index: int, px: int, wanted: frozenset[Key], shared: bool
) -> None:
    facts = {name: columns[name][index].as_py() for name in COLUMNS}
    found.warnings.update(set(facts["warnings"]))
    found.kinds.update({text.partition(":")[0] for text in facts["warnings"]})
    ok = facts["status"] == Status.OK
    found.without_words += ok and not facts["blend_words_used"]
    found.ungrounded += ok and bool(facts["blend_words_used"]) and not facts["grounded"]
    key = (facts["input_file"], facts["input_row"], facts["edit_index"])
    if key in wanted:
        names = [name for name in PICTURE_COLUMNS if name in columns and (shared or name not in SHARED_COLUMNS)]
        row = read_record({name: columns[name] for name in names}, index)
        found.rows[key] = ShownRow(warnings=tuple(facts["warnings"]), pictures=row_thumbnails(row, px, shared, found))


def row_thumbnails(row: Mapping[str, Any], px: int, shared: bool, found: RunRows) -> dict[str, bytes]:
    """Return the thumbnails of one output row that there are; the others are noted in `found`."""
    source = _shown(row, "image", decode_image, found)
    edited = _shown(row, "edited_image", decode_image, found)
    own = _shown(row, "edit_mask", decode_mask, found)
    frame = edited if source is None else source
    reference = _shown(row, "reference_mask", lambda data: _reference_mask(row, decode_mask(data), frame), found)
    pictures: dict[str, bytes] = {}
    if shared and source is not None:
        pictures["source"] = code_picture(source, px)
    if shared and reference is not None:
        pictures["reference"] = code_masks(None, reference, px)
    if shared and (target := _shown(row, "reference_image", decode_image, found)) is not None:
        pictures["target"] = code_picture(target[_box(row, target)], px)
    if own is not None:
        pictures["mask"] = code_masks(own, reference, px)
    if edited is not None:
        pictures["edited"] = code_picture(edited, px)
    return pictures


def _shown(row: Mapping[str, Any], column: str, decode: Callable[[bytes], Shown], found: RunRows) -> Shown | None:
    """Decode a picture that stands in a row; None where there is none, or none that can be shown."""
    try:
        if row.get(column) is None:
            return None
        data = find_coded(row[column], column)
        if isinstance(data, str):
            raise RequestError(
                "only_named", field=column, got=f"the path {shown(mask_url(data))}", allowed="the picture itself"
            )
        return decode(data)
    except Exception as error:  # nothing that a record brings along may end an evaluation at its last step
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, RequestError):
            text = f"got {error.got}; allowed: {error.allowed}"
        found.leave_out(column, mask_urls(f"{column}: {text}"))
        return None


def _reference_mask(row: Mapping[str, Any], mask: BoolArray, frame: UInt8Array | None) -> BoolArray | None:
    """Return the reference mask in the row's frame.

    Raises: RequestError where it is of another aspect than the picture.
    """
    size, box = row.get("original_size"), row.get("crop_box")
    if frame is None or size is None or box is None:
        return None
    sides, whole = (box["left"], box["top"], box["right"], box["bottom"]), (size["width"], size["height"])
    return fit_mask(turn_mask(mask, whole, orientation=1, field="reference_mask")[0], whole, sides, frame.shape)


def _box(row: Mapping[str, Any], picture: UInt8Array) -> tuple[slice, slice]:
    """Return the part of a whole picture that the row's frame shows, whatever the picture's size."""
    size, box = row.get("original_size"), row.get("crop_box")
    if size is None or box is None:
        return slice(None), slice(None)
    down, right = picture.shape[0] / size["height"], picture.shape[1] / size["width"]
    rows = slice(round(box["top"] * down), max(1, round(box["bottom"] * down)))
    return rows, slice(round(box["left"] * right), max(1, round(box["right"] * right)))
