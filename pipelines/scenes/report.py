"""The tables of the scene benchmark as text: aligned for the console, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.scenes.table import DEFAULT, MEASURES
from pipelines.tables import Table

NOTHING = "-"
PERCENT = ("success",)  # of the measures; the others are in their own units


def plain_text(numbers: Mapping[str, Any]) -> str:
    """Return everything for the console."""
    lines = [f"{name}: {value}" for name, value in _facts(numbers)]
    return "\n\n".join(["\n".join(lines), *[table.text() for table in report_tables(numbers)]])


def markdown(numbers: Mapping[str, Any]) -> str:
    """Return everything as Markdown."""
    lines = [f"- {name}: {value}" for name, value in _facts(numbers)]
    parts = ["# Edits of drawn scenes", "\n".join(lines), *[table.markdown() for table in report_tables(numbers)]]
    return "\n\n".join(parts) + "\n"


def report_tables(numbers: Mapping[str, Any]) -> list[Table]:
    """Lay out all tables that have rows."""
    confidence = f"{numbers['facts']['confidence']:.0%}"
    model = numbers["model"]
    tables = [
        _trade(numbers.get("trade", ())),
        _variants(numbers["variants"], model, confidence),
        _differences(numbers["variants"], numbers["facts"]),
        _categories(numbers["categories"], confidence),
        _round_trip(model["round_trip"]),
        _reader(model["reader"]),
        _text_to_image(model["text_to_image"], confidence),
        _retrieval(model["retrieval"], confidence),
        _verdicts(numbers["verdicts"]),
        _claims(numbers["claims"]),
    ]
    return [table for table in tables if table.rows]


def _variants(variants: Sequence[Mapping[str, Any]], model: Mapping[str, Any], confidence: str) -> Table:
    columns = (
        *("variant", "edits", "not ok", f"success % [{confidence}]", "edited right %", "others unchanged %"),
        *("mask IoU", "precision", "recall", "background PSNR", "to round trip", "target PSNR", "inside", "CLIP", "s/edit"),
    )
    rows = tuple(
        (
            each["variant"],
            str(each["rows"]),
            ", ".join(f"{count} {status}" for status, count in each["statuses"].items() if status != "ok") or "0",
            share_text(each["success"]),
            percent(each["edited_right"]["value"]),
            percent(each["others_unchanged"]["value"]),
            *[number(each[name], 2) for name in ("mask_iou", "mask_precision", "mask_recall")],
            number(each["background_psnr"], 1),
            difference_text(each["background_to_round_trip"], 1),
            *[number(each[name], 1) for name in ("target_psnr", "target_psnr_inside", "clip")],
            number(each["seconds"], 2),
        )
        for each in variants
    )
    returned = ("(source returned)", *[NOTHING] * 10)
    default = variants[0]
    source = [number(value, 1) for value in (default["source_psnr"], default["source_psnr_inside"], model["source_clip"])]
    note = (
        "success: every edited attribute reads as in the target and every other as before; an edit that is not ok counts as none. "
        f"Masks: of the {default['local']} edits of one object, cell by cell of the latent; a cell is true where the true mask takes "
        "at least half of it. PSNR in dB: background outside the true mask against the source, and its paired difference to the "
        f"autoencoder's round trip; target of the {default['determined']} edits whose captions settle it, whole and inside the mask."
    )
    return Table(title="Variants", columns=columns, rows=(*rows, (*returned, *source, NOTHING)), note=note)


def _trade(rows: Sequence[Mapping[str, Any]]) -> Table:
    first = rows[0]["seconds"] if rows else None
    return Table(
        title="Quality beside time",
        columns=("variant", "editor", "s/edit", "times as fast", "success %", "target PSNR", "background PSNR", "front"),
        rows=tuple(
            (
                *(each["variant"], each["editor"], number(each["seconds"], 3)),
                number(first / each["seconds"] if first and each["seconds"] else None, 1),
                percent(each["success"]),
                *[number(each[name], 1) for name in ("target_psnr", "background_psnr")],
                "yes" if each["front"] else "",
            )
            for each in rows
        ),
        note="s/edit: a batch's time over its edits, encoders and decoder included. front: no other variant takes no more time and is "
        "nowhere worse.",
    )


def _differences(variants: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            each["variant"],
            *[_measure_text(measure, each["differences"][measure]) for measure in MEASURES],
        )
        for each in variants
        if each["variant"] != DEFAULT
    )
    note = (
        f"Mean over the pairs of one record with {facts['confidence']:.0%} intervals: percentiles of {facts['resamples']} bootstrap "
        "resamples of the pairs. Success in percentage points, PSNR in dB."
    )
    columns = ("variant", *[f"{title}{' (points)' if name in PERCENT else ''}" for name, title in MEASURES.items()])
    return Table(title="Paired differences to the default", columns=columns, rows=rows, note=note)


def _categories(categories: Sequence[Mapping[str, Any]], confidence: str) -> Table:
    columns = (
        *("category", "edits", "not ok", f"success % [{confidence}]", "edited right %", "others unchanged %", "mask IoU"),
        *("background PSNR", "settled", "target PSNR", "source's", "inside", "source's inside"),
    )
    rows = tuple(
        (
            each["category"],
            str(each["rows"]),
            str(each["not_ok"]),
            share_text(each["success"]),
            percent(each["edited_right"]["value"]),
            percent(each["others_unchanged"]["value"]),
            number(each["mask_iou"], 2),
            number(each["background_psnr"], 1),
            str(each["determined"]),
            *[number(each[name], 1) for name in ("target_psnr", "source_psnr", "target_psnr_inside", "source_psnr_inside")],
        )
        for each in categories
    )
    note = "settled: edits whose captions settle the target; PSNR to it of the edit, and of the source had it been returned."
    return Table(title="Default by category", columns=columns, rows=rows, note=note)


def _round_trip(facts: Mapping[str, Any]) -> Table:
    row = tuple(number(facts[name], 2) for name in ("psnr", "least_psnr", "background_psnr"))
    columns = ("pictures", "PSNR", "least", "outside the true mask")
    return Table(title="Autoencoder round trip (dB)", columns=columns, rows=(("sources", *row),))


def _reader(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        title="Attribute reader, right %",
        columns=("attribute", "readings", "as drawn", "after a round trip"),
        rows=tuple(
            (each["attribute"], str(each["readings"]), percent(each["rendered"]), percent(each["returned"])) for each in rows
        ),
    )


def _text_to_image(rows: Sequence[Mapping[str, Any]], confidence: str) -> Table:
    names = tuple(rows[0]["attributes"]) if rows else ()
    return Table(
        title="Text to image, right %",
        columns=("objects", "pictures", f"everything [{confidence}]", *names, "too few", "too many"),
        rows=tuple(
            (
                str(each["objects"]),
                str(each["pictures"]),
                share_text(each["all_right"]),
                *[percent(each["attributes"][name]) for name in names],
                *[percent(each[name]) for name in ("missing", "extra")],
            )
            for each in rows
        ),
        note=(
            "everything: all attributes of the scene right and as many objects as were asked for; background and style in per cent "
            "of the pictures, the objects' attributes of the objects; too few, too many objects in per cent of the pictures."
        ),
    )


def _retrieval(rows: Sequence[Mapping[str, Any]], confidence: str) -> Table:
    return Table(
        title="Retrieval, picture to caption, first place %",
        columns=("CLIP", "captions", f"found [{confidence}]"),
        rows=tuple((each["clip"], str(each["total"]), share_text(each)) for each in rows),
    )


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        title="Against the default",
        columns=("variant", *MEASURES.values()),
        rows=tuple((each["variant"], *[each[measure] or NOTHING for measure in MEASURES]) for each in rows),
        note="better, worse: the whole interval of the paired difference lies above or below zero.",
    )


def _claims(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        title="The paper's claims here",
        columns=("claim", "variant", "measure", "difference", "here"),
        rows=tuple(
            (
                each["claim"],
                each["variant"],
                MEASURES[each["measure"]],
                _measure_text(each["measure"], each["difference"]),
                each["here"],
            )
            for each in rows
        ),
    )


def _facts(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = numbers["facts"]
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    named = {
        "records": f"{facts['records']} of the {facts['split']} split, scenes_seed {facts['scenes_seed']}, {facts['picture_px']} px",
        "model": f"{facts['model']}, digest {facts['model_digest']}",
        "recipe": f"{facts['steps']} steps, seed {facts['seed']}, config digest {facts['config_digest']}",
        "scoring CLIP": facts["scoring_clip"] or "none (scoring_clip unset), so no CLIP values",
        "processor": facts["processor"],
        "versions": versions,
    }
    if facts["model_warning"]:
        named["warning"] = facts["model_warning"]
    return list(named.items())


def _measure_text(measure: str, found: Mapping[str, Any] | None) -> str:
    return difference_text(found, 1, 100) if measure in PERCENT else difference_text(found, 3 if measure == "mask_iou" else 2)


def number(value: float | None, digits: int) -> str:
    """Write a number that may be absent."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent(value: float) -> str:
    """Write a share as per cent."""
    return f"{100 * value:.1f}"


def share_text(found: Mapping[str, Any]) -> str:
    """Write a share with its interval, in per cent."""
    return f"{percent(found['value'])} [{percent(found['low'])}, {percent(found['high'])}]"


def difference_text(found: Mapping[str, Any] | None, digits: int, factor: float = 1) -> str:
    """Write a difference with its interval; one that is absent as a dash."""
    if found is None:
        return NOTHING
    value, low, high = (f"{factor * found[name]:+.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
