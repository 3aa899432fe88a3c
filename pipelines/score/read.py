"""Read one group of requests with their edited pictures, and bring everything to the edited pictures' frame."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from pipelines.records.folders import folder_values
from pipelines.records.values import PICTURE, converted, find_coded, read_record, wrong_type
from pipelines.score.config import ScoreConfig
from pipelines.score.pairs import Pair, Places
from pipelines.store.fetch import ReferenceRules, fetch
from pipelines.store.listing import own_root
from pipelines.store.location import is_transient, locate
from pipelines.store.masking import mask_urls
from pipelines.store.parquet import BROKEN_CONTENT, rows_together, take_rows
from vimaedit.decoding import decode_whole
from vimaedit.errors import RequestError
from vimaedit.images import Box, Size, fit_mask, resize
from vimaedit.mask_decoding import decode_whole_mask, turn_mask
from vimaedit.metrics.samples import EditSample
from vimaedit.piebench.annotations import with_frame
from vimaedit.scenes.reading.judge import judge_edit
from vimaedit.scenes.scenes import scene_from_json
from vimaedit.types import BoolArray, UInt8Array

SCENE_COLUMNS = ("source_scene", "target_scene", "edited_object")
RECORD_COLUMNS = ("image", "reference_mask", "reference_image", "target_determined", *SCENE_COLUMNS)
EDITED_COLUMNS = ("edited_image", "edit_mask", "crop_box", "original_size")

Decoded = TypeVar("Decoded")


@dataclass(kw_only=True, eq=False)
class Loaded:
    """A request ready to be measured: a sample, or why there is none. `values`: metrics that need no network."""

    position: int
    sample: EditSample | None = None
    problem: str | None = None
    values: dict[str, Any] = field(default_factory=dict)


def load_pairs(config: ScoreConfig, places: Places, pairs: Sequence[tuple[int, Pair]]) -> list[Loaded]:
    """Read the requests at the given positions, each with an edited picture. One that cannot be read costs no other.

    Raises: the infrastructure's errors, after retries.
    """
    asked = [(places.benchmark_root, [(pair.file, pair.row) for _, pair in pairs], _record_sources(places))]
    if places.is_table:
        found = [pair.edited for _, pair in pairs if pair.edited is not None]
        asked.append((places.edited_root, [(each.file, each.row or 0) for each in found], _edited_sources(config)))
    size = min(_held_together(*each) for each in asked)
    parts = (pairs[start : start + size] for start in range(0, len(pairs), size))
    return [item for part in parts for item in _load_part(config, places, part)]


def _record_sources(places: Places) -> dict[str, str]:
    return {name: places.columns[name] for name in RECORD_COLUMNS if name in places.columns}


def _edited_sources(config: ScoreConfig) -> dict[str, str]:
    return {name: config.edited_columns.get(name, name) for name in EDITED_COLUMNS}


def _held_together(root: str, wanted: Sequence[tuple[str, int]], sources: Mapping[str, str]) -> int:
    """Say how many of some rows may be held decoded at a time."""
    size = max(1, len(wanted))
    for file, rows in _by_file(wanted).items():
        try:
            size = min(size, rows_together(locate(root) / file, rows, list(sources.values())))
        except BROKEN_CONTENT as error:  # reading the rows says so again
            if is_transient(error):
                raise
    return size


def _load_part(config: ScoreConfig, places: Places, pairs: Sequence[tuple[int, Pair]]) -> list[Loaded]:
    records = _read_named(places.benchmark_root, [(pair.file, pair.row) for _, pair in pairs], _record_sources(places))
    found = [pair.edited for _, pair in pairs if pair.edited is not None]
    if places.is_table:
        edited = _read_named(places.edited_root, [(each.file, each.row or 0) for each in found], _edited_sources(config))
    else:
        edited = [{"edited_image": each.file} for each in found]
    loaded = []
    for (position, pair), record, result in zip(pairs, records, edited, strict=True):
        item = Loaded(position=position)
        try:
            item.sample = _sample(config, places, pair, record, result)
            if "scene" in config.groups:
                item.values = _scene_values(item.sample, record)
        except Exception as error:  # whatever somebody's rows hold, it costs no other
            if is_transient(error):
                raise
            item.sample = None
            kind = "" if isinstance(error, RequestError) else f"{type(error).__name__}: "
            item.problem = mask_urls(f"record {pair.id!r}: {kind}{error}")
        loaded.append(item)
    return loaded


def _read_named(root: str, wanted: Sequence[tuple[str, int]], sources: Mapping[str, str]) -> list[dict[str, Any]]:
    """Read columns of single rows (file, row), by the contract's names; those that a file lacks are null, and a RequestError stands
    where a value, or the file, cannot be read."""
    read: dict[tuple[str, int], dict[str, Any]] = {}
    for file, rows in _by_file(wanted).items():
        try:
            table = take_rows(locate(root) / file, rows, list(sources.values()))
        except BROKEN_CONTENT as error:
            if is_transient(error):
                raise
            broken = RequestError("unreadable_file", field=file, got=str(error).strip(), allowed="a whole Parquet file")
            read |= {(file, row): dict.fromkeys(sources, broken) for row in rows}
            continue
        folders = folder_values(root, file)
        named = {name: folders[source] for name, source in sources.items() if source in folders}
        columns = {name: table.column(source) for name, source in sources.items() if source in table.column_names}
        read |= {(file, row): {**named, **read_record(columns, index)} for index, row in enumerate(sorted(rows))}
    return [{name: read[each].get(name) for name in sources} for each in wanted]


def _by_file(wanted: Sequence[tuple[str, int]]) -> dict[str, set[int]]:
    files: dict[str, set[int]] = {}
    for file, row in wanted:
        files.setdefault(file, set()).add(row)
    return files


def _sample(
    config: ScoreConfig, places: Places, pair: Pair, record: Mapping[str, Any], result: Mapping[str, Any]
) -> EditSample:
    """Decode everything and bring it to the edited picture's frame.

    Raises: RequestError for what cannot be read or does not fit.
    """
    rules = ReferenceRules(
        root=config.image_root or own_root(places.benchmark_root, places.benchmark_roots, pair.file),
        allow_http=config.allow_http,
        http_hosts=config.http_hosts,
    )
    for name, prompt in (("source_prompt", pair.source_prompt), ("target_prompt", pair.target_prompt)):
        if prompt is None:
            raise RequestError("null_value", field=name, got="null", allowed="a string")
    edited_rules = ReferenceRules(root=places.edited_root, allow_http=False, http_hosts=())
    edited = decode_value(result.get("edited_image"), "edited_image", edited_rules, decode_whole, config.max_pixels).pixels
    # In this order: squares side by side were published in one JPEG, and colours run over their borders.
    if config.jpeg_quality is not None:
        edited = through_jpeg(edited, config.jpeg_quality)
    if config.part == "last":
        side = min(edited.shape[:2])
        edited = np.ascontiguousarray(edited[-side:, -side:])
    original = decode_value(record.get("image"), "image", rules, decode_whole, config.max_pixels)
    source = original.pixels
    size = (source.shape[1], source.shape[0])
    box = frame_box(size, edited.shape[:2], converted(result.get("crop_box")), converted(result.get("original_size")))
    references = read_references(record, rules, config.max_pixels, size, original.orientation, box, edited.shape[:2])
    edit_mask = None
    if result.get("edit_mask") is not None:
        height, width = edited.shape[:2]
        found = _mask(result["edit_mask"], "edit_mask", edited_rules, config.max_pixels, (width, height), 1)
        edit_mask = fit_mask(found, (width, height), (0, 0, width, height), (height, width))
    return EditSample(
        source=resize(cut(source, box), (edited.shape[1], edited.shape[0])),
        edited=edited,
        source_prompt=str(pair.source_prompt),
        target_prompt=str(pair.target_prompt),
        reference_mask=references.mask,
        edit_mask=edit_mask,
        target=references.target,
        framed=references.framed,
        instruction=pair.instruction,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """What a record knows of its edit, in the frame of the edited picture; None: it does not know. Shapes: as `EditSample`."""

    mask: BoolArray | None
    framed: bool
    target: UInt8Array | None


def read_references(
    record: Mapping[str, Any],
    rules: ReferenceRules,
    max_pixels: int,
    size: Size,
    orientation: int,
    box: Box,
    shape: tuple[int, ...],
) -> References:
    """Decode a record's reference mask and picture: of an original of `size` (width, height), stored in an EXIF orientation, the
    part within `box`, brought to the edited picture's `shape` (height, width).

    Raises: RequestError for what cannot be read.
    """
    mask, framed = None, False
    if record.get("reference_mask") is not None:
        whole = _mask(record["reference_mask"], "reference_mask", rules, max_pixels, size, orientation)
        framed = is_framed(whole)
        mask = fit_mask(whole, size, box, shape)
        mask = with_frame(mask) if framed else mask
    target = None
    # Where the prompts leave the answer open, one picture of it is no measure of another.
    if record.get("reference_image") is not None and record.get("target_determined") is not False:
        target = resize(
            decode_value(record["reference_image"], "reference_image", rules, decode_whole, max_pixels).pixels, size
        )
        target = resize(cut(target, box), (shape[1], shape[0]))
    return References(mask=mask, framed=framed, target=target)


def frame_box(size: tuple[int, int], shape: tuple[int, ...], crop_box: Any, original_size: Any) -> Box:
    """Say which part of the original (width, height) an edited picture (height, width) shows: what its row says, else the
    largest centred part of its aspect.

    Raises: RequestError where the row speaks of an original of another size.
    """
    width, height = size
    if crop_box is None:
        crop_width = max(1, min(width, round(height * shape[1] / shape[0])))
        crop_height = max(1, min(height, round(width * shape[0] / shape[1])))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return left, top, left + crop_width, top + crop_height
    if original_size is not None and (found := _whole_numbers(original_size, "original_size", ("width", "height"))) != size:
        raise RequestError(
            "other_picture",
            field="original_size",
            got=f"{found[0]}x{found[1]} px",
            allowed=f"{width}x{height} px, the size of the benchmark's picture",
        )
    left, top, right, bottom = _whole_numbers(crop_box, "crop_box", ("left", "top", "right", "bottom"))
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise RequestError(
            "other_picture", field="crop_box", got=f"{(left, top, right, bottom)}", allowed=f"a part of {width}x{height} px"
        )
    return left, top, right, bottom


def _whole_numbers(value: Any, field: str, names: Sequence[str]) -> tuple[int, ...]:
    """Read a struct of whole numbers.

    Raises: RequestError for anything else.
    """
    try:
        numbers = tuple(int(value[name]) for name in names)
        if numbers == tuple(value[name] for name in names):
            return numbers
    except (TypeError, ValueError, LookupError, OverflowError):
        pass
    raise wrong_type(field, value, allowed=f"a struct of whole numbers {', '.join(names)}")


def through_jpeg(image: UInt8Array, quality: int) -> UInt8Array:
    """Return what is left of a picture after JPEG with Pillow's other defaults."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="jpeg", quality=quality)
    return np.array(Image.open(buffer))


def is_framed(mask: BoolArray) -> bool:
    """Whether a mask takes in the whole one-pixel border, as PIE-Bench's do by rule."""
    return bool(mask[[0, -1]].all() and mask[:, [0, -1]].all())


def cut(image: UInt8Array, box: Box) -> UInt8Array:
    """Return the part of a picture within a box."""
    left, top, right, bottom = box
    return image[top:bottom, left:right]


def _scene_values(sample: EditSample, record: Mapping[str, Any]) -> dict[str, float | None]:
    """Let the pixel reader judge an edit of a drawn scene; nothing for other records and for pictures that are not square."""
    height, width = sample.edited.shape[:2]
    if height != width or any(converted(record.get(name)) is None for name in SCENE_COLUMNS):
        return {}
    edited_object = record["edited_object"]
    verdict = judge_edit(
        sample.edited,
        scene_from_json(record["source_scene"]),
        scene_from_json(record["target_scene"]),
        edited_object["source"],
        edited_object["target"],
    )
    return {
        "scene_success": float(verdict.success),
        "scene_edited_right": float(verdict.edited_right),
        "scene_others_unchanged": float(verdict.others_unchanged),
    }


def _mask(value: Any, field: str, rules: ReferenceRules, max_pixels: int, size: Size, orientation: int) -> BoolArray:
    """Decode the mask of a picture of `size` (width, height) that is stored in an EXIF orientation."""
    return turn_mask(decode_value(value, field, rules, decode_whole_mask, max_pixels).pixels, size, orientation, field)[0]


def decode_value(value: Any, field: str, rules: ReferenceRules, decode: Callable[..., Decoded], max_pixels: int) -> Decoded:
    """Decode a picture, fetched where the record only names it.

    Raises: RequestError naming the field, also where it cannot be fetched; the infrastructure's transient errors as they are.
    """
    coded = find_coded(value, field)
    try:
        return decode(fetch(coded, rules) if isinstance(coded, str) else coded, max_pixels=max_pixels)
    except RequestError as error:
        raise RequestError(error.code, field=field, got=error.got, allowed=error.allowed) from error
    except OSError as error:
        if is_transient(error):
            raise
        raise RequestError("unreadable", field=field, got=f"{coded!r}: {error}", allowed=PICTURE) from error
